"""A scheduler's solver: from a name, a solver, a table or a file, to its form in a JSON config and back."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.process.base import ScalarProcess
from fewstep.solver import DRIVERS, TABLES, Default, Solver
from fewstep.solver.config import solver_from_config
from fewstep.tableau import Tableau
from fewstep.words import pick

__all__ = ["solver_of"]


NUMBERS = 2**14  # of a sample in pipelines, at least: latents of 4 x 64 x 64


def solver_of(solver: Any, process: ScalarProcess) -> tuple[Solver | None, Tableau | None, Any]:
    """The solver or the table, and its form in a config: a name, {"class": ...}, or {"table": a file in base64}.

    None is the default for a network of latents that is called at the start, as pipelines do, whatever it predicts. Of
    guidance, which pipelines apply, a scheduler knows nothing.
    """
    if isinstance(solver, Mapping):
        solver = _unpacked(solver["table"]) if "table" in solver else solver_from_config(dict(solver))
    if isinstance(solver, Path) or isinstance(solver, str) and solver not in TABLES and Path(solver).is_file():
        solver = Tableau.load(solver)
    if isinstance(solver, Tableau):
        if solver.process != process:
            raise ValueError(
                f"got a table written for {solver.process} to run on {process}: fit or tabulate it on the process of "
                "this scheduler"
            )
        return None, solver, {"table": _packed(solver)}
    stored = solver.config() if isinstance(solver, Solver) else solver
    solver = solver or Default(predicts="data", size=NUMBERS)
    if solver in DRIVERS if isinstance(solver, str) else not isinstance(solver, Solver):
        raise ValueError(
            f"got {solver!r} as solver of a scheduler, which needs its steps before the run: give a name in "
            "fewstep.TABLES, a Solver or a table, or run it with fewstep.sample"
        )
    made = pick(TABLES, solver, "solver")() if isinstance(solver, str) else solver
    if process.kind not in made.kinds:
        raise ValueError(
            f"got {type(made).__name__}, which covers {', '.join(made.kinds)} processes ({made.reason}): give another "
            "solver"
        )
    if made.heads:
        raise ValueError(
            f"got {type(made).__name__}, which reads {' and '.join(made.heads)} beside the network's prediction; a "
            "pipeline hands over that alone: give another solver, or run it with fewstep.sample"
        )
    return made, None, stored


def _packed(table: Tableau) -> str:
    with tempfile.TemporaryDirectory() as folder:
        table.save(path := Path(folder) / "table.safetensors")
        return base64.b64encode(path.read_bytes()).decode()


def _unpacked(text: str) -> Tableau:
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "table.safetensors").write_bytes(base64.b64decode(text))
        return Tableau.load(path)
