"""Grids over a part of a process's times: from a lower noise level, or down to a time above sigma = 0."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, cast

import torch
from torch import Tensor

from fewstep.grid import Grid, as_grid
from fewstep.process import Process

__all__ = ["between"]


def between(
    process: Process, grid: str | Tensor | Grid, *, high: float | None = None, low: float | None = None
) -> Tensor | Grid:
    """The grid as `tabulate` takes it, with its ends at `high` and `low` where it is named; a tensor stays as given."""
    if not isinstance(grid, str) and (isinstance(grid, Tensor) or not callable(grid)):
        return cast(Tensor, grid)
    part = _narrowed(process, high, low)
    return lambda _, steps: as_grid(grid, part, steps)


def _narrowed(process: Process, high: float | None, low: float | None) -> Process:
    """The same process between other ends."""
    wanted = {"max": high, "min": low}
    names = {f.name for f in fields(cast(Any, process))}
    changes = {}
    for end, value in wanted.items():
        if value is not None and value != getattr(process, f"t_{end}"):
            process.check_times(torch.tensor([value], dtype=torch.float64))
            changes[f"t_{end}" if f"t_{end}" in names else f"sigma_{end}"] = value
    return cast(Process, replace(cast(Any, process), **changes)) if changes else process
