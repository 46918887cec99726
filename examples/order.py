"""Observed order: the error of three solvers falls like steps^-order.

    python examples/order.py

Gaussian data, whose end state is known in closed form, float64, equal steps in log-SNR between -2 and 2. Doubling the
steps divides the error of a solver of order p by 2^p.
"""

from __future__ import annotations

import math

import torch

import fewstep as fs

STD = 0.5
process = fs.VP()
denoiser = fs.Gaussian(process, mean=0.0, std=STD)
t, s = process.inverse_log_snr(-2.0), process.inverse_log_snr(2.0)
start = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]


def spread(u: float) -> float:
    return (process.alpha(u) ** 2 * STD**2 + process.sigma(u) ** 2) ** 0.5


def error(solver: str, steps: int) -> float:
    grid = process.inverse_log_snr(torch.linspace(-2, 2, steps + 1, dtype=torch.float64))
    z = fs.sample(denoiser, process, solver=solver, grid=grid, x=start)
    return float((z - start * spread(s) / spread(t)).abs().max())


print(f"{'solver':16} {'32 steps':>10} {'64 steps':>10} {'order seen':>11} {'declared':>9}")
for solver in ("ddim", "dpmpp-2m", "multistep-pc-2"):
    few, many = error(solver, 32), error(solver, 64)
    seen, declared = math.log2(few / many), fs.TABLES[solver]().order
    print(f"{solver:16} {few:>10.2e} {many:>10.2e} {seen:>11.2f} {declared:>9}")
    assert seen > declared - 0.25
