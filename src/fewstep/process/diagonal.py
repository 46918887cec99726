r"""Processes that are diagonal in a basis: every mode has its own signal, all share the noise.

$$ z_t = m_t \odot c_0 + \sigma_t \epsilon, \qquad c_0 = V^T x_0 $$

m_t holds the signal of every mode of the basis V over the last two axes; the state lives in that basis.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sqrt

import torch
from torch import Tensor

from fewstep.process.base import Process, Time, derivative, like, to_tensor
from fewstep.process.operator import Coefficient, Diagonal
from fewstep.words import bounded, short, whole

__all__ = ["BlurProcess", "DCTProcess", "DiagonalProcess", "dct_matrix", "frequencies"]

Size = tuple[int, int]  # or one number for both when it is given


@dataclass(frozen=True, kw_only=True)
class DiagonalProcess(Process):
    """A diagonal process on images of `size` (height, width). To write one, give `_mean`, `_sigma` and the log-SNR."""

    size: Size = (32, 32)

    kind = "diagonal"
    default_grid = "power"

    def __post_init__(self) -> None:
        several = isinstance(self.size, Iterable) and not isinstance(self.size, str | Mapping)
        sides = self.size if several else (self.size, self.size)
        size = tuple(bounded("pixels on a side", whole("size", n)) for n in sides)
        if len(size) != 2:
            raise ValueError(f"got size={short(size)}: give (height, width)")
        object.__setattr__(self, "size", size)
        super().__post_init__()

    @abstractmethod
    def _mean(self, t: Tensor) -> Tensor:
        """The signal of every mode, (*t, height, width); above zero."""

    @abstractmethod
    def _sigma(self, t: Tensor) -> Tensor:
        """The standard deviation of the noise, shaped like t."""

    def sigma(self, t: Time) -> Time:
        return like(self._sigma(to_tensor(t)), t)

    def M(self, t: Time) -> Coefficient:
        return Diagonal(self._mean(to_tensor(t)), 2)

    def Psi(self, t: Time) -> Coefficient:
        return self.M(t)

    def R(self, t: Time) -> Coefficient:
        t = to_tensor(t)
        return Diagonal(self._sigma(t)[..., None, None].expand(*t.shape, *self.size), 2)

    def Sigma(self, t: Time) -> Coefficient:
        t = to_tensor(t)
        return Diagonal((self._sigma(t) ** 2)[..., None, None].expand(*t.shape, *self.size), 2)

    def F(self, t: Time) -> Coefficient:
        """The rate d log m / dt of every mode, exact to rounding: reverse mode in float64, turned round by another."""
        with torch.inference_mode(False), torch.enable_grad():
            u = to_tensor(t).clone().detach().requires_grad_(True)
            mean = self._mean(u)
            weight = torch.ones_like(mean, requires_grad=True)
            (pulled,) = torch.autograd.grad(mean, u, weight, create_graph=True)
            (rate,) = torch.autograd.grad(pulled.sum(), weight)
            return Diagonal(rate / mean.detach(), 2)

    def GG(self, t: Time) -> Coefficient:
        """g^2 = 2 sigma (sigma' - F sigma) of every mode."""
        u = to_tensor(t)
        s, ds = self._sigma(u)[..., None, None], derivative(self._sigma, u)[..., None, None]
        return Diagonal(2 * s * (ds - self.F(t).values * s), 2)

    def log_snr_modes(self, t: Time) -> Tensor:
        """log(m / sigma) of every mode."""
        u = to_tensor(t)
        return self._mean(u).log() - self._sigma(u).log()[..., None, None]

    def data_from_noise(self, t: Time) -> tuple[Coefficient, Coefficient]:
        """x0 = (z - sigma eps) / m, mode by mode."""
        m, r = self.M(t), self.R(t)
        return Diagonal(1 / m.values, 2), Diagonal(-r.values / m.values, 2)

    def data_from_score(self, t: Time) -> tuple[Coefficient, Coefficient]:
        """x0 = (z + sigma^2 s) / m, mode by mode."""
        m, r = self.M(t), self.R(t)
        return Diagonal(1 / m.values, 2), Diagonal(r.values**2 / m.values, 2)

    def _sized(self, x: Tensor) -> tuple[int, int]:
        if tuple(x.shape[-2:]) != self.size:
            name, size = type(self).__name__, tuple(x.shape[-2:])
            raise ValueError(f"got images of shape {tuple(x.shape)} for {name}(size={self.size}): use size={size}")
        return self.size


@dataclass(frozen=True, kw_only=True)
class DCTProcess(DiagonalProcess):
    """A diagonal process in the orthonormal DCT-II basis: blurs with reflecting edges."""

    def coordinates(self, x0: Tensor) -> Tensor:
        rows, columns = (dct_matrix(n).to(x0) for n in self._sized(x0))
        return rows @ x0 @ columns.mT

    def from_coordinates(self, c: Tensor) -> Tensor:
        rows, columns = (dct_matrix(n).to(c) for n in self._sized(c))
        return rows.mT @ c @ columns


@dataclass(frozen=True, kw_only=True)
class BlurProcess(DCTProcess):
    """Frequencies that fade as exp(-lambda b_t), but for `min_scale` of them, below a signal that all share.

    To write one, give b_t, and `_clear` and `_frequencies` where they are others.
    """

    min_scale: float = 1e-3

    @abstractmethod
    def _blur(self, t: Tensor) -> Tensor:
        """Half the square of the blur, shaped like t."""

    def _clear(self, t: Tensor) -> Tensor:
        """The signal of frequency zero."""
        return torch.ones_like(t)

    @property
    def _frequencies(self) -> Tensor:
        return frequencies(self.size)

    def _faded(self, t: Tensor) -> Tensor:
        return (1 - self.min_scale) * torch.exp(-self._frequencies * self._blur(t)[..., None, None])

    def _mean(self, t: Tensor) -> Tensor:
        return self._clear(t)[..., None, None] * (self._faded(t) + self.min_scale)

    def F(self, t: Time) -> Coefficient:
        """The rate d log m / dt: that of the shared signal, less lambda b' of the part that fades."""
        u = to_tensor(t)
        faded, blur = self._faded(u), derivative(self._blur, u)[..., None, None]
        shared = (derivative(self._clear, u) / self._clear(u))[..., None, None]
        return Diagonal(shared - self._frequencies * blur * (faded / (faded + self.min_scale)), 2)


@lru_cache(maxsize=16)
def dct_matrix(n: int) -> Tensor:
    """The orthonormal DCT-II: row k, column i is sqrt(2/n) cos(pi (i + 1/2) k / n), row 0 divided by sqrt 2."""
    with torch.inference_mode(False):  # kept between runs, differentiable ones too
        rows = [[cos(pi * (i + 0.5) * k / n) * sqrt((1 if k == 0 else 2) / n) for i in range(n)] for k in range(n)]
        return torch.tensor(rows, dtype=torch.float64)


@lru_cache(maxsize=16)
def frequencies(size: tuple[int, int]) -> Tensor:
    """pi^2 (i^2/H^2 + j^2/W^2), the eigenvalues of minus the Laplacian."""
    with torch.inference_mode(False):
        rows, columns = ((pi * torch.arange(n, dtype=torch.float64) / n) ** 2 for n in size)
        return rows[:, None] + columns
