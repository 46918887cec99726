"""What a person sees while waiting and afterwards: a progress bar, a table, a sheet of pictures."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Bar", "pixels", "png", "sheet", "table", "telling"]

GAP = 2  # white pixels between the pictures of a sheet
SIDE = 4096  # pixels of a side of a picture, and of the square that a sheet fits in


class Bar:
    """A progress bar on the terminal, shown only where a person waits: a terminal, and longer than `after` seconds.

        with Bar(total=100, what="sampling") as bar:
            bar.advance()

    rich draws it where it is installed; otherwise one line is rewritten in place.
    """

    def __init__(self, total: int, what: str, *, after: float = 2.0, shown: bool = True) -> None:
        self.total, self.what, self.after = total, what, after
        self.done = 0.0
        self._began = time.monotonic()
        self._terminal = shown and sys.stderr.isatty()
        self._rich: Any = None
        self._shown = False

    def __enter__(self) -> Bar:
        return self

    def advance(self, n: float = 1) -> None:
        """Says that `n` more of `total` are done."""
        self.to(self.done + n)

    def to(self, done: float) -> None:
        """Says that `done` of `total` are done; what was done stays done."""
        self.done = max(self.done, done)
        if not self._terminal or not self.done or time.monotonic() - self._began < self.after:
            return
        if not self._shown:
            self._shown = True
            self._rich = self._start()
        if self._rich is not None:
            self._rich.update(self._rich.task_ids[0], completed=self.done)
        else:
            left = (time.monotonic() - self._began) * (self.total / self.done - 1)
            line = f"\r{self.what} {self.done:.0f}/{self.total}, {left:.0f} s left "
            print(line, end="", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()
        elif self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def _start(self) -> Any:
        with suppress(ModuleNotFoundError):
            from rich.console import Console
            from rich.progress import Progress

            progress = Progress(console=Console(stderr=True), transient=True)
            progress.add_task(self.what, total=self.total, completed=int(self.done))
            progress.start()
            return progress
        return None


@contextmanager
def telling(
    progress: bool | Callable[[float], object], what: str, *, total: int = 100
) -> Iterator[Callable[[float], object]]:
    """Where to tell which share of the work is done: a given function, a bar for True, nowhere for False; 1 at last."""
    with Bar(total, what) as bar:
        tell = progress if callable(progress) else lambda share: bar.to(share * total) if progress else None
        yield tell
        tell(1.0)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a plain text table: first column to the left, the others to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    width = [max(len(line[column]) for line in lines) for column in range(len(head))]
    lines.insert(1, ["-" * w for w in width])
    padded = ([line[0].ljust(width[0]), *map(str.rjust, line[1:], width[1:])] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def sheet(images: np.ndarray, *, columns: int | None = None, gap: int = GAP, width: int = 640) -> np.ndarray:
    """One picture of many (n, 1 or 3, height, width) in uint8, row by row: (rows, columns), or with a third axis of 3.

    By default it is about square. Between pictures are `gap` white pixels; small sheets are enlarged by a whole factor
    to come near `width`.
    """
    n, channels, h, w = images.shape
    columns = columns or max(1, round((n * (h + gap) / (w + gap)) ** 0.5))
    rows = -(-n // columns)
    canvas = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, channels), 255, dtype=np.uint8)
    for k, image in enumerate(images):
        top, left = gap + k // columns * (h + gap), gap + k % columns * (w + gap)
        canvas[top : top + h, left : left + w] = image.transpose(1, 2, 0)
    scale = max(1, width // canvas.shape[1])
    canvas = canvas.repeat(scale, axis=0).repeat(scale, axis=1)
    return canvas[:, :, 0] if channels == 1 else canvas


def pixels(samples: Tensor) -> np.ndarray:
    """Returns samples in [-1, 1], shape (n, *shape), as pictures: uint8, shape (n, 1 or 3, height, width).

    Three channels (n, 3, height, width) are a colour. Of any other shape the last two axes are a grey picture, and what
    stands before them lies side by side: two channels, the four of a latent, the frames of a film; a vector is one line
    of grey. NaN is black. Of a side of more than 4,096 every k-th pixel is kept.
    """
    import torch

    x = samples.detach()
    x = (x.real if x.is_complex() else x).float().nan_to_num(nan=-1.0)
    levels = x.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).cpu().numpy()
    if levels.ndim != 4 or levels.shape[1] != 3:
        n, *rest = levels.shape
        *tiles, h, w = (1, 1, *rest)[-max(2, len(rest)) :]
        levels = levels.reshape(n, math.prod(tiles), h, w).swapaxes(1, 2).reshape(n, 1, h, math.prod(tiles) * w)
    down, across = (max(1, -(-side // SIDE)) for side in levels.shape[2:])
    return levels[:, :, ::down, ::across]


def png(images: Tensor, file: BinaryIO, *, columns: int | None = None) -> None:
    """Writes samples in [-1, 1], shape (n, *shape), as one PNG sheet of their `pixels` into an open file.

    It shows the first of them, as many as fit into 4,096 x 4,096 pixels.
    """
    from fewstep.files import extra

    image = extra("PIL.Image", "diffusers", "writing a PNG sheet")
    h, w = pixels(images[:1]).shape[2:]
    most = max(1, SIDE**2 // ((h + GAP) * (w + GAP)))
    image.fromarray(sheet(pixels(images[:most]), columns=columns)).save(file, format="PNG")
