"""Tables on disk: the safetensors layout, written and read here so that the core needs no further package.

A file is an 8-byte little-endian header length, a JSON header, and the bytes of one float64 tensor `weights`. The
table itself (rows, times, symbols, noises, process, solver) is JSON in the header's metadata. Tables with one weight
per frequency are stored as their rule: solver, process and grid, from which they are written again. A fitted table's
card lies beside the rows. A checksum over all of it makes a changed or cut file no table.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import struct
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fewstep.files import atomic, check_depth
from fewstep.process import Process
from fewstep.process.clock import falling
from fewstep.process.config import process_from_json, process_to_json
from fewstep.process.operator import Coefficient, Diagonal, values_of
from fewstep.tableau.row import Author, Table
from fewstep.tableau.sound import check_rule, check_sound, entries, heads_of, noise_of, row_of, take, text
from fewstep.words import short

__all__ = ["load", "read_solvers_with", "save", "to_bytes"]

T = TypeVar("T", bound=Table)

_FORMAT = "fewstep table 1"
_LARGEST = 64 * 2**20  # bytes of a file that is read
_READ: list[Callable[[Any, bool], Author | None]] = []


def save(table: Table, path: Path) -> None:
    """Writes beside the final name and renames, so that a failed write leaves nothing behind."""
    data = to_bytes(table)
    with atomic(path) as part:
        part.write_bytes(data)


def to_bytes(table: Table) -> bytes:
    """The file of a table."""
    check_sound(table)
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
                {
                    "t": r.t,
                    "at": r.at,
                    "to": r.to,
                    "given": r.given,
                    "form": [[list(s), _put(numbers, c)] for s, c in r.form],
                }
                for r in table.rows
            ],
            "heads": [[list(k), _put(numbers, p), _put(numbers, q)] for k, (p, q) in table.heads.items()],
        }
    return _encode(json.dumps(meta, allow_nan=False), np.asarray(numbers, dtype="<f8").tobytes())


def load(path: Path, make: Callable[..., T]) -> T:
    """Reads a table for `Tableau.load`."""
    if path.exists() and not path.is_file():
        raise ValueError(f"got {path}, which is no regular file: give a file that Tableau.save wrote")
    with path.open("rb") as file:
        raw = file.read(_LARGEST + 1)
    try:
        table = _table(*_decoded(raw), make)
        check_sound(table)
    except (
        struct.error, KeyError, TypeError, AttributeError, IndexError, RuntimeError, ArithmeticError, ValueError
    ) as error:  # fmt: skip
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        reason = "it is nested too deep" if isinstance(error, RecursionError) else reason
        raise ValueError(
            f"got {path}, which is not a whole fewstep table ({' '.join(reason.split())[:500]}): "
            "give a file that Tableau.save wrote"
        ) from error
    return table


def read_solvers_with(read: Callable[[Any, bool], Author | None]) -> None:
    """Says what makes a solver of its config (needed, or else None where a file of its own is not there).

    Solvers lie above tables, so the package of solvers says it.
    """
    _READ[:] = [read]


def _decoded(raw: bytes) -> tuple[dict[str, Any], Tensor]:
    """The JSON and the numbers of a file whose checksum is right."""
    if len(raw) > _LARGEST:
        raise ValueError(f"it is larger than {_LARGEST >> 20} MiB")
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    words, data = header["__metadata__"]["fewstep"], raw[8 + length :]
    if _encode(words, data) != raw:
        raise ValueError("its checksum does not match")
    meta = json.loads(words)
    check_depth(meta)
    if not isinstance(meta, dict) or meta.get("format") != _FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else meta
        raise ValueError(f"its format is {short(found)}, this version reads {_FORMAT!r}")
    return meta, torch.from_numpy(np.frombuffer(data, dtype="<f8").copy())


def _table(meta: dict[str, Any], numbers: Tensor, make: Callable[..., T]) -> T:
    """The table of a file's JSON and numbers."""
    process, rule, config = process_from_json(meta["process"], "it"), "rows" not in meta, meta["solver"]
    if config is not None and not _READ:
        importlib.import_module("fewstep.solver.config")  # which says how
    solver = _READ[0](config, rule) if config is not None else None
    output, card = text(meta["output"], "output"), meta.get("card")
    if rule:
        if solver is None or process.kind != "diagonal":
            raise ValueError("it has no rows and is no rule of a solver on a process of frequencies")
        return replace(_rule(solver, process, falling(numbers, process), output), card=card)
    return make(
        rows=tuple(row_of(k, row, numbers) for k, row in enumerate(entries(meta["rows"], "rows"))),
        noises=tuple(noise_of(k, noise) for k, noise in enumerate(entries(meta["noises"], "noises"))),
        process=process,
        grid=falling(torch.as_tensor(take(numbers, meta["grid"], "the grid")), process),
        solver=solver,
        output=output,
        heads=heads_of(meta["heads"], numbers),
        card=card,
    )


def _encode(words: str, data: bytes) -> bytes:
    """The file for a table's JSON and weights, to the last byte."""
    header = {
        "__metadata__": {"fewstep": words, "sha256": hashlib.sha256(words.encode() + data).hexdigest()},
        "weights": {"dtype": "F64", "shape": [len(data) // 8], "data_offsets": [0, len(data)]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def _rule(solver: Author, process: Process, grid: Tensor, output: str) -> Any:
    """The table a solver writes, in terms of an output."""
    check_rule(solver.calls(len(grid) - 1, to_zero=False), process)
    table = solver.tabulate(process, grid)
    return table if output == "x0" else table.in_terms_of(output)


def _put(numbers: list[float], c: Coefficient) -> list[Any]:
    """Appends values; returns [offset, shape] (None: a number, else a block or the grid), a diagonal's rank third."""
    values = values_of(c)
    start = len(numbers)
    rank = [c.rank] if isinstance(c, Diagonal) else []
    if not isinstance(values, Tensor):
        numbers.append(float(values))
        return [start, None]
    numbers.extend(values.flatten().tolist())
    return [start, list(values.shape), *rank]
