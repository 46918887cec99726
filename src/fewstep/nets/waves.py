r"""A small network of sines for fields on manifolds: sharp where data are, smooth everywhere.

    [features of x, u, sin(2^j pi u / 2), cos(2^j pi u / 2)]_j  ->  sin(width), ...  ->  out

u in [0, 1] is the time. The weights begin as Sitzmann et al.'s, the first layer's times `frequency`.

References: Sitzmann et al., Implicit neural representations with periodic activation functions, 2020,
https://arxiv.org/abs/2006.09661.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fewstep.nets.small import Features

__all__ = ["Waves"]


class Waves(nn.Module):
    """A perceptron with sines.

    Args:
        size: features of a point.
        out: numbers that it returns.
        width, depth: of the hidden layers.
        frequency: how sharp it begins.
    """

    def __init__(self, size: int, out: int, width: int = 96, depth: int = 3, frequency: float = 1.0) -> None:
        super().__init__()
        self.config = {"size": size, "out": out, "width": width, "depth": depth, "frequency": frequency}
        self.time = Features(3)
        sizes = [size + self.time.count, *[width] * depth]
        layers = [nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
        self.layers, self.leave = nn.ModuleList(layers), nn.Linear(width, out)
        for k, layer in enumerate(layers):
            bound = math.sqrt(6 / sizes[k]) * (frequency if k == 0 else 1.0)
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """(batch, out) for features (batch, size) and times (batch,)."""
        h = torch.cat([x, self.time(u)], 1)
        for layer in self.layers:
            h = torch.sin(layer(h))
        return self.leave(h)
