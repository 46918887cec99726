r"""The reverse-time SDE taken step by step, on every linear process.

$$ dz = [F z - G G^T s]\, dt + G\, d\bar w, \qquad s = \nabla \log p_t(z) = -R^{-T} \epsilon $$

Euler-Maruyama freezes all of it over a step; reverse diffusion undoes the forward transition Psi, Q of the step; the
symmetric splitting (SSCS) solves exactly what is linear once the stationary score is split off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.process.base import Process, Time
from fewstep.process.langevin import CLD
from fewstep.process.operator import Block, Coefficient, cholesky, inverse, transpose
from fewstep.solver.base import LAST, Promise, Solver
from fewstep.solver.sde.ancestral import added_noise, posterior, with_noise
from fewstep.solver.weights import first_order
from fewstep.tableau import Form, Writer

__all__ = ["PREDICTORS", "SSCS", "EulerMaruyama", "ReverseDiffusion", "ReverseSDE", "StochasticHeun", "predicted"]


class ReverseSDE(Solver):
    """What samplers of the reverse SDE share: noise, a point mass carried up to a residual, no singular end."""

    claimed: ClassVar[int] = 1  # the weak order

    @property
    def promise(self) -> Promise:
        return Promise(self.claimed, stochastic=True, point_mass=(), ends=())


class _Predicted(ReverseSDE):
    """Steps of one of `PREDICTORS`."""

    predictor: ClassVar[str]

    def write(self, w: Writer) -> None:
        z = w.start
        for t, s in w.steps:
            z = predicted(w, z, self.predictor, t, s)


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(_Predicted):
    r"""Euler-Maruyama on the reverse SDE.

    $$ z_s = z_t - (t - s) [F_t z_t + G_t G_t^T R_t^{-T} \epsilon_t] + \sqrt{t - s}\, G_t\, \xi $$

    One call a step, weak order 1 and strong order 1 (the noise is additive). At alpha = 0 the drift is infinite, at
    sigma = 0 the score. The last step adds no noise.

    References: Song et al. 2021, section 4.1 and appendix E, https://arxiv.org/abs/2011.13456; on CLD the baseline of
    Dockhorn et al. 2022, https://arxiv.org/abs/2112.07068.
    """

    predictor: ClassVar[str] = "euler-maruyama"


@dataclass(frozen=True, kw_only=True)
class ReverseDiffusion(_Predicted):
    r"""The reverse-diffusion sampler: the forward transition z_t = Psi z_s + Q^{1/2} xi of the step, undone.

    $$ z_s = (2 - \Psi) z_t - Q R_t^{-T} \epsilon_t + Q^{1/2} \xi, \qquad Q = \Sigma_t - \Psi \Sigma_s \Psi^T $$

    One call a step, weak order 1. The last step adds no noise. Psi and Q are the process's own (the reference uses
    sqrt(1 - beta_i) and beta_i, which on a tabulated VP process are the same).

    References: Song et al. 2021, appendix E, https://arxiv.org/abs/2011.13456.
    """

    predictor: ClassVar[str] = "reverse-diffusion"


@dataclass(frozen=True, kw_only=True)
class SSCS(ReverseSDE):
    r"""Symmetric splitting for CLD: half a step of what is linear, a score step, half a step of what is linear.

    With the stationary covariance Sigma_inf the reverse SDE is an Ornstein-Uhlenbeck process, solved exactly, and
    dz = G G^T (s + Sigma_inf^-1 z) d tau, solved by an Euler step with the score at the middle time. The linear
    part is the forward process with the velocity turned round: transition P Psi P with P = diag(1, -1), and the noise
    Sigma_inf - Psi Sigma_inf Psi^T that goes with it.

    One call a step, weak order 1, CLD only.

    References: Dockhorn, Vahdat, Kreis, Score-based generative modeling with critically-damped Langevin diffusion,
    2022, section 3.3, https://arxiv.org/abs/2112.07068.
    """

    kinds: ClassVar[tuple[str, ...]] = ("block",)
    reason: ClassVar[str] = "it splits a velocity from a position"

    def write(self, w: Writer) -> None:
        p = w.process
        assert isinstance(p, CLD)
        z = w.start
        stationary, turn = _diagonal(1.0, p.mass), _diagonal(1.0, -1.0)

        def half(z: Form, t: float, s: float) -> Form:
            psi = turn * p.transition(t, s) * turn
            return psi * z + cholesky(stationary - psi * stationary * transpose(psi)) * w.noise(t, s)

        for t, s in w.steps:
            middle = (t + s) / 2
            z = w.row(half(z, t, middle), middle)
            w.call(z, middle)
            push = (t - s) * p.GG(middle)
            score = inverse(stationary) * z - transpose(inverse(p.R(middle))) * w.eps(z)
            z = w.row(half(z + push * score, middle, s), s)


@dataclass(frozen=True, kw_only=True)
class StochasticHeun(Solver):
    r"""Improved Euler (stochastic Heun) on the reverse SDE: the fixed-step form of Gotta Go Fast.

    $$ K_1 = -h f(z, t) + \sqrt{h}\, G_t \xi, \quad K_2 = -h f(z + K_1, s) + \sqrt{h}\, G_s \xi, \quad
       z_s = z + \tfrac12 (K_1 + K_2) $$

    with f = F z + G G^T Sigma^-1 (z - M D) and h = t - s. Two calls a step, weak order 1 (the mean part is Heun's). A
    step to sigma = 0 takes the mean at the data prediction, with one call.

    References: Jolicoeur-Martineau et al. 2021, Gotta go fast when generating data with score-based models,
    https://arxiv.org/abs/2105.14080.
    """

    promise = Promise(1, stochastic=True, point_mass=(), ends=LAST)  # type: ignore[assignment]

    def calls(self, steps: int, *, to_zero: bool) -> int:
        return 2 * steps - to_zero

    def write(self, w: Writer) -> None:
        z = w.start
        for t, s in w.steps:
            if w.process.log_snr(s) == math.inf:
                carry, whole = first_order(w.process, "data", t, s)
                z = w.row(carry * z + whole * w.call(z, t), s)
            else:
                z = improved_euler(w, z, t, s)[0]


def improved_euler(w: Writer, z: Form, t: Time, s: Time) -> tuple[Form, Form]:
    """The row of a step and the row of Euler-Maruyama inside it."""
    h, xi = t - s, w.noise(t, s)
    root = h.sqrt() if isinstance(h, Tensor) else math.sqrt(h)
    euler = w.row(z + _increment(w, z, t, s, h, root, xi), s)
    return w.row(0.5 * z + 0.5 * euler + 0.5 * _increment(w, euler, s, s, h, root, xi), s), euler


def _increment(w: Writer, z: Form, t: Time, s: Time, h: Time, root: Time, xi: Form) -> Form:
    """-h f(z, t) + sqrt(h) G_t xi, in a step to s."""
    p = w.process
    gg, r_inv = p.GG(t), inverse(p.R(t))
    pull = gg * transpose(r_inv) * r_inv
    drift = (p.F(t) + pull) * z - (pull * p.M(t)) * w.call(z, t, to=s)
    return -1.0 * h * drift + (root * cholesky(gg)) * xi


def predicted(w: Writer, z: Form, predictor: str, t: float, s: float) -> Form:
    """The row of a predictor's step, with noise but in the last one."""
    w.call(z, t)
    (a, b), covariance = PREDICTORS[predictor](w.process, t, s)
    form = a * z + b * w.eps(z)
    return w.row(form if s == w.times[-1] else with_noise(w, form, covariance, t, s), s)


def _euler_maruyama(p: Process, t: float, s: float) -> tuple[tuple[Coefficient, Coefficient], Coefficient]:
    h, gg = t - s, p.GG(t)
    return (1.0 - h * p.F(t), -h * (gg * transpose(inverse(p.R(t))))), h * gg


def _reverse_diffusion(p: Process, t: float, s: float) -> tuple[tuple[Coefficient, Coefficient], Coefficient]:
    q = added_noise(p, t, s)
    return (2.0 - p.transition(t, s), -1.0 * (q * transpose(inverse(p.R(t))))), q


def _ancestral(p: Process, t: float, s: float) -> tuple[tuple[Coefficient, Coefficient], Coefficient]:
    gain, covariance = posterior(p, t, s)
    carry = p.transition(s, t)
    return (carry, (gain - carry) * p.R(t)), covariance


# Name -> (process, t, s) -> ((a, b), C): one step a z + b eps + chol(C) xi.
PREDICTORS = {"euler-maruyama": _euler_maruyama, "reverse-diffusion": _reverse_diffusion, "ddpm": _ancestral}


def _diagonal(a: float, b: float) -> Block:
    return Block(torch.diag(torch.tensor([a, b], dtype=torch.float64)))
