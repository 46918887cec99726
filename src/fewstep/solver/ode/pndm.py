r"""Pseudo-numerical multistep: the DDIM map with an average of the last noise predictions (PNDM, iPNDM and kin).

The transfer part is the step that is exact while the noise stays constant, on every linear process

$$ \phi(z, \epsilon, t, s) = \Psi_s \Psi_t^{-1} z + (R_s - \Psi_s \Psi_t^{-1} R_t)\, \epsilon, $$

and the gradient part is a combination with weights of sum one, e_0 being the latest prediction:

    Adams-Bashforth         e_0,  (3 e_0 - e_1)/2,  (23 e_0 - 16 e_1 + 5 e_2)/12,
                            (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3)/24
    pseudo Runge-Kutta      (e_1 + 2 e_2 + 2 e_3 + e_4)/6, its stages by phi to the middle, the middle and s
    pseudo Heun             (e_1 + e_2)/2, e_2 at phi(z, e_1, t, s)
    gradient estimation     gamma e_0 + (1 - gamma) e_1
    Heun++                  (1 - w_1 - w_2) e_0 + w_1 e_1 + w_2 e_2, e_j at phi from time to time of the grid ahead

On scalar processes phi is Euler's step in rho = sigma/alpha, so these are the classical methods on dx/drho = eps with
weights that ignore how the steps differ. On a grid that is smooth they reach order 2 and no more, whatever the count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fewstep.process.base import Process
from fewstep.solver.base import LAST, Moments, Promise, Solver
from fewstep.solver.weights import first_order
from fewstep.tableau import Form, Writer
from fewstep.words import among, finite

__all__ = ["ADAMS", "PNDM", "GradientEstimation", "HeunPP", "transfer"]

ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True, kw_only=True)
class PNDM(Solver):
    r"""PNDM, S-PNDM, PLMS and iPNDM: phi(z_t, average of the last `points` noises), deterministic.

    Order 2 (`points=1`: 1), by the weights and by the start. State kept: the last `points` noise predictions. One call
    a step, and more in the first steps:

    - `start="runge-kutta"` (PNDM): three pseudo Runge-Kutta steps of four calls, so n + 9 calls in n steps;
    - `start="heun"` (S-PNDM with two points, PLMS with four): one pseudo Heun step, n + 1 calls; then as below;
    - `start="ramp"` (iPNDM): fewer points in the first steps, n calls.

    `weights="variable"` is iPNDM-v: Adams weights of the true steps in rho, as published. Against the exact weights,
    those of `lms-4`, they have three slips: a bracket in the third weight's factor, a sign in the fourth's, and a ratio
    of the wrong steps in the last, for which four weights do not sum to one on unequal steps.
    The middle of a Runge-Kutta step is the process's. A step to sigma = 0 uses the latest prediction alone.

    References: Liu, Ren, Lin, Zhao, Pseudo numerical methods for diffusion models on manifolds, 2022,
    https://arxiv.org/abs/2202.09778, and its code https://github.com/luping-liu/PNDM (F-PNDM, S-PNDM); iPNDM: Zhang,
    Chen (DEIS), 2023, https://arxiv.org/abs/2204.13902; PLMS: https://github.com/huggingface/diffusers; iPNDM-v:
    https://github.com/zju-pi/diff-sampler.

    Args:
        points: how many predictions are averaged, 1 to 4.
        start: "runge-kutta", "heun" or "ramp".
        weights: "adams" or "variable".
    """

    points: int = 4
    start: str = "runge-kutta"
    weights: str = "adams"

    def __post_init__(self) -> None:
        among(self, points=(1, 2, 3, 4), start=("runge-kutta", "heun", "ramp"), weights=("adams", "variable"))

    @property
    def promise(self) -> Promise:
        """Where weights sum to one a point is exact; a line in any clock is missed by what the weights ignore."""
        exact = self.weights == "adams" or self.points < 4
        moments = Moments("noise", "log-snr", (0,)) if exact else None
        return Promise(min(self.points, 2), point_mass=None if exact else (), moments=moments, ends=LAST)

    @property
    def _first(self) -> tuple[int, int]:
        """How many steps the start takes, and the calls of each."""
        return {"runge-kutta": (self.points - 1, 4), "heun": (min(self.points - 1, 1), 2), "ramp": (0, 1)}[self.start]

    def calls(self, steps: int, *, to_zero: bool) -> int:
        count, calls = self._first
        return steps + min(count, steps - to_zero) * (calls - 1)

    def write(self, w: Writer) -> None:
        z, nodes = w.start, []
        for k, (t, s) in enumerate(w.steps):
            w.call(z, t)
            nodes = [w.eps(z), *nodes[: self.points - 1]]
            if w.process.log_snr(s) == math.inf:
                e = nodes[0]
            elif k < self._first[0]:
                e = self._start(w, z, nodes[0], t, s)
            else:
                e = Form.total(zip(self._weights(w, k, len(nodes)), nodes, strict=True))
            z = w.row(transfer(w.process, z, e, t, s), s)

    def _start(self, w: Writer, z: Form, e_1: Form, t: float, s: float) -> Form:
        """The averaged noise of a pseudo Runge-Kutta or pseudo Heun step."""
        if self.start == "heun":
            return Form.total([(1 / 2, e_1), (1 / 2, self._stage(w, z, e_1, t, s, s))])
        middle = (t + s) / 2
        e_2 = self._stage(w, z, e_1, t, middle, s)
        e_3 = self._stage(w, z, e_2, t, middle, s)
        e_4 = self._stage(w, z, e_3, t, s, s)
        return Form.total([(1 / 6, e_1), (1 / 3, e_2), (1 / 3, e_3), (1 / 6, e_4)])

    def _stage(self, w: Writer, z: Form, e: Form, t: float, at: float, s: float) -> Form:
        """The noise predicted at phi(z, e, t, at), in the step to s."""
        stage = w.row(transfer(w.process, z, e, t, at), at)
        w.call(stage, at, to=s)
        return w.eps(stage)

    def _weights(self, w: Writer, k: int, have: int) -> tuple[float, ...]:
        if self.weights == "adams":
            return ADAMS[have - 1]
        rho = [math.exp(-float(w.process.log_snr(t))) for t in w.times[k - have + 1 : k + 2]]
        return _variable([b - a for a, b in zip(rho[:-1], rho[1:], strict=True)][::-1])


@dataclass(frozen=True, kw_only=True)
class GradientEstimation(Solver):
    r"""Gradient estimation: phi(z_t, gamma e_0 + (1 - gamma) e_1), deterministic.

    Order 1 (2 at gamma = 3/2, where it is iPNDM-2), one call a step, state kept: the last noise prediction. The first
    step and one to sigma = 0 are DDIM's, and gamma = 1 is DDIM throughout; gamma = 2 is the paper's choice. It runs on
    every process through phi, where the paper steps in sigma.

    References: Permenter, Yuan, Interpreting and improving diffusion models from an optimization perspective, 2024,
    https://arxiv.org/abs/2306.04848.
    """

    gamma: float = 2.0

    def __post_init__(self) -> None:
        finite("gamma", self.gamma)

    @property
    def promise(self) -> Promise:
        order = 2 if self.gamma == 3 / 2 else 1
        return Promise(order, moments=Moments("noise", "log-snr", (0,)), ends=LAST)

    def write(self, w: Writer) -> None:
        z, before = w.start, None
        for t, s in w.steps:
            w.call(z, t)
            mean = e = w.eps(z)
            if before is not None and w.process.log_snr(s) < math.inf:
                mean = Form.total([(self.gamma, e), (1 - self.gamma, before)])
            z, before = w.row(transfer(w.process, z, mean, t, s), s), e


@dataclass(frozen=True, kw_only=True)
class HeunPP(Solver):
    r"""Heun++ 2: deterministic, three calls a step, two in the last but one, one in the last.

    From z_t a step by phi leads to the next time s and its e_1, another to the time r after that and its e_2. With
    rho = e^-lambda (sigma/alpha), rho_0 at the start of the grid, w_1 = rho_s/(3 rho_0) and w_2 = rho_r/(3 rho_0); in
    the last step but one w_1 = rho_s/(2 rho_0). Order 1: the weights are those of no interpolation (1/2 and 0 only
    where rho is half of rho_0), so it damps the late predictions at high noise and is Euler's method at low noise. The
    published one is for sigma = rho.

    References: https://github.com/comfyanonymous/ComfyUI (comfy/k_diffusion/sampling.py, sample_heunpp2), after
    https://github.com/Carzit/sd-webui-samplers-scheduler; there is no paper.
    """

    promise = Promise(1, moments=Moments("noise", "rho", (0,)), ends=LAST)  # type: ignore[assignment]

    def calls(self, steps: int, *, to_zero: bool) -> int:
        return max(1, 3 * steps - 3)

    def write(self, w: Writer) -> None:
        z, p, n = w.start, w.process, len(w.steps)
        start = float(p.log_snr(w.times[0]))
        rho = [math.exp(start - float(p.log_snr(t))) for t in w.times]  # over rho_0
        for k in range(n):
            ahead, found, share = z, [], [rho[j] / min(3, n - k) for j in range(k + 1, min(k + 3, n))]
            for t, s in w.steps[k : k + 3]:
                w.call(ahead, t)
                found.append(w.eps(ahead))
                if len(found) <= len(share):
                    ahead = w.row(transfer(p, ahead, found[-1], t, s), s)
            mean = Form.total(zip((1 - sum(share), *share), found, strict=True))
            z = w.row(transfer(p, z, mean, *w.steps[k]), w.times[k + 1])


def transfer(process: Process, z: Form, e: Form, t: float, s: float) -> Form:
    """phi(z, e, t, s)."""
    carry, gain = first_order(process, "noise", t, s)
    return carry * z + gain * e


def _variable(h: list[float]) -> tuple[float, ...]:
    """iPNDM-v's weights for the step h_0 after steps h_1, h_2, ..., latest first, as published."""
    if len(h) == 1:
        return ADAMS[0]
    h0, h1 = h[:2]
    a = h0 / h1 / 2
    if len(h) == 2:
        return 1 + a, -a
    h2, third = h[2], h0 / (3 * (h0 + h1))
    r = h1 / h2
    b = (1 - third * h0 * (h0 + h1) / (h1 * (h1 + h2))) / 2
    if len(h) == 3:
        return 1 + a + b, -a - (1 + r) * b, r * b
    h3 = h[3]
    q = r * (h1 + h2) / (h2 + h3)
    c = (1 - third) / 2 + (1 - h0 / (2 * (h0 + h1))) * h0 / (6 * (h0 + h1 + h2))
    c = c * h0 * (h0 + h1) * (h0 + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
    return 1 + a + b + c, -a - (1 + r) * b - (1 + r + q) * c, r * b + (r + q * (1 + h2 / h3)) * c, -q * r * c
