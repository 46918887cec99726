"""Which root of Sigma for the noise of CLD: gDDIM's R against the Cholesky factor L, its paper's comparison K_t.

    python benchmarks/gddim_root.py --out benchmarks/results/gddim_root_MIXTURE_HARDWARE_DATE.json --plot gddim_root.png

Both are the exponential multistep of gDDIM in t with q + 1 predictions; they differ in what is interpolated,
R^-1 (z - M D) or L^-1 (z - M D). On a closed-form mixture in two dimensions, from t = 1 to 1e-3 on the paper's
quadratic grid: root mean square distance to the ODE's solution from the same 256 starts. The plot needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

import fewstep as fs
from fewstep.pace import hardware

ROOTS = {"R": "gDDIM's root, K_t = R_t", "L": "Cholesky, K_t = L_t"}


def main() -> None:
    """Runs the comparison, prints it and writes what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, nargs="+", default=[5, 10, 15, 20, 30, 50])
    parser.add_argument("--orders", type=int, nargs="+", default=[0, 1, 2], help="q, predictions behind the latest")
    parser.add_argument("--num", type=int, default=256)
    parser.add_argument("--teacher", type=int, default=600, help="calls of the reference run")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    began, rows = time.perf_counter(), compare(args.calls, args.orders, args.num, args.teacher)
    report(rows, args.calls)
    if args.out:
        record = {"date": str(date.today()), "torch": torch.__version__, "machine": hardware(),
                  "threads": torch.get_num_threads(), "seconds": time.perf_counter() - began,
                  "args": {k: str(v) for k, v in vars(args).items()}, "rows": rows}  # fmt: skip
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1, allow_nan=False))
    if args.plot:
        draw(rows, args.plot)


def compare(calls: list[int], orders: list[int], num: int, teacher: int) -> list[dict[str, Any]]:
    """One row for every root, order and count of calls."""
    g = torch.Generator().manual_seed(2)
    process = fs.CLD()
    means, stds = 1.5 * torch.randn(5, 2, dtype=torch.float64, generator=g), torch.linspace(0.1, 0.5, 5).double()
    mixture = fs.Mixture(process, means, stds)
    start = process.prior(torch.randn(num, 2, 2, dtype=torch.float64, generator=g))
    exact = fs.sample(mixture, process, solver="gddim-3-pc", grid=quadratic(process, teacher), x=start)
    rows = []
    for root in ROOTS:
        for q in orders:
            for n in calls:
                solver = fs.Multistep(points=q + 1, form="noise", clock="t", root=root)
                z = fs.sample(mixture, process, solver=solver, grid=quadratic(process, n), x=start)
                rows.append({"root": root, "order": q, "calls": n, "rmse": float((z - exact).square().mean().sqrt())})
    return rows


def quadratic(process: fs.CLD, steps: int) -> torch.Tensor:
    """Times equally spaced in sqrt(t), as in gDDIM's code."""
    ends = process.t_max**0.5, process.t_min**0.5
    times = torch.linspace(*ends, steps + 1, dtype=torch.float64) ** 2
    times[0], times[-1] = process.t_max, process.t_min
    return times


def report(rows: list[dict[str, Any]], calls: list[int]) -> None:
    """Distances by root and order, and how many times the Cholesky factor is off by more."""
    found = {(row["root"], row["order"], row["calls"]): row["rmse"] for row in rows}
    print(f"{'calls':34}" + "".join(f"{n:>10}" for n in calls))
    for q in sorted({row["order"] for row in rows}):
        for root, label in ROOTS.items():
            print(f"q = {q}, {label:27}" + "".join(f"{found[root, q, n]:10.4f}" for n in calls))
        print(f"{'':7}{'L / R':27}" + "".join(f"{found['L', q, n] / found['R', q, n]:10.1f}" for n in calls))


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Distance over calls, a line a root and order."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 4), layout="constrained")
    for root, style in (("R", "-o"), ("L", "--s")):
        for q in sorted({row["order"] for row in rows}):
            points = [(row["calls"], row["rmse"]) for row in rows if (row["root"], row["order"]) == (root, q)]
            axis.loglog(*zip(*points, strict=True), style, color=f"C{q}", markersize=4, label=f"{root}, q = {q}")
    axis.set_xlabel("network calls")
    axis.set_ylabel("RMS distance to the ODE's solution")
    axis.legend(ncols=2)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
