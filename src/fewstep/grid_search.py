r"""GITS: a grid found on the user's own model, by dynamic programming over the cost of each possible step.

Trajectories of the probability-flow ODE bend alike whatever they end in, so a few of them say where steps should be
short. A teacher runs over a fine grid t_0 > .. > t_N and keeps every state and data prediction; the cost of a step
from t_i to t_j is how far one first-order step from the teacher's own state lands from the teacher's state there,

$$ c_{ij} = \operatorname{mean} \| z_j - (A_{ij} z_i + B_{ij} D_i) \| / |M_j|, \qquad
   V_1(i) = c_{iN}, \quad V_m(i) = \min_{k > i}\, c_{ik} + \gamma V_{m-1}(k) $$

and the best n steps follow V_n(0). gamma above 1 counts early errors less than late ones.
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
from fewstep.process.operator import apply, magnitude
from fewstep.solver import Multistep, Solver
from fewstep.solver.exponential import first_order

__all__ = ["gits", "step_costs"]


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
        denoiser: (z, t) -> x0_hat.
        process: the process.
        shape: (batch, *data shape) of the teacher's samples; 64 or more of them.
        points: intervals of the teacher's grid; a grid of at most so many steps can be cut out of it.
        grid: the teacher's grid.
        gamma: the factor of later costs, 1.15 in the authors' code.
        teacher: one call a step at the grid's own times; `Multistep(points=2)` when none is given.
        options: passed to `sample` (seed, dtype, device).

    References: Chen, Zhou, Wang, Shen, Lyu, On the trajectory regularity of ODE-based diffusion sampling, 2024,
    https://arxiv.org/abs/2405.11326; the authors' code, https://github.com/zju-pi/diff-sampler.
    """
    if not gamma > 0:
        raise ValueError(f"got gamma={gamma}: give a number above 0")
    times = as_grid(grid, process, points)
    found = step_costs(denoiser, process, times, shape=shape, teacher=teacher or Multistep(points=2), **options)
    last = len(times) - 1

    def cut(on: Process, steps: int) -> Tensor:
        if on != process:
            raise ValueError(f"got a grid found on {process} for {on}: search again on that process")
        if steps > last:
            raise ValueError(f"got steps={steps} of a grid that was cut out of {last}: give at most {last}")
        return times[_cheapest(found, steps, gamma)]

    return cut


def step_costs(
    denoiser: Any, process: Process, times: Tensor, *, shape: tuple[int, ...], teacher: Solver, **options: Any
) -> Tensor:
    """c_ij of the module docstring, (len(times), len(times)); infinite where j <= i."""
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
    costs = torch.full((len(times), len(times)), math.inf, dtype=torch.float64)
    for i, j in itertools.combinations(range(len(times)), 2):
        carry, gain = first_order(process, "data", float(times[i]), float(times[j]))
        off = states[j] - apply(carry, states[i]) - apply(gain, predictions[i])
        costs[i, j] = float(off.flatten(1).norm(dim=1).mean()) / magnitude(process.M(float(times[j])))
    return costs


def _cheapest(costs: Tensor, steps: int, gamma: float) -> list[int]:
    """Indices of the cheapest way from the first time to the last in exactly `steps` steps."""
    value, choices = costs[:, -1], []
    for _ in range(steps - 1):
        value, choice = (costs + gamma * value).min(dim=1)
        choices.append(choice.tolist())
    way = [0]
    for choice in reversed(choices):
        way.append(choice[way[-1]])
    return [*way, len(costs) - 1]
