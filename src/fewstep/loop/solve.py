"""`solve`: a run that says what became of each sample: `sample` with an `Outcome` instead of a tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.base import Denoises, as_denoiser, of_samples, same_process
from fewstep.denoiser.compiled import compiled
from fewstep.grid import Grid, as_grid
from fewstep.loop.door import (
    as_driver,
    informed,
    intervals,
    on_table,
    one_less,
    recollection,
    same_model,
    sample_shape,
    tabulate,
)
from fewstep.loop.drive import drive, predict
from fewstep.loop.excess import warn_of_excess
from fewstep.loop.memory import Room, in_pieces
from fewstep.loop.parallel import Parallel, picard
from fewstep.loop.range import in_range
from fewstep.loop.start import start_state
from fewstep.noise import Noise, NoiseSource, noise_source
from fewstep.process import Process
from fewstep.solver import Solver
from fewstep.solver.driver.base import Driver, Outcome, ends_of
from fewstep.tableau import Tableau
from fewstep.terminal import telling
from fewstep.words import typed

__all__ = ["solve"]


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
    final: str = "state",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    parallel: Parallel | bool | int | None = None,
    memory: int | str | Room | None = None,
    compile: bool = False,
    progress: bool | Callable[[float], object] = True,
) -> Outcome:
    """Samples, and what became of each: its network calls, its steps, its table, how it ended.

    The arguments are those of `sample`. For a driver `steps` is the most network calls a sample may take, and an
    explicit grid is its two ends; a driver that is given its grid (predictor-corrector) takes both as a solver does.
    A sample that does not reach the end, or is not finite there, is no error here and takes no other with it: see
    `Outcome.status` and `Outcome.sentence`.

    Args:
        parallel: for a table: True, a window or a `Parallel` runs it by Picard iteration.
        final: with "denoise" the states are in data space: x0_hat for the samples that reached the end; the others are
            there without that call.
    """
    if final not in ("state", "denoise"):
        raise ValueError(f"got final={final!r}: choose state or denoise")
    driver, source = as_driver(solver), noise_source(noise, seed, first)
    denoiser = as_denoiser(denoiser)
    same_process(denoiser, process)
    budget = one_less(final, steps, nfe)
    denoiser = compiled(denoiser) if compile else denoiser
    if driver is not None:
        if parallel or given:
            raise ValueError(f"got parallel or given for {type(driver).__name__}, a driver: these are for tables")
        driver, times = _placed(driver, process, grid, **budget)
        start = start_state(process, float(times[0]), shape, x, source, dtype, device)
        denoiser = in_pieces(denoiser, memory, start)
        with torch.no_grad(), telling(progress, "sampling") as tell:
            outcome = drive(driver, denoiser, process, start, times, source, tell)
    else:
        table = tabulate(informed(solver, denoiser, sample_shape(process, shape, x)), process, grid=grid, **budget)
        times, start = table.grid, start_state(process, table.rows[0].t, shape, x, source, dtype, device)
        same_model(denoiser, table)
        warn_of_excess(table)
        denoiser = in_pieces(denoiser, memory, start)
        if parallel:
            how = Parallel.of(parallel).within(denoiser.room.left, start) if memory else Parallel.of(parallel)
            with torch.no_grad(), telling(progress, "sampling") as tell:
                outcome = picard(table, denoiser, start, source, how, given=given, tell=tell)
        else:
            with recollection(table, process):
                state = on_table(
                    table, denoiser, start, source, given=given, compile=compile, progress=progress, strict=False
                )
            outcome = _sequential(table, state)
    outcome = outcome if final == "state" else _denoised(outcome, denoiser, process, float(times[-1]))
    made = None if driver is not None else table.solver
    state = in_range(denoiser, process, outcome.state, float(times[-1]), solver=made, final=final)
    return replace(outcome, state=state)


def _placed(
    driver: Driver, process: Process, grid: str | Tensor | Grid, *, steps: int | None, nfe: int | None
) -> tuple[Driver, Tensor]:
    """The driver with its limit of calls, and the grid it is given."""
    label = type(driver).__name__
    if not driver.own_times:
        if isinstance(grid, str) or (callable(grid) and not isinstance(grid, Tensor)):
            return driver, as_grid(grid, process, intervals(driver, process, steps, nfe))
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


def _denoised(outcome: Outcome, denoiser: Denoises, process: Process, t: float) -> Outcome:
    """The outcome in data space, with x0_hat for the samples that reached the end."""
    good = torch.tensor([status == "reached the end" for status in outcome.status])
    data, index = process.to_data(outcome.state), good.nonzero().flatten()
    if len(index):
        rows = index.to(data.device)
        with torch.no_grad():
            chosen = denoiser if outcome.ok else of_samples(denoiser, index, len(good))
            d = process.from_coordinates(predict(chosen, process, outcome.state[rows], t))
        data = data.index_copy(0, rows, d)
    status = tuple(b if a == "reached the end" else a for a, b in zip(outcome.status, ends_of(data), strict=True))
    calls, rounds = outcome.calls + good, outcome.rounds + bool(len(index))
    return replace(outcome, state=data, status=status, calls=calls, rounds=rounds)


def _sequential(table: Tableau, state: Tensor) -> Outcome:
    """The outcome of a table that was run row by row."""
    every = torch.ones(len(state), dtype=torch.int64)
    return Outcome(
        state=state,
        times=table.grid[-1] * every.double(),
        status=ends_of(state),
        calls=table.nfe * every,
        accepted=(len(table.grid) - 1) * every,
        rejected=0 * every,
        rounds=table.nfe,
        tables=lambda _: table,
    )
