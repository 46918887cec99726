r"""Blurs and masks with noise on top: every frequency, or pixel, has its own signal, all share the noise.

Blurring diffusion: in the orthonormal DCT-II basis of the last two axes, with frequency
lambda_ij = pi^2 (i^2/H^2 + j^2/W^2),

$$ z_t = \alpha_t d_t \odot (V^T x_0) + \sigma_t \epsilon, \qquad
   d_t = (1 - d_{min}) e^{-\lambda \sigma_{B,t}^2 / 2} + d_{min}, \qquad \sigma_{B,t} = \sigma_B \sin^2(\pi t / 2) $$

and alpha = cos, sigma = sin of pi/2 (t + s)/(1 + 2 s), s = 0.004, as in gDDIM's code. The state is the DCT
coefficients. Heat dissipation, soft diffusion's blur and its masks are

$$ z_t = C_t x_0 + \sigma_t \epsilon $$

with C_t diagonal: a Gaussian blur in the DCT basis, exp(-lambda sigma_B^2 / 2), or a mask in the pixel basis. The
samplers of these papers are solvers here: `lcm` draws all noise anew (soft diffusion's naive sampler, and
heat dissipation's with delta = sigma), `ddim` keeps the part of the noise that is known.

References: Hoogeboom, Salimans, Blurring diffusion models, 2022, https://arxiv.org/abs/2209.05557; the code of gDDIM,
https://github.com/qsh-zh/gDDIM. Rissanen, Heinonen, Solin, Generative modelling with inverse heat dissipation, 2022,
https://arxiv.org/abs/2206.13397. Daras, Delbracio, Talebi, Dimakis, Milanfar, Soft diffusion: score matching for
general corruptions, 2022, https://arxiv.org/abs/2209.05442.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.process.base import Time, like, to_tensor
from fewstep.process.diagonal import BlurProcess, DiagonalProcess, frequencies
from fewstep.process.operator import Coefficient, Diagonal

__all__ = ["Blurring", "HeatDissipation", "Masking", "VEBlur"]

_SLOWEST = math.pi**2  # the least frequency of heat that fades, times the longer side to the power -2


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


@dataclass(frozen=True, kw_only=True)
class HeatDissipation(BlurProcess):
    """Inverse heat dissipation: blur sigma_B grows geometrically from blur_min to blur_max, the noise stays at `noise`.

    The mean never fades, so the state at t_max is a blurred image and not noise: start from one,
    `x=process.diffuse(x0, process.t_max, eps)`. `log_snr` is that of the slowest frequency that fades. Where we differ
    from the paper: frequencies keep at least `min_scale` of their amplitude (far below the noise), so that M has an
    inverse. Blurs are in units of the longer side; 1/64 to 3/4, with noise 0.01, is the paper's 0.5 to 24 at 32x32.
    """

    blur_min: float = 1 / 64
    blur_max: float = 0.75
    noise: float = 0.01
    min_scale: float = 1e-4
    t_max: float = 1.0
    t_min: float = 0.0

    default_grid = "log-snr"

    def __post_init__(self) -> None:
        super().__post_init__()
        if max(self.size) < 2:
            raise ValueError(f"got size={self.size} for HeatDissipation: one pixel does not blur; give more")
        if not 0 < self.blur_min < self.blur_max or self.noise <= 0:
            raise ValueError(
                f"got blur_min={self.blur_min}, blur_max={self.blur_max}, noise={self.noise}: give 0 < blur_min < "
                "blur_max and a noise above 0"
            )

    def prior(self, eps: Tensor, t: Time | None = None) -> Tensor:  # noqa: ARG002
        """There is none to draw from: refused."""
        raise ValueError(
            "got no start for HeatDissipation, whose states at t_max are blurred images and not noise: "
            "give x=process.diffuse(images, process.t_max, eps)"
        )

    def log_snr(self, t: Time) -> Time:
        """log(d / noise) of the slowest frequency that fades; `log_snr_modes` gives all."""
        left = (1 - self.min_scale) * torch.exp(-_SLOWEST * self._blur(to_tensor(t))) + self.min_scale
        return like(left.log() - math.log(self.noise), t)

    def inverse_log_snr(self, lam: Time) -> Time:
        scale = self.noise * to_tensor(lam).exp()
        blur2 = -2 * ((scale - self.min_scale) / (1 - self.min_scale)).log() / _SLOWEST
        return like((blur2.log() / 2 - math.log(self.blur_min)) / math.log(self.blur_max / self.blur_min), lam)

    def path_clock(self, t: Time) -> Time:
        """The log-SNR, stretched to [-8, 8]: its few e-folds would crowd the path."""
        high, low = (self.log_snr(end) for end in self.domain)
        return 16 * (self.log_snr(t) - low) / (high - low) - 8

    @property
    def _frequencies(self) -> Tensor:
        """In units of the longer side to the power -2."""
        return frequencies(self.size) * max(self.size) ** 2

    def _blur(self, t: Tensor) -> Tensor:
        return self.blur_min**2 * torch.exp(2 * math.log(self.blur_max / self.blur_min) * t) / 2

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.noise)


@dataclass(frozen=True, kw_only=True)
class _Exploding(DiagonalProcess):
    """VE's noise, geometric from sigma_min to sigma_max; modes keep at least `min_scale` of their amplitude."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    min_scale: float = 1e-3
    t_max: float = 1.0
    t_min: float = 1e-5

    default_grid = "logistic"

    def log_snr(self, t: Time) -> Time:
        """-log sigma: the clock of a mode that has not faded; `log_snr_modes` gives all."""
        return like(-self._sigma(to_tensor(t)).log(), t)

    def inverse_log_snr(self, lam: Time) -> Time:
        return like((-to_tensor(lam) - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min), lam)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(math.log(self.sigma_max / self.sigma_min) * t)


@dataclass(frozen=True, kw_only=True)
class VEBlur(_Exploding, BlurProcess):
    """Soft diffusion's blur: noise that explodes as in VE and a Gaussian blur that grows beside it.

    sigma_B,t = blur_max sin^2(pi t / 2), in pixels.
    """

    blur_max: float = 8.0

    def _blur(self, t: Tensor) -> Tensor:
        return (self.blur_max * torch.sin(math.pi / 2 * t) ** 2) ** 2 / 2


@dataclass(frozen=True, kw_only=True)
class Masking(_Exploding):
    """Soft diffusion's inpainting: pixels outside a growing disc in the middle stay, those inside fade.

    A pixel at a distance r from the middle (in units of half the shorter side) keeps
    c = 1 - (1 - min_scale) sigmoid((reach t - r) / softness) of its amplitude; the noise is VE's. The basis is the
    pixels, so coordinates are data.
    """

    reach: float = 2.0
    softness: float = 0.2

    def _faded(self, t: Tensor) -> Tensor:
        """The share of the way that every pixel has faded."""
        y, x = (torch.arange(n, dtype=torch.float64) + 0.5 - n / 2 for n in self.size)
        r = torch.hypot(y[:, None], x) * 2 / min(self.size)
        return torch.sigmoid((self.reach * t[..., None, None] - r) / self.softness)

    def _mean(self, t: Tensor) -> Tensor:
        return 1 - (1 - self.min_scale) * self._faded(t)

    def F(self, t: Time) -> Coefficient:
        """The rate d log c / dt of every pixel."""
        left = (1 - self.min_scale) * (faded := self._faded(to_tensor(t)))
        return Diagonal(left * (1 - faded) / (left - 1) * (self.reach / self.softness), 2)
