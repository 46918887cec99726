"""Solvers and grids on closed-form mixtures: distance to the exact end state of the probability-flow ODE.

    python benchmarks/closed_forms.py --out benchmarks/results/closed_forms_HARDWARE_DATE.json

Three tables, each root mean square (per coordinate) / median (per sample) over the start states, at 5, 10 and 20 calls.

- other mixtures: where solver, grid and their constants were chosen. Random mixtures on VP in several dimensions, and
  the same with guidance (w = 7 towards a class of some components); geometric means over the mixtures.
- the golden problem on VP (t from 1 to 1e-3): five unequal components, 256 start states, in several dimensions. A
  solver named with "best grid" takes the best of log-snr, uniform and power at each count, seen afterwards.
- CLD (the golden problem, position and velocity) and blurring (the golden folder's two images of 32 x 32), beside
  gDDIM.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fewstep as fs
from fewstep.pace import hardware

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
CALLS = (5, 10, 20)
GRIDS = ("log-snr", "uniform", "power")  # the references' own
REFERENCES: dict[str, str | fs.Solver] = {
    "unipc-1": "unipc-1",
    "unipc-1 bh1 noise": fs.UniPC(points=1, form="noise", b="bh1"),
    "unipc-2": "unipc-2",
    "unipc-3": "unipc-3",
    "unipc-3 noise": fs.UniPC(points=3, form="noise"),
    "deis-tab-3": "deis-tab-3",
    "dpmpp-3m": "dpmpp-3m",
}
CANDIDATES = (
    ("unipc-3", "log-snr"),
    ("unipc-3", "power"),
    ("unipc-3", "logistic"),
    ("deis-tab-3", "power"),
    ("deis-tab-3", "logistic"),
    ("gaussian-split", "log-snr"),
    ("gaussian-split", "power"),
    ("gaussian-split", "logistic"),
    ("gaussian-split-pc", "logistic"),
)
Problem = tuple[Callable, fs.Process, Tensor]
Errors = tuple[float, float]


def golden(process: fs.Process, d: int, num: int) -> Problem:
    """The golden problem in d dimensions, as its folder draws it, and `num` start states."""
    g = np.random.default_rng(20250 + d)
    means, stds, weights = 1.5 * g.standard_normal((5, d)), 0.1 + 0.3 * g.random(5), 0.5 + 1.5 * g.random(5)
    mixture = fs.Mixture(process, *(torch.from_numpy(v) for v in (means, stds, weights)))
    if process.kind == "scalar":
        return mixture, process, torch.from_numpy(g.standard_normal((num, d)))
    return mixture, process, process.prior(torch.from_numpy(g.standard_normal((num, *process.state_shape((d,))))))


def others(num: int, *, guided: bool, count: int = 12) -> Iterator[Problem]:
    """Random mixtures on VP, with w = 7 towards the first half of the components where guided."""
    process = fs.VP()
    for seed in range(count):
        g = torch.Generator().manual_seed(1000 * guided + seed)
        d, k = (2, 3, 4, 8)[seed % 4], 3 + seed % 6
        draw = lambda *shape, g=g: torch.rand(*shape, dtype=torch.float64, generator=g)  # noqa: E731
        normal = lambda *shape, g=g: torch.randn(*shape, dtype=torch.float64, generator=g)  # noqa: E731
        means = draw(1) * normal(d) + (0.5 + 1.5 * draw(1)) * normal(k, d)
        stds = (0.05 * 10 ** draw(1) * (0.4 * normal(k)).exp()).clamp(0.03, 0.8)
        weights = 0.2 + draw(k)
        free, half = fs.Mixture(process, means, stds, weights), max(1, k // 2)
        towards = fs.Mixture(process, means[:half], stds[:half], weights[:half])
        pushed = lambda z, t, a=free, b=towards: a(z, t) + 7.0 * (b(z, t) - a(z, t))  # noqa: E731
        yield (pushed if guided else free), process, process.prior(normal(num, d))


def blurring(folder: Path) -> tuple[Problem, Tensor]:
    """The golden folder's blurring problem and its exact end states."""
    process = fs.Blurring()
    with np.load(folder / "golden.npz") as file:
        names = ("mu", "gmm_s", "gmm_w", "yT", "true_y_at_eps")
        mu, stds, weights, start, end = (torch.from_numpy(file[f"gddim_bdm_extra/bdm_{name}"]) for name in names)
    mixture = fs.Mixture(process, process.from_coordinates(mu.reshape(-1, *process.size)), stds, weights)
    return (mixture, process, start[..., 0]), end[..., 0]


@lru_cache(maxsize=1024)
def table(solver: str | fs.Solver, process: fs.Process, grid: str, calls: int) -> fs.Tableau:
    """A table, made once for all problems."""
    return fs.tabulate(solver, process, grid=grid, steps=calls, final="state")


def exact(problem: Problem, steps: int = 240) -> Tensor:
    """The end states of a run of order 3 with many steps."""
    denoiser, process, x = problem
    teacher = table(fs.GaussianSplit(points=3, relax=0.0, ending=0, width=math.inf), process, "logistic", steps)
    return fs.sample(denoiser, process, solver=teacher, x=x, progress=False)


def errors(problem: Problem, end: Tensor, solver: str | fs.Solver, grid: str, calls: int) -> Errors:
    """(root mean square, median)."""
    denoiser, process, x = problem
    z = fs.sample(denoiser, process, solver=table(solver, process, grid, calls), x=x, progress=False)
    square = (z - end).square().flatten(1).mean(1)
    return float(square.mean().sqrt()), float(square.sqrt().median())


def best(problem: Problem, end: Tensor, solver: str | fs.Solver, calls: int) -> Errors:
    """The smallest of both over the references' grids."""
    rms, median = zip(*(errors(problem, end, solver, grid, calls) for grid in GRIDS), strict=True)
    return min(rms), min(median)


def line(name: str, found: list[Errors]) -> None:
    """One row of a table."""
    print(f"  {name:34}" + "".join(f"{rms:>10.4f} /{median:>8.4f}" for rms, median in found), flush=True)


def choose(num: int) -> dict:
    """The table of the other mixtures: solver and grid -> geometric means at each count."""
    record = {}
    for guided in (False, True):
        label = "guided, w = 7" if guided else "plain"
        print(f"other mixtures, {label}", flush=True)
        problems = [(p, exact(p)) for p in others(num, guided=guided)]
        for solver, grid in CANDIDATES:
            found = []
            for calls in CALLS:
                logs = np.log([errors(p, end, solver, grid, calls) for p, end in problems])
                found.append(tuple(np.exp(logs.mean(0)).tolist()))
            record[f"{label}: {solver} / {grid}"] = found
            line(f"{solver} / {grid}", found)
    return record


def judge(num: int, dimensions: list[int]) -> dict:
    """The table of the golden problem."""
    record = {}
    for d in dimensions:
        print(f"golden problem, d = {d}", flush=True)
        problem = golden(fs.VP(), d, num)
        end = exact(problem)
        for name, solver in REFERENCES.items():
            found = [best(problem, end, solver, calls) for calls in CALLS]
            record[f"d = {d}: {name}, best grid"] = found
            line(f"{name}, best grid", found)
        for solver, grid in CANDIDATES[-3:]:
            found = [errors(problem, end, solver, grid, calls) for calls in CALLS]
            record[f"d = {d}: {solver} / {grid}"] = found
            line(f"{solver} / {grid}", found)
    return record


def beyond_scalar(num: int, folder: Path) -> dict:
    """CLD and blurring."""
    record, problem = {}, golden(fs.CLD(), 2, num)
    problems = {"cld": (problem, exact(problem, 160)), "blurring": blurring(folder)}
    for label, pair in problems.items():
        print(label, flush=True)
        pairs = [(f"gddim-{k}", "power") for k in range(4)]
        pairs += [("gaussian-split", g) for g in ("power", "logistic")] + [("gaussian-split-pc", "logistic")]
        for solver, grid in pairs:
            found = [errors(pair[0], pair[1], solver, grid, calls) for calls in CALLS]
            record[f"{label}: {solver} / {grid}"] = found
            line(f"{solver} / {grid}", found)
    return record


def main() -> None:
    """Prints the tables and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=256, help="start states (default: 256)")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2, 3, 4, 8, 16])
    tables = ("others", "golden", "kinds")
    parser.add_argument("--tables", choices=tables, nargs="+", default=tables, help="default: all")
    parser.add_argument("--golden", type=Path, default=GOLDEN, help="folder of golden numbers (default: tests/golden)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began, record = time.perf_counter(), {}
    print("root mean square / median at " + ", ".join(str(n) for n in CALLS) + " calls")
    if "others" in args.tables:
        record["others"] = choose(args.num)
    if "golden" in args.tables:
        record["golden"] = judge(args.num, args.dimensions)
    if "kinds" in args.tables:
        record["kinds"] = beyond_scalar(args.num, args.golden)
    print(f"{time.perf_counter() - began:.0f} s")
    if args.out:
        whole = {"date": str(date.today()), "torch": torch.__version__, "threads": torch.get_num_threads(),
                 "machine": hardware(), "num": args.num, "calls": CALLS, "seconds": time.perf_counter() - began,
                 "tables": record}  # fmt: skip
        args.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(whole, indent=1, default=str).replace("Infinity", "null")
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
