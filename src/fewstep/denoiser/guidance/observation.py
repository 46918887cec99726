r"""A linear observation of the data, y = A x0 + sigma_y n, and what it says about x0 given a state.

If x0 given z has mean D and covariance C, Bayes' rule is a Kalman filter's update,

$$ E[x_0 \mid z, y] = D + C A^T (A C A^T + \sigma_y^2)^{-1} (y - A D), \qquad
   C = \frac{s^2}{1 + s^2 n}, \quad n = M^T \Sigma^{-1} M, $$

with C that of data of standard deviation s in every coordinate: exact for N(mu, s^2), on every process, whose own
coordinates C is diagonal in. s = 1 on a variance-exploding process is PiGDM's r^2 = sigma^2 / (1 + sigma^2).

A is any linear function of x0; its transpose is taken by autograd and the system is solved by conjugate gradients, in
as many iterations as A C A^T has distinct eigenvalues: one for a mask or a mean of blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.process.base import Process, Time
from fewstep.process.operator import Block, Coefficient, apply, inverse, transpose
from fewstep.words import Typed, within

__all__ = ["Observation"]

ITERATIONS = 200


@dataclass(frozen=True, eq=False)
class Observation(Typed):
    """What was seen of the data.

    Args:
        forward: A, linear: x0 (batch, *shape) -> (batch, *observed); a mask is `lambda x: x * mask` or an index.
        y: (1 or batch, *observed).
        noise: sigma_y >= 0, the standard deviation of its noise.
    """

    forward: Callable[[Tensor], Tensor]
    y: Tensor
    noise: float = 0.0

    def __post_init__(self) -> None:
        within(self, noise="[0, inf)")

    def residual(self, x0: Tensor) -> Tensor:
        """Y - A x0, (batch, *observed)."""
        seen = self.forward(x0)
        if seen.shape[1:] != self.y.shape[1:] or len(self.y) not in (1, len(seen)):
            raise ValueError(
                f"got an observation of shape {tuple(self.y.shape)} and an operator that makes {tuple(seen.shape)} of "
                "this batch: give y as (1 or batch, *observed)"
            )
        return self.y.to(seen) - seen

    def transpose(self, v: Tensor, like: Tensor) -> Tensor:
        """A^T v, shaped like data."""
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.zeros_like(like, requires_grad=True)
            return torch.autograd.grad(self.forward(x), x, v.clone())[0]

    def solve(self, r: Tensor, c: Coefficient, process: Process, like: Tensor) -> Tensor:
        """(A C A^T + sigma_y^2)^-1 r, by conjugate gradients, each sample for itself."""

        def system(v: Tensor) -> Tensor:
            spread = spread_by(process, c, self.transpose(v, like))
            return self.forward(spread) + self.noise**2 * v

        with torch.no_grad():
            return _conjugate_gradients(system, r.detach())

    def select(self, index: Tensor) -> Observation:
        """For some samples of a batch."""
        y = self.y
        return self if len(y) == 1 else Observation(self.forward, y[index.to(y.device)], self.noise)


def spread(process: Process, t: Time, std: float) -> Coefficient:
    """C = s^2 / (1 + s^2 n): the variance, in the process's coordinates, of data N(mu, s^2) given a state."""
    m = process.M(t)
    n = transpose(m) * inverse(process.Sigma(t)) * m
    if isinstance(n, Block):
        values = n.values[..., 0, 0]
        n = values if values.ndim else float(values)
    return std**2 * inverse(1.0 + std**2 * n)


def spread_by(process: Process, c: Coefficient, x: Tensor) -> Tensor:
    """C x for x in data space."""
    return process.from_coordinates(apply(c, process.coordinates(x)))


def _conjugate_gradients(system: Callable[[Tensor], Tensor], r: Tensor) -> Tensor:
    shape, r = r.shape, r.flatten(1)
    dot = lambda a, b: (a * b).sum(1, keepdim=True)  # noqa: E731
    safe: Any = lambda a: a.clamp(min=torch.finfo(a.dtype).tiny)  # noqa: E731
    x, p, size = torch.zeros_like(r), r, dot(r, r)
    enough = size * torch.finfo(r.dtype).eps ** 2 * 16
    for _ in range(min(ITERATIONS, 2 * r.shape[1])):
        if not bool((size > enough).any()):
            break
        q = system(p.reshape(shape)).flatten(1)
        step = torch.where(size > enough, size / safe(dot(p, q)), 0.0)
        x, r = x + step * p, r - step * q
        before, size = size, dot(r, r)
        p = r + size / safe(before) * p
    return x.reshape(shape)
