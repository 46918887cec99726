r"""Bits per dimension, and the uniform noise that makes levels a density's business.

Data with levels a distance `bin` apart is discrete; a density of it is not bounded. With uniform noise u of one bin
(dequantisation) Jensen's inequality gives, for the probability P of a vector x of levels in d dimensions,

$$ \mathrm{bits/dim} = -\frac{E_u \log p(x + u)}{d \log 2} - \log_2 \mathrm{bin} \;\ge\; -\frac{\log_2 P(x)}{d} $$

so bits/dim of a density on dequantised data is an upper bound on those of the levels. `bin` is 2/255 for images that
run from -1 to 1 as level/127.5 - 1, as this library's own models have it, and 2/256 in codes that fill [-1, 1].

References: Theis, van den Oord, Bethge, A note on the evaluation of generative models, 2016,
https://arxiv.org/abs/1511.01844.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.noise import Noise
from fewstep.words import typed

__all__ = ["BIN", "bits_per_dim", "dequantise"]

BIN = 2 / 255  # levels 0..255 stretched over [-1, 1]


@typed
def bits_per_dim(nats: Tensor, dim: int, *, bin: float = BIN) -> Tensor:
    """Bits per dimension of the levels, from the log density in nats of data with one bin of uniform noise."""
    return -nats / (dim * math.log(2)) - math.log2(checked(bin))


@typed
def dequantise(x: Tensor, *, bin: float = BIN, seed: int = 0, first: int = 0) -> Tensor:
    """Levels x (batch, *shape) in data units plus uniform noise in (-bin/2, bin/2); sample i is number first + i."""
    if not x.is_floating_point():
        raise ValueError(f"got levels in {x.dtype}: put them in data units first (uint8 images: x / 127.5 - 1)")
    normal = Noise(seed, first).normal("dequantise", 0, tuple(x.shape), dtype=torch.float64, device=x.device)
    return x + (checked(bin) * (torch.special.ndtr(normal) - 0.5)).to(x.dtype)


def checked(bin: float) -> float:
    """The distance between two levels, refused where it is none."""
    if not bin > 0:
        raise ValueError(f"got bin={bin}: give the distance between two levels in data units, above 0")
    return bin
