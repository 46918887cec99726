"""Processes as JSON: {"name": key in ALL_PROCESSES, field: value, ...}, in model folders, tables and run records."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from fewstep.process import ALL_PROCESSES, Process
from fewstep.words import short

__all__ = ["process_from_json", "process_to_json"]


def process_to_json(process: Process) -> dict[str, Any]:
    """{"name": key in ALL_PROCESSES, field: value, ...}."""
    names = [name for name, cls in ALL_PROCESSES.items() if cls is type(process)]
    if not names:
        raise ValueError(
            f"a {type(process).__name__} came as process; known are {', '.join(ALL_PROCESSES)}; use one of these."
        )
    values = {f.name: getattr(process, f.name) for f in fields(cast(Any, process)) if f.init}
    return {"name": names[0], **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}


def process_from_json(value: Any, where: str | Path = "fewstep.json") -> Process:
    """The process of `process_to_json`'s dict; `where` names the file in an error."""
    name = value.get("name") if isinstance(value, dict) else value
    if not isinstance(name, str) or name not in ALL_PROCESSES:
        raise ValueError(
            f"{where} names the process {short(name)}; known are {', '.join(ALL_PROCESSES)}; correct it or update "
            "fewstep."
        )
    cls = ALL_PROCESSES[name]
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k != "name"}
    allowed = {f.name for f in fields(cls) if f.init}
    if unknown := sorted(set(arguments) - allowed):
        raise ValueError(
            f"{where} gives the process {name!r} a field {short(unknown[0])}; allowed are "
            f"{', '.join(sorted(allowed))}; correct it or update fewstep."
        )
    try:
        process = cls(**arguments)
        ends = [float(process.log_snr(t)) for t in (process.t_max, process.t_min)]
        if not ends[0] < ends[1]:
            raise ValueError(f"its log-SNR runs from {ends[0]:g} at t_max to {ends[1]:g} at t_min; it must rise")
        return process
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{where} gives the process {name!r} values it refuses ({error}); correct them.") from error
