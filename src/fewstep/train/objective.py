"""What one step of a training is: the numbers of the step, and the losses of the players, in the order of the paper.

    for losses in objective.losses(players, draw):    # the trainer's whole inner loop
        each player named steps on its loss; what follows sees it stepped

A `Stage` is an objective for a share of the budget. A player that is never named is frozen; "every fifth step" is an
`if` on `draw.k`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from fewstep.noise import Noise
from fewstep.words import Typed

if TYPE_CHECKING:
    from fewstep.train.player import Players

__all__ = ["Batch", "Draw", "Objective", "Stage"]


@dataclass(frozen=True)
class Batch:
    """Clean data and what goes along with them.

    Attributes:
        x0: (B, *shape) float64, in data space.
        conditions: what the network is told beside state and times, by its own names: class_labels, w.
    """

    x0: Tensor
    conditions: Mapping[str, Tensor] = field(default_factory=dict)

    def told(self, **conditions: Tensor) -> Batch:
        """The same data with further conditions, or others."""
        return replace(self, conditions={**self.conditions, **conditions})


@dataclass(frozen=True)
class Draw:
    """Step k: its batch, and every random number by name, a function of (seed, k, name, sample).

    Attributes:
        batch: the data.
        k: the number of the step, from 0, over all stages.
        share: of the stage that is over, in [0, 1).
        seed: of the run.
        first, whole: of a batch that several processes share, where this part begins and how many samples there are.
    """

    batch: Batch
    k: int
    share: float = 0.0
    seed: int = 0
    first: int = 0
    whole: int = 0

    def normal(self, name: str, like: Tensor) -> Tensor:
        """Standard normals like a tensor (B, ...)."""
        noise, stream = Noise(self.seed, self.first), f"train/{name}"
        return noise.normal(stream, self.k, like.shape, dtype=like.dtype, device=like.device)

    def uniform(self, name: str) -> Tensor:
        """Numbers in (0, 1), one a sample, stratified over the batch in a random order: (B,) float64."""
        part = len(self.batch.x0)
        count = self.whole or part
        rng = np.random.default_rng([self.seed, self.k, *name.encode()])
        return torch.from_numpy((rng.permutation(count) + rng.random()) / count)[self.first : self.first + part]


class Objective(Typed, ABC):
    """One training step in the order of the paper's algorithm box; a frozen dataclass of its options."""

    players: ClassVar[tuple[str, ...]] = ("net",)

    @abstractmethod
    def losses(self, at: Players, draw: Draw) -> Iterator[Mapping[str, Tensor]]:
        """Losses (B,) or () by player; a player steps when its loss is yielded, and what follows sees it stepped."""

    def decays(self, draw: Draw) -> Mapping[str, float]:  # noqa: ARG002
        """The decay of averages of "net" that this objective reads, by name, in this step."""
        return {}

    averages: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True, kw_only=True)
class Stage(Typed):
    """An objective for a while.

    Args:
        objective: of its steps.
        share: of the budget, beside the other stages' shares.
        promotes: before it begins the student's average becomes the teacher. Every later stage goes on from the
            student's average, with an optimiser without memory.
        pairs: how many (noise, end) pairs its teacher records before it begins; 0: none.
        solver, calls: of the teacher, for a pair.
        lr: the learning rate, over that of the run; it falls to zero linearly in every stage.
        ema: the decay of the saved average; None: the run's.
    """

    objective: Objective
    share: float = 1.0
    promotes: bool = False
    pairs: int = 0
    solver: str = "heun"
    calls: int = 63
    lr: float = 1.0
    ema: float | None = None
