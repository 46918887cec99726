r"""Coefficients of linear Gaussian processes: numbers, diagonals in a basis, small blocks.

A coefficient multiplies a state. For a scalar process it is a Python float (or a `(batch,)` float64 tensor where every
sample has its own time); for a process that is diagonal in a basis it is a `Diagonal`; for one that couples position
and velocity it is a `Block`. All of them add, subtract and multiply, in the order the formula is written, so one line
z_s = M_s D + R_s R_t^-1 (z_t - M_t D) runs on every process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Block", "Coefficient", "Diagonal", "Operator", "apply", "cholesky", "inverse", "is_zero", "log_det", "magnitude",
    "root", "stacked", "trace", "transpose", "unstacked", "values_of", "weighted_sum", "wide"
]  # fmt: skip


class Operator:
    """What `Diagonal` and `Block` share: they add, subtract and scale as their `values` do.

    No ABC, of which `isinstance` is slow: it is asked in every row of a run.
    """

    values: Tensor

    def of(self, values: Tensor) -> Any:
        """One of the same kind with other values."""

    def _added(self, other: Coefficient) -> Any:
        """Another coefficient as what is added to the values."""

    def __mul__(self, other: Coefficient) -> Any: ...

    def apply(self, x: Tensor) -> Any:
        """The product with a batch of states, or data."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and torch.equal(self.values, other.values)

    def __add__(self, other: Coefficient) -> Any:
        return self.of(self.values + self._added(other))

    def __sub__(self, other: Coefficient) -> Any:
        return self.of(self.values - self._added(other))

    def __neg__(self) -> Any:
        return self.of(-self.values)

    def __rmul__(self, other: Coefficient) -> Any:
        return self * other

    def __radd__(self, other: Coefficient) -> Any:
        return self + other

    def __rsub__(self, other: Coefficient) -> Any:
        return -self + other

    def to(self, x: Tensor) -> Any:
        """In the dtype and on the device of x."""
        return self.of(self.values.to(x))


@dataclass(frozen=True, eq=False)
class Diagonal(Operator):
    """Multiplies the trailing `rank` axes of a state elementwise; `values` is (*rank axes) or (batch, *rank axes)."""

    values: Tensor
    rank: int

    def of(self, values: Tensor) -> Diagonal:
        return Diagonal(values, self.rank)

    def _added(self, other: Coefficient) -> Tensor | float:
        if isinstance(other, Tensor):
            return other.reshape(other.shape + (1,) * self.rank)
        return other.values if isinstance(other, Diagonal) else other

    def __mul__(self, other: Coefficient) -> Diagonal:
        if not isinstance(other, Diagonal | Tensor | float | int):
            return NotImplemented
        return self.of(self.values * self._added(other))

    def apply(self, x: Tensor) -> Tensor:
        v = self.values.to(x)
        if v.ndim > self.rank:  # per sample
            v = v.reshape(v.shape[:1] + (1,) * (x.ndim - 1 - self.rank) + v.shape[1:])
        if x.shape[x.ndim - self.rank :] != v.shape[v.ndim - self.rank :]:
            shape, size = tuple(x.shape), tuple(v.shape[v.ndim - self.rank :])
            raise ValueError(
                f"got a state of shape {shape} for a process, or statistics, whose last axes are {size}: build the "
                f"process with size={shape[x.ndim - self.rank :]}, or measure the statistics on data of this shape"
            )
        return v * x


@dataclass(frozen=True, eq=False)
class Block(Operator):
    """A small matrix over a state's second axis; `values` is (m, n) or (batch, m, n).

    A column of 1 (n = 1) takes data of shape (batch, *shape) to a state of shape (batch, m, *shape); a row of 1
    (m = 1) takes a state to data.
    """

    values: Tensor

    def of(self, values: Tensor) -> Block:
        return Block(values)

    def _added(self, other: Coefficient) -> Tensor:
        if isinstance(other, Block):
            return other.values
        if isinstance(other, Tensor):
            other = other[:, None, None]
        return other * torch.eye(self.values.shape[-1], dtype=torch.float64)

    def __mul__(self, other: Coefficient) -> Block:
        if isinstance(other, Block):
            return Block(self.values @ other.values)
        if not isinstance(other, Tensor | float | int):
            return NotImplemented
        return Block(self.values * (other[:, None, None] if isinstance(other, Tensor) else other))

    def apply(self, x: Tensor) -> Tensor:
        v = self.values.to(x)
        m, n = v.shape[-2:]
        if n == 1:
            x = x.unsqueeze(1)
        if x.ndim < 2 or x.shape[1] != n:
            raise ValueError(f"got a state of shape {tuple(x.shape)}: this process wants (batch, {n}, *shape)")
        y = (v @ x.reshape(x.shape[0], n, -1)).reshape(x.shape[0], m, *x.shape[2:])
        return y.squeeze(1) if m == 1 else y


# float | (batch,) Tensor | Diagonal | Block; a type checker cannot multiply such a union, so it is Any to it.
Coefficient = Any


def apply(c: Coefficient, x: Tensor) -> Tensor:
    """The coefficient times a batch of states or data."""
    if isinstance(c, Operator):
        return c.apply(x)
    if isinstance(c, Tensor):
        return c.to(x).reshape(c.shape + (1,) * (x.ndim - c.ndim)) * x
    return c * x


def values_of(c: Coefficient) -> Any:
    """What a coefficient holds."""
    return c.values if isinstance(c, Operator) else c


def wide(v: Any, x: Tensor) -> Any:
    """Numbers, one a sample, in the shape that multiplies states x; a number as it is."""
    return v.to(x).reshape(-1, *(1,) * (x.ndim - 1)) if isinstance(v, Tensor) else v


def inverse(c: Coefficient) -> Coefficient:
    """c^-1; infinite where a number is zero."""
    if isinstance(c, Block):
        return Block(torch.linalg.inv(c.values))
    if isinstance(c, Diagonal):
        alike = not any(c.values.stride()[c.values.ndim - c.rank :])  # one number, seen at all places
        values = c.values[(..., *[slice(1)] * c.rank)] if alike else c.values
        return c.of((1 / values).expand_as(c.values))
    if isinstance(c, Tensor):
        return 1 / c
    return 1 / c if c else math.inf


def transpose(c: Coefficient) -> Coefficient:
    """c^T."""
    return Block(c.values.mT) if isinstance(c, Block) else c


def cholesky(c: Coefficient) -> Coefficient:
    """Lower L with L L^T = c; c may be singular, rounding below zero is read as zero."""
    if isinstance(c, Block):
        return Block(_cholesky2(c.values))
    return root(c)


def root(c: Coefficient) -> Coefficient:
    """The symmetric square root of a positive semi-definite coefficient."""
    if isinstance(c, Block):
        v = c.values
        det = (v[..., 0, 0] * v[..., 1, 1] - v[..., 0, 1] * v[..., 1, 0]).clamp(min=0).sqrt()
        trace = v[..., 0, 0] + v[..., 1, 1] + 2 * det
        eye = torch.eye(2, dtype=v.dtype) * det[..., None, None]
        return Block((v + eye) / trace.clamp(min=torch.finfo(v.dtype).tiny).sqrt()[..., None, None])
    if isinstance(c, Diagonal):
        return c.of(c.values.clamp(min=0).sqrt())
    return c.clamp(min=0).sqrt() if isinstance(c, Tensor) else math.sqrt(max(c, 0.0))


def log_det(c: Coefficient, data_shape: tuple[int, ...]) -> Tensor | float:
    """Log |det c| over a whole state whose data part has `data_shape`; a number, or (batch,)."""
    count = math.prod(data_shape)
    if isinstance(c, Block):
        return torch.linalg.slogdet(c.values)[1] * count
    if isinstance(c, Diagonal):
        repeat = count // math.prod(c.values.shape[c.values.ndim - c.rank :])
        return c.values.abs().log().flatten(c.values.ndim - c.rank).sum(-1) * repeat
    return count * (c.abs().log() if isinstance(c, Tensor) else math.log(abs(c)))


def trace(c: Coefficient, data_shape: tuple[int, ...]) -> Tensor | float:
    """The trace of c over a whole state whose data part has `data_shape`; a number, or (batch,)."""
    count = math.prod(data_shape)
    if isinstance(c, Block):
        return c.values.diagonal(dim1=-2, dim2=-1).sum(-1) * count
    if isinstance(c, Diagonal):
        repeat = count // math.prod(c.values.shape[c.values.ndim - c.rank :])
        return c.values.flatten(c.values.ndim - c.rank).sum(-1) * repeat
    return c * count


def magnitude(c: Coefficient) -> float:
    """The largest absolute entry."""
    values = values_of(c)
    return float(values.detach().abs().max()) if isinstance(values, Tensor) else abs(values)


def weighted_sum(weights: Tensor, c: Coefficient) -> Coefficient:
    """sum_i weights_i c_i of a coefficient with one entry a time."""
    return c.of(torch.tensordot(weights, c.values, 1)) if isinstance(c, Operator) else float(weights @ c)


def stacked(each: list[Coefficient]) -> Coefficient:
    """One coefficient with an entry a sample, of coefficients that have none."""
    if isinstance(each[0], Operator):
        return each[0].of(torch.stack([c.values for c in each]))
    return torch.tensor(each, dtype=torch.float64)


def unstacked(c: Coefficient) -> list[Coefficient]:
    """The coefficients of single times, of one that has an entry a time: the inverse of `stacked`."""
    if isinstance(c, Operator):
        return [c.of(values) for values in c.values]
    return [value + 0.0 for value in c.tolist()]  # never -0.0


def is_zero(c: Coefficient) -> bool:
    """Whether the coefficient is exactly zero, so that its term can be left out."""
    if isinstance(c, float):
        return c == 0.0
    values = values_of(c)
    return not bool(values.any()) if isinstance(values, Tensor) else values == 0


def _cholesky2(v: Tensor) -> Tensor:
    a = v[..., 0, 0].clamp(min=0).sqrt()
    b = torch.where(a > 0, v[..., 1, 0] / torch.where(a > 0, a, 1.0), 0.0)
    d = (v[..., 1, 1] - b * b).clamp(min=0).sqrt()
    return matrix(a, torch.zeros_like(a), b, d)


def matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """[[a, b], [c, d]] of numbers (..): (.., 2, 2)."""
    return torch.stack([torch.stack([a, b], -1), torch.stack([c, d], -1)], -2)
