"""The exact denoiser of a bridge: x0 a mixture of Gaussians, y = a x0 + tau e, so that (x0, y, z) is one jointly.

Given y and z = m x0 + n y + R eps each component's x0 is Gaussian, of precision 1/s^2 + a^2/tau^2 + (m/R)^2. It shares
no formula with `fewstep.denoiser.oracle`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import fewstep as fs

MEANS, STDS, WEIGHTS = (torch.tensor(v, dtype=torch.float64) for v in ((-1.0, 0.2, 1.1), (0.3, 0.25, 0.35), (3, 4, 3)))
A, TAU = 0.8, 0.6


@dataclass(frozen=True)
class Paired:
    """D(z, t; y) = E[x0 | z, y] of every coordinate alone."""

    process: fs.Bridge

    def __call__(self, z: Tensor, t: Tensor | float, y: Tensor) -> Tensor:
        p, wide = self.process, (-1, *(1,) * (z.ndim - 1))
        t = torch.as_tensor(t, dtype=torch.float64).expand(len(z))
        m, snr = p.alpha(t).reshape(wide), torch.exp(2 * p.log_snr(t)).reshape(wide)
        u = z - p.n(t).reshape(wide) * y
        if not bool(snr.isfinite().all()):
            return u
        b = torch.where(m > 0, snr / torch.where(m > 0, m, 1.0), 0.0) * u + A * y / TAU**2
        return self._mean(b, snr + A**2 / TAU**2)

    def given(self, y: Tensor) -> object:
        """The denoiser with its y bound, as a network that sees y has it."""
        return fs.bridged(partial(self, y=y), y)

    def posterior(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, means and stds of x0 given one number y."""
        return self._parts(A * y / TAU**2, torch.tensor(A**2 / TAU**2, dtype=torch.float64))

    def _parts(self, b: Tensor, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, precision = b[..., None], precision[..., None]
        var = 1 / (1 / STDS**2 + precision)
        mean = var * (MEANS / STDS**2 + b)
        log = WEIGHTS.log() + (var / STDS**2).log() / 2 + mean**2 / var / 2 - MEANS**2 / STDS**2 / 2
        return log.softmax(-1), mean, var.sqrt().expand_as(mean)

    def _mean(self, b: Tensor, precision: Tensor) -> Tensor:
        weights, means, _ = self._parts(b, precision.expand_as(b))
        return (weights * means).sum(-1)
