"""A pipeline's loop around a scheduler and a network that knows its time, without a pipeline."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewstep.interop.diffusers import FewStepScheduler

SD = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon",
}  # fmt: skip
FLOW = {"shift": 3.0}


def net(x: Tensor, t: Any) -> Tensor:
    """A network that knows its time."""
    t = torch.as_tensor(t, dtype=torch.float32).reshape(-1, *[1] * (x.ndim - 1))
    return torch.tanh(x * (1 + t / 1000)) - 0.3 * x.roll(1, -1)


def noise(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(*(shape or (2, 4, 4, 4)), generator=torch.Generator().manual_seed(seed))


def scheduler(solver: Any = "unipc-3", n: int | None = 6, **config: Any) -> FewStepScheduler:
    made = FewStepScheduler(solver=solver, **(config or SD))
    if n is not None:
        made.set_timesteps(n)
    return made


def march(s: FewStepScheduler, x: Tensor, generator: torch.Generator | None = None, stop: int | None = None) -> Tensor:
    for t in (s.timesteps if s.begin_index is None else s.timesteps[s.begin_index :])[:stop]:
        x = s.step(net(s.scale_model_input(x, t), t), t, x, generator=generator).prev_sample
    return x
