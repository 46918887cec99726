r"""From samples to numbers: what a contender's samples are worth, and what the differences are worth.

- Frechet distance F to real features, mean over seeds. Its interval: Student's over seeds where there are three or
  more, else F plus and minus 1.96 standard deviations of resamples. F is biased upwards by about 1/samples, for all
  contenders alike.
- `gap`: F minus that of the best peer at the same calls, on a grid of its own, and `ratio`: F over that of the exact
  end states of its kind. Their 95 %
  intervals are basic bootstraps over samples with the same resamples on both sides, since samples with one number
  share noise and class. A contender is not worse than a peer within its interval when that holds 0 or lies below.
- Kernel distance with its jackknife error, and precision, recall, density, coverage (k = 5), all seeds together.
- Root mean square distance to the exact end states, with its bootstrap interval.
- The smallest and the largest entry of all samples.
- Milliseconds a sample, of the fastest 256 in a row: other work on the machine can only slow them down.

Without real features everything but the last is left out, and the gap is that of the distance to the exact end states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from fewstep.bench.contender import PEERS, SAME
from fewstep.bench.features import Real
from fewstep.bench.run import Made
from fewstep.quality import Yardstick, interval, kernel_distance, neighbours, resamples

__all__ = ["Meter", "Row"]

Row = dict[str, Any]
Seed = dict[str, Tensor]  # what `Study.make` returns
NEAREST = 4096  # samples of the neighbour metrics, whose work grows with the square
STUDENT = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}  # 97.5 %, degrees of freedom


class Meter:
    """Measures contenders of `images` samples a seed against real features, where there are any, and each other.

    By so many resamples as `times`; with `whole` kernel distance and neighbours too, most of the work at few samples.
    """

    def __init__(self, real: Real | None, images: int, seeds: int, times: int = 200, *, whole: bool = True) -> None:
        self.images, self.whole = images, whole
        self.counts = [resamples(images, times, seed=k) for k in range(seeds)]
        self.real: Any = real
        self.yardstick: Any = Yardstick(real.reference) if real is not None else None

    def rows(
        self, made: Sequence[Made], exact: Sequence[Seed], calls: int, tick: Callable[[], object] = lambda: None
    ) -> list[Row]:
        """A row for each contender and number of calls, then the exact end states (of `calls`) and the floor.

        `made` are the contenders' samples, `exact` those of the exact end states, by seed; `tick` is called twice each.
        """
        ends = self._exact(exact, calls)
        drawn: dict[int, tuple[float, Tensor]] = {}
        found: list[Row] = []
        for m in made:
            if m.seeds:
                drawn[id(m)] = self._drawn(m.seeds)
            tick()
        for n in sorted({m.entry.calls for m in made}):
            here = [m for m in made if m.entry.calls == n]
            best = self._best(here, drawn)
            for m in here:
                tick()
                row: Row = {"name": m.entry.contender.name, "group": m.entry.contender.group, "calls": n}
                if not m.seeds or m.entry.run is None:
                    found.append(row | {"failed": m.failed})
                    continue
                row |= {"network_calls": m.entry.run.calls, **self._quality(m.seeds), "rmse": m.rmse,
                        "rmse_interval": interval(m.rmse, self._resampled(m.seeds))}  # fmt: skip
                value, again = drawn[id(m)]
                if self.yardstick:
                    row |= {"frechet": value, "frechet_interval": self._frechet_interval(m.seeds, value, again)}
                    limit, limits = ends[m.entry.run.end][1]
                    row |= {"ratio": value / limit, "ratio_interval": interval(value / limit, again / limits)}
                if best is not None and m is not best:
                    gap, apart = value - drawn[id(best)][0], again - drawn[id(best)][1]
                    low, high = interval(gap, apart)
                    verdict = "better" if high < 0 else "worse" if low > 0 else "even"
                    row |= {"against": best.entry.contender.name, "gap": gap, "gap_interval": (low, high),
                            "verdict": verdict}  # fmt: skip
                found.append(row)
        used = dict.fromkeys(m.entry.run.end for m in made if m.seeds and m.entry.run)
        found += [ends[end][0] for end in ("state", "data") if end in used or end == "state"]
        return [*found, self._floor()] if self.yardstick else found

    def _exact(self, seeds: Sequence[Seed], calls: int) -> dict[str, tuple[Row, tuple[float, Tensor]]]:
        """The row of each kind of exact end states, and what `_drawn` says of it."""
        found: dict[str, tuple[Row, tuple[float, Tensor]]] = {}
        for end, name, key in (("state", "exact end states", "features"),
                               ("data", "exact at sigma = 0", "features at zero")):  # fmt: skip
            sets = [s | {"features": s[key]} for s in seeds]
            row: Row = {"name": name, "group": "exact", "calls": calls, "network_calls": calls + (end == "data")}
            row |= self._quality(sets)
            drawn = math.nan, torch.empty(0)
            if self.yardstick:
                drawn = self._drawn(sets)
                row |= {"frechet": drawn[0], "frechet_interval": self._frechet_interval(sets, *drawn)}
            found[end] = row, drawn
        return found

    def _best(self, made: Sequence[Made], drawn: dict[int, tuple[float, Tensor]]) -> Made | None:
        """The best peer on a grid of its own; on ours where there is none."""
        for group in (PEERS, SAME):
            peers = [m for m in made if m.seeds and m.entry.contender.group == group]
            if peers:
                return min(peers, key=lambda m: drawn[id(m)][0])
        return None

    def _drawn(self, seeds: Sequence[Seed]) -> tuple[float, Tensor]:
        """The number that contenders are compared by, and the same of every resample."""
        if self.yardstick is None:
            return float(torch.stack([s["error"].mean() for s in seeds]).mean().sqrt()), self._resampled(seeds)
        again = [self.yardstick.resampled(s["features"], counts)
                 for s, counts in zip(seeds, self.counts, strict=True)]  # fmt: skip
        value = sum(self.yardstick.frechet(s["features"]) for s in seeds) / len(seeds)
        return value, torch.stack(again).mean(0)

    def _frechet_interval(self, seeds: Sequence[Seed], value: float, again: Tensor) -> tuple[float, float]:
        half = 1.96 * float(again.std())
        if len(seeds) >= 3:
            each = torch.tensor([self.yardstick.frechet(s["features"]) for s in seeds], dtype=torch.float64)
            half = STUDENT.get(len(seeds) - 1, 2.26) * float(each.std()) / math.sqrt(len(seeds))
        return value - half, value + half

    def _resampled(self, seeds: Sequence[Seed]) -> Tensor:
        """The root mean square distance of every resample."""
        each = [counts.double() @ s["error"] / self.images for s, counts in zip(seeds, self.counts, strict=True)]
        return torch.stack(each).mean(0).sqrt()

    def _quality(self, seeds: Sequence[Seed]) -> Row:
        """Samples, seconds, and what all seeds' features say together."""
        count = self.images * len(seeds)
        seconds = float(sum(s["seconds"] for s in seeds))
        pace = min(float(s["pace"]) for s in seeds)
        low, high = float(min(s["span"].min() for s in seeds)), float(max(s["span"].max() for s in seeds))
        row: Row = {"images": count, "low": low, "high": high, "seconds": seconds, "ms_per_image": 1000 * pace}
        against = self.real and self.whole
        return row | (self._against_real(torch.cat([s["features"] for s in seeds])) if against else {})

    def _against_real(self, features: Tensor) -> Row:
        kernel = kernel_distance(self.real.reference, features)
        n = min(len(features), len(self.real.reference), NEAREST)
        near = asdict(neighbours(self.real.reference[:n], features[:n], k=min(5, n - 1)))
        return {"kernel": kernel.value, "kernel_error": kernel.error, **near}

    def _floor(self) -> Row:
        """As many other real samples, or as there are."""
        other = self.real.other[: self.images]
        row: Row = {"name": "real samples (floor)", "group": "floor", "images": len(other)}
        return row | {"frechet": self.yardstick.frechet(other), **(self._against_real(other) if self.whole else {})}
