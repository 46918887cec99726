"""What a method is: stages of a training, and the tables that its student is sampled by.

To write one: (1) subclass `Method` as a frozen dataclass of its options, with the equation, the paper and which way its
time runs in the docstring; (2) return the stages of a `Setting`; (3) say in `tables` what samples the student; (4) add
it to `METHODS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.grid import GRIDS, to_zero
from fewstep.process import Process
from fewstep.solver import TABLES
from fewstep.tableau import MadeFor, Tableau
from fewstep.train.objective import Stage
from fewstep.train.pairs import Coupling, Draw, Independent, Transport
from fewstep.train.player import Player, Players, Reads
from fewstep.words import Typed, pick

__all__ = ["COUPLINGS", "Method", "Setting", "table", "times"]

COUPLINGS: dict[str, type[Coupling]] = {"independent": Independent, "transport": Transport}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a method is applied to.

    Attributes:
        process: what is learned on.
        size: numbers of a sample.
        taught: whether there is a teacher.
        started: whether the network begins as the teacher's.
        folder: of the run, where pairs are recorded.
        deviation: of what is learned.
    """

    process: Process
    size: int
    taught: bool = False
    started: bool = False
    folder: Path = Path()
    deviation: float = 0.5


class Method(Typed, ABC):
    """A training; see the module's docstring.

    - `blind`: with a teacher it looks at no data.
    - `needs`: it imitates a teacher; `follows`: a noise leads it where it leads the teacher.
    - `destination`: its network is told the destination.
    - `guided`: it is told a guidance w; `denoises`: it is a denoiser.
    - `outputs`: how many tensors it returns; `modes`: by how many frequencies a perceptron mixes them.
    - `noise`: it is told a predicted noise, as y.
    - `given`: it is told another end y beside the state, which `coupling` makes or the data have.
    - `averages`: of the network, beside the one that is saved.
    - `optimiser`, `predicts`, `process`: what it takes unless asked otherwise; None: the run's.
    - `rows`, `spacing`: which tables beside its own are right for the student, and where they run (`MadeFor`).
    - `lr`: the learning rate of a perceptron of 96 units a layer, unless asked otherwise.
    - `width`, `depth`, `length`: of a new perceptron, and its steps of training, unless asked otherwise.
    """

    needs: ClassVar[bool] = False
    follows: ClassVar[bool] = True
    blind: ClassVar[bool] = False
    destination: ClassVar[bool] = False
    guided: ClassVar[bool] = False
    given: ClassVar[bool] = False
    noise: ClassVar[bool] = False
    denoises: ClassVar[bool] = True
    outputs: ClassVar[int] = 1
    modes: ClassVar[int] = 0
    averages: ClassVar[tuple[str, ...]] = ()
    optimiser: ClassVar[str] = "adamw"
    process: ClassVar[str] = "vp"
    predicts: ClassVar[str | None] = None
    rows: ClassVar[str] = "own"
    spacing: ClassVar[str] = "default"
    lr: ClassVar[float] = 2e-3
    width: ClassVar[int] = 96
    depth: ClassVar[int] = 3
    length: ClassVar[int] = 2500

    def after(self, tables: Mapping[str, Tableau]) -> Method:  # noqa: ARG002
        """The method for a teacher that is a student itself, made for these tables."""
        return self

    @abstractmethod
    def stages(self, on: Setting) -> list[Stage]:
        """What is done, one after the other."""

    def others(self, on: Setting, net: nn.Module, reads: Reads) -> Mapping[str, Player]:  # noqa: ARG002
        """The players beside "net"."""
        return {}

    def deviation(self, draw: Draw) -> float:
        """Of what is learned of some data."""
        return float(draw.batch.x0.std())

    def read(self, data: np.ndarray) -> np.ndarray:
        """The data as it trains on them, refused where it cannot."""
        return data

    def network(self, size: int, width: int, depth: int) -> nn.Module | None:  # noqa: ARG002
        """Its own network for samples of so many numbers; None: a perceptron."""
        return None

    def file(self, players: Players) -> str | None:  # noqa: ARG002
        """The file in which it leaves the averaged networks, where they are no denoiser's; None: a model folder."""
        return None

    def export(self, path: Path, players: Players, size: int, facts: Mapping[str, Any]) -> None:
        """Writes the averaged networks, of samples of so many numbers, to its `file`."""
        raise NotImplementedError

    def tables(self, process: Process) -> dict[str, Tableau]:  # noqa: ARG002
        """The tables that the student was made for, by a name that says the calls; none: any solver samples it."""
        return {}

    def made_for(self, process: Process) -> MadeFor | None:
        """What the student's folder says of the tables that are right for it."""
        tables = self.tables(process)
        return MadeFor(tables=tables, rows=self.rows, grid=self.spacing) if tables else None


def times(process: Process, grid: str, steps: int) -> Tensor:
    """The times of a named grid, the last at sigma = 0 where the process has such a time."""
    made = pick(GRIDS, grid, "grid")
    return to_zero(made, append=False)(process, steps) if process.t_zero is not None else made(process, steps)


def table(solver: str, process: Process, grid: Tensor) -> Tableau:
    """The table of a named solver on these times."""
    return TABLES[solver]().tabulate(process, torch.as_tensor(grid, dtype=torch.float64))
