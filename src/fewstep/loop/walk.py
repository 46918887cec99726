"""The walk: the only loop over a table's rows; and a whole run as one CUDA graph."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.network import NetworkError, as_state
from fewstep.denoiser.watch import watching
from fewstep.loop.plan import MAKERS, SMALL, Instruction, Plan
from fewstep.loop.rows import Fresh, InPlace, Rows, SideBySide
from fewstep.process.operator import apply
from fewstep.process.predict import conversion
from fewstep.tableau.form import Symbol
from fewstep.tableau.row import ONES

__all__ = ["After", "Callback", "Captured", "all_finite", "look_at", "walk"]

UNREAD = "which is not read: states are edited by after="

Callback = Callable[[int, float, Tensor, Tensor], None]
After = Callable[[int, float, Tensor], Tensor]


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
                        what = f"noise {drawn} of the run is not finite"
                        look_at(live["xi", drawn], what, "check what was given as noise")
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
                where = "" if after is None else ", in what the network or after returned"
                look_at(z, f"the state became non-finite at row {step.row} (t = {step.t:g}){where}")
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
                raise _returned(step, f"a {type(value).__name__} as {head}")
        if plan.output not in others:
            got = ", ".join(map(str, others)) or "nothing"
            raise _returned(step, f"{got}: it must return {plan.output}")
        others = {head: as_state(value, z) for head, value in others.items()}
        main = others.pop(plan.output)
    if plan.output != "x0":
        return main, others
    if main.shape != shape:
        got = f"shape {tuple(main.shape)} for a state of shape {tuple(z.shape)}"
        raise _returned(step, f"{got}: it must return {tuple(shape)}")
    return plan.process.coordinates(main), others


def _returned(step: Instruction, what: str) -> ValueError:
    return ValueError(f"row {step.row} (t = {step.at:g}): the denoiser returned {what}")


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


def look_at(
    z: Tensor, sentence: str, advice: str = "check the network's output there, its dtype and its time convention"
) -> None:
    """Raises the sentence when a tensor is not finite."""
    if not all_finite(z):
        raise ValueError(f"{sentence}: {advice}")


def all_finite(z: Tensor) -> bool:
    """Whether all numbers are finite: their sum tells, in one pass, but where it is beyond the largest number."""
    return math.isfinite(z.sum().item()) or bool(torch.isfinite(z).all())


class Captured:
    """A plan captured for states of one shape as one CUDA graph; each call replays it.

    The host starts it once, and no longer stands between the network's kernels.

    A run has no data-dependent branch and reads nothing back (`tests/test_walk.py`), so it can be captured whole. Every
    replay reads the tensors that were there at the capture: a start, noises and given rows are copied into them, and
    what a denoiser has bound (labels) is changed in place by its owner.

    Args:
        plan: of the table, made with `like=` a state on the GPU.
        start: a state of the shape to come, on the GPU.
        noises: the noises of the table's intervals, as many as the table has.
        given: the table's given rows besides the start.
    """

    def __init__(
        self, plan: Plan, start: Tensor, noises: Sequence[Tensor] = (), given: Mapping[str, Tensor] | None = None
    ) -> None:
        if start.device.type != "cuda":
            raise ValueError(f"got a state on {start.device} to capture: CUDA graphs want a GPU, call walk instead")
        self.start, self.noises = start.clone(), [xi.clone() for xi in noises]
        self.given = {name: row.clone() for name, row in (given or {}).items()}
        self.graph = torch.cuda.CUDAGraph()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(aside):
            for _ in range(2):  # libraries choose their kernels and take their memory before the capture
                walk(plan, self.start, self.noises, given=self.given)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.no_grad(), torch.cuda.graph(self.graph):
            self.end = walk(plan, self.start, self.noises, given=self.given)

    def __call__(
        self, start: Tensor, noises: Sequence[Tensor] = (), given: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The last state of a run from another start with other noises."""
        self.start.copy_(start)
        for mine, xi in zip(self.noises, noises, strict=True):
            mine.copy_(xi)
        for name, row in self.given.items():
            row.copy_((given or {})[name])
        self.graph.replay()
        return self.end.clone()
