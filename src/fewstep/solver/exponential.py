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

from fewstep.process.base import Process, Time, derivative, to_tensor
from fewstep.process.clock import Clock, clock
from fewstep.process.operator import Coefficient, cholesky, inverse, magnitude, stacked, transpose, weighted_sum
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
        root: "R", the root of Sigma that keeps the noise of a point mass constant, or "L", the Cholesky factor, in
            noise form. They differ on blocks alone, where L is gDDIM's ablation K_t = L_t (L-DEIS in its code): the
            interpolant passes through L^-1 (z - M D), which turns along the ODE, so a point mass is not carried
            exactly.
        restate: in noise form, give the corrected state its own noise. The noise of a call is that of the predicted
            state, R^-1 (z~ - M D); where P_s P_t^-1 is large (CLD: hundreds) z - z~ times it spoils the corrected one.
            With `restate` the corrector takes eps = R^-1 (z - M D) with the z it is about to make, for which it is
            solved, and later steps read this eps. Only D is then of the predicted state. `moments` are not claimed.
    """

    points: int = 3
    form: str = "data"
    clock: str = "log-snr"
    corrector: bool = False
    final_ramp: bool = False
    root: str = "R"
    restate: bool = False

    def __post_init__(self) -> None:
        if self.points < 1:
            raise ValueError(f"got points={self.points}: give at least 1")
        if self.form not in ("data", "noise"):
            raise ValueError(f"got form={self.form!r}: choose data or noise")
        if self.root not in ("R", "L") or (self.root == "L" and self.form == "data"):
            raise ValueError(f"got root={self.root!r} in {self.form} form: choose R, or L in noise form")
        if self.restate and (self.form == "data" or not self.corrector or self.root != "R"):
            raise ValueError("got restate=True: it needs the corrector in noise form with the root R; give these")
        clock(self.clock)

    @property
    def order(self) -> int:
        start = 3 if self.corrector else 2
        return min(self.points + self.corrector, start, 2 if self.final_ramp else start)

    @property
    def point_mass(self) -> tuple[str, ...]:
        return self.kinds if self.root == "R" else ("scalar", "diagonal")

    @property
    def moments(self) -> Moments | None:
        """None where the interpolant passes through other numbers than the noise of the calls."""
        if self.root == "L" or self.restate:
            return None
        return Moments(self.form, self.clock, tuple(range(self.points + self.corrector)))

    @property
    def ends(self) -> tuple[str, ...]:
        return ("alpha=0", "sigma=0") if self.form == "data" else ("sigma=0",)

    def write(self, w: Writer) -> None:
        z = ahead = w.start
        nodes: list[tuple[float, Form]] = []
        for k, (t, s) in enumerate(w.steps):
            y = w.call(ahead, t)
            if self.form == "noise":
                y = _turn(w.process, self.root, t) * w.eps(ahead)
            if self.restate and k:
                z, y = self._restated(w, z, w.times[k - 1], t, nodes, ahead)
            elif self.corrector and k:
                z = w.row(self._step(w.process, w.times[k - 1], t, z, [(t, y), *nodes]), t)
            else:
                z = ahead
            nodes = [(t, y), *nodes[: self.points - 1]]
            used = nodes[: len(w.steps) - k] if self.final_ramp else nodes
            ahead = w.row(self._step(w.process, t, s, z, used), s)

    def _step(self, process: Process, t: float, s: float, z: Form, nodes: list[tuple[float, Form]]) -> Form:
        first, coefficients = weights(process, self.form, clock(self.clock), t, s, [u for u, _ in nodes], self.root)
        form = first * z
        for (_, y), b in zip(nodes, coefficients, strict=True):
            form = form + b * y
        return form

    def _restated(
        self, w: Writer, z: Form, t: float, s: float, nodes: list[tuple[float, Form]], ahead: Form
    ) -> tuple[Form, Form]:
        """The corrected state z_s and its noise eps_s = R_s^-1 (z_s - M_s D), D having been predicted at `ahead`.

        z_s = P_s P_t^-1 z_t + B_s eps_s + sum_j B_j eps_j is linear in z_s: it is solved for.
        """
        p, d = w.process, w.call(ahead, s)
        first, (b, *others) = weights(p, "noise", clock(self.clock), t, s, [s, *(u for u, _ in nodes)])
        r_inv = inverse(p.R(s))
        form = first * z - (b * r_inv * p.M(s)) * d
        for (_, y), c in zip(nodes, others, strict=True):
            form = form + c * y
        z = w.row(inverse(1.0 - b * r_inv) * form, s)
        return z, r_inv * z - (r_inv * p.M(s)) * d


def first_order(process: Process, form: str | tuple, t: Time, s: Time) -> tuple[Coefficient, Coefficient]:
    """P_s P_t^-1 and Q_s - P_s P_t^-1 Q_t: the step with a constant prediction, finite at both singular ends."""
    p, q, _ = _pair(process, form)
    carry = p(s) * inverse(p(t))
    return carry, q(s) - carry * q(t)


def weights(
    process: Process, form: str | tuple, u: Clock, t: Time, s: Time, nodes: list[Time], root: str = "R"
) -> tuple[Coefficient, list[Coefficient]]:
    """P_s P_t^-1 and the B_j of a step from t to s with predictions made at the times `nodes`, latest first.

    Nodes at which the clock is infinite are dropped (their weight is zero), and a step whose end is at infinity uses
    the latest node alone. With the root "L" the B_j belong to the noise L^-1 (z - M D).
    Times that are one a sample give coefficients that are one a sample.
    """
    if isinstance(t, Tensor):
        if process.kind == "scalar" and u is clock("log-snr") and len(nodes) == 2 and nodes[0] is t:
            return _line(process, form, t, s, nodes[1])
        times = zip(t.tolist(), to_tensor(s).tolist(), *(to_tensor(x).tolist() for x in nodes), strict=True)
        found = [weights(process, form, u, a, b, list(at), root) for a, b, *at in times]
        return stacked([c for c, _ in found]), [stacked([b[j] for _, b in found]) for j in range(len(nodes))]
    carry, whole = first_order(process, form, t, s)
    *places, end = torch.as_tensor(u.of(process, torch.tensor([*nodes, s], dtype=torch.float64))).tolist()
    finite = [j for j, place in enumerate(places) if math.isfinite(place)] if math.isfinite(end) else []
    finite = finite or [0]
    basis = [places[j] for j in finite]
    if root == "L" and process.kind == "block":
        found = _quadrature(process, "cholesky", u, t, s, basis, None)
    elif len(finite) < 2:
        found = [whole]
    elif form != "noise" and process.log_snr(s) == math.inf:  # R_s = 0: all weight sits at the end
        at_end = _lagrange(basis, torch.tensor([end], dtype=torch.float64))[:, 0].tolist()
        found = [weight * whole for weight in at_end]
    else:
        found = _quadrature(process, form, u, t, s, basis, whole)
    return carry, [found[finite.index(j)] if j in finite else 0.0 for j in range(len(nodes))]


def _quadrature(
    process: Process, form: str | tuple, u: Clock, t: float, s: float, basis: list[float], whole: Coefficient | None
) -> list[Coefficient]:
    """The B_j by Gauss-Legendre in log-SNR, where the integrand is smooth, on short panels.

    The weights add up to `whole`: panels are halved until they do to rounding, and what is left goes to the latest.
    Where the whole is not known in closed form (None), panels are halved until the sum stays what it is.
    """
    span = _span(process, form, t, s)
    panels, bound = max(1, math.ceil(abs(span[1] - span[0]) / _PANEL)), 1e-13
    if whole is not None:
        _, q, _ = _pair(process, form)
        bound *= max(magnitude(q(s)), magnitude(q(s) - whole))
    known, found, rest = whole, [], 0.0
    for _ in range(_DOUBLINGS):
        tau, density = _density(process, form, s, span, panels)
        found = [weighted_sum(w, density) for w in _lagrange(basis, u.of(process, tau))]
        if known is not None:
            rest = functools.reduce(operator.sub, found, known)
            if magnitude(rest) <= bound:
                break
        known = functools.reduce(operator.add, found) if whole is None else whole
        panels *= 2
    return found if whole is None else [found[0] + rest, *found[1:]]


def _line(process: Process, form: str | tuple, t: Tensor, s: Time, node: Time) -> tuple[Coefficient, list[Coefficient]]:
    """The weights of the line through t and a node, for numbers one a sample: closed form in log-SNR."""
    carry, whole = first_order(process, form, t, s)
    lam = process.log_snr(t)
    h, x = process.log_snr(s) - lam, process.log_snr(node) - lam
    phi = 1 + torch.expm1(-h) / h if form == "data" else torch.expm1(h) / h - 1
    second = (process.M(s) if form == "data" else -process.R(s)) * phi * h / x
    return carry, [whole - second, second]


@functools.lru_cache(maxsize=4)
def _density(
    process: Process, form: str | tuple, s: float, span: tuple[float, float], panels: int
) -> tuple[Tensor, Coefficient]:
    """Times of the nodes on panels of a span of log-SNR, and P_s d(P^-1 Q) at each, its share included.

    The last few are kept: a step's corrector takes the nodes of its predictor.
    """
    with torch.inference_mode(False), torch.no_grad():  # kept between runs, differentiable ones too
        p, _, rate = _pair(process, form)
        edges = torch.linspace(*span, panels + 1, dtype=torch.float64)
        width = edges.diff()[:, None]
        tau = process.inverse_log_snr((edges[:-1, None] + width * (_X + 1) / 2).flatten())
        speed = derivative(process.log_snr, tau)
        seen = speed.isfinite()  # times beside a singular end round to the end itself, where nothing is left to weigh
        tau, share = tau[seen], ((width * _W / 2).flatten() / speed)[seen]
        return tau, share * (p(s) * inverse(p(tau)) * rate(tau))


def _span(process: Process, form: str | tuple, t: float, s: float) -> tuple[float, float]:
    """The log-SNRs to integrate between: e^lambda weighs the data end, and in noise form e^-lambda the other."""
    low, high = torch.as_tensor(process.log_snr(torch.tensor([t, s], dtype=torch.float64))).tolist()
    if form in ("noise", "cholesky"):
        return min(low, high + _FAR), min(high, low + _FAR)
    return max(low, high - _FAR), max(high, low - _FAR)


def _pair(process: Process, form: str | tuple) -> tuple:
    """P, Q, and P d(P^-1 Q)/dt: -1/2 G G^T Sigma^-1 M in data form, 1/2 G G^T R^-T in noise form.

    "cholesky" is the noise form with L in place of R; then the last is the derivative of no P^-1 Q. A triple is such a
    form already: that of a reverse SDE (`fewstep.solver.reverse`).
    """
    if not isinstance(form, str):
        return form
    if form == "data":
        return process.R, process.M, lambda t: -0.5 * (process.GG(t) * inverse(process.Sigma(t)) * process.M(t))
    root = process.R if form == "noise" else lambda t: cholesky(process.Sigma(t))
    return process.Psi, root, lambda t: 0.5 * (process.GG(t) * transpose(inverse(root(t))))


def _turn(process: Process, root: str, t: float) -> Coefficient:
    """L^-1 R, which takes the noise of the root R to that of the root L; 1 for the root R and where both are one."""
    if root == "R" or process.kind != "block":
        return 1.0
    return inverse(cholesky(process.Sigma(t))) * process.R(t)


def _lagrange(nodes: list[float], u: Tensor) -> Tensor:
    """The Lagrange polynomials of the nodes at u: (nodes, len(u))."""
    rows = [
        torch.stack([torch.ones_like(u), *((u - v) / (node - v) for i, v in enumerate(nodes) if i != j)]).prod(0)
        for j, node in enumerate(nodes)
    ]
    return torch.stack(rows)
