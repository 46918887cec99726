r"""The walk: a table bound to a denoiser, and the only loop over its rows.

A row is a chain of in-place multiply-adds into a tensor that an earlier row no longer needs; which ones those are is
known before the run, so memory is the live rows and nothing waits for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.network import NetworkError, bound
from fewstep.denoiser.predict import conversion
from fewstep.process import Process
from fewstep.process.operator import Coefficient, apply
from fewstep.tableau import Tableau
from fewstep.tableau.form import Symbol
from fewstep.tableau.tableau import ONES

__all__ = ["After", "Callback", "Denoiser", "Plan", "look_at", "walk"]

# Heads that tables of this library read, and what makes a denoiser that has them.
MAKERS = {
    "base": "fewstep.guide or fewstep.Guided",
    "guidance": "fewstep.guide or fewstep.Guided",
    "derivative": "fewstep.Differentiated",
    "sn": "fewstep.variance_head",
    "npr": "fewstep.variance_head",
}

Denoiser = Callable[[Tensor, Any], Any]
Callback = Callable[[int, float, Tensor, Tensor], None]
After = Callable[[int, float, Tensor], Tensor]


@dataclass(frozen=True)
class Instruction:
    """One row, ready to run: terms to add, what to free then, the call, heads to derive, what nothing reads later."""

    row: int
    t: float
    at: float | None
    call: Callable[[Tensor], Any] | None
    given: str | None
    terms: tuple[tuple[Symbol, Coefficient], ...]
    draw: int  # noises drawn by the time this row is made
    roots: tuple[Symbol, ...]
    heads: tuple[tuple[str, Coefficient, Coefficient], ...]
    raw: tuple[str, ...]
    offered: Mapping[str, Callable[[Tensor], Tensor]]  # heads the denoiser computes beside its call
    free: tuple[Symbol, ...]
    ours: tuple[Symbol, ...]  # the part of `free` that the loop made itself and may write into again
    dead: tuple[Symbol, ...]


@dataclass(frozen=True)
class Plan:
    """A table turned into instructions; `reuse` lets rows write into freed tensors."""

    process: Process
    output: str
    instructions: tuple[Instruction, ...]
    reuse: bool

    @staticmethod
    def of(
        table: Tableau, denoiser: Denoiser, *, like: Tensor | None = None, reuse: bool = True, grad: bool = False
    ) -> Plan:
        """Binds a table to a denoiser; one that has `at(t)` gets its own numbers ready too.

        Weights that are tensors are put in the dtype and on the device of `like`; with `grad` the calls, and they
        alone, run under autograd.
        """
        ready = lambda c: c if like is None or isinstance(c, float) else c.to(like)  # noqa: E731
        last = table.last_use()
        steps, draw = [], 0
        for k, row in enumerate(table.rows):
            live = [s for s in last if s[0] == "y" and s[1] == k]
            derived = [(s[2], *table.heads[k, s[2]]) for s in live if (k, s[2]) in table.heads]
            heads = tuple((head, ready(a), ready(b)) for head, a, b in derived)
            raw = tuple(s[2] for s in live if (k, s[2]) not in table.heads)
            offered = {h: f for h in raw if row.at is not None and (f := _offered(denoiser, h, row.at)) is not None}
            offered = {h: _under_autograd(f) if grad else f for h, f in offered.items()}
            form = row.form.terms
            draw = max([draw, *(s[-1] + 1 for s in form if s[0] in ("xi", "root"))])
            roots = tuple(s for s in form if s[0] == "root")
            free = (*(s for s, end in last.items() if end == k), *roots)
            ours = tuple(s for s in free if s[0] == "z" and table.rows[s[1]].given is None)
            own = [("z", k), ("y", k, table.output)]
            dead = tuple(s for s in own if s not in last) if k < len(table.rows) - 1 else ()
            main = heads or ("y", k, table.output) in last or not offered or len(offered) < len(raw)
            call = bound(denoiser, row.at, table.output) if row.at is not None and main else None
            if call is None and offered and hasattr(denoiser, "count"):  # a row of heads alone is a call too
                first = next(iter(offered))
                offered[first] = partial(denoiser.count, offered[first])
            call = _under_autograd(call) if grad and call is not None else call
            terms = tuple((s, ready(c)) for s, c in form.items())
            steps.append(
                Instruction(
                    k, row.t, row.at, call, row.given, terms, draw, roots, heads, raw, offered, free, ours, dead
                )
            )
        return Plan(table.process, table.output, tuple(steps), reuse)


def walk(
    plan: Plan,
    start: Tensor,
    noises: Iterable[Tensor] = (),
    *,
    given: Mapping[str, Tensor] | None = None,
    callback: Callback | None = None,
    after: After | None = None,
    tick: Callable[[], None] | None = None,
    look: bool = False,
    live: dict[Symbol, Tensor] | None = None,
    drawn: int = 0,
) -> Tensor:
    """Runs a plan from a start state; a pure function of its tensors, which `torch.compile` takes as one graph.

    A plan without its first rows goes on from `live`, what those rows left (it is changed), and `drawn` noises.
    """
    live = {} if live is None else live
    pool: list[Tensor] = []
    coming: Iterator[Tensor] = iter(noises)
    reuse = plan.reuse and after is None and callback is None and not torch.compiler.is_compiling()
    z = start
    for step in plan.instructions:
        if step.given is not None:
            z = start if step.given == "start" else _given(given, step.given, start)
        else:
            while drawn < step.draw:
                live["xi", drawn] = next(coming)
                drawn += 1
            if step.roots:
                live |= {s: live["y", s[1], s[2]].sqrt() * live["xi", s[3]] for s in step.roots}
            z = _combine([(live[s], c) for s, c in step.terms], pool.pop() if pool else None, reuse)
            if reuse:
                pool.extend(live[symbol] for symbol in step.ours)
            _free(live, step.free)
            if after is not None:
                z = after(step.row, step.t, z)
        if look:
            look_at(z, f"the state became non-finite at row {step.row} (t = {step.t:g})")
        live["z", step.row] = z
        if step.call is not None or step.offered:
            _evaluate(plan, step, z, live, reuse=reuse, look=look)
            if tick is not None:
                tick()
            if callback is not None and step.call is not None:
                callback(step.row, step.at or 0.0, z, _x0_hat(plan, step, z, live["y", step.row, plan.output]))
        if reuse and step.given is None and ("z", step.row) in step.dead:
            pool.append(z)
        _free(live, step.dead)
    return z


def _offered(denoiser: Any, head: str, t: float) -> Callable[[Tensor], Tensor] | None:
    """What a closed-form denoiser, or one that wraps it, offers under `head(name, t)`; None where it does not."""
    while hasattr(denoiser, "denoiser") and not hasattr(denoiser, "head"):
        denoiser = denoiser.denoiser
    return denoiser.head(head, t) if hasattr(denoiser, "head") else None


def _under_autograd(call: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """A call that may differentiate inside; no graph leaves it."""

    def run(z: Tensor) -> Any:
        with torch.enable_grad():
            out = call(z)
        return {k: v.detach() for k, v in out.items()} if isinstance(out, Mapping) else out.detach()

    return run


def _free(live: dict[Symbol, Tensor], symbols: Iterable[Symbol]) -> None:
    """Lets go of what no later row reads."""
    for symbol in symbols:
        live.pop(symbol, None)


def _x0_hat(plan: Plan, step: Instruction, z: Tensor, output: Tensor) -> Tensor:
    """The data prediction of a row, in data space, for a callback."""
    if plan.output != "x0":
        p, q = conversion(plan.output, plan.process, step.at)
        output = apply(p, z) + apply(q, output)
    return plan.process.from_coordinates(output)


def _evaluate(plan: Plan, step: Instruction, z: Tensor, live: dict[Symbol, Tensor], *, reuse: bool, look: bool) -> None:
    """Calls the network at a row and stores the outputs that later rows read; a row of heads alone calls those."""
    outputs = {} if step.call is None else _outputs(plan, step, z, reuse)
    if step.call is not None:
        main = outputs[plan.output]
        if look:
            look_at(main, f"the network returned values that are not finite at row {step.row} (t = {step.at:g})")
        live["y", step.row, plan.output] = main
        for head, p, q in step.heads:
            live["y", step.row, head] = _combine([(z, p), (main, q)], None, reuse)
    for head in step.raw:
        if head not in outputs and head in step.offered:
            outputs[head] = step.offered[head](z)
        if head not in outputs:
            made = f": {MAKERS[head]} makes one that does" if head in MAKERS else ""
            raise ValueError(
                f"row {step.row}: the table reads output {head!r}, which the denoiser does not return{made}"
            )
        live["y", step.row, head] = outputs[head]


def _outputs(plan: Plan, step: Instruction, z: Tensor, reuse: bool) -> dict[str, Tensor]:
    """What the network returns at a row, by head, shapes checked, x0 in the process's coordinates."""
    assert step.call is not None
    try:
        out = step.call(z)
    except NetworkError as error:
        raise ValueError(f"row {step.row} (t = {step.at:g}): {error}") from None
    outputs = dict(out) if isinstance(out, Mapping) else {plan.output: out}
    for head, value in outputs.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"row {step.row} (t = {step.at:g}): the denoiser returned a {type(value).__name__} as {head}"
            )
        if reuse and value.untyped_storage().data_ptr() == z.untyped_storage().data_ptr():
            outputs[head] = value.clone()  # a view of the state, which later rows may write into
    if plan.output == "x0":
        found, expected = outputs["x0"], (z.shape[0], *plan.process.data_shape(tuple(z.shape[1:])))
        if tuple(found.shape) != expected:
            raise ValueError(
                f"row {step.row} (t = {step.at:g}): the denoiser returned shape {tuple(found.shape)} for a state of "
                f"shape {tuple(z.shape)}: it must return {expected}"
            )
        outputs["x0"] = plan.process.coordinates(found.to(z.dtype))
    return outputs


def _combine(terms: list[tuple[Tensor, Coefficient]], out: Tensor | None, reuse: bool) -> Tensor:
    """Sum of coefficient * tensor: chained multiply-adds, in place from the second term on."""
    (x, c), *rest = terms
    total = torch.mul(x, c, out=out) if out is not None and isinstance(c, float) else apply(c, x)
    for x, c in rest:
        if not isinstance(c, float):
            x, c = apply(c, x), 1.0
        total = total.add_(x, alpha=c) if reuse else total.add(x, alpha=c)
    return total


def _given(given: Mapping[str, Tensor] | None, label: str, start: Tensor) -> Tensor:
    if label == ONES:
        return torch.ones_like(start)
    if given is None or label not in given:
        raise ValueError(f"the table wants a given row {label!r}: pass given={{{label!r}: tensor}}")
    return given[label]


def look_at(z: Tensor, sentence: str) -> None:
    """Raises the sentence when a tensor is not finite."""
    if not bool(torch.isfinite(z).all()):
        raise ValueError(f"{sentence}: check the network's output there, its dtype and its time convention")
