"""Antiderivatives of smooth functions by Chebyshev series."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["antiderivatives", "chebyshev"]


def chebyshev(degree: int) -> Tensor:
    """The roots of T_degree, in [-1, 1], from 1 down."""
    return (math.pi * (torch.arange(degree, dtype=torch.float64) + 0.5) / degree).cos()


def antiderivatives(values: Tensor) -> tuple[Tensor, Tensor]:
    """Series (panels, degree + 1) of the integrals from -1 of functions given at Chebyshev's roots, and up to 1.

    `values` is (panels, degree), at `chebyshev(degree)`. The function is interpolated and its series integrated: T_k
    integrates to T_{k+1}/(2k+2) - T_{k-1}/(2k-2).
    """
    degree = values.shape[-1]
    k = torch.arange(degree + 2, dtype=torch.float64)
    angle = math.pi * (torch.arange(degree, dtype=torch.float64) + 0.5) / degree
    c = values @ torch.cos(k * angle[:, None]) * (2 / degree)
    c[:, degree:] = 0.0  # T_degree vanishes in the roots, and the next is an image of the one before
    series = torch.zeros(len(values), degree + 1, dtype=torch.float64)
    series[:, 1:] = (c[:, :-2] - c[:, 2:]) / (2 * k[1:-1])
    signs = 1.0 - 2.0 * (torch.arange(degree + 1) % 2).double()
    start = (series * signs).sum(-1)
    series[:, 0] -= start
    return series, series.sum(-1)
