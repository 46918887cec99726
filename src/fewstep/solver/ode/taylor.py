r"""Taylor steps: with the exact derivative of the network's prediction, or that of data at a single point.

$$ z_s = P_s P_t^{-1} z_t + P_s \int_t^s \left[ y_t + (u - u_t) \frac{dy}{du} \right] d(P^{-1} Q) $$

in the data or the noise form of `fewstep.solver.ode.exponential`. In noise form with u = sigma/alpha it is GENIE's, the
truncated Taylor method on DDIM's ODE; the derivative is the head `derivative` (`fewstep.Differentiated`), where GENIE
distils one. Along the ODE d eps = -R^-1 M dD, so that one head serves both forms.

For a point mass eps is constant along the ODE ("ideal derivatives"), so that the step is
z_s = P(s) z + (R_s - P(s) R_t) eps with P = Psi_s Psi_t^-1: DDIM, or gDDIM in one step. Quasi-Taylor keeps the terms of
its Taylor polynomial in s - t up to a degree p,

$$ z_s = \sum_{k \le p} \frac{(s - t)^k}{k!} \left[ P^{(k)}(t)\, z_t + (R_s - P R_t)^{(k)}(t)\, \epsilon \right] $$

and needs no Jacobian. The stochastic kind does so with the three coefficients of the ancestral step.

References: Dockhorn, Vahdat, Kreis, GENIE: higher-order denoising diffusion solvers, 2022,
https://arxiv.org/abs/2210.05475. Tachibana, Go, Inahara, Katayama, Watanabe, Quasi-Taylor samplers for diffusion
generative models based on ideal derivatives, 2021, https://arxiv.org/abs/2112.13339; we take the derivatives of the
process's own coefficients, on any linear process, where they are spelled out for one in beta and its rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from fewstep.process.base import Process, Time
from fewstep.process.clock import clock
from fewstep.process.operator import Coefficient, inverse, magnitude, stacked, weighted_sum
from fewstep.solver.base import Promise, Solver
from fewstep.solver.sde.ancestral import posterior, with_noise
from fewstep.solver.weights import weights
from fewstep.tableau.writer import Writer
from fewstep.words import among

__all__ = ["QuasiTaylor", "StochasticQuasiTaylor", "Taylor"]

_NODES = 9  # Chebyshev points behind t of which the derivatives are made


@dataclass(frozen=True, kw_only=True)
class Taylor(Solver):
    """Taylor's method of order 2, deterministic, no state kept; one row a step, with a Jacobian-vector product.

    Refused from alpha = 0 in noise form. A step to sigma = 0 leaves the derivative out where the clock is infinite.

    Args:
        form: "noise" or "data".
        clock: "rho", "log-snr" or "t".
    """

    form: str = "noise"
    clock: str = "rho"

    def __post_init__(self) -> None:
        among(self, form=("data", "noise"))
        clock(self.clock)

    promise = Promise(2, heads=("derivative",), ends=())  # type: ignore[assignment]

    def write(self, w: Writer) -> None:
        z, p, u = w.start, w.process, clock(self.clock)
        for t, s in w.steps:
            d = w.call(z, t)
            carry, (ahead, here) = weights(p, self.form, u, t, s, [s, t])
            length, speed = u.at(p, s) - u.at(p, t), u.rate(p, t)
            y, rise = d, w.head(z, "derivative")
            if self.form == "noise":
                y, rise = w.eps(z), -1.0 * (inverse(p.R(t)) * p.M(t)) * rise
            z = w.row(carry * z + (ahead + here) * y + (length / speed) * (ahead * rise), s)


@dataclass(frozen=True, kw_only=True)
class QuasiTaylor(Solver):
    """Quasi-Taylor of a degree 1 to 3; one call a step, no state kept.

    Order 1 on data that is more than a point, whatever the degree (weak order 1 with noise); on a point mass the
    residual of a step is of order degree + 1. Refuses a start at alpha = 0 and an end at sigma = 0, about which its
    coefficients have no Taylor series.

    Args:
        degree: of the polynomial in time, 1 to 3; 1 is Euler.
    """

    noise: ClassVar[bool] = False

    degree: int = 2

    def __post_init__(self) -> None:
        among(self, degree=(1, 2, 3))

    @property
    def promise(self) -> Promise:
        return Promise(1, stochastic=self.noise, point_mass=(), ends=())

    def write(self, w: Writer) -> None:
        z, p = w.start, w.process
        for t, s in w.steps:
            w.call(z, t)
            r = p.R(t)

            def along(u: Time, t: float = t, r: Coefficient = r) -> tuple[Coefficient, Coefficient, Coefficient]:
                carry = p.transition(u, t)
                if not self.noise:
                    return carry, p.R(u) - carry * r, 0.0 * carry
                gain, covariance = posterior(p, t, u)
                return carry, (gain - carry) * r, covariance

            a, b, covariance = taylor(p, along, t, s, self.degree)
            form = a * z + b * w.eps(z)
            z = w.row(with_noise(w, form, covariance, t, s) if self.noise and s != w.times[-1] else form, s)


@dataclass(frozen=True, kw_only=True)
class StochasticQuasiTaylor(QuasiTaylor):
    """Quasi-Taylor of the ancestral step: mean and covariance each expanded up to the degree; 1 is Euler-Maruyama.

    Not on blocks: position noise begins at the third power of the step, and a covariance cut off before is none.
    """

    kinds: ClassVar[tuple[str, ...]] = ("scalar", "diagonal")
    reason: ClassVar[str] = "a block covariance cut off at a degree is no covariance"
    noise: ClassVar[bool] = True


def taylor(
    process: Process, f: Callable[[Time], tuple[Coefficient, ...]], t: float, s: float, degree: int
) -> tuple[Coefficient, ...]:
    """The Taylor polynomials at t, of a degree, of coefficients that are functions of time, at s.

    The derivatives are those of the polynomial through Chebyshev points on a stretch below t, short against the
    distance to the ends of the process's domain, in which the coefficients are analytic, and so short that no signal
    changes by more than a factor of two on it: frequencies may fade far faster than the domain is long.
    """
    reach = 0.2 * min(t - process.domain[0], 1.0)
    while magnitude(process.transition(t - reach, t)) > 2:
        reach /= 2
    x = 0.5 * (np.cos(math.pi * (np.arange(_NODES) + 0.5) / _NODES) - 1)  # in (-1, 0), in units of reach
    to_monomials = np.linalg.inv(np.vander(x, increasing=True))
    weights = torch.from_numpy(((s - t) / reach) ** np.arange(degree + 1) @ to_monomials[: degree + 1])
    nodes = t + reach * torch.from_numpy(x)
    if process.kind != "scalar":
        return tuple(weighted_sum(weights, value) for value in f(nodes))
    values = zip(*map(f, nodes.tolist()), strict=True)  # one by one, which a table works out for all of its steps
    return tuple(weighted_sum(weights, stacked(list(each))) for each in values)
