r"""The fixed-grid methods of torchdiffeq on the probability-flow ODE.

Either in the process's own time, dz/dt = alpha' x0_hat + sigma' (z - alpha x0_hat) / sigma, in equal steps of t; or in
the noise level, dx/drho = (x - x0_hat) / rho for x = z / alpha, on EDM's levels or on our default grid.
"""

from __future__ import annotations

import math
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from fewstep.bench.contender import Contender
from fewstep.bench.peers.level import SAME_GRID, Levels, peer
from fewstep.denoiser.base import Denoises

__all__ = ["METHODS", "contenders"]

METHODS = ("euler", "midpoint", "heun3", "rk4", "explicit_adams")


def contenders() -> list[Contender]:
    """Every method in time, on Karras levels and on our default grid."""
    import_module("torchdiffeq")  # says whether it is there
    spacings = ("uniform", "karras", SAME_GRID)
    return [peer(f"torchdiffeq/{method}@{spacing}", version("torchdiffeq"), partial(_march, method, spacing))
            for method in METHODS for spacing in spacings]  # fmt: skip


def _march(
    method: str, spacing: str, denoiser: Denoises, levels: Levels, noise: Tensor, steps: int
) -> tuple[Tensor, str]:
    """One call of odeint."""
    odeint: Any = import_module("torchdiffeq").odeint
    process = levels.process
    if spacing == "uniform":

        def drift(t: Tensor, z: Tensor) -> Tensor:
            s = float(t)
            d = denoiser(z, s)
            alpha, sigma, rate, spread = (f(s) for f in (process.alpha, process.sigma, process.M_rate, process.R_rate))
            return float(rate) * d + float(spread) / sigma * (z - alpha * d)

        times = levels.times(steps + 1).flip(0)
        return odeint(drift, process.prior(noise, float(times[0])), times, method=method)[-1], "state"

    def slope(rho: Tensor, x: Tensor) -> Tensor:
        return (x - levels.denoised(denoiser, x, float(rho), "ve")) / float(rho)

    if spacing == SAME_GRID:
        rhos = levels.grid(steps)
    else:
        ends = (levels.high ** (1 / 7), levels.low ** (1 / 7))
        rhos = torch.linspace(*ends, steps + 1, dtype=torch.float64) ** 7
    x = odeint(slope, noise * float(rhos[0]), rhos, method=method)[-1]
    return x * levels.scale(math.exp(float(rhos[-1].log())), "ve"), "state"
