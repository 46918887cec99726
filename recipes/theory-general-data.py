r"""Data without a density: stopping early costs what the theory says, and the steps grow with the logarithm alone.

Eight points in the plane have a score that grows as 1 / sigma^2 near them. A run that stops at sigma = delta has the
law of the data with noise of deviation delta, so its Wasserstein-2 distance to the data is

$$ W_2 = \delta \sqrt d, $$

whatever delta, and on a grid of even log-SNR the steps from one delta to a tenth of it are always as many.

Lee, Lu and Tan, Convergence of score-based generative modeling for general data distributions, 2022, theorem 2.1,
https://arxiv.org/abs/2209.12381.

    python recipes/theory-general-data.py
"""

from __future__ import annotations

import math

import torch
from book import run

import fewstep as fs

POINTS = torch.tensor([[math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)] for k in range(8)], dtype=torch.float64)


def main(short: bool) -> dict[str, float]:
    """The distance over delta sqrt(d) at each delta, the steps it took, and how even the points are."""
    num, per_decade = (1000, 30) if short else (20_000, 100)
    ratios, steps, uneven = {}, {}, 0.0
    for delta in (1e-1, 1e-2, 1e-3):
        process = fs.EDM(sigma_min=delta, sigma_max=10.0)
        n = round(per_decade * math.log10(10.0 / delta))
        grid = process.inverse_log_snr(torch.linspace(-math.log(10.0), -math.log(delta), n + 1, dtype=torch.float64))
        data = fs.Dataset(process, POINTS)
        x = fs.sample(data, process, solver="ddpm", grid=grid, shape=(num, 2), dtype=torch.float64, seed=0)
        far = (x[:, None] - POINTS).square().sum(2)
        ratios[delta] = float(far.min(1).values.mean().sqrt()) / (delta * 2**0.5)
        steps[delta] = n
        uneven = max(uneven, float((torch.bincount(far.argmin(1), minlength=8) / num - 1 / 8).abs().max()))
    assert all(abs(ratio - 1) < (0.1 if short else 0.03) for ratio in ratios.values())
    assert uneven < (0.05 if short else 0.02)
    return (
        {f"distance over delta sqrt(d), delta {delta:g}": ratio for delta, ratio in ratios.items()}
        | {f"steps, delta {delta:g}": float(n) for delta, n in steps.items()}
        | {"share of a point off by at most": uneven}
    )


if __name__ == "__main__":
    run(main, __doc__)
