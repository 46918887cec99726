"""What a person sees of a training run: a bar with loss and time left, or plain lines where no terminal is."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.train.trainer import Trainer

__all__ = ["Progress", "duration"]


class Progress:
    """Reports steps: with rich on a terminal a bar, else one line a minute (and one for the first step).

    Args:
        lines_every: seconds between plain lines.
        quiet: shows nothing.
    """

    def __init__(self, *, lines_every: float = 60.0, quiet: bool = False) -> None:
        self.lines_every, self.quiet = lines_every, quiet
        self._bar: Any = None
        self._loss: float | None = None
        self._printed = -float("inf")
        self._start: tuple[float, float] | None = None  # (seconds, images) when this process began

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and not self.quiet:
            with suppress(ModuleNotFoundError):
                from rich.console import Console
                from rich.progress import BarColumn, Progress as RichProgress, TextColumn

                columns = (
                    TextColumn("training"),
                    BarColumn(),
                    TextColumn("{task.percentage:5.1f} %  {task.description}"),
                )
                self._bar = RichProgress(*columns, console=Console(stderr=True))
                self._bar.add_task("", total=1.0)
                self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, trainer: Trainer, loss: float) -> None:
        """Takes one step's loss."""
        self._loss = loss if self._loss is None else 0.99 * self._loss + 0.01 * loss
        images = trainer.step * trainer.config.batch
        if self._start is None:
            self._start = (trainer.seconds, images)
        if self.quiet:
            return
        share, run = trainer.progress(), trainer.seconds - self._start[0]
        speed = f"{(images - self._start[1]) / run:.0f} images/s  " if run > 0 else ""
        left = trainer.seconds * (1 - share) / max(share, 1e-9)
        text = f"{images:,} images  loss {self._loss:.4f}  {speed}{duration(left)} left"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=share, description=text)
        elif time.monotonic() - self._printed >= self.lines_every:
            self._printed = time.monotonic()
            print(f"step {trainer.step}  {100 * share:.1f} %  {text}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Prints one line beside the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif not self.quiet:
            print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 12 min, 3 h 05 min."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
