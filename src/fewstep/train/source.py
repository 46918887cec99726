"""The data of a training as arrays, and a batch of every step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fewstep.data import Images, read_images
from fewstep.model import Model
from fewstep.train.company import together
from fewstep.train.pairs import Batch, Draw
from fewstep.train.trainer import TrainConfig

__all__ = ["Source", "floats", "pairs", "read_data", "sourced"]

EDGE = 1e-3  # beyond the range of pictures, which resizing may leave by so much


class Labelled(NamedTuple):
    """Samples and the label of each."""

    data: np.ndarray
    labels: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Source:
    """Data in memory, drawn in epochs: a batch is a function of (seed, k).

    Args:
        data: (N, *shape), floats as they are or uint8 pictures (N, H, W) or (N, H, W, C).
        labels: (N,) from 0, or None.
        ends: like the data, the other end y of each, or None.
        config: batch, seed, and the share of labels left out.
        rank, world: which part of each batch is taken, by whom of how many.
    """

    data: np.ndarray
    labels: np.ndarray | None
    config: TrainConfig
    ends: np.ndarray | None = None
    rank: int = 0
    world: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample, in data space."""
        if self.data.dtype != np.uint8:
            return self.data.shape[1:]
        _, h, w, *c = self.data.shape
        return (c[0] if c else 1, h, w)

    @cached_property
    def first(self) -> Draw:
        """The first samples, by which a method tells how large what it learns is."""
        return Draw(Batch(self.floats(slice(0, 4096)), self._ends(slice(0, 4096))), 0, seed=self.config.seed)

    @property
    def digest(self) -> str:
        """Of data and labels."""
        whole = hashlib.sha256(np.ascontiguousarray(self.data).tobytes())
        for more in (self.labels, self.ends):
            whole.update(b"" if more is None else np.ascontiguousarray(more).tobytes())
        return whole.hexdigest()[:16]

    def __call__(self, k: int, share: float) -> Draw:
        c, n = self.config, len(self.data)
        per_epoch = n // c.batch
        order = np.random.default_rng([c.seed, 1, k // per_epoch]).permutation(n)
        part = c.batch // self.world
        first = self.rank * part
        rows = order[(k % per_epoch) * c.batch :][: c.batch][first : first + part]
        conditions = self._ends(rows)
        if self.labels is not None:
            dropped = np.random.default_rng([c.seed, 2, k]).random(c.batch)[first : first + part] < c.drop_label
            conditions["class_labels"] = torch.from_numpy(np.where(dropped, 0, self.labels[rows].astype(np.int64) + 1))
        return Draw(Batch(self.floats(rows), conditions), k, share, c.seed, first, c.batch)

    def _ends(self, rows: Any) -> dict[str, Tensor]:
        return {} if self.ends is None else {"y": self.floats(rows, self.ends)}

    def floats(self, rows: Any, data: np.ndarray | None = None) -> Tensor:
        """Some samples, in data space; pictures in [-1, 1]."""
        data = self.data if data is None else data
        x = torch.from_numpy(data[rows].astype(np.float64))
        if data.dtype != np.uint8:
            return x
        return (x[:, None] if x.ndim == 3 else x.movedim(-1, 1)) / 127.5 - 1


def floats(path: str | Path) -> tuple[np.ndarray, np.ndarray | None] | None:
    """The array of an npy file; the points and labels of an npz file, floats (N, D); None of any other file.

    Points are called x, x_train, data or points, or NAME in FILE.npz:NAME; labels, whole numbers (N,), y, y_train or
    labels.
    """
    file, _, asked = str(path).rpartition(":")
    if file.endswith(".npz"):
        return _named(Path(file), asked), None
    path = Path(path)
    if path.suffix == ".npy" and path.is_file():
        try:
            return np.load(path, allow_pickle=False), None
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{path} is not a readable npy file ({error}): write it with numpy.save") from None
    if path.suffix == ".npz" and path.is_file():
        with suppress(ValueError, OSError, KeyError), np.load(path, allow_pickle=False) as file:
            for name in ("x", "x_train", "data", "points"):
                if name in file.files and np.issubdtype((x := file[name]).dtype, np.floating) and x.ndim == 2:
                    labels = (file[name] for name in ("y", "y_train", "labels") if name in file.files)
                    return x, next((y for y in labels if y.dtype.kind in "iu" and y.shape == x.shape[:1]), None)
    return None


def _named(path: Path, name: str) -> np.ndarray:
    """An array of an npz file, floats (N, D), or a sentence."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}; check the name")
    with np.load(path, allow_pickle=False) as file:
        if name in file.files and np.issubdtype((x := file[name]).dtype, np.floating) and x.ndim == 2:
            return x
        raise ValueError(f"got {path}:{name}: no floats (N, D) of that name; it holds {', '.join(file.files)}")


def collected(items: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """What a `torch.utils.data.Dataset` of a length holds: samples, or pairs of a sample and its label."""
    parts = [items[k] for k in range(len(items))]
    pairs = bool(parts) and all(isinstance(part, tuple | list) and len(part) == 2 for part in parts)
    samples = [torch.as_tensor(part[0] if pairs else part).numpy(force=True) for part in parts]
    if len({one.shape for one in samples}) != 1:
        raise ValueError(f"got a data set of {len(samples)} samples that have not one shape: make them alike")
    return np.stack(samples), np.array([int(part[1]) for part in parts]) if pairs else None


def read_data(path: str | Path) -> Any:
    """The pairs (x, y), points or samples of a file, or else its pictures (`read_images`)."""
    found = pairs(Path(path))
    if found is None and (read := floats(path)) is not None:
        found = read[0] if read[1] is None else Labelled(*read)
    return read_images(path) if found is None else found


def pairs(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """X and y of one shape in an npz file; the pictures of folders x and y, by their names; None of anything else."""
    if path.is_dir() and {p.name for p in path.iterdir() if p.is_dir()} == {"x", "y"}:
        names = [sorted(p.stem for p in (path / end).iterdir()) for end in ("x", "y")]
        if names[0] != names[1]:
            odd = sorted({*names[0]} ^ {*names[1]})[0]
            raise ValueError(
                f"{path} has folders x and y, and {odd} in one of them alone: name the two of a pair alike"
            )
        x, y = (read_images(path / end).images for end in ("x", "y"))
        return x, y
    if path.suffix == ".npz" and path.is_file():
        with suppress(ValueError, OSError, KeyError), np.load(path, allow_pickle=False) as file:
            for names in (("x", "y"), ("x_train", "y_train")):
                if {*names} <= {*file.files}:
                    x, y = (file[name] for name in names)
                    if x.ndim > 1 and x.shape == y.shape:
                        return x, y
    return None


def sourced(
    data: Any, labels: Any, config: TrainConfig, taught: Any, read: Callable[[np.ndarray], np.ndarray],
    *, blind: bool,
) -> Source:  # fmt: skip
    """The data as arrays, as a method's `read` has them; refused where they are no numbers or too few."""
    if isinstance(data, Images):
        data, labels = data.images, data.labels
    elif isinstance(data, Labelled):
        data, labels = data.data, data.labels if labels is None else labels
    elif isinstance(data, Dataset):
        data, found = collected(data)
        labels = found if labels is None else labels
    data, ends = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
    if data is None and not (blind and isinstance(taught, Model)):
        raise ValueError(
            "got no data: give an array, a file or a folder; a method that looks at none takes a model alone"
        )
    if data is None:
        data = np.zeros((config.batch, *taught.shape))
    x = data.numpy(force=True) if isinstance(data, Tensor) else np.asarray(data)
    if x.dtype == object or x.ndim < 2 or (x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating)):
        raise ValueError(f"got data of {x.dtype} and shape {x.shape}: give floats (N, ...) or uint8 pictures")
    if not np.isfinite(x).all():
        raise ValueError("got data with numbers that are not finite: clean them first")
    x = read(x)
    config.check(len(x))
    if isinstance(taught, Model) and tuple(taught.shape) != Source(x, None, config).shape:
        raise ValueError(
            f"got data of shape {Source(x, None, config).shape} and a teacher of {taught.shape}: give data like its own"
        )
    if isinstance(taught, Model) and len(taught.shape) == 3 and x.dtype != np.uint8 and x.any():
        low, high = float(x.min()), float(x.max())
        if low < -1 - EDGE or high > 1 + EDGE or low >= 0:
            raise ValueError(
                f"got data from {low:g} to {high:g} and a teacher of pictures in [-1, 1]: give data in its range, or "
                "uint8 pictures"
            )
    if ends is not None:
        ends = ends.numpy(force=True) if isinstance(ends, Tensor) else np.asarray(ends)
        if (ends.shape, ends.dtype.kind) != (x.shape, x.dtype.kind) or not np.isfinite(ends).all():
            what = f"x of {x.dtype} {x.shape} and y of {ends.dtype} {ends.shape}"
            raise ValueError(f"got {what}: give finite pairs of one shape and kind")
    y = None if labels is None else np.asarray(labels)
    if y is not None and (y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer) or y.min() < 0):
        raise ValueError(f"got labels of {y.dtype} and shape {y.shape}: give whole numbers from 0, one a sample")
    most = len(taught.labels) if isinstance(taught, Model) else 0
    if y is not None and most and y.max() >= most:
        raise ValueError(f"got the label {y.max()} and a teacher of {most}: give whole numbers from 0 to {most - 1}")
    return Source(x, y, config, ends, *together())
