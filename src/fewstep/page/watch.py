"""A run that is watched: what the network makes of the state, after each of its calls.

The samples are those of the same run unwatched, to the bit: the denoiser is looked at, and the loop is not touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.base import Around, Denoiser, as_denoiser, of_samples
from fewstep.files import Results
from fewstep.model.record import npz
from fewstep.page.choice import Job
from fewstep.process import Process
from fewstep.process.base import Time
from fewstep.process.operator import apply
from fewstep.process.predict import conversion
from fewstep.solver import Outcome
from fewstep.tableau import Tableau
from fewstep.terminal import png

__all__ = ["Finished", "Frame", "Watched", "frames", "side_by_side"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """A run under way: the share of it that is done, and x0_hat (num, *shape) as each sample's last call left it."""

    run: Job
    share: float
    samples: Tensor

    def __str__(self) -> str:
        if not isinstance(self.run.solver, Tableau):
            return f"{self.run.name}: {self.share:.0%} of the way"
        return f"{self.run.name}: call {round(self.share * self.run.solver.nfe)} of {self.run.solver.nfe}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """A run at its end: what became of it, the samples in data space, and the seconds it ran for."""

    run: Job
    outcome: Outcome
    samples: Tensor
    seconds: float

    @property
    def calls(self) -> int:
        """Network calls of a sample; of a driver, whose samples differ, the mean."""
        return round(float(self.outcome.calls.double().mean()))

    def __str__(self) -> str:
        each = "each" if isinstance(self.run.solver, Tableau) else "on average"
        return f"{self.run.name}: {self.calls} network calls {each}, {self.seconds:.1f} s"

    def save(self, folder: str | Path) -> list[Path]:
        """Writes samples.npz, sheet.png, run.json and run.py into a folder; returns where they are."""
        record = self.run.record() | {"network_calls": self.calls, "seconds": round(self.seconds, 3)}
        with Results(folder) as results:
            samples = results.write("samples.npz", npz(self.samples, self.run.labels))
            sheet = results.write("sheet.png", partial(png, self.samples))
            python = results.write("run.py", lambda file: file.write(self.run.python.encode()))
            return [samples, sheet, results.record("run.json", record), python]


@dataclass(frozen=True, eq=False)
class Watched(Around):
    """A denoiser that keeps what it returned last in `seen` (num, *shape), and is the same otherwise."""

    denoiser: Denoiser  # what is watched
    process: Process  # its process
    seen: Tensor  # x0_hat of every sample of the run, in data space
    index: Tensor  # the samples that this one is for, as `of_samples` chose them

    def select(self, index: Tensor) -> Watched:
        """The same for some of its samples."""
        return replace(self, denoiser=of_samples(self.denoiser, index, len(self.index)), index=self.index[index])

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Any]:
        """An output of the denoiser, turned into x0_hat for the eyes alone; of one taken apart the model is seen."""
        call = self.denoiser.toward(t, output, to)
        if output in self.heads and output != "base":
            return call
        raw = output not in ("x0", "base")
        p, q = conversion(output, self.process, t) if raw else (0.0, 1.0)

        def watched(z: Tensor) -> Any:
            out = call(z)
            x0 = apply(p, z) + apply(q, out) if raw else out
            self._keep(x0 if output == "x0" else self.process.from_coordinates(x0))
            return out

        return watched

    def jointly(self, t: Time, *, to: Time | None = None) -> Callable[[Tensor], dict[str, Tensor]]:
        """X0_hat and the heads of the same evaluations."""
        call = self.denoiser.jointly(t, to=to)

        def watched(z: Tensor) -> dict[str, Tensor]:
            out = call(z)
            self._keep(out["x0"])
            return out

        return watched

    def _keep(self, x0: Tensor) -> None:
        self.seen[self.index] = x0.detach().to(self.seen)


class _Ended(Exception):
    """Nobody watches any more."""


def frames(run: Job) -> Generator[Frame | Finished, None, None]:
    """Runs, and gives a frame after each call, `Finished` at the end; closing it ends the run at its next call.

    The run waits while nobody asks for the next frame, so that two runs taken in turns do not slow each other.
    """
    told: SimpleQueue[Frame | Finished | BaseException] = SimpleQueue()
    go, ended = Semaphore(0), Event()
    seen = torch.zeros(run.choice.num, *run.model.shape)
    spent = 0.0

    def work() -> None:
        began, shown = time.perf_counter(), 0.0

        def tell(share: float) -> None:
            nonlocal began, shown, spent
            if share <= shown:
                return
            shown, spent = share, spent + time.perf_counter() - began
            told.put(Frame(run=run, share=share, samples=seen.clone()))
            go.acquire()
            if ended.is_set():
                raise _Ended
            began = time.perf_counter()

        try:
            outcome = run.solve(
                Watched(as_denoiser(run.denoiser), run.model.process, seen, torch.arange(len(seen))), tell
            )
            samples = run.model.process.to_data(outcome.state).float()
            told.put(Finished(run=run, outcome=outcome, samples=samples, seconds=spent))
        except BaseException as error:  # of any kind: it is raised where the frames are read
            told.put(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            got = told.get()
            if isinstance(got, BaseException):
                raise got
            yield got
            if isinstance(got, Finished):
                return
            go.release()
    finally:
        ended.set()
        go.release()
        thread.join()


def side_by_side(runs: Sequence[Job]) -> Generator[list[Frame | Finished], None, None]:
    """Runs in turns, and gives what each was seen at last; all have finished in the last that is given."""
    with ExitStack() as stack:
        watched = [stack.enter_context(closing(frames(run))) for run in runs]
        latest = [next(one) for one in watched]
        yield list(latest)
        while not all(isinstance(one, Finished) for one in latest):
            latest = [next(one, last) for one, last in zip(watched, latest, strict=True)]
            yield list(latest)
