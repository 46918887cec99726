r"""Where a pipeline's steps fall: what the config asks for, a grid of this library, or what is handed in, exactly.

Levels are diffusers' "sigmas": sigma/alpha, sigma on EDM, t on flow. Their published spacings, from a to b in n steps:

- karras: (a^{1/rho} + i/(n - 1) (b^{1/rho} - a^{1/rho}))^rho, rho = 7 (Karras et al. 2022, eq. 5);
- exponential: even in the logarithm;
- beta: b + (a - b) q, with q quantiles of a Beta(0.6, 0.6) law (Lee et al. 2024, https://arxiv.org/abs/2407.12173).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fewstep.grid import as_grid
from fewstep.grid.spacing import beta_quantile
from fewstep.interop.diffusers.convention import Convention
from fewstep.loop.tabulate import intervals, own_of, times_of
from fewstep.solver import Solver
from fewstep.tableau import MadeFor, Tableau
from fewstep.words import pick

__all__ = ["asked_for", "table_for"]

SPACINGS = ("karras", "exponential", "beta")


def table_for(
    config: Mapping[str, Any],
    convention: Convention,
    solver: Solver | None,
    student: MadeFor | None,
    calls: int | None,
    timesteps: Sequence[float] | Tensor | None,
    sigmas: Sequence[float] | Tensor | None,
    mu: float | None,
) -> tuple[Tableau, Convention]:
    """The table of a run, a student's own or the solver's, and how its network is told of its times."""
    if convention.steps == "share" and timesteps is None and is_ramp(sigmas):
        calls, sigmas = len(torch.as_tensor(sigmas)), None
    given = not (timesteps is sigmas is None)
    if student is None or (given and student.rows != "own"):
        assert solver is not None
        times, convention = asked_for(config, convention, solver, calls, timesteps, sigmas, mu)
        return solver.tabulate(convention.process, times), convention
    if student.rows == "own" and (given or calls not in student.by_calls):
        allowed = " or ".join(map(str, sorted(student.by_calls)))
        raise ValueError(
            f"got other steps than the {allowed} of the table this scheduler runs, which has its own times: give "
            f"num_inference_steps={allowed}"
        )
    return own_of(student, convention.process, steps=calls), convention


def asked_for(
    config: Mapping[str, Any],
    convention: Convention,
    solver: Solver,
    calls: int | None,
    timesteps: Sequence[float] | Tensor | None,
    sigmas: Sequence[float] | Tensor | None,
    mu: float | None,
) -> tuple[Tensor, Convention]:
    """The times of a run, and how its network is told of them; see `FewStepScheduler.set_timesteps`."""
    both = timesteps is not None and sigmas is not None
    if timesteps is sigmas is None and calls == 0:
        raise ValueError("got num_inference_steps=0: give a whole number of at least 1")
    if both and convention.steps != "share" or timesteps is sigmas is None and not calls:
        raise ValueError(
            f"got {'timesteps and sigmas' if both else 'no steps'}: give one of num_inference_steps, timesteps, sigmas"
        )
    if sigmas is not None:
        times = from_levels(config, convention, sigmas, mu)
    elif timesteps is not None:
        t, last = convention.time(_flat(timesteps)), torch.tensor([convention.process.t_min], dtype=torch.float64)
        to_zero = _final(config, convention) == "zero" or bool(t[-1] <= last)
        times = torch.cat([t, _zero(convention) if to_zero else last])
    else:
        times = spaced(config, convention, solver, calls or 0, mu)
    chosen = timesteps is sigmas is None, sigmas is None or convention.steps == "share" and bool(_flat(sigmas)[-1] > 0)
    times = as_grid(inside(times, convention, solver, chosen), convention.process, None)
    if timesteps is not None and sigmas is not None:
        convention = replace(convention, labels=labelled(times, timesteps))
    return times, convention


def is_ramp(levels: Any) -> bool:
    """Whether a flow's levels are those that pipelines make of a number of steps."""
    given = _flat([] if levels is None else levels)
    return len(given) > 0 and torch.allclose(given, ramp(len(given)), rtol=0, atol=1e-6)


def spaced(
    config: Mapping[str, Any], convention: Convention, solver: Solver, calls: int, mu: float | None = None
) -> Tensor:
    """Times on which the solver takes at most `calls` calls: a named grid, the config's levels, or our default.

    The run ends at sigma = 0 unless the config says otherwise or the solver cannot end there.
    """
    zero = _final(config, convention) == "zero" and solver.reaches_zero(convention.process)
    steps = intervals(solver, calls, to_zero=zero, label="num_inference_steps")
    process, name = convention.process, config.get("grid")
    if mu is not None and convention.steps != "share":
        raise ValueError(f"got mu={mu} for a scheduler that is no flow's and shifts nothing: leave it out")
    spacing = _spacing(config)
    if name is None and (spacing is not None or convention.steps == "share"):
        if convention.steps == "share":
            count = convention.count if config.get("flow_shift") is not None else None
            levels, zero = shifted(config, ramp(steps, count), mu), True
        else:
            levels = convention.level(torch.tensor([process.t_max, process.t_min], dtype=torch.float64))
        if spacing is not None:
            low, high = (config.get(name) for name in ("sigma_min", "sigma_max"))
            ends = levels[0].item() if high is None else high, levels[-1].item() if low is None else low
            levels = _levels(spacing, *ends, steps + (not zero), config.get("rho") or 7.0)
            if convention.steps == "share" and high is not None:
                levels = levels / (1 + levels)  # they are sigma / alpha
        times = convention.time_at(levels)
        return torch.cat([times, _zero(convention)]) if zero else times
    return times_of(solver, process, name or "default", calls, None, _final(config, convention))


def ramp(steps: int, count: int | None = None) -> Tensor:
    """A flow's levels before shift: from 1, n steps to 0 as pipelines have it, or to 1/N as `flow_shift` schedulers."""
    last = 1 / steps if count is None else 1 - (1 - 1 / count) * (steps - 1) / steps
    return torch.linspace(1, last, steps, dtype=torch.float64)


def labelled(times: Tensor, timesteps: Sequence[float] | Tensor) -> tuple[tuple[float, float], ...]:
    """Pairs (time, time step) for a network that is told other time steps than those of its times, and (0, 0)."""
    told = _flat(timesteps).tolist()
    if len(told) != len(times) - 1:
        raise ValueError(f"got {len(told)} timesteps and {len(times) - 1} sigmas: give as many of one as of the other")
    return tuple(zip(times.tolist(), [*told, 0.0], strict=True))


def from_levels(
    config: Mapping[str, Any], convention: Convention, levels: Sequence[float] | Tensor, mu: float | None = None
) -> Tensor:
    """Times of given sigmas. On flow they are shifted as the config says, as diffusers does, and zero is added."""
    given = _flat(levels)
    if convention.steps == "share":
        return torch.cat([shifted(config, given[given > 0], mu), _zero(convention)])
    return torch.where(given == 0, _zero(convention), convention.time_at(given))


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
    named = asked[0] if asked else config.get("sigma_schedule")
    return None if named is None else pick(dict.fromkeys(SPACINGS, named), named, "sigma_schedule")


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


def _final(config: Mapping[str, Any], convention: Convention) -> str:
    """How a run ends: at sigma = 0, where the config does not say otherwise; a flow always."""
    kind, to_one = config.get("final_sigmas_type"), config.get("set_alpha_to_one")
    wanted = kind == "zero" or bool(to_one) or kind is to_one is None
    return "zero" if wanted or convention.steps == "share" else "state"


def _zero(convention: Convention) -> Tensor:
    """The time at which sigma is 0."""
    return torch.tensor([max(0.0, convention.process.domain[0])], dtype=torch.float64)


def inside(times: Tensor, convention: Convention, solver: Solver, chosen: tuple[bool, bool]) -> Tensor:
    """The times, with singular ends that the solver refuses moved to the network's first and last time step.

    Only ends that were `chosen` here move, the first and the last: given ones stay and are refused with the table. Nor
    does the first for a network that predicts noise, which says nothing of the data near alpha = 0.
    """
    process, inset, times = convention.process, 1 / convention.count, times.clone()
    if len(times) < 2:
        return times
    first, last = chosen[0] and convention.predicts != "noise", chosen[1]
    if first and "alpha=0" not in solver.ends and process.alpha(float(times[0])) == 0:
        times[0] = max(times[0].item() - inset, (times[0] + times[1]).item() / 2)
    if last and "sigma=0" not in solver.ends and process.sigma(float(times[-1])) == 0:
        times[-1] = min(max(process.t_min, 0.0) or inset, times[-2].item() / 2)
    return times


def _flat(numbers: Sequence[float] | Tensor) -> Tensor:
    return torch.as_tensor(numbers, dtype=torch.float64, device="cpu").flatten()
