"""Many samples of a model, a batch at a time, and how long they took: for the command line and for measuring."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Counted, guide
from fewstep.denoiser.base import range_of
from fewstep.denoiser.compiled import compiled, with_networks
from fewstep.loop import solve
from fewstep.loop.ends import Beyond, beyond
from fewstep.loop.memory import InPieces, Room
from fewstep.loop.tabulate import informed, table_of
from fewstep.model import Model
from fewstep.solver import Driver
from fewstep.solver.driver.base import ENDS, Outcome
from fewstep.tableau import Tableau
from fewstep.terminal import telling

__all__ = ["Drawn", "bare", "conditioned", "draw", "suited", "table_for"]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What `draw` returns."""

    samples: Tensor  # (num, *shape) float32 in data space, on the CPU; without those that are set aside
    aside: dict[int, str]  # the numbers of the samples that were set aside, and why, in a sentence
    calls: int  # network calls of a sample, counted; of a driver, whose samples differ, the mean
    evaluations: int  # of the network for a sample, counted where it is called: two for a guided call
    seconds: float  # for all of them
    # what of the samples lies far outside the data's range, where that is known; None where nothing does
    beyond: Beyond | None = None

    @property
    def images(self) -> Tensor:
        """The samples as pictures: cut off at [-1, 1]."""
        return self.samples.clamp(-1, 1)

    def kept(self, values: Sequence[Any] | None) -> list[Any] | None:
        """Of one value a number (labels), those of `samples`."""
        return None if values is None else [v for k, v in enumerate(values) if k not in self.aside]


def draw(
    model: Model,
    solver: Tableau | Driver,
    *,
    num: int,
    labels: Sequence[int] | None = None,
    y: Tensor | None = None,
    guidance: float = 1.0,
    seed: int = 0,
    begin: int = 0,
    batch: int = 64,
    final: str = "zero",
    device: str | torch.device = "cpu",
    memory: int | str | None = None,
    compile: bool = False,
    strict: bool = True,
    progress: bool | Callable[[float], object] = False,
    **options: Any,
) -> Drawn:
    """Samples `num` images, `batch` at a time; sample k has the noise and the label of its number, whatever the batch.

    Args:
        solver: a table on the model's process, or a driver.
        labels: class numbers, (num,), or None for none.
        y: (num, *shape), what a model is given that restores pictures.
        begin: the number of the first sample.
        guidance: scale of classifier-free guidance, as in `fewstep.guide`; 1 is none.
        seed, final, device: as in `fewstep.sample`.
        batch: samples a network call.
        memory: as in `fewstep.sample`: the most that the process may hold; a call takes fewer samples where it must.
        compile: as in `fewstep.sample`.
        strict: raise a ValueError where a sample is not finite or does not reach the end; False sets it aside, and
            raises where none is left.
        progress: a function that is told the share of the work that is done, 0 to 1; or True for a bar.
        options: `grid`, `steps` and `nfe` of a driver, as in `fewstep.sample`.
    """
    parts, calls, samples, tally, began = [], set(), 0, _Tally(), time.perf_counter()
    aside: dict[int, str] = {}
    within = math.inf
    room = None if memory is None else Room(memory, device)
    with telling(progress, "sampling") as tell, model.pace.threaded():
        for first in range(0, num, batch):
            size = min(batch, num - first)
            here = slice(first, first + size)
            plain = conditioned(model, labels and labels[here], guidance, None if y is None else y[here].to(device))
            within = range_of(plain)
            plain = with_networks(compiled(plain) if compile else plain, partial(_Tallied, tally=tally))
            denoiser = Counted(plain if room is None else InPieces(plain, room))
            arguments: dict[str, Any] = {"solver": solver, "shape": (size, *model.shape), "seed": seed,
                                         "first": begin + first, "final": final, "device": device,
                                         **options}  # fmt: skip
            outcome = solve(denoiser, model.process, **arguments,
                            progress=lambda share, k=first, n=size: tell((k + share * n) / num))  # fmt: skip
            found = _failed(outcome)
            if found and (strict or len(found) == num):
                outcome.checked()
            aside |= {first + k: why for k, why in found.items()}
            z = outcome.state[[k for k in range(size) if k not in found]] if found else outcome.state
            if not found:
                calls.add(denoiser.calls)
            parts.append((z if final == "denoise" else model.process.to_data(z)).float().cpu())
            samples += denoiser.evaluations
    if len(aside) == num:
        raise ValueError(f"got {num} samples, none of which is whole; the first: {aside[0]}")
    if len(calls) > 1 and isinstance(solver, Tableau):
        raise AssertionError(f"batches of one run took {sorted(calls)} network calls")
    drawn = torch.cat(parts)
    return Drawn(samples=drawn, aside=aside, calls=round(samples / num), evaluations=round(tally.count / num),
                 seconds=time.perf_counter() - began, beyond=beyond(drawn, within))  # fmt: skip


def _failed(outcome: Outcome) -> dict[int, str]:
    """The samples of a batch that did not reach the end or are not finite there, and why."""
    finite, end = outcome.state.flatten(1).isfinite().all(1).tolist(), "reached the end"
    ends = [
        status if status != end or whole else "not finite" for status, whole in zip(outcome.status, finite, strict=True)
    ]
    return {k: ENDS[status] for k, status in enumerate(ends) if status != end}


def conditioned(
    model: Any, labels: Sequence[int] | None, guidance: float, y: Tensor | None = None
) -> Callable[[Tensor, Any], Any]:
    """The denoiser of samples with these class numbers, guided (as in `fewstep.guide`) where the scale is not 1.

    A model is what has `denoiser(labels)`, of which `denoiser(None)` is unconditional; y is what one that restores is
    given.
    """
    given = {} if y is None else {"y": y}
    if getattr(model, "takes_w", False):  # a student of guided calls is told how far
        return model.denoiser(labels, w=guidance - 1, **given)
    denoiser = model.denoiser(labels, **given)
    return denoiser if guidance == 1 else guide(denoiser, model.denoiser(None, **given), guidance)


def bare(model: Any, guidance: float) -> Callable[[Tensor, Any], Any]:
    """The denoiser that tells what a model is, and is not called: without a label where there is one without."""
    y = torch.zeros(1, *model.shape) if getattr(model, "given", False) else None
    return conditioned(model, None if getattr(model, "free", True) else [0], guidance, y)


def suited(solver: Any, model: Any, guidance: float) -> Any:
    """The default solver as it is for a model and a guidance scale; any other as it is."""
    return informed(solver, bare(model, guidance), model.shape)


def table_for(model: Any, solver: Any, guidance: float, **options: Any) -> Tableau:
    """The table that a model runs by (`fewstep.loop.tabulate.table_of`); options: its grid, steps, nfe, final."""
    return table_of(bare(model, guidance), model.process, solver, model.shape, **options)


@dataclass(eq=False)
class _Tally:
    count: int = 0


@dataclass(frozen=True)
class _Tallied:
    """A network that counts the samples it is called with; two of one network are equal, so they still run as one."""

    net: Callable[..., Any]
    tally: _Tally

    def __call__(self, x: Tensor, *args: Any, **conditions: Any) -> Any:
        self.tally.count += len(x)
        return self.net(x, *args, **conditions)
