r"""Analytic-DPM's optimal trajectory: the times at which a number of steps loses least, by dynamic programming.

With the optimal variance the bound on the likelihood loses, in the step from t to s and a coordinate,

$$ \tfrac12 \log \frac{\sigma^{*2}}{\tau^2}, \qquad \sigma^{*2} = \tau^2 + J^2\, \Gamma_t $$

(tau^2 the posterior variance, J and Gamma as in `fewstep.solver.sde.analytic`), and the losses of a path add up.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.process.base import Process
from fewstep.solver.statistics import Statistics
from fewstep.words import typed

__all__ = ["analytic_grid", "cheapest", "losses"]


@typed
def analytic_grid(
    statistics: Statistics,
    process: Process,
    steps: int,
    *,
    candidates: int = 256,
    half_range: float = math.inf,
    corrected: bool = False,
) -> Tensor:
    """The grid of `steps` steps with the least loss under the optimal variance; `partial(analytic_grid, s)` is a grid.

    Args:
        statistics: with eps2.
        process: a scalar process; the grid runs from its t_max to its t_min.
        steps: at least 1.
        candidates: among how many times, uniform in log-SNR, the inner ones are chosen. A step into sigma = 0, where
            no noise is added, has no loss: there the last noisy time is the candidate of the highest log-SNR.
        half_range, corrected: as in `Analytic`.

    References: Bao, Li, Zhu, Zhang, Analytic-DPM, 2022, section 4, https://arxiv.org/abs/2201.06503.
    """
    if process.kind != "scalar":
        raise ValueError(
            f"got {type(process).__name__} ({process.kind}): the optimal trajectory is of scalar processes"
        )
    if not 1 <= steps < candidates:
        raise ValueError(f"got steps={steps} among {candidates} candidates: give from 1 to {candidates - 1} steps")
    low, high = (float(process.log_snr(t)) for t in (process.t_max, process.t_min))
    to_zero = high == float("inf")
    low, high = max(low, float(statistics.log_snr[0])), min(high, float(statistics.log_snr[-1]))
    times = process.inverse_log_snr(torch.linspace(low, high, candidates, dtype=torch.float64))
    times[0] = process.t_max
    if not to_zero:
        times[-1] = process.t_min
    elif steps == 1:
        return torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
    grid = times[cheapest(losses(statistics, process, times, half_range, corrected=corrected), steps - to_zero, 1.0)]
    return torch.cat([grid, grid.new_tensor([process.t_min])]) if to_zero else grid


def losses(
    statistics: Statistics, process: Process, times: Tensor, half_range: float = math.inf, *, corrected: bool = False
) -> Tensor:
    """(n, n): entry [i, j] is the loss of the step from times[i] to times[j > i], infinite for the others."""
    alpha, sigma = (torch.as_tensor(f(times)) for f in (process.M, process.R))
    read = lambda t: statistics.data_variance(process, float(t), half_range=half_range, corrected=corrected)  # noqa: E731
    gamma = torch.tensor([read(t) for t in times], dtype=torch.float64)
    a_t, a_s, v_t, v_s = alpha[:, None], alpha[None], sigma[:, None] ** 2, sigma[None] ** 2
    snr = a_t**2 * v_s / (a_s**2 * v_t)  # of t to that of s
    lost = a_s**2 * (1 - snr) * gamma[:, None] / v_s  # J = a_s (1 - snr), tau^2 = v_s (1 - snr)
    return torch.where(torch.ones_like(lost).triu(1) > 0, 0.5 * torch.log1p(lost.clamp(min=0)), torch.inf)


def cheapest(costs: Tensor, steps: int, gamma: float) -> list[int]:
    """The cheapest way from the first time to the last in `steps` steps, as indices; later costs are times gamma."""
    value, choices = costs[:, -1], []
    for _ in range(steps - 1):
        value, choice = (costs + gamma * value).min(dim=1)
        choices.append(choice.tolist())
    way = [0]
    for choice in reversed(choices):
        way.append(choice[way[-1]])
    return [*way, len(costs) - 1]
