"""What the commands share: argument types, name look-up with suggestions, the error a wrong argument raises."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from fewstep import words

if TYPE_CHECKING:
    from fewstep.solver import Solver
    from fewstep.tableau import Tableau

__all__ = ["Parser", "Usage", "at_least", "build", "check_device", "option", "pick", "solver_or_table"]

T = TypeVar("T")


class Usage(ValueError):
    """The command line itself is wrong: exit code 2."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence instead of a usage dump."""

    def error(self, message: str) -> NoReturn:
        """Raises the message as a usage error that names the command whose help applies."""
        raise Usage(f"{message.rstrip('.')}; `{self.prog} --help` lists what is allowed.")


def at_least(low: int) -> Callable[[str], int]:
    """Returns an argparse type: a whole number from `low` on."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"got {text}, but only whole numbers from {low} on are allowed")
        return value

    return number


def option(text: str) -> tuple[str, Any]:
    """Argparse type: NAME=VALUE, the value a Python literal or else a word."""
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier() and value):
        raise argparse.ArgumentTypeError(f"got {text!r}, but options are written NAME=VALUE, as in eta=0.5")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def pick(registry: Mapping[str, T], name: str, what: str) -> T:
    """Returns `registry[name]`; an unknown name is a usage error that suggests the nearest ones."""
    try:
        return words.pick(registry, name, what)
    except ValueError as error:
        raise Usage(str(error)) from None


def check_device(name: str) -> None:
    """Refuses a device that cannot hold a tensor here."""
    import torch

    try:
        torch.zeros(1, device=name).item()
    except Exception as error:  # each back end has its own way to say no
        reason = str(error).partition("\n")[0].rstrip(".")
        raise Usage(
            f"got the device {name!r}, which does not work here ({reason}): choose another, such as cpu"
        ) from None


def build(registry: Mapping[str, Callable[..., Any]], name: str, what: str, options: Sequence[tuple[str, Any]]) -> Any:
    """Makes the entry `name` of a registry of dataclasses, its defaults replaced by `options`."""
    made = pick(registry, name, what)()
    fields = {field.name: field for field in dataclasses.fields(made) if field.init}
    for key, value in options:
        if not fields:
            raise Usage(f"got an option {key!r} for {what} {name}, which has none: leave it out")
        pick(fields, key, f"option of {name}")
        if getattr(made, key) is not None and _kind(value) != _kind(getattr(made, key)):
            kinds = f"got {key}={value!r} for {what} {name}, where it is {getattr(made, key)!r} by default"
            raise Usage(f"{kinds}: give a {_kind(getattr(made, key))}")
    return dataclasses.replace(made, **dict(options)) if options else made


def solver_or_table(args: argparse.Namespace, fixed: Sequence[str]) -> Solver | Tableau | None:
    """Returns what `args.solver` says: a solver by name, with `args.option`, or the table in an existing file.

    A table is whole, so the arguments named in `fixed` are refused beside it.
    """
    import fewstep as fs

    if args.solver is None:
        return None
    if args.solver in fs.SOLVERS or not Path(args.solver).is_file():
        if os.sep in args.solver or Path(args.solver).suffix:
            raise Usage(f"got the solver {args.solver}, where there is no file: name a table file, or a solver")
        return build(fs.SOLVERS, args.solver, "solver", args.option)
    if given := [name for name in fixed if getattr(args, name)]:
        raise Usage(f"got --{given[0]} with the table file {args.solver}, which fixes it: leave --{given[0]} out")
    return fs.Tableau.load(args.solver)


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "True or False"
    return "number" if isinstance(value, int | float) else "word" if isinstance(value, str) else "value like that"
