"""Cells: the samples of one contender at one number of calls and one seed, made in parts and kept at once.

Sample i of a seed has the same noise and class in every cell. A part is 256 samples; its distances to the exact end
state, features and seconds are written as soon as it is made, in a folder named after everything that decides them:
model, contender, calls, seed, features, batch. So a run that was killed goes on where it stood, and one that asks for
more samples, seeds or contenders makes only those.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fewstep.bench.contender import Prepared
from fewstep.bench.features import Features
from fewstep.bench.subject import Subject
from fewstep.denoiser import Counted
from fewstep.files import kept_tensors, save_tensors
from fewstep.noise import STREAM, noise_source
from fewstep.process import ScalarProcess

__all__ = ["PART", "SHOWN", "Cell", "Study"]

PART = 256
SHOWN = 32  # samples of a seed that are kept themselves, for the sheet


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is measured together: a run on one seed."""

    run: Prepared  # the contender, ready
    seed: int  # of noises and classes
    seen: bool = True  # whether features are taken


@dataclass(frozen=True)
class Study:
    """What all cells share."""

    subject: Subject  # what is sampled
    features: Features  # the feature space
    exact: Prepared  # the run whose end stands for the exact one
    kept: Path  # the folder of the parts
    batch: int = 128  # samples a network call
    device: str = "cpu"  # where the network runs
    tick: Callable[[int], object] = lambda n: None  # called with the number of samples after every network call

    def work(self, cells: Sequence[Cell], count: int) -> int:
        """Samples times network calls that `make` would spend on the cells."""
        return sum(size * cell.run.calls for cell in cells for first, size in _parts(count)
                   if not any(self._kept(cell, first, size)))  # fmt: skip

    def make(self, cell: Cell, count: int) -> dict[str, Tensor]:
        """The first `count` samples of a cell; a ValueError says how many are not finite.

        "error" (count,): each sample's mean square distance to the exact end state of the same noise, float64; "span"
        (count, 2): its smallest and largest entry; "features" (count, d) where they are wanted; "seconds" of all
        samples together; "pace": seconds a sample of the fastest part, which other work on the machine slowed least;
        "shown": the first samples. The cell of the exact run has no error and the end states themselves: "state" at the
        last time and "data" at sigma = 0, with "features at zero".
        """
        parts = [self._load(cell, first, size) for first, size in _parts(count)]
        joined = {k: torch.cat([p[k] for p in parts]) for k in parts[0] if k not in ("seconds", "shown")}
        paces = torch.stack([p["seconds"] / size for p, (_, size) in zip(parts, _parts(count), strict=True)])
        return joined | {"seconds": sum(p["seconds"] for p in parts), "pace": paces.min(),
                         "shown": parts[0]["shown"]}  # fmt: skip

    def _load(self, cell: Cell, first: int, size: int) -> dict[str, Tensor]:
        """One part, made unless it is kept; a damaged file is made again."""
        for path in self._kept(cell, first, size):
            if "span" in (part := kept_tensors(path)):
                return {k: v[:size] if v.ndim else v * size / _size(path) for k, v in part.items()}
            path.unlink(missing_ok=True)
        part = self._part(cell, first, size)
        save_tensors(self._folder(cell) / f"{first:07}-{size}.safetensors", part, sealed=True)
        return part

    def _part(self, cell: Cell, first: int, size: int) -> dict[str, Tensor]:
        """Samples `first` to `first + size`, measured."""
        samples, seconds = self._sample(cell, first, size)
        bad = int((~samples.isfinite()).flatten(1).any(1).sum())
        if bad:
            raise ValueError(f"{bad} of {size} samples hold NaN or infinity")
        part = {"seconds": seconds, "shown": samples[:SHOWN].clone(),
                "span": torch.stack(samples.flatten(1).aminmax(dim=1), 1)}  # fmt: skip
        if cell.run.digest == self.exact.digest:
            data = self._at_zero(samples, first)
            part |= {"state": samples, "data": data, "features at zero": self._features(data)}
        else:
            aim = self._load(Cell(run=self.exact, seed=cell.seed), first, size)[cell.run.end]
            part["error"] = (samples - aim).double().square().flatten(1).mean(1)
        if cell.seen:
            part["features"] = self._features(samples)
        return part

    def _features(self, samples: Tensor) -> Tensor:
        return self.features.of(samples.clamp(-1, 1) if self.subject.images else samples).clone()

    def _sample(self, cell: Cell, first: int, size: int) -> tuple[Tensor, Tensor]:
        """Samples in data space, on the CPU, and the seconds they took."""
        subject, parts, began = cell.run.subject or self.subject, [], time.perf_counter()
        for k, n in _parts(size, self.batch):
            denoiser = Counted(subject.of(first + k, n), on_call=lambda n=n: self.tick(n))
            shape = (n, *subject.process.state_shape(subject.shape))
            noise = noise_source(None, cell.seed, first + k).initial(shape, torch.float32, self.device)
            parts.append(cell.run.go(denoiser, noise, cell.seed, first + k).float().cpu())
        return torch.cat(parts), torch.tensor(time.perf_counter() - began, dtype=torch.float64)

    def _at_zero(self, state: Tensor, first: int) -> Tensor:
        """x0_hat at the exact states of the last time: the ODE's end at sigma = 0, where some contenders stop."""
        process, subject = self.subject.process, self.subject
        if self.exact.end == "data" or not isinstance(process, ScalarProcess) or process.sigma(process.t_min) == 0:
            return state.clone()  # nobody stops elsewhere
        with torch.inference_mode():
            return torch.cat([
                subject.of(first + k, n)(state[k : k + n].to(self.device), process.t_min).cpu()
                for k, n in _parts(len(state), self.batch)
            ]).float()  # fmt: skip

    def _kept(self, cell: Cell, first: int, size: int) -> Iterator[Path]:
        """The files that hold at least these samples, with features where they are wanted."""
        for folder in {self._folder(cell), self._folder(replace(cell, seen=True))}:
            yield from (path for path in folder.glob(f"{first:07}-[0-9]*.safetensors") if _size(path) >= size)

    def _folder(self, cell: Cell) -> Path:
        decides = [self.subject.digest, cell.run.digest, cell.run.end, cell.run.calls, cell.seed, self.exact.digest,
                   self.batch, self.device, cell.seen and self.features.digest, STREAM]  # fmt: skip
        return self.kept / hashlib.sha256(repr(decides).encode()).hexdigest()[:16]


def _parts(count: int, size: int = PART) -> Iterator[tuple[int, int]]:
    """(first, size) of each part of `count` samples."""
    for first in range(0, count, size):
        yield first, min(size, count - first)


def _size(path: Path) -> int:
    count = path.stem.partition("-")[2]
    return int(count) if count.isdecimal() else 0
