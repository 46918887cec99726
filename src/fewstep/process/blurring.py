r"""Blurring diffusion: every frequency has its own signal, all share the noise.

In the orthonormal DCT-II basis of the last two axes, with frequency lambda_ij = pi^2 (i^2/H^2 + j^2/W^2),

$$ z_t = \alpha_t d_t \odot (V^T x_0) + \sigma_t \epsilon, \qquad
   d_t = (1 - d_{min}) e^{-\lambda \sigma_{B,t}^2 / 2} + d_{min}, \qquad \sigma_{B,t} = \sigma_B \sin^2(\pi t / 2) $$

and alpha = cos, sigma = sin of pi/2 (t + s)/(1 + 2 s), s = 0.004, as in gDDIM's code. The state is the DCT
coefficients.

References: Hoogeboom, Salimans, Blurring diffusion models, 2022, https://arxiv.org/abs/2209.05557; the code of gDDIM,
https://github.com/qsh-zh/gDDIM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.process.base import Time, like, to_tensor
from fewstep.process.diagonal import BlurProcess

__all__ = ["Blurring"]


@dataclass(frozen=True, kw_only=True)
class Blurring(BlurProcess):
    """Blurring diffusion on images of `size` (height, width); times run from a noise level of 80 to 1e-5."""

    sigma_blur_max: float = 10.0
    min_scale: float = 1e-3
    offset: float = 0.004
    t_max: float = 0.9959797892563502  # sigma / alpha = 80
    t_min: float = 1e-5

    def alpha(self, t: Time) -> Time:
        """The signal of the unblurred mean (frequency zero)."""
        return like(torch.cos(self._angle(to_tensor(t))), t)

    def frequency_scaling(self, t: Time) -> Tensor:
        """d_t of every frequency, (height, width) or (batch, height, width)."""
        return self._faded(to_tensor(t)) + self.min_scale

    def log_snr(self, t: Time) -> Time:
        """log(alpha / sigma): the clock of frequency zero; `log_snr_modes` gives all."""
        return like(-torch.tan(self._angle(to_tensor(t))).log(), t)

    def inverse_log_snr(self, lam: Time) -> Time:
        angle = torch.atan((-to_tensor(lam)).exp())
        return like(angle * 2 * (1 + 2 * self.offset) / math.pi - self.offset, lam)

    def _blur(self, t: Tensor) -> Tensor:
        return (self.sigma_blur_max * torch.sin(math.pi / 2 * t) ** 2) ** 2 / 2

    def _clear(self, t: Tensor) -> Tensor:
        return torch.cos(self._angle(t))

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sin(self._angle(t))

    def _angle(self, t: Tensor) -> Tensor:
        return math.pi / 2 * (t + self.offset) / (1 + 2 * self.offset)
