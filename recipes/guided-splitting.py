r"""Splitting for guided sampling: under strong guidance a high-order method fails on the whole, not on a part.

$$ \frac{d \bar z}{d \rho} = \epsilon_\theta(z), \qquad \frac{d \bar z}{d \rho} = -\sigma \nabla \log p(c | z)\, w,
   \qquad \bar z = z / \alpha, \quad \rho = \sigma / \alpha $$

The model's part is taken by iPNDM-4 (Lie-Trotter, LTSP) or Heun between two halves of guidance (Strang, STSP). A
mixture of narrow clusters with its exact classifier, guided at w = 30, against the exact solution of the guided ODE.
The failure is one of few steps: in 20 of them iPNDM-4 is best again here, where the denoiser is exact and smooth.

Wizadwongsa and Suwajanakorn, Accelerating guided diffusion sampling with splitting numerical methods, 2023, section
4, https://arxiv.org/abs/2301.11558. Splitting calls each part in its own row, so it has half the steps of the others
at as many calls of one part; all have the same steps here, as in the paper.

    python recipes/guided-splitting.py
"""

from __future__ import annotations

import math

import torch
from book import run

import fewstep as fs


def main(short: bool) -> dict[str, float]:
    """Distances to the exact guided end, and the slopes of both splittings."""
    num, exact_steps = (100, 300) if short else (1000, 2000)
    process = fs.VP()
    means = torch.tensor([[-1.0, 0.0], [0.6, 0.8], [0.6, -0.8]], dtype=torch.float64)
    every, one = fs.Mixture(process, means, 0.08), fs.Mixture(process, means[1:2], 0.08)
    guided = fs.guide(one, every, 30.0)
    start = torch.randn(num, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def ends(solver: object, steps: int) -> torch.Tensor:
        grid = process.inverse_log_snr(torch.linspace(-4.5, 3.0, steps + 1, dtype=torch.float64))
        return fs.sample(guided, process, solver=solver, grid=grid, x=start)

    exact = ends("multistep-pc-3", exact_steps)
    error = lambda solver, n: float((ends(solver, n) - exact).square().mean().sqrt())  # noqa: E731
    found = {name: error(name, 14) for name in ("ddim", "ipndm-4", "ltsp", "stsp")}
    slopes = {name: math.log2(error(name, 80) / error(name, 160)) for name in ("ltsp", "stsp")}
    assert found["stsp"] < found["ddim"] < found["ipndm-4"]
    assert slopes["stsp"] > 1.6
    assert 0.6 < slopes["ltsp"] < 1.5
    return {f"distance in 14 steps, {name}": value for name, value in found.items()} | {
        "distance in 20 steps, ipndm-4": error("ipndm-4", 20),
        "slope, ltsp": slopes["ltsp"],
        "slope, stsp": slopes["stsp"],
    }


if __name__ == "__main__":
    run(main, __doc__)
