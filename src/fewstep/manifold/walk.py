r"""Steps on a manifold: the geodesic random walk, a Langevin corrector, and ODEs with their divergence.

$$ x \leftarrow \exp_x(b\, h + \sqrt{h}\, \xi_x), \qquad \xi_x \text{ standard normal in the tangent space} $$

With b = 0 it is Brownian motion over time h as h falls, and with b the score, the clock s turned back, its reverse.
A run in t with beta(t) takes h = beta dt of s, and dt < 0 backward.

References: De Bortoli et al. 2022, algorithm 1, https://arxiv.org/abs/2202.02763; Jorgensen 1975 (the walk's limit).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.manifold.base import Manifold

__all__ = ["divergence", "flow", "langevin", "step"]

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x, u) -> tangent vectors, u (batch,)


def step(manifold: Manifold, x: Tensor, drift: Tensor | float, h: float, normal: Tensor | None) -> Tensor:
    """A step of the geodesic random walk over time h of s; without noise where `normal` is None."""
    v = torch.zeros_like(x) + drift * h
    return manifold.exp(x, v if normal is None else v + math.sqrt(h) * manifold.noise(x, normal))


def langevin(manifold: Manifold, x: Tensor, score: Tensor, size: float, normal: Tensor) -> Tensor:
    """A corrector's step of `size`, exp_x(size score + sqrt(2 size) xi), which leaves the score's law alone."""
    return step(manifold, x, score / 2, 2 * size, normal)


def flow(
    manifold: Manifold, x: Tensor, velocity: Velocity, times: Tensor, *, spread: bool = False
) -> tuple[Tensor, Tensor]:
    """The ODE dx/du = velocity along times, by the classical Runge-Kutta method in the space around.

    The velocity is taken at the nearest point, so that the motion stays on the manifold; after each step the state is
    its nearest point. Also the integral of the velocity's divergence along the way, 0 without `spread`: (batch,).
    """
    grown = x.new_zeros(len(x))

    def both(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor | float]:
        every, x = u.expand(len(x)), manifold.nearest(x)
        return divergence(manifold, velocity, x, every) if spread else (velocity(x, every), 0.0)

    for a, b in zip(times[:-1], times[1:], strict=True):
        h, middle = b - a, (a + b) / 2
        k1, d1 = both(x, a)
        k2, d2 = both(x + h / 2 * k1, middle)
        k3, d3 = both(x + h / 2 * k2, middle)
        k4, d4 = both(x + h * k3, b)
        x = manifold.nearest(x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
        grown = grown + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    return x, grown


def divergence(
    manifold: Manifold | None,
    field: Velocity,
    x: Tensor,
    u: Tensor,
    *,
    probe: Tensor | None = None,
    graph: bool = False,
) -> tuple[Tensor, Tensor]:
    """A tangent field's values and its divergence, the trace of its derivative on tangents (batch,).

    Exact, or of one `probe` (batch, *shape) of random signs: e . P J e. In flat space where `manifold` is None.

    Args:
        graph: both can be differentiated further, and by what x was made of.
    """
    with torch.enable_grad():
        x = x if graph and x.requires_grad else x.detach().requires_grad_(True)
        v = field(x, u)
        found = x.new_zeros(len(x))
        units = torch.eye(x[0].numel(), dtype=x.dtype).reshape(-1, *x.shape[1:]) if probe is None else [probe]
        for e in units:
            along = e.expand(x.shape) if manifold is None else manifold.project(x.detach(), e.expand(x.shape))
            pulled = torch.autograd.grad((along * v).sum(), x, retain_graph=True, create_graph=graph)[0]
            found = found + (pulled * (e if probe is None else along)).flatten(1).sum(1)
    return (v, found) if graph else (v.detach(), found.detach())
