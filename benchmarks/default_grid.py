"""Which grid deserves to be a process's default: distance to the exact ODE end state on mixtures in 16 dimensions.

    python benchmarks/default_grid.py --out benchmarks/results/default_grid_HARDWARE_DATE.json

For every process x solver x grid: the mean over 5, 8, 10 and 15 calls of log(root mean square distance to the end state
of a 300-call run from the same noises), two mixtures of eight unequal parts. Lower is better; a difference of 0.7 is a
factor of two. The process's default is marked with a star. A study of sixteen dimensions and smooth denoisers: on a
network of your own, run a few grids against many calls of itself.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable
from datetime import date
from itertools import product
from pathlib import Path

import torch

import fewstep as fs
from fewstep.pace import hardware

CALLS = (5, 8, 10, 15)
GRIDS = ("uniform", "power", "log-snr", "karras", "logistic")
SOLVERS = {
    "scalar": ("gaussian-split", "unipc-3"),
    "diagonal": ("gaussian-split", "deis-tab-2"),
    "block": ("gaussian-split", "deis-tab-2"),
}


def process(name: str, size: int) -> fs.Process:
    """A process of that name, at the size of the mixtures."""
    make = fs.PROCESSES[name]
    return make(**({"size": (size, size)} if make.kind == "diagonal" else {}))


def problems(p: fs.Process, num: int, shape: tuple[int, ...]) -> Iterable[tuple[fs.Mixture, torch.Tensor]]:
    """(denoiser, start states) of two mixtures."""
    for seed in (0, 1):
        g = torch.Generator().manual_seed(seed)
        means = 0.8 * torch.randn(8, *shape, dtype=torch.float64, generator=g)
        stds = 0.1 + 0.4 * torch.rand(8, dtype=torch.float64, generator=g)
        mixture = fs.Mixture(p, means, stds)
        eps = torch.randn(num, *p.state_shape(shape), dtype=torch.float64, generator=g)
        yield mixture, p.diffuse(mixture.sample(num, g), p.t_max, eps)


def study(name: str, num: int, size: int) -> dict[str, dict[str, float]]:
    """Solver -> grid -> mean log distance."""
    p = process(name, size)
    solvers = SOLVERS[p.kind]
    found: dict[str, dict[str, list[float]]] = {s: {g: [] for g in GRIDS} for s in solvers}
    for denoiser, start in problems(p, num, (1, size, size)):
        end = fs.sample(denoiser, p, solver="multistep-pc-3", grid="log-snr", steps=300, x=start, final="state")
        for solver, grid, calls in product(solvers, GRIDS, CALLS):
            z = fs.sample(denoiser, p, solver=solver, grid=grid, steps=calls, x=start, final="state")
            found[solver][grid].append(float((z - end).square().mean().sqrt().log()))
    return {s: {g: sum(v) / len(v) for g, v in grids.items()} for s, grids in found.items()}


def main() -> None:
    """Runs the study, prints a line a process and solver, writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=64, help="samples (default: 64)")
    parser.add_argument("--size", type=int, default=4, help="data is size x size numbers (default: 4)")
    parser.add_argument("--process", choices=list(fs.PROCESSES), nargs="+", default=list(fs.PROCESSES))
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began, record = time.perf_counter(), {}
    print(f"{'process':10} {'solver':11}" + "".join(f"{g:>10}" for g in GRIDS) + "   best")
    for name in args.process:
        default = process(name, args.size).default_grid
        record[name] = {"default": default, "mean log rmse": study(name, args.num, args.size)}
        for solver, scores in record[name]["mean log rmse"].items():
            best = min(scores, key=lambda g: scores[g] if math.isfinite(scores[g]) else math.inf)
            cells = "".join(f"{scores[g]:>9.2f}{'*' if g == default else ' '}" for g in GRIDS)
            print(f"{name:10} {solver:11}{cells}   {best}", flush=True)
    print(f"{time.perf_counter() - began:.0f} s")
    if args.out:
        whole = {"date": str(date.today()), "torch": torch.__version__, "threads": torch.get_num_threads(),
                 "machine": hardware(), "num": args.num, "size": args.size, "calls": CALLS,
                 "processes": record}  # fmt: skip
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
