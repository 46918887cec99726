r"""Denoisers of two parts, and the derivative of a denoiser along its ODE: what some solvers read beside x0.

| head         | what it is, in the process's coordinates                 | who reads it              |
|--------------|----------------------------------------------------------|---------------------------|
| `base`       | D of the model alone                                     | `ltsp`, `stsp`, `*-cfgpp` |
| `guidance`   | what guidance adds to D                                  | `ltsp`, `stsp`, `*-cfgpp` |
| `derivative` | dD/dt along the probability-flow ODE, the total rate     | `taylor-2`                |

A head is computed only in the rows that read it, so a solver that takes the two parts apart pays for each alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad as forward

from fewstep.process.base import Process, Time
from fewstep.process.operator import apply, inverse

__all__ = ["Differentiated", "Guided", "guide", "rate"]

Denoiser = Callable[[Tensor, Time], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Guided:
    """D = base + shift, for any solver; those that split it read the parts as heads.

    Args:
        base: the model's denoiser.
        shift: (z, t) -> what guidance adds to x0_hat, in data space. Of a classifier's gradient g = w d log p(y|z)/dz
            it is what `process.data_from_score` makes of a score: q g.
        process: the process of both.
        needs_grad: one of them differentiates inside.
    """

    base: Denoiser
    shift: Denoiser
    process: Process
    needs_grad: bool = False

    def __call__(self, z: Tensor, t: Time) -> Tensor:
        """The guided x0_hat in data space."""
        return self.base(z, t) + self.shift(z, t)

    def head(self, name: str, t: Time) -> Callable[[Tensor], Tensor] | None:
        """`base` and `guidance`, in the process's coordinates."""
        part = {"base": self.base, "guidance": self.shift}.get(name)
        return None if part is None else lambda z: self.process.coordinates(part(z, t))


@dataclass(frozen=True, eq=False)
class _Difference:
    """What classifier-free guidance adds to the unconditional model."""

    conditional: Denoiser
    unconditional: Denoiser
    scale: float

    def __call__(self, z: Tensor, t: Time) -> Tensor:
        return self.scale * (self.conditional(z, t) - self.unconditional(z, t))


def guide(conditional: Denoiser, unconditional: Denoiser, scale: float) -> Guided:
    """Classifier-free guidance: D = D_u + scale (D_c - D_u), with D_u as base.

    `scale` is diffusers' guidance_scale: 1 is the conditional model, 0 the unconditional one. Each call of the guided
    denoiser evaluates both.

    References: Ho, Salimans, Classifier-free diffusion guidance, 2022, https://arxiv.org/abs/2207.12598, whose w is
    scale - 1.
    """
    processes = [p for p in (getattr(d, "process", None) for d in (conditional, unconditional)) if p is not None]
    if len(processes) < 2 or processes[0] != processes[1]:
        raise ValueError(f"got denoisers made for {processes or 'no process they tell'}: give two of one process")
    return Guided(
        base=unconditional,
        shift=_Difference(conditional, unconditional, scale),
        process=processes[0],
        needs_grad=any(getattr(d, "needs_grad", False) for d in (conditional, unconditional)),
    )


@dataclass(frozen=True, eq=False)
class Differentiated:
    """A denoiser that also offers its exact derivative along the ODE, by forward differentiation of the network.

    A row that reads the head costs two evaluations more, one of them a Jacobian-vector product; GENIE learns a head
    for it instead (Dockhorn, Vahdat, Kreis 2022, https://arxiv.org/abs/2210.05475).
    """

    denoiser: Any
    process: Process

    @property
    def needs_grad(self) -> bool:
        return getattr(self.denoiser, "needs_grad", False)

    def __call__(self, z: Tensor, t: Time) -> Tensor:
        """x0_hat in data space."""
        return self.denoiser(z, t)

    def head(self, name: str, t: Time) -> Callable[[Tensor], Tensor] | None:
        """`derivative`, in the process's coordinates."""
        return rate(self.denoiser, self.process, t) if name == "derivative" else None


def rate(denoiser: Denoiser, process: Process, t: Time) -> Callable[[Tensor], Tensor]:
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
