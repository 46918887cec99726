"""Where a fit starts: the published table that is nearest to the teacher, of a few solvers on a few grids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.fitting.freedom import Freedom
from fewstep.fitting.objective import Objective
from fewstep.fitting.search import gits, klub
from fewstep.fitting.teacher import FIRST, Task
from fewstep.grid import GRIDS, Grid
from fewstep.loop import tabulate
from fewstep.loop.tabulate import informed
from fewstep.saved import Saved
from fewstep.solver import SOLVERS, Solver
from fewstep.terminal import Bar
from fewstep.words import pick

__all__ = ["FOUND", "best_start"]

# Deterministic, one call a step, no network output besides the prediction.
_SOLVERS = ("gaussian-split", "gaussian-split-pc", "multistep-2", "multistep-3", "dpmpp-2m", "unipc-2", "unipc-3",
            "ipndm-2")  # fmt: skip
_GRIDS = ("default", "logistic", "power", "karras", "uniform")
FOUND = {"gits": gits, "klub": klub}  # grids found on the model by dynamic programming
_RUNS = 64  # that starts are compared on


def best_start(
    task: Task,
    ends: Tensor,
    distance: Objective,
    *,
    calls: int,
    mode: str,
    solver: str | Solver | None,
    grid: str | Tensor | Grid | Sequence[str] | None,
    final: str,
    path: Path | None,
    about: dict[str, Any],
    progress: bool,
) -> tuple[Freedom, dict[str, str]]:
    """The start that is nearest to the teacher on the first held-out runs, and the names of its solver and grid.

    A named solver, and any grid that is given, is the only one that is tried; grids by name end as `final` says.
    """
    grids = _grids(task, grid, calls)
    named = {name: pick(SOLVERS, name, "solver")() for name in (_SOLVERS if solver is None else (solver,))
             if isinstance(name, str)} or {type(solver).__name__: solver}  # fmt: skip
    tried: list[tuple[Freedom, dict[str, str]]] = []
    refused: ValueError | None = None
    for label, one in named.items():
        for where, times in grids.items():
            try:
                end = "state" if where == "given" else final
                nfe = None if isinstance(times, Tensor) else calls
                table = tabulate(one, task.process, grid=times, nfe=nfe, final=end)
                assert table.solver is not None
                freedom = Freedom(solver=table.solver, process=task.process, grid=table.grid, mode=mode)
                if freedom.calls != calls:
                    raise ValueError(f"got steps={calls} and a start that takes {freedom.calls} calls: give it those")
                tried.append((freedom, {"solver": label, "grid": where}))
            except ValueError as error:
                refused = error
    if not tried:
        raise refused or ValueError("got no solver to start from: give one, as 'multistep-3'")
    if len(tried) == 1:
        return tried[0]
    saved = Saved(path, {**about, "tried": [(names, freedom.grid.tolist()) for freedom, names in tried]})
    errors = saved.read().get("errors", torch.zeros(0, dtype=torch.float64)).tolist()
    runs = slice(task.samples, task.samples + min(_RUNS, task.held_out))
    with Bar(len(tried) - len(errors), "choosing a start", shown=progress) as bar:
        for freedom, _ in tried[len(errors) :]:
            errors.append(math.inf)  # of a start that blows up
            with suppress(ValueError):
                errors[-1] = float(distance(task.run(freedom.fitted(freedom.origin), runs).cpu(), ends[runs]))
            saved.write({"errors": torch.tensor(errors, dtype=torch.float64)}, now=len(errors) == len(tried))
            bar.advance()
    return tried[min(range(len(errors)), key=errors.__getitem__)]


def _grids(task: Task, grid: str | Tensor | Grid | Sequence[str] | None, calls: int) -> dict[str, Any]:
    """The grids to try, by name."""
    names = _GRIDS if grid is None else tuple(grid) if isinstance(grid, tuple | list) else (grid,)
    runs = min(task.samples, task.batch)
    grids: dict[str, Any] = {}
    for one in names:
        if not isinstance(one, str):
            grids["given"] = one
        elif one == "default" and grid is None:  # of the default solver as it is for this network
            grids[one] = informed(None, task.conditioned(slice(0, 1)), task.shape).grid(one)
        elif one not in FOUND:
            grids[one] = pick(GRIDS, one, "grid")
        else:
            grids[one] = FOUND[one](
                task.conditioned(slice(0, runs)), task.process, shape=(runs, *task.shape), points=max(60, calls),
                seed=task.seed, first=FIRST, dtype=task.dtype, device=task.device, progress=False,
            )  # fmt: skip
    return grids
