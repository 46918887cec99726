r"""Tori, as angles in [-pi, pi): the kernel is a product of wrapped normals, K = prod_i (2 pi s)^{-1/2} sum_k E_k."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.manifold.base import Manifold, column
from fewstep.manifold.sphere import Sphere
from fewstep.words import whole

__all__ = ["Torus"]


@dataclass(frozen=True)
class Torus(Manifold):
    """The product of `dim` circles of radius 1."""

    dim: int = 2

    kind = "angles in [-2 pi, 2 pi]"
    gap = 1.0

    def __post_init__(self) -> None:
        whole("dim", self.dim)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.dim,)

    @property
    def volume(self) -> float:  # type: ignore[override]
        return (2 * math.pi) ** self.dim

    @property
    def horizon(self) -> float:  # type: ignore[override]
        return 7 + 2 * math.log(2 * self.dim / 3)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.nearest(x + v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return self.nearest(y - x)

    def project(self, x: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002
        return v

    def nearest(self, x: Tensor) -> Tensor:
        return torch.remainder(x + math.pi, 2 * math.pi) - math.pi

    def off(self, x: Tensor) -> Tensor:
        return (x.abs() - 2 * math.pi).clamp(min=0).amax(1)

    def uniform(self, normal: Tensor) -> Tensor:
        return 2 * math.pi * torch.special.ndtr(normal) - math.pi

    def log_kernel(self, x: Tensor, x0: Tensor, s: Tensor) -> Tensor:
        return self._circles(x, x0, s)[0].sum(-1)

    def score(self, x: Tensor, x0: Tensor, s: Tensor) -> Tensor:
        return self._circles(x, x0, s)[1]

    def diffuse(self, x0: Tensor, s: Tensor, normal: Tensor) -> Tensor:
        return self.exp(x0, column(s, x0).sqrt() * normal)

    def features(self, x: Tensor) -> Tensor:
        return torch.cat([x.cos(), x.sin()], -1)

    def _circles(self, x: Tensor, x0: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        v = self.log(x0, x)
        log_k, slope = Sphere(1).radial(v.abs(), column(s, v).expand(v.shape))
        return log_k, slope * v.sign()
