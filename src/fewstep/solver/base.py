"""What a solver is: a frozen description that writes a table, and the promises it is held to.

To write one: (1) subclass `Solver` as a frozen dataclass; (2) in `write`, go through `w.steps` and spell the update
with `w.call`, `w.row`, `w.noise`; (3) declare in `promise` what it is good for; (4) say in `calls` how many network
calls n steps take; (5) add it to `TABLES`. The tests then hold it to what it declares.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import KW_ONLY, dataclass, fields
from operator import attrgetter
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from fewstep.grid import GRIDS, Grid
from fewstep.process.base import Memory, Process
from fewstep.process.bridge import boots
from fewstep.process.clock import CLOCKS
from fewstep.solver.weights import together
from fewstep.tableau import Form, Tableau, Through, Writer
from fewstep.tableau.kept import kept, said
from fewstep.words import Typed, among, bounded, pick

__all__ = [
    "ALL_KINDS", "BOTH", "BY_FORM", "LAST", "Moments", "Outer", "Promise", "Promised", "Solver", "booted", "calls_of"
]  # fmt: skip

ALL_KINDS = ("scalar", "diagonal", "block")
BOTH = ("alpha=0", "sigma=0")  # the singular ends
LAST = BOTH[1:]
BY_FORM = {"data": BOTH, "noise": LAST}  # where alpha = 0 a noise prediction says nothing of the data


@dataclass(frozen=True)
class Moments:
    """Rows that read q predictions reproduce polynomials in `clock` up to degree `degrees[q - 1]` (the last beyond)."""

    form: str
    clock: str
    degrees: tuple[int, ...]

    def __post_init__(self) -> None:
        among(self, form=("data", "noise"), clock=CLOCKS)


@dataclass(frozen=True)
class Promise:
    """What a solver declares of itself; `fewstep check` and the tests hold it to that.

    Attributes:
        order: the global order reached with its own start and end, on smooth problems (of a driver: of accepted steps);
            0 where no limit is claimed.
        stochastic: whether it adds noise.
        point_mass: the kinds of process on which a single data point is carried exactly (None: all that it covers); on
            the others it leaves a residual that shrinks with the steps.
        moments: the form and clock in which rows integrate polynomial predictions exactly, and up to which degree.
        heads: outputs of the network beside x0 that it reads.
        ends: singular ends it accepts, out of "alpha=0" (start) and "sigma=0" (end).
    """

    order: int
    _: KW_ONLY
    stochastic: bool = False
    point_mass: tuple[str, ...] | None = None
    moments: Moments | None = None
    heads: tuple[str, ...] = ()
    ends: tuple[str, ...] = BOTH

    def __post_init__(self) -> None:
        if not isinstance(self.order, int) or self.order < 0:
            raise ValueError(f"got a promise of order {self.order!r}: give a whole number, 0 for none")
        if not isinstance(self.stochastic, bool):
            raise ValueError(f"got a promise with stochastic={self.stochastic!r}: give True or False")
        for name, allowed in (("point_mass", ALL_KINDS), ("ends", BOTH), ("heads", ())):
            words = getattr(self, name)
            if words is not None and not (isinstance(words, tuple) and all(w in (allowed or (w,)) for w in words)):
                what = f"out of {', '.join(allowed)}" if allowed else "of names"
                raise ValueError(f"got a promise with {name}={words!r}: give a tuple {what}")


class Promised(Typed, ABC):
    """A method that declares what it is good for; what is read of its promise has the promise's names.

    - `kinds`: the kinds of process its mathematics covers; `reason` says why not the others.
    - `promise`: what it is held to on them, see `Promise`.
    """

    kinds: ClassVar[tuple[str, ...]] = ALL_KINDS
    reason: ClassVar[str] = ""
    instead: ClassVar[str] = "ddim or multistep-2"  # what to use in its place, in a refusal

    order: int
    stochastic: bool
    moments: Moments | None
    heads: tuple[str, ...]
    ends: tuple[str, ...]

    @property
    @abstractmethod
    def promise(self) -> Promise:
        """What it is held to, by its options."""

    @property
    def point_mass(self) -> tuple[str, ...]:
        exact = self.promise.point_mass
        return self.kinds if exact is None else exact

    def reaches_zero(self, process: Process) -> bool:
        """Whether a run on this process may end at sigma = 0."""
        return process.t_zero is not None and "sigma=0" in self.ends

    def config(self) -> dict[str, Any]:
        """Class and options, as JSON."""
        options = {f.name: getattr(self, f.name) for f in fields(cast(Any, self))}
        return {"class": type(self).__name__, **{k: _json(v) for k, v in options.items()}}

    def covers(self, process: Process, grid: Tensor) -> bool:
        """Refuses processes and singular ends it has no formula for; whether the grid ends at sigma = 0."""
        label = type(self).__name__
        if process.kind not in self.kinds:
            raise ValueError(
                f"got {type(process).__name__} ({process.kind}) for {label}, which covers {', '.join(self.kinds)} "
                f"processes ({self.reason}): use {self.instead}"
            )
        start, end = grid[[0, -1]].tolist()
        first, last = (start, -math.inf, "alpha", "start", "later"), (end, math.inf, "sigma", "end", "earlier")
        for t, lam, name, verb, other in (first, last):
            if process.log_snr(t) == lam and f"{name}=0" not in self.ends:
                raise ValueError(
                    f"got a grid that {verb}s at t = {t:g}, where {name} = 0, for {label}, which is singular there: "
                    f"{verb} {other} or use {self.instead}"
                )
        return process.log_snr(end) == math.inf


for _name in ("order", "stochastic", "moments", "heads", "ends"):
    setattr(Promised, _name, property(attrgetter(f"promise.{_name}")))


class Solver(Promised):
    """Writes the table of one method."""

    @abstractmethod
    def write(self, w: Writer) -> None:
        """Writes all rows after the start."""

    def calls(self, steps: int, *, to_zero: bool) -> int:  # noqa: ARG002
        """Network calls of `steps` grid intervals; `to_zero` when the grid ends at sigma = 0."""
        return steps

    @property
    def one_row(self) -> bool:
        """Whether a step is one row and one call, to which solvers around it may add something."""
        return self.calls(3, to_zero=False) == 3 and not getattr(self, "corrector", False)

    def grid(self, name: str) -> Grid:
        """A grid by its name; "default" is the solver's own where it has one, else the process's."""
        return pick(GRIDS, name, "grid")

    def tabulate(self, process: Process, grid: Tensor) -> Tableau:
        """The table for a process and a grid of decreasing times (n + 1,)."""
        boot = boots(process, float(grid[0]))
        to_zero = self.covers(process, grid[int(boot) :])
        bounded("network calls of a table", calls_of(self, len(grid) - 1, to_zero=to_zero, boot=boot))
        return kept((self.on(process), tuple(grid.tolist())), lambda: self._written(process, grid))

    def on(self, process: Process) -> Hashable:
        """All that a table on a process depends on, but its times; 1 and 1.0 are equal, and other bytes in a file."""
        return self, process, said(self), said(process), _beyond(self), _beyond(process)

    def _written(self, process: Process, grid: Tensor) -> Tableau:
        def written() -> Writer:
            writer = Writer(process, grid)
            if not boot:
                self.write(writer)
            elif rest := booted(writer):
                self.write(rest)
            return writer

        with torch.inference_mode(False):  # kept between runs, differentiable ones too
            boot = boots(process, float(grid[0]))
            grid, memory = grid.clone(), Memory(process, grid.tolist()[int(boot) :])
            table = together(memory, written).table(self)
        if process.kind == "scalar":  # the runs of the table ask for the same numbers
            table.notes["memory"] = memory
        return table


def calls_of(solver: Any, steps: int, *, to_zero: bool, boot: bool) -> int:
    """Network calls of `steps` grid intervals, the first of which may be the boot of a bridge."""
    if not boot:
        return solver.calls(steps, to_zero=to_zero)
    return 1 + (solver.calls(steps - 1, to_zero=to_zero) if steps > 1 else 0)


def booted(w: Writer) -> Through | None:
    """The first row of a run from the pinned end of a bridge, and what writes the others; None where it is alone.

    u_1 = m_1 D(y, T) + R_1 xi, with noise that is no part of the path.
    """
    p, (t, s) = w.process, w.steps[0]
    form: Form = p.M(s) * w.call(w.start, t)
    if p.log_snr(s) < math.inf:
        form = form + p.R(s) * w.fresh_noise(t, s, "boot")
    first = w.row(form, s)
    return Through(w).between(first, w.times[1:]) if len(w.steps) > 1 else None


class Outer(Solver):
    """A solver around another, on its grid."""

    field: ClassVar[str] = "solver"  # the name of the option that holds the other solver

    @property
    def inside(self) -> Any:
        """The other solver."""
        return getattr(self, self.field)

    def calls(self, steps: int, *, to_zero: bool) -> int:
        return self.inside.calls(steps, to_zero=to_zero)

    def grid(self, name: str) -> Grid:
        return self.inside.grid(name)

    def as_inside(self) -> None:
        """Covers the processes that the other does."""
        vars(self).update(kinds=self.inside.kinds, reason=self.inside.reason)


def _beyond(part: Any) -> tuple[Any, ...]:
    """What an object holds beside its fields, which its equality does not see: of a subclass that is no dataclass."""
    return tuple(v for name, v in vars(part).items() if name not in getattr(part, "__dataclass_fields__", ()))


def _json(value: Any) -> Any:
    """An option as JSON: infinity is a word, and what has a config of its own (statistics, a solver) gives that."""
    if hasattr(value, "config"):
        return value.config()
    return str(value) if value in (math.inf, -math.inf) else value
