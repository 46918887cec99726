"""The bench from end to end: what is asked -> contenders -> samples -> numbers -> tables and pictures in a folder."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.bench.cell import Cell, Study
from fewstep.bench.contender import Prepared, exact, is_table, ours, pairs, students, without
from fewstep.bench.features import Real, check_features, features_of, real
from fewstep.bench.measure import Meter, Row
from fewstep.bench.peers import peers
from fewstep.bench.run import Entry, Made, enter, make, preselect
from fewstep.bench.subject import subject
from fewstep.noise import STREAM
from fewstep.pace import Pace, hardware
from fewstep.process.config import process_to_json
from fewstep.quality import Yardstick
from fewstep.terminal import Bar
from fewstep.words import pick

__all__ = ["Asked", "Bench", "Measured", "check_words", "prepare"]

SOLVERS = ("default", "unipc-3", "dpmpp-2m", "ddim")
OPTIONS = ("guidance", "calls", "images", "seeds", "select", "select_images", "select_by", "exact", "resamples",
           "batch", "device")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a bench is asked for; the options of `fewstep bench`."""

    model: str | None = None  # a model folder, None (the shipped model) or file.py:object, see `fewstep.bench.subject`
    # NAME, NAME@GRID with * for any, table files, file.py:object; "default" is the process's own
    solvers: Sequence[str] = ()  # none: those of `SOLVERS`; of a student the default, which is its own table
    students: Sequence[str] = ()  # folders of students of the model, which run by their own tables
    peers: Sequence[str] | None = None  # patterns of other libraries' samplers; empty is all of them and None is none
    without: Sequence[str] = ()  # patterns of names to leave out
    guidance: float = 1.0  # scale of classifier-free guidance, for all contenders; 1 is none
    calls: Sequence[int] = ()  # network calls; none: 5, 10 and 20; of a student those it was made for
    images: int = 512  # samples of each contender, number of calls and seed
    seeds: Sequence[int] = (0,)  # of noises and classes
    select: int | None = None  # how many of each group are measured at each number of calls; None is all
    # samples by which they are chosen, of the first seed; by Frechet distance, of one of its own
    select_images: int = 256
    select_by: str = "rms"  # "rms", distance to the exact end states, or "frechet", distance to real samples
    exact: int = 100  # network calls of the run that stands for the exact end states
    features: str | None = None  # the feature space, see `fewstep.bench.features`
    data: str | None = None  # real samples
    resamples: int = 200  # of the paired bootstrap
    batch: int = 128  # samples a network call
    device: str = "cpu"  # where the network runs
    pace: Pace = field(default_factory=Pace)  # how it runs there; what it leaves open is measured
    out: str = "out/bench"  # the folder of the results


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a bench found."""

    rows: list[Row]  # the table: a contender at a number of calls each, then the exact end states and the floor
    ranking: list[Row]  # of the preselection; see `fewstep.bench.run.preselect`
    made: list[Made]  # the samples of the contenders
    exact: Tensor  # the first exact end states of the first seed


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Contenders ready to run on a subject."""

    asked: Asked  # what was asked for
    study: Study  # what their samples share
    real: Real | None  # features of real samples, or None
    entries: list[Entry]  # the contenders at each number of calls
    missing: dict[str, str]  # peer libraries that are not here, and why

    def work(self) -> dict[str, int]:
        """Samples times network calls still to be made, by stage; the two last are estimates before a preselection."""
        a, study = self.asked, self.study
        ready = [(entry, entry.run) for entry in self.entries if entry.run]
        chooses = {"seed": self._chooses, "seen": a.select_by == "frechet"}
        looked = [Cell(run=run, **chooses) for _, run in ready]
        kept, near = ready, ready
        if a.select:
            kept, near = (_first_of_each_group(ready, most) for most in (a.select, 4 * a.select))
        close = [Cell(run=run, **chooses) for _, run in near]
        cells = [Cell(run=run, seed=seed) for _, run in kept for seed in a.seeds]
        early = study.work(looked, a.select_images // 8) + study.work(close, a.select_images)
        return {
            "exact end states": study.work(self._exact(), a.images) + study.work(self._chosen_by(), a.select_images),
            "preselection": early if a.select else 0,
            "measuring": study.work(cells, a.images),
        }

    def measure(self) -> Measured:
        """Makes what is missing and measures everything."""
        with self.study.subject.pace.threaded():
            return self._measured()

    def _measured(self) -> Measured:
        a, entries, ranking = self.asked, self.entries, []
        with Bar(self.work()["exact end states"], "exact end states") as bar:
            study = replace(self.study, tick=bar.advance)
            ends = [study.make(cell, a.images) for cell in self._exact()]
            for cell in self._chosen_by():
                study.make(cell, a.select_images)
        if a.select:
            with Bar(self.work()["preselection"], "preselection") as bar:
                study = replace(self.study, tick=bar.advance)
                yardstick = Yardstick(self.real.reference) if self.real and a.select_by == "frechet" else None
                entries, ranking = preselect(study, entries, a.select, a.select_images, self._chooses, _tell, yardstick)
        cells = [Cell(run=entry.run, seed=seed) for entry in entries for seed in a.seeds if entry.run]
        with Bar(self.study.work(cells, a.images), "measuring") as bar:
            study = replace(self.study, tick=bar.advance)
            made = []
            for entry in entries:
                made.append(make(study, entry, a.images, a.seeds))
                _tell(made[-1])
        meter = Meter(self.real, a.images, len(a.seeds), a.resamples)
        fallen = [{key: row[key] for key in ("name", "group", "calls", "failed")} for row in ranking if row["failed"]]
        with Bar(2 * len(made), "comparing") as bar:
            rows = meter.rows(made, ends, a.exact, bar.advance) + fallen
        return Measured(rows=rows, ranking=ranking, made=made, exact=ends[0]["shown"])

    def about(self) -> dict[str, Any]:
        """What was measured, with what, on what, and when."""
        subject = self.study.subject
        return {
            "date": str(date.today()),
            "machine": hardware(self.asked.device),
            "pace": asdict(subject.pace),
            "versions": versions(),
            "model": subject.name,
            "model_digest": subject.digest[:16],
            "process": process_to_json(subject.process),
            "features": self.study.features.name,
            "real": self.real and f"{len(self.real.reference)} of {self.real.source}",
            "missing": self.missing,
            **{name: getattr(self.asked, name) for name in OPTIONS},
        }

    def _exact(self) -> list[Cell]:
        return [Cell(run=self.study.exact, seed=seed) for seed in self.asked.seeds]

    @property
    def _chooses(self) -> int:
        """The seed that contenders are chosen on: by Frechet distance, which luck may lower, none that is measured."""
        return self.asked.seeds[0] if self.asked.select_by == "rms" else max(self.asked.seeds) + 1

    def _chosen_by(self) -> list[Cell]:
        """The exact end states that a selection needs and that are not measured."""
        a = self.asked
        more = a.select and (self._chooses not in a.seeds or a.select_images > a.images)
        return [Cell(run=self.study.exact, seed=self._chooses)] if more else []


def check_words(solvers: Sequence[str], patterns: Sequence[str], features: str | None) -> None:
    """Refuses solvers, patterns of peers and features that no model could make right."""
    for spec in solvers:
        if not is_table(spec):
            pairs(spec)
    if patterns:
        peers(patterns)
    check_features(features)


def prepare(asked: Asked) -> Bench:
    """Loads what is asked for and makes every contender ready; everything that is wrong with it is said here."""
    pick(dict.fromkeys(("rms", "frechet")), asked.select_by, "select_by")
    sampled = subject(asked.model, device=asked.device, pace=asked.pace).guided(asked.guidance)
    made = None if sampled.made_for is None or sampled.made_for.rows == "any" else sampled.made_for
    asked = replace(asked, calls=asked.calls or ((5, 10, 20) if made is None else tuple(sorted(made.by_calls))),
                    solvers=asked.solvers or (SOLVERS if made is None else ("default",)))  # fmt: skip
    kept = Path(asked.out) / "kept"
    features = features_of(asked.features, sampled)
    found, missing = ours(asked.solvers, sampled), {}
    trained = students(asked.students, sampled, lambda path: subject(path, device=asked.device, pace=asked.pace))
    if asked.peers is not None:
        others, missing = peers(asked.peers)
        found += others
    if not (found := without(found, asked.without)):
        raise ValueError("got no contender: leave fewer out")
    known = real(features, sampled, asked.data, kept)
    if asked.select_by == "frechet" and known is None:
        raise ValueError("got frechet to select by, and no real samples: give --data, or select by rms")
    study = Study(subject=sampled, features=features, exact=exact(sampled, asked.exact), kept=kept,
                  batch=asked.batch, device=asked.device)  # fmt: skip
    entries = enter(found, sampled.process, asked.calls)
    entries += [one for each in trained for one in enter([each], sampled.process, each.counts or ())]
    return Bench(asked=asked, study=study, real=known, entries=entries, missing=missing)


def versions() -> dict[str, str]:
    """Of everything that makes the numbers."""
    found = {"python": platform.python_version(), "noise_stream": str(STREAM)}
    for name in ("fewstep", "torch", "diffusers", "k-diffusion", "torchdiffeq", "transformers"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _first_of_each_group(ready: Sequence[tuple[Entry, Prepared]], most: int) -> list[tuple[Entry, Prepared]]:
    """The first entries of each group and number of calls."""
    groups: dict[tuple[str, int], list[tuple[Entry, Prepared]]] = {}
    for entry, run in ready:
        groups.setdefault((entry.contender.group, entry.calls), []).append((entry, run))
    return [pair for pairs in groups.values() for pair in pairs[:most]]


def _tell(made: Made) -> None:
    """One line a cell, where nobody watches a bar."""
    if sys.stderr.isatty():
        return
    entry, failed = made.entry, made.failed and f"failed: {made.failed}"
    seconds = sum(float(seed["seconds"]) for seed in made.seeds)
    says = failed or f"rmse {made.rmse:.4f}, {seconds:.1f} s"
    print(f"{entry.contender.name}, {entry.calls} calls: {says}", file=sys.stderr, flush=True)
