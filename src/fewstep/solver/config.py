"""Solvers from what `Solver.config` wrote: in the files of tables, in schedulers and cards."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, cast

from fewstep.solver.base import Solver
from fewstep.solver.statistics import Statistics
from fewstep.tableau.file import read_solvers_with
from fewstep.tableau.tableau import Tableau as Tableau
from fewstep.words import short

__all__ = ["NAMED", "Tableau", "solver_from_config"]

# The registry of those that write tables, which is `fewstep.TABLES`: the package, above its families, fills it in.
NAMED: dict[str, Callable[..., Solver]] = {}


def solver_from_config(config: Any, levels: int = 4) -> Solver:
    """The solver of `Solver.config`; a ValueError for one that is not known, or that lies deeper than `levels`.

    Known are the library's, and those of your own that `fewstep.TABLES` has.
    """
    name = config.get("class") if isinstance(config, dict) else None
    registered = {getattr(make, "func", make) for make in NAMED.values()}
    known = {cls.__name__: cls for cls in registered if isinstance(cls, type)} | _classes(Solver)
    cls = known.get(name) if isinstance(name, str) and levels else None
    if cls is None:
        raise ValueError(
            f"got a solver of class {short(name)}, which is not known: put your own class into fs.TABLES before, as "
            "fs.TABLES['mine'] = Mine, or give what Solver.config of the library wrote"
        )
    options = {k: _option(v, levels - 1) for k, v in config.items() if k != "class"}
    known = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(cast(Any, cls)) if f.init}
    if lacking := [name for name, needed in known.items() if needed and name not in options]:
        raise ValueError(f"got {name} without {lacking[0]}, which it needs: give what Solver.config wrote")
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"got option {short(unknown[0])} for {name}, which has none of that name: leave it out")
    return cls(**options)


def _classes(of: type[Solver]) -> dict[str, type[Solver]]:
    """The solvers of this library by the names of their classes."""
    found: dict[str, type[Solver]] = {}
    for cls in of.__subclasses__():
        ours = cls.__module__.startswith("fewstep.solver.") and not cls.__name__.startswith("_")
        found |= {cls.__name__: cls} if ours and not inspect.isabstract(cls) else {}
        found |= _classes(cls)
    return found


def _option(value: Any, levels: int) -> Any:
    """An option as `Solver.config` wrote it."""
    if not isinstance(value, dict):
        return float(value) if value in ("inf", "-inf") else value
    return solver_from_config(value, levels) if "class" in value else Statistics.from_config(value)


def _author(config: Any, needed: bool) -> Solver | None:
    """The solver that wrote a file's table; None where its statistics are not where they were: rows do without it."""
    options = config.values() if isinstance(config, dict) else ()
    files = [v.get("file") for v in options if isinstance(v, dict) and "sha256" in v]
    missing = any(file is None or (isinstance(file, str) and not Path(file).is_file()) for file in files)
    return None if missing and not needed else solver_from_config(config)


read_solvers_with(_author)
