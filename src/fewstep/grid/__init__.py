"""Grids: where the steps fall. A grid is a decreasing 1-D float64 tensor of process times, noise to data.

Every grid runs from `process.t_max` to `process.t_min` and is called as `grid(process, steps) -> (steps + 1,)`.
At an end where the log-SNR is infinite (flow) a grid in log-SNR or rho is spread over the finite range that a
thousandth of the time axis leaves, and its end points are then put on the true ends. `to_zero` makes a grid end at
sigma = 0, `flow_shift` moves one towards noise; `fewstep.gits` finds one for a model.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fewstep.grid.published import ays
from fewstep.grid.spacing import (
    Grid,
    beta,
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
from fewstep.words import pick, whole

__all__ = [
    "GRIDS",
    "Grid",
    "as_grid",
    "ays",
    "beta",
    "default",
    "dynamic_mu",
    "exponential",
    "flow_shift",
    "karras",
    "kl_optimal",
    "linear_quadratic",
    "log_snr",
    "logistic",
    "power",
    "sgm_uniform",
    "to_zero",
    "uniform",
]


BEYOND = 4.0  # in log-SNR: how far above t_max a time may lie


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


def as_grid(grid: str | Tensor | Grid, process: Process, steps: int | None) -> Tensor:
    """The times of a named grid, of a grid function, or of a tensor that is used exactly as given, or refused."""
    if isinstance(grid, str):
        grid = pick(GRIDS, grid, "grid")
    if callable(grid) and not isinstance(grid, Tensor):
        if steps is None:
            raise ValueError("got a grid by name without a number of steps: give steps= or nfe=")
        grid = grid(process, whole("steps", steps))
    try:
        given = grid if isinstance(grid, Tensor) else torch.from_numpy(np.array(grid, dtype=np.float64))
    except (TypeError, ValueError):
        raise ValueError(f"got a {type(grid).__name__} as grid: give a name, a function or a tensor of times") from None
    times = given.detach().cpu()
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"got a grid of shape {tuple(times.shape)}: give a 1-D tensor of at least two times")
    times = times.to(torch.float64)
    values = times.tolist()
    for where, t in enumerate(values):
        if not math.isfinite(t):
            raise ValueError(f"got a grid whose entry {where} is {t}: every time must be finite")
    for where, (t, s) in enumerate(pairwise(values)):
        if not s < t:
            raise ValueError(
                f"got a grid that {'repeats' if t == s else 'rises'} at entry {where + 1} ({t:g}, then {s:g}): times "
                "must fall from noise to data"
            )
    process.check_times(times)
    if float(process.log_snr(values[0])) < float(process.log_snr(process.t_max)) - BEYOND:
        raise ValueError(
            f"got time {values[0]:g} for {process}, whose times end at {process.t_max:g}, beyond all noise that "
            "a network has seen: give times of the process, as (index + 1) / N, not a network's indices"
        )
    return times
