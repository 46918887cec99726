r"""ER-SDE-Solver: extended reverse-time SDE, whose noise is set by a function phi of the noise-to-signal ratio.

With x = sigma/alpha, r = phi(x_s)/phi(x_t), and D expanded in x about t, D = D_0 + D' (x - x_t) + D'' (x - x_t)^2/2,

    z_s = (alpha_s/alpha_t) r z_t + alpha_s [(1 - r) D_0 + int_t^s (1 - phi(x_s)/phi(x)) (D' + D'' (x - x_t)) dx]
          + alpha_s (x_s^2 - r^2 x_t^2)^(1/2) xi

phi = x is the ODE, x^2 the reverse SDE, x^(1 + eta) the family of `fewstep.solver.sde.reverse`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.process.clock import clock
from fewstep.solver.base import Promise, Solver
from fewstep.solver.sde.multistep import Node, places, step
from fewstep.solver.sde.reverse import added, scaled
from fewstep.solver.weights import Frame, finite, weights
from fewstep.tableau import Form, Writer
from fewstep.words import among

__all__ = ["NOISE_SCALES", "ERSDE"]

# log(phi(x)/x), by the names of the authors' code (er_sde_solver.py), which tries seven
NOISE_SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "ode": torch.zeros_like,
    "sde": torch.log,
    "sde-1": lambda x: torch.logaddexp(-1 / x, torch.full_like(x, math.log(10))),
    "sde-2": lambda x: 0.5 * x.log(),
    "sde-3": lambda x: 1.5 * x.log(),
    "sde-4": lambda x: (torch.log1p(100 * x**1.5) / math.log(10)).log() - 0.1 * x.log(),
    "sde-5": lambda x: torch.logaddexp(x**0.3, torch.full_like(x, math.log(10))),
}


@dataclass(frozen=True, kw_only=True)
class ERSDE(Solver):
    r"""ER-SDE-Solver-1, -2, -3: stochastic (phi = x is the ODE), one call a step, state kept: the last predictions.

    points = 1, 2, 3 take D', D'' by differences of the last predictions. As published, with three points D' is the
    slope between the last two, which leaves degree 2 unmatched; `corrected` takes the parabola through all three. Weak
    order 2 from two points on, 1 with one. A step to sigma = 0 uses one point and adds nothing.

    phi is one of `NOISE_SCALES`; the default "sde-5" is x (e^(x^0.3) + 10). Where we differ: the integral of 1/phi is
    exact to rounding; on frequencies x is each one's own ratio and D is expanded in that of frequency zero.

    References: Cui, Zhang, Bao, Liao, Elucidating the solution space of extended reverse-time SDE for diffusion models,
    2023, https://arxiv.org/abs/2309.06169; https://github.com/QinpengCui/ER-SDE-Solver.
    """

    points: int = 3
    phi: str = "sde-5"
    corrected: bool = False

    kinds = ("scalar", "diagonal")
    reason = "its noise scale is a function of one noise-to-signal ratio"

    def __post_init__(self) -> None:
        among(self, points=(1, 2, 3), phi=NOISE_SCALES)

    @property
    def promise(self) -> Promise:
        return Promise(min(self.points, 2), stochastic=self.phi != "ode")

    def write(self, w: Writer) -> None:
        z, p, nodes = w.start, w.process, []
        law = scaled(p, NOISE_SCALES[self.phi], self.phi)
        for t, s in w.steps:
            nodes = [(t, w.call(z, t)), *finite(w.process, nodes)][: self.points]
            used = nodes if p.log_snr(s) < math.inf else nodes[:1]
            if len(used) == 3 and not self.corrected:
                phi, weighed = self._taylor(w, law, t, s, used)
            else:
                phi, weighed = step(w, law, "rho", t, s, used)
            z = w.row(phi * z + weighed + (added(w, phi, t, s) if self.stochastic else Form({})), s)

    def _taylor(self, w: Writer, law: Frame, t: float, s: float, nodes: list[Node]) -> tuple:
        """D' between the last two predictions, D'' the bend of all three: as published."""
        phi, b = weights(w.process, law, clock("rho"), t, s, [u for u, _ in nodes])
        x, y = places(w, "rho", t, s, nodes), [form for _, form in nodes]
        slopes = [(1 / (x[j] - x[j + 1])) * (y[j] - y[j + 1]) for j in (0, 1)]
        bend = (2 / (x[0] - x[2])) * (slopes[0] - slopes[1])
        first, second = x[1] * b[1] + x[2] * b[2], x[1] ** 2 * b[1] + x[2] ** 2 * b[2]
        return phi, (b[0] + b[1] + b[2]) * y[0] + first * slopes[0] + (0.5 * second) * bend
