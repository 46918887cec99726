"""What long work has so far, in a file that the same command takes up: tensors, and what they belong to."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.files import kept_tensors, save_tensors

__all__ = ["Saved"]

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
