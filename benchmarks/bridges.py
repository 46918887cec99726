r"""Few calls on bridges: our default beside DBIM of orders 1, 2 and 3 on its published grid and boot.

    python benchmarks/bridges.py    # 5, 10 and 20 calls on every shape; writes benchmarks/results/bridges_*.json
    python benchmarks/bridges.py --calls 3 4 --shapes i2sb goub

Data is a mixture of Gaussians, y = a x0 + tau e, so x0 given y is a mixture too and the denoiser is exact. For each of
three y, 256 stratified normals make the boot; what is printed is the mean over y of

- RMSE: of the samples to where the exact ODE takes the same states from the first row on;
- W1: of the samples to the quantiles of x0 given y, the boot's own error included.

DBIM's grid is uniform in time from T - 1e-3 T to 1e-4 T after the boot at T, as its code has it; a bridge that is not
pinned starts at y and noise, and its grid at T.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import fewstep as fs
from fewstep.check.exact import quantile_map

RESULTS = Path(__file__).parent / "results"
SHAPES = {
    "i2sb": fs.I2SB(variance=1.0),
    "ddbm-ve": fs.DDBMVE(sigma_max=1.0),
    "ddbm-vp": fs.DDBMVP(),
    "ir-sde": fs.IRSDE(noise=0.5),
    "goub": fs.GOUB(noise=0.5),
    "unidb": fs.UniDB(noise=0.5),
    "indi": fs.InDI(noise=0.3),
    "resshift": fs.ResShift(kappa=1.0),
    "interpolant": fs.Interpolant(),
}
METHODS = ("dbim-1", "dbim-2", "dbim-3", "ours")
COUNT = 256


@dataclass(frozen=True)
class Problem:
    """x0 a mixture, y = a x0 + tau e."""

    means: tuple[float, ...]
    stds: tuple[float, ...]
    weights: tuple[float, ...]
    a: float
    tau: float
    ys: tuple[float, ...]

    def given(self, process: fs.Bridge, y: float) -> fs.Mixture:
        """The law of x0 given y as a closed form of u."""
        means, stds, weights = (torch.tensor(v, dtype=torch.float64) for v in (self.means, self.stds, self.weights))
        total, var = self.a**2 * stds**2 + self.tau**2, 1 / (stds**-2.0 + self.a**2 / self.tau**2)
        log = weights.log() - total.log() / 2 - (y - self.a * means) ** 2 / total / 2
        found = var * (means / stds**2 + self.a * y / self.tau**2)
        return fs.Mixture(process, found[:, None], var.sqrt(), log.softmax(0))


PROBLEMS = (
    Problem((-1.0, 0.2, 1.1), (0.3, 0.25, 0.35), (0.3, 0.4, 0.3), 0.8, 0.6, (-0.8, 0.35, 1.0)),
    Problem((-1.2, -0.4, 0.3, 1.0), (0.1, 0.12, 0.08, 0.1), (0.2, 0.3, 0.3, 0.2), 1.0, 0.8, (-0.5, 0.1, 0.8)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for calls in args.calls:
        print(f"{calls} calls: RMSE to the exact ODE / W1 to the posterior")
        print(f"  {'':12}" + "".join(f"{method:>18}" for method in METHODS))
        for name in args.shapes:
            cells = {method: measured(SHAPES[name], method, calls) for method in METHODS}
            found.setdefault(str(calls), {})[name] = cells
            print(f"  {name:12}" + "".join(f"{f'{r:.4f} / {w:.4f}':>18}" for r, w in cells.values()), flush=True)
    if (args.calls, args.shapes) == ([5, 10, 20], list(SHAPES)):
        machine = platform.machine()
        path = RESULTS / f"bridges_{machine}_{time.strftime('%Y-%m-%d')}.json"
        record = {"command": "python benchmarks/bridges.py", "torch": torch.__version__, "machine": machine}
        record |= {"columns": ["rmse", "w1"], "found": found}
        path.write_text(json.dumps(record, indent=1) + "\n")


def measured(process: fs.Bridge, method: str, calls: int) -> list[float]:
    """[RMSE, W1], the mean over problems and y."""
    pairs = [one(process, method, calls, problem, y) for problem in PROBLEMS for y in problem.ys]
    return [round(sum(v) / len(pairs), 4) for v in zip(*pairs, strict=True)]


def one(process: fs.Bridge, method: str, calls: int, problem: Problem, y: float) -> tuple[float, float]:
    law = problem.given(process, y)
    end = torch.full((COUNT, 1), y, dtype=torch.float64)
    share = (torch.arange(COUNT, dtype=torch.float64) + 0.5) / COUNT
    eps = torch.special.ndtri(share)[:, None]
    table = fs.tabulate(None if method == "ours" else method, process, **placed(process, method, calls))
    assert table.nfe == calls
    first: list[tuple[float, Tensor]] = []
    keep = lambda row, t, z: (first.append((t, z)), z)[1]  # noqa: E731
    x = fs.sample(
        fs.bridged(partial(shown, law, process, end), end), process, solver=table, noise=eps[None], after=keep,
        x=process.prior(eps, y=end),
    )  # fmt: skip
    last = float(table.grid[-1])
    t, z = first[0] if process.pinned else (process.t_max, process.prior(eps, y=end))
    exact = quantile_map(law, z - process.n(t) * end, t, max(last, 1e-9)) + process.n(last) * end
    rmse = math.sqrt(float((x - exact).square().mean()))
    return rmse, float((x.flatten().sort().values - quantiles(law, share)).abs().mean())


def placed(process: fs.Bridge, method: str, calls: int) -> dict[str, object]:
    """Where the calls are."""
    if method == "ours":
        return {"steps": calls}
    t = process.t_max
    if process.pinned:
        times = torch.linspace(t - 1e-3 * t, 1e-4 * t, calls, dtype=torch.float64)
        return {"grid": torch.cat([times.new_tensor([t]), times])}
    return {"grid": torch.linspace(t, 1e-4 * t, calls + 1, dtype=torch.float64)}


def shown(law: fs.Mixture, process: fs.Bridge, y: Tensor, z: Tensor, t: float) -> Tensor:
    """The closed form as a network is called: with z."""
    return law(z - process.n(t) * y, t)


def quantiles(law: fs.Mixture, share: Tensor) -> Tensor:
    low, high = torch.full_like(share, -10.0), torch.full_like(share, 10.0)
    for _ in range(80):
        middle = (low + high) / 2
        below = (law.log_weights.exp() * torch.special.ndtr((middle[:, None] - law.means[:, 0]) / law.stds)).sum(1)
        low, high = torch.where(below < share, middle, low), torch.where(below < share, high, middle)
    return (low + high) / 2


if __name__ == "__main__":
    main()
