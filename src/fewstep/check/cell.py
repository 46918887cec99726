"""One solver on one process: the tables it writes and the runs they make, each computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fewstep.check.exact import Problem, grid, law_errors, problem, starts
from fewstep.check.report import Verdict
from fewstep.denoiser import Counted
from fewstep.denoiser.base import Around, as_denoiser
from fewstep.loop import sample
from fewstep.process import Process
from fewstep.process.base import Time
from fewstep.solver.base import Solver
from fewstep.tableau import Tableau

__all__ = ["Cell", "Judge", "Rounded", "slope"]


class Judge:
    """A solver or driver on a process, by name, and how verdicts on it are made."""

    solver: Any
    process: Process
    name: str
    only: tuple[str, ...]

    @cached_property
    def problem(self) -> Problem:
        return problem(self.process)

    def judge(
        self, name: str, good: bool, sentence: str, measured: float | None = None, claimed: float | None = None
    ) -> Verdict:
        """A verdict that passes or fails."""
        return Verdict(name=name, process=self.name, status="pass" if good else "fail", measured=measured,
                       claimed=claimed, sentence=sentence)  # fmt: skip

    def repeats(self, one: Tensor, two: Tensor) -> Verdict:
        """The verdict on two runs of one seed."""
        equal = torch.equal(one, two)
        return self.judge("repeat", equal, f"two runs of one seed are {'equal' if equal else 'not equal'} bit by bit")

    def skip(self, name: str, reason: str, measured: float | None = None) -> Verdict:
        """A verdict that does not apply, and why."""
        return Verdict(name=name, process=self.name, status="skip", measured=measured, sentence=reason)

    def verdicts(
        self, findings: Mapping[str, Callable[[Any], Verdict]], attempt: Callable[[], object]
    ) -> Iterator[Verdict]:
        """One verdict a finding asked for; where the process's kind is not declared one alone, a refused `attempt`."""
        if self.process.kind not in self.solver.kinds:
            yield self._refusal(attempt)
            return
        for name, find in findings.items():
            if self.only and name not in (*self.only, "compile"):  # which has a word of its own
                continue
            try:
                yield find(self)
            except Exception as error:  # whatever a solver raises is a finding about it
                words = " ".join(str(error).split())
                yield self.judge(name, False, f"it raised {type(error).__name__}: {words}")

    def _refusal(self, attempt: Callable[[], object]) -> Verdict:
        """A process outside the declared kinds must be refused, with the solver's reason."""
        reason, kind = self.solver.reason, self.process.kind
        if not reason:
            return self.judge("kinds", False, f"it does not cover {kind} processes and gives no reason: write `reason`")
        try:
            attempt()
        except ValueError as error:
            if reason in str(error):
                return self.skip("kinds", reason)
            return self.judge("kinds", False, f"it refuses {kind} processes without its reason: {error}")
        return self.judge("kinds", False, f"it does not declare {kind} processes, and takes one")


@dataclass(frozen=True)
class Cell(Judge):
    """A solver on a process: the tables it writes and the runs they make."""

    solver: Solver
    process: Process
    name: str
    thorough: bool = False
    compile: bool = False
    only: tuple[str, ...] = ()
    _tables: dict[int, Tableau] = field(default_factory=dict, repr=False)
    _laws: dict[int, dict[float, float]] = field(default_factory=dict, repr=False)
    _runs: dict[int, Tensor] = field(default_factory=dict, repr=False)
    _calls: dict[int, int] = field(default_factory=dict, repr=False)

    @cached_property
    def denoiser(self) -> Any:
        """What the solver calls: the mixture's closed form."""
        return self.problem.denoiser

    def table(self, steps: int) -> Tableau:
        """The table on the standard grid."""
        if steps not in self._tables:
            self._tables[steps] = self.solver.tabulate(self.process, grid(self.process, steps))
        return self._tables[steps]

    def laws(self, steps: int) -> dict[float, float]:
        """By how much the law of Gaussian data is missed, at every time of the grid."""
        if steps not in self._laws:
            self._laws[steps] = law_errors(self.table(steps))
        return self._laws[steps]

    def run(self, steps: int) -> Tensor:
        """Where the problem's start states go, in float64 and on one path."""
        if steps not in self._runs:
            counted = Counted(self.denoiser)
            self._runs[steps] = sample(counted, self.process, solver=self.table(steps), x=self.problem.start, seed=5)
            self._calls[steps] = counted.calls
        return self._runs[steps]

    def draw(self, table: Tableau, count: int, *, first: int = 0) -> Tensor:
        """Samples from `first` on, of 64 that start from the law at the table's first time."""
        x = starts(self.process, float(table.grid[0]), 64)[first : first + count]
        return sample(self.denoiser, self.process, solver=table, x=x, seed=3, first=first)

    def count(self, steps: int) -> int | None:
        """Network calls counted while a run goes; None where it does not come to its end."""
        with suppress(ValueError):
            self.run(steps)
        return self._calls.get(steps)

    def error(self, steps: int) -> float:
        """Against the exact answer: by states, or by the law of Gaussian data where noise is added."""
        if self.solver.stochastic:
            return next(reversed(self.laws(steps).values()))
        return self.problem.error(self.run(steps))

    def within(self, calls: int) -> int:
        """The most steps that take at most so many network calls; 0 where even one takes more."""
        return max((n for n in range(1, calls + 1) if self.solver.calls(n, to_zero=False) <= calls), default=0)


class Rounded(Around):
    """A denoiser that sees its states in bfloat16 and answers in it, as a network in that dtype does."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser = as_denoiser(denoiser)

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Tensor]:
        """X0 rounded, heads as they are."""
        call = self.denoiser.toward(t, output, to)
        return (lambda z: call(z.to(torch.bfloat16)).to(torch.bfloat16)) if output == "x0" else call


def slope(few: float, many: float) -> float:
    """The order seen between errors that are two doublings of the steps apart."""
    if many == 0:
        return math.inf
    return math.log2(few / many) / 2 if few > 0 else 0.0
