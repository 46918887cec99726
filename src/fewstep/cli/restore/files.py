"""Restoring files of pictures: each is read, restored and written by itself, so that a broken one costs no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.data.folder import pictures_in, read_picture
from fewstep.files import atomic, extra
from fewstep.model.draw import draw
from fewstep.model.model import Model
from fewstep.terminal import pixels, telling

__all__ = ["Restored", "listed", "restore"]


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What became of the files: where each was written, or the sentence of what was wrong with it."""

    written: dict[Path, Path]
    failed: dict[Path, str]
    calls: int  # of the network, for a picture


def listed(paths: Sequence[str | Path]) -> list[Path]:
    """The files of pictures that are named, and those in folders that are."""
    found = [Path(path).expanduser() for path in paths]
    files = [file for path in found for file in (pictures_in(path) if path.is_dir() else [path])]
    return list(dict.fromkeys(files))


def restore(
    model: Model,
    files: Sequence[Path],
    out: str | Path,
    *,
    solver: Any,
    seed: int = 0,
    batch: int = 16,
    device: str | torch.device = "cpu",
    progress: bool | Callable[[float], object] = False,
) -> Restored:
    """Restores files of pictures into a folder, as NAME.png of NAME.*.

    File k has the noise of its number whatever becomes of the others. A file that cannot be read, is no picture of the
    model's shape or whose restoration is not finite is left out and said; the others are written, each whole or not at
    all.

    Args:
        model: one that is given what it restores (`fewstep train bridge`).
        files: pictures of the model's size, as `listed` gives them; grey ones become coloured where the model is.
        out: the folder, which may hold none of the files.
        solver: a table on the model's process, or a driver.
        seed, batch, device, progress: as in `fewstep.model.draw.draw`.
    """
    if not model.given:
        raise ValueError("got a model that makes pictures of noise alone: give one of `fewstep train bridge`")
    library = extra("PIL.Image", "diffusers", "writing pictures")
    out, calls = Path(out), 0
    written: dict[Path, Path] = {}
    failed: dict[Path, str] = {}
    ends: dict[int, Tensor] = {}
    targets = {k: out / f"{file.stem}.png" for k, file in enumerate(files)}
    inputs, first = {file.resolve() for file in files}, {path: k for k, path in reversed(targets.items())}
    for k, file in enumerate(files):
        try:
            if targets[k].resolve() in inputs:
                raise ValueError(f"{targets[k]} is among the pictures that are restored; give another folder")
            if first[targets[k]] != k:
                raise ValueError(f"{file} and {files[first[targets[k]]]} have one name, {targets[k].name}; rename one")
            ends[k] = _state(read_picture(file), model.shape, file)
        except (ValueError, OSError) as error:
            failed[file] = str(error)
    out.mkdir(parents=True, exist_ok=True)
    with telling(progress, "restoring") as tell:
        for numbers in _groups(sorted(ends), batch):
            y = torch.stack([ends[k] for k in numbers])
            try:
                made = draw(model, solver, num=len(y), y=y, seed=seed, begin=numbers[0], batch=batch, device=device,
                            strict=False)  # fmt: skip
            except ValueError as error:
                failed |= {files[k]: f"{files[k]}: {error}" for k in numbers}
                continue
            calls = made.calls
            failed |= {files[numbers[k]]: f"{files[numbers[k]]}: {why}" for k, why in made.aside.items()}
            for k, x in zip((k for i, k in enumerate(numbers) if i not in made.aside), made.images, strict=True):
                levels = pixels(x[None])[0]
                picture = library.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0))
                with atomic(targets[k]) as part:
                    picture.save(part, format="PNG")
                written[files[k]] = targets[k]
            tell((len(written) + len(failed)) / len(files))
    return Restored(written=written, failed={f: failed[f] for f in files if f in failed}, calls=calls)


def _state(picture: np.ndarray, shape: tuple[int, ...], file: Path) -> Tensor:
    """(C, H, W) in [-1, 1] of levels."""
    x = torch.from_numpy(picture.astype(np.float32) / 127.5 - 1)
    x = x[None] if x.ndim == 2 else x.movedim(-1, 0)
    x = x.expand(shape[0], -1, -1) if len(x) == 1 and len(shape) == 3 else x
    if tuple(x.shape) != tuple(shape):
        sizes = [f"{'x'.join(map(str, s[1:]))} with {s[0]} channels" for s in (tuple(x.shape), shape)]
        raise ValueError(f"{file} is {sizes[0]}; this model restores pictures of {sizes[1]}; give one of that kind")
    return x


def _groups(numbers: Sequence[int], most: int) -> list[list[int]]:
    """Numbers in a row, at most so many together."""
    groups: list[list[int]] = []
    for k in numbers:
        if groups and groups[-1][-1] + 1 == k and len(groups[-1]) < most:
            groups[-1].append(k)
        else:
            groups.append([k])
    return groups
