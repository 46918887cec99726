"""A bench: contenders made ready, the best of them chosen, all of these measured on the same noises."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.bench.cell import Cell, Study
from fewstep.bench.contender import Contender, Prepared
from fewstep.process import Process
from fewstep.quality import Yardstick

__all__ = ["Entry", "Made", "enter", "make", "preselect"]

ALIKE = 0.2  # of its distance to exact: who differs less from another contender makes the same samples, up to rounding
TWIN = 0.02  # the same where the distance to exact does not decide: far from it, other methods differ by little of it
HUGE = 1e30  # of a feature; beyond it the products of two overflow in float64
FAR = 2.0  # times the distance of the last one kept: who is as far on an eighth of the noises is not among the best


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A contender at one number of calls: ready to run, or the sentence why not."""

    contender: Contender
    calls: int
    run: Prepared | None = None
    failed: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """The samples of an entry: per seed what `Study.make` returns, or the sentence why there are none."""

    entry: Entry
    seeds: tuple[dict[str, Tensor], ...] = ()
    failed: str = ""

    @property
    def rmse(self) -> float:
        """Root mean square distance to the exact end states, over samples and their entries; infinite after failure."""
        if not self.seeds:
            return math.inf
        return float(torch.cat([seed["error"] for seed in self.seeds]).mean().sqrt())


def enter(contenders: Iterable[Contender], process: Process, calls: Sequence[int]) -> list[Entry]:
    """Every contender at every number of calls at which it exists."""
    found: list[Entry] = []
    for contender in contenders:
        for n in calls:
            if contender.counts is not None and n not in contender.counts:
                continue
            try:
                found.append(Entry(contender=contender, calls=n, run=contender.prepare(process, n)))
            except Exception as error:  # a peer raises what it likes, and none may stop the others
                found.append(Entry(contender=contender, calls=n, failed=reason(error)))
    return found


def make(study: Study, entry: Entry, count: int, seeds: Sequence[int], *, seen: bool = True) -> Made:
    """The samples of an entry on every seed; what goes wrong in it is told and not raised."""
    if entry.run is None:
        return Made(entry=entry, failed=entry.failed)
    try:
        cells = [Cell(run=entry.run, seed=seed, seen=seen) for seed in seeds]
        return Made(entry=entry, seeds=tuple(study.make(cell, count) for cell in cells))
    except OSError:
        raise  # the disk, not the contender
    except Exception as error:
        return Made(entry=entry, failed=reason(error))


def preselect(
    study: Study,
    entries: Sequence[Entry],
    keep: int,
    count: int,
    seed: int,
    report: Callable[[Made], object],
    yardstick: Yardstick | None = None,
) -> tuple[list[Entry], list[dict[str, Any]]]:
    """The `keep` entries of each group and number of calls that come nearest to the exact end states of `count` noises.

    Those that are twice as far as the `keep`-th best on the first eighth of the noises are left out there. Of entries
    that make the same samples (two libraries' names for one method) only the first is kept.

    With a yardstick the nearest are those of the smallest Frechet distance to its real features; of the first eighth,
    or of 16 noises, four times `keep` remain. The whole ranking is returned beside them.
    """
    distance = (lambda m: m.rmse) if yardstick is None else partial(_frechet, yardstick)
    early = max(1, count // 8) if yardstick is None else min(max(16, count // 8), count)
    ranking: list[dict[str, Any]] = []
    chosen: list[Entry] = []
    for group, calls in dict.fromkeys((entry.contender.group, entry.calls) for entry in entries):
        left = [entry for entry in entries if (entry.contender.group, entry.calls) == (group, calls)]
        rows: dict[str, dict[str, Any]] = {}
        best: list[Made] = []
        for images in (early, count):
            if not left:
                break
            made = [make(study, entry, images, [seed], seen=yardstick is not None) for entry in left]
            far = {id(m): distance(m) for m in made}
            made.sort(key=lambda m: far[id(m)])
            limit = FAR * made[min(keep, len(made)) - 1].rmse if yardstick is None else far[id(made[: 4 * keep][-1])]
            left = [m.entry for m in made if m.seeds and far[id(m)] <= limit]
            for m in made:
                report(m)
                name = m.entry.contender.name
                rows[name] = {"name": name, "group": group, "calls": calls, "images": images, "rmse": m.rmse,
                              **({"frechet": far[id(m)]} if yardstick else {}),
                              "failed": m.failed, "chosen": False}  # fmt: skip
            best = made
        best = _different([m for m in best if m.seeds], keep, ALIKE if yardstick is None else TWIN)
        for m in best:
            rows[m.entry.contender.name]["chosen"] = True
        ranking += sorted(rows.values(), key=lambda row: (-row["images"], row["frechet" if yardstick else "rmse"]))
        chosen += [m.entry for m in best]
    return chosen, ranking


def _frechet(yardstick: Yardstick, made: Made) -> float:
    """Of the samples of the first seed; infinite after failure, or where they are too far for a covariance."""
    features = made.seeds[0]["features"] if made.seeds else None
    return math.inf if features is None or not float(features.abs().max()) < HUGE else yardstick.frechet(features)


def _different(made: Sequence[Made], most: int, alike: float) -> list[Made]:
    """The first `most` that make other samples than those before them, by the root mean square of the first of them."""
    kept: list[Made] = []
    for m in made:
        apart = [float((m.seeds[0]["shown"] - other.seeds[0]["shown"]).square().mean().sqrt()) for other in kept]
        if len(kept) < most and not any(d < alike * other.rmse for d, other in zip(apart, kept, strict=True)):
            kept.append(m)
    return kept


def reason(error: Exception) -> str:
    """An error in one line."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if isinstance(error, ValueError) else f"{type(error).__name__}: {words}"
