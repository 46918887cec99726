r"""What a scheduler's config says of its network: the process, the prediction, and how times and levels are written.

| config                                    | process              | time step of the network | level ("sigma")    |
|-------------------------------------------|----------------------|--------------------------|--------------------|
| betas                                     | `Discrete`           | index N t - 1            | sigma / alpha      |
| betas, `timestep_type="continuous"`       | `VP` over its levels | log(sigma / alpha) / 4   | sigma / alpha      |
| `sigma_data` (EDM's preconditioning)      | `EDM`                | log(sigma) / 4           | sigma              |
| `shift` or `use_flow_sigmas`              | `Flow`               | N t                      | t                  |
| `process` (one of this library's)         | itself               | index N t - 1            | sigma / alpha      |

States are the process's own z = alpha x0 + sigma eps: `scale_model_input` does nothing but for EDM, whose networks see
x / (sigma^2 + sigma_data^2)^{1/2}. Time steps are floats and are never rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.network import Wrapped, wrap
from fewstep.process import EDM, VP, Discrete, Flow
from fewstep.process.base import ScalarProcess
from fewstep.process.config import process_from_json
from fewstep.words import pick

__all__ = ["PREDICTIONS", "Convention", "convention_of"]

# diffusers' names for what a network predicts, and ours.
PREDICTIONS = {"epsilon": "noise", "v_prediction": "v", "sample": "data", "flow_prediction": "flow"}
SNAP = 1e-4  # relative: printed tables round their levels, and their first may lie beyond the process's range


@dataclass(frozen=True, kw_only=True)
class Convention:
    """A process, and the way a pipeline's network is told of it.

    Attributes:
        process: the scalar process of the latents.
        predicts: the network's prediction, by the names of `fewstep.wrap`.
        steps: how a time is written as a time step: "index", "level" (log(sigma / alpha) / 4) or "share" (N t).
        count: N, the number of time steps it was trained with.
        sigma_data: EDM's standard deviation of the data; None for other networks.
        sign: -1 for networks that predict the negative of `predicts`.
        inverted: the time step is N (1 - t): noise at 0, data at N.
    """

    process: ScalarProcess
    predicts: str
    steps: str = "index"
    count: int = 1000
    sigma_data: float | None = None
    sign: float = 1.0
    inverted: bool = False

    def timestep(self, t: Tensor) -> Tensor:
        """The network's time steps for float64 times."""
        if self.steps == "share":
            return self.count * (1 - t if self.inverted else t)
        return self.count * t - 1 if self.steps == "index" else -self.process.log_snr(t) / 4

    def time(self, timestep: Tensor) -> Tensor:
        """The inverse of `timestep`, in float64."""
        timestep = timestep.double()
        if self.steps == "share":
            t = timestep / self.count
            return 1 - t if self.inverted else t
        return (timestep + 1) / self.count if self.steps == "index" else self.process.inverse_log_snr(-4 * timestep)

    def level(self, t: Tensor) -> Tensor:
        """The "sigma" of diffusers at float64 times."""
        return t if self.steps == "share" else torch.exp(-self.process.log_snr(t))

    def time_at(self, level: Tensor) -> Tensor:
        """The inverse of `level`; a level that is the process's last but for the rounding of a table is the last."""
        if self.steps == "share":
            return level
        ends = torch.tensor([self.process.t_max, self.process.t_min], dtype=torch.float64)
        t = self.process.inverse_log_snr(-level.log())
        for end, reached in zip(ends, self.level(ends), strict=True):
            t = torch.where((level - reached).abs() <= SNAP * reached, end, t)
        return t

    def input_scale(self, t: Tensor) -> Tensor:
        """What a state is multiplied with before the network sees it."""
        if self.sigma_data is None:
            return torch.ones_like(t)
        return (self.process.sigma(t) ** 2 + self.sigma_data**2) ** -0.5

    def denoiser(self, net: Any, dtype: torch.dtype | None = None) -> Wrapped:
        """The denoiser of a network that is called as `net(x, timesteps)`."""
        signed = net if self.sign == 1 else lambda x, t: self.sign * net(x, t)
        data = 0.5 if self.sigma_data is None else self.sigma_data
        return wrap(signed, self.process, predicts=self.predicts, time=self.timestep, dtype=dtype, sigma_data=data)


def convention_of(config: Mapping[str, Any]) -> Convention:
    """The convention of a scheduler's config; see the table above.

    Raises:
        ValueError: where the config does not say what the network predicts.
    """
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
        pick({"epsilon": 1, "v_prediction": -1}, str(kind), "prediction_type")
        return Convention(
            process=EDM(sigma_min=0.002 if low is None else low, sigma_max=80.0 if high is None else high),
            predicts="edm",
            steps="level",
            sigma_data=data,
            sign=1.0 if kind == "epsilon" else -1.0,
        )
    predicts = _predicts(kind)
    if config.get("timestep_type") == "continuous" and low is not None and high is not None:
        every = VP(t_max=1e6, t_min=1e-12)
        t_max, t_min = (every.inverse_log_snr(-math.log(level)) for level in (high, low))
        return Convention(process=VP(t_max=t_max, t_min=t_min), predicts=predicts, steps="level")
    return Convention(process=Discrete(alphas_cumprod=_alphas_cumprod(config)), predicts=predicts, count=count)


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

    names = (
        "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"
    )  # fmt: skip
    known = {name: config[name] for name in names if config.get(name) is not None}
    a = DDPMScheduler(**known).alphas_cumprod.double()
    if (shift := config.get("snr_shift_scale")) is not None:
        a = a / (shift + (1 - shift) * a)
    return tuple(a.clamp(min=0.0).tolist())
