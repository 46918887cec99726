r"""Scores on the sphere: diffusion by the heat kernel, reversed by steps along great circles or by an ODE.

$$ x \leftarrow \exp_x(h\, b_s(x) + \sqrt h\, \xi_x), \qquad
   \frac{dx}{d\log s} = -\tfrac s2 b_s(x), \qquad b_s \approx \nabla \log p_s $$

Brownian motion on a sphere ends at the uniform law, its kernel is known at all times, and a field of tangent vectors is
learned by regression on the kernel's gradient. Points never leave the sphere, and the ODE has a density by the area.
The data are four clouds of known density, so what a likelihood can be at most is known too; the flow learns from
geodesics to uniform points instead (Chen and Lipman).

De Bortoli, Mathieu, Hutchinson, Thornton, Teh and Doucet, Riemannian score-based generative modelling, 2022, section 3,
https://arxiv.org/abs/2202.02763. The published target at small times is Varadhan's first term; here it is the kernel's
own gradient.

    python recipes/riemannian-score.py
"""

from __future__ import annotations

import math
from functools import partial
from tempfile import TemporaryDirectory

import torch
from book import run
from torch import Tensor

import fewstep as fs

SPHERE = fs.manifold.Sphere(2)
SPREAD = 0.02  # the clouds are the heat kernel at this time


def clouds(count: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points of four clouds, and the logarithm of their density there."""
    normal = partial(torch.randn, generator=g, dtype=torch.float64)
    centres = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, -0.6, 0.8], [-0.6, 0, -0.8]], dtype=torch.float64)
    s = torch.full((count,), SPREAD, dtype=torch.float64)
    x = SPHERE.diffuse(centres[torch.arange(count) % 4], s, normal(count, 3))
    every = torch.stack([SPHERE.log_kernel(x, c.expand(count, 3), s) for c in centres])
    return x, every.logsumexp(0) - math.log(4)


def even(count: int) -> Tensor:
    """Points of equal areas all over the sphere."""
    k = torch.arange(count, dtype=torch.float64) + 0.5
    z, angle = 1 - 2 * k / count, math.pi * (1 + 5**0.5) * k
    flat = (1 - z * z).sqrt()
    return torch.stack([flat * angle.cos(), flat * angle.sin(), z], 1)


def main(short: bool) -> dict[str, float]:
    """How far the log-likelihood of new points is below the best, the mass all over, and the length of samples."""
    g = torch.Generator().manual_seed(0)
    data, _ = clouds(2000 if short else 8000, g)
    held_out, best = clouds(400 if short else 2000, g)
    figures = {}
    for method in ("riemannian-score", "riemannian-flow"):
        with TemporaryDirectory() as folder:
            path = fs.train(data.numpy(), folder, method=method, steps=150 if short else 5000, width=96,
                            depth=3, quiet=True)  # fmt: skip
            field = fs.manifold.load(path)
        figures[f"nats below the best, {method}"] = float((best - field.log_prob(held_out)).mean())
        mass = field.log_prob(even(1500 if short else 4000)).exp().mean() * SPHERE.volume
        figures[f"mass, {method}"] = float(mass)
        x = field.draw(100 if short else 1000, seed=1)
        figures[f"largest | |x| - 1 |, {method}"] = float((x.norm(dim=1) - 1).abs().max())
        assert figures[f"nats below the best, {method}"] < (0.5 if short else 0.05)
        assert figures[f"largest | |x| - 1 |, {method}"] < 1e-6
    assert all(abs(value - 1) < 0.05 for name, value in figures.items() if name.startswith("mass"))
    return figures


if __name__ == "__main__":
    run(main, __doc__)
