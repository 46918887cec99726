"""What k-diffusion, ComfyUI and webui call a sampler or a scheduler, and what that is here.

A sampler is a solver's name in `fewstep.SOLVERS`, or a function of the tool's own options that makes a solver. A
scheduler is a grid that ends at sigma = 0.

References: https://github.com/crowsonkb/k-diffusion; https://github.com/comfyanonymous/ComfyUI (comfy/samplers.py,
comfy/k_diffusion/sampling.py, deis.py and sa_solver.py); https://github.com/AUTOMATIC1111/stable-diffusion-webui
(modules/sd_samplers_kdiffusion.py, sd_samplers_extra.py, sd_schedulers.py). Each formula was read there in November
2026 and is held against ours in `tests/test_tool_names.py`; `docs/names.py` says where numbers differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fewstep.grid import GRIDS, Grid, to_zero
from fewstep.process import Flow, Process
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
from fewstep.words import one_of

__all__ = ["ALIASES", "LABELS", "SCHEDULERS"]


def _runge_kutta(
    method: str, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf
) -> RungeKutta | EDMHeun:
    """Euler or Heun in sigma (in t on flows), with the noise that churn adds before a step."""
    if not s_churn:
        return RungeKutta(method=method, form="state", clock="t")
    return EDMHeun(method=method, churn=float(s_churn), churn_min=float(s_tmin), churn_max=float(s_tmax))


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


def _seeds_2(eta: float = 1.0, solver_type: str = "phi_1") -> SEEDS:
    one_of("solver_type", solver_type, ("phi_1", "phi_2"))
    return SEEDS(eta=float(eta), type="midpoint" if solver_type == "phi_1" else "heun")


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
    "lms": lambda order=4: Multistep(points=order, form="noise", clock="rho"),
    "dpm_fast": partial(Singlestep, points=3, form="noise", stages="grid"),
    "dpm_adaptive": _dpm_adaptive,
    "dpmpp_2s_ancestral": partial(_ancestral, 2, "data"),
    "dpmpp_sde": _dpmpp_sde,
    "dpmpp_2m": partial(DPMMultistep, points=2, final_ramp=False),
    "dpmpp_2m_sde": partial(_sde, 2),
    "dpmpp_2m_sde_heun": partial(_sde, 2, solver_type="heun"),
    "dpmpp_3m_sde": lambda eta=1.0: _sde(3, eta, "heun"),
    "ddpm": "ddpm",
    "lcm": "lcm",
    "ddim": "ddim",
    "plms": "plms",
    "uni_pc": "unipc-bh1-3",
    "uni_pc_bh2": "unipc-3",
    "ipndm": lambda max_order=4: PNDM(points=max_order, start="ramp", weights="adams"),
    "ipndm_v": lambda max_order=4: PNDM(points=max_order, start="ramp", weights="variable"),
    "deis": lambda max_order=3: Multistep(points=max_order, form="noise", clock="rho"),
    "res_multistep": "res-multistep",
    "gradient_estimation": lambda ge_gamma=2.0: GradientEstimation(gamma=float(ge_gamma)),
    "gradient_estimation_cfg_pp": lambda ge_gamma=2.0: CFGPlusPlus(inner=GradientEstimation(gamma=float(ge_gamma))),
    "er_sde": lambda max_stage=3: ERSDE(points=max_stage),
    "seeds_2": _seeds_2,
    "seeds_3": "seeds-3",
    "sa_solver": lambda predictor_order=3: SASolver(points=predictor_order),
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


def _ddim_uniform(process: Process, steps: int) -> Tensor:
    """Entries 1, 1 + s, 1 + 2 s, ... of a table of N = s n, from noise to data, and 0."""
    count = getattr(process, "count", 1000)
    entries = range(1, count, max(count // steps, 1))
    return torch.tensor([*((i + 1) / count * process.t_max for i in reversed(entries)), 0.0], dtype=torch.float64)


def _linear_quadratic(process: Process, steps: int) -> Tensor:
    """sigma_max times the grid of a flow from 1 to 0."""
    share = GRIDS["linear-quadratic"](Flow(), steps)[:-1]
    if isinstance(process, Flow):
        return torch.cat([share, torch.zeros(1, dtype=torch.float64)])
    level = share.log() - torch.as_tensor(process.log_snr(process.t_max))
    inner = torch.as_tensor(process.inverse_log_snr(-level))[1:]
    return torch.tensor([process.t_max, *inner.tolist(), 0.0], dtype=torch.float64)


# Grids that end at sigma = 0, in the time of the model's process.
SCHEDULERS: dict[str, Grid] = {
    "normal": to_zero(GRIDS["uniform"]),
    "karras": to_zero(GRIDS["karras"]),
    "exponential": to_zero(GRIDS["exponential"]),
    "sgm_uniform": to_zero(GRIDS["sgm-uniform"], append=False),
    "simple": lambda process, steps: torch.linspace(process.t_max, 0.0, steps + 1, dtype=torch.float64),
    "ddim_uniform": _ddim_uniform,
    "beta": to_zero(GRIDS["beta"], append=False),
    "linear_quadratic": _linear_quadratic,
    "kl_optimal": to_zero(GRIDS["kl-optimal"]),
}
