r"""The Schroedinger bridge as two stochastic equations: losses, steps, corrector and likelihood.

$$ dX = (f + g Z)\, dt + g\, dw \quad \text{from the data}, \qquad dX = (-f + g \hat Z)\, dt + g\, dw
   \quad \text{from the far end} $$

for a reference dX = f dt + g dw. At the solution Z + Z^ is g times the score; with Z = 0 all of it is a score model.
One network is fitted to walks of the other, whose own outputs are constants:

$$ L(\hat Z) = E \int \tfrac12 |\hat Z|^2 + \hat Z \cdot Z + \nabla \cdot (g \hat Z)\, dt, \qquad
   L(Z, \hat Z) = E\Big[-\log q(X_T) + \int \tfrac12 |Z + \hat Z|^2 + \nabla \cdot (g \hat Z - f)\, dt\Big], $$

the second of both at once, along walks from the data; it bounds -log p of the data. Published code leaves out the
divergence of f, which no network changes.

References: Chen, Liu, Theodorou, Likelihood training of Schrodinger bridge using forward-backward SDEs theory, 2021,
eq. 16 to 19, https://arxiv.org/abs/2110.11291.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.manifold.walk import Velocity, divergence

__all__ = ["alternate", "corrected", "joint", "moved"]


def moved(x: Tensor, f: Tensor | float, z: Tensor, g: float, h: float, normal: Tensor) -> Tensor:
    """A step over time h of either equation: f is -f on the way back."""
    return x + (f + g * z) * h + g * math.sqrt(h) * normal


def alternate(own: Velocity, x: Tensor, t: Tensor, other: Tensor, g: Tensor, probe: Tensor | None = None) -> Tensor:
    """The integrand of L(own) at points (batch, *shape) and times (batch,); `other`: the walker's outputs there."""
    value, div = divergence(None, own, x, t, probe=probe, graph=True)
    return _dot(value, value / 2 + other) + g * div


def joint(z: Velocity, z_hat: Velocity, x: Tensor, t: Tensor, g: Tensor, probe: Tensor | None = None) -> Tensor:
    """The integrand of L(z, z_hat) without the divergence of f."""
    value, div = divergence(None, z_hat, x, t, probe=probe, graph=True)
    both = value + z(x, t)
    return _dot(both, both) / 2 + g * div


def corrected(x: Tensor, both: Tensor, g: float, normal: Tensor, *, snr: float, alpha: float = 1.0) -> Tensor:
    """A Langevin step by Z + Z^: x + g e both + g sqrt(2 e) normal, e = 2 alpha (snr |normal| / |both|)^2, mean norms.

    `alpha` is the square of the reference's mean (1 where it has no drift).
    """
    norms = [v.flatten(1).norm(dim=1).mean() for v in (normal, both)]
    e = 2 * alpha * (snr * norms[0] / norms[1]) ** 2
    return x + g * e * both + g * torch.sqrt(2 * e) * normal


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)
