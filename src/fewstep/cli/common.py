"""What the commands share: argument types, name look-up with suggestions, the error a wrong argument raises."""

from __future__ import annotations

import argparse
import ast
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from fewstep import words

if TYPE_CHECKING:
    from fewstep.pace import Pace
    from fewstep.solver import Solver
    from fewstep.tableau import Tableau

T = TypeVar("T")

__all__ = ["Parser", "Usage", "at_least", "build", "check_device", "guidance_argument", "guidance_of", "model_argument",
           "named", "option", "pace_arguments", "pace_of", "pick", "sampler_arguments", "several", "size",
           "solver_or_table", "usage", "variant_argument"]  # fmt: skip


class Usage(ValueError):
    """The command line itself is wrong: exit code 2."""


@contextmanager
def usage() -> Iterator[None]:
    """Makes a ValueError one of the command line."""
    try:
        yield
    except ValueError as error:
        raise Usage(str(error)) from None


pick, named, build = usage()(words.pick), usage()(words.named), usage()(words.build)
check_device = usage()(words.usable_device)


class Help(argparse.HelpFormatter):
    """Help whose paragraphs are wrapped at the width of the terminal."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(fill(paragraph, width, indent) for paragraph in text.split("\n\n"))


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence instead of a usage dump."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": Help, **options})

    def unknown(self, word: str) -> NoReturn:
        """Refuses an argument that is not known, with the nearest options."""
        if word.startswith("-"):
            pick(self._option_string_actions, word.partition("=")[0], f"option of {self.prog}")
        self.error(f"got {word}, which nothing takes")

    def error(self, message: str) -> NoReturn:
        """Raises the message as a usage error that names the command whose help applies."""
        raise Usage(f"{message.rstrip('.')}; `{self.prog} --help` lists what is allowed.")


def only(read: Callable[[str], T], good: Callable[[T], bool], allowed: str) -> Callable[[str], T]:
    """Returns an argparse type: what `read` makes of a word, where that is `good`."""

    def value(text: str) -> T:
        with suppress(ValueError):
            if good(found := read(text)):
                return found
        raise argparse.ArgumentTypeError(f"got {text}, but only {allowed} are allowed")

    return value


def at_least(low: int) -> Callable[[str], int]:
    """Returns an argparse type: a whole number from `low` on."""
    return only(int, lambda value: value >= low, f"whole numbers from {low} on")


number = only(float, math.isfinite, "finite numbers")


def several(low: int) -> Callable[[str], list[int]]:
    """Returns an argparse type: whole numbers from `low` on, separated by commas."""
    return lambda text: [at_least(low)(part) for part in text.split(",")]


def size(text: str) -> int:
    """Argparse type: bytes, written as 4GiB or 500MB."""
    try:
        return words.as_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def option(text: str) -> tuple[str, Any]:
    """Argparse type: NAME=VALUE, the value a Python literal or else a word."""
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier() and value):
        raise argparse.ArgumentTypeError(f"got {text!r}, but options are written NAME=VALUE, as in eta=0.5")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def sampler_arguments(parser: argparse.ArgumentParser, steps: int) -> None:
    """Adds what names a model and a sampler: model, --solver, --option, --grid, and --steps or --nfe."""
    model_argument(parser)
    add = parser.add_argument
    text = "a name from `fewstep list solvers`, or a file of `fewstep explain --save` (default: the measured best)"
    add("--solver", help=text)
    text = "an option of the solver, as in eta=0.5; repeatable"
    add("--option", type=option, action="append", default=[], metavar="NAME=VALUE", help=text)
    add("--grid", help="a name from `fewstep list grids` (default: the process's own)")
    count = parser.add_mutually_exclusive_group()
    count.add_argument("--steps", type=at_least(1), help=f"at most this many network calls (default: {steps})")
    count.add_argument("--nfe", type=at_least(1), help="exactly this many network calls, or refused")


def model_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the model, --variant and --config."""
    parser.add_argument("model", nargs="?", help="a model folder (default: the shipped Fashion-MNIST model)")
    variant_argument(parser)


def variant_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --variant and --config, which `fewstep.load` takes."""
    text = "of a diffusers folder, which weights, as fp16 (default: those without, or the only variant)"
    parser.add_argument("--variant", metavar="NAME", help=text)
    text = "of a checkpoint of one file, the folder of its pipeline's configs (default: one beside it of its name)"
    parser.add_argument("--config", metavar="FOLDER", help=text)


def final_argument(parser: argparse.ArgumentParser, *more: str) -> None:
    """Adds --final, how a run ends."""
    text = "zero: the last step goes to sigma = 0; state: to the process's last time, where a little noise is left"
    text += "; denoise: one more call removes that" if more else ""
    text += " (default: zero where process, solver and grid have such an end, else state)"
    parser.add_argument("--final", choices=("zero", "state", *more), help=text)


def guidance_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --guidance, which `guidance_of` reads."""
    text = "scale of classifier-free guidance; 1 is none (default: what a fitted table was fitted to, else 1)"
    parser.add_argument("--guidance", type=number, metavar="W", help=text)


def pace_arguments(parser: argparse.ArgumentParser, *, precision: bool = True) -> None:
    """Adds --precision, --memory-format and --threads, which `pace_of` reads."""
    add, text = parser.add_argument, "(default: the fastest here, which is measured once)"
    if precision:
        add("--precision", choices=("float32", "bfloat16"), help=f"of the network's numbers {text}")
    add("--memory-format", choices=("contiguous", "channels-last"), help=f"of images within the network {text}")
    add("--threads", type=at_least(1), help=f"of the processor {text}")


def pace_of(args: argparse.Namespace) -> Pace:
    """What the command line says of the pace; the rest is measured."""
    from fewstep.pace import Pace

    precision = getattr(args, "precision", None)
    return Pace(precision=precision, memory_format=args.memory_format, threads=args.threads)


def guidance_of(asked: float | None, solvers: Mapping[Any, Any], *, classes: bool) -> float:
    """The guidance scale of a run: the one asked for, or the one its fitted tables agree on, or 1, which is none.

    What a table was fitted to and does not run with is said on stderr. A model without classes has no guidance.
    """
    if asked not in (None, 1) and not classes:
        raise Usage(f"got --guidance {asked:g} for a model that was trained without classes: leave it out")
    cards = {name: getattr(solver, "card", None) or {} for name, solver in solvers.items()}
    fitted = {name: float(card["guidance"]) for name, card in cards.items() if "guidance" in card}
    common = next(iter(fitted.values())) if len(set(fitted.values())) == 1 and classes else 1
    scale = common if asked is None else asked
    for name, theirs in fitted.items():
        if theirs != scale or (asked is None and theirs != 1):
            how = "it; --guidance sets another" if theirs == scale else f"{scale:g}"
            print(f"{name} was fitted to guidance {theirs:g} and runs with {how}", file=sys.stderr)
    return float(scale)


def solver_or_table(args: argparse.Namespace, fixed: Sequence[str]) -> Solver | Tableau | None:
    """Returns what `args.solver` says: a solver by name, with `args.option`, or the table in an existing file.

    A table is whole, so the arguments named in `fixed` are refused beside it.
    """
    from fewstep.solver import SOLVERS
    from fewstep.solver.config import Tableau

    if args.solver is None:
        return None
    if args.solver in SOLVERS or not Path(args.solver).is_file():
        args.solver, grid = words.placed(SOLVERS, args.solver, getattr(args, "grid", None) or "default")
        if hasattr(args, "grid") and grid != "default":
            args.grid = grid
        if os.sep in args.solver or Path(args.solver).suffix:
            raise Usage(f"got the solver {args.solver}, where there is no file: name a table file, or a solver")
        return build(SOLVERS, args.solver, "solver", args.option)
    if given := [name for name in fixed if getattr(args, name)]:
        raise Usage(f"got --{given[0]} with the table file {args.solver}, which fixes it: leave --{given[0]} out")
    return Tableau.load(args.solver)
