"""What one step of a training is: the losses of its players, in the order of the paper.

    for losses in objective.losses(players, draw):    # the trainer's whole inner loop
        each player named steps on its loss; what follows sees it stepped

A `Stage` is an objective for a share of the budget. A player that is never named is frozen; "every fifth step" is an
`if` on `draw.k`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewstep.train.pairs import Draw
from fewstep.train.player import Players
from fewstep.words import Typed

__all__ = ["Objective", "Stage"]


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
        copies: players that begin it as the student's average.
        promotes: before it begins the student's average becomes the teacher. Every later stage goes on from the
            student's average, with an optimiser without memory.
        pairs: how many (noise, end) pairs its teacher records before it begins; 0: none.
        solver, calls: of the teacher, for a pair.
        along: rows of its table whose first states are recorded with the end.
        lr: the learning rate, over that of the run; it falls to zero linearly in every stage.
        ema: the decay of the saved average; None: the run's.
    """

    objective: Objective
    share: float = 1.0
    promotes: bool = False
    copies: tuple[str, ...] = ()
    pairs: int = 0
    solver: str = "heun"
    calls: int = 63
    along: tuple[int, ...] = ()
    lr: float = 1.0
    ema: float | None = None
