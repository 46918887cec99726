"""What a person sees while waiting and afterwards: a progress bar, a table, a sheet of pictures."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Bar", "png", "sheet", "table", "telling"]


class Bar:
    """A progress bar on the terminal, shown only where a person waits: a terminal, and longer than `after` seconds.

        with Bar(total=100, what="sampling") as bar:
            bar.advance()

    rich draws it where it is installed; otherwise one line is rewritten in place.
    """

    def __init__(self, total: int, what: str, *, after: float = 2.0) -> None:
        self.total, self.what, self.after = total, what, after
        self.done = 0.0
        self._began = time.monotonic()
        self._terminal = sys.stderr.isatty()
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


def sheet(images: np.ndarray, *, columns: int | None = None, gap: int = 2, width: int = 640) -> np.ndarray:
    """Returns one picture of many, row by row.

    Arguments:
        images: uint8, shape (n, 1 or 3, height, width).
        columns: pictures a row; by default the sheet is about square.
        gap: white pixels between pictures, before enlargement.
        width: small sheets are enlarged by a whole factor to come near this many pixels.

    Returns:
        uint8, shape (rows, columns) for grey pictures and (rows, columns, 3) for coloured ones.
    """
    n, channels, h, w = images.shape
    columns = columns or max(1, round(n**0.5))
    rows = -(-n // columns)
    canvas = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, channels), 255, dtype=np.uint8)
    for k, image in enumerate(images):
        top, left = gap + k // columns * (h + gap), gap + k % columns * (w + gap)
        canvas[top : top + h, left : left + w] = image.transpose(1, 2, 0)
    scale = max(1, width // canvas.shape[1])
    canvas = canvas.repeat(scale, axis=0).repeat(scale, axis=1)
    return canvas[:, :, 0] if channels == 1 else canvas


def png(images: Tensor, file: BinaryIO, *, columns: int | None = None) -> None:
    """Writes images in [-1, 1], shape (n, 1 or 3, height, width), as one PNG sheet into an open file."""
    from fewstep.files import extra

    image = extra("PIL.Image", "diffusers", "writing a PNG sheet")
    pixels = images.clamp(-1, 1).add(1).mul(127.5).round().byte().cpu().numpy()
    image.fromarray(sheet(pixels, columns=columns)).save(file, format="PNG")
