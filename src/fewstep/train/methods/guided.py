r"""Guided distillation: first the guided pair of calls becomes one, told w; then its steps are halved.

$$ g^* = (1 + w)\, D_c(z_t, t) - w\, D_0(z_t, t), \qquad w \sim U[0, 4], \quad \text{weight } \max(SNR, 1) $$

The second stage is `fewstep.train.methods.progressive` with w carried along. w = 0 is no guidance; Imagen's scale and
mean flow's omega are 1 + w. Time runs from noise to data, as published.

References: Meng et al., On distillation of guided diffusion models, 2023, eq. 4 and algorithm 2,
https://arxiv.org/abs/2210.03142.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.process import Process
from fewstep.tableau import Tableau
from fewstep.train.methods.base import Method, Setting
from fewstep.train.methods.progressive import Progressive
from fewstep.train.objective import Stage
from fewstep.train.pairs import Uniform
from fewstep.train.player import Players
from fewstep.train.regression import Regression
from fewstep.train.target import Point, Target, guided

__all__ = ["Guided", "GuidedPair", "stochastic"]


@dataclass(frozen=True)
class GuidedPair(Target):
    """The teacher's two calls as one, at the w that the network is told."""

    def __call__(self, at: Players, point: Point) -> Tensor:
        conditional, unconditional = (at.teacher(point.batch, conditional=c)(point.z, point.t) for c in (True, False))
        return guided(conditional, unconditional, point.batch.conditions["w"])


@dataclass(frozen=True, kw_only=True)
class Guided(Method):
    """Two stages; the teacher is a model with labels, or a pair (conditional, unconditional) of denoisers.

    Args:
        low, high: the range of w.
        steps, to, grid: of the second stage, as in `Progressive`; to = 0 leaves it out.
        first: the first stage's share, over that of one halving.
    """

    low: float = 0.0
    high: float = 4.0
    steps: int = 64
    to: int = 4
    grid: str = "default"
    first: float = 3.0

    needs: ClassVar[bool] = True
    guided: ClassVar[bool] = True
    lr: ClassVar[float] = 8e-3

    def stages(self, on: Setting) -> list[Stage]:
        w = self.low, self.high
        pair = Regression(process=on.process, law=Uniform(), target=GuidedPair(), weight="truncated", guidance=w)
        found = [Stage(objective=pair, share=self.first)]
        for stage in self.halving.stages(replace(on, started=True)) if self.to else ():
            assert isinstance(stage.objective, Regression)
            found.append(replace(stage, objective=replace(stage.objective, guidance=w), promotes=True))
        return found

    @property
    def halving(self) -> Progressive:
        """The second stage."""
        return Progressive(steps=self.steps, to=self.to, grid=self.grid)

    def tables(self, process: Process) -> dict[str, Tableau]:
        return self.halving.tables(process) if self.to else {}


def stochastic(alpha: Tensor, sigma: Tensor, z: Tensor, t: int, s: int, noise: Tensor) -> Tensor:
    """One level back to noise, from level t + 1 of a grid to t: what the stochastic sampler adds after two levels."""
    back = alpha[t] / alpha[s]
    return back * z + torch.sqrt(sigma[t] ** 2 - (back * sigma[s]) ** 2) * noise
