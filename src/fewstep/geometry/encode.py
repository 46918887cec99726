r"""Encode and decode: the probability-flow ODE run from data to noise, and back.

The formulas of a deterministic table hold in both directions: the same solver, written on the reversed grid, carries
data to the noise that decodes to it. A step of DDIM up,

$$ z_t = M_t D(z_s, s) + R_t \epsilon(z_s, s), \qquad s < t, $$

is DDIM inversion. What the round trip loses falls with the solver's order. Encodings interpolate on the sphere:

$$ \mathrm{slerp}(a, b; w) = \frac{\sin((1 - w) \theta)}{\sin\theta} a + \frac{\sin(w \theta)}{\sin\theta} b, \qquad
   \cos\theta = \frac{a \cdot b}{|a| |b|}. $$

References: Song, Meng, Ermon, Denoising diffusion implicit models, 2021, sections 4.3, 5.3 and 5.4,
https://arxiv.org/abs/2010.02502.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fewstep.denoiser.base import Denoises
from fewstep.grid import Grid, as_grid
from fewstep.likelihood.density import NOISE
from fewstep.likelihood.lift import data_time, lift
from fewstep.loop import sample, tabulate
from fewstep.noise import Noise
from fewstep.process import Process
from fewstep.process.bridge import boots
from fewstep.solver import Solver
from fewstep.tableau import Tableau
from fewstep.words import typed

__all__ = ["between", "decode", "encode", "slerp"]

AnySolver = str | Solver | Callable[[], Solver] | Tableau | Path | None


@typed
def encode(
    denoiser: Denoises,
    process: Process,
    x: Tensor | None = None,
    *,
    z: Tensor | None = None,
    solver: AnySolver = None,
    grid: str | Tensor | Grid = "default",
    steps: int | None = None,
    nfe: int | None = None,
    seed: int = 0,
    first: int = 0,
) -> Tensor:
    """The noise that decodes to data: the state at the grid's first time, (batch, *state).

    Args:
        x: data (batch, *shape), read as the state at the grid's last time; on CLD its velocity is drawn (see
            `fewstep.likelihood.lift`).
        z: the state there instead.
        solver: a deterministic one that writes a table; None is the process's default.
        grid: as for `sample`, noise to data; it is run through from its end. A named one ends where sigma > 0: at
            t_min, or a thousandth of the time axis above it; and begins short of a bridge's pinned end, at log-SNR -6.
        steps, nfe: see `tabulate`.
        seed: of the velocity.
        first: the number of the batch's first sample.
    """
    if (x is None) == (z is None):
        raise ValueError("got data and a state: give one" if x is not None else "got nothing to encode: give x or z")
    down = _table(process, solver, grid, steps, nfe)
    if float(process.log_snr(float(down.grid[-1]))) == math.inf:
        raise ValueError(
            f"got a grid that ends at t = {float(down.grid[-1]):g}, where sigma = 0 and a state has no noise to read "
            f"back: end it at {data_time(process):g}, or name a grid"
        )
    assert down.solver is not None
    up = down.solver.tabulate(process, down.grid.flip(0))
    if x is not None:
        eps = Noise(seed, first).normal("velocity", 0, tuple(x.shape), dtype=torch.float64).to(x)
        z, _ = lift(process, x, float(up.grid[0]), eps)
    return sample(denoiser, process, solver=up, x=z)


@typed
def decode(
    denoiser: Denoises,
    process: Process,
    z: Tensor,
    *,
    solver: AnySolver = None,
    grid: str | Tensor | Grid = "default",
    steps: int | None = None,
    nfe: int | None = None,
) -> Tensor:
    """The data of an encoding: `sample` from z on the grid that `encode` takes with the same arguments, to data."""
    return process.to_data(sample(denoiser, process, solver=_table(process, solver, grid, steps, nfe), x=z))


def _table(
    process: Process, solver: AnySolver, grid: str | Tensor | Grid, steps: int | None, nfe: int | None
) -> Tableau:
    """The deterministic table from noise to data."""
    high = float(process.inverse_log_snr(NOISE)) if boots(process, process.t_max) else None
    grid = grid if isinstance(solver, Tableau | Path) else between(process, grid, low=data_time(process), high=high)
    table = tabulate(solver, process, grid=grid, steps=steps, nfe=nfe, final="state")
    if boots(process, float(table.grid[0])):
        raise ValueError(
            f"got a grid from t = {float(table.grid[0]):g}, the end y of {type(process).__name__}, where a state says "
            f"nothing of the data: start it at {high:g}, or name a grid"
        )
    if table.noises:
        raise ValueError(
            f"got {type(table.solver).__name__}, which adds noise: an encoding wants a deterministic solver, as ddim "
            "or multistep-pc-3"
        )
    if table.solver is None:
        raise ValueError("got a table without its solver, which cannot be written upwards: give the solver and grid")
    return table


@typed
def slerp(a: Tensor, b: Tensor, weight: float | Tensor) -> Tensor:
    """Spherical interpolation of two batches of encodings, sample by sample: a at 0, b at 1.

    A 1-D tensor of weights gives one batch for each: (len(weight), batch, *state). Where a and b are parallel it is
    linear.
    """
    if a.shape != b.shape:
        raise ValueError(f"got encodings of shape {tuple(a.shape)} and {tuple(b.shape)}: give two of the same")
    w = torch.as_tensor(weight, dtype=torch.float64, device=a.device).reshape(-1, *(1,) * a.ndim)
    x, y = a.flatten(1).to(torch.float64), b.flatten(1).to(torch.float64)
    cos = torch.nn.functional.cosine_similarity(x, y, dim=1).reshape(-1, *(1,) * (a.ndim - 1))
    theta = cos.clamp(-1, 1).acos()
    flat = theta.sin() < 1e-6
    sin = torch.where(flat, 1.0, theta.sin())
    left = torch.where(flat, 1 - w, ((1 - w) * theta).sin() / sin)
    right = torch.where(flat, w, (w * theta).sin() / sin)
    found = (left * a + right * b).to(a.dtype)
    return found if isinstance(weight, Tensor) and weight.ndim else found[0]


def between(
    process: Process, grid: str | Tensor | Grid, *, high: float | None = None, low: float | None = None
) -> Tensor | Grid:
    """The grid as `tabulate` takes it, with its ends at `high` and `low` where it is named; a tensor stays as given."""
    if not isinstance(grid, str) and (isinstance(grid, Tensor) or not callable(grid)):
        return cast(Tensor, grid)
    names, changes = {f.name for f in fields(cast(Any, process))}, {}
    for end, value in {"max": high, "min": low}.items():
        if value is not None and value != getattr(process, f"t_{end}"):
            process.check_times(torch.tensor([value], dtype=torch.float64))
            changes[f"t_{end}" if f"t_{end}" in names else f"sigma_{end}"] = value
    part = cast(Process, replace(cast(Any, process), **changes)) if changes else process
    return lambda _, steps: as_grid(grid, part, steps)
