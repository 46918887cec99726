r"""Rotations of space, SO(3), as matrices; the distance of two is the angle omega of the rotation between them.

S^3 covers it twice at half the scale: with theta = omega/2 and s' = s/4 the kernel is an eighth of the sum of S^3's at
both preimages, e^{s'/2} (2 pi s')^{-3/2} sum_k (-1)^k (theta + pi k) e^{-(theta + pi k)^2/2s'} / (8 sin theta).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.manifold.base import Isotropic, images

__all__ = ["Rotations", "matrix", "quaternion"]


@dataclass(frozen=True)
class Rotations(Isotropic):
    """SO(3). Tangent vectors at x are x A with A skew, of length |omega|: the metric is tr(u^T v)/2."""

    dim = 3
    kind = "matrices with x x^T = 1 and determinant 1"
    gap = 2.0
    volume = 8 * math.pi**2
    horizon = 4.6
    shape = (3, 3)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        a = x.mT @ v
        omega = _axis(a)
        half = omega.norm(dim=-1, keepdim=True) / 2
        return x @ matrix(torch.cat([half.cos(), torch.sinc(half / math.pi) * omega / 2], -1))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        q = quaternion(x.mT @ y)
        q = torch.where(q[..., :1] < 0, -q, q)
        r = q[..., 1:].norm(dim=-1, keepdim=True)
        scale = torch.where(r > 1e-12, 2 * torch.atan2(r, q[..., :1]) / r.clamp(min=1e-12), 2.0)
        return x @ _skew(scale * q[..., 1:])

    def project(self, x: Tensor, v: Tensor) -> Tensor:
        a = x.mT @ v
        return x @ ((a - a.mT) / 2)

    def nearest(self, x: Tensor) -> Tensor:
        """The orthogonal factor, by Newton's iteration, which converges from singular values below sqrt(3)."""
        x = x / (x.flatten(-2).norm(dim=-1) / math.sqrt(3))[..., None, None].clamp(min=1.0)
        for _ in range(14):
            x = 1.5 * x - 0.5 * x @ x.mT @ x
        return x

    def off(self, x: Tensor) -> Tensor:
        return torch.where(x.det() > 0, super().off(x), 2.0)

    def uniform(self, normal: Tensor) -> Tensor:
        q = normal.flatten(1)[:, :4]
        return matrix(q / q.norm(dim=-1, keepdim=True))

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        return super().inner(u, v) / 2

    def noise(self, x: Tensor, normal: Tensor) -> Tensor:
        return math.sqrt(2) * self.project(x, normal)

    def area(self, theta: Tensor) -> Tensor:
        return (theta / 2).sin() ** 2

    def radial(self, theta: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        half, s = theta / 2, s / 4
        phi, e = images(half, s, math.pi, turning=True)
        whole, slope = (phi * e).sum(-1), ((1 - phi**2 / s[..., None]) * e).sum(-1)
        log_k = s / 2 - half**2 / (2 * s) - 1.5 * (2 * math.pi * s).log() + (whole / half.sin()).log() - math.log(8)
        return log_k, (slope / whole - 1 / half.tan()) / 2


def matrix(q: Tensor) -> Tensor:
    """The rotation of a unit quaternion (batch, 4), its real part first."""
    w, u = q[..., :1, None], q[..., 1:]
    square = (u * u).sum(-1)[..., None, None]
    eye = torch.eye(3, dtype=q.dtype)
    return (w * w - square) * eye + 2 * u[..., None] * u[..., None, :] + 2 * w * _skew(u)


def quaternion(x: Tensor) -> Tensor:
    """One of the two unit quaternions of a rotation: the row of 4 q q^T with the largest entry on the diagonal."""
    d, o = x.diagonal(dim1=-2, dim2=-1), _axis(x - x.mT)
    trace, both = d.sum(-1, keepdim=True), x + x.mT
    square = torch.cat([1 + trace, 1 + 2 * d - trace], -1)
    rows = torch.cat([torch.cat([square[..., :1], o], -1)[..., None, :],
                      torch.cat([o[..., None], both - both.diagonal(dim1=-2, dim2=-1).diag_embed()
                                 + square[..., 1:].diag_embed()], -1)], -2)  # fmt: skip
    best = square.argmax(-1)[..., None, None].expand(*square.shape[:-1], 1, 4)
    q = rows.gather(-2, best)[..., 0, :]
    return q / q.norm(dim=-1, keepdim=True)


def _skew(v: Tensor) -> Tensor:
    a, b, c = v.unbind(-1)
    zero = torch.zeros_like(a)
    return torch.stack([zero, -c, b, c, zero, -a, -b, a, zero], -1).unflatten(-1, (3, 3))


def _axis(a: Tensor) -> Tensor:
    """The vector of a skew matrix."""
    return torch.stack([a[..., 2, 1], a[..., 0, 2], a[..., 1, 0]], -1)
