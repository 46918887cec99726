r"""UniPC: unified predictor-corrector (Zhao et al. 2023), on scalar processes.

With h = lambda_s - lambda_t, nodes r_j = (lambda_j - lambda_t)/h and D1_j = (m_j - m_0)/r_j, hh = -h in the data form
and +h in the noise form, scale = alpha_s or sigma_s:

    z_s = base - scale B(h) sum_j rho_j D1_j,      sum_j rho_j r_j^(k-1) = k! hh phi_{k+1}(hh) / B,  k = 1..p

where base is the first-order step and B = hh (bh1) or expm1(hh) (bh2). The predictor uses the nodes behind t, the
corrector also the prediction made at s (r = 1), which the next step uses again: one call a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fewstep.solver.base import BY_FORM, Moments, Promise, Solver
from fewstep.solver.weights import first_order
from fewstep.tableau import Form, Writer
from fewstep.words import among, within

__all__ = ["UniPC"]


@dataclass(frozen=True, kw_only=True)
class UniPC(Solver):
    r"""UniPC-p: unified multistep predictor-corrector, deterministic, one call a step.

    State kept: the last p predictions. As in the authors' code the coefficient of the second-order predictor and of the
    first-order corrector is 1/2, the corrector is left out in the last step, and with `final_ramp` the order is at most
    2; without it p + 1, at most 3. A step to sigma = 0 uses one point. Where we differ: a prediction made at alpha = 0
    is left out, and there the coefficients are solved for.

    References: Zhao et al., UniPC: a unified predictor-corrector framework for fast sampling of diffusion models, 2023,
    Theorem 3.1 and eq. 5, https://arxiv.org/abs/2302.04867; the authors' code, https://github.com/wl-zhao/UniPC.

    Args:
        points: p, from 1 to 3 in the paper; any number of at least 1 works.
        form: "data" or "noise".
        b: "bh1" or "bh2".
        corrector: False gives UniP.
        final_ramp: fewer points at the end, one in the last step.
    """

    points: int = 3
    form: str = "data"
    b: str = "bh2"
    corrector: bool = True
    final_ramp: bool = True

    kinds = ("scalar",)
    reason = "its coefficients are solved in one log-SNR"

    def __post_init__(self) -> None:
        within(self, points="[1, inf]")
        among(self, form=("data", "noise"), b=("bh1", "bh2"))

    @property
    def promise(self) -> Promise:
        """A row with two predictions takes 1/2 and misses degree 1 (by O(h)); the others are solved for."""
        start, count = 3 if self.corrector else 2, self.points + self.corrector
        return Promise(
            min(count, start, 2 if self.final_ramp else start),
            moments=Moments(self.form, "log-snr", (0, 0, *range(2, count))),
            ends=BY_FORM[self.form],
        )

    def write(self, w: Writer) -> None:
        z = ahead = w.start
        nodes: list[tuple[float, Form]] = []
        n, cut = len(w.steps), False
        for k, (t, s) in enumerate(w.steps):
            y = w.call(ahead, t)
            y = y if self.form == "data" else w.eps(ahead)
            lam = float(w.process.log_snr(t))
            if self.corrector and k and math.isfinite(nodes[0][0]):
                points = self._points(k - 1, n, len(nodes))
                z = w.row(self._step(w, z, w.times[k - 1], t, [*nodes[:points], (lam, y)], solve=cut), t)
            else:
                z = ahead
            cut = cut or (bool(nodes) and not math.isfinite(nodes[0][0]))
            nodes = [(lam, y), *[m for m in nodes if math.isfinite(m[0])][: self.points - 1]]
            points = self._points(k, n, len(nodes)) if math.isfinite(float(w.process.log_snr(s))) else 1
            ahead = w.row(self._step(w, z, t, s, nodes[:points], solve=cut), s)

    def _points(self, k: int, steps: int, have: int) -> int:
        return min(have, self.points, steps - k if self.final_ramp else self.points)

    def _step(self, w: Writer, z: Form, t: float, s: float, nodes: list[tuple[float, Form]], *, solve: bool) -> Form:
        """From t to s with the predictions behind t, and last the one made at s when correcting."""
        p, data = w.process, self.form == "data"
        carry, first = first_order(p, self.form, t, s)
        scale = p.M(s) if data else p.R(s)
        (lam, m0), *others = nodes
        form = carry * z + first * m0
        if not others:
            return form
        h = float(p.log_snr(s)) - lam
        hh = -h if data else h
        r = np.array([(node - lam) / h for node, _ in others])
        b_h = hh if self.b == "bh1" else math.expm1(hh)
        half = len(others) == 1 and not solve
        rho = np.array([0.5]) if half else _solve(r, hh, b_h)
        for weight, ratio, (_, m) in zip(rho, r, others, strict=True):
            form = form - float(weight / ratio * b_h) * scale * (m - m0)
        return form


def _solve(r: np.ndarray, hh: float, b_h: float) -> np.ndarray:
    """Rho with sum_j rho_j r_j^(k-1) = k! hh phi_{k+1}(hh) / B, phi_{k+1} = (phi_k - 1/k!)/hh."""
    phi, factorial, right = math.expm1(hh) / hh, 1.0, []
    for k in range(1, len(r) + 1):
        phi = (phi - 1 / factorial) / hh
        factorial *= k + 1
        right.append(phi * factorial / (k + 1) * hh / b_h)
    return np.linalg.solve(np.vander(r, increasing=True).T, np.array(right))
