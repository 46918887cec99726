"""Students of a teacher of handwritten digits (8x8, scikit-learn's), by Frechet distance: 5 minutes on one core.

    pip install scikit-learn                            # for its 1,797 digits
    python benchmarks/digits.py                         # all
    python benchmarks/digits.py progressive guided      # some
    python benchmarks/digits.py --keep DIGITS           # runs are kept in a folder, and gone on from
    python benchmarks/digits.py --out benchmarks/results/digits_HARDWARE_DATE.json

Digits are vectors of 64 numbers of mean 0 and deviation 1. FD is the Frechet distance in 32 principal components of
the data, of 3,000 samples of one set of noises against all 1,797; `over teacher` is over that of the teacher's 64 DDIM
steps; `RMS` the distance to its samples from the same noises. Networks are perceptrons of 4 x 320 on the cosine
process, batch 128; seconds are the processor's, of one thread. A guided student is judged by the accuracy of a
classifier (what share of samples it takes for the label that was asked for) and by coverage of the digits, beside its
teacher's two calls a step at the same w.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fewstep as fs
from fewstep.quality import frechet_distance, neighbours
from fewstep.train.methods import METHODS
from fewstep.train.methods.base import table
from fewstep.train.students import train_student

COUNT, PARTS, SCALES = 3000, 32, (0.0, 1.0, 2.0, 4.0)
SIZES = {"width": 320, "depth": 4, "batch": 128, "quiet": True}
PROCESS = fs.Cosine()


@dataclass(frozen=True, eq=False)
class Digits:
    """The data, the teachers and what students are compared with; runs are kept in `folder`."""

    folder: Path

    @cached_property
    def labels(self) -> np.ndarray:
        return self._loaded[1]

    @cached_property
    def data(self) -> np.ndarray:
        x = self._loaded[0]
        return (x - x.mean()) / x.std()

    @cached_property
    def _loaded(self) -> tuple[np.ndarray, np.ndarray]:
        package = find_spec("sklearn")  # its file is read, so that none of what it imports is needed
        if package is None or package.origin is None:
            raise SystemExit("the digits are scikit-learn's, which is not installed; run pip install scikit-learn.")
        found = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
        return found[:, :-1], found[:, -1].astype(int)

    @cached_property
    def parts(self) -> Tensor:
        """The principal directions (64, 32)."""
        return torch.from_numpy(np.linalg.svd(self.data - self.data.mean(0), full_matrices=False)[2][:PARTS].T.copy())

    def features(self, x: Tensor) -> Tensor:
        return (x.double() - torch.from_numpy(self.data.mean(0))) @ self.parts

    @cached_property
    def real(self) -> Tensor:
        return self.features(torch.from_numpy(self.data))

    @cached_property
    def classifier(self) -> nn.Module:
        """Trained on all the digits, moved by up to noise of 0.3; it knows 99 % of them."""
        x, y = torch.from_numpy(self.data).float(), torch.from_numpy(self.labels)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 10))
            optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3)
            for _ in range(1500):
                rows = torch.randint(len(x), (128,))
                loss = nn.functional.cross_entropy(net(x[rows] + 0.3 * torch.randn(128, 64)), y[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return net

    def run(self, denoiser: Any, solver: Any, **options: Any) -> Tensor:
        return fs.sample(denoiser, PROCESS, solver=solver, shape=(COUNT, 64), seed=3, progress=False, **options)

    def ddim(self, steps: int) -> Any:
        """DDIM on every so many-th time of the teacher's 64 steps."""
        return table("ddim", PROCESS, torch.tensor(METHODS["progressive"]().of(PROCESS, steps)))  # type: ignore[attr-defined]

    def student(self, name: str, method: str, **options: Any) -> tuple[Any, float]:
        """The trained model, and the seconds that it took, or none where it was kept."""
        began, out = time.process_time(), self.folder / name
        done = out / "seconds.json"
        train_student(self.data, out, method=method, **SIZES | options)
        if not done.exists():
            done.write_text(json.dumps(time.process_time() - began))
        return fs.load(out / "model", dtype=torch.float32), json.loads(done.read_text())

    @cached_property
    def teacher(self) -> tuple[Any, float]:
        return self.student("teacher", "denoise", process=PROCESS, options={"law": "uniform"}, lr=1e-3, steps=4000)

    @cached_property
    def ends(self) -> Tensor:
        """The teacher's samples."""
        return self.run(self.teacher[0].denoiser(), self.ddim(64))

    @cached_property
    def floor(self) -> float:
        return frechet_distance(self.features(self.ends), self.real)

    def figures(self, x: Tensor) -> dict[str, float]:
        fd = frechet_distance(self.features(x), self.real)
        return {"FD": fd, "over teacher": fd / self.floor, "RMS": float((x - self.ends).square().mean().sqrt())}

    def of(self, name: str, method: str, **options: Any) -> dict[str, Any]:
        """A student of the teacher by all of its own tables."""
        model, seconds = self.student(name, method, teacher=self.folder / "teacher" / "model", **options)
        return {f"{name}, {calls} calls": self.figures(self.run(model.denoiser(), made)) | {"seconds": seconds}
                for calls, made in model.tables.items()}  # fmt: skip


def teacher(d: Digits) -> dict[str, Any]:
    """The teacher by DDIM, and what halves of the data are from each other."""
    order = torch.randperm(len(d.real), generator=torch.Generator().manual_seed(0))
    found = {"half of the data against half": {"FD": frechet_distance(*d.real[order].tensor_split(2))}}
    for steps in (64, 16, 8, 4, 2, 1):
        found[f"DDIM, {steps} calls"] = d.figures(d.run(d.teacher[0].denoiser(), d.ddim(steps)))
    return found | {"teacher": {"seconds": d.teacher[1]}}


def progressive(d: Digits) -> dict[str, Any]:
    found = {}
    for to, steps in ((4, 3000), (1, 6000)):
        found |= d.of(f"progressive-{to}", "progressive", options={"to": to}, steps=steps)
    return found


def consistency(d: Digits) -> dict[str, Any]:
    return d.of("consistency", "consistency", options={"points": 32}, steps=3000)


def knowledge(d: Digits) -> dict[str, Any]:
    return d.of("knowledge", "knowledge", options={"pairs": 20_000}, steps=3000)


def guided(d: Digits) -> dict[str, Any]:
    """Of a teacher with labels: the first stage alone, then four steps."""
    base, seconds = d.student("labelled", "denoise", process=PROCESS, options={"law": "uniform"}, lr=1e-3, steps=4000,
                              labels=d.labels, drop_label=0.2)  # fmt: skip
    given = {"teacher": d.folder / "labelled" / "model", "labels": d.labels, "drop_label": 0.0}
    first, one = d.student("guided-first", "guided", options={"to": 0}, lr=1e-3, steps=4000, **given)
    few, four = d.student("guided-4", "guided", options={"to": 4}, lr=1e-3, steps=9000, **given)
    spent = {"labelled teacher": seconds, "first stage": one, "guided, 4 calls": four}
    found: dict[str, Any] = {name: {"seconds": v} for name, v in spent.items()}
    asked = torch.arange(COUNT) % 10
    for w in SCALES:
        pair = fs.guide(base.denoiser(asked), base.denoiser(), 1 + w)
        told = {"first stage": first.denoiser(asked, w=w), "guided, 4 calls": few.denoiser(asked, w=w)}
        ends = {
            "teacher, 2 x 64 calls": d.run(pair, d.ddim(64)),
            "guided, 4 calls": d.run(told["guided, 4 calls"], few.tables["4"]),
            "teacher, 2 x 4 calls": d.run(pair, d.ddim(4)),
        }
        found[f"first stage, w {w:g}"] = {"off": off(d, told["first stage"], pair, asked)}
        found |= {f"{name}, w {w:g}": judged(d, x, asked) for name, x in ends.items()}
    return found


def off(d: Digits, made: Any, pair: Any, asked: Tensor) -> float:
    """The RMS difference of two denoisers of noised digits of the labels asked for, over the RMS of the second's."""
    rng = np.random.default_rng(5)
    rows = [rng.choice(np.flatnonzero(d.labels == label)) for label in asked.tolist()]
    x0, t = torch.from_numpy(d.data[rows]), torch.from_numpy(rng.uniform(PROCESS.t_min, PROCESS.t_max, len(rows)))
    z = PROCESS.diffuse(x0, t, torch.from_numpy(rng.standard_normal(x0.shape)))
    right = pair(z, t)
    return float((made(z, t) - right).square().mean().sqrt() / right.square().mean().sqrt())


def judged(d: Digits, x: Tensor, asked: Tensor) -> dict[str, float]:
    """Accuracy by the classifier, and coverage of the digits."""
    classifier = d.classifier
    with torch.no_grad():
        accuracy = float((classifier(x.float()).argmax(1) == asked).double().mean())
    covered = neighbours(d.real, d.features(x)[: len(d.real)], k=5).coverage
    return {"accuracy": accuracy, "coverage": covered, "FD": frechet_distance(d.features(x), d.real)}


STUDENTS: dict[str, Callable[[Digits], dict[str, Any]]] = {
    "teacher": teacher,
    "progressive": progressive,
    "consistency": consistency,
    "knowledge": knowledge,
    "guided": guided,
}


def main() -> None:
    """Runs what is asked for and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*STUDENTS, []])
    parser.add_argument("--keep", type=Path, help="a folder for the runs (default: none is kept)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        digits = Digits(args.keep or Path(folder))
        for name in args.names or STUDENTS:
            found[name] = STUDENTS[name](digits)
            for row, figures in found[name].items():
                print(f"{name:12} {row:30}", "  ".join(f"{k} {v:.4g}" for k, v in figures.items()), flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
