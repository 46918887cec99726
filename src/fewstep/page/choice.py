"""What a person chose on the page, and the run it stands for.

A choice that would have no effect is refused with a sentence, as on the command line, and so is one without measure or
one that names a file: what comes from the browser is not what the page's sliders show. Pictures want no noise left, so
the last step goes to sigma = 0 wherever solver and process allow it, as everywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

import fewstep.solver as solvers
from fewstep.grid import GRIDS
from fewstep.interop.load import SHIPPED
from fewstep.loop import solve
from fewstep.loop.tabulate import right_for
from fewstep.model import Model
from fewstep.model.draw import conditioned, table_for
from fewstep.model.record import class_labels, describe
from fewstep.solver import ALIASES, DEFAULT_SOLVERS, SOLVERS, Driver, Outcome
from fewstep.stats import attach
from fewstep.tableau import Tableau
from fewstep.words import Typed, build, named, pick, placed, written

__all__ = [
    "DEFAULT",
    "EACH",
    "NONE",
    "SLOTS",
    "Choice",
    "Job",
    "bounded",
    "filled",
    "offered",
    "options_of",
    "place_of",
]

DEFAULT = "default"  # the solver or grid of the model's process
EACH, NONE = "every class in turn", "no class"  # the labels that are no class's name
RANGES = {"steps": (1, 1000), "num": (1, 256), "seed": (0, 2**63 - 1), "scale": (-100, 100)}
LETTERS = 400  # of a text
PLAIN = {"int", "float", "bool", "str", "None", "tuple"}  # kinds of option that are written in a field
SAID = {"guidance": "scale", "classes": "label", "class": "label", "step": "steps", "calls": "steps"}  # of other fields


def offered(registry: Iterable[str]) -> list[str]:
    """What a drop-down of solvers shows: the default, then each other solver by one of its names."""
    return [DEFAULT, *(name for name in registry if name not in (DEFAULT, *ALIASES))]


def options_of(name: str) -> dict[str, str]:
    """The options of a solver that a field can hold, each with its default as Python writes it; none of `DEFAULT`."""
    if name not in SOLVERS or name == DEFAULT:
        return {}
    made = SOLVERS[name]()
    kinds = {f.name: {kind.partition("[")[0] for kind in str(f.type).split(" | ")} for f in fields(made) if f.init}
    return {option: repr(getattr(made, option)) for option, kind in kinds.items() if kind <= PLAIN}


SLOTS = max(len(options_of(name)) for name in SOLVERS)  # fields that the options of any solver fit into


def filled(name: str, values: Sequence[str]) -> str:
    """The options that were written into a solver's fields, in their order, as `Choice` takes them."""
    found = []
    for option, value in zip(options_of(name), values, strict=False):
        if isinstance(value, str) and value.strip():
            text = f"{option}={value.strip()}"
            if not _one(text):
                raise ValueError(f"got {option}={value[:40]!r}: give one number or word, or nothing for the default")
            found.append(text)
    return ", ".join(found)


def _one(text: str) -> bool:
    try:
        return len(written(text)) == 1
    except ValueError:
        return False


def place_of(sentence: str, names: Iterable[str]) -> str | None:
    """The field, one of some names, that a refusal is about: the first that it says before what to do."""
    about = re.split(r": ", sentence, maxsplit=1)[0]
    known = {*names}
    for word in re.findall(r"[a-z_]+", about):
        name = SAID.get(word, word)
        if name in known:
            return name
    return None


def bounded(chosen: Any) -> None:
    """Refuses fields of a choice that are out of `RANGES`, and texts of more than `LETTERS`."""
    for name, text in vars(chosen).items():
        if isinstance(text, str) and len(text) > LETTERS:
            raise ValueError(f"got {len(text)} letters as {name}: give at most {LETTERS}")
    for name, (low, high) in RANGES.items():
        value = getattr(chosen, name, low)
        if not low <= value <= high:
            raise ValueError(f"got {name}={str(value)[:40]}: give a number from {low} to {high}")


@dataclass(frozen=True, kw_only=True)
class Choice(Typed):
    """The fields of the page."""

    solver: str = DEFAULT  # a name in `fewstep.SOLVERS`, or `DEFAULT`
    options: str = ""  # of the solver, written as "eta=0.5, noise=1.003"
    grid: str = DEFAULT  # a name in `fewstep.GRIDS`
    steps: int = 10  # at most this many network calls
    scale: float = 1.0  # of classifier-free guidance; 1 is none
    label: str = EACH  # `EACH`, `NONE` or class names, separated by commas
    seed: int = 0  # of the noise
    num: int = 16  # how many samples

    def __post_init__(self) -> None:
        bounded(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A choice on a model, ready to run."""

    model: Model  # what it was made of
    choice: Choice
    name: str  # of the solver, in `fewstep.SOLVERS`
    solver: Tableau | Driver  # the table to run, or a driver, which has none before the run
    labels: list[int] | None  # a class number for each sample, or None for none
    final: str  # "zero" where the last step goes to sigma = 0, else "state"
    denoiser: Callable[[Tensor, Any], Tensor]  # the model's, with its labels and its guidance

    @staticmethod
    def of(choice: Choice, model: Model) -> Job:
        """The run that a choice stands for; a ValueError for one that makes no sense."""
        if len(model.shape) != 3 or model.shape[0] not in (1, 3):
            raise ValueError(f"got a model of samples {model.shape}: the page shows pictures of 1 or 3 channels")
        solver, grid = placed(SOLVERS, choice.solver, choice.grid)
        solver = solver if solver == DEFAULT else named(SOLVERS, solver, "solver")
        choice = replace(choice, solver=solver, grid=named(GRIDS, grid, "grid"))
        wanted = None if choice.label == EACH else choice.label
        labels = None if choice.label == NONE else class_labels(wanted, model.labels, choice.num)
        if labels is None and choice.scale != 1:
            raise ValueError(f"got guidance {choice.scale:g} without classes, where it has no effect: set it to 1")
        name = DEFAULT_SOLVERS[model.process.kind] if choice.solver == DEFAULT else choice.solver
        solver = attach(_built(name, written(choice.options)), model)
        final = "state"
        if isinstance(solver, Driver):
            if solver.own_times and choice.grid != DEFAULT:
                raise ValueError(
                    f"got the grid {choice.grid} for {name}, which takes its own times: set it to {DEFAULT}"
                )
            right_for(model.denoiser(), model.process, solver)
        else:
            solver = table_for(model, solver, choice.scale, grid=choice.grid, steps=choice.steps)
            final = solver.final
        denoiser = conditioned(model, labels, choice.scale)
        return Job(model=model, choice=choice, name=name, solver=solver, labels=labels, final=final, denoiser=denoiser)

    def solve(self, denoiser: Callable[[Tensor, Any], Any], progress: Callable[[float], object]) -> Outcome:
        """Runs with a denoiser that stands for this one's; a ValueError where a sample did not reach the end."""
        driven = {} if isinstance(self.solver, Tableau) else {"grid": self.choice.grid, "steps": self.choice.steps}
        with self.model.pace.threaded():
            outcome = solve(denoiser, self.model.process, solver=self.solver, seed=self.choice.seed,
                               progress=progress, shape=(self.choice.num, *self.model.shape), **driven)  # fmt: skip
        outcome.checked()
        return outcome

    @property
    def python(self) -> str:
        """The lines of Python that repeat it: `x` is the samples, to the bit."""
        choice, process, path = self.choice, "model.process", self.model.path
        said = [] if choice.solver == DEFAULT else [f"solver={self._spelt_solver()}"]
        said += [] if choice.grid == DEFAULT else [f"grid={_quoted(choice.grid)}"]
        said += [f"steps={choice.steps}"]
        said += [f"final={_quoted(self.final)}"] if isinstance(self.solver, Tableau) else []
        denoiser = f"model.denoiser({'' if self.labels is None else _spelt(self.labels)})"
        if choice.scale != 1:
            denoiser = f"fs.guide({denoiser}, model.denoiser(), {choice.scale!r})"
        lines = [
            "import fewstep as fs",
            f"model = fs.load({'' if path == SHIPPED else _quoted(str(path))})",
            f"denoiser = {denoiser}",
            f"x = fs.sample(denoiser, {process}, {', '.join(said)},",
            f"    shape=({choice.num}, *model.shape), seed={choice.seed})",
        ]
        if self.model.process.kind != "scalar":
            lines.append(f"x = {process}.to_data(x)")
        return "\n".join(lines) + "\n"

    def _spelt_solver(self) -> str:
        """The solver as one writes it: its name alone, its class with options, with the statistics it needs."""
        options = ", ".join(f"{name}={_quoted(value)}" for name, value in written(self.choice.options))
        made = SOLVERS[self.name]
        own = self.solver.solver if isinstance(self.solver, Tableau) else self.solver
        attached = bool(getattr(own, "statistics", None))
        if not (options or attached):
            return _quoted(self.name)
        known = isinstance(made, type) and getattr(solvers, made.__name__, None) is made
        call = f"{f'fs.{made.__name__}' if known else f'fs.SOLVERS[{_quoted(self.name)}]'}({options})"
        return f"fs.stats.attach({call}, model)" if attached else call

    def record(self) -> dict[str, Any]:
        """What makes the samples, ready for run.json."""
        choice = self.choice
        return describe(self.model, self.solver, file=None, final=self.final, num=choice.num, labels=self.labels,
                        seed=choice.seed, batch=choice.num, device="cpu", grid=choice.grid, steps=choice.steps,
                        guidance=choice.scale)  # fmt: skip


def _built(name: str, options: list[tuple[str, Any]]) -> Any:
    """The solver with its options, none of which may name a file: the server's are nobody else's to open."""
    files = {f.name for f in fields(pick(SOLVERS, name, "solver")()) if "Path" in str(f.type)}
    for option in files.intersection(option for option, _ in options):
        raise ValueError(f"got {option} for {name}, which is a file: leave it out; what lies with the model is taken")
    return build(SOLVERS, name, "solver", options)


def _quoted(value: Any) -> str:
    """A word in double quotes, as a formatter writes it; anything else as Python shows it."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _spelt(labels: list[int]) -> str:
    """A list as short as Python writes it."""
    count, classes = len(labels), max(labels) + 1
    if len(set(labels)) == 1:
        return f"[{labels[0]}] * {count}"
    if labels == [k % classes for k in range(count)]:
        return f"[k % {classes} for k in range({count})]"
    return repr(labels)
