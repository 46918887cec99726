r"""The weights of exponential steps: integrals of Lagrange polynomials against d(P^-1 Q), on every linear process.

$$ B_j = P_s \int_t^s \ell_j(u(\tau))\, d(P^{-1} Q)_\tau $$

by Gauss-Legendre in log-SNR, where the integrand is smooth, on short panels. Their sum is known in closed form
(Q_s - P_s P_t^-1 Q_t), so panels are halved until it agrees to rounding, and the rest goes to the latest prediction.

A table asks for the weights of a hundred steps, each of which is a dozen tensor operations on a few numbers. So while
a table is written (`together`) the solver runs twice: the first time its steps are only noted, then all are integrated
at once, and the second time it is handed the answers; with times inside of steps it is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.process.base import Process, Time, asking_at, derivative, remembering, to_tensor
from fewstep.process.clock import Clock, clock
from fewstep.process.operator import Block, Coefficient, Diagonal, cholesky, inverse, magnitude, stacked, transpose

__all__ = ["Frame", "first_order", "together", "turn", "weights"]

_X, _W = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(16))
_PANEL = 1.5  # log-SNR units a Gauss panel spans: 16 nodes are exact to rounding there
_DOUBLINGS = 4  # a density with kinks (a tabulated process) never gets there; the rest goes to the latest node
_FAR = 40.0  # beyond this many log-SNR units from the heavy end the integrand is below rounding
_CLEAN = 14.0  # and beyond this many after a frame's level, from which on it falls like e^(-2 lambda)
_AT_ONCE = 2**21  # numbers of a density that are worked out at once

Function = Callable[[Time], Coefficient]


@dataclass(frozen=True)
class Frame:
    """P, Q and the rate P d(P^-1 Q)/dt of a form; from log-SNR `level` on the density falls like e^(-2 lambda)."""

    p: Function
    q: Function
    rate: Function
    level: float = math.inf


Form = str | Frame  # "data", "noise", "cholesky", or a frame of the solver's own


@dataclass(frozen=True)
class _Step:
    """A step whose weights are asked for: from t to s, predictions made at `nodes`, latest first."""

    process: Process
    form: Form
    clock: Clock
    t: float
    s: float
    nodes: tuple[float, ...]
    root: str

    def asks_as(self, other: _Step) -> bool:
        """Whether both are one question; a frame is made anew each time, and is the one that was made at its place."""
        frames = isinstance(self.form, Frame) and isinstance(other.form, Frame)
        return (
            self.process is other.process
            and self.clock is other.clock
            and (frames or self.form == other.form)
            and (self.t, self.s, self.nodes, self.root) == (other.t, other.s, other.nodes, other.root)
        )


Weights = tuple[Coefficient, list[Coefficient]]


@dataclass
class _Notes:
    """The steps a table asks for in their order, and once they are worked out what is left to hand over."""

    asked: list[_Step] = field(default_factory=list)
    answers: list[Weights] | None = None
    handed: int = 0

    def take(self, step: _Step) -> Weights:
        """The answer to a step: a stand-in while they are noted; what was not noted is worked out alone."""
        if self.answers is None:
            self.asked.append(step)
            return 1.0, [1.0] * len(step.nodes)
        k, self.handed = self.handed, self.handed + 1
        noted = self.asked[k] if k < len(self.asked) else None
        same = noted is not None and noted.asks_as(step)
        return self.answers[k] if same else _answers([step])[0]


_NOTES: ContextVar[_Notes | None] = ContextVar("_NOTES", default=None)


def together(process: Process, times: list[float], write: Callable[[], Any]) -> Any:
    """What `write()` returns, with all weights, and all functions of the process, worked out at once.

    `write` is called twice; it must ask for the same both times, or what is new the second time is worked out alone.
    """
    notes = _Notes()
    token = _NOTES.set(notes)
    try:
        with remembering(process, times) as memory, torch.inference_mode(False), torch.no_grad():
            memory.noting = True
            made, failed = None, False
            try:
                made = write()
            except Exception:  # of a stand-in, or its own: the second time tells
                failed = True
            if not memory.recall() and not notes.asked and not failed:
                return made
            notes.answers = _answers(notes.asked)
            return write()
    finally:
        _NOTES.reset(token)


def first_order(process: Process, form: Form, t: Time, s: Time) -> tuple[Coefficient, Coefficient]:
    """P_s P_t^-1 and Q_s - P_s P_t^-1 Q_t: the step with a constant prediction, finite at both singular ends."""
    frame = _frame(process, form)
    carry = frame.p(s) * inverse(frame.p(t))
    return carry, frame.q(s) - carry * frame.q(t)


def weights(
    process: Process, form: Form, u: Clock, t: Time, s: Time, nodes: Sequence[Time], root: str = "R"
) -> Weights:
    """P_s P_t^-1 and the B_j of a step from t to s with predictions made at the times `nodes`, latest first.

    Nodes at which the clock is infinite are dropped (their weight is zero), and a step whose end is at infinity uses
    the latest node alone. With the root "L" the B_j belong to the noise L^-1 (z - M D).
    Times that are one a sample give coefficients that are one a sample.
    """
    if isinstance(t, Tensor):
        if process.kind == "scalar" and u is clock("log-snr") and len(nodes) == 2 and nodes[0] is t:
            return _line(process, form, t, s, nodes[1])
        times = zip(t.tolist(), to_tensor(s).tolist(), *(to_tensor(x).tolist() for x in nodes), strict=True)
        found = _answers([_Step(process, form, u, a, b, tuple(at), root) for a, b, *at in times])
        return stacked([c for c, _ in found]), [stacked([b[j] for _, b in found]) for j in range(len(nodes))]
    step = _Step(process, form, u, float(t), float(s), tuple(nodes), root)
    notes = _NOTES.get()
    return _answers([step])[0] if notes is None else notes.take(step)


def turn(process: Process, root: str, t: float) -> Coefficient:
    """L^-1 R, which takes the noise of the root R to that of the root L; 1 for the root R and where both are one."""
    if root == "R" or process.kind != "block":
        return 1.0
    return inverse(cholesky(process.Sigma(t))) * process.R(t)


@dataclass
class _Integral:
    """The B_j of one step that take quadrature: where its predictions lie in the clock, and what is known of their sum.

    Where the whole is not known in closed form (None), panels are halved until the sum stays what it is.
    """

    step: _Step
    form: Form
    places: list[float]
    whole: Coefficient | None
    span: tuple[float, float]
    panels: int
    bound: float
    found: list[Coefficient] = field(default_factory=list)
    known: Coefficient | None = None

    def settle(self, found: list[Coefficient]) -> bool:
        """Takes the sums of one round; whether they are final."""
        total = sum(found[1:], found[0])
        rest = None if self.known is None else self.known - total
        self.known = total if self.whole is None else self.whole
        self.found = found if self.whole is None else [found[0] + rest, *found[1:]]
        self.panels *= 2
        return rest is not None and magnitude(rest) <= self.bound


def _answers(steps: list[_Step]) -> list[Weights]:
    """The weights of all steps."""
    places = _places(steps)
    made: list[tuple[Coefficient, list[int], _Integral | list[Coefficient]]] = []
    for step, (*at, end) in zip(steps, places, strict=True):
        p = step.process
        carry, whole = first_order(p, step.form, step.t, step.s)
        finite = [j for j, place in enumerate(at) if math.isfinite(place)] if math.isfinite(end) else []
        finite = finite or [0]
        basis = [at[j] for j in finite]
        if step.root == "L" and p.kind == "block":
            found = _integral(step, "cholesky", basis, None)
        elif len(finite) < 2:
            found = [whole]
        elif step.form != "noise" and p.log_snr(step.s) == math.inf:  # R_s = 0: all weight sits at the end
            found = [weight * whole for weight in _lagrange_at(basis, end)]
        else:
            found = _integral(step, step.form, basis, whole)
        made.append((carry, finite, found))
    left = [found for *_, found in made if isinstance(found, _Integral)]
    for _ in range(_DOUBLINGS):
        left = _round(left)
        if not left:
            break
    answers = []
    for step, (carry, finite, found) in zip(steps, made, strict=True):
        b = found.found if isinstance(found, _Integral) else found
        answers.append((carry, [b[finite.index(j)] if j in finite else 0.0 for j in range(len(step.nodes))]))
    return answers


def _places(steps: list[_Step]) -> list[list[float]]:
    """Where the predictions and the end of every step lie in its clock, read at once."""
    clocks: dict[tuple[Clock, int], tuple[Process, dict[float, float]]] = {}
    for step in steps:
        known = clocks.setdefault((step.clock, id(step.process)), (step.process, {}))[1]
        known.update(dict.fromkeys((*step.nodes, step.s), 0.0))
    for (u, _), (process, known) in clocks.items():
        times = torch.tensor(list(known), dtype=torch.float64)
        known.update(zip(known, torch.as_tensor(u.of(process, times)).tolist(), strict=True))
    return [[clocks[step.clock, id(step.process)][1][v] for v in (*step.nodes, step.s)] for step in steps]


def _integral(step: _Step, form: Form, places: list[float], whole: Coefficient | None) -> _Integral:
    span, bound = _span(step, form), 1e-13
    if whole is not None:
        end = _frame(step.process, form).q(step.s)
        bound *= max(magnitude(end), magnitude(end - whole))
    panels = max(1, math.ceil(abs(span[1] - span[0]) / _PANEL))
    return _Integral(step, form, places, whole, span, panels, bound, known=whole)


def _round(integrals: list[_Integral]) -> list[_Integral]:
    """Works all integrals out on their panels, and returns those whose panels are still too long."""
    groups: dict[tuple, list[_Integral]] = {}
    for integral in integrals:
        key = (id(integral.step.process), integral.form, integral.step.clock, len(integral.places))
        groups.setdefault(key, []).append(integral)
    left = []
    for group in groups.values():
        size = 16 * math.prod(getattr(group[0].whole, "values", torch.ones(1)).shape)
        while group:
            count = 1
            while count < len(group) and sum(x.panels for x in group[: count + 1]) * size <= _AT_ONCE:
                count += 1
            part, group = group[:count], group[count:]
            left += [x for x, found in zip(part, _sums(part), strict=True) if not x.settle(found)]
    return left


def _sums(integrals: list[_Integral]) -> list[list[Coefficient]]:
    """The B_j of integrals of one form and clock with one number of predictions."""
    first = integrals[0]
    process, u = first.step.process, first.step.clock
    of = torch.tensor([k for k, x in enumerate(integrals) for _ in range(x.panels)])
    edges = [(x.span[0], (x.span[1] - x.span[0]) / x.panels, i) for x in integrals for i in range(x.panels)]
    low, width, index = torch.tensor(edges, dtype=torch.float64)[..., None].unbind(1)
    lam, of = (low + width * (index + (_X + 1) / 2)).flatten(), of.repeat_interleave(16)
    with torch.inference_mode(False), torch.no_grad():
        frame = _frame(process, first.form)
        tau = process.inverse_log_snr(lam)
        speed = derivative(process.log_snr, tau)
        seen = speed.isfinite()  # times beside a singular end round to the end itself, where nothing is left to weigh
        if not bool(seen.all()):
            tau, of, speed, width = tau[seen], of[seen], speed[seen], width.expand(-1, 16).flatten()[seen]
            share = width * _W.repeat(len(seen) // 16)[seen] / 2 / speed
        else:
            share = (width * _W / 2).flatten() / speed
        ends = stacked([frame.p(x.step.s) for x in integrals])
        with asking_at(tau):
            density = share * (_taken(ends, of) * inverse(frame.p(tau)) * frame.rate(tau))
            basis = _lagrange(torch.tensor([x.places for x in integrals], dtype=torch.float64)[of], u.of(process, tau))
        columns = [_summed(ell * density, of, len(integrals)) for ell in basis]
    return [list(row) for row in zip(*columns, strict=True)]


def _taken(c: Coefficient, index: Tensor) -> Coefficient:
    """Entries of a coefficient that has one a time."""
    if isinstance(c, Diagonal):
        return Diagonal(c.values[index], c.rank)
    return Block(c.values[index]) if isinstance(c, Block) else c[index]


def _summed(c: Coefficient, of: Tensor, count: int) -> list[Coefficient]:
    """The sums of a coefficient's entries that belong to each of `count`."""
    values = c.values if isinstance(c, Diagonal | Block) else c
    sums = torch.zeros(count, *values.shape[1:], dtype=values.dtype).index_add_(0, of, values)
    if isinstance(c, Diagonal):
        return [Diagonal(v, c.rank) for v in sums]
    return [Block(v) for v in sums] if isinstance(c, Block) else sums.tolist()


def _line(process: Process, form: Form, t: Tensor, s: Time, node: Time) -> Weights:
    """The weights of the line through t and a node, for numbers one a sample: closed form in log-SNR."""
    carry, whole = first_order(process, form, t, s)
    lam = process.log_snr(t)
    h, x = process.log_snr(s) - lam, process.log_snr(node) - lam
    phi = 1 + torch.expm1(-h) / h if form == "data" else torch.expm1(h) / h - 1
    second = (process.M(s) if form == "data" else -process.R(s)) * phi * h / x
    return carry, [whole - second, second]


def _span(step: _Step, form: Form) -> tuple[float, float]:
    """The log-SNRs to integrate between: e^lambda weighs the data end, and in noise form e^-lambda the other."""
    low, high = float(step.process.log_snr(step.t)), float(step.process.log_snr(step.s))
    if form in ("noise", "cholesky"):
        return min(low, high + _FAR), min(high, low + _FAR)
    high = min(high, max(low, _frame(step.process, form).level) + _CLEAN)
    return max(low, high - _FAR), max(high, low - _FAR)


def _frame(process: Process, form: Form) -> Frame:
    """P, Q, and P d(P^-1 Q)/dt: -1/2 G G^T Sigma^-1 M in data form, 1/2 G G^T R^-T in noise form.

    "cholesky" is the noise form with L in place of R; then the last is the derivative of no P^-1 Q.
    """
    if isinstance(form, Frame):
        return form
    if form == "data":
        return Frame(process.R, process.M, lambda t: -0.5 * (process.GG(t) * inverse(process.Sigma(t)) * process.M(t)))
    root = process.R if form == "noise" else lambda t: cholesky(process.Sigma(t))
    return Frame(process.Psi, root, lambda t: 0.5 * (process.GG(t) * transpose(inverse(root(t)))))


def _lagrange(nodes: Tensor, u: Tensor) -> list[Tensor]:
    """The Lagrange polynomials of nodes (.., count) at u (..)."""
    at = nodes.unbind(-1)
    return [
        math.prod(((u - v) / (node - v) for i, v in enumerate(at) if i != j), start=torch.ones_like(u))
        for j, node in enumerate(at)
    ]


def _lagrange_at(nodes: list[float], u: float) -> list[float]:
    """The same at one place."""
    return [value.item() for value in _lagrange(torch.tensor(nodes, dtype=torch.float64), to_tensor(u))]
