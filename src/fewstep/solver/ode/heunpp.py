r"""Heun++ (heunpp2), the sampler of that name in ComfyUI: Euler stages two times ahead, averaged by the noise level.

With eps_0 at z_t, an Euler step to the next time s and its eps_1, another to the time r after that and its eps_2,

    z_s = Psi_s Psi_t^-1 z_t + (R_s - Psi_s Psi_t^-1 R_t) [(1 - w_1 - w_2) eps_0 + w_1 eps_1 + w_2 eps_2]

where w_1 = rho_s/(3 rho_0), w_2 = rho_r/(3 rho_0) and rho = e^-lambda (sigma/alpha), rho_0 at the start of the grid.
The last step but one has no time r: w_1 = rho_s/(2 rho_0) and w_2 = 0; the last is an Euler step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fewstep.solver.base import LAST, Moments, Promise, Solver
from fewstep.solver.weights import first_order
from fewstep.tableau.form import Form
from fewstep.tableau.writer import Writer

__all__ = ["HeunPP"]


@dataclass(frozen=True, kw_only=True)
class HeunPP(Solver):
    r"""Heun++ 2: deterministic, three calls a step, two in the last but one, one in the last.

    Order 1: its weights are those of no interpolation (1/2 and 0 only where rho is half of rho_0), so it damps the late
    predictions at high noise and is Euler's method at low noise. The published one is for sigma = rho; here the
    Euler steps are those of every linear process (DDIM's).

    References: https://github.com/comfyanonymous/ComfyUI (comfy/k_diffusion/sampling.py, sample_heunpp2), after
    https://github.com/Carzit/sd-webui-samplers-scheduler; there is no paper.
    """

    @property
    def promise(self) -> Promise:
        return Promise(1, moments=Moments("noise", "rho", (0,)), ends=LAST)

    def calls(self, steps: int, *, to_zero: bool) -> int:  # noqa: ARG002
        return max(1, 3 * steps - 3)

    def write(self, w: Writer) -> None:
        z, n = w.start, len(w.steps)
        start = float(w.process.log_snr(w.times[0]))
        rho = [math.exp(start - float(w.process.log_snr(t))) for t in w.times]  # over rho_0
        for k in range(n):
            stages = min(3, n - k)
            ahead, found = z, []
            for j in range(stages):
                w.call(ahead, w.times[k + j])
                found.append(w.eps(ahead))
                if j < stages - 1:
                    ahead = w.row(_euler(w, ahead, found[j], k + j), w.times[k + j + 1])
            share = [rho[k + j] / stages for j in range(1, stages)]
            mean = (1 - sum(share)) * found[0]
            for weight, eps in zip(share, found[1:], strict=True):
                mean = mean + weight * eps
            z = w.row(_euler(w, z, mean, k), w.times[k + 1])


def _euler(w: Writer, z: Form, eps: Form, k: int) -> Form:
    """The first-order step of interval k with a given noise prediction."""
    carry, whole = first_order(w.process, "noise", w.times[k], w.times[k + 1])
    return carry * z + whole * eps
