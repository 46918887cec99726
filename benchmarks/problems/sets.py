"""Two sets of problems that share no data, seed or network: on CHOOSE a default is chosen, on JUDGE it is judged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import fewstep as fs
from fewstep.bench import Subject
from fewstep.bench.subject import subject as named
from fewstep.train.run import scaled_linear

from .exact import Problem

__all__ = ["CHOOSE", "JUDGE", "MODELS", "Network", "find"]

MODELS = Path(__file__).resolve().parents[2] / "models"
VP, COSINE, EDM, FLOW = fs.VP(), fs.Cosine(), fs.EDM(), fs.Flow()
SD = scaled_linear()


@dataclass(frozen=True, kw_only=True)
class Network:
    """A trained network: a folder of `MODELS`, or of `within`; "shipped" is the one that comes with the package."""

    name: str
    model: str
    guidance: float = 1.0
    exact: bool = False

    def subject(self, within: Path = MODELS) -> Subject:
        """The network for `fewstep.bench`; its real samples are the shipped features."""
        return named(None if self.model == "shipped" else str(within / self.model)).guided(self.guidance)


def _networks(*pairs: tuple[str, float]) -> list[Network]:
    return [Network(name=f"{model}@{scale:g}", model=model, guidance=scale) for model, scale in pairs]


def _exact(name: str, process: fs.Process, kind: str, seed: int, predicts: str = "noise", error: str = "",
           size: float = 0.0, guidance: float = 1.0, time: str | None = None, **options: Any) -> Problem:  # fmt: skip
    return Problem(name=name, process=process, kind=kind, seed=seed, predicts=predicts, error=error, size=size,
                   guidance=guidance, time=time, classes=0 if guidance == 1 else 2, options=options)  # fmt: skip


def _by_name(problems: Iterable[Problem | Network]) -> dict[str, Problem | Network]:
    return {problem.name: problem for problem in problems}


CHOOSE = _by_name([
    _exact("points-2", VP, "points", 1, "data", dimensions=2, parts=5, spread=1.5),
    _exact("points-16", EDM, "points", 2, "edm", dimensions=16),
    _exact("points-32", SD, "points", 3, time="index", dimensions=32),
    _exact("digits", FLOW, "digits", 4, "flow"),
    _exact("series-24", COSINE, "series", 5, "v", length=24),
    _exact("latents", SD, "latents", 6, time="index"),
    _exact("points-4-w7", VP, "points", 7, guidance=7.0, dimensions=4),
    _exact("digits-w3", VP, "digits", 8, guidance=3.0),
    _exact("points-32-shift", VP, "points", 9, error="shift", size=0.03, dimensions=32),
    _exact("points-16-smooth", SD, "points", 10, error="smooth", size=0.02, time="index", dimensions=16),
    _exact("digits-mixed", VP, "digits", 11, error="mixed", size=0.035),
    _exact("series-32-white", COSINE, "series", 12, error="white", size=0.03, length=32),
    _exact("latents-mixed-v", VP, "latents", 13, "v", "mixed", 0.02),
    _exact("latents-mixed-flow", FLOW, "latents", 14, "flow", "mixed", 0.03),
    _exact("digits-mixed-edm", EDM, "digits", 15, "edm", "mixed", 0.02),
    _exact("points-8-data", VP, "points", 16, "data", "smooth", 0.01, dimensions=8),
    _exact("latents-mixed-w5", SD, "latents", 17, error="mixed", size=0.01, guidance=5.0, time="index"),
    _exact("digits-mixed-w2", VP, "digits", 18, error="mixed", size=0.02, guidance=2.0),
    *_networks(("shipped", 1), ("fashion-noise", 1.5), ("fashion-flow", 1.5), ("fashion-scaled-linear", 4)),
])  # fmt: skip

JUDGE = _by_name([
    _exact("points-3", COSINE, "points", 101, dimensions=3, parts=6, spread=1.2),
    _exact("spiral", SD, "line", 102, time="index"),
    _exact("points-64", VP, "points", 103, "v", dimensions=64),
    _exact("series-48", VP, "series", 104, length=48, parts=5),
    _exact("pictures", EDM, "digits", 105, "edm", parts=16, std=0.25),
    _exact("codes", FLOW, "latents", 106, "flow", parts=20),
    _exact("points-8-w7.5", SD, "points", 107, guidance=7.5, time="index", dimensions=8, parts=6),
    _exact("codes-w4", VP, "latents", 108, guidance=4.0, parts=10),
    _exact("points-48-shift", SD, "points", 109, error="shift", size=0.02, time="index", dimensions=48),
    _exact("points-12-smooth", VP, "points", 110, error="smooth", size=0.04, dimensions=12, parts=10),
    _exact("pictures-mixed", VP, "digits", 111, error="mixed", size=0.05, parts=14),
    _exact("series-16-white", VP, "series", 112, error="white", size=0.05, length=16),
    _exact("codes-mixed", SD, "latents", 113, error="mixed", size=0.01, time="index", parts=9),
    _exact("codes-mixed-flow", FLOW, "latents", 114, "flow", "mixed", 0.05, parts=9),
    _exact("pictures-mixed-v", COSINE, "digits", 115, "v", "mixed", 0.03, parts=14),
    _exact("pictures-mixed-edm", EDM, "digits", 116, "edm", "mixed", 0.005, parts=12),
    _exact("points-24-data", VP, "points", 117, "data", "mixed", 0.003, dimensions=24),
    _exact("pictures-mixed-w1.5", SD, "digits", 118, error="mixed", size=0.03, guidance=1.5, time="index", parts=12),
    _exact("codes-mixed-w7.5", VP, "latents", 119, error="mixed", size=0.02, guidance=7.5, parts=10),
    _exact("blurred", fs.Blurring(size=(6, 6)), "digits", 120, "v", error="mixed", size=0.01, side=6),
    _exact("langevin", fs.CLD(), "points", 121, "v", "mixed", 0.01, dimensions=12),
    *_networks(("fashion-vp", 1), ("fashion-noise", 1), ("fashion-noise", 4), ("fashion-scaled-linear", 1),
               ("fashion-scaled-linear", 7.5), ("fashion-edm", 1), ("fashion-flow", 1)),
])  # fmt: skip


def find(patterns: Iterable[str], among: dict[str, Problem | Network]) -> list[Problem | Network]:
    """Problems of a set whose names fit; any network is also MODEL@SCALE, whether the set has it or not."""
    found: dict[str, Problem | Network] = {}
    for pattern in patterns:
        fits = {name: problem for name, problem in among.items() if fnmatchcase(name, pattern)}
        model, at, scale = pattern.partition("@")
        if not fits and at:
            fits = _by_name(_networks((model, float(scale))))
        if not fits:
            raise ValueError(f"got the problem {pattern!r}, which fits none: {', '.join(among)}, or MODEL@SCALE")
        found |= fits
    return list(found.values())
