"""The schedulers of diffusers, each with the spacings it offers.

A scheduler is made of the process's own betas (1000 times, evenly spaced), is given noise predictions, and steps as in
a pipeline; the level the network is told is the scheduler's own, `sigmas[step_index]`, not its rounded time step.
`@fewstep` puts the levels of our default grid in place of its own.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from fewstep.bench.contender import Contender
from fewstep.bench.peers.level import SAME_GRID, Levels, peer
from fewstep.denoiser.base import Denoises

__all__ = ["SCHEDULERS", "contenders"]

TRAINED = 1000  # time steps of the process that a scheduler is given

SPACINGS: dict[str, dict[str, Any]] = {
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading"},
    "trailing": {"timestep_spacing": "trailing"},
    "linspace-min": {"timestep_spacing": "linspace", "final_sigmas_type": "sigma_min"},
    "plain": {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "lu": {"use_lu_lambdas": True},
    SAME_GRID: {"final_sigmas_type": "sigma_min"},  # where the scheduler can end at other than zero
}
BY_TIME = ("linspace", "leading", "trailing")
BY_LEVEL = ("karras", "exponential", "beta")


@dataclass(frozen=True)
class Scheduler:
    """A class of `diffusers.schedulers`, its options, the spacings it offers, and the form of its state."""

    module: str
    cls: str
    spacings: tuple[str, ...]
    form: str = "vp"
    options: dict[str, Any] = field(default_factory=dict)


def _multistep(order: int, **options: Any) -> Scheduler:
    spacings = (*BY_TIME, "linspace-min", *BY_LEVEL, "lu", SAME_GRID)
    options = {"solver_order": order, **options}
    return Scheduler("scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler", spacings, options=options)


def _unipc(order: int, kind: str) -> Scheduler:
    spacings = (*BY_TIME, "linspace-min", *BY_LEVEL, SAME_GRID)
    options = {"solver_order": order, "solver_type": kind}
    return Scheduler("scheduling_unipc_multistep", "UniPCMultistepScheduler", spacings, options=options)


SCHEDULERS: dict[str, Scheduler] = {
    "ddim": Scheduler("scheduling_ddim", "DDIMScheduler", ("leading", "trailing"), options={"clip_sample": False}),
    "pndm": Scheduler("scheduling_pndm", "PNDMScheduler", ("leading", "trailing"), options={"skip_prk_steps": True}),
    "dpm++2m": _multistep(2),
    "dpm++2m-heun": _multistep(2, solver_type="heun"),
    "dpm++3m": _multistep(3),
    "dpm++2s": Scheduler(
        "scheduling_dpmsolver_singlestep",
        "DPMSolverSinglestepScheduler",
        ("plain", *BY_LEVEL, SAME_GRID),
        options={"lower_order_final": True},
    ),
    "unipc-2": _unipc(2, "bh2"),
    "unipc-3": _unipc(3, "bh2"),
    "unipc-bh1-2": _unipc(2, "bh1"),
    "deis-2": Scheduler("scheduling_deis_multistep", "DEISMultistepScheduler", (*BY_TIME, *BY_LEVEL, SAME_GRID)),
    "deis-3": Scheduler(
        "scheduling_deis_multistep",
        "DEISMultistepScheduler",
        (*BY_TIME, *BY_LEVEL, SAME_GRID),
        options={"solver_order": 3},
    ),
    "sa-ode": Scheduler(
        "scheduling_sasolver",
        "SASolverScheduler",
        (*BY_TIME, SAME_GRID),
        options={"tau_func": lambda t: 0},
    ),
    "euler": Scheduler("scheduling_euler_discrete", "EulerDiscreteScheduler", ("trailing", *BY_LEVEL), "ve"),
    "heun": Scheduler("scheduling_heun_discrete", "HeunDiscreteScheduler", ("trailing", *BY_LEVEL, SAME_GRID), "ve"),
    "lms": Scheduler("scheduling_lms_discrete", "LMSDiscreteScheduler", ("trailing", *BY_LEVEL, SAME_GRID), "ve"),
}


def contenders() -> list[Contender]:
    """Every scheduler on every spacing."""
    import diffusers

    return [
        peer(f"diffusers/{name}@{spacing}", diffusers.__version__, partial(_march, scheduler, spacing))
        for name, scheduler in SCHEDULERS.items()
        for spacing in scheduler.spacings
    ]


def _march(
    scheduler: Scheduler, spacing: str, denoiser: Denoises, levels: Levels, noise: Tensor, steps: int
) -> tuple[Tensor, str]:
    """A pipeline's loop."""
    cls = getattr(import_module(f"diffusers.schedulers.{scheduler.module}"), scheduler.cls)
    alphas = 1 / (1 + torch.exp(-2 * levels.process.log_snr(levels.times(TRAINED))))
    betas = 1 - alphas / torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
    known = signature(cls.__init__).parameters
    spaced = {key: value for key, value in SPACINGS[spacing].items() if key in known}
    made: Any = cls(num_train_timesteps=TRAINED, trained_betas=betas.numpy(), **scheduler.options, **spaced)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.set_timesteps(steps)
    by_level = hasattr(made, "sigmas")
    if by_level:
        made.set_begin_index(0)
    if spacing == SAME_GRID:
        grid = levels.grid(steps).float()
        twice = len(made.sigmas) > steps + 1  # Heun's keeps a level for either of its calls
        made.sigmas = torch.cat([grid[:1], grid[1:-1].repeat_interleave(2), grid[-1:]]) if twice else grid
        first = float(grid[0])
        x = noise * (first if scheduler.form == "ve" else first / math.hypot(1, first))
    else:
        x = noise * made.init_noise_sigma
    for t in made.timesteps:
        if by_level:
            made.scale_model_input(x, t)  # sets the index
            if made.step_index is None:
                made._init_step_index(t)
            rho = float(made.sigmas[made.step_index])
        else:
            rho = float((1 / made.alphas_cumprod[int(t)].double() - 1).sqrt())
        d = levels.denoised(denoiser, x, rho, scheduler.form)
        sigma = rho if scheduler.form == "ve" else rho / math.hypot(1, rho)
        alpha = 1.0 if scheduler.form == "ve" else 1 / math.hypot(1, rho)
        x = made.step((x - alpha * d) / sigma, t, x).prev_sample
    last = float(made.sigmas[-1]) if by_level else float((1 / made.final_alpha_cumprod - 1) ** 0.5)
    if last == 0:
        return x, "data"
    return x * levels.scale(last, scheduler.form), "state"
