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
from functools import lru_cache

import torch
from torch import Tensor

from fewstep.process.base import Process, Time, derivative, like, to_tensor
from fewstep.process.operator import Coefficient, Diagonal

__all__ = ["Blurring"]


@dataclass(frozen=True, kw_only=True)
class Blurring(Process):
    """Blurring diffusion on images of `size` (height, width); times run from a noise level of 80 to 1e-5."""

    size: tuple[int, int] = (32, 32)
    sigma_blur_max: float = 10.0
    min_scale: float = 1e-3
    offset: float = 0.004
    t_max: float = 0.9959797892563502  # sigma / alpha = 80
    t_min: float = 1e-5

    kind = "diagonal"
    default_grid = "power"

    def __post_init__(self) -> None:
        size = (self.size, self.size) if isinstance(self.size, int) else tuple(int(n) for n in self.size)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"got size={self.size}: give (height, width)")
        object.__setattr__(self, "size", size)
        super().__post_init__()

    def alpha(self, t: Time) -> Time:
        """The signal of the unblurred mean (frequency zero)."""
        return like(torch.cos(self._angle(to_tensor(t))), t)

    def sigma(self, t: Time) -> Time:
        return like(torch.sin(self._angle(to_tensor(t))), t)

    def frequency_scaling(self, t: Time) -> Tensor:
        """d_t of every frequency, (height, width) or (batch, height, width)."""
        blur = self.sigma_blur_max * torch.sin(math.pi / 2 * to_tensor(t)) ** 2
        fall = torch.exp(-_frequencies(self.size) * (blur**2 / 2)[..., None, None])
        return (1 - self.min_scale) * fall + self.min_scale

    def M(self, t: Time) -> Coefficient:
        return self._diagonal(lambda u: torch.cos(self._angle(u))[..., None, None] * self.frequency_scaling(u), t)

    def Psi(self, t: Time) -> Coefficient:
        return self.M(t)

    def R(self, t: Time) -> Coefficient:
        return self._diagonal(lambda u: torch.sin(self._angle(u))[..., None, None].expand(*u.shape, *self.size), t)

    def F(self, t: Time) -> Coefficient:
        """The rate d log(alpha d) / dt of every frequency."""
        blur = math.pi / 2 * to_tensor(t)
        rate = self.sigma_blur_max**2 * torch.sin(blur) ** 3 * torch.cos(blur) * math.pi  # d(sigma_B^2 / 2) / dt
        d = self.frequency_scaling(t)
        fall = -_frequencies(self.size) * (d - self.min_scale) * rate[..., None, None] / d
        drift = derivative(lambda u: torch.cos(self._angle(u)).log(), to_tensor(t))
        return Diagonal(fall + drift[..., None, None], 2)

    def GG(self, t: Time) -> Coefficient:
        """g^2 = 2 sigma (sigma' - F sigma) of every frequency."""
        u = to_tensor(t)
        s, ds = (torch.sin(self._angle(u)), derivative(lambda v: torch.sin(self._angle(v)), u))
        s, ds = s[..., None, None], ds[..., None, None]
        return Diagonal(2 * s * (ds - self.F(t).values * s), 2)

    def log_snr(self, t: Time) -> Time:
        """log(alpha / sigma): the clock of frequency zero; `log_snr_modes` gives all."""
        return like(-torch.tan(self._angle(to_tensor(t))).log(), t)

    def log_snr_modes(self, t: Time) -> Tensor:
        """log(alpha d / sigma) of every frequency."""
        return to_tensor(self.log_snr(t))[..., None, None] + self.frequency_scaling(t).log()

    def inverse_log_snr(self, lam: Time) -> Time:
        angle = torch.atan((-to_tensor(lam)).exp())
        return like(angle * 2 * (1 + 2 * self.offset) / math.pi - self.offset, lam)

    def data_from_noise(self, t: Time) -> tuple[Coefficient, Coefficient]:
        """x0 = (z - sigma eps) / (alpha d), frequency by frequency."""
        m, r = self.M(t), self.R(t)
        return Diagonal(1 / m.values, 2), Diagonal(-r.values / m.values, 2)

    def data_from_score(self, t: Time) -> tuple[Coefficient, Coefficient]:
        """x0 = (z + sigma^2 s) / (alpha d), frequency by frequency."""
        m, r = self.M(t), self.R(t)
        return Diagonal(1 / m.values, 2), Diagonal(r.values**2 / m.values, 2)

    def coordinates(self, x0: Tensor) -> Tensor:
        """DCT-II coefficients of the last two axes."""
        rows, columns = (dct_matrix(n).to(x0) for n in self._sized(x0))
        return rows @ x0 @ columns.mT

    def from_coordinates(self, c: Tensor) -> Tensor:
        """The image of the coefficients."""
        rows, columns = (dct_matrix(n).to(c) for n in self._sized(c))
        return rows.mT @ c @ columns

    def _sized(self, x: Tensor) -> tuple[int, int]:
        if tuple(x.shape[-2:]) != self.size:
            raise ValueError(
                f"got images of shape {tuple(x.shape)} for Blurring(size={self.size}): "
                f"use Blurring(size={tuple(x.shape[-2:])})"
            )
        return self.size

    def _angle(self, t: Tensor) -> Tensor:
        return math.pi / 2 * (t + self.offset) / (1 + 2 * self.offset)

    def _diagonal(self, f, t: Time) -> Diagonal:
        return Diagonal(f(to_tensor(t)), 2)


@lru_cache(maxsize=16)
def dct_matrix(n: int) -> Tensor:
    """The orthonormal DCT-II: row k, column i is sqrt(2/n) cos(pi (i + 1/2) k / n), row 0 divided by sqrt 2."""
    with torch.inference_mode(False):  # kept between runs, differentiable ones too
        i = torch.arange(n, dtype=torch.float64)
        matrix = torch.cos(math.pi * (i + 0.5) * i[:, None] / n) * math.sqrt(2 / n)
        matrix[0] /= math.sqrt(2)
        return matrix


@lru_cache(maxsize=16)
def _frequencies(size: tuple[int, int]) -> Tensor:
    with torch.inference_mode(False):
        rows, columns = ((math.pi * torch.arange(n, dtype=torch.float64) / n) ** 2 for n in size)
        return rows[:, None] + columns
