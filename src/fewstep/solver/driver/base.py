"""Drivers: samplers that choose while they run, so that no table can be written before, and what they end in.

A driver takes its own times (adaptive steps) or sizes its own noise (data-dependent Langevin steps), for each sample of
a batch alone. Its formulas are written with a solver's writer, but each row is made at once, and the run remembers what
was chosen: `Outcome.table` is the table that a sample has realised.

To write one: (1) subclass `Driver` as a frozen dataclass; (2) write `drive(run)`, with `run.live(...)` as the writer
of rows made at once; (3) declare its `promise`; (4) add it to `DRIVERS`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NoReturn, Protocol

import torch
from torch import Tensor

from fewstep.noise import NoiseSource
from fewstep.process.base import Process
from fewstep.solver.base import Promised
from fewstep.tableau import Form, Tableau, Writer

__all__ = ["ENDS", "Driver", "Live", "Outcome", "Run", "ends_of", "listed"]

ENDS = {
    "reached the end": "it reached the end",
    "step too small": "its step became too small to move the time: the tolerance is below what the network's numbers "
    "resolve; raise rtol or atol",
    "too many calls": "it took all the network calls it was allowed: raise the number of calls or the tolerance",
    "not finite": "its state or the network's output is not finite: check the network's output there",
}

NAMED = 8  # samples that a sentence names


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What a run ended in, sample by sample.

    Attributes:
        state: (batch, *state shape), each sample at its time in `times`.
        times: (batch,) float64; the last time of the grid for a sample that reached it.
        status: a key of `ENDS` for each sample.
        calls: (batch,) network calls of each sample, rejected steps included.
        accepted, rejected: (batch,) steps.
        rounds: batched network calls, one after the other.
        why: of a table's run that failed: what a replay finds to be the first that is not finite, in a sentence.
    """

    state: Tensor
    times: Tensor
    status: tuple[str, ...]
    calls: Tensor
    accepted: Tensor
    rejected: Tensor
    rounds: int
    tables: Callable[[int], Tableau] = field(repr=False)
    noises: Callable[[int], NoiseSource] | None = field(default=None, repr=False)
    why: Callable[[], str] | None = field(default=None, repr=False)

    @staticmethod
    def over(grid: Tensor, state: Tensor, calls: Tensor, rounds: int, tables: Callable[[int], Tableau]) -> Outcome:
        """That of a run through all steps of a grid, whatever became of its samples on the way."""
        steps = torch.full((len(state),), len(grid) - 1)
        return Outcome(
            state=state, times=grid[-1].expand(len(state)), status=ends_of(state), calls=calls, accepted=steps,
            rejected=torch.zeros_like(steps), rounds=rounds, tables=tables,
        )  # fmt: skip

    @property
    def ok(self) -> bool:
        """Whether every sample reached the end."""
        return all(status == "reached the end" for status in self.status)

    def table(self, sample: int) -> Tableau:
        """The table that a sample has realised: its accepted steps as numbers."""
        return self.tables(_number(sample, len(self.status)))

    def noise(self, sample: int) -> NoiseSource:
        """The noise of a sample of a stochastic run, to replay its table with `sample(..., noise=...)`."""
        if self.noises is None:
            raise ValueError("got a run that drew its noise from the seed alone: replay with its seed and first")
        return self.noises(_number(sample, len(self.status)))

    def checked(self) -> Tensor:
        """The state, or a ValueError that says what became of the samples that did not reach the end."""
        if self.ok:
            return self.state
        raise ValueError(f"{self._failed()}: {self.why()}" if self.why else str(self))

    def sentence(self, sample: int) -> str:
        """What happened to a sample, in a sentence."""
        i = _number(sample, len(self.status))
        steps = f"{int(self.accepted[i])} steps ({int(self.rejected[i])} more rejected)"
        took = f"{steps} and {int(self.calls[i])} network calls"
        return f"sample {i} stopped at t = {float(self.times[i]):g} after {took}: {ENDS[self.status[i]]}"

    def __str__(self) -> str:
        """What happened to the batch, in a sentence."""
        if self.ok:
            least, most = int(self.calls.min()), int(self.calls.max())
            spread = f"{least} to {most}" if least < most else f"{least}"
            return f"all {len(self.status)} samples reached the end in {spread} network calls each"
        first = next(i for i, status in enumerate(self.status) if status != "reached the end")
        return f"{self._failed()}: {self.sentence(first)}"

    def _failed(self) -> str:
        lost = [k for k, status in enumerate(self.status) if status != "reached the end"]
        kinds = {status: [k for k in lost if self.status[k] == status] for status in self.status}
        failed = ", ".join(f"{len(ks)} with {status!r}: {listed(ks)}" for status, ks in kinds.items() if ks)
        return f"{len(lost)} of {len(self.status)} samples did not reach the end ({failed})"


def listed(samples: Sequence[int]) -> str:
    """The numbers of samples as a sentence has them: the first of many."""
    more = f" and {len(samples) - NAMED} more" if len(samples) > NAMED else ""
    return f"sample{'s' * (len(samples) > 1)} {', '.join(map(str, samples[:NAMED]))}{more}"


def ends_of(state: Tensor) -> tuple[str, ...]:
    """The status of each sample of a run that goes through all its steps, whatever becomes of them."""
    if math.isfinite(state.sum().item()):  # the usual case in one pass: a finite sum has finite terms
        return ("reached the end",) * len(state)
    finite = state.reshape(len(state), -1).isfinite().all(1).tolist()
    return tuple("reached the end" if good else "not finite" for good in finite)


def _number(sample: int, batch: int) -> int:
    if not -batch <= sample < batch:
        raise ValueError(f"got sample {sample} of a batch of {batch}: give a number below {batch}")
    return sample % batch


class Live(Writer, ABC):
    """A writer that makes every row at once; its times may be one a sample. `value` is what a form is worth."""

    latest: Form

    @abstractmethod
    def value(self, form: Form) -> Tensor:
        """The tensor of a form."""

    @abstractmethod
    def output(self, z: Form) -> Tensor | None:
        """The data prediction of a row, where it was called."""

    @abstractmethod
    def outputs(self, form: str) -> list[Form]:
        """What the calls so far returned, in order, in data or noise form."""

    @abstractmethod
    def forget(self) -> None:
        """Lets go of all rows but the latest."""


class Run(Protocol):
    """What a driver is handed: process, grid, start, and writers for some of the samples."""

    process: Process
    grid: Tensor
    start: Tensor
    calls: Tensor
    rounds: int

    def live(self, index: Tensor, z: Tensor, known: tuple[Tensor, Tensor] | None = None) -> Live:
        """A writer whose start row is z, the states of the samples `index`.

        `known` is the network's output there for the samples of a mask, which then need no call.
        """
        ...

    def noise(self, sample: int) -> NoiseSource:
        """The noise a sample has drawn, in the order in which it was asked for."""
        ...

    def sizes(self, table: Tableau) -> Live:
        """A writer for all samples, with the noise of a table's intervals in order."""
        ...


class Driver(Promised):
    """Runs one method whose coefficients depend on the run.

    - `own_times`: whether it chooses its times (then it is given the two ends of a grid only).
    """

    own_times: ClassVar[bool] = True
    instead: ClassVar[str] = "rk45"

    @abstractmethod
    def drive(self, run: Run) -> Outcome:
        """Takes the start down to the end of the grid."""

    def limited(self, calls: int) -> Driver:
        """The same driver that stops after so many network calls, where it chooses its times."""
        label = type(self).__name__
        raise ValueError(f"got a limit of {calls} calls for {label}, whose grid says its calls: give steps")

    def calls(self, steps: int, *, to_zero: bool) -> int:  # noqa: ARG002
        """Network calls of `steps` grid intervals, where it is given its times."""
        label = type(self).__name__
        raise ValueError(f"got {steps} steps for {label}, which chooses its own: its outcome has the calls")

    def check(self, process: Process, grid: Tensor) -> None:
        """Refuses processes and ends it has no formula for."""
        self.covers(process, grid)

    def tabulate(self, process: Process, grid: Tensor) -> NoReturn:  # noqa: ARG002
        """Refused: there is no table before the run."""
        raise ValueError(
            f"got {type(self).__name__}, a driver, which chooses its steps while it runs and has no table before: "
            "run it with sample or solve, whose outcome has a table for each sample"
        )
