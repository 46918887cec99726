r"""The runs: `sample` draws the noise and runs a table or a driver; `solve` says what became of each sample.

Finiteness is looked at once, at the end; a run that failed is replayed with a look at each row, so that the error names
the row and its time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.base import Denoiser, Denoises, as_denoiser, fingerprint, of_samples, same_process
from fewstep.denoiser.compiled import compiled
from fewstep.denoiser.watch import watching
from fewstep.grid import Grid, as_grid
from fewstep.loop.drive import drive, noises_of, outputs
from fewstep.loop.ends import finite_start, in_range, start_state, takes
from fewstep.loop.excess import warn_of_excess
from fewstep.loop.memory import Room, in_pieces
from fewstep.loop.parallel import Parallel, picard
from fewstep.loop.plan import SMALL, Plan, on_raw_outputs
from fewstep.loop.seen import Seen
from fewstep.loop.tabulate import as_driver, left_of, right_for, sample_shape, table_of, times_of
from fewstep.loop.walk import After, Callback, look_at, walk
from fewstep.noise import Noise, NoiseSource, noise_source
from fewstep.process import Process
from fewstep.process.base import Memory, recalling
from fewstep.solver import Solver
from fewstep.solver.driver.base import Driver, Outcome, ends_of
from fewstep.tableau import Tableau
from fewstep.terminal import telling
from fewstep.words import like, typed, warn

__all__ = ["same_model", "sample", "solve"]

REMEMBERED = 2**14  # numbers of a process, beyond which a table's runs begin to remember anew


@typed
def solve(
    denoiser: Denoises,
    process: Process,
    *,
    solver: str | Solver | Driver | Callable[[], Any] | Tableau | Path | None = None,
    grid: str | Tensor | Grid = "default",
    steps: int | None = None,
    nfe: int | None = None,
    shape: tuple[int, ...] | None = None,
    x: Tensor | None = None,
    seed: int = 0,
    first: int = 0,
    noise: Noise | NoiseSource | torch.Generator | Tensor | None = None,
    given: Mapping[str, Tensor] | None = None,
    final: str = "zero",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    callback: Callback | None = None,
    after: After | None = None,
    differentiable: bool = False,
    parallel: Parallel | bool | int | None = None,
    memory: int | str | Room | None = None,
    compile: bool = False,
    progress: bool | Callable[[float], object] = True,
) -> Outcome:
    """Samples, and what became of each: its network calls, its steps, its table, how it ended.

    The arguments are those of `sample`. For a driver `steps` is the most network calls a sample may take, and an
    explicit grid is its two ends; a driver that is given its grid (predictor-corrector) takes both as a solver does.
    A sample that does not reach the end, or is not finite there, is no error here and takes no other with it: see
    `Outcome.status` and `Outcome.sentence`. With final="denoise" the states are in data space: x0_hat for the samples
    that reached the end; the others are there without that call.
    """
    takes("callback", callback, 4)
    takes("after", after, 3)
    driver, source = as_driver(solver), noise_source(noise, seed, first)
    if (driver is not None or parallel) and (callback is not None or after is not None or differentiable):
        raise ValueError("got callback, after or differentiable with a driver or parallel: they have none, leave it")
    denoiser, seen = Seen.of(as_denoiser(denoiser), process)
    same_process(denoiser, process)
    shape, dtype, device = seen.wanted(shape, x, dtype, device)
    if driver is not None:
        if parallel or given:
            raise ValueError(f"got parallel or given for {type(driver).__name__}, a driver: these are for tables")
        table, (driver, times) = None, _placed(driver, process, grid, steps, nfe, final)
        right_for(denoiser, process, driver)
    else:
        table = table_of(denoiser, process, solver, sample_shape(process, shape, x), grid=grid, steps=steps, nfe=nfe,
                         final=final)  # fmt: skip
        times = table.grid
        same_model(denoiser, table)
        warn_of_excess(table)
    with recollection(table, process):
        begins = float(times[0]) if table is None else table.rows[0].t
        start = start_state(process, begins, shape, seen.start(x, begins), source, dtype, device)
        start, drawn = start if x is not None else seen.drawn(start, begins), source.snapshot()
        made = in_pieces(compiled(denoiser) if compile else denoiser, memory, start)
        how: dict[str, Any] = {"given": given, "callback": seen.callback(callback), "after": seen.after(after),
                               "compile": compile, "differentiable": differentiable}  # fmt: skip
        calls = 100 if table is None or parallel else table.nfe + (final == "denoise")
        mode = nullcontext() if differentiable else torch.no_grad()
        with mode, telling(progress, "sampling", total=calls) as tell:
            if table is None:
                assert driver is not None
                outcome = drive(driver, made, process, start, times, source, tell)
            elif parallel:
                window = Parallel.of(parallel)
                window = window.within(made.room.left, start) if memory else window
                outcome = picard(table, made, start, source, window, given=given, tell=tell)
            else:
                done = count(1)
                state = on_table(table, made, start, source, tick=lambda: tell(next(done) / calls), **how)
                every = torch.full((len(state),), table.nfe)
                outcome = Outcome.over(times, state, every, table.nfe, lambda _: table)
            if final == "denoise":
                outcome = _denoised(outcome, made, process, float(times[-1]), differentiable=differentiable)
    replay = table is not None and not outcome.ok
    why = partial(_first_fault, table, made, start, source, drawn, final=final, **how) if replay else None
    made_by = None if table is None else table.solver
    state = in_range(denoiser, process, outcome.state, float(times[-1]), solver=made_by, final=final)
    if final != "denoise":
        state = seen.state(state, outcome.times if table is None else float(times[-1]))
    return replace(outcome, state=state, why=why)


@like(solve)
def sample(denoiser: Denoises, process: Process, **options: Any) -> Tensor:
    """Samples: from noise, or from a given state, down the grid.

    Args:
        denoiser: (z, t) -> x0_hat in data space, a tensor (or a mapping with "x0" and further heads). The state it is
            given is valid during the call only: later rows may be written into it.
        process: the process.
        solver, grid, steps, nfe, final: see `tabulate`. Encoding, likelihoods and comparisons want final="state"; with
            "denoise" the one more call for x0_hat is made here. Drivers that choose their times end where they end.
        shape: (batch, *data shape); the start is drawn from N(0, Sigma) at the grid's first time.
        x: the start state (batch, *state shape) instead of a shape; its dtype and device are kept.
        seed: the seed of the counter-based noise; sample i of a batch is number `first` + i of that seed.
        first: the number of the batch's first sample.
        noise: a `torch.Generator`, a ready tensor (n_noises, batch, *state) or a noise source instead of the seed.
        given: tensors for the table's given rows besides the start.
        dtype: of the state when `shape` is given (float32 or float64), whatever the network's is.
        device: where the state lives when `shape` is given.
        callback: called after each row that makes x0_hat with (row, t, state, x0_hat); treat the tensors as
            read-only.
        after: the hook (row, t, z) -> z on every made row.
        differentiable: keeps autograd through the run (and the history out of place).
        parallel: True, a window or a `Parallel`: run the table by Picard iteration, many calls at a time.
        memory: the most that the process may hold, in bytes or as "4GiB": a call of the network takes as many samples
            of the batch as fit, see `fewstep.loop.memory`. None is the whole batch at once.
        compile: run the network, and rows of large states, through `torch.compile`; the first call takes a minute.
        progress: show a bar on a terminal when the run takes longer than two seconds; or a function that is told the
            share of the run that is done, 0 to 1.

    Drivers (adaptive steps) take the grid's two ends, and `steps` as the most network calls of a sample; `solve` says
    what became of each sample where this raises a ValueError.

    Returns:
        The state (batch, *state shape) at the last time of the grid; `process.to_data` takes it to data space. With
        final="denoise", x0_hat in data space. Samples of the default solver end within the range that a network tells
        of its data, as loaded pictures do, on scalar processes (`fewstep.loop.ends`); no gradient passes where an
        entry was set into it.

    Raises:
        ValueError: one sentence, for arguments that make no sense and for samples that do not reach the end.
    """
    finite_start(options.get("x"))
    return solve(denoiser, process, **options).checked()


def recollection(table: Tableau | None, process: Process) -> AbstractContextManager[None]:
    """Where the numbers of a scalar process, which runs of a table ask for again and again, are remembered with it."""
    if table is None or process.kind != "scalar":
        return nullcontext()
    memory = table.notes.get("memory")
    if memory is None or memory.process is not process or len(memory.answers) > REMEMBERED:
        times = [table.rows[0].t, *(row.at for row in table.rows if row.at is not None)]
        memory = table.notes["memory"] = Memory(process, times)
    return recalling(memory)


def on_table(
    table: Tableau,
    denoiser: Denoiser,
    start: Tensor,
    source: NoiseSource,
    *,
    given: Mapping[str, Tensor] | None,
    callback: Callback | None,
    after: After | None,
    differentiable: bool,
    compile: bool,
    tick: Callable[[], object] | None = None,
    look: bool = False,
) -> Tensor:
    """The end of a table's run from a start; with `look` a ValueError at the first row that is not finite."""
    grad = denoiser.needs_grad
    if not differentiable and (start.numel() > SMALL or start.device.type != "cpu"):  # below, it saves nothing
        table = on_raw_outputs(table, denoiser)
    plan = Plan.of(
        table, denoiser, like=start, reuse=not differentiable, compile=compile, grad=grad and not differentiable
    )
    watched = callback is not None or after is not None  # who may use the tensors outside: no inference tensors
    plain = grad or watched or compile  # nor where a graph would be made for those and another one for the start
    mode = nullcontext() if differentiable else torch.no_grad() if plain else torch.inference_mode()
    with mode, watching():
        noises = noises_of(table, source, tuple(start.shape), start.dtype, start.device)
        z = walk(plan, start, noises, given=given, callback=callback, after=after, tick=tick, look=look)
    return z.clone() if z.is_inference() and not torch.is_inference_mode_enabled() else z


def _first_fault(
    table: Tableau, denoiser: Denoiser, start: Tensor, source: NoiseSource, drawn: Any, *, final: str, **how: Any
) -> str:
    """The first that is not finite in a replay of a table's run, from a source as a snapshot has it."""
    source.restore(drawn)
    how["callback"] = None
    t = float(table.grid[-1])
    try:
        z = on_table(table, denoiser, start, source, look=True, **how)
        if final == "denoise":
            with torch.no_grad():
                d = outputs(denoiser, table.process, z, t)["x0"]
            look_at(d, f"the network returned values that are not finite in the last call (t = {t:g})")
    except ValueError as error:
        return str(error)
    return "a replay of the run was finite: is the denoiser deterministic?"


def same_model(denoiser: Any, table: Tableau) -> None:
    """Warns of a table that was fitted to other weights than those it is run with, where both tell."""
    theirs = (table.card or {}).get("weights")
    if theirs and (ours := fingerprint(denoiser)) and ours != theirs:
        warn(
            f"got a table fitted to the weights {theirs[:12]} for the weights {ours[:12]}: it runs, but its numbers "
            "were made for another model; fit one to this model with `fewstep fit`"
        )


def _placed(
    driver: Driver, process: Process, grid: str | Tensor | Grid, steps: int | None, nfe: int | None, final: str
) -> tuple[Driver, Tensor]:
    """The driver with its limit of calls, and the grid it is given."""
    label, (steps, nfe) = type(driver).__name__, left_of(final, steps, nfe)
    if not driver.own_times:
        if isinstance(grid, str) or (callable(grid) and not isinstance(grid, Tensor)):
            return driver, times_of(driver, process, grid, steps, nfe, final)
        if steps is not None or nfe is not None:
            raise ValueError("got steps or nfe with an explicit grid, whose length says the steps: give one of them")
        return driver, as_grid(grid, process, None)
    if nfe is not None:
        raise ValueError(
            f"got nfe={nfe} for {label}, which takes as many network calls as it needs: give steps, the most it may"
        )
    if isinstance(grid, str) and grid == "default":
        grid = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
    if isinstance(grid, str) or callable(grid) and not isinstance(grid, Tensor):
        raise ValueError(f"got a grid by name for {label}, which chooses its own times: leave it out or give two ends")
    times = as_grid(grid, process, None)
    if len(times) != 2:
        raise ValueError(f"got a grid of {len(times)} times for {label}, which chooses its own: give its two ends")
    return driver if steps is None else driver.limited(steps), times


def _denoised(
    outcome: Outcome, denoiser: Denoiser, process: Process, t: float, *, differentiable: bool = False
) -> Outcome:
    """The outcome in data space, with x0_hat for the samples that reached the end."""
    good = torch.tensor([status == "reached the end" for status in outcome.status])
    if outcome.ok:
        data = outputs(denoiser, process, outcome.state, t, differentiable=differentiable)["x0"]
    else:
        data, index = process.to_data(outcome.state), good.nonzero().flatten()
        if len(index):
            rows = index.to(data.device)
            d = outputs(of_samples(denoiser, index, len(good)), process, outcome.state[rows], t)["x0"]
            data = data.index_copy(0, rows, d)
    status = tuple(b if a == "reached the end" else a for a, b in zip(outcome.status, ends_of(data), strict=True))
    calls, rounds = outcome.calls + good, outcome.rounds + bool(good.any())
    return replace(outcome, state=data, status=status, calls=calls, rounds=rounds)
