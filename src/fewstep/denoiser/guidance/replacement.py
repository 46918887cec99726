r"""Replacement: what is known of the data is put into every state, at that state's noise.

$$ z \leftarrow (1 - m) \odot z + m \odot (M_t y + R_t \epsilon) $$

An edit between rows, not a denoiser: `fewstep.sample(..., after=Replacement(process, y, mask))`. It is no posterior
sampler, however many the steps, unless the known and the unknown are independent: the model sees the known at the
state's noise only, and `fewstep.pigdm` or `fewstep.DDNM` are nearer.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from fewstep.noise import Noise
from fewstep.process.base import Process
from fewstep.words import Typed

__all__ = ["Replacement"]


@dataclass(frozen=True, eq=False)
class Replacement(Typed):
    """(row, t, z) -> z with the known part replaced, for the loop's hook `after`.

    Args:
        process: scalar or CLD; where the state is mixed, as by a blur, no part of it is known.
        y: the data, (batch or 1, *shape); read where the mask is.
        mask: true or 1 where y is known, broadcast to the data.
        fresh: new noise at every row, as published; False keeps one noise, which follows the ODE of the known part.
        seed: of the noise, a stream of its own.

    References: Song et al., Score-based generative modeling through stochastic differential equations, 2021,
    https://arxiv.org/abs/2011.13456.
    """

    process: Process
    y: Tensor
    mask: Tensor
    _: KW_ONLY
    fresh: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.process.kind == "diagonal":
            raise ValueError(
                f"got {type(self.process).__name__}, whose states mix all places: no part of them is known, use DDNM"
            )
        try:
            torch.broadcast_to(self.mask, self.y.shape)
        except RuntimeError:
            raise ValueError(
                f"got a mask of shape {tuple(self.mask.shape)} for data of shape {tuple(self.y.shape)}: give one that "
                "broadcasts to it"
            ) from None

    def __call__(self, row: int, t: float, z: Tensor) -> Tensor:
        """The state with the known part at its noise."""
        y = self.y.to(z).expand(len(z), *self.y.shape[1:])
        eps = Noise(self.seed).normal("replacement", row if self.fresh else 0, tuple(z.shape), dtype=z.dtype)
        mask = torch.broadcast_to(self.mask.to(z.device).bool(), self.y.shape).expand(y.shape)
        mask = mask.unsqueeze(1) if self.process.kind == "block" else mask
        return torch.where(mask, self.process.diffuse(y, t, eps.to(z)), z)
