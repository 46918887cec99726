r"""Spheres of any dimension, as unit vectors, and their heat kernels (generator Laplacian/2).

With E_k = e^{-phi_k^2/2s} and phi_k = theta + 2 pi k, at all times and distances:

| d | K_s(theta)                                                                                                  |
|---|-------------------------------------------------------------------------------------------------------------|
| 1 | (2 pi s)^{-1/2} sum E_k                                                                                     |
| 2 | e^{s/8} (2 pi)^{1/2} / (2 pi^2 s^{3/2}) int_0^{pi/2} sum (-1)^k phi_k E_k / sin(phi/2) d psi                |
| 3 | e^{s/2} (2 pi s)^{-3/2} sum phi_k E_k / sin theta                                                           |

where on S^2 cos(phi/2) = cos(theta/2) cos(psi): Mehler's integral of Legendre's polynomials, Poisson's summation, and a
substitution that leaves a smooth even function of period pi, for which equal weights converge exponentially (above
s = 1/2 14 terms of Legendre's series are the same number). From d = 4 on it is the series of Gegenbauer's polynomials
where e^{theta^2/2s} leaves it digits, else the expansion

$$ \log K = -\tfrac{\theta^2}{2s} - \tfrac d2 \log 2\pi s + \tfrac{d-1}{2} \log\tfrac{\theta}{\sin\theta}
   + s\Big(\tfrac{(d-1)^2}{8} - \tfrac{(d-1)(d-3)}{8}\,\tfrac{1 - \theta\cot\theta}{\theta^2}\Big) + O(s^2) $$

whose first term is Varadhan's, as published the target at s <= 0.5 (5 % off at s = 0.3; the series of five terms beyond
is accurate there, and negative far away below).

References: De Bortoli et al. 2022, section 3.3, https://arxiv.org/abs/2202.02763; Nowak, Sjogren, Szarek, Sharp
estimates of the spherical heat kernel, 2019, https://arxiv.org/abs/1802.09018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.manifold.base import Isotropic, column, images

__all__ = ["Sphere", "expansion", "series"]

NODES = 24  # of the integral over psi
TERMS = 72  # of the series: e^{-n^2 s/2} at s = 1/50


@dataclass(frozen=True)
class Sphere(Isotropic):
    """The unit sphere S^dim in dim + 1 coordinates."""

    dim: int = 2

    kind = "unit vectors"

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"got a sphere of dimension {self.dim}: give at least 1, points of two coordinates")

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.dim + 1,)

    @property
    def gap(self) -> float:  # type: ignore[override]
        return float(self.dim)

    @property
    def volume(self) -> float:  # type: ignore[override]
        half = (self.dim + 1) / 2
        return 2 * math.pi**half / math.gamma(half)

    @property
    def horizon(self) -> float:  # type: ignore[override]
        return (7 + 2 * math.log((self.dim + 1) / 3)) / self.dim

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        r = v.norm(dim=-1, keepdim=True)
        return self.nearest(r.cos() * x + torch.sinc(r / math.pi) * v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        v = self.project(x, y)
        r = v.norm(dim=-1, keepdim=True)
        theta = torch.atan2(r, (x * y).sum(-1, keepdim=True))
        return torch.where(r > 1e-12, theta / r.clamp(min=1e-12), 1.0) * v

    def project(self, x: Tensor, v: Tensor) -> Tensor:
        return v - (x * v).sum(-1, keepdim=True) * x

    def nearest(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True)

    def uniform(self, normal: Tensor) -> Tensor:
        return self.nearest(normal)

    def area(self, theta: Tensor) -> Tensor:
        return theta.sin().abs() ** (self.dim - 1)

    def radial(self, theta: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        lead = -(theta**2) / (2 * s)
        if self.dim == 1:
            phi, e = images(theta, s, 2 * math.pi)
            whole = e.sum(-1)
            return lead + whole.log() - (2 * math.pi * s).log() / 2, -(phi * e).sum(-1) / (s * whole)
        if self.dim == 2:
            return _two(theta, s)
        if self.dim == 3:
            phi, e = images(theta, s, 2 * math.pi)
            whole, slope = (phi * e).sum(-1), ((1 - phi**2 / s[..., None]) * e).sum(-1)
            log_k = lead + s / 2 - 1.5 * (2 * math.pi * s).log() + (whole / theta.sin()).log()
            return log_k, slope / whole - 1 / theta.tan()
        near, far = series(theta, s.clamp(min=0.02), self.dim, TERMS), expansion(theta, s, self.dim)
        exact = (s >= 0.02) & (theta**2 < 44 * s)
        return torch.where(exact, near[0].clamp(min=1e-300).log(), far[0]), torch.where(
            exact, near[1] / near[0], far[1]
        )


def _two(theta: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Log K and its slope on S^2: by the integral below s = 1/2, else by the series, which is cheap and exact there."""
    late = s > 0.5
    found = torch.empty(2, *theta.shape, dtype=theta.dtype)
    value, slope = series(theta[late], s[late], 2, 14)
    found[:, ~late] = torch.stack(_integral(theta[~late], s[~late])) if not bool(late.all()) else 0.0
    found[:, late] = torch.stack([value.log(), slope / value])
    return found[0], found[1]


def _integral(theta: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """See the module's docstring; psi ends where the integrand is e^-40 of itself."""
    a, c = column((theta / 2).sin(), theta[..., None]), column((theta / 2).cos(), theta[..., None])
    far = (theta**2 + 80 * s).sqrt()
    end = torch.where(far < math.pi, ((far / 2).cos() / c[..., 0]).clamp(0, 1).acos(), math.pi / 2)
    psi = end[..., None] * (torch.arange(NODES, dtype=theta.dtype) + 0.5) / NODES
    sin, cos = (a**2 + (c * psi.sin()) ** 2).sqrt(), c * psi.cos()  # of phi/2
    phi, e = images(2 * torch.atan2(sin, cos), s[..., None].expand(psi.shape), 2 * math.pi, turning=True)
    first = torch.exp((theta[..., None] ** 2 - phi[..., phi.shape[-1] // 2] ** 2) / (2 * s[..., None]))
    weight = first * (phi * e).sum(-1) / sin
    slope = first * ((1 - phi**2 / s[..., None, None]) * e).sum(-1) / sin - cos / (2 * sin) * weight
    whole = weight.sum(-1)
    log_k = s / 8 - theta**2 / (2 * s) - 1.5 * s.log() + (whole * end / NODES).log()
    rate = (slope * a * psi.cos() / sin).sum(-1) / whole
    return log_k + math.log(math.sqrt(2 * math.pi) / (2 * math.pi**2)), rate


def series(theta: Tensor, s: Tensor, dim: int, terms: int) -> tuple[Tensor, Tensor]:
    """The kernel and its slope by the first eigenfunctions: of degree n up to `terms`."""
    alpha, x = (dim - 1) / 2, theta.cos()
    c, b = [torch.ones_like(x), 2 * alpha * x], [torch.ones_like(x), 2 * (alpha + 1) * x]  # C_n^alpha, C_n^(alpha+1)
    for n in range(2, terms + 1):
        for found, order in ((c, alpha), (b, alpha + 1)):
            found.append((2 * (n + order - 1) * x * found[-1] - (n + 2 * order - 2) * found[-2]) / n)
    value, slope = torch.zeros_like(x), torch.zeros_like(x)
    for n in range(terms + 1):
        weight = (2 * n + dim - 1) / (dim - 1) * torch.exp(-n * (n + dim - 1) * s / 2) / Sphere(dim).volume
        value = value + weight * c[n]
        if n:
            slope = slope - theta.sin() * weight * 2 * alpha * b[n - 1]
    return value, slope


def expansion(theta: Tensor, s: Tensor, dim: int, order: int = 2) -> tuple[Tensor, Tensor]:
    """Log K and its slope by the first `order` + 1 terms at small times: Varadhan's alone for 0."""
    log_k, slope = -(theta**2) / (2 * s) - dim / 2 * (2 * math.pi * s).log(), -theta / s
    cot = 1 / theta.tan()
    if order > 0:
        log_k = log_k + (dim - 1) / 2 * (theta / theta.sin()).log()
        slope = slope + (dim - 1) / 2 * (1 / theta - cot)
    if order > 1:
        a, b = (dim - 1) ** 2 / 8, (dim - 1) * (dim - 3) / 8
        log_k = log_k + s * (a - b * (1 - theta * cot) / theta**2)
        slope = slope - s * b * ((theta * (1 + cot**2) + cot) / theta**2 - 2 / theta**3)
    return log_k, slope
