"""Ten calls on Gaussian data, where the exact answer is known.

    python examples/quickstart.py

The probability-flow ODE on N(mean, std^2) carries a state z at t to
alpha_s mean + (spread_s / spread_t) (z - alpha_t mean) with spread^2 = alpha^2 std^2 + sigma^2.
"""

from __future__ import annotations

import torch

import fewstep as fs

MEAN, STD = 0.6, 0.3

process = fs.VP()
denoiser = fs.Gaussian(process, mean=MEAN, std=STD)  # any callable (z, t) -> x0_hat
eps = fs.Noise(seed=0).normal("initial", 0, (256, 1, 8, 8))
start = process.prior(eps)
x = fs.sample(denoiser, process, steps=10, x=start)


def spread(t: float) -> float:
    return (process.alpha(t) ** 2 * STD**2 + process.sigma(t) ** 2) ** 0.5


t, s = process.t_max, process.t_zero  # the run ends at sigma = 0
exact = process.alpha(s) * MEAN + spread(s) / spread(t) * (start - process.alpha(t) * MEAN)
error = float((x - exact).square().mean().sqrt())
print(
    f"10 calls of the default solver: mean {x.mean():.4f}, std {x.std():.4f}, distance to the exact answer {error:.1e}"
)
assert error < 0.02

same = fs.sample(denoiser, process, steps=10, shape=(256, 1, 8, 8), seed=0)  # the same run, its start drawn inside
assert torch.allclose(same, x, atol=1e-6)
