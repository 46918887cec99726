r"""The descent: Adam on the unrolled table, in coordinates in which the end states feel all numbers alike.

The free numbers are far from alike: predictions of neighbouring calls hardly differ, so that some directions move the
end states a thousand times as much as others. J, the derivative of the end states of a few runs, is found once by
differences (one run a number, no gradient), and the vector is written as

$$ p = p_0 + W q, \qquad W = (J^T J / N + \epsilon I)^{-1/2}, $$

so that a step of length 1 in q moves end states by an RMSE of about 1: the Gauss-Newton metric, kept through the fit.
Gradients come from the loop itself on a table of tensors (`fewstep.fitting.freedom`), each network call under
`torch.utils.checkpoint`: memory is the states of one run and the activations of one call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fewstep.fitting.freedom import Freedom
from fewstep.fitting.objective import Objective, paired
from fewstep.fitting.teacher import Task
from fewstep.loop.plan import Plan
from fewstep.loop.walk import walk
from fewstep.saved import Saved
from fewstep.tableau import Tableau
from fewstep.terminal import Bar
from fewstep.words import Typed, whole, within

__all__ = ["Descent", "descend", "judge"]

_PROBE = -0.02  # by how much a number is moved to see what it does; the first call can only move towards data
_RUNS = 32  # that are looked at for it
_ENTRIES = 2**22  # of J at most: beyond, coordinates of the end states are left out evenly
_FLAT = 1e-3  # eps, as a share of the mean curvature
_ASTRAY = 0.5  # above the best held-out loss, in units of the start's
_BETAS = (0.9, 0.98)  # of Adam: a fit has a few hundred iterations


@dataclass(frozen=True, kw_only=True)
class Descent(Typed):
    """How a fit goes down.

    Args:
        iterations: of Adam, one batch each.
        rate: length of the first steps, as a share of the start's error; it falls to zero along a cosine.
        every: iterations between looks at the held-out runs.
        patience: looks without a new best after which the fit ends.
    """

    iterations: int = 300
    rate: float = 0.15
    every: int = 10
    patience: int = 10

    def __post_init__(self) -> None:
        for name in ("iterations", "every", "patience"):
            whole(name, getattr(self, name))
        within(self, rate="(0, inf)")


def descend(
    freedom: Freedom, task: Task, ends: Tensor, objective: Objective, descent: Descent, *, saved: Saved, progress: bool
) -> tuple[Tableau, Tensor]:
    """The best table on the held-out runs, and the looks on the way, (looks, 2): iteration and held-out loss.

    With what was `saved` the same call goes on where a stopped one was, to the same numbers.
    """
    now = saved.read()
    if not now:
        now = _beginning(freedom, task, ends, objective, progress)
        saved.write(now, now=True)
    size = min(task.batch, task.samples)
    batches = [where for where in task.slices(held_out=False) if where.stop - where.start == size]  # whole ones
    with Bar(descent.iterations - int(now["done"]), "fitting the solver", shown=progress) as bar:
        while (done := int(now["done"])) < descent.iterations:
            if len(now["looks"]) - 1 - int(now["looks"][:, 1].argmin()) >= descent.patience:
                break
            rounds, place = divmod(done, len(batches))  # all batches in a new order each time round
            generator = torch.Generator().manual_seed(task.seed * 65537 + rounds)
            where = batches[int(torch.randperm(len(batches), generator=generator)[place])]
            gradient = now["metric"] @ _gradient(freedom, task, _vector(freedom, now), where, ends[where], objective)
            share = (1 + math.cos(math.pi * done / descent.iterations)) / 2
            _step(now, gradient, share * float(now["scale"]) * descent.rate / math.sqrt(len(gradient)))
            if (done + 1) % descent.every == 0 or done + 1 == descent.iterations:
                _look(now, judge(freedom.fitted(_vector(freedom, now)), task, ends, objective))
            saved.write(now)
            bar.advance()
    saved.write(now, now=True)
    return freedom.fitted(_vector(freedom, now, "best")), now["looks"]


def judge(table: Tableau, task: Task, ends: Tensor, objective: Objective) -> float:
    """The objective on the held-out runs."""
    parts = [(task.run(table, where).cpu(), ends[where]) for where in task.slices(held_out=True)]
    with torch.no_grad():
        return float(objective(*(torch.cat(side) for side in zip(*parts, strict=True))))


def _beginning(freedom: Freedom, task: Task, ends: Tensor, objective: Objective, progress: bool) -> dict[str, Tensor]:
    """What a descent has before its first step."""
    zero = torch.zeros_like(freedom.origin)
    start = freedom.fitted(freedom.origin)
    loss, error = judge(start, task, ends, objective), math.sqrt(judge(start, task, ends, paired))
    return {
        "scale": torch.tensor(error, dtype=torch.float64),
        "done": torch.tensor(0),
        "metric": _metric(freedom, task, progress),
        "q": zero,
        "mean": zero.clone(),
        "square": zero.clone(),
        "best": zero.clone(),
        "looks": torch.tensor([[0.0, loss]], dtype=torch.float64),
    }


def _metric(freedom: Freedom, task: Task, progress: bool) -> Tensor:
    """W of the module docstring, from a few runs of the fit."""
    where = slice(0, min(_RUNS, task.samples))
    base = task.run(freedom.fitted(freedom.origin), where).flatten()
    stride = max(1, len(base) * len(freedom.origin) // _ENTRIES)
    columns = []
    with Bar(len(freedom.origin), "measuring what each number does", shown=progress) as bar:
        for move in _PROBE * torch.eye(len(freedom.origin), dtype=torch.float64):
            there = task.run(freedom.fitted(freedom.origin + move), where).flatten()
            columns.append((there - base)[::stride].double().cpu() / _PROBE)
            bar.advance()
    J = torch.stack(columns, 1)
    curvature, axes = torch.linalg.eigh(J.mT @ J / len(J))
    floor = (_FLAT * curvature.mean()).clamp(min=1e-12)
    return (axes / (curvature.clamp(min=0) + floor).sqrt()) @ axes.mT


def _vector(freedom: Freedom, now: dict[str, Tensor], which: str = "q") -> Tensor:
    return freedom.origin + now["metric"] @ now[which]


def _gradient(
    freedom: Freedom, task: Task, vector: Tensor, where: slice, wanted: Tensor, objective: Objective
) -> Tensor:
    """The gradient of the objective on a batch."""
    vector, start, denoiser = vector.clone().requires_grad_(), task.start(where), task.conditioned(where)

    def checkpointed(z: Tensor, t: Tensor) -> Any:
        """The denoiser, its times differentiated too, its activations made again on the way back."""
        return checkpoint(denoiser, z, t.expand(len(z)), use_reentrant=False)

    plan = Plan.of(freedom.table(vector), checkpointed, like=start, reuse=False)
    last = float(freedom.grid[-1])
    end = task.process.to_data(task.seen(where).state(walk(plan, start), last))
    (gradient,) = torch.autograd.grad(objective(end, wanted.to(end)), vector)
    if not bool(gradient.isfinite().all()):
        raise ValueError("got a gradient that is not finite: give a smaller Descent(rate=...), or a float32 network")
    return gradient


def _step(now: dict[str, Tensor], gradient: Tensor, size: float) -> None:
    """One step of Adam, in place."""
    done = int(now["done"]) + 1
    for name, beta, value in zip(("mean", "square"), _BETAS, (gradient, gradient**2), strict=True):
        now[name].mul_(beta).add_(value, alpha=1 - beta)
    mean, square = (now[name] / (1 - beta**done) for name, beta in zip(("mean", "square"), _BETAS, strict=True))
    now["q"].sub_(size * mean / (square.sqrt() + 1e-30))
    now["done"] += 1


def _look(now: dict[str, Tensor], loss: float) -> None:
    """Notes the held-out loss, and the vector where it is the best; a descent that went astray goes back, slower."""
    best = float(now["looks"][:, 1].min())
    if loss < best:
        now["best"] = now["q"].clone()
    elif not loss < best + _ASTRAY * abs(float(now["looks"][0, 1])):
        now |= {"q": now["best"].clone(), "scale": now["scale"] / 2}
        now |= {name: torch.zeros_like(now["q"]) for name in ("mean", "square")}
    now["looks"] = torch.cat([now["looks"], torch.tensor([[float(now["done"]), loss]], dtype=torch.float64)])
