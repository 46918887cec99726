r"""Two chains that map one law to another and back, fitted to each other in turns until they are one process.

$$ B_{k+1}(x_{k+1}) \approx E[x_{k+1} + F_k(x_k) - F_k(x_{k+1}) \mid x_{k+1}], \qquad
   x_{k+1} = F_k(x_k) + \sqrt{2 \gamma_k}\, \xi_k $$

From a forward chain, first the reference's, the backward one is learned by mean matching, and so on. Between Gaussians
every regression is exact without samples and the bridge has a closed form, so what is left is the method's own error,
of first order in gamma. Bridge matching (Shi et al. 2023) fits Brownian bridges between the ends of a walk instead.

De Bortoli, Thornton, Heng and Doucet, Diffusion Schrodinger bridge with applications to score-based generative
modeling, 2021, https://arxiv.org/abs/2106.01357. Published code tells its networks a time that is late by a step; here
a step is told the interval that it crosses.

    python recipes/diffusion-schrodinger-bridge.py
"""

from __future__ import annotations

import torch
from book import run
from torch import Tensor

import fewstep as fs

BRIDGES = fs.schroedinger


def law(g: torch.Generator) -> tuple[Tensor, Tensor]:
    """A Gaussian in five dimensions: its mean and covariance."""
    a = torch.randn(5, 5, generator=g, dtype=torch.float64)
    mean = torch.randn(5, generator=g, dtype=torch.float64)
    return mean, a @ a.mT / 5 + 0.3 * torch.eye(5, dtype=torch.float64)


def off(found: Tensor, wanted: Tensor) -> float:
    """The relative error of a matrix."""
    return float((found - wanted).norm() / wanted.norm())


def main(short: bool) -> dict[str, float]:
    """The worst relative error of ten pairs: of the end's covariance, and of the covariance of both ends."""
    figures: dict[str, float] = {}
    g = torch.Generator().manual_seed(0)
    for _ in range(2 if short else 10):
        start, end = law(g), law(g)
        exact = BRIDGES.entropic(start[1], end[1], 1.0)
        errors = {}
        for n in (20, 100):
            gammas = torch.full((n,), 0.5 / n, dtype=torch.float64)
            backward, forward = BRIDGES.alternate(start, end, gammas, 5)[-1]
            ends = off(backward.covariance, start[1]), off(forward.covariance, end[1])
            errors[f"end covariance, {n} steps"] = max(ends)
            errors[f"cross-covariance, {n} steps"] = max(off(backward.cross, exact.mT), off(forward.cross, exact))
        errors["cross-covariance, matching"] = off(BRIDGES.match(start, end, 1.0, 100, 10)[-1].cross, exact.mT)
        figures = {name: max(value, figures.get(name, 0.0)) for name, value in errors.items()}
    assert figures["end covariance, 100 steps"] <= 0.05
    assert figures["cross-covariance, 100 steps"] <= 0.03
    assert figures["end covariance, 20 steps"] <= 0.17
    assert figures["cross-covariance, 20 steps"] <= 0.08
    assert figures["cross-covariance, matching"] <= 0.04
    return figures


if __name__ == "__main__":
    run(main, __doc__)
