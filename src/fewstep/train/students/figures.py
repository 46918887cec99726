"""How far a student is, on fixed noises: its distance to its teacher's ends, or to the data; and a sheet of pictures.

A loss says little of it: an adaptive one stays near 1, a consistency loss near what it began with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.files import atomic
from fewstep.loop import sample, tabulate
from fewstep.noise import Noise
from fewstep.process import Process
from fewstep.process.base import Time, to_tensor
from fewstep.tableau import Tableau
from fewstep.terminal import png
from fewstep.train.methods import Method
from fewstep.train.pairs import Batch
from fewstep.train.player import EMA, Student
from fewstep.train.source import Source
from fewstep.train.trainer import Trainer

__all__ = ["Figures", "energy"]

STREAM, FIRST = "initial", 2**30  # noises apart from those of samples, of pairs and of training
CALLS = {"a student without tables": 10, "a teacher": 40}
MOST = {"points": 512, "pictures": 32}


def energy(x: Tensor, y: Tensor) -> float:
    """The unbiased energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| of samples, over the deviation of y."""
    x, y, n, m = x.flatten(1), y.flatten(1), len(x), len(y)
    within = torch.cdist(x, x).sum() / (n * (n - 1)) + torch.cdist(y, y).sum() / (m * (m - 1))
    return float((2 * torch.cdist(x, y).mean() - within) / y.std())


@dataclass(frozen=True)
class Led:
    """A student as a denoiser that is told where a row leads, where its network is."""

    student: Student

    @property
    def destination(self) -> bool:
        return self.student.destination

    def __call__(self, z: Tensor, t: Time, to: Time | None = None) -> Tensor:
        return self.student(z, t, None if to is None else to_tensor(to).expand(len(z)))


class Figures:
    """The progress figure of a run; None for what is no denoiser, and for what is given another end.

    Args:
        trainer, method, process, source: of the run.
        classes: how many labels the network knows.
    """

    def __init__(self, trainer: Trainer, method: Method, process: Process, source: Source, classes: int) -> None:
        self.trainer, self.method, self.process, self.source = trainer, method, process, source
        pictures = len(source.shape) == 3
        count = min(MOST["pictures" if pictures else "points"], max(2, len(source.data)))
        shape = (count, *process.state_shape(source.shape))
        self.noise = Noise(0, FIRST).normal(STREAM, 0, shape, dtype=torch.float64)
        told: dict[str, Tensor] = {"class_labels": torch.arange(count) % classes + 1} if classes else {}
        told |= {"w": torch.zeros(count)} if method.guided else {}
        self.batch, self.ends = Batch(torch.empty(count, 0), told), None
        self.sheet = pictures and source.shape[0] in (1, 3)

    def __call__(self, path: Path | None = None) -> dict[str, float] | None:
        """By name: calls, and "map" and "median", distances to the teacher's ends over their deviation, or "energy".

        `path`: where pictures are written.
        """
        if not self.method.denoises or self.method.given:
            return None
        x, calls = self._samples()
        if path is not None and self.sheet:
            with atomic(path) as part, part.open("wb") as file:
                png(x.float(), file, columns=8)
        if self.trainer.players.given is None or not self.method.follows:
            if not self.source.data.any():  # there are none
                return None
            rows = np.random.default_rng(0).permutation(len(self.source.data))[: 4 * len(x)]
            return {"calls": calls, "energy": energy(x, self.source.floats(rows))}
        if self.ends is None:
            taught = self.trainer.players.given(self.batch, True)
            self.ends = self._run(taught, tabulate("dpmpp-2m", self.process, steps=CALLS["a teacher"]))
        off = (x - self.ends).flatten(1).norm(dim=1) / self.ends[0].numel() ** 0.5 / float(self.ends.std())
        return {"calls": calls, "map": float((off**2).mean().sqrt()), "median": float(off.median())}

    def _samples(self) -> tuple[Tensor, int]:
        """By the first of the student's tables, or by the default solver."""
        own = self.trainer.players["net"]
        tables = self.method.tables(self.process)
        table = next(iter(tables.values()), None) or tabulate(
            "default", self.process, steps=CALLS["a student without tables"]
        )
        return self._run(Led(own.at(self.batch, EMA)), table), table.nfe

    def _run(self, denoiser: Any, table: Tableau) -> Tensor:
        with torch.no_grad():
            z = self.process.prior(self.noise, float(table.grid[0]))
            z = sample(denoiser, self.process, solver=table, x=z, progress=False)
        return self.process.to_data(z).cpu()
