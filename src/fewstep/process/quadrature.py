"""Quadrature: Gauss-Legendre nodes, Lagrange polynomials, and antiderivatives by Chebyshev series on panels."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["antiderivative", "around", "chebyshev", "collocation", "gauss", "lagrange", "series_at"]


@cache
def gauss(count: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [-1, 1], exact up to degree 2 count - 1."""
    with torch.inference_mode(False):  # kept between runs, differentiable ones too
        x, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(count))
        return x, w


@cache
def collocation(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gauss' nodes and weights on [0, 1], and by rows the weights of the integrals from 0 to every node."""
    c, w = ((a / 2).numpy() for a in (gauss(count)[0] + 1, gauss(count)[1]))
    powers = np.vander(c, increasing=True)
    inner = (powers * c[:, None] / np.arange(1, count + 1)) @ np.linalg.inv(powers)
    with torch.inference_mode(False):
        c, w, inner = (torch.from_numpy(a) for a in (c, w, inner))
        return c, w, inner


def lagrange(nodes: Tensor, u: Tensor) -> Tensor:
    """The Lagrange polynomials of nodes (.., count) at u (..): (.., count); a node that is nan is none."""
    share = (u[..., None] - nodes)[..., None, :] / (nodes[..., :, None] - nodes[..., None, :])
    return share.masked_fill(torch.eye(nodes.shape[-1], dtype=torch.bool) | share.isnan(), 1.0).prod(-1)


def around(panel: Tensor) -> tuple[int, int]:
    """A range of panels in eights, with 0 in it, around those asked for: so that few ranges are ever asked for."""
    low, high = (8 * math.floor(float(k) / 8) for k in (panel.min(), panel.max() + 8))
    return min(low, 0), max(high, 0)


def chebyshev(degree: int) -> Tensor:
    """The roots of T_degree, in [-1, 1], from 1 down."""
    return (math.pi * (torch.arange(degree, dtype=torch.float64) + 0.5) / degree).cos()


def antiderivative(values: Tensor, zero: int) -> Tensor:
    """Series (panels, degree + 1) of the integral, over panels that follow one another, of a function.

    `values` is (panels, degree), at `chebyshev(degree)` of each panel of length 2. The function is interpolated and its
    series integrated: T_k integrates to T_{k+1}/(2k+2) - T_{k-1}/(2k-2). It vanishes where the panel `zero` begins.
    """
    degree = values.shape[-1]
    k = torch.arange(degree + 2, dtype=torch.float64)
    angle = math.pi * (torch.arange(degree, dtype=torch.float64) + 0.5) / degree
    c = values @ torch.cos(k * angle[:, None]) * (2 / degree)
    c[:, degree:] = 0.0  # T_degree vanishes in the roots, and the next is an image of the one before
    series = torch.zeros(len(values), degree + 1, dtype=torch.float64)
    series[:, 1:] = (c[:, :-2] - c[:, 2:]) / (2 * k[1:-1])
    signs = 1.0 - 2.0 * (torch.arange(degree + 1) % 2).double()
    series[:, 0] -= (series * signs).sum(-1)
    whole = series.sum(-1)
    before = whole.cumsum(0) - whole
    series[:, 0] += before - before[zero]
    return series


def series_at(series: Tensor, x: Tensor) -> Tensor:
    """Chebyshev series (.., degree + 1) at places x (..), which are kept in [-1, 1]."""
    order = torch.arange(series.shape[-1], dtype=torch.float64)
    return (series * torch.cos(order * x.clamp(-1.0, 1.0).arccos()[..., None])).sum(-1)
