r"""Soft diffusion: blur and noise grow together; keeping the noise that is known beats drawing all of it anew.

$$ z_t = C_t x_0 + \sigma_t \epsilon, \qquad
   z_s = C_s D + \sqrt{\sigma_s^2 - \tau^2}\, \frac{z_t - C_t D}{\sigma_t} + \tau\, \xi $$

tau = sigma_s is the paper's naive sampler (`lcm`), tau = 0 keeps every marginal (`ddim`). The data are a mixture of
small pictures, so the restorer is exact and any fault is the sampler's; the distance is the squared Frechet one
between Gaussians fitted to samples.

Daras, Delbracio, Talebi, Dimakis and Milanfar, Soft diffusion: score matching for general corruptions, 2022, section
4, https://arxiv.org/abs/2209.05442. The paper's momentum sampler (`momentum`) takes away what is known of the noise and
adds a step's noise whole, which is too much on one picture and right to first order on many: on Gaussian data with the
spectrum of clothes it wins from 25 steps on; `resshift` is the same without the excess. Its training is
`options={"weight": "soft"}`.

    python recipes/soft-diffusion.py
"""

from __future__ import annotations

import torch
from book import clothes, run

import fewstep as fs
from fewstep.quality import frechet_distance


def main(short: bool) -> dict[str, float]:
    """Frechet distances of both samplers on blur and on masks in 25 steps."""
    num = 1000 if short else 8000
    g = torch.Generator().manual_seed(0)
    pictures = torch.randn(6, 1, 4, 4, dtype=torch.float64, generator=g)
    figures = {}
    for kind, process in (
        ("blur", fs.VEBlur(size=(4, 4), blur_max=2.0, sigma_max=20.0)),
        ("masks", fs.Masking(size=(4, 4), sigma_max=20.0)),
    ):
        data = fs.Mixture(process, pictures, 0.4)
        real, other = (data.sample(num, g).flatten(1) for _ in range(2))
        figures[f"{kind}: real pictures"] = frechet_distance(other, real)
        for name, solver in (("naive", "lcm"), ("ddim", "ddim"), ("second order", "multistep-pc-2")):
            z = fs.sample(
                data, process, solver=solver, final="state", steps=25, shape=(num, 1, 4, 4), dtype=torch.float64, seed=0
            )
            figures[f"{kind}: {name}"] = frechet_distance(process.to_data(z).flatten(1), real)
        assert figures[f"{kind}: ddim"] < figures[f"{kind}: naive"] / 2
        assert figures[f"{kind}: second order"] < figures[f"{kind}: ddim"]
    assert len(figures) == 8
    figures |= spectral(short)
    return {f"Frechet distance, {name}": value for name, value in figures.items()}


def spectral(short: bool) -> dict[str, float]:
    """Frechet distances of Gaussian data with the spectrum of clothes, by deviations of frequencies, in 25 steps."""
    num, side = 100 if short else 1000, 28
    process = fs.VEBlur(size=(side, side))
    spread = clothes()[None]
    data = fs.Gaussian(process, torch.zeros(1, side, side, dtype=torch.float64), spread.sqrt())
    found = {}
    for name, solver in (("naive", "lcm"), ("momentum", "momentum"), ("without the excess", "resshift")):
        z = fs.sample(data, process, solver=solver, grid="uniform", final="state", steps=25, seed=0,
                      shape=(num, 1, side, side), dtype=torch.float64)  # fmt: skip
        found[f"clothes: {name}"] = float((z.std(0) - spread.sqrt()).square().sum())
    assert found["clothes: momentum"] < found["clothes: naive"] / 5
    return found


if __name__ == "__main__":
    run(main, __doc__)
