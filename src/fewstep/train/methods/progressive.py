r"""Progressive distillation: a student whose one step is two of its teacher's; then it is the teacher.

$$ g^* = w^{-1}(\tilde z_s - c\, z_t), \qquad \tilde z_s = \text{two DDIM steps of the teacher}, \quad t \to u \to s $$

on any grid of a scalar or diagonal process, of which every student keeps each second point. On the last step, where
the sampler returns x0, the target is the x0 of the teacher's second half. Time runs from noise to data, as published.

References: Salimans, Ho, Progressive distillation for fast sampling of diffusion models, 2022, algorithm 2 and
appendix G, https://arxiv.org/abs/2202.00512.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.process import Process
from fewstep.tableau import Tableau
from fewstep.train.methods.base import Method, Setting, table, times
from fewstep.train.objective import Stage
from fewstep.train.pairs import Steps
from fewstep.train.player import Players
from fewstep.train.regression import Regression
from fewstep.train.target import Point, Target, halved

__all__ = ["Halved", "Progressive"]


@dataclass(frozen=True)
class Halved(Target):
    """Two DDIM steps of the teacher as one."""

    def __call__(self, at: Players, point: Point) -> Tensor:
        p = point
        return halved(p.process, at.teacher(p.batch), p.z, p.t, p.u, p.s, p.last)


@dataclass(frozen=True, kw_only=True)
class Progressive(Method):
    """From a teacher of `steps` DDIM steps to a student of `to`, by halving.

    Args:
        steps: of the teacher, `to` times a power of 2.
        to: of the student.
        grid: a name in `GRIDS` for the teacher's steps.
        times: of the teacher's steps, in place of the grid; those of a teacher that is a student of so many itself.
        weight: in `WEIGHTS`; None: of the network's own output (of v: 1 + SNR).
        first: how many times as long the first stage is, where the network does not begin as the teacher's.
        last: how many times as long the stages of 2 steps and 1 are.
        ema: the decay of the average that becomes the next teacher.
    """

    steps: int = 64
    to: int = 4
    grid: str = "default"
    weight: str | None = None
    first: float = 3.0
    last: float = 2.0
    ema: float = 0.99
    times: tuple[float, ...] | None = None

    needs: ClassVar[bool] = True
    lr: ClassVar[float] = 8e-3

    def __post_init__(self) -> None:
        ratio, rest = divmod(self.steps, max(self.to, 1))
        if self.to < 1 or rest or ratio < 2 or ratio & (ratio - 1):
            raise ValueError(f"got steps={self.steps} to={self.to}: give a power of 2 times as many steps, as 64 to 4")

    def stages(self, on: Setting) -> list[Stage]:
        found, steps = [], self.steps
        while steps > self.to:
            objective = Regression(
                process=on.process, law=Steps(self.of(on.process, steps)), target=Halved(), weight=self.weight
            )
            share = self.last if steps <= 4 else self.first if not found and not on.started else 1.0
            found.append(Stage(objective=objective, share=share, promotes=bool(found), ema=self.ema))
            steps //= 2
        return found

    def of(self, process: Process, steps: int) -> tuple[float, ...]:
        """The grid of a student of so many steps."""
        whole = times(process, self.grid, self.steps).tolist() if self.times is None else self.times
        return tuple(whole[:: self.steps // steps])

    def after(self, tables: Mapping[str, Tableau]) -> Method:
        """Goes on from a student on its own times."""
        own = tables.get(str(self.steps)) if self.times is None else None
        return self if own is None else replace(self, times=tuple(own.grid.tolist()))

    def tables(self, process: Process) -> dict[str, Tableau]:
        grid = self.of(process, self.to)
        return {str(self.to): table("ddim", process, torch.tensor(grid, dtype=torch.float64))}
