"""What is fitted for: noises, conditions and the end states that a run of many calls takes them to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.base import as_denoiser
from fewstep.loop import sample
from fewstep.loop.seen import Seen
from fewstep.noise import Noise
from fewstep.process.base import Process
from fewstep.saved import Saved
from fewstep.tableau import Tableau
from fewstep.terminal import Bar

__all__ = ["FIRST", "Task", "record"]

FIRST = 2**31  # number of the first noise: apart from those that samples are drawn with


@dataclass(frozen=True, kw_only=True)
class Task:
    """The runs a solver is fitted on and judged by: number i of `samples` for the fit, then `held_out` more."""

    conditioned: Callable[[slice], Any]  # the denoiser of a slice of the runs
    process: Process  # the process
    shape: tuple[int, ...]  # of one sample, in data space
    samples: int  # how many runs
    held_out: int
    batch: int  # runs a network call
    seed: int  # of the noises
    dtype: torch.dtype = torch.float32  # of the states
    device: torch.device | str = "cpu"
    along: tuple[int, ...] = ()  # rows whose first states are kept too

    def slices(self, *, held_out: bool) -> list[slice]:
        """The batches of the runs for the fit, or of those held out."""
        low, high = (self.samples, self.samples + self.held_out) if held_out else (0, self.samples)
        return [slice(i, min(i + self.batch, high)) for i in range(low, high, self.batch)]

    def start(self, where: slice) -> Tensor:
        """The start states of some runs as the loop walks them, which on bridges is u (`fewstep.process.bridge`)."""
        shape = (where.stop - where.start, *self.process.state_shape(self.shape))
        noise = Noise(self.seed, FIRST + where.start).normal("initial", 0, shape, dtype=self.dtype, device=self.device)
        return self.seen(where).drawn(self.process.prior(noise, self.process.t_max), self.process.t_max)

    def seen(self, where: slice) -> Seen:
        """How people see some runs: on bridges with the other end y of each."""
        return Seen.of(as_denoiser(self.conditioned(where)), self.process)[1]

    def run(self, table: Tableau, where: slice) -> Tensor:
        """The end states of a table, in data space; with `along` the states there too, the last one first."""
        kept: dict[int, Tensor] = {}

        def keep(row: int, t: object, z: Tensor, x0: object) -> None:  # noqa: ARG001
            if row in self.along:
                kept[row] = z.clone()

        start = self.seen(where).state(self.start(where), self.process.t_max)
        z = sample(self.conditioned(where), self.process, solver=table, x=start, progress=False,
                   callback=keep if self.along else None)  # fmt: skip
        end = self.process.to_data(z)
        return torch.stack([end, *(kept[row] for row in sorted(kept, reverse=True))], 1) if kept else end


def record(task: Task, table: Tableau, saved: Saved, *, progress: bool = True) -> Tensor:
    """The end states of all runs, (samples + held_out, *shape) on the CPU; kept, and taken up, where `saved` says."""
    ends: list[Tensor] = [t for t in saved.read().values() for t in t.split(task.batch)]
    done = sum(map(len, ends))
    parts = (*task.slices(held_out=False), *task.slices(held_out=True))
    left = [slice(max(where.start, done), where.stop) for where in parts if where.stop > done]
    with Bar(len(left), "recording the teacher", shown=progress) as bar:
        for where in left:
            ends.append(task.run(table, where).cpu())
            saved.write({"ends": torch.cat(ends)}, now=where is left[-1])
            bar.advance()
    return torch.cat(ends)
