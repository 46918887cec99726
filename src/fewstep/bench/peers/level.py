r"""A scalar process as other libraries see it: by its noise level rho = sigma / alpha.

Two forms of the state lead to the same x0_hat: x = z / alpha, of variance 1 + rho^2 ("ve"), and
x = z / (alpha^2 + sigma^2)^{1/2} ("vp"). The network is told the process's time at which the level is rho, unrounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fewstep.bench.contender import PEERS, SAME, Contender, Prepared
from fewstep.denoiser.base import Denoises
from fewstep.grid import GRIDS
from fewstep.grid.spacing import finite_range
from fewstep.process import Process, ScalarProcess

__all__ = ["SAME_GRID", "Levels", "March", "peer"]

SAME_GRID = "fewstep"  # our own default grid, for peers that take one
March = Callable[[Denoises, "Levels", Tensor, int], tuple[Tensor, str]]


@dataclass(frozen=True)
class Levels:
    """The noise levels of a process, from `high` to `low`; where its log-SNR is infinite, what a grid would reach."""

    process: ScalarProcess

    @property
    def high(self) -> float:
        """The level that noise starts from."""
        return math.exp(-finite_range(self.process)[0])

    @property
    def low(self) -> float:
        """The level of the process's last time."""
        return math.exp(-finite_range(self.process)[1])

    def times(self, count: int) -> Tensor:
        """Times that are evenly spaced between those of the lowest and the highest level."""
        return torch.linspace(self.time(self.low), self.time(self.high), count, dtype=torch.float64)

    @lru_cache(maxsize=2**16)  # noqa: B019 - a few levels, asked for by every sampler and batch
    def time(self, rho: float) -> float:
        """The process's time at which the level is rho, within its range."""
        t = self.process.inverse_log_snr(-math.log(rho))
        return min(max(t, self.process.t_min), self.process.t_max)

    def grid(self, steps: int) -> Tensor:
        """Levels (steps + 1,) of our default grid, float64."""
        log_snr = self.process.log_snr(GRIDS["default"](self.process, steps))
        return torch.exp(-log_snr).clamp(self.low, self.high)

    def denoised(self, denoiser: Denoises, x: Tensor, rho: float, form: str) -> Tensor:
        """x0_hat for a state at level rho in the form "ve" or "vp"."""
        return denoiser(x * self.scale(rho, form), self.time(rho))

    @lru_cache(maxsize=2**16)  # noqa: B019
    def scale(self, rho: float, form: str) -> float:
        """What a state of a form is multiplied by to be the process's own z."""
        alpha, sigma = self.process.alpha(self.time(rho)), self.process.sigma(self.time(rho))
        return alpha if form == "ve" else math.hypot(alpha, sigma)


def peer(name: str, version: str, march: March) -> Contender:
    """A contender that marches at as many steps as the calls allow, found by counting on an empty network.

    `march(denoiser, levels, noise, steps)` returns z or x0 and which of the two it is: "state" or "data".
    """

    def prepare(process: Process, calls: int) -> Prepared:
        if not isinstance(process, ScalarProcess):
            raise ValueError(f"{type(process).__name__} is no scalar process, and this library knows no other")
        levels, failure = Levels(process), ValueError(f"it takes more than {calls} calls at one step")
        for steps in range(calls, 0, -1):
            try:
                used, end = _count(march, levels, steps)
            except Exception as error:  # whatever the library raises
                failure = error
                continue
            if used <= calls:
                break
        else:
            raise failure

        def go(denoiser: Denoises, noise: Tensor, seed: int, first: int) -> Tensor:
            with torch.inference_mode():
                return march(denoiser, levels, noise, steps)[0].to(noise.dtype)

        return Prepared(calls=used, digest=f"{name} {version} {steps} {levels.process}", end=end, go=go)

    return Contender(name=name, group=SAME if name.endswith(f"@{SAME_GRID}") else PEERS, prepare=prepare)


def _count(march: March, levels: Levels, steps: int) -> tuple[int, str]:
    used = 0

    def empty(z: Tensor, t: Any) -> Tensor:
        nonlocal used
        used += 1
        return torch.zeros_like(z)

    with torch.inference_mode():
        _, end = march(empty, levels, torch.ones(1, 2), steps)
    return used, end
