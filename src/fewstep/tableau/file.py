"""Tables on disk: the safetensors layout, written and read here so that the core needs no further package.

A file is an 8-byte little-endian header length, a JSON header, and the bytes of one float64 tensor `weights`. The
table itself (rows, times, symbols, noises, process, solver) is JSON in the header's metadata. Tables with one weight
per frequency are stored as their rule: solver, process and grid, from which they are written again.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.process import PROCESSES, Process
from fewstep.process.operator import Block, Coefficient, Diagonal
from fewstep.tableau.form import Form
from fewstep.tableau.tableau import NoiseInterval, Row, Tableau

__all__ = ["load", "process_config", "process_from_config", "save", "solver_from_config"]

_FORMAT = "fewstep table 1"


def save(table: Tableau, path: Path) -> None:
    """Writes beside the final name and renames, so that a failed write leaves nothing behind."""
    numbers: list[float] = []
    rule = any(isinstance(c, Diagonal) for row in table.rows for _, c in row.form)
    if rule and table.solver is None:
        raise ValueError("got a table with one weight per frequency and no solver: only its rule can be saved")
    meta: dict[str, Any] = {
        "format": _FORMAT,
        "process": process_config(table.process),
        "solver": table.solver.config() if table.solver else None,
        "output": table.output,
    }
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
    data = np.asarray(numbers, dtype="<f8").tobytes()
    header = {
        "__metadata__": {"fewstep": json.dumps(meta), "sha256": hashlib.sha256(data).hexdigest()},
        "weights": {"dtype": "F64", "shape": [len(numbers)], "data_offsets": [0, len(data)]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_name(path.name + ".tmp")
    try:
        part.write_bytes(struct.pack("<Q", len(text)) + text + data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(path: Path) -> Tableau:
    """Reads and validates a table."""
    raw = path.read_bytes()
    try:
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        meta = json.loads(header["__metadata__"]["fewstep"])
        data = raw[8 + length :]
        if meta["format"] != _FORMAT or hashlib.sha256(data).hexdigest() != header["__metadata__"]["sha256"]:
            raise ValueError("checksum")
        numbers = torch.from_numpy(np.frombuffer(data, dtype="<f8").copy())
        process = process_from_config(meta["process"])
        solver = solver_from_config(meta["solver"]) if meta["solver"] else None
        if "rows" not in meta:
            table = solver.tabulate(process, numbers)  # type: ignore[union-attr]
            return table if meta["output"] == "x0" else table.in_terms_of(meta["output"])
        return Tableau(
            rows=tuple(
                Row(r["t"], r["at"], Form({tuple(s): _take(numbers, at) for s, at in r["form"]}), r["given"])
                for r in meta["rows"]
            ),
            noises=tuple(NoiseInterval(**n) for n in meta["noises"]),
            process=process,
            grid=_take(numbers, meta["grid"]),  # type: ignore[arg-type]
            solver=solver,
            output=meta["output"],
            heads={tuple(k): (_take(numbers, p), _take(numbers, q)) for k, p, q in meta["heads"]},  # type: ignore[misc]
        )
    except (struct.error, UnicodeDecodeError, KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(
            f"got {path}, which is not a whole fewstep table ({type(error).__name__}: {error}): "
            "give a file that Tableau.save wrote"
        ) from None


def process_config(process: Process) -> dict[str, Any]:
    """Class and fields, as JSON."""
    return {"class": type(process).__name__, **asdict(process)}  # type: ignore[call-overload]


def process_from_config(config: dict[str, Any]) -> Process:
    """The process of a config; a ValueError for one that is not known."""
    return _build({p.__name__: p for p in PROCESSES.values()}, config, "process")


def solver_from_config(config: dict[str, Any]) -> Any:
    """The solver of a config; a ValueError for one that is not known."""
    from fewstep import solver

    return _build({n: getattr(solver, n) for n in solver.__all__ if n not in ("SOLVERS", "DEFAULT_SOLVER")}, config, "solver")


def _build(classes: dict[str, Any], config: dict[str, Any], what: str) -> Any:
    fields = dict(config)
    label = fields.pop("class", None)
    if label not in classes:
        raise ValueError(f"got {what} class {label!r}: known are {', '.join(classes)}")
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    try:
        return classes[label](**fields)
    except TypeError as error:
        raise ValueError(f"got {what} {label} with options that it does not have ({error})") from None


def _put(numbers: list[float], c: Coefficient) -> list[Any]:
    """Appends a coefficient's values; returns [offset, shape] (shape None: a number, else a block or the grid)."""
    values = c.values if isinstance(c, Block) else c
    start = len(numbers)
    if not isinstance(values, Tensor):
        numbers.append(float(values))  # type: ignore[arg-type]
        return [start, None]
    numbers.extend(values.flatten().tolist())
    return [start, list(values.shape)]


def _take(numbers: Tensor, at: list[Any]) -> Coefficient:
    start, shape = at
    if shape is None:
        return float(numbers[start])
    values = numbers[start : start + int(np.prod(shape))].reshape(shape)
    return values if len(shape) == 1 else Block(values)
