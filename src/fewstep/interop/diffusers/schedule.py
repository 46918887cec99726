"""A table with the time steps of its calls: what a pipeline goes through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.base import Denoiser, Denoises
from fewstep.interop.diffusers.convention import Convention
from fewstep.tableau import Tableau
from fewstep.tableau.form import Form
from fewstep.tableau.row import ONES, Row

__all__ = ["Schedule"]

Clipping = Callable[[Denoises], Denoiser]


@dataclass(frozen=True, eq=False)
class Schedule:
    """A table and the time step of each of its calls, as the network is told it."""

    table: Tableau  # begins at a row that is evaluated
    timesteps: Tensor  # (nfe,) float64 time steps of the calls
    convention: Convention  # of the network
    clipping: Clipping | None = None  # what makes a denoiser whose x0_hat is clipped of one

    @staticmethod
    def of(table: Tableau, convention: Convention, clipping: Clipping | None = None) -> Schedule:
        """The schedule of a table; one that reads what a pipeline does not have is refused."""
        table = _begun_at_a_call(table)
        if extra := [name for name in table.given if name not in ("start", ONES)]:
            raise ValueError(f"got a table with a given row {extra[0]!r}, which no pipeline has: use fewstep.sample")
        at = torch.tensor([row.at for row in table.rows if row.at is not None], dtype=torch.float64)
        return Schedule(table, convention.timestep(at), convention, clipping)

    @property
    def calls(self) -> list[int]:
        """The rows that are evaluated."""
        return [k for k, row in enumerate(self.table.rows) if row.at is not None]


def _begun_at_a_call(table: Tableau) -> Tableau:
    """The table from its first evaluated row on, which becomes the start.

    A table that adds noise before its first call starts noisier instead: a start of pure noise has the same law.
    """
    first = next(k for k, row in enumerate(table.rows) if row.at is not None)
    if first == 0:
        return table
    read = {s for row in table.rows[first + 1 :] for s, _ in row.form}
    if any(s[0] == "z" and s[1] < first for s in read):
        raise ValueError("got a table that reads its start after it has moved on from it: a pipeline cannot run it")
    drawn = 1 + max((s[-1] for s, _ in table.rows[first].form if s[0] == "xi"), default=-1)

    def moved(s: Any) -> Any:
        if s[0] == "xi":
            return "xi", s[1] - drawn
        return (s[0], s[1] - first, s[2], s[3] - drawn) if s[0] == "root" else (s[0], s[1] - first, *s[2:])

    start, *rest = table.rows[first:]
    rows = [Row(start.t, start.at, Form({}), "start", start.to)]
    rows += [replace(row, form=Form({moved(s): c for s, c in row.form})) for row in rest]
    heads = {(k - first, head): pair for (k, head), pair in table.heads.items()}
    return replace(table, rows=tuple(rows), noises=table.noises[drawn:], heads=heads)
