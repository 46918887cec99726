r"""Guided distillation: first the guided pair of calls becomes one, told w; then its steps are halved, or skipped.

$$ g^* = (1 + w)\, D_c(z_t, t) - w\, D_0(z_t, t), \qquad w \sim U[0, 4], \quad \text{weight } \max(SNR, 1) $$

The second stage of `guided` is `fewstep.train.methods.progressive` with w carried along; that of
`latent-consistency` is consistency over skipped steps (LCM), so that f nears the data in few updates:

$$ E\; d\big(f_\theta(z_t, t, w),\; f_{avg}(\tilde z_u, u, w)\big), \qquad \tilde z_u = \text{DDIM}(g^*, t \to u) $$

f is the network's x0; at the end of the grid the state. Published scalings are that to within 1 %.
w = 0 is no guidance; Imagen's scale and mean flow's omega are 1 + w. Time runs from noise to data, as published.

References: Meng et al., On distillation of guided diffusion models, 2023, eq. 4 and algorithm 2,
https://arxiv.org/abs/2210.03142; Luo et al., Latent consistency models, 2023, eq. 14 and algorithm 1,
https://arxiv.org/abs/2310.04378.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.process import Process
from fewstep.process.operator import apply, inverse
from fewstep.tableau import Tableau
from fewstep.train.methods.base import Method, Setting, table, times
from fewstep.train.methods.consistency import Distilled
from fewstep.train.methods.progressive import Progressive
from fewstep.train.objective import Stage
from fewstep.train.pairs import Adjacent, Uniform
from fewstep.train.player import Players
from fewstep.train.regression import Regression
from fewstep.train.target import Point, Target, column, guided, jump

__all__ = ["Guided", "GuidedPair", "LatentConsistency", "Skipped", "stochastic"]


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
    rows: ClassVar[str] = "ends"
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


def stochastic(alpha: Tensor, sigma: Tensor, z: Tensor, t: int, s: int, noise: Tensor) -> Tensor:
    """One level back to noise, from level t + 1 of a grid to t: what the stochastic sampler adds after two levels."""
    back = alpha[t] / alpha[s]
    return back * z + torch.sqrt(sigma[t] ** 2 - (back * sigma[s]) ** 2) * noise
