"""Tensors and what they belong to, in a file: what long work has so far and takes up again, and what it made."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from fewstep.files import extra, kept_tensors, load_tensors, save_tensors

__all__ = ["Saved", "read_made"]

T = TypeVar("T")

_EVERY = 20.0  # seconds between saves


class Saved:
    """Tensors in a file, read back only for what is the same `about`; without a path nothing is kept.

    A file that is of something else or broken is as good as none: it is written anew.
    """

    def __init__(self, path: Path | None, about: dict[str, Any]) -> None:
        self.path = path
        self._about = torch.tensor(list(json.dumps(about, sort_keys=True).encode()), dtype=torch.uint8)
        self._last = time.monotonic()

    def read(self) -> dict[str, Tensor]:
        """The tensors, or nothing."""
        tensors = kept_tensors(self.path) if self.path is not None else {}
        return tensors if torch.equal(tensors.pop("said", torch.empty(0)), self._about) else {}

    def write(self, tensors: dict[str, Tensor], *, now: bool = False) -> None:
        """Keeps the tensors, whole or not at all: from time to time, or `now`."""
        if self.path is None or not (now or time.monotonic() - self._last > _EVERY):
            return
        save_tensors(self.path, {**tensors, "said": self._about}, sealed=True)
        self._last = time.monotonic()

    def remove(self) -> None:
        """Deletes the file of work that is over."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def read_made(path: str | Path, what: str, writer: str, make: Callable[[Any, dict[str, Tensor]], T]) -> T:
    """What `make` makes of the words and tensors of a safetensors file, or of WHAT.safetensors in a run's folder.

    Whatever is wrong with them is one sentence that names `writer`, which writes such files.
    """
    path = Path(path)
    path = path / f"{what}.safetensors" if path.is_dir() else path
    try:
        with extra("safetensors", "diffusers", f"reading a {what}").safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["fewstep"])
        return make(about, load_tensors(path))
    except OSError:
        raise
    except Exception as error:  # safetensors raises its own class, a bare Exception
        raise ValueError(
            f"got {path}, which is not a whole {what} ({str(error)[:300]}): give a file that {writer} wrote"
        ) from error
