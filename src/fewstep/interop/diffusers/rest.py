"""Runs that begin in the middle: image-to-image at a strength below 1."""

from __future__ import annotations

from typing import Any

import torch

from fewstep.interop.diffusers.schedule import Schedule
from fewstep.solver import DDIM, Solver
from fewstep.tableau import Tableau
from fewstep.tableau.form import Form
from fewstep.tableau.through import Through
from fewstep.tableau.writer import Writer

__all__ = ["from_row"]


def from_row(schedule: Schedule, solver: Solver | None, begin: int) -> Schedule:
    """The rest of a schedule, begun afresh at its call number `begin`, with the same time steps.

    The solver is written again on the rest of the grid. Where the run begins inside one of its steps, what is left of
    that step is taken by DDIM from call to call.
    """
    if solver is None:
        raise ValueError(
            "got a fitted table to begin in the middle (an image's strength below 1): it is made for one whole run; "
            "give a solver, or strength=1"
        )
    table, wanted = schedule.table, schedule.timesteps[begin:]
    at = [table.rows[k].at or 0.0 for k in schedule.calls[begin:]]
    grid = table.grid.tolist()
    for skipped in range(len(at)):
        starts = [i for i, t in enumerate(grid[:-1]) if t == at[skipped]]
        for i in starts:
            rest = _after_ddim(at[:skipped], solver, table, grid[i:])
            made = Schedule.of(rest, schedule.convention, schedule.clipping)
            if len(made.timesteps) == len(wanted) and torch.equal(made.timesteps, wanted):
                return made
    rest = _after_ddim(at, None, table, [grid[-1]])
    return Schedule.of(rest, schedule.convention, schedule.clipping)


def _after_ddim(times: list[float], solver: Solver | None, table: Tableau, grid: list[float]) -> Tableau:
    """DDIM from time to time, then the solver on the grid."""
    if not times and solver is not None:
        return solver.tabulate(table.process, torch.tensor(grid, dtype=torch.float64))
    every = torch.tensor([*times, *grid], dtype=torch.float64)
    w = Writer(table.process, every)
    z = w.start
    for t, s in zip(times, [*times[1:], grid[0]], strict=True):
        d = w.call(z, t)
        z = w.row(_ddim(table.process, t, s, z, d), s)
    if solver is not None:
        solver.write(Through(w).between(z, grid))
    return w.table(solver or DDIM())


def _ddim(process: Any, t: float, s: float, z: Form, d: Form) -> Form:
    """z_s = M_s D + R_s R_t^-1 (z_t - M_t D)."""
    ratio = process.sigma(s) / process.sigma(t)
    return ratio * z + (process.alpha(s) - ratio * process.alpha(t)) * d
