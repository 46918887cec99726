r"""Where a pipeline's steps fall: what the config asks for, a grid of this library, or what is handed in, exactly.

Levels are diffusers' "sigmas": sigma/alpha, sigma on EDM, t on flow. Their published spacings, from a to b in n steps:

- karras: (a^{1/rho} + i/(n - 1) (b^{1/rho} - a^{1/rho}))^rho, rho = 7 (Karras et al. 2022, eq. 5);
- exponential: even in the logarithm;
- beta: b + (a - b) q, with q quantiles of a Beta(0.6, 0.6) law (Lee et al. 2024, https://arxiv.org/abs/2407.12173).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.grid import GRIDS, to_zero
from fewstep.grid.spacing import beta_quantile
from fewstep.interop.diffusers.convention import Convention
from fewstep.solver import Solver
from fewstep.words import pick, whole

__all__ = ["from_levels", "from_timesteps", "spaced"]

SPACINGS = ("karras", "exponential", "beta")


def spaced(
    config: Mapping[str, Any], convention: Convention, solver: Solver, calls: int, mu: float | None = None
) -> Tensor:
    """Times on which the solver takes at most `calls` calls: a named grid, the config's levels, or our default.

    The run ends at sigma = 0 where the config asks for it and the solver can end there.
    """
    zero = _ends_at_zero(config, convention) and "sigma=0" in solver.ends
    steps = _intervals(solver, whole("num_inference_steps", calls), zero)
    process, name = convention.process, config.get("grid")
    if mu is not None and (name is not None or not config.get("use_dynamic_shifting")):
        raise ValueError(f"got mu={mu} for a scheduler that shifts by no mu: set use_dynamic_shifting, or leave it out")
    spacing = _spacing(config)
    if name is None and (spacing is not None or convention.steps == "share"):
        if convention.steps == "share":
            levels = shifted(config, torch.linspace(1, 1 / steps, steps, dtype=torch.float64), mu)
            zero = True
        else:
            ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
            levels = convention.level(ends)
        if spacing is not None:
            levels = _levels(spacing, levels[0].item(), levels[-1].item(), steps + (not zero), config.get("rho") or 7.0)
        times = convention.time_at(levels)
        times = torch.cat([times, _zero(convention)]) if zero else times
    else:
        grid = pick(GRIDS, name or "default", "grid")
        times = (to_zero(grid, append=False) if zero else grid)(process, steps)
    return _inside(times, convention, solver) if convention.steps == "share" else times


def from_levels(
    config: Mapping[str, Any], convention: Convention, levels: Sequence[float] | Tensor, mu: float | None = None
) -> Tensor:
    """Times of given sigmas. On flow they are shifted as the config says, as diffusers does, and zero is added."""
    given = torch.as_tensor(levels, dtype=torch.float64, device="cpu").flatten()
    if convention.steps == "share":
        return torch.cat([shifted(config, given[given > 0], mu), _zero(convention)])
    t = convention.time_at(given)
    return torch.where(given == 0, _zero(convention), t)


def from_timesteps(config: Mapping[str, Any], convention: Convention, timesteps: Sequence[float] | Tensor) -> Tensor:
    """Times of given time steps and the end: sigma = 0 where the config asks for it, else the process's last time."""
    t = convention.time(torch.as_tensor(timesteps, dtype=torch.float64, device="cpu").flatten())
    zero, last = _zero(convention), torch.tensor([convention.process.t_min], dtype=torch.float64)
    return torch.cat([t, zero if _ends_at_zero(config, convention) or t[-1] <= last else last])


def shifted(config: Mapping[str, Any], levels: Tensor, mu: float | None) -> Tensor:
    """Flow times moved towards noise, t' = s t / (1 + (s - 1) t), and stretched to end at `shift_terminal`."""
    dynamic = config.get("use_dynamic_shifting")
    if dynamic and mu is None:
        raise ValueError("got no mu for a scheduler with use_dynamic_shifting: give set_timesteps(..., mu=...)")
    if dynamic:
        s = math.exp(mu or 0.0) if config.get("time_shift_type", "exponential") == "exponential" else mu or 0.0
    else:
        s = next((config[k] for k in ("shift", "flow_shift") if config.get(k) is not None), 1.0)
    levels = s * levels / (1 + (s - 1) * levels)
    if terminal := config.get("shift_terminal"):
        levels = 1 - (1 - levels) * (1 - terminal) / (1 - levels[-1]) if levels[-1] < 1 else levels
    return levels


def _spacing(config: Mapping[str, Any]) -> str | None:
    asked = [name for name in SPACINGS if config.get(f"use_{name}_sigmas")]
    if len(asked) > 1:
        raise ValueError(f"got {' and '.join(f'use_{name}_sigmas' for name in asked)}: give one of them")
    return asked[0] if asked else config.get("sigma_schedule")


def _levels(spacing: str, high: float, low: float, count: int, rho: float) -> Tensor:
    ramp = torch.linspace(0, 1, count, dtype=torch.float64)
    if spacing == "karras":
        levels = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    elif spacing == "exponential":
        levels = torch.exp(math.log(high) + ramp * (math.log(low) - math.log(high)))
    else:
        levels = low + (high - low) * beta_quantile(1 - ramp, 0.6, 0.6)
    levels[-1:] = low
    levels[:1] = high
    return levels


def _intervals(solver: Solver, calls: int, zero: bool) -> int:
    """The most grid intervals on which the solver takes at most so many calls."""
    steps = next((n for n in range(calls, 0, -1) if solver.calls(n, to_zero=zero) <= calls), 0)
    if not steps:
        least = solver.calls(1, to_zero=zero)
        raise ValueError(
            f"got num_inference_steps={calls} for {type(solver).__name__}, which takes at least {least} network calls: "
            f"give {least}"
        )
    return steps


def _ends_at_zero(config: Mapping[str, Any], convention: Convention) -> bool:
    wanted = config.get("final_sigmas_type") == "zero" or bool(config.get("set_alpha_to_one"))
    return wanted or convention.steps == "share"


def _zero(convention: Convention) -> Tensor:
    """The time at which sigma is 0."""
    return torch.tensor([max(0.0, convention.process.domain[0])], dtype=torch.float64)


def _inside(times: Tensor, convention: Convention, solver: Solver) -> Tensor:
    """Flow times, their singular ends moved to the network's first and last step for solvers that refuse them."""
    inset, times = 1 / convention.count, times.clone()
    if "alpha=0" not in solver.ends and times[0] == 1:
        times[0] = 1 - inset
    if "sigma=0" not in solver.ends and times[-1] == 0:
        times[-1] = min(inset, times[-2].item() / 2)
    return times
