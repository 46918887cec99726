r"""DPM-Solver and DPM-Solver++ multistep, as published (Lu et al. 2022a, 2022b), on scalar processes.

With h = lambda_s - lambda_t, r_0 = h_prev/h, r_1 = h_prev2/h and the last predictions m_0, m_1, m_2,

    D1_0 = (m_0 - m_1)/r_0,  D1_1 = (m_1 - m_2)/r_1,
    D1 = D1_0 + r_0/(r_0 + r_1) (D1_0 - D1_1),  D2 = (D1_0 - D1_1)/(r_0 + r_1)

the data form (DPM-Solver++) steps to

    z_s = (sigma_s/sigma_t) z_t + alpha_s [phi_1 m_0 + phi_2 D1 + phi_3 D2]

with phi_1 = -expm1(-h), phi_2 = 1 - phi_1/h, phi_3 = 1/2 - phi_2/h; the noise form (DPM-Solver) to

    z_s = (alpha_s/alpha_t) z_t - sigma_s [phi_1 m_0 + phi_2 D1 + phi_3 D2]

with phi_1 = expm1(h), phi_2 = phi_1/h - 1, phi_3 = phi_2/h - 1/2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fewstep.solver.base import Moments, Solver
from fewstep.solver.weights import first_order
from fewstep.tableau.form import Form
from fewstep.tableau.writer import Writer

__all__ = ["DPMMultistep"]


@dataclass(frozen=True, kw_only=True)
class DPMMultistep(Solver):
    r"""DPM-Solver(++) multistep (1, 2M, 3M) as published; deterministic, one call a step.

    `points`=2 with `type="midpoint"` is DPM-Solver++ (2M), Algorithm 2 of Lu et al. 2022b: D1 enters with phi_1/2;
    `type="heun"` uses phi_2. `points`=3 is the 3M of the authors' code, which takes phi_3 D2 where the expansion has
    2 phi_3 D2 and is therefore of order 2; `corrected=True` restores the factor.
    The first steps use fewer points. `final_ramp=None` does so at the end too when there are fewer than 10 steps, as
    the authors' code; a step to sigma = 0 always uses one point, and a prediction made at alpha = 0 is left out.

    References: DPM-Solver++ (Lu et al. 2022b), eq. 9 and Algorithm 2, https://arxiv.org/abs/2211.01095; DPM-Solver
    (Lu et al. 2022a), https://arxiv.org/abs/2206.00927; 3M: https://github.com/LuChengTHU/dpm-solver.
    """

    points: int = 2
    form: str = "data"
    type: str = "midpoint"
    corrected: bool = False
    final_ramp: bool | None = None

    kinds = ("scalar",)
    reason = "its formula divides differences of one log-SNR"

    def __post_init__(self) -> None:
        if self.points not in (1, 2, 3):
            raise ValueError(f"got points={self.points}: choose 1, 2 or 3")
        if self.form not in ("data", "noise"):
            raise ValueError(f"got form={self.form!r}: choose data or noise")
        if self.type not in ("midpoint", "heun"):
            raise ValueError(f"got type={self.type!r}: choose midpoint or heun")

    @property
    def order(self) -> int:
        return min(self.points, 2)

    @property
    def moments(self) -> Moments:
        """With two predictions "midpoint" misses degree 1, and with three the published form misses degree 2."""
        return Moments(self.form, "log-snr", (0, int(self.type == "heun"), 1 + self.corrected)[: self.points])

    @property
    def ends(self) -> tuple[str, ...]:
        return ("alpha=0", "sigma=0") if self.form == "data" else ("sigma=0",)

    def write(self, w: Writer) -> None:
        z, nodes = w.start, []
        ramp = len(w.steps) < 10 if self.final_ramp is None else self.final_ramp
        for k, (t, s) in enumerate(w.steps):
            d = w.call(z, t)
            lam, end = float(w.process.log_snr(t)), float(w.process.log_snr(s))
            if math.isfinite(lam) or not nodes:
                nodes = [(lam, d if self.form == "data" else w.eps(z)), *nodes[: self.points - 1]]
            usable = [n for n in nodes if math.isfinite(n[0])] or nodes
            points = len(usable) if math.isfinite(end) else 1
            points = min(points, len(w.steps) - k) if ramp else points
            z = w.row(self._step(w, z, t, s, end - lam, usable[:points]), s)

    def _step(self, w: Writer, z: Form, t: float, s: float, h: float, nodes: list[tuple[float, Form]]) -> Form:
        p, data = w.process, self.form == "data"
        phi_1, phi_2, phi_3 = _phis(h, data=data)
        carry, first = first_order(p, self.form, t, s)  # first is alpha_s phi_1, or -sigma_s phi_1
        scale = p.M(s) if data else -p.R(s)
        form = carry * z + first * nodes[0][1]
        if len(nodes) == 1:
            return form
        (l0, m0), (l1, m1) = nodes[:2]
        r0 = (l0 - l1) / h
        d1 = (1 / r0) * (m0 - m1)
        if len(nodes) == 2:
            return form + scale * (phi_1 / 2 if self.type == "midpoint" else phi_2) * d1
        l2, m2 = nodes[2]
        r1 = (l1 - l2) / h
        step = d1 - (1 / r1) * (m1 - m2)
        slope, bend = d1 + (r0 / (r0 + r1)) * step, (1 / (r0 + r1)) * step
        return form + scale * phi_2 * slope + scale * phi_3 * (2 if self.corrected else 1) * bend


def _phis(h: float, *, data: bool) -> tuple[float, float, float]:
    """phi_1, phi_2, phi_3 of the module docstring; zeros of higher functions where h is infinite."""
    if math.isinf(h):
        return 1.0, 0.0, 0.0
    if data:
        one = -math.expm1(-h)
        two = 1 - one / h
        return one, two, 0.5 - two / h
    one = math.expm1(h)
    two = one / h - 1
    return one, two, two / h - 0.5
