r"""The only loop: walks the rows of a table, one linear combination a row.

    process -> grid -> solver (writes a table, float64, before the run) -> sample -> states

A row is a chain of in-place multiply-adds into a tensor that an earlier row no longer needs; which ones those are is
known before the run, so memory is the live rows and nothing waits for the host. Finiteness is looked at once, at the
end; a run that failed is replayed with a look at each row, so that the error names the row and its time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.network import NetworkError, bound
from fewstep.grid import Grid, as_grid
from fewstep.noise import Noise, NoiseSource, noise_source
from fewstep.process import Process
from fewstep.process.operator import Coefficient, apply
from fewstep.solver import DEFAULT_SOLVERS, SOLVERS, Solver
from fewstep.tableau import Tableau
from fewstep.tableau.form import Symbol
from fewstep.ui import Bar
from fewstep.words import pick

__all__ = ["Plan", "sample", "tabulate", "walk"]

Denoiser = Callable[[Tensor, Any], Any]
Callback = Callable[[int, float, Tensor, Tensor], None]
After = Callable[[int, float, Tensor], Tensor]


def tabulate(
    solver: str | Solver | Tableau | Path | None,
    process: Process,
    *,
    grid: str | Tensor | Grid = "default",
    steps: int | None = None,
    nfe: int | None = None,
) -> Tableau:
    """The table of a solver on a process and a grid.

    Args:
        solver: a name in `SOLVERS`, a solver, a table (returned as it is) or a file that `Tableau.save` wrote; None is
            the default of the process's kind, in `DEFAULT_SOLVERS`.
        process: the process.
        grid: a name in `GRIDS`, a function (process, steps) -> times, or a decreasing tensor of times, used as given.
        steps: at most this many network calls (with a named grid; 10 when neither is given).
        nfe: exactly this many network calls, or refused.
    """
    if isinstance(solver, Path):
        solver = Tableau.load(solver)
    if isinstance(solver, Tableau):
        if solver.process != process:
            raise ValueError(f"got a table written for {solver.process} to run on {process}: tabulate the solver again")
        return solver
    if solver is None:
        solver = DEFAULT_SOLVERS[process.kind]
    if isinstance(solver, str):
        solver = pick(SOLVERS, solver, "solver")()
    if steps is not None and nfe is not None:
        raise ValueError(f"got steps={steps} and nfe={nfe}: give one of them")
    if isinstance(grid, str) or (callable(grid) and not isinstance(grid, Tensor)):
        intervals = _intervals(solver, process, steps, nfe)
        return solver.tabulate(process, as_grid(grid, process, intervals))
    if steps is not None:
        raise ValueError(f"got steps={steps} with an explicit grid, whose length says the steps: give one of them")
    table = solver.tabulate(process, as_grid(grid, process, None))
    if nfe is not None and table.nfe != nfe:
        raise ValueError(
            f"got nfe={nfe} with a grid on which this solver takes {table.nfe} calls: give nfe={table.nfe}"
        )
    return table


def sample(
    denoiser: Denoiser,
    process: Process,
    *,
    solver: str | Solver | Tableau | Path | None = None,
    grid: str | Tensor | Grid = "default",
    steps: int | None = None,
    nfe: int | None = None,
    shape: tuple[int, ...] | None = None,
    x: Tensor | None = None,
    seed: int = 0,
    first: int = 0,
    noise: Noise | NoiseSource | torch.Generator | Tensor | None = None,
    given: Mapping[str, Tensor] | None = None,
    final: str = "state",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    callback: Callback | None = None,
    after: After | None = None,
    differentiable: bool = False,
    progress: bool = True,
) -> Tensor:
    """Samples: from noise, or from a given state, down the grid.

    Args:
        denoiser: (z, t) -> x0_hat in data space, a tensor (or a mapping with "x0" and further heads).
        process: the process.
        solver, grid, steps, nfe: see `tabulate`.
        shape: (batch, *data shape); the start is drawn from the prior.
        x: the start state (batch, *state shape) instead of a shape; its dtype and device are kept.
        seed: the seed of the counter-based noise; sample i of a batch is number `first` + i of that seed.
        first: the number of the batch's first sample.
        noise: a `torch.Generator`, a ready tensor (n_noises, batch, *state) or a noise source instead of the seed.
        given: tensors for the table's given rows besides the start.
        final: "state" returns the state at the last time; "denoise" spends one more call on x0_hat there.
        dtype: of the state when `shape` is given (float32 or float64), whatever the network's is.
        device: where the state lives when `shape` is given.
        callback: called after each evaluated row with (row, t, state, x0_hat); treat the tensors as read-only.
        after: the hook (row, t, z) -> z on every made row.
        differentiable: keeps autograd through the run (and the history out of place).
        progress: show a bar on a terminal when the run takes longer than two seconds.

    Returns:
        The state (batch, *state shape) at the last time of the grid; `process.to_data` takes it to data space. With
        final="denoise", x0_hat in data space.
    """
    if final not in ("state", "denoise"):
        raise ValueError(f"got final={final!r}: choose state or denoise")
    budget = _one_less(final, steps, nfe)
    table = tabulate(solver, process, grid=grid, **budget)
    if (shape is None) == (x is None):
        raise ValueError(
            "got both a shape and a start x: give one" if x is not None else "got no shape: give shape or x"
        )
    source = noise_source(noise, seed, first)
    if x is None:
        state_shape, device = _state_shape(process, shape or ()), torch.device(device or "cpu")
        _check_dtype(dtype)
        x = process.prior(source.initial(state_shape, dtype, device))
    else:
        _check_dtype(x.dtype)
    start, memory = x, source.snapshot()
    inference = not (differentiable or getattr(denoiser, "needs_grad", False))
    plan = Plan.of(table, denoiser, reuse=inference)

    def run(*, look: bool, callback: Callback | None, tick: Callable[[], None] | None) -> Tensor:
        noises = _noises(table, source, tuple(start.shape), start.dtype, start.device)
        z = walk(plan, start, noises, given=given, callback=callback, after=after, tick=tick, look=look)
        if final == "state":
            return z
        d = denoiser(z, float(table.grid[-1]))
        return d["x0"] if isinstance(d, Mapping) else d

    with torch.inference_mode() if inference else nullcontext():
        with Bar(table.nfe, "sampling") as bar:
            z = run(look=False, callback=callback, tick=bar.advance if progress else None)
        if not bool(torch.isfinite(z).all()):
            source.restore(memory)
            run(look=True, callback=None, tick=None)
            raise ValueError("the samples are not finite, but a replay of the run was: is the denoiser deterministic?")
    return z.clone() if z.is_inference() and not torch.is_inference_mode_enabled() else z


@dataclass(frozen=True)
class Instruction:
    """One row, ready to run: terms to add, what to free then, the call, heads to derive, what nothing reads later."""

    row: int
    t: float
    at: float | None
    call: Callable[[Tensor], Any] | None
    given: str | None
    terms: tuple[tuple[Symbol, Coefficient], ...]
    heads: tuple[tuple[str, Coefficient, Coefficient], ...]
    raw: tuple[str, ...]
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
    def of(table: Tableau, denoiser: Denoiser, *, reuse: bool = True) -> Plan:
        """Binds a table to a denoiser; one that has `at(t)` gets its own numbers ready too."""
        last = table.last_use()
        steps = []
        for k, row in enumerate(table.rows):
            live = [s for s in last if s[0] == "y" and s[1] == k]
            heads = tuple((s[2], *table.heads[k, s[2]]) for s in live if (k, s[2]) in table.heads)
            raw = tuple(s[2] for s in live if (k, s[2]) not in table.heads)
            free = tuple(s for s, end in last.items() if end == k)
            ours = tuple(s for s in free if s[0] == "z" and table.rows[s[1]].given is None)
            own = [("z", k), ("y", k, table.output)]
            dead = tuple(s for s in own if s not in last) if k < len(table.rows) - 1 else ()
            call = None if row.at is None else bound(denoiser, row.at, table.output)
            steps.append(Instruction(k, row.t, row.at, call, row.given, tuple(row.form), heads, raw, free, ours, dead))
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
) -> Tensor:
    """Runs a plan from a start state; a pure function of its tensors, which `torch.compile` takes as one graph."""
    live: dict[Symbol, Tensor] = {}
    pool: list[Tensor] = []
    coming: Iterator[Tensor] = iter(noises)
    drawn = 0
    reuse = plan.reuse and after is None and callback is None and not torch.compiler.is_compiling()
    z = start
    for step in plan.instructions:
        if step.given is not None:
            z = start if step.given == "start" else _given(given, step.given)
        else:
            for symbol, _ in step.terms:
                while symbol[0] in ("xi", "root") and drawn <= symbol[-1]:
                    live["xi", drawn] = next(coming)
                    drawn += 1
            z = _combine([(_value(live, s), c) for s, c in step.terms], pool.pop() if pool else None, reuse)
            if reuse:
                pool.extend(live[symbol] for symbol in step.ours)
            _free(live, step.free)
            if after is not None:
                z = after(step.row, step.t, z)
        if look:
            _look(z, f"the state became non-finite at row {step.row} (t = {step.t:g})", step)
        live["z", step.row] = z
        if step.call is not None:
            _evaluate(plan, step, z, live, look=look)
            if tick is not None:
                tick()
            if callback is not None:
                callback(step.row, step.at or 0.0, z, live["y", step.row, plan.output])
        _free(live, step.dead)
    return z


def _free(live: dict[Symbol, Tensor], symbols: Iterable[Symbol]) -> None:
    """Lets go of what no later row reads."""
    for symbol in symbols:
        live.pop(symbol, None)


def _evaluate(plan: Plan, step: Instruction, z: Tensor, live: dict[Symbol, Tensor], *, look: bool) -> None:
    """Calls the network at a row and stores the outputs that later rows read."""
    assert step.call is not None
    try:
        out = step.call(z)
    except NetworkError as error:
        raise ValueError(f"row {step.row} (t = {step.at:g}): {error}") from None
    outputs = out if isinstance(out, Mapping) else {plan.output: out}
    main = outputs[plan.output]
    if plan.output == "x0":
        expected = (z.shape[0], *plan.process.data_shape(tuple(z.shape[1:])))
        if tuple(main.shape) != expected:
            raise ValueError(
                f"row {step.row} (t = {step.at:g}): the denoiser returned shape {tuple(main.shape)} for a state of "
                f"shape {tuple(z.shape)}: it must return {expected}"
            )
        main = plan.process.coordinates(main).to(z.dtype)
    if look:
        _look(main, f"the network returned values that are not finite at row {step.row} (t = {step.at:g})", step)
    live["y", step.row, plan.output] = main
    for head in step.raw:
        if head not in outputs:
            raise ValueError(f"row {step.row}: the table reads output {head!r}, which the denoiser does not return")
        if head != plan.output:
            live["y", step.row, head] = outputs[head]
    for head, p, q in step.heads:
        live["y", step.row, head] = _combine([(z, p), (main, q)], None, plan.reuse)


def _combine(terms: list[tuple[Tensor, Coefficient]], out: Tensor | None, reuse: bool) -> Tensor:
    """Sum of coefficient * tensor: chained multiply-adds, in place from the second term on."""
    (x, c), *rest = terms
    total = torch.mul(x, c, out=out) if out is not None and isinstance(c, float) else apply(c, x)
    for x, c in rest:
        if not isinstance(c, float):
            x, c = apply(c, x), 1.0
        total = total.add_(x, alpha=c) if reuse else total.add(x, alpha=c)
    return total


def _value(live: Mapping[Symbol, Tensor], symbol: Symbol) -> Tensor:
    if symbol[0] == "root":
        return live["y", symbol[1], symbol[2]].sqrt() * live["xi", symbol[3]]
    return live[symbol]


def _noises(
    table: Tableau, source: NoiseSource, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Iterator[Tensor]:
    """The standard normals of the table's intervals; positions on the path are a sigmoid of the log-SNR."""
    place = lambda t: 1 / (1 + math.exp(-float(table.process.log_snr(t)) / 2))  # noqa: E731
    requests = [(place(n.t), place(n.s), n.stream, n.index) for n in table.noises]
    return source.intervals(requests, shape, dtype, device)


def _intervals(solver: Solver, process: Process, steps: int | None, nfe: int | None) -> int:
    """Grid intervals for at most `steps`, or exactly `nfe`, network calls."""
    asked = nfe if nfe is not None else 10 if steps is None else steps
    label = "nfe" if nfe is not None else "steps"
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise ValueError(f"got {label}={asked!r}: give a whole number of at least 1")
    to_zero = float(process.log_snr(process.t_min)) == math.inf
    count = asked
    while count > 0 and solver.calls(count, to_zero=to_zero) > asked:
        count -= 1
    fewer = solver.calls(count, to_zero=to_zero) if count else None
    more = solver.calls(count + 1, to_zero=to_zero)
    if count == 0:
        raise ValueError(
            f"got {label}={asked} for {type(solver).__name__}, which takes at least {more} calls: give {more}"
        )
    if nfe is not None and fewer != nfe:
        raise ValueError(
            f"got nfe={nfe} for {type(solver).__name__}, which takes {fewer} or {more} calls: give one of them"
        )
    return count


def _one_less(final: str, steps: int | None, nfe: int | None) -> dict[str, int | None]:
    """The calls left for the table when the last one is spent on x0_hat."""
    if final == "state":
        return {"steps": steps, "nfe": nfe}
    for label, value in (("steps", steps), ("nfe", nfe)):
        if isinstance(value, int) and value == 1:
            raise ValueError(
                f"got {label}=1 with final='denoise', which spends one call after the table: give at least 2"
            )
    return {"steps": steps - 1 if steps else steps, "nfe": nfe - 1 if nfe else nfe}


def _state_shape(process: Process, shape: tuple[int, ...]) -> tuple[int, ...]:
    shape = tuple(shape)
    if len(shape) < 2 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(f"got shape={shape}: give (batch, *data shape) with positive whole numbers")
    return (shape[0], *process.state_shape(shape[1:]))


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"got a state in {dtype}: states are float32 or float64 (a bfloat16 state loses 0.3 over 1000 steps); "
            "run the network in another dtype through wrap(dtype=...)"
        )


def _given(given: Mapping[str, Tensor] | None, label: str) -> Tensor:
    if given is None or label not in given:
        raise ValueError(f"the table wants a given row {label!r}: pass given={{{label!r}: tensor}}")
    return given[label]


def _look(z: Tensor, sentence: str, step: Instruction) -> None:
    if not bool(torch.isfinite(z).all()):
        terms = f" made of {len(step.terms)} terms" if step.terms else ""
        raise ValueError(f"{sentence}{terms}: check the network's output there, its dtype and its time convention")
