r"""The second-order Taylor step with the exact derivative of the network's prediction.

$$ z_s = P_s P_t^{-1} z_t + P_s \int_t^s \left[ y_t + (u - u_t) \frac{dy}{du} \right] d(P^{-1} Q) $$

in the data or the noise form of `fewstep.solver.ode.exponential`. In noise form with u = sigma/alpha it is GENIE's, the
truncated Taylor method on DDIM's ODE; the derivative is the head `derivative` (`fewstep.Differentiated`), where GENIE
distils one. Along the ODE d eps = -R^-1 M dD, so that one head serves both forms.

Reference: Dockhorn, Vahdat, Kreis, GENIE: higher-order denoising diffusion solvers, 2022,
https://arxiv.org/abs/2210.05475.
"""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.process.clock import clock
from fewstep.process.operator import inverse
from fewstep.solver.base import Promise, Solver
from fewstep.solver.weights import weights
from fewstep.tableau.writer import Writer
from fewstep.words import among

__all__ = ["Taylor"]


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

    @property
    def promise(self) -> Promise:
        return Promise(2, heads=("derivative",), ends=())

    def write(self, w: Writer) -> None:
        z, p, u = w.start, w.process, clock(self.clock)
        for t, s in w.steps:
            d = w.call(z, t)
            carry, (ahead, here) = weights(p, self.form, u, t, s, [s, t])
            length, speed = u.at(p, s) - u.at(p, t), u.rate(p, t)
            rise = w.head(z, "derivative") if self.form == "data" else -1.0 * (
                inverse(p.R(t)) * p.M(t)
            ) * w.head(z, "derivative")  # fmt: skip
            y = d if self.form == "data" else w.eps(z)
            z = w.row(carry * z + (ahead + here) * y + (length / speed) * (ahead * rise), s)
