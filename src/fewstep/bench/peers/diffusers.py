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
    """A scheduler class of diffusers, the spacings it offers, its options, and the form of its state."""

    cls: str
    spacings: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    form: str = "vp"


MULTISTEP = partial(Scheduler, "DPMSolverMultistepScheduler", (*BY_TIME, "linspace-min", *BY_LEVEL, "lu", SAME_GRID))
UNIPC = partial(Scheduler, "UniPCMultistepScheduler", (*BY_TIME, "linspace-min", *BY_LEVEL, SAME_GRID))
DEIS = partial(Scheduler, "DEISMultistepScheduler", (*BY_TIME, *BY_LEVEL, SAME_GRID))
SCHEDULERS: dict[str, Scheduler] = {
    "ddim": Scheduler("DDIMScheduler", ("leading", "trailing"), {"clip_sample": False}),
    "pndm": Scheduler("PNDMScheduler", ("leading", "trailing"), {"skip_prk_steps": True}),
    "dpm++2m": MULTISTEP({"solver_order": 2}),
    "dpm++2m-heun": MULTISTEP({"solver_order": 2, "solver_type": "heun"}),
    "dpm++3m": MULTISTEP({"solver_order": 3}),
    "dpm++2s": Scheduler("DPMSolverSinglestepScheduler", ("plain", *BY_LEVEL, SAME_GRID), {"lower_order_final": True}),
    "unipc-2": UNIPC({"solver_order": 2, "solver_type": "bh2"}),
    "unipc-3": UNIPC({"solver_order": 3, "solver_type": "bh2"}),
    "unipc-bh1-2": UNIPC({"solver_order": 2, "solver_type": "bh1"}),
    "deis-2": DEIS(),
    "deis-3": DEIS({"solver_order": 3}),
    "sa-ode": Scheduler("SASolverScheduler", (*BY_TIME, SAME_GRID), {"tau_func": lambda t: 0}),
    "euler": Scheduler("EulerDiscreteScheduler", ("trailing", *BY_LEVEL), form="ve"),
    "heun": Scheduler("HeunDiscreteScheduler", ("trailing", *BY_LEVEL, SAME_GRID), form="ve"),
    "lms": Scheduler("LMSDiscreteScheduler", ("trailing", *BY_LEVEL, SAME_GRID), form="ve"),
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
    cls = getattr(import_module("diffusers"), scheduler.cls)
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
