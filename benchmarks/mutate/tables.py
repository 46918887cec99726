"""Tables and their parts: tables of rows, rules, processes and solvers as JSON, statistics, fits that were stopped."""

from __future__ import annotations

import hashlib
import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import mutators
import numpy as np
import safetensors.torch
import torch
from kind import Files, Kind, reading, running

import fewstep as fs
from fewstep.files import read_json
from fewstep.process.config import process_from_json, process_to_json
from fewstep.process.operator import Diagonal
from fewstep.saved import Saved
from fewstep.solver import ALIASES, Analytic, DPMSolverV3
from fewstep.solver.config import solver_from_config
from fewstep.stats import Statistics, measure
from fewstep.tableau.file import _encode
from fewstep.tableau.row import HEADS

__all__ = ["KINDS"]

BLUR = fs.Blurring(size=(4, 4))
GRID = torch.tensor([0.9, 0.5, 0.2, 0.1], dtype=torch.float64)
NAME = "table.safetensors"


def _measured(process: fs.Process, **options: Any) -> Statistics:
    data = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return measure(fs.Gaussian(process, 0.1, 0.5), process, data, nodes=5, progress=False, **options)


def _fitted(process: fs.Process) -> fs.Tableau:
    table = fs.fit(fs.Gaussian(process, 0.1, 0.5), process, steps=3, shape=(2,), samples=4, held_out=4, batch=4,
                   solver="multistep-2", grid="default", teacher_steps=5, descent=fs.Descent(iterations=2),
                   progress=False)  # fmt: skip
    return table[0] if isinstance(table, tuple) else table


def _row_tables() -> list[fs.Tableau]:
    names = ("unipc-3", "ddpm", "deis-tab-2", "seeds-2", "npr-ddpm", "taylor-2", "gaussian-split", "restart", "lcm")
    made = [fs.tabulate(name, fs.VP(), grid=GRID) for name in names]
    made += [fs.tabulate(name, fs.CLD(), grid=GRID) for name in ("ddpm", "deis-tab-2", "gaussian-split", "sscs")]
    made += [fs.tabulate("dpmpp-2m", fs.Flow(), steps=4), fs.tabulate("ddim", fs.EDM(), steps=4)]
    made += [fs.tabulate("heun", fs.Discrete(alphas_cumprod=(0.9, 0.5, 0.1, 0.01)), steps=4)]
    made += [fs.tabulate("unipc-2", fs.VP(), steps=4).in_terms_of(kind) for kind in ("v", "noise")]
    made += [fs.tabulate(DPMSolverV3(statistics=_measured(fs.VP())), fs.VP(), steps=4), _fitted(fs.VP())]
    return made


def _rules() -> list[fs.Tableau]:
    made = [fs.tabulate(name, BLUR, grid=GRID) for name in ("unipc-v-2", "ddpm", "ltsp", "seeds-2", "restart")]
    return [
        *made,
        fs.tabulate("ddim", fs.Masking(size=(3, 4)), grid=GRID),
        fs.tabulate("heun", fs.VEBlur(size=4), grid=GRID),
    ]


def _saved(table: fs.Tableau, folder: Path) -> None:
    table.save(folder / NAME)


def _mutated_table(rng: random.Random, files: Files) -> Files:
    """The table's JSON or its numbers, under a right checksum; or the file's bytes; or what the file is."""
    how = rng.random()
    if how < 0.08:
        return mutators.folder(rng, files)
    raw = files[NAME]
    header, data = mutators.tensors_of(raw)
    words = header["__metadata__"]["fewstep"]
    if how < 0.8:
        words = json.dumps(mutators.json_value(rng, json.loads(words)))
    elif how < 0.85:
        words = mutators.json_text(rng, words.encode()).decode("utf-8", "replace")
    else:
        numbers = np.frombuffer(data, "<f8").copy()
        places = rng.sample(range(len(numbers)), min(len(numbers), rng.choice((1, 1, 3))))
        numbers[places] = rng.choice((0.0, 1.0, -1.0, np.nan, np.inf, 1e300, 1e30, -5.0, 0.5, 1e-9, 100.0))
        data = rng.choice((numbers, numbers, numbers, numbers[:-1], np.repeat(numbers, 2), numbers[:0], numbers[::-1]))
        data = np.ascontiguousarray(data).tobytes()
    return {NAME: _encode(words, data)}


class _Raw:
    """A network of any output, as a wrapped one hands it on, and of every head."""

    def __init__(self, process: fs.Process) -> None:
        self.process = process

    def at(self, t: Any, output: str = "x0") -> Any:
        column = self.process.kind == "block" and output not in ("noise", "score")
        return lambda z: {output: 0.1 * (z[:, 0] if column else z)} | dict.fromkeys(HEADS, 0.1 * z.abs())

    def __call__(self, z: torch.Tensor, t: Any) -> Any:
        return self.at(t)(z)


def _network(table: fs.Tableau) -> Any:
    """A denoiser that a table can be run with: closed-form, or a network of what the table reads."""
    return fs.Gaussian(table.process, 0.1, 0.5) if table.output == "x0" else _Raw(table.process)


def _shape(table: fs.Tableau) -> tuple[int, ...]:
    if table.process.kind == "diagonal":
        return (2, *table.process.size)
    sizes = [c.values.shape for row in table.rows for _, c in row.form if isinstance(c, Diagonal)]
    return (2, *sizes[0]) if sizes else (2, 3)


def _use_table(folder: Path) -> None:
    with reading():
        table = fs.Tableau.load(folder / NAME)
    table.explain()
    table.save(folder / "again.safetensors")
    again = fs.Tableau.load(folder / "again.safetensors")
    assert again == table, "the table that was saved again is another"
    shape = _shape(table)
    x = torch.ones(2, *table.process.state_shape(shape[1:]))
    with running():
        fs.sample(_network(table), table.process, solver=table, x=x, progress=False)


def _use_process(folder: Path) -> None:
    with reading():
        process = process_from_json(read_json(folder / "process.json", "a process"), "process.json")
    assert process_from_json(process_to_json(process)) == process
    shape = (2, *(process.size if process.kind == "diagonal" else (3,)))
    x = torch.ones(2, *process.state_shape(shape[1:]))
    with running():
        fs.sample(fs.Gaussian(process, 0.1, 0.5), process, solver="ddim", steps=2, x=x, progress=False)


def _use_solver(folder: Path) -> None:
    with reading():
        solver = solver_from_config(read_json(folder / "solver.json", "a solver"))
        process = {"scalar": fs.VP(t_min=0.01), "block": fs.CLD(), "diagonal": BLUR}[solver.kinds[0]]
        x = torch.ones(2, *((4, 4) if process.kind == "diagonal" else process.state_shape((3,))))
        table = fs.tabulate(solver, process, grid=torch.tensor([process.t_max, 0.5, 0.1], dtype=torch.float64))
    again = solver_from_config(json.loads(json.dumps(solver.config(), allow_nan=False)))
    assert again == solver
    table.explain()
    with running():
        fs.sample(fs.Gaussian(process, 0.1, 0.5), process, solver=table, x=x, progress=False)


def _solvers(folder: Path, name: str) -> None:
    (folder / "solver.json").write_text(json.dumps(fs.TABLES[name]().config()))


def _processes(folder: Path, process: fs.Process) -> None:
    (folder / "process.json").write_text(json.dumps(process_to_json(process)))


def _seal_statistics(files: Files) -> None:
    """The digest that belongs to the numbers."""
    header, data = mutators.tensors_of(files["statistics.safetensors"])
    numbers = safetensors.torch.load(files["statistics.safetensors"])
    digest = hashlib.sha256()
    for name in ("log_snr", "eps2", "error2", "l", "s", "b"):
        if name in numbers:
            value = numbers[name].double()
            digest.update(f"{name}{tuple(value.shape)}".encode() + value.numpy().astype("<f8").tobytes())
    header["__metadata__"]["digest"] = digest.hexdigest()
    files["statistics.safetensors"] = mutators.safetensors(header, data)


def _statistics(folder: Path, process: fs.Process) -> None:
    _measured(process, weights="ab" * 32).save(folder / "statistics.safetensors")


def _use_statistics(folder: Path) -> None:
    """Every solver that reads them, where they have what it reads, on a process that they may be of."""
    with reading():
        found = Statistics.load(folder / "statistics.safetensors")
    repr(found), hash(found)
    for make in (partial(Analytic, corrected=False), partial(Analytic, corrected=True), DPMSolverV3):
        try:
            solver = make(statistics=found)
        except ValueError:
            continue
        first = getattr(found, "eps2", None)
        process = BLUR if first is not None and first.ndim > 1 else fs.VP()
        if process.kind not in solver.kinds:
            continue
        values = found.l if isinstance(solver, DPMSolverV3) else found.eps2
        shape = (4, 4) if process is BLUR else tuple(values.shape[1:]) if values is not None else ()
        try:
            table = fs.tabulate(solver, process, steps=3)
        except ValueError:
            continue
        with running():
            fs.sample(fs.Gaussian(process, 0.1, 0.5), process, solver=table, x=torch.ones(2, *(shape or (3,))),
                      progress=False)  # fmt: skip


def _fit(folder: Path) -> fs.Tableau:
    process = fs.VP()
    return fs.fit(fs.Gaussian(process, 0.1, 0.5), process, steps=2, shape=(2,), samples=4, held_out=4, batch=4,
                  solver="multistep-2", grid="default", teacher_steps=4, descent=fs.Descent(iterations=2, every=1),
                  progress=False, out=folder / "fit")  # fmt: skip


def _saved_part(folder: Path) -> None:
    tensors = {"errors": torch.tensor([0.5, 0.25], dtype=torch.float64), "q": torch.zeros(3)}
    Saved(folder / "x.part", {"a": 1}).write(tensors, now=True)


def _use_part(folder: Path) -> None:
    Saved(folder / "x.part", {"a": 1}).read()


PROCESSES = (
    fs.VP(), fs.CLD(), BLUR, fs.EDM(), fs.Flow(), fs.VE(), fs.SubVP(), fs.Cosine(), fs.Masking(size=(4, 4)),
    fs.VEBlur(size=(4, 4)), fs.HeatDissipation(size=(4, 4)), fs.Discrete(alphas_cumprod=(0.9, 0.5, 0.1, 0.0)),
)  # fmt: skip
KINDS = {
    "table": Kind(
        weight=9,
        makes=lambda: [partial(_saved, table) for table in _row_tables()],
        use=_use_table,
        mutate=_mutated_table,
    ),
    "rule": Kind(
        weight=3, makes=lambda: [partial(_saved, table) for table in _rules()], use=_use_table, mutate=_mutated_table
    ),
    "process": Kind(
        weight=3, makes=lambda: [partial(_processes, process=process) for process in PROCESSES], use=_use_process
    ),
    "solver": Kind(
        weight=3,
        makes=lambda: [partial(_solvers, name=name) for name in fs.TABLES if name not in ALIASES],
        use=_use_solver,
    ),
    "statistics": Kind(
        weight=3,
        makes=lambda: [partial(_statistics, process=process) for process in (fs.VP(), BLUR)],
        use=_use_statistics,
        seal=_seal_statistics,
    ),
    "part": Kind(weight=2, makes=lambda: [_saved_part], use=_use_part),
}
