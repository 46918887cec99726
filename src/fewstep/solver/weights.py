r"""The weights of exponential steps: integrals of Lagrange polynomials against d(P^-1 Q), on every linear process.

$$ B_j = P_s \int_t^s \ell_j(u(\tau))\, d(P^{-1} Q)_\tau $$

by Gauss-Legendre in log-SNR, where the integrand is smooth, on short panels. Their sum is known in closed form
(Q_s - P_s P_t^-1 Q_t), so panels are halved until it agrees to rounding, and the rest goes to the latest prediction.

A step's weights are a dozen tensor operations on a few numbers. So while a table is written (`together`) the solver
runs twice: the first time its steps are only noted, then all are integrated at once, and the second time it is handed
the answers; with times inside of steps it is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from fewstep.process.base import Memory, Process, Time, asking_at, derivative, recalling, to_tensor
from fewstep.process.clock import Clock, clock
from fewstep.process.operator import Coefficient, Operator, cholesky, inverse, stacked, transpose, unstacked, values_of
from fewstep.process.quadrature import gauss, lagrange

__all__ = ["Frame", "finite", "first_order", "pull", "together", "turn", "weights"]

_X, _W = gauss(16)
_PANEL = 1.5  # log-SNR units a Gauss panel spans: 16 nodes are exact to rounding there
_DOUBLINGS = 4  # a density with kinks (a tabulated process) does not converge: the rest goes to the latest node
_FAR = 40.0  # beyond this many log-SNR units from the heavy end the integrand is below rounding
_CLEAN = 14.0  # and beyond this many after a frame's level, from which on it falls like e^(-2 lambda)
_AT_ONCE = 2**17  # numbers of a density that are worked out at once

T = TypeVar("T")
Function = Callable[[Time], Coefficient]


@dataclass(frozen=True)
class Frame:
    """P, Q and the rate P d(P^-1 Q)/d(log-SNR) of a form; from log-SNR `level` on it falls like e^(-2 lambda)."""

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


def together(memory: Memory, write: Callable[[], Any]) -> Any:
    """What `write()` returns, with all weights, and all functions of the memory's process, worked out at once.

    `write` is called twice, or where times are made of answers up to four times; it must ask for the same each time, or
    what is new the last time is worked out alone.
    """
    notes = _Notes()
    token = _NOTES.set(notes)
    try:
        with recalling(memory), torch.inference_mode(False), torch.no_grad():
            for _ in range(3):
                memory.note()
                notes.asked.clear()
                made, failed = None, False
                try:
                    made = write()
                except Exception:  # a stand-in may cause it; if not, the last time raises it again
                    failed = True
                found, guessed = memory.recall()
                if not found and not notes.asked and not failed:
                    return made
                if not guessed:
                    break
            notes.answers = _answers(notes.asked)
            return write()
    finally:
        _NOTES.reset(token)


def first_order(process: Process, form: Form, t: Time, s: Time) -> tuple[Coefficient, Coefficient]:
    """P_s P_t^-1 and Q_s - P_s P_t^-1 Q_t: the step with a constant prediction, finite at both singular ends."""
    if isinstance(form, Frame):
        p, q = form.p, form.q
    else:
        p, q = (process.R, process.M) if form == "data" else (process.Psi, process.R)
    carry = p(s) * inverse(p(t))
    return carry, q(s) - carry * q(t)


def weights(
    process: Process, form: Form, u: Clock, t: Time, s: Time, nodes: Sequence[Time], root: str = "R"
) -> Weights:
    """P_s P_t^-1 and the B_j of a step from t to s with predictions made at the times `nodes`, latest first.

    Nodes at which the clock is infinite have no weight, and a step whose end is at infinity uses the latest node alone.
    With the root "L" the B_j belong to the noise L^-1 (z - M D). Times may be one a sample, as coefficients are then.
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
class _Batch:
    """Steps of one process, form and clock whose B_j take quadrature: a row each.

    `places` are those of the predictions, nan where a row has fewer. `known` is the sum of a row's B_j; where it has no
    closed form (a root "L" that turns), panels are halved until it stays. `into`: the lists of the B_j, and entries.
    """

    process: Process
    form: Form
    clock: Clock
    places: Tensor
    spans: list[tuple[float, float]]
    ends: Coefficient
    whole: Coefficient
    known: Tensor
    bound: Tensor
    into: list[tuple[list[Coefficient], list[int]]]

    def __post_init__(self) -> None:
        self.panels = [max(1, math.ceil(abs(end - start) / _PANEL)) for start, end in self.spans]
        self.left = list(range(len(self.panels)))
        self.found = self.known.new_zeros(len(self.left), self.places.shape[1], self.known.shape[1])

    def settle(self, rows: list[int], sums: Tensor) -> None:
        """Takes the sums (rows, predictions, numbers) of one round; what is final is left out of the next."""
        total = sums.sum(1)
        rest = self.known[rows] - total
        if self.form == "cholesky":
            self.known[rows] = total
        else:
            sums[:, 0] += rest
        self.found[rows] = sums
        final = (rest.abs().amax(1) <= self.bound[rows]).tolist()
        self.left = [row for row in self.left if row not in {r for r, good in zip(rows, final, strict=True) if good}]
        for row in rows:
            self.panels[row] *= 2

    def hand_over(self) -> None:
        """Puts the B_j where they belong."""
        columns = [unstacked(_with(self.whole, found)) for found in self.found.unbind(1)]
        for (b, at), *row in zip(self.into, *columns, strict=True):
            for j, value in zip(at, row, strict=False):
                b[j] = value


def _answers(steps: list[_Step]) -> list[Weights]:
    """The weights of all steps."""
    answers: dict[int, Weights] = {}
    for p in {id(step.process): step.process for step in steps}.values():
        mine = [k for k, step in enumerate(steps) if step.process is p]
        answers.update(zip(mine, _answers_of(p, [steps[k] for k in mine]), strict=True))
    return [answers[k] for k in range(len(steps))]


def _answers_of(p: Process, steps: list[_Step]) -> list[Weights]:
    """The weights of all steps of a process."""
    groups: dict[tuple[Form, Clock, str], list[int]] = {}
    for k, step in enumerate(steps):
        groups.setdefault((step.form, step.clock, step.root), []).append(k)
    answers: list[Weights] = [(1.0, [0.0] * len(step.nodes)) for step in steps]
    times, batches = torch.tensor([x for step in steps for x in (step.t, step.s)], dtype=torch.float64), []
    with asking_at(times):
        for (form, u, root), group in groups.items():
            frame, index, turns = _frame(p, form), 2 * torch.tensor(group), root == "L" and p.kind == "block"
            (start, end), (q_start, q) = ([_taken(f(times), i) for i in (index, index + 1)] for f in (frame.p, frame.q))
            carry = end * inverse(start)
            whole = q - carry * q_start
            places, left = _places(p, u, [steps[k] for k in group]), []
            for i, (k, c, w) in enumerate(zip(group, unstacked(carry), unstacked(whole), strict=True)):
                (*at, last), b = places[i], answers[k][1]
                finite = [j for j, place in enumerate(at) if math.isfinite(place)] if math.isfinite(last) else []
                finite, answers[k] = finite or [0], (c, b)
                if not turns and len(finite) < 2:
                    b[finite[0]] = w
                elif not turns and form != "noise" and p.log_snr(steps[k].s) == math.inf:
                    basis = lagrange(to_tensor([at[j] for j in finite]), to_tensor(last)).tolist()
                    for j, weight in zip(finite, basis, strict=True):
                        b[j] = weight * w  # R_s = 0: all weight sits at the end
                else:
                    left.append((i, finite))
            if left:
                form, rows = "cholesky" if turns else form, torch.tensor([i for i, _ in left])
                (end, whole), ends = (_taken(c, rows) for c in (end, whole)), _numbers(_taken(q, rows))
                known, most = _numbers(whole), max(len(at) for _, at in left)
                scale = torch.ones(len(left)) if turns else torch.maximum(ends.abs(), (ends - known).abs()).amax(1)
                basis = [[places[i][j] for j in at] + [math.nan] * (most - len(at)) for i, at in left]
                batches.append(
                    _Batch(
                        p, form, u, torch.tensor(basis, dtype=torch.float64),
                        [_span(steps[group[i]], form) for i, _ in left], end, whole,
                        known * math.nan if turns else known, 1e-13 * scale,
                        [(answers[group[i]][1], at) for i, at in left],
                    )
                )  # fmt: skip
    for _ in range(_DOUBLINGS):
        for part in _parts(batches):
            _sum(part)
    for batch in batches:
        batch.hand_over()
    return answers


def _places(p: Process, u: Clock, steps: list[_Step]) -> list[list[float]]:
    """Where the predictions and the end of every step lie in a clock, read at once."""
    known = dict.fromkeys((x for step in steps for x in (*step.nodes, step.s)), 0.0)
    read = torch.as_tensor(u.of(p, torch.tensor(list(known), dtype=torch.float64)))
    known.update(zip(known, read.tolist(), strict=True))
    return [[known[x] for x in (*step.nodes, step.s)] for step in steps]


def _parts(batches: list[_Batch]) -> Iterator[list[tuple[_Batch, list[int]]]]:
    """The rows that are left of batches, as many together as are good: numbers all, larger ones form by form."""
    part, count, kind = [], 0, None
    for batch in batches:
        size = 16 * batch.known.shape[1]
        before, kind = kind, batch.form if size > 16 else None
        for row in batch.left:
            if part and (kind != before or count + size * batch.panels[row] > _AT_ONCE):
                yield part
                part, count = [], 0
            before, count = kind, count + size * batch.panels[row]
            if not part or part[-1][0] is not batch:
                part.append((batch, []))
            part[-1][1].append(row)
    if part:
        yield part


def _sum(part: list[tuple[_Batch, list[int]]]) -> None:
    """The B_j of some rows by quadrature on their panels."""
    process = part[0][0].process
    edges = [(a, (b - a) / n, i) for batch, rows in part for r in rows
             for (a, b), n in [(batch.spans[r], batch.panels[r])] for i in range(n)]  # fmt: skip
    low, width, index = torch.tensor(edges, dtype=torch.float64)[..., None].unbind(1)
    lam, end = (low + width * (index + (_X + 1) / 2)).flatten(), 0
    with torch.inference_mode(False), torch.no_grad(), asking_at(lam):
        tau, known = process.inverse_log_snr(lam), {}
        with asking_at(tau):
            for batch, rows in part:
                u, frame = batch.clock, _frame(process, batch.form)
                if u not in known:
                    known[u] = to_tensor(u.of_log_snr(process, lam)).view(-1, 16)
                if batch.form not in known:
                    known[batch.form] = inverse(frame.p(tau)), frame.rate(tau)
                of = torch.tensor([i for i, r in enumerate(rows) for _ in range(batch.panels[r])])
                begin, end = end, end + len(of)
                back, rate = (_taken(c, slice(16 * begin, 16 * end)) for c in known[batch.form])
                ends, places = _taken(batch.ends, rows), batch.places[rows]
                before = _taken(ends, of.repeat_interleave(16)) * back if process.kind == "block" else back
                density = _numbers(before * rate)
                # times next to a singular end round to the end itself, whose weight is zero
                seen = density[:, 0].isfinite()
                density = density if bool(seen.all()) else torch.where(seen[:, None], density, 0.0)
                basis = lagrange(places[of][:, None], known[u][begin:end])
                weight = (basis * (width[begin:end, None] / 2 * _W[:, None])).mT
                sums = torch.zeros(len(rows), *batch.found.shape[1:], dtype=torch.float64)
                sums.index_add_(0, of, weight @ density.view(len(of), 16, -1)).mul_(~places.isnan()[..., None])
                batch.settle(rows, sums if process.kind == "block" else _numbers(ends)[:, None] * sums)


def _taken(c: Coefficient, index: Any) -> Coefficient:
    """Entries of a coefficient that has one a time."""
    return _with(c, values_of(c)[index])


def _numbers(c: Coefficient) -> Tensor:
    """The numbers of a coefficient that has one a time: a row each."""
    values = values_of(c)
    return values.reshape(len(values), -1)


def _with(like: Coefficient, values: Tensor) -> Coefficient:
    """A coefficient of these numbers, of the kind and shape of another."""
    return like.of(values.reshape(-1, *like.values.shape[1:])) if isinstance(like, Operator) else values.flatten()


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


def pull(process: Process, t: Time) -> Coefficient:
    """-1/2 G G^T a unit of log-SNR; Sigma where that is the logarithm of alpha/sigma."""
    return process.Sigma(t) if process.kind == "scalar" else process.GG(t) * (-0.5 / derivative(process.log_snr, t))


def _frame(process: Process, form: Form) -> Frame:
    """P, Q, and P d(P^-1 Q): -1/2 G G^T Sigma^-1 M dt in data form, 1/2 G G^T R^-T dt in noise form.

    "cholesky" is the noise form with L in place of R; then the last is the derivative of no P^-1 Q.
    """
    if isinstance(form, Frame):
        return form
    if form == "data":
        return Frame(process.R, process.M, lambda t: pull(process, t) * inverse(process.Sigma(t)) * process.M(t))
    root = process.R if form == "noise" else lambda t: cholesky(process.Sigma(t))
    return Frame(process.Psi, root, lambda t: -(pull(process, t) * transpose(inverse(root(t)))))


def finite(process: Process, nodes: Sequence[tuple[float, T]]) -> list[tuple[float, T]]:
    """Nodes without predictions made at alpha = 0, where the log-SNR has no finite place."""
    return [node for node in nodes if process.log_snr(node[0]) > -math.inf]
