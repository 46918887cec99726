"""Which solver and grid deserve to be the default: distance to the exact ODE end state from the same noises.

    python benchmarks/default_solver.py --num 64 --out benchmarks/results/default_solver_MODEL_HARDWARE_DATE.json

For every solver x grid x call count the root mean square distance, over samples, to the end state of a teacher with
many calls, on the shipped model and on closed-form mixtures in 2 and 64 dimensions. Printed: the best pairs of each
problem, and the pairs ranked by their mean log distance relative to the best pair of the same problem and count.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from datetime import date
from itertools import product
from pathlib import Path

import torch

import fewstep as fs
from fewstep.pace import hardware

SOLVERS = (
    "ddim", "edm", "dpmpp-2m", "dpmpp-3m", "dpmpp-3m-corrected", "unipc-2", "unipc-3", "multistep-2", "multistep-3",
    "multistep-pc-2", "multistep-pc-3", "deis-tab-2", "deis-tab-3", "gaussian-split", "gaussian-split-pc",
)  # fmt: skip
GRIDS = ("log-snr", "uniform", "power", "karras", "logistic")


def problems(num: int) -> dict:
    """Name -> (denoiser, process, start)."""
    model = fs.load()
    process = model.process
    found = {
        "fashion": (
            model.denoiser([k % 10 for k in range(num)]),
            process,
            process.prior(fs.Noise(seed=0).normal("initial", 0, (num, *model.shape))),
        )
    }
    for d in (2, 64):
        g = torch.Generator().manual_seed(d)
        means = torch.randn(8, d, dtype=torch.float64, generator=g)
        stds = 0.1 + 0.4 * torch.rand(8, dtype=torch.float64, generator=g)
        start = process.prior(torch.randn(256, d, dtype=torch.float64, generator=g))
        found[f"mixture-{d}"] = (fs.Mixture(process, means, stds), process, start)
    return found


def main() -> None:
    """Runs the study and writes its record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=64)
    parser.add_argument("--calls", type=int, nargs="+", default=[4, 5, 6, 8, 10, 15, 20])
    parser.add_argument("--teacher", type=int, default=100)
    parser.add_argument("--solvers", nargs="+", choices=list(fs.TABLES), default=list(SOLVERS))
    parser.add_argument("--grids", nargs="+", choices=list(fs.GRIDS), default=list(GRIDS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows, began = [], time.perf_counter()
    for name, (denoiser, process, start) in problems(args.num).items():
        teacher = fs.sample(
            denoiser, process, solver="multistep-pc-3", grid="log-snr", steps=args.teacher, x=start, final="state"
        )
        best: dict[int, tuple[float, str]] = {}
        for solver, grid, calls in product(args.solvers, args.grids, args.calls):
            x = fs.sample(denoiser, process, solver=solver, grid=grid, steps=calls, x=start, final="state")
            rmse = float((x - teacher).square().mean().sqrt())
            rows.append({"problem": name, "solver": solver, "grid": grid, "calls": calls, "rmse": rmse})
            best[calls] = min(best.get(calls, (math.inf, "")), (rmse, f"{solver} / {grid}"))
        for calls, (rmse, pair) in best.items():
            print(f"{name:12} {calls:3} calls: best {pair:28} rmse {rmse:.4f}", flush=True)
    ranking = rank(rows)
    print("\nmean over problems and counts of log(rmse / best), lower is better:")
    for pair, score in ranking[:12]:
        print(f"{score:7.3f}  {pair}")
    if args.out:
        record = {"date": str(date.today()), "torch": torch.__version__, "machine": hardware(),
                  "threads": torch.get_num_threads(), "seconds": time.perf_counter() - began,
                  "args": {k: str(v) for k, v in vars(args).items()}, "ranking": ranking, "rows": rows}  # fmt: skip
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1, allow_nan=False))


def rank(rows: list[dict]) -> list[tuple[str, float]]:
    """Pairs by their mean log distance to the best pair of the same problem and count."""
    best: dict[tuple, float] = {}
    for row in rows:
        key = (row["problem"], row["calls"])
        best[key] = min(best.get(key, math.inf), row["rmse"])
    scores: dict[str, list[float]] = {}
    for row in rows:
        excess = math.log(row["rmse"] / best[row["problem"], row["calls"]])
        scores.setdefault(f"{row['solver']} / {row['grid']}", []).append(excess)
    return sorted(((pair, sum(s) / len(s)) for pair, s in scores.items()), key=lambda item: item[1])


if __name__ == "__main__":
    main()
