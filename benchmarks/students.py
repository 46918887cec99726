"""Every method of `fewstep train` on a mixture in two dimensions with its exact teacher: one minute a method on a core.

    python benchmarks/students.py                        # all
    python benchmarks/students.py progressive reflow     # some
    python benchmarks/students.py --mixture square --seed 1 --dim 3
    python benchmarks/students.py --out benchmarks/results/students_HARDWARE_DATE.json

Six Gaussians, their means on a ring with normal noise or uniform on a square (easier: Euler-8 ends half as far off);
`map` is the RMS distance of a run's ends from the exact ODE's of the same noises (DDIM of 2,000 steps of
the exact denoiser), over the data's deviation; ED the unbiased energy distance at 4,000 samples, whose floor is
+-0.0005 (of consistency models the mean of five); half of it is what is written E|X - Y| - E|X - X'| / 2 -
E|Y - Y'| / 2. Networks are perceptrons of 3 x 96, batch 256, the learning rate the method's own, falling to 0. Time is
this process's own. `python benchmarks/student_bounds.py` holds the figures to what is asked.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fewstep as fs
from fewstep.pace import hardware
from fewstep.train.methods import recorded
from fewstep.train.students import train_student

COUNT = 4000


@dataclass(eq=False)
class Problem:
    """The mixture on a process, with what students are compared with."""

    process: fs.Process
    deviation: float
    seed: int = 0
    mixture: str = "ring"
    dim: int = 2
    modes: int = 6

    def pose(self, mixture: str, seed: int, dim: int) -> None:
        """Another mixture on the same process."""
        self.mixture, self.seed, self.dim = mixture, seed, dim
        for name in ("teacher", "data", "held_out", "exact"):
            self.__dict__.pop(name, None)

    @cached_property
    def teacher(self) -> fs.Mixture:
        """The exact denoiser."""
        g = torch.Generator().manual_seed(1000 + self.seed)
        angle = torch.arange(self.modes, dtype=torch.float64) * (2 * torch.pi / self.modes)
        means = torch.randn(self.modes, self.dim, generator=g, dtype=torch.float64)
        means[:, 0] += 1.5 * angle.cos()
        means[:, 1:2] += 1.5 * angle.sin()[:, None]
        if self.mixture == "square":
            means = 2 * torch.rand(self.modes, self.dim, generator=g, dtype=torch.float64) - 1
        stds = 0.08 + 0.12 * torch.rand(self.modes, generator=g, dtype=torch.float64)
        weights = 0.5 + torch.rand(self.modes, generator=g, dtype=torch.float64)
        weights = weights / weights.sum()
        mean = (weights[:, None] * means).sum(0)
        spread = (weights[:, None] * ((means - mean) ** 2 + stds[:, None] ** 2)).sum(0).mean().sqrt()
        return fs.Mixture(
            self.process, (means - mean) / spread * self.deviation, stds / spread * self.deviation, weights
        )

    @cached_property
    def data(self) -> Tensor:
        """Draws to train on."""
        return self.teacher.sample(50_000, torch.Generator().manual_seed(1))

    @cached_property
    def held_out(self) -> Tensor:
        """Draws to compare with."""
        return self.teacher.sample(COUNT, torch.Generator().manual_seed(2))

    @cached_property
    def exact(self) -> Tensor:
        """The ends of the exact ODE."""
        return self.run(self.teacher, "dpmpp-2m", steps=400)

    def run(self, denoiser: Any, solver: Any, **options: Any) -> Tensor:
        """Samples of one set of noises."""
        options = {"final": "state", "seed": 3, **options}
        z = fs.sample(denoiser, self.process, solver=solver, shape=(COUNT, self.dim), dtype=torch.float64,
                      progress=False, **options)  # fmt: skip
        return self.process.to_data(z)

    def distance(self, x: Tensor, to: Tensor | None = None) -> tuple[float, float]:
        """The RMS and the median distance from the exact ends, over the data's deviation."""
        d = (x - (self.exact if to is None else to)).square().sum(1).div(self.dim).sqrt() / self.deviation
        return float(d.square().mean().sqrt()), float(d.median())

    def figures(self, x: Tensor, to: Tensor | None = None) -> dict[str, float]:
        rms, median = self.distance(x, to)
        return {"map": rms, "median": median, "ED": energy(x / self.deviation, self.held_out / self.deviation)}


def energy(x: Tensor, y: Tensor) -> float:
    """The unbiased energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'|."""
    n, m = len(x), len(y)
    within = torch.cdist(x, x).sum() / (n * (n - 1)) + torch.cdist(y, y).sum() / (m * (m - 1))
    return float(2 * torch.cdist(x, y).mean() - within)


def far(p: Problem, denoiser: Any, solver: Any, draws: int = 5, **options: Any) -> float:
    """The mean of some energy distances: the shares of far modes in one alone move it by up to 0.005."""
    found = 0.0
    for k in range(draws):
        y = p.teacher.sample(COUNT, torch.Generator().manual_seed(20 + k))
        x = p.run(denoiser, solver, **{"seed": 10 + k, **options})
        found += energy(x / p.deviation, y / p.deviation) / draws
    return found


EDM = Problem(fs.EDM(), 0.5)
VP = Problem(fs.Cosine(), 1.0)
FLOW = Problem(fs.Flow(), 1.0)
PROBLEMS = [EDM, VP, FLOW]


def student(p: Problem, method: str, out: Path, *, options: tuple = (), steps: int = 2500, **rest: Any) -> Any:
    """The trained model, and the seconds that it took."""
    began = time.process_time()
    folder = train_student(
        p.data, out, method=method, options=options, steps=steps, quiet=True, process=p.process, **rest
    )
    return fs.load(folder, dtype=torch.float32), time.process_time() - began


def progressive(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    base = VP.run(VP.teacher, table(VP, "progressive", steps=64, to=32, at=64))
    for to, steps in ((4, 3000), (2, 3300), (1, 3600)):
        model, seconds = student(
            VP, "progressive", out / str(to), options=(("to", to),), steps=steps, teacher=VP.teacher
        )
        x = VP.run(model.denoiser(), model.tables[str(to)])
        found[f"{to} calls"] = VP.figures(x, base) | {"seconds": seconds}
        found[f"DDIM, {to} calls"] = VP.figures(VP.run(VP.teacher, model.tables[str(to)]), base)
    return found


def table(p: Problem, method: str, at: int, **options: Any) -> Any:
    """DDIM on the teacher's grid."""
    from fewstep.train.methods import METHODS
    from fewstep.train.methods.base import table as ddim

    made = METHODS[method](**options)
    return ddim("ddim", p.process, torch.tensor(made.of(p.process, at)))


def consistency(out: Path) -> dict[str, Any]:
    found = {}
    for name in ("consistency", "improved-consistency", "easy-consistency"):
        teacher = EDM.teacher if name == "consistency" else None
        model, seconds = student(EDM, name, out / name, steps=2500, teacher=teacher)
        for calls in ("1", "2"):
            denoiser, made = model.denoiser(), model.tables[calls]
            found[f"{name}, {calls} calls"] = EDM.figures(EDM.run(denoiser, made)) | {
                "ED": far(EDM, denoiser, made),
                "seconds": seconds,
            }
    for calls in (4, 8):
        found[f"Euler, {calls} calls"] = EDM.figures(EDM.run(EDM.teacher, "ddim", steps=calls, grid="karras"))
    return found


def tabled(p: Problem, method: str, out: Path, name: str | None = None, **options: Any) -> dict[str, Any]:
    """A student by all of its own tables."""
    model, seconds = student(p, method, out / (name or method), **options)
    return {f"{name or method}, {calls} calls": p.figures(p.run(model.denoiser(), made)) | {"seconds": seconds}
            for calls, made in model.tables.items()}  # fmt: skip


def straightness(p: Problem, denoiser: Any, steps: int = 50) -> float:
    """Of Euler's path, summed over a sample."""
    path: list[Tensor] = []
    p.run(denoiser, "ddim", steps=steps, grid="uniform", callback=lambda row, t, z, x0: path.append(z.clone()))
    made = recorded.straightness(torch.stack([*path, p.run(denoiser, "ddim", steps=steps, grid="uniform")]))
    return float(made)


def reflow(out: Path) -> dict[str, Any]:
    """A flow, and what one round of reflow and one call make of it."""
    flow, seconds = student(FLOW, "flow", out / "flow", steps=2000)
    found = {f"1-flow, {n} calls": FLOW.figures(FLOW.run(flow.denoiser(), "ddim", steps=n, grid="uniform"))
             for n in (1, 100)}  # fmt: skip
    found["1-flow"] = {"S": straightness(FLOW, flow.denoiser()), "seconds": seconds}
    for name, distil, steps in (("reflow", 0.0, 2000), ("reflow and one call", 0.5, 3000)):
        options = {"options": (("distil", distil),), "steps": steps, "teacher": out / "flow" / "model"}
        model, seconds = student(FLOW, "reflow", out / name, **options)
        found[f"{name}, 1 call"] = FLOW.figures(FLOW.run(model.denoiser(), model.tables["1"])) | {"seconds": seconds}
        if not distil:
            found[name] = {"S": straightness(FLOW, model.denoiser())}
    return found


def knowledge(out: Path) -> dict[str, Any]:
    """The network's own floor: regression on 30,000 exact pairs."""
    return tabled(EDM, "knowledge", out, teacher=EDM.teacher, steps=2500)


def continuous(out: Path) -> dict[str, Any]:
    return tabled(EDM, "continuous", out, teacher=EDM.teacher, steps=2500)


def operator(out: Path) -> dict[str, Any]:
    return tabled(EDM, "operator", out, teacher=EDM.teacher, steps=2500)


def guided(out: Path) -> dict[str, Any]:
    """Guided students at w = 1 against the guided pair of exact denoisers, half of the modes being a class."""
    half = VP.modes // 2
    label = fs.Mixture(VP.process, VP.teacher.means[:half], VP.teacher.stds[:half], VP.teacher.log_weights[:half].exp())
    pair, w = fs.guide(label, VP.teacher, 2.0), 1.0
    base, found = VP.run(pair, "dpmpp-2m", steps=400), {}
    for method, steps in (("guided", 4000), ("latent-consistency", 4000)):
        model, seconds = student(VP, method, out / method, teacher=(label, VP.teacher), steps=steps)
        for calls, made in model.tables.items():
            x = VP.run(model.denoiser(w=w), made)
            rms, median = VP.distance(x, base)
            found[f"{method}, {calls} calls"] = {
                "map": rms,
                "median": median,
                "ED": energy(x, base),
                "seconds": seconds,
            }
    for calls in (1, 4):
        x = VP.run(pair, table(VP, "progressive", steps=4, to=1, at=calls))
        found[f"DDIM, {calls} calls"] = {"map": VP.distance(x, base)[0], "ED": energy(x, base)}
    return found


def trajectory(out: Path) -> dict[str, Any]:
    return tabled(EDM, "trajectory", out, teacher=EDM.teacher, steps=2500)


def two_times(out: Path) -> dict[str, Any]:
    """Shortcut and mean flow, with the exact velocity and without; Euler beside them."""
    found: dict[str, Any] = {}
    for method in ("shortcut", "mean-flow"):
        for teacher, name in ((FLOW.teacher, f"{method}, taught"), (None, method)):
            found |= tabled(FLOW, method, out, name, teacher=teacher, steps=2000)
    for calls in (1, 2, 4):
        found[f"Euler, {calls} calls"] = FLOW.figures(FLOW.run(FLOW.teacher, "ddim", steps=calls, grid="uniform"))
    return found


def modes(p: Problem, x: Tensor) -> float:
    """Half the summed differences between the modes' shares of samples and their weights."""
    near = torch.cdist(x, p.teacher.means).argmin(1)
    there = torch.cdist(p.held_out, p.teacher.means).argmin(1)
    count = [torch.bincount(v, minlength=p.modes) / len(v) for v in (near, there)]
    return float((count[0] - count[1]).abs().sum() / 2)


def scores(out: Path) -> dict[str, Any]:
    """Distribution matching and score identity; one update of the fake score is the failure case."""
    found = {}
    for name, method, options in (("dmd", "dmd", ()), ("dmd, 1 update", "dmd", (("updates", 1),)), ("sid", "sid", ())):
        model, seconds = student(EDM, method, out / name, options=options, steps=1600, teacher=EDM.teacher)
        x = EDM.run(model.denoiser(), model.tables["1"])
        found[f"{name}, 1 call"] = EDM.figures(x) | {"modes off": modes(EDM, x), "seconds": seconds}
    return found


METHODS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "knowledge": knowledge,
    "progressive": progressive,
    "consistency": consistency,
    "continuous": continuous,
    "trajectory": trajectory,
    "operator": operator,
    "guided": guided,
    "reflow": reflow,
    "two-times": two_times,
    "scores": scores,
}


def main(methods: dict[str, Callable[[Path], dict[str, Any]]], about: str | None) -> None:
    """Runs what is asked for and prints it."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*methods, []])
    parser.add_argument("--mixture", choices=("ring", "square"), default="ring")
    parser.add_argument("--seed", type=int, default=0, help="of the mixture")
    parser.add_argument("--dim", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for problem in PROBLEMS:
        problem.pose(args.mixture, args.seed, args.dim)
    found = {}
    for name in args.names or methods:
        with tempfile.TemporaryDirectory() as folder:
            made = methods[name](Path(folder))
        found[name] = {row: {k: float(f"{v:.4g}") for k, v in figures.items()} for row, figures in made.items()}
        for row, figures in found[name].items():
            print(f"{name:14} {row:32}", "  ".join(f"{k} {v:.4g}" for k, v in figures.items()), flush=True)
    if args.out is not None:
        about = {"date": str(date.today()), "torch": torch.__version__, "machine": hardware()}
        args.out.write_text(json.dumps(about | {"figures": found}, indent=2) + "\n")


if __name__ == "__main__":
    main(METHODS, __doc__)
