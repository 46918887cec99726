"""What runs against each other: a solver on a grid, a table in a file, or another library's sampler.

A contender is a name and a function that makes it ready for a process and a number of network calls. What it then runs
on is the same for all: one denoiser (z, t) -> x0_hat and standard normal noise. It ends in data space, either in the
state at the process's last time ("state") or at sigma = 0 ("data"); each is held against the exact end state of its
kind.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fewstep.check.subject import load as load_solver
from fewstep.denoiser.base import Denoises
from fewstep.grid import GRIDS, to_zero
from fewstep.loop import sample, tabulate
from fewstep.loop.sample import same_model
from fewstep.loop.tabulate import informed, own_of, right_for, table_of
from fewstep.process import Process
from fewstep.solver import DEFAULT_SOLVERS, DRIVERS, TABLES, Driver, Solver
from fewstep.stats import attach
from fewstep.tableau import MadeFor, Tableau
from fewstep.tableau.file import to_bytes
from fewstep.words import named, pick, placed

if TYPE_CHECKING:
    from fewstep.bench.subject import Subject

__all__ = [
    "FITTED",
    "OURS",
    "PEERS",
    "SAME",
    "STUDENTS",
    "Contender",
    "Prepared",
    "exact",
    "is_table",
    "ours",
    "pairs",
    "run_of",
    "students",
    "without",
]

OURS, FITTED, STUDENTS, PEERS, SAME = "fewstep", "fitted", "students", "peers", "peers on our grid"
ENDS: dict[str, None] = dict.fromkeys(("zero", "state", "then-zero"))  # behind the name of a grid and a plus
_DRIVER = "got {} to compare at equal calls: it chooses its steps while it runs and takes no fixed number, leave it out"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A contender made ready for one process and one number of network calls."""

    calls: int  # network calls of a sample, at most what was asked
    digest: str  # says what decides the samples beside model and noise; kept results are found again by it
    end: str  # "state" or "data", see the module
    # (denoiser, standard normal noise (batch, *state), seed, number of the first sample) -> samples in data space
    go: Callable[[Denoises, Tensor, int, int], Tensor]
    subject: Subject | None = None  # whose network it is, where that is another than the bench's


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A name, the group it is ranked in, and `prepare(process, calls)`, which raises where it cannot run.

    `counts` are the numbers of calls it exists for; None is any.
    """

    name: str
    group: str
    prepare: Callable[[Process, int], Prepared]
    counts: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return self.name


def ours(specs: Sequence[str], subject: Subject) -> list[Contender]:
    """The contenders that a word of the command line each stands for.

    NAME, NAME@GRID (both may hold * and ?), a table file, or file.py:object. The last time of a grid is moved to
    sigma = 0 where process and solver have such an end, with GRID+zero wherever it can be; GRID+state ends at the
    process's last time, GRID+then-zero takes a last step from there to sigma = 0. The word default is the default
    solver.
    """
    found: dict[str, Contender] = {}
    for spec in dict.fromkeys(specs):
        path = Path(spec)
        if is_table(spec):
            taken = path.stem in found or path.stem in TABLES
            made = [_table(path, spec if taken else path.stem, subject)]
        else:
            made = [Contender(name=name if grid == "default" else f"{name}@{grid}", group=OURS,
                              prepare=partial(_prepare, name, grid, subject))
                    for name, grid in pairs(spec, subject.process.kind)]  # fmt: skip
        found |= {contender.name: contender for contender in made}
    return list(found.values())


def students(folders: Sequence[str], subject: Subject, load: Callable[[str], Subject]) -> list[Contender]:
    """The students in these folders, each a contender by its own tables alone, on networks of their own."""
    found = []
    for folder in folders:
        theirs = load(folder)
        if theirs.made_for is None or (theirs.shape, theirs.classes) != (subject.shape, subject.classes):
            what = "brings no table" if theirs.made_for is None else f"makes {theirs.shape} of {theirs.classes} classes"
            raise ValueError(
                f"got the student {folder}, which {what}, beside a model of {subject.shape} and {subject.classes} "
                "classes: give a student of this model"
            )
        one = _student(Path(folder), theirs, theirs.made_for)
        found.append(replace(one, name=folder) if one.name in [other.name for other in found] else one)
    return found


def _student(folder: Path, theirs: Subject, made: MadeFor) -> Contender:
    name = folder.resolve().parent.name if folder.name == "model" else folder.name

    def prepare(process: Process, calls: int) -> Prepared:  # noqa: ARG001 - it has a process of its own
        run = run_of(made.by_calls[calls])
        return replace(run, digest=f"{theirs.digest} {run.digest}", subject=theirs)

    return Contender(name=name, group=STUDENTS, prepare=prepare, counts=tuple(sorted(made.by_calls)))


def exact(subject: Subject, calls: int, grid: str = "default") -> Prepared:
    """The run whose end stands for the exact one: a multistep method of order 3 with corrector at many calls.

    A student has no such run: it is its own at the most calls that it was made for.
    """
    if subject.made_for is not None and subject.made_for.rows != "any":
        run = run_of(own_of(subject.made_for, subject.process))
        return replace(run, digest=f"exact {run.digest}")
    run = _prepare("multistep-pc-3", f"{grid}+state", subject, subject.process, calls)
    return replace(run, digest=f"exact {run.digest}")  # other cells than that solver's as a contender


def is_table(spec: str) -> bool:
    """Whether a word of the command line is the file of a table."""
    return Path(spec).is_file() and Path(spec).suffix != ".py"


def without(contenders: Sequence[Contender], patterns: Sequence[str]) -> list[Contender]:
    """The contenders whose names fit none of the patterns."""
    return [c for c in contenders if not any(fnmatchcase(c.name, pattern) for pattern in patterns)]


def pairs(spec: str, kind: str = "scalar") -> list[tuple[str, str]]:
    """(solver, grid) pairs of one word of the command line, for a kind of process."""
    name, _, grid = spec.partition("@")
    if ":" not in name and (os.sep in name or Path(name).suffix):
        raise ValueError(f"got the solver {spec}, where there is no file: name a table file, or a solver")
    if name == "default":
        name, grid = DEFAULT_SOLVERS[kind], grid or "default"
    if name in DRIVERS:
        raise ValueError(_DRIVER.format(name))
    name, grid = (name, grid) if ":" in name else placed(TABLES, name, grid or "default")
    names = [name] if ":" in name else _matching(TABLES, name, "solver")
    grid, plus, end = (grid or "default").partition("+")
    if plus:
        pick(ENDS, end, "end of a grid")
    return [(n, g + plus + end) for n in names for g in _matching(GRIDS, grid, "grid")]


def _matching(registry: Any, name: str, what: str) -> list[str]:
    found = [key for key in registry if fnmatchcase(key, name)]
    return found or [named(registry, name, what)]


def _prepare(name: str, grid: str, subject: Subject, process: Process, calls: int) -> Prepared:
    solver = load_solver(name) if ":" in name else TABLES[name]()
    if isinstance(solver, Driver):
        raise ValueError(_DRIVER.format(name))
    denoiser = subject.of(0, 1)
    name, _, end = grid.partition("+")
    if end == "then-zero":
        solver = informed(attach(solver, subject), denoiser, subject.shape)
        assert isinstance(solver, Solver)
        table = tabulate(solver, process, grid=to_zero(solver.grid(name)), steps=calls)
        right_for(denoiser, process, table)
        return run_of(table)
    solver = attach(solver, subject)
    table = table_of(denoiser, process, solver, subject.shape, grid=name, steps=calls, final=end or "zero")
    if end == "zero" and table.final != end:
        label = type(solver).__name__
        raise ValueError(f"got {grid} for {label}, which takes no step to sigma = 0 here: leave +zero out")
    return run_of(table)


def _table(path: Path, name: str, subject: Subject) -> Contender:
    table = tabulate(path, subject.process)
    same_model(subject.of(0, 1), table)
    return Contender(name=name, group=FITTED, prepare=lambda process, calls: run_of(table), counts=(table.nfe,))


def run_of(table: Tableau) -> Prepared:
    """A table made ready."""
    bare = replace(table, card=None)  # whose it is has been said

    def go(denoiser: Denoises, noise: Tensor, seed: int, first: int) -> Tensor:
        start = table.process.prior(noise, table.rows[0].t)
        z = sample(denoiser, table.process, solver=bare, x=start, seed=seed, first=first, progress=False)
        return table.process.to_data(z)

    end = "data" if table.final == "zero" else "state"
    return Prepared(calls=table.nfe, digest=hashlib.sha256(to_bytes(table)).hexdigest(), end=end, go=go)
