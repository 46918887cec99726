"""Grids: where the steps fall. A grid is a decreasing 1-D float64 tensor of process times, noise to data.

Every grid runs from `process.t_max` to `process.t_min` and is called as `grid(process, steps) -> (steps + 1,)`.
At an end where the log-SNR is infinite (flow) a grid in log-SNR or rho is spread over the finite range that a
thousandth of the time axis leaves, and its end points are then put on the true ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fewstep.process.base import Process
from fewstep.words import pick, whole

__all__ = ["GRIDS", "as_grid", "default", "karras", "log_snr", "power", "uniform"]

Grid = Callable[[Process, int], Tensor]


def uniform(process: Process, steps: int) -> Tensor:
    """Equal steps in time."""
    return power(process, steps, exponent=1.0)


def power(process: Process, steps: int, *, exponent: float = 2.0) -> Tensor:
    """Equal steps in t^(1/exponent): exponent 2 is the quadratic grid, denser near data."""
    ends = (process.t_max ** (1 / exponent), process.t_min ** (1 / exponent))
    return _exact_ends(process, torch.linspace(*ends, steps + 1, dtype=torch.float64) ** exponent)


def log_snr(process: Process, steps: int) -> Tensor:
    """Equal steps in log-SNR."""
    lam = torch.linspace(*_range(process), steps + 1, dtype=torch.float64)
    return _exact_ends(process, process.inverse_log_snr(lam))


def karras(process: Process, steps: int, *, rho: float = 7.0) -> Tensor:
    """Equal steps in (sigma/alpha)^(1/rho), EDM's grid.

    References: Karras et al. 2022, eq. 5, https://arxiv.org/abs/2206.00364.
    """
    low, high = _range(process)
    level = torch.linspace(math.exp(-low / rho), math.exp(-high / rho), steps + 1, dtype=torch.float64)
    return _exact_ends(process, process.inverse_log_snr(-rho * level.log()))


def default(process: Process, steps: int) -> Tensor:
    """The process's own: `process.default_grid`."""
    return GRIDS[process.default_grid](process, steps)


GRIDS: dict[str, Grid] = {
    "default": default,
    "uniform": uniform,
    "power": power,
    "log-snr": log_snr,
    "karras": karras,
}


def as_grid(grid: str | Tensor | Grid, process: Process, steps: int | None) -> Tensor:
    """The times of a named grid, of a grid function, or of a tensor that is used exactly as given, or refused."""
    if isinstance(grid, str):
        grid = pick(GRIDS, grid, "grid")
    if callable(grid) and not isinstance(grid, Tensor):
        if steps is None:
            raise ValueError("got a grid by name without a number of steps: give steps= or nfe=")
        grid = grid(process, whole("steps", steps))
    given = grid if isinstance(grid, Tensor) else torch.from_numpy(np.array(grid, dtype=np.float64))
    times = given.detach().cpu()
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"got a grid of shape {tuple(times.shape)}: give a 1-D tensor of at least two times")
    times = times.to(torch.float64)
    if not bool(times.isfinite().all()):
        where = int((~times.isfinite()).nonzero()[0])
        raise ValueError(f"got a grid whose entry {where} is {float(times[where])}: every time must be finite")
    if not bool((times.diff() < 0).all()):
        where = int((times.diff() >= 0).nonzero()[0])
        what = "repeats" if times[where] == times[where + 1] else "rises"
        raise ValueError(
            f"got a grid that {what} at entry {where + 1} ({float(times[where]):g}, then "
            f"{float(times[where + 1]):g}): times must fall from noise to data"
        )
    process.check_times(times)
    return times


def _range(process: Process) -> tuple[float, float]:
    """The log-SNR at both ends, moved inside by a thousandth of the time axis where it is infinite."""
    inset = 1e-3 * (process.t_max - process.t_min)
    low, high = float(process.log_snr(process.t_max)), float(process.log_snr(process.t_min))
    low = low if math.isfinite(low) else float(process.log_snr(process.t_max - inset))
    return low, high if math.isfinite(high) else float(process.log_snr(process.t_min + inset))


def _exact_ends(process: Process, times: Tensor) -> Tensor:
    times[0], times[-1] = process.t_max, process.t_min
    return times
