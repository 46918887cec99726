r"""Stochastic exponential multistep: SDE-DPM-Solver(++), stochastic gDDIM and SA-Solver, on every linear process.

The reverse SDE with fresh noise eta (`solver/sde/reverse.py`) is solved like the ODE of `solver/ode/exponential.py`:
its linear part and its noise exactly, the prediction replaced by the polynomial through the last ones in log-SNR,

    z_s = Phi z_t + sum_j B_j D_j + C xi,        B_j = int_t^s P_s d(P^-1 M) l_j
    z_s = Psi z_t + (1 + eta) sum_j B_j eps_j + sqrt(eta) (Psi Sigma_t Psi^T - Sigma_s)^(1/2) xi       (noise form)

xi is the increment of the path between t and s. With h = lambda_s - lambda_t a scalar process has Phi =
(sigma_s/sigma_t) e^(-eta h) and C = sigma_s (1 - e^(-2 eta h))^(1/2) in data form, which are the published numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fewstep.process.clock import clock
from fewstep.process.operator import Coefficient, transpose
from fewstep.solver.base import LAST, Promise, Solver
from fewstep.solver.sde.ancestral import with_noise
from fewstep.solver.sde.reverse import added, reverse
from fewstep.solver.weights import Frame, finite, weights
from fewstep.tableau import Form, Writer
from fewstep.words import among, within

__all__ = ["SASolver", "SDEMultistep", "places", "step"]

Node = tuple[float, Form]  # the time of a call, and its prediction
Linear = tuple[Coefficient, Form]  # what a step carries, and what it weighs


@dataclass(frozen=True, kw_only=True)
class SDEMultistep(Solver):
    r"""SDE-DPM-Solver++ (1, 2M, 3M) and SDE-DPM-Solver: stochastic, one call a step, state kept: the last predictions.

    points = 1 is stochastic gDDIM with lambda^2 = eta, and on numbers DDIM(eta=1) where eta = 1. points = 2 adds the
    slope D1 = (D_0 - D_1)/r_0, weighed by the exact integral ("heun") or by half the first-order weight ("midpoint").
    points = 3 as published takes half the weight of the bend D2 that the expansion has; `corrected` restores it.
    eta = 0 is DPM-Solver(++) multistep. A step to sigma = 0 uses one point and adds nothing; a prediction made at
    alpha = 0 is left out; `final_ramp` uses fewer points towards the end, one in the last step (diffusers).

    Weak order `points`, at most 2; strong order 1 on one path. In noise form few steps can be unstable.

    References: DPM-Solver++ (Lu et al. 2022b), the SDE variant, https://arxiv.org/abs/2211.01095; 2M and 3M SDE:
    https://github.com/crowsonkb/k-diffusion; noise form: https://github.com/huggingface/diffusers (sde-dpmsolver);
    points = 1: Zhang, Tao, Chen, gDDIM, 2022, https://arxiv.org/abs/2206.05564.

    Args:
        points: predictions in a step, 1, 2 or 3.
        eta: fresh noise, at least 0; 1 is the reverse SDE.
    """

    points: int = 2
    eta: float = 1.0
    type: str = "midpoint"
    form: str = "data"
    corrected: bool = False
    final_ramp: bool = False

    def __post_init__(self) -> None:
        among(self, points=(1, 2, 3), type=("midpoint", "heun"), form=("data", "noise"))
        within(self, eta="[0, inf)")

    @property
    def promise(self) -> Promise:
        stochastic, order = self.eta > 0, min(self.points, 2)
        if self.form == "noise":
            return Promise(order, stochastic=True, point_mass=(), ends=()) if stochastic else Promise(order, ends=LAST)
        return Promise(order, stochastic=stochastic)

    def write(self, w: Writer) -> None:
        z, p, data = w.start, w.process, self.form == "data"
        law, nodes = reverse(p, self.eta) if data else self.form, []
        for k, (t, s) in enumerate(w.steps):
            d = w.call(z, t)
            nodes = [(t, d if data else w.eps(z)), *finite(w.process, nodes)][: self.points]
            used = nodes[: len(w.steps) - k] if self.final_ramp else nodes
            used = used if p.log_snr(s) < math.inf else nodes[:1]
            phi, weighed = step(w, law, "log-snr", t, s, used, self._half(len(used)))
            if data:
                form = phi * z + weighed + (added(w, phi, t, s) if self.stochastic else Form({}))
            else:
                lost = self.eta * (phi * p.Sigma(t) * transpose(phi) - p.Sigma(s))
                form = with_noise(w, phi * z + (1 + self.eta) * weighed, lost, t, s)
            z = w.row(form, s)

    def _half(self, points: int) -> str:
        if points == 3:
            return "" if self.corrected else "bend"
        return "slope" if points == 2 and self.type == "midpoint" else ""


@dataclass(frozen=True, kw_only=True)
class SASolver(Solver):
    r"""SA-Solver: stochastic Adams predictor-corrector in data form, with the fresh noise tau(t)^2 of each step.

    The predictor's polynomial passes through the last `points` predictions; the corrector repeats the step, with the
    same noise, through the prediction made at its end too, which the next step uses again: one call a step. tau holds
    in steps that end at a noise-to-signal ratio in [tau_min, tau_max], and is 0 (the ODE) elsewhere. tau = 0 is
    exponential multistep. Weak order 2 with one point and the corrector or two without it. As in the authors' code the
    last row is not corrected. A step to sigma = 0 uses one point.

    References: Xue et al., SA-Solver: stochastic Adams solver for fast sampling of diffusion models, 2023,
    https://arxiv.org/abs/2309.05019; as in https://github.com/comfyanonymous/ComfyUI (comfy/k_diffusion/sa_solver.py).

    Args:
        points: predictions in the predictor's polynomial; the corrector has one more.
        tau: the paper's tau, at least 0; 1 is the reverse SDE.
    """

    points: int = 3
    tau: float = 1.0
    tau_min: float = 0.0
    tau_max: float = math.inf
    corrector: bool = True

    def __post_init__(self) -> None:
        within(self, points="[1, inf]", tau="[0, inf)")

    @property
    def promise(self) -> Promise:
        return Promise(min(self.points + self.corrector, 2), stochastic=self.tau > 0)

    def write(self, w: Writer) -> None:
        z = ahead = w.start
        p, nodes, taken = w.process, [], None
        laws = {eta: reverse(p, eta) for eta in (0.0, self.tau**2)}
        for t, s in w.steps:
            node = (t, w.call(ahead, t))
            z = ahead
            if self.corrector and taken is not None:
                fixed, *there = taken
                z = w.row(fixed + step(w, *there, [node, *nodes])[1], t)
            nodes = [node, *finite(w.process, nodes)][: self.points]
            inside = self.tau_min <= math.exp(-float(p.log_snr(s))) <= self.tau_max
            law = laws[self.tau**2 if inside else 0.0]
            phi, weighed = step(w, law, "log-snr", t, s, nodes if p.log_snr(s) < math.inf else nodes[:1])
            fixed = phi * z + (added(w, phi, t, s) if inside and self.stochastic else Form({}))
            ahead, taken = w.row(fixed + weighed, s), (fixed, law, "log-snr", t, s)


def step(w: Writer, law: Frame | str, name: str, t: float, s: float, nodes: list[Node], half: str = "") -> Linear:
    """Phi and sum_j B_j y_j of a step, the polynomial through the nodes taken in a clock; `half` halves a weight.

    With x = 0 at t and 1 at s, y = y_0 + D1 x + D2 x^2 and B^k the integral of x^k: "slope" gives D1 of two predictions
    B^0/2 in place of B^1, "bend" gives D2 of three B^2/2 in place of B^2.
    """
    phi, b = weights(w.process, law, clock(name), t, s, [u for u, _ in nodes])
    y = [form for _, form in nodes]
    if half == "slope" and len(nodes) == 2:
        share = -0.5 / places(w, name, t, s, nodes)[1]
        share = -1.0 if abs(share + 1) < 1e-9 else share  # the midpoint of a step: y_0 drops out
        return phi, (b[0] + b[1]) * (y[0] + share * (y[0] - y[1]))
    if half == "bend" and len(nodes) == 3:
        x = places(w, name, t, s, nodes)
        bend = [1 / math.prod(v - u for u in x if u != v) for v in x]  # of the parabola, by divided differences
        second = x[1] ** 2 * b[1] + x[2] ** 2 * b[2]
        b = [c - (0.5 * q) * second for c, q in zip(b, bend, strict=True)]
    return phi, Form.total(zip(b, y, strict=True))


def places(w: Writer, name: str, t: float, s: float, nodes: list[Node]) -> list[float]:
    """Where the nodes lie in the clock, 0 at t and 1 at s."""
    start, end, *at = (clock(name).at(w.process, x) for x in (t, s, *(x for x, _ in nodes)))
    return [(u - start) / (end - start) for u in at]
