"""What a fit is of, by which the files that it keeps are known, and the card that its table carries."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import torch

from fewstep.denoiser.base import fingerprint
from fewstep.fitting.teacher import FIRST, Task
from fewstep.noise import STREAM
from fewstep.process.config import process_to_json
from fewstep.tableau import Tableau

__all__ = ["card", "digest", "origin"]


def origin(task: Task, teacher: Tableau, about: Mapping[str, Any]) -> dict[str, Any]:
    """What the teacher's end states depend on, ready for JSON."""
    return {
        "process": process_to_json(task.process),
        "weights": fingerprint(task.conditioned(slice(0, 1))),
        "answer": _answer(task),
        "teacher": {"solver": teacher.solver.config() if teacher.solver else None, "times": teacher.grid.tolist()},
        **{name: getattr(task, name) for name in ("samples", "held_out", "seed")},
        "noise_stream": STREAM,
        "dtype": str(task.dtype),
        **about,
    }


def digest(origin: Mapping[str, Any]) -> str:
    """Its SHA-256; a ValueError where it holds what JSON does not."""
    try:
        text = json.dumps(origin, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"got an about that is not ready for JSON ({error}): give words and finite numbers") from None
    return hashlib.sha256(text.encode()).hexdigest()


def card(origin: Mapping[str, Any], task: Task, teacher: Tableau, fit: Mapping[str, Any]) -> dict[str, Any]:
    """The card: whose the table is, what its `fit` was asked for and reached, when and where."""
    return {
        **{k: v for k, v in origin.items() if k not in ("process", "teacher", "answer")},
        "teacher": {"solver": type(teacher.solver).__name__, "calls": teacher.nfe},
        "first": FIRST,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads, {task.device}",
        "versions": {"torch": torch.__version__},
        **fit,
    }


def _answer(task: Task) -> str:
    """A hash of what the denoiser says to the first noise: what is on disk belongs to this denoiser and no other."""
    middle = (task.process.t_max + task.process.t_min) / 2
    with torch.no_grad():
        d = task.conditioned(slice(0, 1))(task.start(slice(0, 1)), middle)
    d = d["x0"] if isinstance(d, Mapping) else d
    return hashlib.sha256(d.double().cpu().numpy().tobytes()).hexdigest()
