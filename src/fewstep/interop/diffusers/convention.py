r"""What a scheduler's config says of its network: the process, the prediction, and how times and levels are written.

| config                                    | process              | time step of the network | level ("sigma")    |
|-------------------------------------------|----------------------|--------------------------|--------------------|
| betas                                     | `Discrete`           | index N t - 1            | sigma / alpha      |
| betas, v, `timestep_type="continuous"`    | `VP` over its levels | log(sigma / alpha) / 4   | sigma / alpha      |
| `sigma_data` (EDM's preconditioning)      | `EDM`                | log(sigma) / 4           | sigma              |
| the same of CosineDPMSolverMultistep      | `EDM`                | 2 / pi atan(sigma)       | sigma              |
| `shift` or `use_flow_sigmas`              | `Flow`               | N t                      | t                  |
| `scaler`, `s` (DDPMWuerstchen)            | `Discrete`, cosine   | index N t - 1            | sigma / alpha      |
| `process` (one of this library's)         | itself               | index N t - 1            | sigma / alpha      |

States are the process's own z = alpha x0 + sigma eps: `scale_model_input` does nothing but for EDM, whose networks see
x / (sigma^2 + sigma_data^2)^{1/2}. Time steps are floats and are never rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.denoiser.network import Wrapped, wrap
from fewstep.process import EDM, VP, Discrete, Flow, ScalarProcess
from fewstep.process.config import process_from_json
from fewstep.words import pick

__all__ = ["PREDICTIONS", "Convention", "convention_of", "translated"]

# diffusers' names for what a network predicts, and ours.
PREDICTIONS = {"epsilon": "noise", "v_prediction": "v", "sample": "data", "flow_prediction": "flow"}
# Keys that only the schedulers of other kinds of model have, and what those are.
OTHERS = {
    "stages": "Helios changes the resolution between its stages",
    "n_grid": "a PiFlow network returns a policy and no prediction",
    "scale_factors": "FlowMatchLCM's scale_factors change the resolution between steps",
    "sampling_eps": "the predictor-corrector of score_sde is a driver and not a table",
    "clip_denoised": "consistency models have a preconditioning of their own; see fewstep.denoiser.presets.consistency",
    **dict.fromkeys(("mask_token_id", "num_vec_classes", "block_length", "corrector_k", "entropy_bound"),
                    "its states are tokens and not numbers"),
    "schedule_mode": "it moves proteins by rules of its own",
}  # fmt: skip
# What numbers of a config may be, both ends included.
RANGES = {
    "num_train_timesteps": (1, 10**6),
    "beta_start": (0, 1),
    "beta_end": (0, 1),
    "snr_shift_scale": (1e-6, 1e6),
    "shift": (1e-6, 1e6),
    "flow_shift": (1e-6, 1e6),
    "shift_terminal": (0, 1),
    "sigma_min": (0, 1e9),
    "sigma_max": (0, 1e9),
    "sigma_data": (1e-9, 1e9),
    "rho": (1e-3, 1e3),
}
SNAP = 1e-4  # relative: printed tables round their levels, and their first may lie beyond the process's range


@dataclass(frozen=True, kw_only=True)
class Convention:
    """A process, and the way a pipeline's network is told of it."""

    process: ScalarProcess  # the scalar process of the latents
    predicts: str  # the network's prediction, by the names of `fewstep.wrap`
    # how times are time steps: "index", "level" (log(sigma / alpha) / 4), "angle" (2 / pi atan(sigma / alpha)), "share"
    steps: str = "index"
    count: int = 1000  # N, the number of time steps it was trained with
    sigma_data: float | None = None  # EDM's standard deviation of the data; None for other networks
    sign: float = 1.0  # -1 for networks that predict the negative of `predicts`
    inverted: bool = False  # the time step is N (1 - t): noise at 0, data at N
    # (time, time step) pairs that fall, between which time steps are linear; None: as `steps` says
    labels: tuple[tuple[float, float], ...] | None = None

    def timestep(self, t: Tensor) -> Tensor:
        """The network's time steps for float64 times."""
        if self.labels is not None:
            return _along(t, *zip(*self.labels, strict=True))
        if self.steps == "share":
            return self.count * (1 - t if self.inverted else t)
        if self.steps == "index":
            return self.count * t - 1
        level = -self.process.log_snr(t)
        return level / 4 if self.steps == "level" else 2 / math.pi * level.exp().atan()

    def time(self, timestep: Tensor) -> Tensor:
        """The inverse of `timestep`, in float64."""
        timestep = timestep.double()
        if self.labels is not None:
            times, steps = zip(*self.labels, strict=True)
            return _along(timestep, steps, times)
        if self.steps == "share":
            t = timestep / self.count
            return 1 - t if self.inverted else t
        if self.steps == "index":
            return (timestep + 1) / self.count
        return self.process.inverse_log_snr(
            -4 * timestep if self.steps == "level" else -(math.pi / 2 * timestep).tan().log()
        )

    def level(self, t: Tensor) -> Tensor:
        """The "sigma" of diffusers at float64 times."""
        return t if self.steps == "share" else torch.exp(-self.process.log_snr(t))

    def time_at(self, level: Tensor) -> Tensor:
        """The inverse of `level`; a level beyond the process's last by the rounding of a table is the last."""
        if self.steps == "share":
            return level
        ends = torch.tensor([self.process.t_max, self.process.t_min], dtype=torch.float64)
        most, least = self.level(ends)
        t = self.process.inverse_log_snr(-level.log())
        t = torch.where((level >= most) & (level <= (1 + SNAP) * most), ends[0], t)
        return torch.where((level <= least) & (level >= (1 - SNAP) * least), ends[1], t)

    def input_scale(self, t: Tensor) -> Tensor:
        """What a state is multiplied with before the network sees it."""
        if self.sigma_data is None:
            return torch.ones_like(t)
        return (self.process.sigma(t) ** 2 + self.sigma_data**2) ** -0.5

    def denoiser(self, net: Any, dtype: torch.dtype | None = None) -> Wrapped:
        """The denoiser of a network that is called as `net(x, timesteps)`."""
        signed = net if self.sign == 1 else partial(_signed, self.sign, net)
        data = 0.5 if self.sigma_data is None else self.sigma_data
        return wrap(signed, self.process, predicts=self.predicts, time=self.timestep, dtype=dtype, sigma_data=data)


def convention_of(config: Mapping[str, Any]) -> Convention:
    """The convention of a scheduler's config; see the table above.

    Raises:
        ValueError: where the config does not say what the network predicts, or is of another kind of model.
    """
    config = translated(config)
    count, kind = int(config.get("num_train_timesteps") or 1000), config.get("prediction_type")
    if config.get("process") is not None:
        given = config["process"]
        process = process_from_json(given) if isinstance(given, Mapping) else given
        if not isinstance(process, ScalarProcess):
            raise ValueError(f"got {type(process).__name__} as process of a scheduler: give a scalar process")
        return Convention(process=process, predicts=_predicts(kind), count=getattr(process, "count", count))
    if config.get("shift") is not None or config.get("use_flow_sigmas") or kind == "flow_prediction":
        inverted = bool(config.get("invert_sigmas"))
        return Convention(
            process=Flow(),
            predicts=_predicts("flow_prediction" if config.get("shift") is not None else kind),
            steps="share",
            count=count,
            inverted=inverted,
            sign=-1.0 if inverted else 1.0,  # a network whose time runs the other way predicts x0 - eps
        )
    low, high = config.get("sigma_min"), config.get("sigma_max")
    if (data := config.get("sigma_data")) is not None:
        pick({"epsilon": 1, "v_prediction": -1}, _predicts(kind) and str(kind), "prediction_type")
        return Convention(
            process=EDM(sigma_min=0.002 if low is None else low, sigma_max=80.0 if high is None else high),
            predicts="edm",
            steps="angle" if config.get("timestep_type") == "angle" else "level",
            sigma_data=data,
            sign=1.0 if kind == "epsilon" else -1.0,
        )
    predicts, process = _predicts(kind), Discrete(alphas_cumprod=_alphas_cumprod(config))
    if config.get("timestep_type") == "continuous" and predicts == "v":
        every = VP(t_max=1e6, t_min=1e-12)
        ends = ((high, process.t_max), (low, process.t_min))
        levels = [-process.log_snr(t) if level is None else math.log(level) for level, t in ends]
        t_max, t_min = (every.inverse_log_snr(-level) for level in levels)
        return Convention(process=VP(t_max=t_max, t_min=t_min), predicts=predicts, steps="level")
    return Convention(process=process, predicts=predicts, count=count)


def translated(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with what it says by being one scheduler's written in options that all have."""
    if other := next((why for key, why in OTHERS.items() if config.get(key) is not None), None):
        raise ValueError(f"got the config of a scheduler that no table can stand in for ({other}): leave it its own")
    written = dict(config)
    _check_numbers(written)
    if config.get("scaler") is not None:  # DDPMWuerstchenScheduler
        written |= {"trained_betas": _cosine_betas(config), "prediction_type": "epsilon"}
    if config.get("sigma_data") is not None and "solver_order" in config and "algorithm_type" not in config:
        written["timestep_type"] = "angle"  # CosineDPMSolverMultistepScheduler
    return written


def _check_numbers(config: Mapping[str, Any]) -> None:
    """Refuses numbers of a config that no scheduler has, before tables are made of them."""
    for name, (low, high) in RANGES.items():
        value = config.get(name)
        if value is not None and not (isinstance(value, int | float) and low <= value <= high):
            raise ValueError(f"got {name}={value!r:.80}: give a number from {low:g} to {high:g}")
    betas = config.get("trained_betas")
    if betas is not None and not isinstance(betas, Tensor | np.ndarray):
        numbers = isinstance(betas, list | tuple) and len(betas) <= RANGES["num_train_timesteps"][1]
        if not numbers or not all(isinstance(b, int | float) and 0 <= b <= 1 for b in betas):
            raise ValueError(f"got trained_betas={betas!r:.80}: give at most 1000000 numbers from 0 to 1")


def _signed(sign: float, net: Any, x: Tensor, t: Tensor) -> Tensor:
    return sign * net(x, t)


def _predicts(kind: str | None) -> str:
    if kind is None:
        raise ValueError(
            f"got no prediction_type, and the config does not say what the network predicts: give prediction_type="
            f"{', '.join(PREDICTIONS)}"
        )
    return pick(PREDICTIONS, kind, "prediction_type")


def _alphas_cumprod(config: Mapping[str, Any]) -> tuple[float, ...]:
    """The table that diffusers makes of a config's betas, in its own float32."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler

    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    known = {name: config[name] for name in names if config.get(name) is not None}
    schedule = known.get("beta_schedule", "linear")
    makes: Any = pick(
        dict.fromkeys(("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid"), DDPMScheduler)
        | {"exp": HeunDiscreteScheduler},
        schedule,
        "beta_schedule",
    )
    shift, zero = config.get("snr_shift_scale"), bool(config.get("rescale_betas_zero_snr"))
    if shift is None and makes is DDPMScheduler:
        known["rescale_betas_zero_snr"] = zero
    a = makes(**known).alphas_cumprod.double()
    if shift is not None:
        a = a / (shift + (1 - shift) * a)
        if zero:  # behind the shift: the root of a moved to end at 0 (Lin et al. 2023, algorithm 1)
            root = a.sqrt()
            a = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return tuple(a.clamp(min=0.0).tolist())


def _cosine_betas(config: Mapping[str, Any], count: int = 1000) -> list[float]:
    """Betas of Stable Cascade's cosine, cos^2(pi/2 (r + s)/(1 + s)) by its value at 0, up to where it is 1e-4."""
    if config["scaler"] != 1:
        raise ValueError(f"got scaler={config['scaler']} for a cosine that only scaler=1 stands for: leave it its own")
    s = float(config.get("s") or 0.008)
    angle = math.pi / 2 / (1 + s)
    first = math.cos(angle * s)
    last = math.acos(1e-2 * first) / angle - s
    ratio = last * torch.arange(1, count + 1, dtype=torch.float64) / count
    a = ((angle * (ratio + s)).cos() / first) ** 2
    return (1 - a / torch.cat([torch.ones(1, dtype=torch.float64), a[:-1]])).tolist()


def _along(x: Tensor, at: tuple[float, ...], values: tuple[float, ...]) -> Tensor:
    """The piecewise linear function through points whose abscissas fall."""
    a, v = (torch.tensor(numbers, dtype=torch.float64) for numbers in (at, values))
    right = torch.searchsorted(-a, -x).clamp(1, len(a) - 1)
    share = (x - a[right - 1]) / (a[right] - a[right - 1])
    return v[right - 1] + share * (v[right] - v[right - 1])
