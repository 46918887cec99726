r"""Grids found on the user's own model, by dynamic programming over the cost of each possible step.

Trajectories of the probability-flow ODE bend alike whatever they end in, so a few of them say where steps should be
short. A teacher runs over a fine grid t_0 > .. > t_N and keeps every state and data prediction. GITS: the cost of a
step from t_i to t_j is how far one first-order step from the teacher's own state lands from the teacher's there,

$$ c_{ij} = \operatorname{mean} \| z_j - (A_{ij} z_i + B_{ij} D_i) \| / |M_j|, \qquad
   V_1(i) = c_{iN}, \quad V_m(i) = \min_{k > i}\, c_{ik} + \gamma V_{m-1}(k) $$

and the best n steps follow V_n(0). gamma above 1 counts early errors less than late ones. AYS bounds what the SDE of a
first-order solver loses, the divergence of its path from the exact one; with n = M^T Sigma^-1 M, the signal-to-noise,
it is a sum over steps too, so the same programme finds its minimum (gamma = 1):

$$ c_{ij} = \operatorname{mean} \tfrac12 \int_{t_i}^{t_j} (D_t - D_i)^T\, dn_t\, (D_t - D_i). $$
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from fewstep.grid import Grid, as_grid
from fewstep.loop import sample
from fewstep.process import Process
from fewstep.process.operator import apply, inverse, magnitude, transpose
from fewstep.solver import Multistep, Solver
from fewstep.solver.weights import first_order
from fewstep.stats.trajectory import cheapest
from fewstep.words import inside, typed

__all__ = ["gits", "klub", "path_costs", "step_costs"]


@typed
def gits(
    denoiser: Any,
    process: Process,
    *,
    shape: tuple[int, ...],
    points: int = 60,
    grid: str | Tensor | Grid = "default",
    gamma: float = 1.15,
    teacher: Solver | None = None,
    **options: Any,
) -> Grid:
    """A grid for this model: a function (process, steps) -> times, made of `points` network calls, once.

    Where we differ from the paper: the first-order step is the process's own (DDIM's), so any linear process has such a
    grid, and distances are divided by |M_j|, which on EDM is the paper's distance.

    Args:
        shape: (batch, *data shape) of the teacher's samples; 64 or more of them.
        points: intervals of the teacher's grid; a grid of at most so many steps can be cut out of it.
        grid: the teacher's grid.
        gamma: the factor of later costs, 1.15 in the authors' code.
        teacher: one call a step at the grid's own times; `Multistep(points=2)` when none is given.
        options: passed to `sample` (seed, dtype, device).

    References: Chen, Zhou, Wang, Shen, Lyu, On the trajectory regularity of ODE-based diffusion sampling, 2024,
    https://arxiv.org/abs/2405.11326; the authors' code, https://github.com/zju-pi/diff-sampler.
    """
    inside("gamma", gamma, "(0, inf)")
    times = as_grid(grid, process, points)
    costs = step_costs(denoiser, process, times, shape=shape, teacher=teacher or Multistep(points=2), **options)
    return _cut_out(process, times, costs, gamma)


@typed
def klub(
    denoiser: Any,
    process: Process,
    *,
    shape: tuple[int, ...],
    points: int = 60,
    grid: str | Tensor | Grid = "default",
    teacher: Solver | None = None,
    **options: Any,
) -> Grid:
    """The grid of least divergence of paths on this model (AYS's objective); made and used as `gits`.

    Where we differ from the paper, which descends by Monte Carlo: states are those of the ODE, and the best grid that
    can be cut out of the teacher's is found exactly. The noise at its end must not be zero.

    References: Sabour, Fidler, Kreis, Align your steps, 2024, https://arxiv.org/abs/2404.14507.
    """
    times = as_grid(grid, process, points)
    costs = path_costs(denoiser, process, times, shape=shape, teacher=teacher or Multistep(points=2), **options)
    return _cut_out(process, times, costs, 1.0)


def _cut_out(process: Process, times: Tensor, costs: Tensor, gamma: float) -> Grid:
    """The cheapest grids that can be cut out of one."""
    last = len(times) - 1

    def cut(on: Process, steps: int) -> Tensor:
        if on != process:
            raise ValueError(f"got a grid found on {process} for {on}: search again on that process")
        if steps > last:
            raise ValueError(f"got steps={steps} of a grid that was cut out of {last}: give at most {last}")
        return times[cheapest(costs, steps, gamma)]

    return cut


def step_costs(
    denoiser: Any, process: Process, times: Tensor, *, shape: tuple[int, ...], teacher: Solver, **options: Any
) -> Tensor:
    """c_ij of GITS in the module docstring, (len(times), len(times)); infinite where j <= i."""
    states, predictions = _trajectory(denoiser, process, times, shape=shape, teacher=teacher, **options)
    costs = torch.full((len(times), len(times)), math.inf, dtype=torch.float64)
    for i, j in itertools.combinations(range(len(times)), 2):
        carry, gain = first_order(process, "data", float(times[i]), float(times[j]))
        off = states[j] - apply(carry, states[i]) - apply(gain, predictions[i])
        costs[i, j] = float(off.flatten(1).norm(dim=1).mean()) / magnitude(process.M(float(times[j])))
    return costs


def path_costs(
    denoiser: Any, process: Process, times: Tensor, *, shape: tuple[int, ...], teacher: Solver, **options: Any
) -> Tensor:
    """c_ij of AYS in the module docstring by the trapezoidal rule, (len(times), len(times)); infinite where j <= i."""
    if float(process.log_snr(float(times[-1]))) == math.inf:
        raise ValueError("got a grid that ends without noise, where the divergence of paths is infinite: end earlier")
    _, predictions = _trajectory(denoiser, process, times, shape=shape, teacher=teacher, **options)
    predictions.append(predictions[-1])  # nothing is known at the end; D hardly moves there
    ms = [process.M(t) for t in times.tolist()]
    ns = [transpose(m) * inverse(process.Sigma(t)) * m for m, t in zip(ms, times.tolist(), strict=True)]
    costs = torch.full((len(times), len(times)), math.inf, dtype=torch.float64)
    for i in range(len(times) - 1):
        total, before = 0.0, torch.zeros_like(predictions[0])
        for j in range(i + 1, len(times)):
            after = predictions[j] - predictions[i]
            rise = ns[j] - ns[j - 1]
            total += 0.25 * sum(float((d * apply(rise, d)).sum()) for d in (before, after)) / len(after)
            costs[i, j], before = total, after
    return costs


def _trajectory(
    denoiser: Any, process: Process, times: Tensor, *, shape: tuple[int, ...], teacher: Solver, **options: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """The teacher's states at every time, and its data predictions at all but the last."""
    states: list[Tensor] = []
    predictions: list[Tensor] = []

    def keep(_row: int, _t: float, z: Tensor, d: Tensor) -> None:
        states.append(z.double())
        predictions.append(process.coordinates(d.double()))

    end = sample(denoiser, process, solver=teacher, grid=times, shape=shape, callback=keep, **options)
    states.append(end.double())
    if len(states) != len(times):
        raise ValueError(
            f"got {type(teacher).__name__} as teacher, which takes {len(states) - 1} calls on {len(times) - 1} steps: "
            "give a solver of one call a step"
        )
    return states, predictions
