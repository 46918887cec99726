"""The derivative of a denoiser along its ODE, by forward differentiation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad as forward

from fewstep.process.base import Process, Time
from fewstep.process.operator import apply, inverse

__all__ = ["rate"]


def rate(denoiser: Callable[[Tensor, Time], Tensor], process: Process, t: Time) -> Callable[[Tensor], Tensor]:
    r"""Z -> dD/dt = (\partial_z D) dz/dt + \partial_t D with dz/dt = R' R^-1 (z - M D) + M' D, the ODE's velocity."""
    spread = process.R_rate(t) * inverse(process.R(t))
    pull = process.M_rate(t) - spread * process.M(t)

    def predict(z: Tensor, times: Tensor) -> Tensor:
        return process.coordinates(denoiser(z, times))

    def along(z: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            z = z.clone()  # of a run in inference mode, which forward differentiation does not take
            times = torch.as_tensor(t, dtype=torch.float64).expand(len(z)).clone()
            velocity = apply(spread, z) + apply(pull, predict(z, times))
            with forward.dual_level():
                moving = forward.make_dual(z, velocity), forward.make_dual(times, torch.ones_like(times))
                found = forward.unpack_dual(predict(*moving)).tangent
            return torch.zeros_like(velocity) if found is None else found

    return along
