"""What is checked: a solver by name, by file and object, or handed in; and the door `solver(...)`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fewstep.check.cell import Cell
from fewstep.check.drivers import DRIVER_VERDICTS, DriverCell, driver_verdicts
from fewstep.check.exact import small
from fewstep.check.report import Report, Verdict
from fewstep.check.verdicts import VERDICTS, verdicts
from fewstep.process import ALL_PROCESSES, Process
from fewstep.solver import SOLVERS, Solver
from fewstep.solver.driver.base import Driver
from fewstep.words import pick

__all__ = ["load", "named_object", "solver"]


def solver(
    subject: Any,
    process: str | Process | Iterable[str | Process] | None = None,
    *,
    thorough: bool = False,
    compile: bool = False,
    only: Iterable[str] = (),
    label: str | None = None,
    tick: Callable[[], None] | None = None,
) -> Report:
    """Holds a solver to what it declares, and returns the verdicts.

    Args:
        subject: a registry name, `path/to/file.py:object`, `module:object`, a `Solver`, or a callable that makes one.
        process: a name, `path/to/file.py:object`, a process, or several of them; None is every process of the
            registry. A name stands for a small instance (2 x 2 images).
        thorough: every number of steps from 1 to 64 instead of a few of them.
        compile: also compile the walk, which takes seconds.
        only: names of the verdicts to give; all by default.
        label: the name to print.
        tick: called after each process.
    """
    made = load(subject)
    name = label or (subject if isinstance(subject, str) else type(made).__name__)
    found: list[Verdict] = []
    only = [verdict for verdict in only if pick(VERDICTS | DRIVER_VERDICTS, verdict, "verdict")]
    for key, p in _processes(process):
        if isinstance(made, Driver):
            found += driver_verdicts(DriverCell(made, p, key, tuple(only)))
        else:
            found += verdicts(Cell(made, p, key, thorough, compile, tuple(only)))
        if tick is not None:
            tick()
    return Report(name, tuple(found))


def load(subject: Any) -> Any:
    """The solver that a name, `file.py:object`, `module:object`, a factory or a solver stands for."""
    if isinstance(subject, str):
        subject = named_object(subject) if ":" in subject else pick(SOLVERS, subject, "solver")
    made = subject() if callable(subject) and not isinstance(subject, Solver | Driver) else subject
    if not isinstance(made, Solver | Driver):
        raise ValueError(
            f"got a {type(made).__name__} to check: give a registry name, a Solver or a Driver, a callable that "
            "makes one, or path/to/file.py:object"
        )
    return made


def named_object(text: str) -> Any:
    """`path/to/file.py:object` or `module:object`."""
    where, _, name = text.rpartition(":")
    if not where or not name:
        raise ValueError(f"got {text!r}: write path/to/file.py:object or module:object")
    if where.endswith(".py"):
        path = Path(where)
        if not path.is_file():
            raise ValueError(f"got {text!r}, where there is no file {where}: give the path of a Python file")
        module = _execute(path)
    else:
        try:
            module = importlib.import_module(where)
        except ImportError as error:
            raise ValueError(f"got {text!r}, and {error}: give a module that can be imported, or a file") from None
    try:
        found: Any = module
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise ValueError(f"got {text!r}, but {where} has no {name}: name an object that is there") from None
    return found


def _execute(path: Path) -> Any:
    name = f"fewstep_check_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a file raises is told with its name
        raise ValueError(f"{path} does not run ({type(error).__name__}: {error}): mend it first") from error
    return module


def _processes(asked: str | Process | Iterable[str | Process] | None) -> list[tuple[str, Process]]:
    if asked is None:
        asked = list(ALL_PROCESSES)
    several = [asked] if isinstance(asked, str | Process) else list(asked)
    named = []
    for one in several:
        if isinstance(one, str) and ":" in one:
            found = named_object(one)
            made = found() if callable(found) and not isinstance(found, Process) else found
            if not isinstance(made, Process):
                raise ValueError(f"got a {type(made).__name__} as process: give a Process, or what makes one")
            named.append((one.rpartition(":")[2], made))
        elif isinstance(one, str):
            pick(ALL_PROCESSES, one, "process")
            named.append((one, small(one)))
        else:
            named.append((type(one).__name__, one))
    return named
