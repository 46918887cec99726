"""A mixture of eight Gaussians in 64 dimensions with its exact denoiser, as a subject of `fewstep bench`.

    fewstep bench benchmarks/mixture.py:Mixture64 --peers --select 5 --calls 3,4,5,6,8,10,15,20 --images 2000

The means are standard normal, the standard deviations between 0.1 and 0.5; real samples are drawn from the mixture, and
the features are the samples themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

import fewstep as fs

DIMENSIONS, MODES, REAL = 64, 8, 20_000


class Mixture64:
    """What `fewstep bench` asks of a subject: `process`, `shape`, `denoiser(labels)`, and here `data`."""

    process, shape = fs.VP(), (DIMENSIONS,)

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(DIMENSIONS)
        self.means = torch.randn(MODES, DIMENSIONS, dtype=torch.float64, generator=g)
        self.stds = 0.1 + 0.4 * torch.rand(MODES, dtype=torch.float64, generator=g)
        mode = torch.randint(MODES, (REAL,), generator=g)
        noise = torch.randn(REAL, DIMENSIONS, dtype=torch.float64, generator=g)
        self.data = self.means[mode] + self.stds[mode, None] * noise

    def denoiser(self, labels: Sequence[int] | None) -> fs.Mixture:
        """E[x0 | z] in closed form; there are no classes."""
        return fs.Mixture(self.process, self.means, self.stds)
