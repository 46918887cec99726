"""What a person sees of a training run: a bar with loss and time left, or plain lines where no terminal is."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from itertools import pairwise
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fewstep.train.player import Players
    from fewstep.train.trainer import Trainer

__all__ = ["Bins", "Progress", "duration"]


class Bins:
    """The squared error of x0 by log-SNR: means over what was lately seen in each bin, of which no weight tells.

    Two runs compare by it whatever they learn by; where it is near the data's variance nothing is learned.
    """

    EDGES = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)

    def __init__(self) -> None:
        self.sums, self.counts = (torch.zeros(len(self.EDGES) + 1, dtype=torch.float64) for _ in range(2))

    def __call__(self, log_snr: Tensor, squared: Tensor) -> None:
        """A batch's numbers (B,)."""
        where = torch.bucketize(log_snr.cpu(), torch.tensor(self.EDGES, dtype=torch.float64))
        for kept, new in ((self.sums, squared.double().cpu()), (self.counts, torch.ones(len(where)).double())):
            kept.mul_(0.99).index_add_(0, where, new)

    def means(self) -> dict[str, float]:
        """By the bin's ends; of those in which anything was seen."""
        edges: tuple[str, ...] = ("", *(f"{edge:g}" for edge in self.EDGES), "")
        ends = [f"{low}..{high}" for low, high in pairwise(edges)]
        return {name: float(s / n) for name, s, n in zip(ends, self.sums, self.counts, strict=True) if n > 0}


class Progress:
    """Reports steps: with rich on a terminal a bar, else one line a minute (and one for the first step).

    A line has the run's loss, the norm of the network's gradient before it is clipped, speed and time left; the errors
    by log-SNR stand below.

    Args:
        lines_every: seconds between plain lines.
        quiet: shows nothing.
    """

    def __init__(self, *, lines_every: float = 60.0, quiet: bool = False) -> None:
        self.lines_every, self.quiet = lines_every, quiet
        self._bar: Any = None
        self._loss: float | None = None
        self._bins: Bins | None = None
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
        told = f"loss {self._loss:.4g}  gradient {float(trainer.players['net'].gradient):.2g}"
        text = f"{images:,} images  {told}  {speed}{duration(left)} left"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=share, description=text)
        elif time.monotonic() - self._printed >= self.lines_every:
            self._printed = time.monotonic()
            print(f"step {trainer.step}  {100 * share:.1f} %  {text}{self._by_bins()}", file=sys.stderr, flush=True)

    def watched(self, players: Players) -> None:
        """Shows their errors by log-SNR too, where anything is shown."""
        if not self.quiet:
            players.watch = self._bins = Bins()

    def _by_bins(self) -> str:
        means = {} if self._bins is None else self._bins.means()
        told = "  ".join(f"{name} {value:.2g}" for name, value in means.items())
        return f"\n    squared error of x0 by log-SNR: {told}" if told else ""

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
