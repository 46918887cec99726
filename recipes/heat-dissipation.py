r"""Inverse heat dissipation: blurred images are sharpened step by step, and how much noise is put in between matters.

$$ z_t = e^{t \Delta} x_0 + \sigma \epsilon, \qquad
   z_s = C_s D(z_t) + \sqrt{\sigma^2 - \tau^2}\, \epsilon_\theta + \tau\, \xi $$

sigma stays the same at all times. tau = 0 is `ddim`, which keeps the noise it came with, tau = sigma is `lcm`, which
draws all of it anew; so does the paper's, delta for sigma: `LCM(noise=delta/sigma)`. The data are small pictures, each
with a little spread, so that the deblurrer is exact; a start is one of them blurred until only its mean is left. Then
Gaussian data with the spectrum of clothes: without noise (delta = 0) variance is lost, with too much it is made up.

Rissanen, Heinonen and Solin, Generative modelling with inverse heat dissipation, 2022, section 3,
https://arxiv.org/abs/2206.13397. The paper trains the deblurrer and takes delta 1.25 sigma; the best depends on the
data. Its starts are blurred pictures without noise, and its code never trains step K, where sampling starts: times are
drawn up to t_max here (`fewstep train`).

    python recipes/heat-dissipation.py
"""

from __future__ import annotations

import torch
from book import clothes, run

import fewstep as fs

SIDE, NOISE = 28, 0.01  # of clothes
RATIOS = (0.0, 0.5, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5)  # delta / sigma


def main(short: bool) -> dict[str, float]:
    """Distance of samples to the nearest picture, how many pictures are found, and how many changed."""
    num, steps = (60, 30) if short else (400, 100)
    process = fs.HeatDissipation(size=(8, 8), noise=0.02)
    g = torch.Generator().manual_seed(0)
    pictures = (torch.rand(20, 1, 8, 8, dtype=torch.float64, generator=g) > 0.5).double() * 2 - 1
    pictures = pictures + (0.3 - pictures.mean((2, 3), keepdim=True))  # all of one brightness: no start tells which
    data = fs.Mixture(process, pictures, 0.02)
    which = torch.arange(num) % len(pictures)
    eps = torch.randn(num, 1, 8, 8, dtype=torch.float64, generator=g)
    start = process.diffuse(pictures[which], process.t_max, eps)

    figures = {}
    for name, solver in (("ddim", "ddim"), ("all noise anew", "lcm")):
        x = fs.sample(data, process, solver=solver, steps=steps, x=start, seed=1, final="denoise")
        far = (x[:, None] - pictures).square().mean((2, 3, 4)).sqrt()
        nearest = far.argmin(1)
        figures[f"distance to a picture, {name}"] = float(far.min(1).values.mean())
        figures[f"pictures found of 20, {name}"] = float(len(nearest.unique()))
        figures[f"share that became another one, {name}"] = float((nearest != which).double().mean())
        assert figures[f"distance to a picture, {name}"] < 0.02
        assert figures[f"pictures found of 20, {name}"] >= (15 if short else 20)
    changed = [figures[f"share that became another one, {name}"] for name in ("ddim", "all noise anew")]
    assert changed[0] < changed[1] - 0.1
    figures |= ratios(short)
    return figures


def ratios(short: bool) -> dict[str, float]:
    """What is left of the variance of Gaussian data at each delta / sigma, from blurred starts without noise."""
    num, steps = (60, 100) if short else (400, 100)
    process = fs.HeatDissipation(size=(SIDE, SIDE), noise=NOISE)
    spread = clothes()[None]
    g = torch.Generator().manual_seed(2)
    data = fs.Gaussian(process, torch.zeros(1, SIDE, SIDE, dtype=torch.float64), spread.sqrt())
    modes = spread.sqrt() * torch.randn(num, 1, SIDE, SIDE, generator=g, dtype=torch.float64)
    start = process.diffuse(process.from_coordinates(modes), process.t_max, torch.zeros_like(modes))
    kept, far = {}, {}
    for ratio in RATIOS:
        z = fs.sample(data, process, solver=fs.LCM(noise=ratio), grid="uniform", steps=steps, x=start, seed=3,
                      final="state", dtype=torch.float64)  # fmt: skip
        deviation = z.std(0)
        kept[ratio] = float(deviation.square().sum() / spread.sum())
        far[ratio] = float((deviation - spread.sqrt()).square().sum())
    best = min(far, key=lambda ratio: far[ratio])
    assert 1.2 <= best <= 2
    assert kept[0.0] <= 0.3
    return {"best delta / sigma": best} | {f"variance kept, delta / sigma {r:g}": v for r, v in kept.items()}


if __name__ == "__main__":
    run(main, __doc__, seeds=(0, 1))
