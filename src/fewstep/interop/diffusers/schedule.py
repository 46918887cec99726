"""A table with the time steps of its calls, which a pipeline goes through: the whole, or the rest from a call on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.base import Denoiser, Denoises
from fewstep.denoiser.guidance.threshold import Thresholded
from fewstep.interop.diffusers.convention import Convention
from fewstep.solver import DDIM, Solver
from fewstep.tableau import Form, Tableau, Through, Writer
from fewstep.tableau.row import ONES, Row

__all__ = ["Schedule", "clipping_of", "from_row"]

Clipping = Callable[[Denoises], Denoiser]


def clipping_of(config: Mapping[str, Any], convention: Convention) -> Clipping | None:
    """What clips x0_hat as a scheduler's config says; refused here, where it is given."""
    clipping = None
    if config["thresholding"]:  # at most to 1, whatever the largest value
        most = config["sample_max_value"]
        limits = {"quantile": config["dynamic_thresholding_ratio"], "limit": max(most, 1.0) if most > 0 else most}
        clipping = partial(Thresholded, **limits)
    elif config["clip_sample"]:
        clipping = partial(Thresholded, quantile=None, bound=config["clip_sample_range"])
    if clipping is not None:
        clipping(convention.denoiser(torch.tanh))
    return clipping


@dataclass(frozen=True, eq=False)
class Schedule:
    """A table, and its calls as the network is told of them."""

    table: Tableau  # begins at a row that is evaluated
    convention: Convention  # of the network
    clipping: Clipping | None = None  # what makes a denoiser whose x0_hat is clipped of one

    @staticmethod
    def of(table: Tableau, convention: Convention, clipping: Clipping | None = None) -> Schedule:
        """The schedule of a table; one that reads what a pipeline does not have is refused."""
        table = _begun_at_a_call(table)
        if extra := [name for name in table.given if name not in ("start", ONES)]:
            raise ValueError(f"got a table with a given row {extra[0]!r}, which no pipeline has: use fewstep.sample")
        return Schedule(table, convention, clipping)

    @cached_property
    def times(self) -> Tensor:
        """(nfe,) float64 times of the calls."""
        return torch.tensor([row.at for row in self.table.rows if row.at is not None], dtype=torch.float64)

    @cached_property
    def timesteps(self) -> Tensor:
        """(nfe,) float64 time steps of the calls."""
        return self.convention.timestep(self.times)

    def time(self, asked: Tensor) -> Tensor:
        """Float64 times (n,) of time steps; those of the calls are exact."""
        found = self.convention.time(asked)
        for label, at in zip(self.timesteps.float().double(), self.times, strict=True):
            found = torch.where(asked == label, at, found)
        return found


def _begun_at_a_call(table: Tableau) -> Tableau:
    """The table from its first evaluated row on, which becomes the start.

    A table that adds noise before its first call starts noisier instead: a start of pure noise has the same law.
    """
    first = next(k for k, row in enumerate(table.rows) if row.at is not None)
    if first == 0:
        return table
    if any(s[0] == "z" and s[1] < first for row in table.rows[first + 1 :] for s, _ in row.form):
        raise ValueError("got a table that reads its start after it has moved on from it: a pipeline cannot run it")
    drawn = 1 + max((s[-1] for s, _ in table.rows[first].form if s[0] == "xi"), default=-1)

    def renumbered(s: Any) -> Any:
        if s[0] == "xi":
            return "xi", s[1] - drawn
        return (s[0], s[1] - first, s[2], s[3] - drawn) if s[0] == "root" else (s[0], s[1] - first, *s[2:])

    start, *rest = table.rows[first:]
    rows = [Row(start.t, start.at, Form({}), "start", start.to)]
    rows += [replace(row, form=Form({renumbered(s): c for s, c in row.form})) for row in rest]
    heads = {(k - first, head): pair for (k, head), pair in table.heads.items()}
    return replace(table, rows=tuple(rows), noises=table.noises[drawn:], heads=heads)


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
    table, wanted, at = schedule.table, schedule.timesteps[begin:], schedule.times[begin:].tolist()
    grid = table.grid.tolist()
    for skipped in range(len(at)):
        for i in (i for i, t in enumerate(grid[:-1]) if t == at[skipped]):
            rest = _after_ddim(at[:skipped], solver, table, grid[i:])
            made = Schedule.of(rest, schedule.convention, schedule.clipping)
            if len(made.timesteps) == len(wanted) and torch.equal(made.timesteps, wanted):
                return made
    rest = _after_ddim(at, None, table, [grid[-1]])
    return Schedule.of(rest, schedule.convention, schedule.clipping)


def _after_ddim(times: list[float], solver: Solver | None, table: Tableau, grid: list[float]) -> Tableau:
    """DDIM from time to time, z_s = M_s D + R_s R_t^-1 (z_t - M_t D), then the solver on the grid."""
    if not times and solver is not None:
        return solver.tabulate(table.process, torch.tensor(grid, dtype=torch.float64))
    process: Any = table.process
    w = Writer(process, torch.tensor([*times, *grid], dtype=torch.float64))
    z = w.start
    for t, s in zip(times, [*times[1:], grid[0]], strict=True):
        d, ratio = w.call(z, t), process.sigma(s) / process.sigma(t)
        z = w.row(ratio * z + (process.alpha(s) - ratio * process.alpha(t)) * d, s)
    if solver is not None:
        solver.write(Through(w).between(z, grid))
    return w.table(solver or DDIM())
