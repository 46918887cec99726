r"""SEEDS and DPM-Solver++ SDE: exponential Runge-Kutta for the reverse SDE, on every linear process.

A step from t to s calls the network at t and at inner times m, r of the way in log-SNR. Every stage is an exact step of
the linear part, of a polynomial through earlier predictions, and of the noise. The noises of one step belong to one
path: that of [t, s] is what that of [t, m] has become, and what [m, s] adds,

$$ N_m = C_{t,m} \xi_{[t,m]}, \qquad N_s = \Phi_{s,m} N_m + C_{m,s} \xi_{[m,s]} $$

so that N_s has exactly the law of one step's noise, and the right correlation with the stage that made D_m.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fewstep.process.clock import clock
from fewstep.process.operator import cholesky, transpose
from fewstep.solver.base import LAST, Promise, Solver
from fewstep.solver.ode.singlestep import NODES
from fewstep.solver.sde.multistep import Node, step
from fewstep.solver.sde.reverse import added, carry, reverse
from fewstep.tableau import Form, Writer
from fewstep.words import among, within

__all__ = ["SEEDS"]


@dataclass(frozen=True, kw_only=True)
class SEEDS(Solver):
    r"""SEEDS-2, SEEDS-3 and DPM-Solver++ SDE: stochastic, `stages` calls a step, one in a step to sigma = 0.

    With D_2 made at m, r of the way (1/2; for three stages 1/3 and 2/3), and whole = M_s - Phi M_t, two stages are
    z_s = Phi z + whole ((1 - 1/2r) D + 1/2r D_2) + N_s ("midpoint", the phi_1 of ComfyUI, DPM-Solver++ SDE), or takes
    the exact weights of the line through D and D_2 ("heun", phi_2). Three stages take the line through D and D_2 for
    the second stage, and that through D and D_3 for the step.

    No state kept. Weak order 2, strong order 1 on one path. eta = 0 is DPM-Solver++ 2S or 3S.
    `noises="separate"` draws a normal of its own for the stage (k-diffusion's code with any noise but its Brownian
    tree): every stage keeps its law, but the weak order falls to 1. k-diffusion's dpmpp_sde means eta by DDIM's, which
    is ours at 0 and 1 only.

    References: Gonzalez et al., SEEDS: exponential SDE solvers for fast high-quality sampling from diffusion models,
    2023, https://arxiv.org/abs/2305.14267; as in https://github.com/comfyanonymous/ComfyUI; DPM-Solver++ SDE:
    https://github.com/crowsonkb/k-diffusion.
    """

    stages: int = 2
    eta: float = 1.0
    type: str = "heun"
    noises: str = "path"

    def __post_init__(self) -> None:
        among(self, stages=(2, 3), type=("midpoint", "heun"), noises=("path", "separate"))
        within(self, eta="[0, inf)")

    @property
    def promise(self) -> Promise:
        stochastic = self.eta > 0
        order = self.stages if not stochastic else 1 if self.noises == "separate" else 2
        return Promise(order, stochastic=stochastic, ends=LAST)

    def calls(self, steps: int, *, to_zero: bool) -> int:
        return steps * self.stages - (self.stages - 1) * to_zero

    def write(self, w: Writer) -> None:
        z, p = w.start, w.process
        law = reverse(p, self.eta)
        for t, s in w.steps:
            r = NODES[self.stages] if p.log_snr(s) < math.inf else ()
            times = [t, *(clock("log-snr").between(p, t, s, x) for x in r), s]
            nodes: list[Node] = []
            ahead, noise = z, Form({})
            for at, to in zip(times, times[1:], strict=False):
                nodes.append((at, w.call(ahead, at, to=s)))
                used = nodes if len(nodes) < 3 else [nodes[0], nodes[2]]
                half = "slope" if self.stages == 2 and self.type == "midpoint" else ""
                phi, weighed = step(w, law, "log-snr", t, to, used, half)
                if self.stochastic and self.noises == "path":
                    onward = carry(law, at, to)
                    noise = onward * noise + added(w, onward, at, to)
                elif self.stochastic and to == s:
                    noise = added(w, phi, t, s)
                elif self.stochastic:
                    covariance = p.Sigma(to) - phi * p.Sigma(t) * transpose(phi)
                    noise = cholesky(covariance) * w.fresh_noise(t, to, "stage")
                ahead = w.row(phi * z + weighed + noise, to)
            z = ahead
