"""What is sampled: a model folder, or any object with a process, a shape and a denoiser."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.check.subject import named_object
from fewstep.interop.load import load
from fewstep.model.draw import conditioned
from fewstep.pace import Pace
from fewstep.process import Process
from fewstep.tableau import MadeFor

__all__ = ["Subject", "subject"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is sampled."""

    name: str  # for people
    digest: str  # says which weights these are
    process: Process
    shape: tuple[int, ...]  # of one sample in data space
    # class numbers of a batch, or None, -> (z, t) -> x0_hat
    denoiser: Callable[[Sequence[int] | None], Callable[[Tensor, Any], Any]]
    guidance: float = 1.0  # scale of classifier-free guidance; 1 is none
    classes: int = 0  # how many classes there are; sample i has class i mod `classes`. 0 is none
    path: Path | None = None  # the model folder, where it is one
    weights: str | None = None  # their SHA-256, where they come from a file
    images: bool = False  # whether samples are pictures in [-1, 1], (1 or 3, H, W)
    data: Tensor | None = None  # real samples (n, *shape), where the object brings them
    pace: Pace = field(default_factory=Pace)  # how the network runs here
    made_for: MadeFor | None = None  # of a student, the tables that it brings
    takes_w: bool = False  # whether the network is told the guidance

    def of(self, first: int, size: int) -> Callable[[Tensor, Any], Any]:
        """The denoiser of samples `first` to `first + size`, with their labels and the guidance."""
        return conditioned(self, self.labels(first, size), self.guidance)

    def guided(self, scale: float) -> Subject:
        """The same, guided by this scale; refused without classes."""
        if scale == self.guidance:
            return self
        if not self.classes and not self.takes_w:
            raise ValueError(f"got guidance {scale:g} for a model that was trained without classes: leave it out")
        return replace(self, guidance=scale, digest=f"{self.digest} guidance {scale}")

    def labels(self, first: int, size: int) -> list[int] | None:
        """The class numbers of samples `first` to `first + size`."""
        return [k % self.classes for k in range(first, first + size)] if self.classes else None


def subject(model: str | Path | None, *, device: str = "cpu", pace: Pace | None = None) -> Subject:
    """The subject that a model folder, None (the shipped model), or file.py:object stands for.

    The object has `process`, `shape` and `denoiser(labels)`; it may have `labels` (one name per class) and `data`, real
    samples (n, *shape).
    """
    if isinstance(model, str) and ":" in model and not Path(model).exists():
        return _from_object(model)
    loaded = load(model, device=device, pace=pace)
    assert loaded.path is not None
    decides = [loaded.weights or loaded.path.resolve(), loaded.process, loaded.predicts, loaded.time, loaded.patch]
    format = "" if loaded.pace.memory_format == "contiguous" else f" {loaded.pace}"
    return Subject(name=loaded.path.resolve().name, digest=f"{' '.join(map(str, decides))} {loaded.dtype}{format}",
                   process=loaded.process, shape=loaded.shape, denoiser=loaded.denoiser, classes=len(loaded.labels),
                   path=loaded.path, weights=loaded.weights, images=loaded.shape[0] in (1, 3), pace=loaded.pace,
                   made_for=loaded.made_for, takes_w=loaded.takes_w)  # fmt: skip


def _from_object(text: str) -> Subject:
    made = named_object(text)
    made = made() if isinstance(made, type) else made
    lacking = [name for name in ("process", "shape", "denoiser") if not hasattr(made, name)]
    if lacking:
        raise ValueError(
            f"got {text!r}, which has no {lacking[0]}: give an object with process, shape and denoiser(labels)"
        )
    where = text.rpartition(":")[0]
    source = Path(where) if where.endswith(".py") else Path(importlib.import_module(where).__file__ or "")
    digest = f"{hashlib.sha256(source.read_bytes()).hexdigest()} {made.process}"
    return Subject(name=text, digest=digest, process=made.process, shape=tuple(made.shape), denoiser=made.denoiser,
                   classes=len(getattr(made, "labels", ())), data=getattr(made, "data", None))  # fmt: skip
