"""What k-diffusion, ComfyUI and webui call a sampler or a scheduler, and what that is here.

A sampler is a solver's name in `fewstep.SOLVERS`, or a function of the tool's own options that makes a solver. A
scheduler is a grid that ends at sigma = 0.

References: https://github.com/crowsonkb/k-diffusion, https://github.com/comfyanonymous/ComfyUI (comfy/samplers.py,
comfy/k_diffusion), https://github.com/AUTOMATIC1111/stable-diffusion-webui.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.grid import GRIDS, Grid, to_zero
from fewstep.process import Process
from fewstep.solver import (
    ERSDE,
    PNDM,
    SEEDS,
    Ancestral,
    CFGPlusPlus,
    DPMAdaptive,
    DPMMultistep,
    Driver,
    EDMHeun,
    GradientEstimation,
    Multistep,
    RungeKutta,
    SASolver,
    SDEMultistep,
    Singlestep,
    Solver,
)

__all__ = ["ALIASES", "LABELS", "NOTES", "SCHEDULERS", "described"]


def _runge_kutta(
    method: str, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf
) -> RungeKutta | EDMHeun:
    """Euler or Heun in sigma (in t on flows), with the noise that churn adds before a step."""
    if not s_churn:
        return RungeKutta(method=method, form="state", clock="t")
    return EDMHeun(method=method, churn=float(s_churn), churn_min=float(s_tmin), churn_max=float(s_tmax))


def _lms(order: int = 4) -> Multistep:
    return Multistep(points=order, form="noise", clock="rho")


def _dpm_adaptive(
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
) -> Driver:
    pid = (float(pcoeff), float(icoeff), float(dcoeff))
    return DPMAdaptive(points=order, rtol=rtol, atol=atol, first_step=h_init, norm="batch", pid=pid)


def _dpmpp_sde(eta: float = 1.0, noises: str = "path") -> SEEDS:
    if eta not in (0.0, 1.0):
        raise ValueError(f"got eta={eta} for dpmpp_sde, which means DDIM's there: give 0 or 1, or use seeds_2")
    return SEEDS(type="midpoint", eta=float(eta), noises=noises)


def _sde(points: int, eta: float = 1.0, solver_type: str = "midpoint") -> SDEMultistep:
    return SDEMultistep(points=points, eta=float(eta), type=solver_type)


def _dpmpp_3m_sde(eta: float = 1.0) -> SDEMultistep:
    return _sde(3, eta, "heun")


def _seeds_2(eta: float = 1.0, solver_type: str = "phi_1") -> SEEDS:
    if solver_type not in ("phi_1", "phi_2"):
        raise ValueError(f"got solver_type={solver_type!r}: choose phi_1 or phi_2")
    return SEEDS(eta=float(eta), type="midpoint" if solver_type == "phi_1" else "heun")


def _er_sde(max_stage: int = 3) -> ERSDE:
    return ERSDE(points=max_stage)


def _sa_solver(predictor_order: int = 3) -> SASolver:
    return SASolver(points=predictor_order)


def _deis(max_order: int = 3) -> Multistep:
    return Multistep(points=max_order, form="noise", clock="rho")


def _ipndm(weights: str, max_order: int = 4) -> PNDM:
    return PNDM(points=max_order, start="ramp", weights=weights)


def _gradient_estimation(ge_gamma: float = 2.0) -> GradientEstimation:
    return GradientEstimation(gamma=float(ge_gamma))


def _ancestral(points: int, form: str, eta: float = 1.0) -> Ancestral:
    return Ancestral(points=points, form=form, eta=float(eta))


ALIASES: dict[str, str | Callable[..., Solver | Driver]] = {
    "euler": partial(_runge_kutta, "euler"),
    "euler_a": partial(_ancestral, 1, "data"),
    "euler_ancestral": partial(_ancestral, 1, "data"),
    "heun": partial(_runge_kutta, "heun"),
    "heunpp2": "heunpp2",
    "dpm_2": "dpm-2",
    "dpm_2_ancestral": partial(_ancestral, 2, "noise"),
    "lms": _lms,
    "dpm_fast": partial(Singlestep, points=3, form="noise", stages="grid"),
    "dpm_adaptive": _dpm_adaptive,
    "dpmpp_2s_ancestral": partial(_ancestral, 2, "data"),
    "dpmpp_sde": _dpmpp_sde,
    "dpmpp_2m": partial(DPMMultistep, points=2, final_ramp=False),
    "dpmpp_2m_sde": partial(_sde, 2),
    "dpmpp_2m_sde_heun": partial(_sde, 2, solver_type="heun"),
    "dpmpp_3m_sde": _dpmpp_3m_sde,
    "ddpm": "ddpm",
    "lcm": "lcm",
    "ddim": "ddim",
    "plms": "plms",
    "uni_pc": "unipc-bh1-3",
    "uni_pc_bh2": "unipc-3",
    "ipndm": partial(_ipndm, "adams"),
    "ipndm_v": partial(_ipndm, "variable"),
    "deis": _deis,
    "res_multistep": "res-multistep",
    "gradient_estimation": _gradient_estimation,
    "er_sde": _er_sde,
    "seeds_2": _seeds_2,
    "seeds_3": "seeds-3",
    "sa_solver": _sa_solver,
    "restart": "restart",
    "euler_cfg_pp": "ddim-cfgpp",
    "euler_ancestral_cfg_pp": "euler-ancestral-cfgpp",
    "dpmpp_2m_cfg_pp": partial(CFGPlusPlus, inner=DPMMultistep(points=2, final_ramp=False)),
}
# The names that ask for noise on the GPU: here noise is where the state is.
ALIASES |= {f"{name}_gpu": ALIASES[name] for name in ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde")}

# webui's labels.
LABELS = {
    "Euler a": "euler_ancestral",
    "Euler": "euler",
    "LMS": "lms",
    "Heun": "heun",
    "DPM2": "dpm_2",
    "DPM2 a": "dpm_2_ancestral",
    "DPM++ 2S a": "dpmpp_2s_ancestral",
    "DPM++ 2M": "dpmpp_2m",
    "DPM++ SDE": "dpmpp_sde",
    "DPM++ 2M SDE": "dpmpp_2m_sde",
    "DPM++ 2M SDE Heun": "dpmpp_2m_sde_heun",
    "DPM++ 3M SDE": "dpmpp_3m_sde",
    "DPM fast": "dpm_fast",
    "DPM adaptive": "dpm_adaptive",
    "Restart": "restart",
    "DDIM": "ddim",
    "PLMS": "plms",
    "UniPC": "uni_pc",
    "LCM": "lcm",
}

# Where a name's numbers are not the tool's own.
NOTES = {
    "dpm_fast": "on the given sigmas, where the tool makes its own, even in log sigma",
    "dpm_adaptive": "between the first and the last positive sigma; a denoising step follows where they end at 0",
    "dpmpp_sde": 'stages share one path; `noises="separate"` is the tool\'s own with independent noise',
    "ddpm": "the Gaussian posterior at the given sigmas",
    "ddim": "eta = 0 is `euler`, as in ComfyUI",
    "plms": "on the given sigmas; one call more than steps",
    "uni_pc": "the sigmas as they are, where ComfyUI puts 0.001 for a 0 at the end",
    "uni_pc_bh2": "as `uni_pc`",
    "deis": "polynomials in sigma, where ComfyUI takes them in VP's time",
    "er_sde": "the noise integral exact, where ComfyUI sums rectangles",
    "sa_solver": "tau = 1 throughout, where ComfyUI sets it to 0 at both ends",
    "restart": "the detours lie on the grid, where webui chooses its own",
    "dpmpp_2m_cfg_pp": "the paper's step around 2M",
}


def _to_clean(process: Process, steps: int) -> Tensor:
    """Equal steps in time from t_max to 0, where sigma = 0."""
    return torch.linspace(process.t_max, 0.0, steps + 1, dtype=torch.float64)


def _ddim_uniform(process: Process, steps: int) -> Tensor:
    """Entries 1, 1 + s, 1 + 2 s, ... of a table of N = s n, from noise to data, and 0."""
    count = getattr(process, "count", 1000)
    entries = range(1, count, max(count // steps, 1))
    return torch.tensor([*((i + 1) / count * process.t_max for i in reversed(entries)), 0.0], dtype=torch.float64)


# name -> (grid that ends at sigma = 0, what it is; in the time of the model's process unless it says sigma)
SCHEDULERS: dict[str, tuple[Grid, str]] = {
    "normal": (to_zero(GRIDS["uniform"]), "`uniform`, then 0"),
    "karras": (to_zero(GRIDS["karras"]), "`karras` in sigma, then 0"),
    "exponential": (to_zero(GRIDS["exponential"]), "`exponential` in sigma, then 0"),
    "sgm_uniform": (to_zero(GRIDS["sgm-uniform"], append=False), "`sgm-uniform`, 0 for its last time"),
    "simple": (_to_clean, "even from t_max to 0; the tool rounds to entries of its table"),
    "ddim_uniform": (_ddim_uniform, "every s-th entry of the table from its second on, then 0; starts below t_max"),
    "beta": (
        to_zero(GRIDS["beta"], append=False),
        "`beta`, 0 for its last time; the tool rounds to entries of its table",
    ),
    "linear_quadratic": (
        to_zero(GRIDS["linear-quadratic"], append=False),
        "`linear-quadratic`, 0 for its last time; the tool's is in sigma / sigma_max",
    ),
    "kl_optimal": (to_zero(GRIDS["kl-optimal"]), "`kl-optimal` in sigma, then 0"),
}


def described(solver: Any) -> str:
    """A solver as its class and the options that are not the class's own defaults."""
    own = {f.name: value for f in fields(solver) if (value := getattr(solver, f.name)) != f.default}
    shown = (f"{k}={described(v) if isinstance(v, Solver) else repr(v)}" for k, v in own.items())
    return f"{type(solver).__name__}({', '.join(shown)})"
