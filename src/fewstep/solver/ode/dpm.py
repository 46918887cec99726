r"""DPM-Solver and DPM-Solver++ multistep, as published (Lu et al. 2022a, 2022b), on scalar processes.

With h = lambda_s - lambda_t, r_0 = h_prev/h, r_1 = h_prev2/h and the last predictions m_0, m_1, m_2,

    z_s = (b_s/b_t) z_t + e a_s [phi_1 m_0 + phi_2 D1 + phi_3 D2],
    D1_0 = (m_0 - m_1)/r_0,  D1_1 = (m_1 - m_2)/r_1,  D2 = (D1_0 - D1_1)/(r_0 + r_1),  D1 = D1_0 + r_0 D2,
    phi_1 = -e expm1(-e h),  phi_2 = e (1 - phi_1/h),  phi_3 = e (1/2 - phi_2/h)

with a, b, e = alpha, sigma, 1 in data form (DPM-Solver++) and sigma, alpha, -1 in noise form (DPM-Solver).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fewstep.solver.base import BY_FORM, Moments, Promise, Solver
from fewstep.solver.weights import finite, first_order
from fewstep.tableau import Form, Writer
from fewstep.words import among

__all__ = ["DPMMultistep"]


@dataclass(frozen=True, kw_only=True)
class DPMMultistep(Solver):
    r"""DPM-Solver(++) multistep (1, 2M, 3M) as published; deterministic, one call a step.

    In 2M's "midpoint" D1 enters with phi_1/2, in "heun" with phi_2. The authors' 3M has phi_3 D2 for 2 phi_3 D2, and
    order 2 therefore; `corrected` restores it. The first steps use fewer points, the last ones with `final_ramp` (None:
    of fewer than 10, as in their code); one to sigma = 0 uses one, and a prediction made at alpha = 0 is left out.

    References: Lu et al. 2022b, eq. 9 and Algorithm 2, https://arxiv.org/abs/2211.01095; 2022a,
    https://arxiv.org/abs/2206.00927; 3M: https://github.com/LuChengTHU/dpm-solver.
    """

    points: int = 2
    form: str = "data"
    type: str = "midpoint"
    corrected: bool = False
    final_ramp: bool | None = None

    kinds, reason = ("scalar",), "its formula divides differences of one log-SNR"

    def __post_init__(self) -> None:
        among(self, points=(1, 2, 3), form=("data", "noise"), type=("midpoint", "heun"))

    @property
    def promise(self) -> Promise:
        """With two predictions "midpoint" misses degree 1, and with three the published form misses degree 2."""
        degrees = (0, int(self.type == "heun"), 1 + self.corrected)[: self.points]
        return Promise(min(self.points, 2), moments=Moments(self.form, "log-snr", degrees), ends=BY_FORM[self.form])

    def write(self, w: Writer) -> None:
        z, nodes = w.start, []
        ramp = len(w.steps) < 10 if self.final_ramp is None else self.final_ramp
        for k, (t, s) in enumerate(w.steps):
            d = w.call(z, t)
            nodes = [(t, d if self.form == "data" else w.eps(z)), *finite(w.process, nodes)][: self.points]
            used = nodes[: len(w.steps) - k] if ramp else nodes
            z = w.row(self._step(w, z, t, s, used if w.process.log_snr(s) < math.inf else nodes[:1]), s)

    def _step(self, w: Writer, z: Form, t: float, s: float, nodes: list[tuple[float, Form]]) -> Form:
        p, (carry, first) = w.process, first_order(w.process, self.form, t, s)  # first is scale phi_1
        e, scale = (1, p.M(s)) if self.form == "data" else (-1, -p.R(s))
        (l0, m0), *others = [(float(p.log_snr(u)), m) for u, m in nodes]
        form, h = carry * z + first * m0, float(p.log_snr(s)) - l0
        if not others:
            return form
        phi_1, r0 = -e * math.expm1(-e * h), (l0 - others[0][0]) / h
        phi_2 = e * (1 - phi_1 / h)
        d1 = (1 / r0) * (m0 - others[0][1])
        if len(others) == 1:
            return form + scale * (phi_1 / 2 if self.type == "midpoint" else phi_2) * d1
        (l1, m1), (l2, m2) = others
        r1, phi_3 = (l1 - l2) / h, e * (1 / 2 - phi_2 / h) * (2 if self.corrected else 1)
        d2 = d1 - (1 / r1) * (m1 - m2)
        return form + scale * phi_2 * (d1 + (r0 / (r0 + r1)) * d2) + scale * phi_3 * ((1 / (r0 + r1)) * d2)
