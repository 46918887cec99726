"""Grids: where the steps fall. A grid is a decreasing 1-D float64 tensor of process times, noise to data.

Every grid runs from `process.t_max` to `process.t_min` and is called as `grid(process, steps) -> (steps + 1,)`. Where
the log-SNR is infinite at an end (flow), a grid in log-SNR or rho is spread over what a thousandth of the time axis
leaves, and its end points are put on the true ends.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fewstep.grid.published import ays
from fewstep.grid.spacing import (
    Grid,
    beta,
    bridge,
    dynamic_mu,
    exponential,
    flow_shift,
    karras,
    kl_optimal,
    linear_quadratic,
    log_snr,
    logistic,
    power,
    sgm_uniform,
    to_zero,
    uniform,
)
from fewstep.process.base import Process
from fewstep.process.bridge import Bridge
from fewstep.process.clock import falling
from fewstep.words import pick, whole

__all__ = [
    "GRIDS", "Grid", "as_grid", "ays", "beta", "bridge", "default", "dynamic_mu", "exponential", "flow_shift", "karras",
    "kl_optimal", "linear_quadratic", "log_snr", "logistic", "power", "sgm_uniform", "to_zero", "uniform"
]  # fmt: skip


def default(process: Process, steps: int) -> Tensor:
    """The process's own: `process.default_grid`."""
    return GRIDS[process.default_grid](process, steps)


def shifted(process: Process, steps: int) -> Tensor:
    """Equal steps in time, shifted towards noise by 3 (Stable Diffusion 3); `flow_shift` makes others."""
    return flow_shift(3.0)(process, steps)


GRIDS: dict[str, Grid] = {
    "default": default,
    "uniform": uniform,
    "power": power,
    "log-snr": log_snr,
    "bridge": bridge,
    "karras": karras,
    "exponential": exponential,
    "beta": beta,
    "sgm-uniform": sgm_uniform,
    "kl-optimal": kl_optimal,
    "logistic": logistic,
    "linear-quadratic": linear_quadratic,
    "ays": ays,
    "flow-shift": shifted,
}


def made(grid: Grid, process: Process, steps: int) -> Tensor:
    """The times of a grid function; on a bridge t_max and those from the boot on, or from the function's own start."""
    if not isinstance(process, Bridge) or process.log_snr(process.t_max) > (first := process.boot(steps)) - 1:
        return grid(process, steps)
    after = replace(process, t_max=float(process.inverse_log_snr(first)))
    rest = grid(after, max(steps - 1, 1))
    if float(rest[0]) > after.t_max * (1 + 1e-9):
        return grid(process, steps)
    if steps == 1:
        return torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
    return torch.cat([rest.new_tensor([process.t_max]), rest])


def as_grid(grid: str | Tensor | Grid, process: Process, steps: int | None) -> Tensor:
    """The times of a named grid, of a grid function, or of a tensor that is used exactly as given, or refused."""
    if isinstance(grid, str):
        grid = pick(GRIDS, grid, "grid")
    if callable(grid) and not isinstance(grid, Tensor):
        if steps is None:
            raise ValueError("got a grid by name without a number of steps: give steps= or nfe=")
        grid = made(grid, process, whole("steps", steps))
    try:
        given = grid if isinstance(grid, Tensor) else torch.from_numpy(np.array(grid, dtype=np.float64))
    except (TypeError, ValueError):
        raise ValueError(f"got a {type(grid).__name__} as grid: give a name, a function or a tensor of times") from None
    return falling(given, process)
