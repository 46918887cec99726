"""Files that are whole or absent: atomic writes, safetensors and JSON with one-sentence errors.

A file is written beside its final name, flushed to the disk and renamed over it, so a kill, a full disk or an error
leaves either the old file or none. Weights are read from safetensors only; a pickle is never opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

__all__ = ["atomic", "extra", "load_tensors", "read_json", "save_tensors", "sha256", "write_json", "write_text"]

PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


def extra(module: str, extra_name: str, purpose: str) -> ModuleType:
    """Imports an optional `module`, or says which extra of fewstep brings it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        name = (error.name or module).partition(".")[0]
        sentence = f"{purpose} needs {name}, which is not installed; run pip install 'fewstep[{extra_name}]'."
        raise ModuleNotFoundError(sentence, name=name) from error


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Gives a path to write to in the folder of `path`; renames it to `path` when the block ends without an error.

    The folder is made when missing. An OSError (no space, no permission) comes out with one sentence as its text.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as f:
            os.fsync(f.fileno())
        os.replace(part, path)
    except OSError as error:
        raise OSError(
            f"cannot write {path} ({error.strerror or error}); nothing half-written was left; make room or "
            "name another folder."
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path, belongs_to: str) -> dict[str, Any]:
    """The object in the JSON file `path`; `belongs_to` ("a model folder") says in an error what the file is part of."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is missing; {belongs_to} holds a file {path.name}; name a whole folder.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); fetch or write the folder again.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not a JSON object; fetch or write the folder again.")
    return value


def save_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes `tensors` as safetensors, atomically; the same tensors give the same bytes."""
    save = extra("safetensors.torch", "diffusers", "writing weights").save
    data = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata)
    with atomic(path) as part:
        part.write_bytes(data)


def load_tensors(path: str | Path, *, digest: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Refuses with one sentence: a missing file (and names a pickled one lying in its place), a truncated or corrupt one,
    and, when `digest` is given, one whose SHA-256 differs from it.
    """
    path = Path(path)
    safe_open = extra("safetensors", "diffusers", "reading weights").safe_open
    if path.suffix in PICKLED:
        raise ValueError(
            f"{path} is a pickled file, which can run code when opened; only .safetensors is read; convert it."
        )
    if not path.is_file():
        pickled = sorted(p.name for p in path.parent.glob("*") if p.suffix in PICKLED)
        if pickled:
            raise ValueError(
                f"{path} is missing and the pickled {pickled[0]} beside it is never opened, since it can run code; "
                "only .safetensors is read; convert it."
            )
        raise ValueError(
            f"{path} is missing; weights are read from a safetensors file of that name; name a whole folder."
        )
    try:
        with safe_open(path, "pt") as f:
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 - not a mapping
    except Exception as error:  # safetensors raises its own class, a bare Exception
        raise ValueError(
            f"{path} is truncated or corrupt ({error}); only a whole safetensors file is read; fetch or write it again."
        ) from error
    if digest is not None and sha256(path) != digest:
        raise ValueError(
            f"{path} is corrupt: its SHA-256 is {sha256(path)[:12]}..., the folder says {digest[:12]}...; "
            "fetch or write the folder again."
        )
    return tensors


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
