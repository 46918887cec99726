r"""Fewer ancestral steps: the reverse chain on a part of its times, beside DDIM and the default with the same denoiser.

$$ q(z_s | z_t, x_0 = D) = N(\mu, \tilde\beta), \qquad s \ll t $$

is exact for small steps alone: in long ones the noise it adds is too little by what D leaves open. DDIM on the same
times adds none. The data are a mixture in 16 dimensions, its denoiser exact; the distance is the squared Frechet one
between Gaussians fitted to samples, and its excess what it has above that of as many real ones.

Ho, Jain and Abbeel, 2020, https://arxiv.org/abs/2006.11239; Song, Meng and Ermon, 2021, table 1, for the comparison,
https://arxiv.org/abs/2010.02502.

    python recipes/fewer-ancestral-steps.py
"""

from __future__ import annotations

import torch
from book import run

import fewstep as fs
from fewstep.quality import frechet_distance


def main(short: bool) -> dict[str, float]:
    """The excess Frechet distance of three samplers at ten calls, and of the chain at many."""
    num, many = (4000, 50) if short else (50_000, 500)
    process = fs.VP()
    g = torch.Generator().manual_seed(0)
    data = fs.Mixture(process, torch.randn(3, 16, dtype=torch.float64, generator=g), 0.3)
    real, other = (data.sample(num, g) for _ in range(2))
    floor = frechet_distance(other, real)
    found = {}
    for name, solver, steps in (
        ("ddpm", "ddpm", 10),
        ("ddim", "ddim", 10),
        ("default", None, 10),
        ("many", "ddpm", many),
    ):
        x = fs.sample(
            data, process, solver=solver, final="state", steps=steps, shape=(num, 16), dtype=torch.float64, seed=0
        )
        found[name] = frechet_distance(x, real) - floor
    assert found["ddpm"] > 1.5 * found["ddim"]
    assert found["ddpm"] > 10 * found["many"]
    return {
        "excess Frechet distance, ddpm, 10 calls": found["ddpm"],
        "excess Frechet distance, ddim, 10 calls": found["ddim"],
        "excess Frechet distance, default, 10 calls": found["default"],
        f"excess Frechet distance, ddpm, {many} calls": found["many"],
    }


if __name__ == "__main__":
    run(main, __doc__)
