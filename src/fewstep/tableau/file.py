"""Tables on disk: the safetensors layout, written and read here so that the core needs no further package.

A file is an 8-byte little-endian header length, a JSON header, and the bytes of one float64 tensor `weights`. The
table itself (rows, times, symbols, noises, process, solver) is JSON in the header's metadata. Tables with one weight
per frequency are stored as their rule: solver, process and grid, from which they are written again. A fitted table's
card lies beside the rows. A checksum over all of it makes a changed or cut file no table.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fewstep.files import atomic
from fewstep.process import Process
from fewstep.process.config import process_from_json, process_to_json
from fewstep.process.operator import Block, Coefficient, Diagonal
from fewstep.tableau.form import Form
from fewstep.tableau.tableau import NoiseInterval, Row, Tableau

__all__ = ["load", "save", "solver_from_config", "to_bytes"]

if TYPE_CHECKING:
    from fewstep.solver import Solver

_FORMAT = "fewstep table 1"


def save(table: Tableau, path: Path) -> None:
    """Writes beside the final name and renames, so that a failed write leaves nothing behind."""
    data = to_bytes(table)
    with atomic(path) as part:
        part.write_bytes(data)


def to_bytes(table: Tableau) -> bytes:
    """The file of a table."""
    numbers: list[float] = []
    rule = table.process.kind == "diagonal" and any(isinstance(c, Diagonal) for row in table.rows for _, c in row.form)
    if rule and (table.solver is None or _rule(table.solver, table.process, table.grid, table.output) != table):
        raise ValueError(
            "got a table with one weight per frequency that its solver would not write: only such a rule can be saved; "
            "save the table that the solver wrote"
        )
    meta: dict[str, Any] = {
        "format": _FORMAT,
        "process": process_to_json(table.process),
        "solver": table.solver.config() if table.solver else None,
        "output": table.output,
    }
    if table.card is not None:
        meta["card"] = dict(table.card)
    if rule:
        numbers = table.grid.tolist()
    else:
        meta |= {
            "grid": _put(numbers, table.grid),
            "noises": [asdict(n) for n in table.noises],
            "rows": [
                {"t": r.t, "at": r.at, "given": r.given, "form": [[list(s), _put(numbers, c)] for s, c in r.form]}
                for r in table.rows
            ],
            "heads": [[list(k), _put(numbers, p), _put(numbers, q)] for k, (p, q) in table.heads.items()],
        }
    return _encode(json.dumps(meta, allow_nan=False), np.asarray(numbers, dtype="<f8").tobytes())


def load(path: Path) -> Tableau:
    """Reads and validates a table."""
    raw = path.read_bytes()
    try:
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        words, data = header["__metadata__"]["fewstep"], raw[8 + length :]
        if _encode(words, data) != raw:
            raise ValueError("its checksum does not match")
        meta = json.loads(words)
        if meta["format"] != _FORMAT:
            raise ValueError(f"its format is {meta['format']!r}, this version reads {_FORMAT!r}")
        numbers = torch.from_numpy(np.frombuffer(data, dtype="<f8").copy())
        process, rule = process_from_json(meta["process"]), "rows" not in meta
        solver = (
            solver_from_config(meta["solver"]) if meta["solver"] and (rule or not _missing(meta["solver"])) else None
        )
        if rule and solver is not None:
            return replace(_rule(solver, process, numbers, meta["output"]), card=meta.get("card"))
        return Tableau(
            rows=tuple(
                Row(r["t"], r["at"], Form({tuple(s): _take(numbers, at) for s, at in r["form"]}), r["given"])
                for r in meta["rows"]
            ),
            noises=tuple(NoiseInterval(**n) for n in meta["noises"]),
            process=process,
            grid=_take(numbers, meta["grid"]),
            solver=solver,
            output=meta["output"],
            heads={tuple(k): (_take(numbers, p), _take(numbers, q)) for k, p, q in meta["heads"]},
            card=meta.get("card"),
        )
    except (struct.error, KeyError, TypeError, AttributeError, IndexError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"got {path}, which is not a whole fewstep table ({type(error).__name__}: {error}): "
            "give a file that Tableau.save wrote"
        ) from None


def _encode(words: str, data: bytes) -> bytes:
    """The file for a table's JSON and weights, to the last byte."""
    header = {
        "__metadata__": {"fewstep": words, "sha256": hashlib.sha256(words.encode() + data).hexdigest()},
        "weights": {"dtype": "F64", "shape": [len(data) // 8], "data_offsets": [0, len(data)]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def _rule(solver: Solver, process: Process, grid: Tensor, output: str) -> Tableau:
    """The table a solver writes, in terms of an output."""
    table = solver.tabulate(process, grid)
    return table if output == "x0" else table.in_terms_of(output)


def solver_from_config(config: dict[str, Any]) -> Solver:
    """The solver of `Solver.config`; a ValueError for one that is not known."""
    from fewstep import solver

    options = {k: _option(v) for k, v in config.items() if k != "class"}
    cls = getattr(solver, str(config.get("class")), None)
    if not (isinstance(cls, type) and issubclass(cls, solver.Solver)):
        raise ValueError(f"got solver class {config.get('class')!r}, which is not known")
    return cls(**options)


def _option(value: Any) -> Any:
    """An option as `Solver.config` wrote it."""
    if not isinstance(value, dict):
        return math.inf if value == "inf" else value
    if "class" in value:
        return solver_from_config(value)
    from fewstep.stats.statistics import Statistics

    return Statistics.from_config(value)


def _missing(config: dict[str, Any]) -> bool:
    """Whether a solver's statistics are not where they were: a table that has its numbers does without the solver."""
    files = [v.get("file") for v in config.values() if isinstance(v, dict) and "sha256" in v]
    return any(not file or not Path(file).is_file() for file in files)


def _put(numbers: list[float], c: Coefficient) -> list[Any]:
    """Appends values; returns [offset, shape] (None: a number, else a block or the grid), a diagonal's rank third."""
    values = c.values if isinstance(c, Block | Diagonal) else c
    start = len(numbers)
    rank = [c.rank] if isinstance(c, Diagonal) else []
    if not isinstance(values, Tensor):
        numbers.append(float(values))
        return [start, None]
    numbers.extend(values.flatten().tolist())
    return [start, list(values.shape), *rank]


def _take(numbers: Tensor, at: list[Any]) -> Coefficient:
    start, shape, *rank = at
    if shape is None:
        return float(numbers[start])
    values = numbers[start : start + int(np.prod(shape))].reshape(shape)
    if rank:
        return Diagonal(values, rank[0])
    return values if len(shape) == 1 else Block(values)
