r"""The walk: a table bound to a denoiser, and the only loop over its rows.

Which states and outputs a row is the last to read is known before the run, so rows are written over what no later row
needs (`fewstep.loop.rows`), memory is the live rows, and nothing waits for the host.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.denoiser.base import Counted, Denoiser, Denoises, as_denoiser, layers
from fewstep.denoiser.network import NetworkError, as_state, writes_into
from fewstep.denoiser.watch import watching
from fewstep.loop.rows import SMALL, Columns, Fresh, InPlace, Rows, SideBySide
from fewstep.process import Process
from fewstep.process.operator import Coefficient, apply
from fewstep.process.predict import conversion
from fewstep.tableau import Tableau
from fewstep.tableau.form import Symbol
from fewstep.tableau.row import ONES

__all__ = ["After", "Callback", "Plan", "look_at", "walk"]

# Heads that tables of this library read, and what makes a denoiser that has them.
GUIDED = "guidance (fewstep.guide, fewstep.Guided, --guidance)"
MAKERS = {
    "base": GUIDED,
    "guidance": GUIDED,
    "derivative": "fewstep.Differentiated",
    "sn": "fewstep.variance_head",
    "npr": "fewstep.variance_head",
}

UNREAD = "which is not read: states are edited by after="

Callback = Callable[[int, float, Tensor, Tensor], None]
After = Callable[[int, float, Tensor], Tensor]


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
        heads = denoiser.heads
        tallies = [layer for layer in layers(denoiser) if isinstance(layer, Counted)]
        steps = []
        for step in instructions:
            if step.at is None:
                steps.append(step)
                continue
            raw = step.raw if step.main is None else (*step.raw, table.output)
            parts = _parts(denoiser, raw, step.at) if table.output == "x0" else None
            asked = () if parts else raw
            offered = {h: denoiser.at(step.at, h) for h in asked if h in heads}
            offered = {h: _under_autograd(f) if grad else f for h, f in offered.items()}
            main = step.heads or step.main or not offered or len(offered) < len(raw)
            call = parts or (denoiser.at(step.at, table.output) if main else None)
            for tally in tallies if call is None else ():  # a row of heads alone is a call too
                first = next(iter(offered))
                offered[first] = partial(tally.count, offered[first])
            call = _under_autograd(call) if grad and call is not None else call
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
                state=state, main=output if output in last else None, spent=state not in last,
            )
        )  # fmt: skip
    return tuple(steps), Columns.of([step.terms for step in steps], last)


def walk(
    plan: Plan,
    start: Tensor,
    noises: Iterable[Tensor] = (),
    *,
    given: Mapping[str, Tensor] | None = None,
    callback: Callback | None = None,
    after: After | None = None,
    tick: Callable[[], object] | None = None,
    look: bool = False,
    live: dict[Symbol, Tensor] | None = None,
    drawn: int = 0,
) -> Tensor:
    """Runs a plan from a start state; a pure function of its tensors, which `torch.compile` takes as one graph.

    A plan without its first rows goes on from `live`, what those rows left (it is changed), and `drawn` noises.
    """
    with nullcontext() if torch.compiler.is_compiling() else watching():
        return _walk(plan, start, noises, given, callback, after, tick, look, live, drawn)


def _walk(
    plan: Plan,
    start: Tensor,
    noises: Iterable[Tensor],
    given: Mapping[str, Tensor] | None,
    callback: Callback | None,
    after: After | None,
    tick: Callable[[], object] | None,
    look: bool,
    live: dict[Symbol, Tensor] | None,
    drawn: int,
) -> Tensor:
    rows = _rows(plan, start, live, watched=callback is not None or after is not None)
    live = rows.live
    coming: Iterator[Tensor] = iter(noises)
    shape = torch.Size((start.shape[0], *plan.process.data_shape(tuple(start.shape[1:]))))
    z = start
    for step in plan.instructions:
        if step.given is not None:
            z = start if step.given == "start" else _given(given, step.given, start)
        else:
            while drawn < step.draw:
                live["xi", drawn] = next(coming)
                if look:
                    look_at(
                        live["xi", drawn], f"noise {drawn} of the run is not finite", "check what was given as noise"
                    )
                drawn += 1
            for s in step.roots:
                live[s] = live["y", s[1], s[2]].sqrt() * live["xi", s[3]]
            z = rows.make(step)
            if after is not None:
                z = _edited(after(step.row, step.t, z), z, step)
        if look and step.given is not None:
            what = "the start" if step.given == "start" else f"the given row {step.given!r}"
            look_at(z, f"{what} is not finite", "check what was given")
        elif look:
            look_at(z, f"the state became non-finite at row {step.row} (t = {step.t:g}){_in_after(after)}")
        live[step.state] = z
        if step.call is not None or step.offered:
            main = _evaluate(plan, step, z, rows, shape, look=look)
            if tick is not None:
                tick()
            if callback is not None and main is not None:
                told = callback(step.row, step.at or 0.0, z, _x0_hat(plan, step, z, main))
                if isinstance(told, Tensor | Mapping):
                    warnings.warn(f"got a {type(told).__name__} back from callback, {UNREAD}", stacklevel=2)
        if step.spent:
            rows.spend(step)
    return z


def _rows(plan: Plan, start: Tensor, live: dict[Symbol, Tensor] | None, *, watched: bool) -> Rows:
    """The form that rows are made in; see `fewstep.loop.rows`."""
    if not plan.reuse or watched or torch.compiler.is_compiling():
        return Fresh({} if live is None else live)
    if live is None and start.numel() <= SMALL and start.device.type == "cpu":
        return SideBySide(plan.columns, start)
    return InPlace({} if live is None else live, start, compile=plan.compile)


def _parts(denoiser: Denoiser, heads: Sequence[str], t: float | None) -> Callable[[Tensor], Any] | None:
    """One call for x0 and several heads, where the denoiser makes them of the same evaluations."""
    together = len(heads) >= 2 and t is not None and set(heads) <= set(denoiser.together)
    return denoiser.jointly(t) if together else None


def _under_autograd(call: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """A call that may differentiate inside; no graph leaves it."""

    def run(z: Tensor) -> Any:
        with torch.enable_grad():
            out = call(z)
        return {k: v.detach() for k, v in out.items()} if isinstance(out, Mapping) else out.detach()

    return run


def _x0_hat(plan: Plan, step: Instruction, z: Tensor, output: Tensor) -> Tensor:
    """The data prediction of a row, in data space, for a callback."""
    if plan.output != "x0":
        p, q = conversion(plan.output, plan.process, step.at)
        output = apply(p, z) + apply(q, output)
    return plan.process.from_coordinates(output)


def _evaluate(plan: Plan, step: Instruction, z: Tensor, rows: Rows, shape: torch.Size, *, look: bool) -> Tensor | None:
    """Calls the network at a row and keeps the outputs that later rows read; a row of heads alone calls those."""
    into = rows.columns.get(step.main) if step.direct and step.main is not None else None
    main, others = (None, {}) if step.call is None else _call(plan, step, z, shape, into)
    if main is not None:
        if look:
            look_at(main, f"the network returned values that are not finite at row {step.row} (t = {step.at:g})")
        if step.main is not None:
            rows.keep(step.main, main, z)
        for head, p, q in step.heads:
            rows.derive(("y", step.row, head), z, p, main, q)
    for head in step.raw:
        if head not in others and head in step.offered:
            others[head] = step.offered[head](z)
        if head not in others:
            made = f": {MAKERS[head]} makes one that does" if head in MAKERS else ""
            raise ValueError(
                f"row {step.row}: the table reads output {head!r}, which the denoiser does not return{made}"
            )
        rows.keep(("y", step.row, head), others[head], z)
    return main


def _call(
    plan: Plan, step: Instruction, z: Tensor, shape: torch.Size, into: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """What the network returns at a row, shape checked, x0 in the process's coordinates; and its other heads."""
    assert step.call is not None
    try:
        main = step.call(z) if into is None else step.call(z, into)
        main = as_state(main, z) if isinstance(main, Tensor) else main
    except NetworkError as error:
        raise ValueError(f"row {step.row} (t = {step.at:g}): {error}") from error.__cause__
    others: dict[str, Tensor] = {}
    if not isinstance(main, Tensor):
        others = dict(main) if isinstance(main, Mapping) else {plan.output: main}
        for head, value in others.items():
            if not isinstance(value, Tensor):
                raise ValueError(
                    f"row {step.row} (t = {step.at:g}): the denoiser returned a {type(value).__name__} as {head}"
                )
        if plan.output not in others:
            raise ValueError(
                f"row {step.row} (t = {step.at:g}): the denoiser returned {', '.join(map(str, others)) or 'nothing'}: "
                f"it must return {plan.output}"
            )
        others = {head: as_state(value, z) for head, value in others.items()}
        main = others.pop(plan.output)
    if plan.output != "x0":
        return main, others
    if main.shape != shape:
        raise ValueError(
            f"row {step.row} (t = {step.at:g}): the denoiser returned shape {tuple(main.shape)} for a state of "
            f"shape {tuple(z.shape)}: it must return {tuple(shape)}"
        )
    return plan.process.coordinates(main), others


def _given(given: Mapping[str, Tensor] | None, label: str, start: Tensor) -> Tensor:
    if label == ONES:
        return torch.ones_like(start)
    if given is None or label not in given:
        raise ValueError(f"the table wants a given row {label!r}: pass given={{{label!r}: tensor}}")
    return given[label]


def _edited(told: Any, z: Tensor, step: Instruction) -> Tensor:
    """What the hook `after` has made of a state, as one."""
    if not isinstance(told, Tensor) or told.shape != z.shape or not told.is_floating_point():
        got = f"a tensor of {told.dtype} {tuple(told.shape)}" if isinstance(told, Tensor) else type(told).__name__
        raise ValueError(
            f"row {step.row} (t = {step.t:g}): after returned {got}: it must return the state, {tuple(z.shape)} numbers"
        )
    return told.to(z)


def _in_after(after: After | None) -> str:
    return "" if after is None else ", in what the network or after returned"


def look_at(
    z: Tensor, sentence: str, advice: str = "check the network's output there, its dtype and its time convention"
) -> None:
    """Raises the sentence when a tensor is not finite."""
    if not all_finite(z):
        raise ValueError(f"{sentence}: {advice}")


def all_finite(z: Tensor) -> bool:
    """Whether all numbers are finite: their sum tells, in one pass, but where it is beyond the largest number."""
    return math.isfinite(z.sum().item()) or bool(torch.isfinite(z).all())
