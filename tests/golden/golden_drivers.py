"""What two references do beside their adaptive steps: round a factor to float32, and end with a reverse step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from fewstep.solver import DPMAdaptive, Promise, Solver
from fewstep.solver.driver.adaptive import Control
from fewstep.tableau.writer import Writer

__all__ = ["ReverseMean", "RoundedDPM"]


@dataclass(frozen=True)
class Rounded(Control):
    """E^-1/q in float32, as dpm-solver's code casts it."""

    def power(self, memory: Tensor) -> Tensor:
        return super().power(memory).float().double()


@dataclass(frozen=True, kw_only=True)
class RoundedDPM(DPMAdaptive):
    """DPM-Solver's adaptive steps with that factor."""

    @property
    def control(self) -> Control:
        c = super().control
        return replace(Rounded(c.powers), safety=c.safety)


@dataclass(frozen=True, kw_only=True)
class ReverseMean(Solver):
    """score_sde's denoising: the mean of one reverse-diffusion step with the first of its thousand discrete betas."""

    beta: float = 1e-4

    @property
    def promise(self) -> Promise:
        return Promise(0)

    def write(self, w: Writer) -> None:
        ((t, s),) = w.steps
        d, a, variance = w.call(w.start, t), w.process.M(t), w.process.Sigma(t)
        score = -(1 / variance) * (w.start - a * d)
        w.row((2 - math.sqrt(1 - self.beta)) * w.start + self.beta * score, s)
