"""What the tests of the bench measure: a mixture of Gaussians in four dimensions."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

import fewstep as fs
from fewstep.bench.cell import Study
from fewstep.bench.contender import Contender, Prepared, exact, ours
from fewstep.bench.features import features_of
from fewstep.bench.peers import peers
from fewstep.bench.run import Entry, Made
from fewstep.bench.subject import Subject

D = 4


def mixture(process: fs.Process, std: float = 0.3) -> fs.Mixture:
    g = torch.Generator().manual_seed(0)
    return fs.Mixture(process, torch.randn(5, D, dtype=torch.float64, generator=g), torch.full((5,), std).double())


def toy(process: fs.Process | None = None, std: float = 0.3) -> Subject:
    process = process or fs.VP()
    denoiser = mixture(process, std)
    return Subject(name="toy", digest="toy", process=process, shape=(D,), denoiser=lambda labels: denoiser)


def study(tmp_path, **changes) -> Study:
    subject = changes.pop("subject", toy())
    kept = tmp_path / "kept"
    made = Study(subject=subject, features=features_of(None, subject), exact=exact(subject, 60), kept=kept, batch=100)
    return replace(made, **changes)


def the(name: str, calls: int, subject: Subject | None = None) -> Prepared:
    (contender,) = ours([name], subject or toy())
    return contender.prepare((subject or toy()).process, calls)


@cache
def every_peer() -> dict[str, Contender]:
    return {c.name: c for c in peers([])[0]}


def peer(name: str) -> Contender:
    if name not in every_peer():
        pytest.skip(f"{name.partition('/')[0]} is not installed")
    return every_peer()[name]


def fake(name: str, group: str, features: list[torch.Tensor], error: float = 1.0) -> Made:
    pace = torch.tensor(0.01)
    parts = tuple({"features": f, "features at zero": f, "error": torch.full((len(f),), error).double(),
                   "span": torch.stack(f.aminmax(dim=1), 1), "seconds": len(f) * pace, "pace": pace}
                  for f in features)  # fmt: skip
    contender = Contender(name=name, group=group, prepare=lambda process, calls: the("ddim", 5))
    return Made(entry=Entry(contender=contender, calls=5, run=the("ddim", 5)), seeds=parts)
