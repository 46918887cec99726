r"""Clipping of the data prediction, as diffusers' `clip_sample` and `thresholding` have it.

`clip_sample` clamps x0_hat to [-r, r]. `thresholding` (Saharia et al. 2022, Imagen, section 2.3,
https://arxiv.org/abs/2205.11487) takes a sample's quantile s of |x0_hat|, clamped to [1, s_max], and returns
clamp(x0_hat, -s, s) / s. All that a solver reads follows the clipped x0_hat, the noise prediction included: diffusers'
DDIM with `use_clipped_model_output=True`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fewstep.denoiser.guidance.threshold import thresholded
from fewstep.denoiser.network import bound
from fewstep.process.base import Time

__all__ = ["Clipped"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Clipped:
    """A denoiser whose x0_hat is clipped to [-bound, bound], or thresholded at a quantile where that is given.

    Attributes:
        inner: the denoiser (z, t) -> x0_hat; None for a rule that waits for one.
        bound: r, or s_max with a quantile.
        quantile: the share of |x0_hat| that lies below the threshold, in (0, 1]; None clips.
    """

    inner: Callable[[Tensor, Time], Tensor] | None = None
    bound: float = 1.0
    quantile: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.bound < float("inf"):
            raise ValueError(f"got a range of {self.bound} to clip to: give the largest value of data, above 0")
        if self.quantile is not None and not 0 < self.quantile <= 1:
            raise ValueError(f"got a thresholding ratio of {self.quantile}: give 0 < ratio <= 1")

    def __call__(self, z: Tensor, t: Time) -> Tensor:
        """The clipped x0_hat."""
        return self.at(t)(z)

    def at(self, t: Time, output: str = "x0") -> Callable[[Tensor], Any]:
        """The same at one time."""
        assert self.inner is not None
        call = bound(self.inner, t, output)
        return lambda z: self.clip(call(z))

    def clip(self, x0: Tensor) -> Tensor:
        if self.quantile is None:
            return thresholded(x0, None, bound=self.bound)
        return thresholded(x0, self.quantile, limit=self.bound)
