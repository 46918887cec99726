r"""Exponential multistep: the semilinear ODE solved with an interpolated prediction, on every linear process.

$$ d(P^{-1} z) = d(P^{-1} Q)\, y, \qquad
   z_s = P_s P_t^{-1} z_t + \sum_j B_j y_j, \qquad
   B_j = P_s \int_t^s \ell_j(u(\tau))\, d(P^{-1} Q)_\tau $$

Data form: P = R, Q = M, y = D. Noise form: P = Psi, Q = R, y = eps. l_j are the Lagrange polynomials of the last
predictions in a clock u. With the nodes behind t this is exponential Adams-Bashforth: DEIS tAB (noise, u = t), rhoAB
(noise, u = rho), gDDIM (noise, u = t, any process), the exact-coefficient DPM-Solver++ (data, u = log-SNR). With the
prediction at s among the nodes it is the corrector (Adams-Moulton); the call at the predicted state is used again in
the next step, so it costs nothing.
"""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewstep.process.base import Process, derivative
from fewstep.process.clock import Clock, clock
from fewstep.process.operator import Coefficient, inverse, magnitude, transpose, weighted_sum
from fewstep.solver.base import Moments, Solver
from fewstep.tableau.form import Form
from fewstep.tableau.writer import Writer

__all__ = ["Multistep", "first_order", "weights"]

_X, _W = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(16))
_PANEL = 1.5  # log-SNR units a Gauss panel spans: 16 nodes are exact to rounding there
_DOUBLINGS = 4  # a density with kinks (a tabulated process) never gets there; the rest goes to the latest node
_FAR = 40.0  # beyond this many log-SNR units from the heavy end the integrand is below rounding


@dataclass(frozen=True, kw_only=True)
class Multistep(Solver):
    r"""Exponential Adams multistep in data or noise form, deterministic, with an optional corrector.

    The interpolant passes through the last `points` predictions.

    Order: `points`, but with its own start (fewer points in the first steps) at most 2, or 3 with the corrector; with
    the corrector one more than `points`. One call a step, state kept: the last `points` predictions.
    points = 1 without corrector is DDIM (DPM-Solver-1, DEIS of order 0, one-step gDDIM).

    References: Zhang, Chen (DEIS), 2023, https://arxiv.org/abs/2204.13902; Zhang, Tao, Chen (gDDIM), 2022, eq. 18-19
    and appendix B for the corrector, https://arxiv.org/abs/2206.05564; Zhao et al. (UniPC), 2023, for reusing the
    corrector's call, https://arxiv.org/abs/2302.04867. We differ from DEIS and gDDIM in the quadrature, which is exact
    to rounding here.

    Args:
        points: how many predictions the interpolant passes through (at least 1).
        form: "data" or "noise".
        clock: "log-snr", "t" or "rho".
        corrector: correct each row with the prediction made at it; never on the last row.
        final_ramp: use fewer points towards the end, one in the last step.
    """

    points: int = 3
    form: str = "data"
    clock: str = "log-snr"
    corrector: bool = False
    final_ramp: bool = False

    def __post_init__(self) -> None:
        if self.points < 1:
            raise ValueError(f"got points={self.points}: give at least 1")
        if self.form not in ("data", "noise"):
            raise ValueError(f"got form={self.form!r}: choose data or noise")
        clock(self.clock)

    @property
    def order(self) -> int:
        start = 3 if self.corrector else 2
        return min(self.points + self.corrector, start, 2 if self.final_ramp else start)

    @property
    def moments(self) -> Moments:
        return Moments(self.form, self.clock, tuple(range(self.points + self.corrector)))

    @property
    def ends(self) -> tuple[str, ...]:
        return ("alpha=0", "sigma=0") if self.form == "data" else ("sigma=0",)

    def write(self, w: Writer) -> None:
        z = ahead = w.start
        nodes: list[tuple[float, Form]] = []
        for k, (t, s) in enumerate(w.steps):
            y = w.call(ahead, t)
            y = y if self.form == "data" else w.eps(ahead)
            if self.corrector and k:
                z = w.row(self._step(w.process, w.times[k - 1], t, z, [(t, y), *nodes]), t)
            else:
                z = ahead
            nodes = [(t, y), *nodes[: self.points - 1]]
            used = nodes[: len(w.steps) - k] if self.final_ramp else nodes
            ahead = w.row(self._step(w.process, t, s, z, used), s)

    def _step(self, process: Process, t: float, s: float, z: Form, nodes: list[tuple[float, Form]]) -> Form:
        first, coefficients = weights(process, self.form, clock(self.clock), t, s, [u for u, _ in nodes])
        form = first * z
        for (_, y), b in zip(nodes, coefficients, strict=True):
            form = form + b * y
        return form


def first_order(process: Process, form: str, t: float, s: float) -> tuple[Coefficient, Coefficient]:
    """P_s P_t^-1 and Q_s - P_s P_t^-1 Q_t: the step with a constant prediction, finite at both singular ends."""
    p, q, _ = _pair(process, form)
    carry = p(s) * inverse(p(t))
    return carry, q(s) - carry * q(t)


def weights(
    process: Process, form: str, u: Clock, t: float, s: float, nodes: list[float]
) -> tuple[Coefficient, list[Coefficient]]:
    """P_s P_t^-1 and the B_j of a step from t to s with predictions made at the times `nodes`, latest first.

    Nodes at which the clock is infinite are dropped (their weight is zero), and a step whose end is at infinity uses
    the latest node alone.
    """
    carry, whole = first_order(process, form, t, s)
    places = [float(u.of(process, torch.tensor(node, dtype=torch.float64))) for node in nodes]
    end = float(u.of(process, torch.tensor(s, dtype=torch.float64)))
    finite = [j for j, place in enumerate(places) if math.isfinite(place)] if math.isfinite(end) else []
    basis = [places[j] for j in finite]
    if len(finite) < 2:
        finite, found = [finite[0] if finite else 0], [whole]
    elif form == "data" and process.log_snr(s) == math.inf:  # R_s = 0: all weight sits at the end
        at_end = _lagrange(basis, torch.tensor([end], dtype=torch.float64))[:, 0].tolist()
        found = [weight * whole for weight in at_end]
    else:
        found = _quadrature(process, form, u, t, s, basis, whole)
    return carry, [found[finite.index(j)] if j in finite else 0.0 for j in range(len(nodes))]


def _quadrature(
    process: Process, form: str, u: Clock, t: float, s: float, basis: list[float], whole: Coefficient
) -> list[Coefficient]:
    """The B_j by Gauss-Legendre in log-SNR, where the integrand is smooth, on short panels.

    The weights add up to `whole`: panels are halved until they do to rounding, and what is left goes to the latest.
    """
    p, q, rate = _pair(process, form)
    low, high = (float(process.log_snr(x)) for x in (t, s))
    if form == "data":  # e^lambda weighs the end, and in noise form e^-lambda the beginning
        low = max(low, high - _FAR)
    else:
        high = min(high, low + _FAR)
    panels, bound = max(1, math.ceil((high - low) / _PANEL)), 1e-13 * max(magnitude(q(s)), magnitude(q(s) - whole))
    for _ in range(_DOUBLINGS):
        edges = torch.linspace(low, high, panels + 1, dtype=torch.float64)
        width = edges.diff()[:, None]
        lam = (edges[:-1, None] + width * (_X + 1) / 2).flatten()
        weight = (width * _W / 2).flatten() * _lagrange(basis, u.of_log_snr(process, lam))
        tau = process.inverse_log_snr(lam)
        density = (p(s) * inverse(p(tau))) * rate(tau)
        found = [weighted_sum(w, density) for w in weight / derivative(process.log_snr, tau)]
        rest = functools.reduce(operator.sub, found, whole)
        if magnitude(rest) <= bound:
            break
        panels *= 2
    return [found[0] + rest, *found[1:]]


def _pair(process: Process, form: str) -> tuple:
    """P, Q, and P d(P^-1 Q)/dt: -1/2 G G^T Sigma^-1 M in data form, 1/2 G G^T R^-T in noise form."""
    if form == "data":
        return process.R, process.M, lambda t: -0.5 * (process.GG(t) * inverse(process.Sigma(t)) * process.M(t))
    return process.Psi, process.R, lambda t: 0.5 * (process.GG(t) * transpose(inverse(process.R(t))))


def _lagrange(nodes: list[float], u: Tensor) -> Tensor:
    """The Lagrange polynomials of the nodes at u: (nodes, len(u))."""
    rows = [
        torch.stack([(u - other) / (node - other) for i, other in enumerate(nodes) if i != j]).prod(0)
        for j, node in enumerate(nodes)
    ]
    return torch.stack(rows)
