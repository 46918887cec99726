r"""A table bound to a denoiser: its rows as instructions, made before the run.

Which states and outputs a row is the last to read is known then, so rows are written over what no later row needs
(`fewstep.loop.rows`), memory is the live rows, and nothing waits for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.denoiser.base import Counted, Denoises, as_denoiser, layers
from fewstep.denoiser.network import writes_into
from fewstep.process import Process
from fewstep.process.operator import Coefficient
from fewstep.process.predict import PREDICTIONS
from fewstep.tableau import Symbol, Tableau

__all__ = ["SMALL", "Columns", "Instruction", "Plan", "on_raw_outputs", "under_autograd"]

SMALL = 2**15  # numbers in a state, up to which its outputs lie side by side

# Heads that tables of this library read, and what makes a denoiser that has them.
GUIDED = "guidance (fewstep.guide, fewstep.Guided, --guidance)"
MAKERS = {
    "base": GUIDED,
    "guidance": GUIDED,
    "derivative": "fewstep.Differentiated",
    "sn": "fewstep.variance_head",
    "npr": "fewstep.variance_head",
}

Terms = Sequence[tuple[Symbol, Coefficient]]
Spaced = tuple[int, int, int]  # columns at equal distances: the first, the distance, how many


@dataclass(frozen=True)
class Columns:
    """Where outputs lie side by side, and which of them each row reads, as runs of columns at equal distances.

    Attributes:
        count: how many columns there are.
        at: the column of an output.
        runs: the runs of each row.
        weights: the weights of all runs, one after the other, in the order of the rows.
        rest: the terms of each row, but the first, that are not in the runs.
    """

    count: int
    at: Mapping[Symbol, int]
    runs: tuple[tuple[Spaced, ...], ...]
    weights: Tensor
    rest: tuple[Terms, ...]

    @staticmethod
    def of(terms: Sequence[Terms], last: Mapping[Symbol, int]) -> Columns:
        """A column for every output that a row adds beside another, with numbers as weights, until it is free."""
        together = [[s for s, c in row[1:] if s[0] == "y" and isinstance(c, float)] for row in terms]
        wanted = {s for row in together if len(row) > 1 for s in row}
        at: dict[Symbol, int] = {}
        taken: dict[int, Symbol] = {}
        runs: list[tuple[Spaced, ...]] = []
        weights: list[float] = []
        for k, row in enumerate(terms):
            weight = {at[s]: c for s, c in row[1:] if s in wanted and isinstance(c, float)}
            runs.append(tuple(_runs(sorted(weight))))
            weights += [weight[first + i * by] for first, by, n in runs[-1] for i in range(n)]
            taken = {column: s for column, s in taken.items() if last[s] > k}
            for symbol in sorted(s for s in wanted if s[1] == k):
                at[symbol] = next(column for column in range(len(taken) + 1) if column not in taken)
                taken[at[symbol]] = symbol
        with torch.inference_mode(False):  # remembered between runs
            flat = torch.tensor(weights, dtype=torch.float64)
        rest = [[(s, c) for s, c in row[1:] if not (s in wanted and isinstance(c, float))] for row in terms]
        return Columns(max(at.values(), default=-1) + 1, at, tuple(runs), flat, tuple(rest))


class Instruction(NamedTuple):
    """One row, ready to run: terms to add, what to free then, heads to derive, what nothing reads later, the call."""

    row: int
    t: float
    at: float | None
    given: str | None
    terms: tuple[tuple[Symbol, Coefficient], ...]
    over: bool  # the row is written over the state of its first term
    draw: int  # noises drawn by the time this row is made
    roots: tuple[Symbol, ...]
    heads: tuple[tuple[str, Coefficient, Coefficient], ...]
    raw: tuple[str, ...]
    free: tuple[Symbol, ...]
    ours: tuple[Symbol, ...]  # the part of `free` that the loop made itself and may write into in a later row
    state: Symbol
    main: Symbol | None  # the call's own output, where a later row reads it
    spent: bool  # no row reads the state
    to: float | None = None  # where the call leads
    call: Callable[..., Any] | None = None
    offered: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({})  # heads computed beside the call
    direct: bool = False  # the call writes into the column that its output has


@dataclass(frozen=True)
class Plan:
    """A table turned into instructions; `reuse` lets rows write into freed tensors, `compile` compiles large rows."""

    process: Process
    output: str
    instructions: tuple[Instruction, ...]
    reuse: bool
    columns: Columns
    compile: bool = False

    @staticmethod
    def of(
        table: Tableau,
        denoiser: Denoises,
        *,
        like: Tensor | None = None,
        reuse: bool = True,
        grad: bool = False,
        compile: bool = False,
    ) -> Plan:
        """Binds a table to a denoiser.

        Weights that are tensors are put in the dtype and on the device of `like`; with `grad` the calls, and they
        alone, run under autograd.
        """
        instructions, columns = _outline(table, like)
        denoiser = as_denoiser(denoiser)
        heads, led = denoiser.heads, denoiser.destination and bool(table.destinations)
        tallies = [layer for layer in layers(denoiser) if isinstance(layer, Counted)]
        steps = []
        for step in instructions:
            if step.at is None:
                steps.append(step)
                continue
            raw = step.raw if step.main is None else (*step.raw, table.output)
            to = step.to if led else None
            joint = table.output == "x0" and len(raw) > 1 and set(raw) <= set(denoiser.together)
            parts = denoiser.jointly(step.at, to=to) if joint else None
            asked = () if parts else raw
            offered = {h: denoiser.toward(step.at, h, to) for h in asked if h in heads}
            offered = {h: under_autograd(f) if grad else f for h, f in offered.items()}
            main = step.heads or step.main or not offered or len(offered) < len(raw)
            call = parts or (denoiser.toward(step.at, table.output, to) if main else None)
            for tally in tallies if call is None else ():  # a row of heads alone is a call too
                first = next(iter(offered))
                offered[first] = partial(tally.count, offered[first])
            call = under_autograd(call) if grad and call is not None else call
            direct = step.main in columns.at and table.output == "x0" and writes_into(call)
            steps.append(Instruction(*step[:-3], call, offered, direct))
        return Plan(table.process, table.output, tuple(steps), reuse, columns, compile)


def _outline(table: Tableau, like: Tensor | None) -> tuple[tuple[Instruction, ...], Columns]:
    """The instructions without their calls, and the columns; remembered where no weight depends on `like`."""
    heads, made = table.notes.get("outline", (None, None))
    if made is None or heads != table.heads:
        numbers = all(type(c) is float for row in table.rows for c in row.form.terms.values())
        numbers = numbers and all(type(c) is float for pair in table.heads.values() for c in pair)
        made = _outlined(table, None if numbers else like)
        if numbers:
            table.notes["outline"] = dict(table.heads), made
    return made


def _outlined(table: Tableau, like: Tensor | None) -> tuple[tuple[Instruction, ...], Columns]:
    ready = lambda c: c if like is None or isinstance(c, float) else c.to(like)  # noqa: E731
    last, steps, draw = table.last_use(), [], 0
    read: dict[int, list[Symbol]] = {}
    dead: dict[int, list[Symbol]] = {}
    for s, end in last.items():
        if s[0] == "y":
            read.setdefault(s[1], []).append(s)
        dead.setdefault(end, []).append(s)
    for k, row in enumerate(table.rows):
        heads = [s[2] for s in read.get(k, ())]
        derived = [(h, ready(p), ready(q)) for h in heads if (k, h) in table.heads for p, q in [table.heads[k, h]]]
        terms = [(s, ready(c)) for s, c in row.form.terms.items()]
        draw = max([draw, *(s[-1] + 1 for s, _ in terms if s[0] in ("xi", "root"))])
        roots = [s for s, _ in terms if s[0] == "root"]
        free = (*dead.get(k, ()), *roots)
        ours = [s for s in free if s[0] == "z" and table.rows[s[1]].given is None]
        over = next((s for s, c in terms if s in ours and isinstance(c, float)), None)
        terms.sort(key=lambda term: (term[0] != over, not isinstance(term[1], float), term[0][0] != "z"))
        state, output = ("z", k), ("y", k, table.output)
        steps.append(
            Instruction(
                row=k, t=row.t, at=row.at, given=row.given, terms=tuple(terms), over=over is not None, draw=draw,
                roots=tuple(roots), heads=tuple(derived), free=free, ours=tuple(s for s in ours if s != over),
                raw=tuple(h for h in heads if h != table.output and (k, h) not in table.heads),
                state=state, main=output if output in last else None, spent=state not in last, to=row.to,
            )
        )  # fmt: skip
    return tuple(steps), Columns.of([step.terms for step in steps], last)


def on_raw_outputs(table: Tableau, denoiser: Any) -> Tableau:
    """The same sampler on what the network returns, where that takes fewer passes over a state than converting it.

    A conversion x0 = p z + q F takes two passes, and so does a derived head. In terms of F there is none, but a row
    that reads an output reads its state too.
    """
    predicts = as_denoiser(denoiser).predicts
    if table.output != "x0" or predicts == "data" or predicts not in PREDICTIONS or table.process.kind == "block":
        return table
    heads, raw = table.notes.get(predicts, (None, None))
    if heads != table.heads:
        raw = table.in_terms_of(predicts) if _shorter(table, predicts) else None
        table.notes[predicts] = dict(table.heads), raw
    return raw or table


def _shorter(table: Tableau, predicts: str) -> bool:
    """Whether the rows read fewer tensors in terms of what a network predicts."""
    more = 0
    for row in table.rows:
        outputs = [s for s in row.form.terms if s[0] == "y"]
        with_state = {("z", s[1]) for s in outputs if s[2] == "x0" or (s[2] == "noise" and predicts != "noise")}
        more += len(with_state - set(row.form.terms)) + len({s[1] for s in outputs}) - len(outputs)
    return more < 2 * (table.nfe + len(table.heads))


def under_autograd(call: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """A call that may differentiate inside; no graph leaves it."""

    def run(z: Tensor) -> Any:
        with torch.enable_grad():
            out = call(z)
        return {k: v.detach() for k, v in out.items()} if isinstance(out, Mapping) else out.detach()

    return run


def _runs(columns: list[int]) -> Iterator[Spaced]:
    """Increasing columns, cut into runs at equal distances; two are always one."""
    while columns:
        by, n = columns[1] - columns[0] if len(columns) > 1 else 1, 1
        while n < len(columns) and columns[n] - columns[n - 1] == by:
            n += 1
        yield columns[0], by, n
        columns = columns[n:]
