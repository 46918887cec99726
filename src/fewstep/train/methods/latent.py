r"""Consistency distillation with guidance, over skipped steps (LCM): f at t, told w, and f at u agree on the end.

$$ E\; d\big(f_\theta(z_t, t, w),\; f_{avg}(\tilde z_u, u, w)\big), \qquad
   \tilde z_u = \text{DDIM's step of } (1 + w)\, D_c - w\, D_0 \text{ from } t \text{ to } u $$

t and u are `skip` steps of the process's own clock of `count` apart: published are 20 of 1000, so that a grid of 50 is
walked, and f nears the data in few updates. w = 0 is no guidance, as in `fewstep.train.methods.guided`. The network's
x0 is f; at the end of the grid f is the state. Published scalings are that to within 1 % from the first step on.
Time runs from noise to data, as published.

References: Luo et al., Latent consistency models, 2023, eq. 14 and algorithm 1, https://arxiv.org/abs/2310.04378.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.process import Process
from fewstep.process.operator import apply, inverse
from fewstep.tableau import Tableau
from fewstep.train.methods.base import Method, Setting, table, times
from fewstep.train.methods.consistency import Distilled
from fewstep.train.methods.guided import GuidedPair
from fewstep.train.objective import Stage
from fewstep.train.pairs import Adjacent, Uniform
from fewstep.train.player import Players
from fewstep.train.regression import Regression
from fewstep.train.target import Point, Target, column, jump

__all__ = ["LatentConsistency", "Skipped"]


@dataclass(frozen=True)
class Skipped(Target):
    """The average's f at u, where the guided teacher's DDIM step leads; at the end of the grid the state itself."""

    def __call__(self, at: Players, point: Point) -> Tensor:
        p = point
        z = jump(p.process, p.z, p.t, p.u, GuidedPair()(at, p))
        f = at["net"].at(p.batch, "target")(z, p.u, p.s)
        return torch.where(column(p.last, f), p.process.from_coordinates(apply(inverse(p.process.M(p.u)), z)), f)


@dataclass(frozen=True, kw_only=True)
class LatentConsistency(Method):
    """Guided consistency; the teacher is a model with labels, or a pair (conditional, unconditional) of denoisers.

    Args:
        low, high: the range of w; published for Stable Diffusion are 2 and 14.
        count, skip: the steps of the teacher's clock, uniform in time, and how many of them are skipped at once.
        mu: the decay of the average at u.
        distance, scale: a name in `DISTANCES` and its c; published are "huber" and 1e-3, or "l2".
        start: the share of the budget in which the network first learns the guided pair as one.
    """

    low: float = 0.0
    high: float = 4.0
    count: int = 1000
    skip: int = 20
    mu: float = 0.9
    distance: str = "l2"
    scale: float = 1e-3
    start: float = 0.2

    needs: ClassVar[bool] = True
    guided: ClassVar[bool] = True
    averages: ClassVar[tuple[str, ...]] = ("target",)
    lr: ClassVar[float] = 8e-3

    def __post_init__(self) -> None:
        if not 1 <= self.skip <= self.count or self.count % self.skip:
            raise ValueError(
                f"got count={self.count} skip={self.skip}: give a count that is a multiple of the skip, as 1000 of 20"
            )

    def stages(self, on: Setting) -> list[Stage]:
        w, law = (self.low, self.high), Adjacent(tuple(self.grid(on.process).tolist()))
        pair = Regression(process=on.process, law=Uniform(), target=GuidedPair(), weight="truncated", guidance=w)
        skipped = Distilled(process=on.process, law=law, target=Skipped(), weight="uniform", distance=self.distance,
                            scale=self.scale, guidance=w, mu=self.mu)  # fmt: skip
        begins = [Stage(objective=pair, share=self.start)] if self.start else []
        return [*begins, Stage(objective=skipped, share=1 - self.start)]

    def grid(self, process: Process) -> Tensor:
        """The times a skip apart."""
        return times(process, "uniform", self.count // self.skip)

    def tables(self, process: Process) -> dict[str, Tableau]:
        grid = self.grid(process)
        last = len(grid) - 1
        return {
            str(n): table("lcm", process, grid[[round(k * last / n) for k in range(n + 1)]])
            for n in (1, 2, 4) if n <= last
        }  # fmt: skip
