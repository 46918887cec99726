"""What a run of a model is asked for, and what is kept of it: classes by name, tables, records, files of samples."""

from __future__ import annotations

import dataclasses
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.files import extra, sha256
from fewstep.model.model import Model
from fewstep.noise import STREAM
from fewstep.process.config import process_to_json
from fewstep.solver import Driver
from fewstep.tableau import Tableau
from fewstep.words import VERSION, pick

__all__ = ["WRITERS", "class_labels", "class_numbers", "describe", "npz", "safetensors"]


def class_labels(text: str | None, names: Sequence[str], num: int) -> list[int] | None:
    """Returns the class number of every sample: the classes of `text` ("sneaker,9"), or all of `names`, in turn."""
    if not names:
        if text is not None:
            raise ValueError(f"got the label {text!r}, but this model was trained without classes; leave --label out.")
        return None
    if text is None:
        return [k % len(names) for k in range(num)]
    chosen = class_numbers([part.strip() for part in text.split(",")], names, "label")
    return [chosen[k % len(chosen)] for k in range(num)]


def class_numbers(words: Iterable[str], names: Sequence[str], what: str) -> list[int]:
    """Returns the class that each word names; letters may be small where no two names then are one.

    A number is a class's where no class is named so.
    """
    small = Counter(name.lower() for name in names)
    named = {name if small[name.lower()] > 1 else name.lower(): k for k, name in enumerate(names)}
    named |= {str(k): k for k in range(len(names)) if str(k) not in named}
    return [pick(named, word if word in named else word.lower(), what) for word in words]


def describe(model: Model, table: Tableau | Driver, *, file: str | None, **more: Any) -> dict[str, Any]:
    """Returns what makes the samples, ready for JSON: solver or table file, process, times, model, `more`, versions.

    The times are None for a driver.
    """
    solver = table.solver if isinstance(table, Tableau) else table
    return {
        "solver": ({"file": file, "sha256": sha256(file)} if file else {}) | (solver.config() if solver else {}),
        "process": process_to_json(model.process),
        "times": table.grid.tolist() if isinstance(table, Tableau) else None,
        "model": {"folder": str(model.path), "sha256": model.weights, "dtype": str(model.dtype)},
        "pace": dataclasses.asdict(model.pace),
        **more,
        "versions": {"fewstep": VERSION, "torch": torch.__version__, "python": platform.python_version(),
                     "noise_stream": STREAM},
        "machine": {"system": platform.system(), "processor": platform.machine(),
                    "threads": model.pace.threads or torch.get_num_threads()},
    }  # fmt: skip


def npz(samples: Tensor, labels: Sequence[int] | None) -> Callable[[Any], None]:
    """Returns a writer of samples (float32, data space) and labels as one npz file."""
    arrays = {"samples": samples.numpy()} | ({} if labels is None else {"labels": np.asarray(labels)})
    return lambda file: np.savez(file, **arrays)  # type: ignore[arg-type] - the next argument in line is a flag


def safetensors(samples: Tensor, labels: Sequence[int] | None) -> Callable[[Any], None]:
    """Returns a writer of samples (float32, data space) and labels as one safetensors file."""
    save = extra("safetensors.torch", "diffusers", "writing safetensors").save
    tensors = {"samples": samples.contiguous()} | ({} if labels is None else {"labels": torch.tensor(labels)})
    return lambda file: file.write(save(tensors))


WRITERS = {"npz": npz, "safetensors": safetensors}
