r"""The table of a run: what a solver writes on a process, a grid and a budget of network calls.

process -> grid -> solver (writes a table, float64, before the run) -> sample (the only loop) -> states
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fewstep.denoiser.base import Denoiser, all_told, as_denoiser, fingerprint, parts
from fewstep.denoiser.network import Wrapped
from fewstep.grid import GRIDS, Grid, as_grid
from fewstep.grid.spacing import ToZero
from fewstep.process import Process
from fewstep.process.base import Memory, recalling
from fewstep.process.bridge import boots
from fewstep.solver import DEFAULT_SOLVERS, DRIVERS, SOLVERS, Default, Solver
from fewstep.solver.base import Outer, calls_of
from fewstep.solver.driver.base import Driver
from fewstep.tableau import MadeFor, Tableau
from fewstep.tableau.kept import kept
from fewstep.words import one_of, pick, placed, typed, whole

__all__ = ["about", "as_driver", "informed", "intervals", "left_of", "own_of", "right_for", "sample_shape", "table_of",
           "tabulate", "times_of"]  # fmt: skip

FINALS = ("zero", "state", "denoise")
STEPS = 10  # the most network calls where none are named


@typed
def tabulate(
    solver: str | Solver | Driver | Callable[[], Any] | Tableau | Path | None,
    process: Process,
    *,
    grid: str | Tensor | Grid = "default",
    steps: int | None = None,
    nfe: int | None = None,
    final: str = "zero",
) -> Tableau:
    """The table of a solver on a process and a grid.

    Args:
        solver: a name in `SOLVERS`, a solver, a table (returned as it is) or a file that `Tableau.save` wrote; None is
            the default of the process's kind, in `DEFAULT_SOLVERS`.
        process: the process.
        grid: a name in `GRIDS`, a function (process, steps) -> times, or a decreasing tensor of times, used as given.
        steps: at most this many network calls (with a named grid; 10 when neither is given).
        nfe: exactly this many network calls, or refused.
        final: how a run ends. "zero": the last time of a grid that leads to the process's last time is moved to
            sigma = 0, where process and solver have such an end; where they have none, and on times that are given,
            it is "state". "state": at the grid's last time, where a little noise is left. "denoise": the same, and one
            call of the number is left for x0_hat there, which the run makes.
    """
    steps, nfe = left_of(final, steps, nfe)
    if isinstance(solver, Path):
        solver = Tableau.load(solver)
    if isinstance(solver, Tableau):
        if grid != "default" or steps is not None or nfe is not None:
            raise ValueError("got a ready table with grid, steps or nfe, which it has already: leave them out")
        if solver.process != process:
            raise ValueError(f"got a table written for {solver.process} to run on {process}: tabulate the solver again")
        return solver
    if solver is None:
        solver = DEFAULT_SOLVERS[process.kind]
    if isinstance(solver, str):
        if solver not in SOLVERS and Path(solver).is_file():
            raise ValueError(f"got solver {solver!r}, which is no name but a file: give Path({solver!r})")
        solver, grid = placed(SOLVERS, solver, grid)
        solver = pick(SOLVERS, solver, "solver")
    solver = solver() if callable(solver) else solver
    if isinstance(solver, Driver):
        solver.tabulate(process, torch.tensor([process.t_max, process.t_min], dtype=torch.float64))
    if not isinstance(solver, Solver):
        raise ValueError(f"got a {type(solver).__name__} as solver: give a name, a Solver, a Tableau or a Path")
    if steps is not None and nfe is not None:
        raise ValueError(f"got steps={steps} and nfe={nfe}: give one of them")
    if isinstance(grid, str):  # of a function it is not known what else it depends on
        key = solver.on(process), grid, GRIDS.get(grid), steps, nfe, final == "zero"
        return kept(key, lambda: _on_made_times(solver, process, grid, steps, nfe, final))
    if callable(grid) and not isinstance(grid, Tensor):
        return _on_made_times(solver, process, grid, steps, nfe, final)
    if steps is not None:
        raise ValueError(f"got steps={steps} with an explicit grid, whose length says the steps: give one of them")
    table = solver.tabulate(process, as_grid(grid, process, None))
    if nfe is not None and table.nfe != nfe:
        raise ValueError(
            f"got nfe={nfe} with a grid on which this solver takes {table.nfe} calls: give nfe={table.nfe}"
        )
    return table


def _on_made_times(
    solver: Solver, process: Process, grid: str | Grid, steps: int | None, nfe: int | None, final: str
) -> Tableau:
    """The table on a grid that is made for as many intervals as the calls allow."""
    low = process.domain[0]
    ends = Memory(process, [process.t_max, process.t_min, *([low] if math.isfinite(low) else ())])
    with recalling(ends) if process.kind == "scalar" else nullcontext():
        table = solver.tabulate(process, times_of(solver, process, grid, steps, nfe, final))
    if table.nfe != nfe if nfe is not None else table.nfe > (steps or STEPS):
        asked = f"nfe={nfe}" if nfe is not None else f"steps={steps or STEPS}"
        raise ValueError(f"got {asked} and a grid function on whose times this solver takes {table.nfe} calls")
    return table


def times_of(
    solver: Solver | Driver, process: Process, grid: str | Grid, steps: int | None, nfe: int | None, final: str
) -> Tensor:
    """The times of a grid that is made for as many intervals as the calls allow, with the end that is wanted."""
    if isinstance(solver, Solver):
        if isinstance(grid, ToZero) and grid.grid is GRIDS["default"]:
            grid = replace(grid, grid=solver.grid("default"))
        grid = solver.grid(grid) if isinstance(grid, str) else grid
    calls, label = (STEPS if steps is None else steps, "steps") if nfe is None else (nfe, "nfe")
    count = partial(intervals, solver, calls, boot=boots(process, process.t_max), label=label)
    there = float(process.log_snr(process.t_min)) == math.inf
    if final == "zero" and not there and solver.reaches_zero(process):
        times = as_grid(grid, process, count(to_zero=True)).tolist()
        if times[-1] == process.t_min:  # any other end is the grid's own
            count(to_zero=True, exact=nfe is not None)
            return torch.tensor([*times[:-1], process.t_zero], dtype=torch.float64)
    return as_grid(grid, process, count(to_zero=there, exact=nfe is not None))


def table_of(
    denoiser: Any,
    process: Process,
    solver: Any,
    shape: Sequence[int],
    *,
    grid: str | Tensor | Grid = "default",
    steps: int | None = None,
    nfe: int | None = None,
    final: str = "zero",
) -> Tableau:
    """The table that a denoiser runs by: of a student its own unless another is asked for, else as `tabulate` says.

    Args:
        denoiser: what is run.
        solver, grid, steps, nfe, final: as in `tabulate`; the default solver is `informed` by the denoiser.
        shape: of one sample, in data space.

    Raises:
        ValueError: also where a student is asked to run by what it was not made for (`fewstep.tableau.MadeFor`).
    """
    brought, asked = list(_brought(denoiser, process)), {"grid": grid, "steps": steps, "nfe": nfe, "final": final}
    made = brought[0] if brought else None
    if made is None or not _is_default(solver) or (made.rows == "any" and (steps or nfe or grid != "default")):
        table = tabulate(informed(solver, denoiser, shape), process, **asked)
    else:
        table = own_of(made, process, **asked)
    _hold(brought, denoiser, table, final)
    return table


def own_of(
    made: MadeFor,
    process: Process,
    *,
    grid: str | Tensor | Grid = "default",
    steps: int | None = None,
    nfe: int | None = None,
    final: str = "zero",
) -> Tableau:
    """The table that a student brings for what is asked, or that its solver writes where it runs in any number."""
    named = isinstance(grid, str) and grid == "default"
    if named and (own := made.of(nfe or steps, final)) is not None:
        return own
    asked = {"grid": made.grid if named else grid, "steps": steps, "nfe": nfe, "final": final}
    if made.rows == "own" and isinstance(asked["grid"], str):
        ask = "".join(f" {name}={value}" for name, value in asked.items() if value not in (None, "default", "zero"))
        raise ValueError(f"got{ask} for {made}: {made.instead}")
    return tabulate(made.solver, process, **asked)


def right_for(denoiser: Any, process: Process, run: Tableau | Driver | str, *, final: str = "zero") -> None:
    """Refuses a table, a driver, or anything else that reads means of the data, where a student's network has none."""
    _hold(_brought(denoiser, process), denoiser, run, final)


def _hold(brought: Iterable[MadeFor], denoiser: Any, run: Tableau | Driver | str, final: str) -> None:
    for made in brought:
        good = made.rows == "any"
        if isinstance(run, Tableau):
            good = made.fits(run, fingerprint(denoiser)) and (final != "denoise" or made.rows != "own")
        if not good:
            what = run if isinstance(run, str) else type(run).__name__
            if isinstance(run, Tableau):
                what = f"a table of {type(run.solver).__name__} in {run.nfe} calls" + " and one more" * (
                    final == "denoise"
                )
            raise ValueError(f"got {what} for {made}: {made.instead}")


def _brought(denoiser: Any, process: Process) -> Iterator[MadeFor]:
    """What the networks in a denoiser were made for, on the process of a run; each once."""
    found = {id(made): made for made in all_told(as_denoiser(denoiser), "made_for", MadeFor)}
    return (made.on(process) for made in found.values())


def sample_shape(process: Process, shape: tuple[int, ...] | None, x: Tensor | None) -> Sequence[int]:
    """The shape of a sample in data space; () where neither a shape nor a start says it."""
    if shape is not None or x is None or x.ndim < 2 or not len(x):
        return shape[1:] if isinstance(shape, tuple | list) else ()
    return process.to_data(x[:1]).shape[1:]


def informed(solver: Any, denoiser: Any, shape: Sequence[int]) -> Any:
    """The default solver, alone or in another, with what a denoiser and the shape of a sample say; others as they are.

    A default whose options are set already is another.
    """
    if _is_default(solver):
        size = math.prod(shape) if shape else Default().size
        return Default(size=max(size, 1), **about(denoiser))
    if isinstance(solver, Outer) and (inside := informed(solver.inside, denoiser, shape)) is not solver.inside:
        inside = replace(inside, guidance=1.0) if "guidance" in solver.heads else inside  # which is taken apart
        return replace(cast(Any, solver), **{solver.field: inside})
    return solver


def _is_default(solver: Any) -> bool:
    """Whether no solver is asked for but the default, as it is."""
    return solver in (None, "default", Default, Default())


def about(denoiser: Any) -> dict[str, Any]:
    """`predicts`, `guidance`, and where they are known `std` and `error`: the options of `fewstep.Default`.

    Each is what the outermost wrapper says that knows it. A shift of the user's own counts as guidance of scale 2.
    """
    found, layer = {}, as_denoiser(denoiser)
    while True:
        found = _own(layer) | found
        first, *others = (*parts(layer), None)
        if first is None or (len(others) > 1 and layer.guidance is None):  # of several, whose word counts is not known
            return found
        layer = first


def _own(denoiser: Denoiser) -> dict[str, Any]:
    """What one of the wrappers says."""
    own: dict[str, Any] = {}
    if denoiser.guidance is not None:
        own["guidance"] = float(denoiser.guidance)
    elif isinstance(denoiser, Wrapped) or denoiser.predicts != "data":
        own["predicts"] = denoiser.predicts
    if isinstance(denoiser, Wrapped):
        own |= {"error": denoiser.error} | ({"std": denoiser.sigma_data} if denoiser.predicts == "edm" else {})
    return own


def as_driver(solver: Any) -> Driver | None:
    """The driver that a name, a driver or what makes one says, or None."""
    made = DRIVERS.get(solver) if isinstance(solver, str) else solver
    made = made() if callable(made) else made
    return made if isinstance(made, Driver) else None


def intervals(
    solver: Solver | Driver, calls: int, *, to_zero: bool, boot: bool = False, exact: bool = False, label: str = "steps"
) -> int:
    """The most grid intervals that take at most so many network calls; with `exact` so many, or refused."""
    count = calls = whole(label, calls)
    while count > 0 and calls_of(solver, count, to_zero=to_zero, boot=boot) > calls:
        count -= 1
    fewer = calls_of(solver, count, to_zero=to_zero, boot=boot) if count else None
    more = calls_of(solver, count + 1, to_zero=to_zero, boot=boot)
    if count == 0:
        raise ValueError(
            f"got {label}={calls} for {type(solver).__name__}, which takes at least {more} calls: give {more}"
        )
    if exact and fewer != calls:
        raise ValueError(
            f"got {label}={calls} for {type(solver).__name__}, which takes {fewer} or {more} calls: give one of them"
        )
    return count


def left_of(final: str, steps: int | None, nfe: int | None) -> tuple[int | None, int | None]:
    """The calls that are left for the steps of a run that ends so: the last one may be spent on x0_hat."""
    one_of("final", final, FINALS)
    if final != "denoise":
        return steps, nfe
    for label, value in (("steps", steps), ("nfe", nfe)):
        if value is not None and whole(label, value) == 1:
            raise ValueError(
                f"got {label}=1 with final='denoise', which spends one call after the table: give at least 2"
            )
    return (None if steps is None else steps - 1), (None if nfe is None else nfe - 1)
