r"""What a manifold gives: geodesics, its heat kernel, and points that have diffused.

Points are (batch, *shape) in the space around it, tangent vectors too. Brownian motion has the generator Laplacian/2
and runs by its own clock s: a process dX = sqrt(beta) dB has s = int beta dt. Its law from a point is the heat kernel
K_s; what is learned at noise s is the score of K_s averaged over the data, by regression on

$$ \nabla_x \log K_s(x_0, x) = -\frac{1}{\theta} \frac{d \log K_s}{d \theta} \log_x(x_0) $$

where the kernel depends on the distance theta alone. Densities are by the manifold's own volume (area on the sphere).

References: De Bortoli et al., Riemannian score-based generative modelling, 2022, https://arxiv.org/abs/2202.02763.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.words import Typed

__all__ = ["Isotropic", "Manifold", "column", "images"]


class Manifold(Typed, ABC):
    """A compact manifold.

    `gap` is the first eigenvalue of -Laplacian, `volume` its whole, and `horizon` the s at which e^{-gap s/2} has left
    9 % of the first modes of a point, as many as they are.
    """

    kind: ClassVar[str]  # what points on it are
    gap: float
    volume: float
    horizon: float
    shape: tuple[int, ...]

    @abstractmethod
    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """The end of the geodesic from x with velocity v, after time 1."""

    @abstractmethod
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest tangent vector at x that leads to y."""

    @abstractmethod
    def project(self, x: Tensor, v: Tensor) -> Tensor:
        """The tangent part of a vector at x."""

    @abstractmethod
    def nearest(self, x: Tensor) -> Tensor:
        """The point nearest to one that is a little off."""

    @abstractmethod
    def uniform(self, normal: Tensor) -> Tensor:
        """Uniform points of standard normals (batch, *shape)."""

    @abstractmethod
    def log_kernel(self, x: Tensor, x0: Tensor, s: Tensor) -> Tensor:
        """The logarithm of the heat kernel at times s (batch,)."""

    @abstractmethod
    def score(self, x: Tensor, x0: Tensor, s: Tensor) -> Tensor:
        """The gradient of `log_kernel` by x."""

    @abstractmethod
    def diffuse(self, x0: Tensor, s: Tensor, normal: Tensor) -> Tensor:
        """Points with the law of the heat kernel from x0, of standard normals (batch, *shape)."""

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        """The metric: (batch,)."""
        return (u * v).flatten(1).sum(1)

    def noise(self, x: Tensor, normal: Tensor) -> Tensor:
        """A standard normal in the tangent space at x, of one in the space around."""
        return self.project(x, normal)

    def features(self, x: Tensor) -> Tensor:
        """What a network reads of points: (batch, m), smooth and the same for the same point."""
        return x.flatten(1)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        v = self.log(x, y)
        return self.inner(v, v).sqrt()

    def off(self, x: Tensor) -> Tensor:
        """How far points (batch, *shape) are from it: (batch,)."""
        return (self.nearest(x) - x).abs().flatten(1).amax(1)

    def points(self, x: Any) -> Tensor:
        """The points (batch, *shape) as they lie on it, float64; refused where they do not, to 1e-4."""
        x = torch.as_tensor(x, dtype=torch.float64)
        if x.ndim != 1 + len(self.shape) or tuple(x.shape[1:]) != self.shape or not len(x):
            raise ValueError(
                f"got points of shape {tuple(x.shape)} for {self}: give (batch, {str(self.shape)[1:-1].rstrip(',')})"
            )
        far = self.off(x)
        if not bool((far <= 1e-4).all()):  # or it is no number
            raise ValueError(f"got points up to {float(far.max()):.3g} off {self}: give {self.kind}")
        return self.nearest(x)


class Isotropic(Manifold):
    """A manifold whose kernel depends on the distance alone."""

    dim: int

    @abstractmethod
    def radial(self, theta: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Log K and d log K / d theta at distances theta > 0."""

    @abstractmethod
    def area(self, theta: Tensor) -> Tensor:
        """The area of the sphere at distance theta, but for a factor."""

    def log_kernel(self, x: Tensor, x0: Tensor, s: Tensor) -> Tensor:
        return self.radial(self.distance(x, x0).clamp(min=1e-5), s)[0]

    def score(self, x: Tensor, x0: Tensor, s: Tensor) -> Tensor:
        v = self.log(x, x0)
        theta = self.inner(v, v).sqrt().clamp(min=1e-5)
        return column(-self.radial(theta, s)[1] / theta, v) * v

    def diffuse(self, x0: Tensor, s: Tensor, normal: Tensor) -> Tensor:
        """The tangent normal with its length r moved to theta, where as much of the kernel lies beyond."""
        v = self.noise(x0, normal)
        r = self.inner(v, v).sqrt()
        pace, table = _lengths(self)
        i = (s.sqrt() / pace).clamp(max=len(table) - 1 - 1e-9)
        j = (r * 20).clamp(max=table.shape[1] - 1 - 1e-9)
        (a, p), (b, q) = ((k.long(), k - k.long()) for k in (i, j))
        ratio = (1 - p) * ((1 - q) * table[a, b] + q * table[a, b + 1])
        ratio = ratio + p * ((1 - q) * table[a + 1, b] + q * table[a + 1, b + 1])
        return self.exp(x0, column(ratio * s.sqrt(), v) * v)


def column(v: Tensor, like: Tensor) -> Tensor:
    """Numbers, one a point, in the shape that multiplies points."""
    return v.reshape(-1, *(1,) * (like.ndim - 1))


def images(theta: Tensor, s: Tensor, period: float, *, turning: bool = False) -> tuple[Tensor, Tensor]:
    """(phi_k, e_k): theta + k period and e^{-(phi_k^2 - theta^2)/2s}, with sign (-1)^k where `turning`; k last."""
    k = math.floor(0.5 + math.sqrt(80 * float(s.max()) / period**2 + 0.25))  # beyond, e < e^-40 at theta <= period/2
    turns = torch.arange(-k, k + 1, dtype=theta.dtype)
    phi = theta[..., None] + period * turns
    e = torch.exp((theta[..., None] ** 2 - phi**2) / (2 * s[..., None]))
    return phi, e * (1 - 2 * (turns % 2)) if turning else e


@lru_cache(maxsize=16)
def _lengths(manifold: Isotropic) -> tuple[float, Tensor]:
    """Theta / (r sqrt(s)) at sqrt(s) in steps from 0 and r = 0, 1/20, ..., 7: as much of the kernel lies beyond."""
    count, cells = 32, 256
    pace = math.sqrt(manifold.horizon) / count
    r = torch.arange(1, 141, dtype=torch.float64) / 20
    wanted = torch.special.gammaincc(torch.tensor(manifold.dim / 2, dtype=torch.float64), r * r / 2).log()
    rows = [torch.ones(141, dtype=torch.float64)]
    for root in torch.arange(1, count + 1, dtype=torch.float64) * pace:
        far = min(math.pi, 10 * math.sqrt(manifold.dim) * float(root))
        theta = (torch.arange(cells, dtype=torch.float64) + 0.5) * far / cells
        log_k = manifold.radial(theta, (root**2).expand(cells))[0]
        mass = (log_k - log_k.max()).exp() * manifold.area(theta)
        tail = mass.flip(0).cumsum(0).flip(0).clamp(min=1e-300).log()  # at the cells' lower ends
        tail = tail - tail[0]
        k = torch.searchsorted(-tail, -wanted).clamp(1, cells - 1)
        found = (k - 1 + (tail[k - 1] - wanted) / (tail[k - 1] - tail[k])) * far / cells
        ratio = found.clamp(max=math.pi) / (r * root)
        rows.append(torch.cat([ratio[:1], ratio]))
    return pace, torch.stack(rows)
