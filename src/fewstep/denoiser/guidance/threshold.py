r"""Thresholding: predictions of data of a known range are brought back into it, sample by sample.

$$ s = \min(\max(c, \mathrm{quantile}_p |D|), s_{max}), \qquad D' = c\, \mathrm{clip}(D, -s, s) / s $$

"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.base import Denoiser, Denoises
from fewstep.denoiser.guidance.gradient import settle
from fewstep.process.base import Time
from fewstep.words import Typed, within

__all__ = ["Thresholded", "quantile", "thresholded"]

SMALL = 2**24  # numbers that torch.quantile takes at most


@dataclass(frozen=True, eq=False)
class Thresholded(Typed, Denoiser):
    """Dynamic thresholding of the denoiser's x0_hat; static clipping where no quantile is given.

    Args:
        denoiser: (z, t) -> x0_hat, guided or not.
        quantile: p in (0, 1], the paper's is 0.995; None is static: clip(D, -c, c).
        bound: c, the largest absolute value of data.
        limit: s_max of at least c, beyond which predictions are clipped and not scaled (diffusers' sample_max_value).
        process: the process; None asks the denoiser.

    It has one output: solvers that take guidance apart (`ltsp`, `ddim-cfgpp`) want the guided denoiser itself.

    References: Saharia et al., Photorealistic text-to-image diffusion models with deep language understanding, 2022,
    https://arxiv.org/abs/2205.11487.
    """

    denoiser: Denoises
    quantile: float | None = 0.995
    _: KW_ONLY
    bound: float = 1.0
    limit: float = math.inf
    process: Any = None

    def __post_init__(self) -> None:
        if self.quantile is not None and not 0 < self.quantile <= 1:
            raise ValueError(f"got quantile={self.quantile}: give 0 < quantile <= 1, or None for static clipping")
        within(self, bound="(0, inf)")
        if self.quantile is None and self.limit != math.inf:
            raise ValueError(f"got limit={self.limit} without a quantile, which it limits: give bound={self.limit}")
        if not self.limit >= self.bound:
            raise ValueError(f"got limit={self.limit}: give a number of at least bound={self.bound}")
        settle(self, "denoiser")

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Tensor]:
        if output != "x0":
            return self.beside(output, t)
        call = self.denoiser.toward(t, output, to)
        return lambda z: thresholded(call(z), self.quantile, bound=self.bound, limit=self.limit)


def thresholded(d: Tensor, share: float | None, *, bound: float = 1.0, limit: float = math.inf) -> Tensor:
    """D' of predictions (batch, ...), at the quantile `share`; clip(D, -c, c) where that is None."""
    if share is None:
        return d.clamp(-bound, bound)
    s = torch.stack([quantile(row, share) for row in d.abs().flatten(1)])
    s = s.clamp(bound, max(bound, limit)).reshape(-1, *(1,) * (d.ndim - 1))
    return d.clamp(-s, s) * (bound / s)


def quantile(values: Tensor, q: float) -> Tensor:
    """The q-quantile of (n,) values, linear between the two nearest of them, for any n and floating-point dtype.

    With h = q (n - 1) it is (1 - h + k) v_k + (h - k) v_{k+1} of the sorted values, k = floor(h); NaN where a value is.
    """
    wide = values if values.dtype == torch.float64 else values.float()
    if len(wide) <= SMALL:
        return torch.quantile(wide, q).to(values)
    h = q * (len(wide) - 1)
    below, above = (wide.kthvalue(min(int(h) + 1 + i, len(wide))).values.double() for i in range(2))
    found = below + (h - int(h)) * (above - below)
    return torch.where(wide.isnan().any(), torch.nan, found).to(values)
