"""Scheduler configs as people have them: files of any version of diffusers, whose classes had defaults they leave out.

A file holds what differed from the defaults of the class that it names, or all of it; null stands for a value left out,
and for False. So a config is read with the defaults of its class, the same through every door. No code is looked up but
by the name of a scheduler class in diffusers, and values are held against our own options. A config of ours holds the
solver too: its name, its options, or its whole table.
"""

from __future__ import annotations

import base64
import inspect
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fewstep.files import read_json
from fewstep.interop.diffusers.convention import PREDICTIONS
from fewstep.model import Model
from fewstep.model.folder import about_of
from fewstep.process import ScalarProcess
from fewstep.solver import DRIVERS, SOLVERS, TABLES, Default, Solver
from fewstep.solver.config import solver_from_config
from fewstep.tableau import MadeFor, Tableau
from fewstep.tableau.file import to_bytes
from fewstep.words import named
from fewstep.words.elsewhere import spelt

__all__ = ["FILE", "completed", "refuse_option", "refuse_others", "scheduler_file", "solver_of", "student_of"]

FILE = "scheduler_config.json"
NUMBERS = 2**14  # of a sample in pipelines, at least: latents of 4 x 64 x 64
# The defaults of classes that diffusers has only where torchsde is.
BESIDE_TORCHSDE: dict[str, dict[str, Any]] = {
    "DPMSolverSDEScheduler": {"prediction_type": "epsilon", "beta_start": 0.00085, "beta_end": 0.012},
    "CosineDPMSolverMultistepScheduler": {
        "prediction_type": "v_prediction", "sigma_min": 0.3, "sigma_max": 500.0, "sigma_data": 1.0, "solver_order": 2,
        "sigma_schedule": "exponential", "final_sigmas_type": "zero",
    },
}  # fmt: skip


def scheduler_file(path: Path, subfolder: str | None = None) -> Path:
    """The file of a scheduler's config: itself, or of a folder, of a pipeline's folder or of a sub-folder."""
    inner = path / (subfolder or "")
    places = [path] if path.is_file() and not subfolder else [inner / FILE, inner / "scheduler" / FILE]
    file = next((place for place in places if place.is_file()), places[0])
    read_json(file, "a scheduler")
    return file


def completed(config: Any, ours: type) -> dict[str, Any]:
    """The options that a scheduler's config stands for, those that it leaves out as its class has them.

    `ours` is the class that is made. The config of a scheduler in memory (diffusers' FrozenDict) is whole. Without
    `_class_name` nothing is added; one that diffusers has not is refused.
    """
    from diffusers.configuration_utils import FrozenDict

    if not isinstance(config, Mapping):
        raise ValueError(f"got a {type(config).__name__} as a scheduler's config: give its config, or the file of it")
    name = config.get("_class_name")
    theirs = {} if name is None or isinstance(config, FrozenDict) else _defaults(name)
    given = {k: v for k, v in config.items() if k != "_use_default_values" and not str(k).startswith("__")}
    if "prediction_type" not in given and given.get("predict_epsilon") is False:  # before diffusers 0.8
        given["prediction_type"] = "sample"
    for key, value in given.items():
        if value is None and key != "prediction_type":  # which has no default that would be right
            default = theirs.get(key, _signature(ours).get(key))
            given[key] = False if isinstance(default, bool) else default  # a flag is down, the rest as if left out
    return theirs | given


def _defaults(name: Any) -> dict[str, Any]:
    """What a scheduler class of diffusers does when it is not told otherwise."""
    import diffusers
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    if name == "FewStepScheduler":
        return {}
    known = isinstance(name, str) and name.endswith("Scheduler")
    name = name.removeprefix("Flax") if known else name
    cls: Any = getattr(diffusers, name, None) if known else None
    if known and name in BESIDE_TORCHSDE:
        return dict(BESIDE_TORCHSDE[name])
    if not (isinstance(cls, type) and issubclass(cls, SchedulerMixin)):
        raise ValueError(
            f"got the config of a scheduler of class {str(name)[:80]!r}, whose defaults diffusers "
            f"{diffusers.__version__} does not have: give one of its classes, or a config without _class_name"
        )
    return _signature(cls)


def _signature(cls: type) -> dict[str, Any]:
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def student_of(solver: Any) -> dict[str, Any] | None:
    """What the model or the model folder of a student says: its process, its prediction, what it was made for."""
    if isinstance(solver, str | Path) and (Path(solver) / "fewstep.json").is_file():
        told = about_of(Path(solver))
    elif isinstance(solver, Model):
        told = {name: getattr(solver, name) for name in ("process", "predicts", "time", "made_for")}
    else:
        return None
    names = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    if told["made_for"] is None or told["time"] != "index" or told["predicts"] not in names:
        raise ValueError(
            f"got a model that predicts {told['predicts']!r} with time {told['time']!r} as solver of a scheduler: give "
            f"a student that brings tables, with time 'index' and a prediction out of {', '.join(names)}, or a solver"
        )
    return told | {"predicts": names[told["predicts"]]}


def solver_of(solver: Any, process: ScalarProcess) -> tuple[Solver | None, MadeFor | None, Any]:
    """The solver or the tables, and their form in a config: a name, {"class": ...}, or files in base64.

    None is the default for a network of latents that is called at the start, as pipelines do, whatever it predicts. Of
    guidance, which pipelines apply, a scheduler knows nothing.
    """
    if isinstance(solver, Mapping) and "tables" in solver:
        tables = {name: _unpacked(text) for name, text in solver["tables"].items()}
        solver = MadeFor(tables=tables, rows=solver["rows"], grid=solver["grid"])
    elif isinstance(solver, Mapping):
        solver = _unpacked(solver["table"]) if "table" in solver else solver_from_config(dict(solver))
    if isinstance(solver, Path) or isinstance(solver, str) and solver not in TABLES and Path(solver).is_file():
        solver = Tableau.load(solver)
    if isinstance(solver, Tableau):
        if solver.process != process:
            raise ValueError(
                f"got a table written for {solver.process} to run on {process}: fit or tabulate it on the process of "
                "this scheduler"
            )
        return None, MadeFor(tables={str(solver.nfe): solver}), {"table": _packed(solver)}
    if isinstance(solver, MadeFor):
        made, packed = solver.on(process), {name: _packed(table) for name, table in solver.tables.items()}
        stored = {"tables": packed, "rows": solver.rows, "grid": solver.grid}
        return made.solver if made.rows != "own" else None, made, stored
    stored = solver.config() if isinstance(solver, Solver) else solver
    solver = solver or Default(predicts="data", size=NUMBERS)
    if solver in DRIVERS if isinstance(solver, str) else not isinstance(solver, Solver):
        raise ValueError(
            f"got {solver!r} as solver of a scheduler, which needs its steps before the run: give a name in "
            "fewstep.TABLES, a Solver or a table, or run it with fewstep.sample"
        )
    if isinstance(solver, str):
        solver = stored = named(TABLES, solver, "solver")
    made = TABLES[solver]() if isinstance(solver, str) else solver
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


def refuse_option(solver: Any, option: str, value: Any) -> None:
    """Says how an option of the solver that was given to the scheduler is written; nothing where it is none."""
    make = SOLVERS.get(spelt(solver, "solver")) if isinstance(solver, str) else None
    made = None if make is None else make()
    if made is not None and option in (f.name for f in fields(made)):
        right = f"fs.{type(made).__name__}({option}={value!r})"
        raise ValueError(f"got {option}={value!r} beside solver={solver!r}, whose option it is: give solver={right}")


def refuse_others(others: dict[str, Any], where: str) -> None:
    """Refuses options of some scheduler of diffusers that say something."""
    if strange := [name for name, value in others.items() if value is not None]:
        raise ValueError(
            f"got {strange[0]} in {where}, which no table can follow: leave the pipeline the scheduler it came with"
        )


def _packed(table: Tableau) -> str:
    return base64.b64encode(to_bytes(table)).decode()


def _unpacked(text: str) -> Tableau:
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "table.safetensors").write_bytes(base64.b64decode(text))
        return Tableau.load(path)
