r"""Short runs: Boomerang (up to a partial noise level and down again) and ODE-Jump (down a part and denoise).

Boomerang samples near a data point: z_t = M_t x0 + R_t eps at a moderate t, then down the ODE (or SDE) to data. How far
it moves grows with t.

ODE-Jump leaves the sampling trajectory early and returns D(z_t, t): along the ODE the denoised path reaches its end
before the states do.

References: Luzi et al., Boomerang: local sampling on image manifolds using diffusion models, 2022,
https://arxiv.org/abs/2210.12100; Chen et al., A geometric perspective on diffusion models, 2023,
https://arxiv.org/abs/2305.19947.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.denoiser.base import Denoises, as_denoiser
from fewstep.geometry.encode import AnySolver, between
from fewstep.grid import Grid
from fewstep.loop import sample, tabulate
from fewstep.loop.seen import Seen
from fewstep.noise import Noise
from fewstep.process import Process
from fewstep.tableau import Tableau
from fewstep.words import inside, typed

__all__ = ["boomerang", "jump"]


@typed
def boomerang(
    denoiser: Denoises,
    process: Process,
    x0: Tensor,
    *,
    t: float,
    solver: AnySolver = None,
    grid: str | Tensor | Grid = "default",
    steps: int | None = None,
    nfe: int | None = None,
    seed: int = 0,
    first: int = 0,
) -> Tensor:
    """Data near x0 (batch, *shape): noised to the level of t, and sampled down from there to t_min.

    Args:
        x0: data (batch, *shape).
        t: the time up to which noise is added, above t_min and where sigma > 0.
        solver: any that writes a table; None is the process's default.
        grid: by name, over the times from t to t_min; or times that start at t.
        steps, nfe: see `tabulate`.
        seed: of the noise; sample i is number `first` + i.
        first: the number of the batch's first sample.
    """
    if not process.t_min < t <= process.t_max:
        raise ValueError(f"got t={t}: give a time in ({process.t_min:g}, {process.t_max:g}]")
    table = tabulate(solver, process, grid=between(process, grid, high=t), steps=steps, nfe=nfe, final="state")
    if float(table.grid[0]) != t:
        raise ValueError(f"got t={t} and a grid that starts at {float(table.grid[0]):g}: start the grid at t")
    shape = (len(x0), *process.state_shape(tuple(x0.shape[1:])))
    z = process.diffuse(x0, t, Noise(seed, first).normal("boomerang", 0, shape, dtype=x0.dtype, device=x0.device))
    z = Seen.of(as_denoiser(denoiser), process)[1].state(z, t)
    return process.to_data(sample(denoiser, process, solver=table, x=z, seed=seed, first=first))


@typed
def jump(
    denoiser: Denoises,
    process: Process,
    *,
    share: float = 0.8,
    solver: AnySolver = None,
    grid: str | Tensor | Grid = "default",
    steps: int | None = None,
    nfe: int | None = None,
    shape: tuple[int, ...] | None = None,
    x: Tensor | None = None,
    seed: int = 0,
    first: int = 0,
) -> Tensor:
    """ODE-Jump: the first `share` of a run's steps, then the data prediction there, in data space.

    One more call than the steps taken. The other arguments are those of `sample`, for the whole run.

    Args:
        share: of the grid's intervals that are run, in (0, 1]; rounded to a whole number of at least one.
    """
    inside("share", share, "(0, 1]")
    whole = tabulate(solver, process, grid=grid, steps=steps, nfe=nfe, final="state")
    if isinstance(solver, Tableau) or whole.solver is None:
        raise ValueError("got a ready table to jump out of: give its solver and grid")
    kept = max(round(share * (len(whole.grid) - 1)), 1)
    table = whole.solver.tabulate(process, whole.grid[: kept + 1])
    d = sample(denoiser, process, solver=table, shape=shape, x=x, seed=seed, first=first, final="denoise")
    return d.to(torch.float32 if x is None else x.dtype)
