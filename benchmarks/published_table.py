"""The gDDIM paper's table on real data: samplers x network calls on VP, blurring and CLD, the same small network each.

    python benchmarks/published_table.py --out benchmarks/results/published_table_HARDWARE_DATE.json
    python benchmarks/published_table.py --out ... --page docs/published_table.md     # from the record, runs nothing
    python benchmarks/published_table.py --out ... --cards                            # into the models' cards, likewise

Per process one row a sampler (ancestral or Euler-Maruyama, probability-flow RK45 and Heun, gDDIM-2, our default)
and one column a number of calls; all cells start from the same noises and labels. A cell holds the Frechet distance in
the shipped classifier's features against the 10,000 test images, its ratio to the converged run's with a 95 % interval
(basic bootstrap over samples, the same resamples in both), and the root mean square distance to the converged run's
images. Every cell is kept in --work as soon as it is done: a run that is killed goes on where it stood.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fewstep as fs
from fewstep.files import json_text, load_tensors, read_json, save_tensors, write_text
from fewstep.model import Model
from fewstep.pace import hardware
from fewstep.quality import frechet_distance, load_classifier, load_reference
from fewstep.train.card import add_quality

MODELS = Path(__file__).parent.parent / "models"
COLUMNS = (10, 20, 50, 100)
BATCH = 250
RESAMPLES = 200
PAPER = {  # ratio to the converged value, Zhang, Tao, Chen 2022, https://arxiv.org/abs/2206.05564
    "vp": {10: 1.63, 20: 1.18, 50: 1.01},
    "blurring": {10: 1.84, 20: 1.21, 50: 1.01},
    "cld": {10: 5.9, 20: 1.50, 50: 1.00},
}


@dataclass(frozen=True)
class Row:
    """A sampler: its solver, "sde" or "ode", the converged run it is held against, and its grid."""

    title: str
    solver: str
    limit: str = "ode"
    grid: str = "power"


def rows(process: str) -> list[Row]:
    """The samplers of one process; the last is our default, and its converged run is the one of all ODE samplers."""
    first = Row("Euler-Maruyama", "euler-maruyama", "sde") if process == "cld" else Row("ancestral", "ddpm", "sde")
    best = fs.DEFAULT_SOLVERS[fs.PROCESSES[process].kind]
    return [
        first,
        Row("RK45", "rk45"),
        Row("Heun", "heun"),
        Row("gDDIM", "gddim-2"),
        Row(f"our default: {best}", best, grid="default"),
    ]


@dataclass(frozen=True)
class Study:
    """What all cells share."""

    work: Path
    samples: int
    converged: int
    seed: int
    kept_only: bool = False

    def cell(self, process: str, solver: str, calls: int, grid: str = "power") -> dict[str, Tensor]:
        """Images (n, h w) float16, features (n, d), mean calls, seconds, tolerance; made once and kept."""
        path = self.work / process / f"{solver}-{grid}-{calls}-{self.samples}-{self.seed}.safetensors"
        if not path.exists() and self.kept_only:
            return {}
        if not path.exists():
            model = fs.load(MODELS / f"fashion-{process}")
            began, tolerance = time.perf_counter(), torch.nan
            if solver == "rk45":
                tolerance = self.tolerance(model, calls)
                images, used = self.adaptive(model, tolerance, self.samples)
            else:
                table = fs.tabulate(solver, model.process, steps=calls, grid=grid, final="state")
                images, used = torch.cat(list(self.batches(model, table))), float(table.nfe)
            numbers = {"calls": used, "seconds": time.perf_counter() - began, "tolerance": tolerance}
            found = {"images": images.flatten(1).half(), "features": load_classifier().features(images)}
            save_tensors(path, found | {k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()})
        return load_tensors(path)

    def batches(self, model: Model, table: fs.Tableau) -> Iterator[Tensor]:
        """Images of all samples, a batch at a time."""
        for first in range(0, self.samples, BATCH):
            size = min(BATCH, self.samples - first)
            denoiser = model.denoiser([k % 10 for k in range(first, first + size)])
            z = fs.sample(denoiser, model.process, solver=table, shape=(size, *model.shape), seed=self.seed,
                          first=first, progress=False)  # fmt: skip
            yield model.process.to_data(z).float().clamp(-1, 1)

    def adaptive(self, model: Model, tolerance: float, samples: int) -> tuple[Tensor, float]:
        """Images and mean calls of RK45 at a tolerance, from the same noises; label by label, since samples leave."""
        noise = fs.Noise(seed=self.seed).normal("initial", 0, (samples, *model.process.state_shape(model.shape)))
        start = model.process.prior(noise)
        images, calls = torch.empty(samples, *model.shape), torch.empty(samples)
        for label in range(10):
            mine = slice(label, None, 10)
            outcome = fs.solve(model.denoiser(label), model.process, x=start[mine],
                               solver=fs.RK45(rtol=tolerance, atol=tolerance))  # fmt: skip
            images[mine] = model.process.to_data(outcome.state).float().clamp(-1, 1)
            calls[mine] = outcome.calls.float()
        return images, float(calls.mean())

    def tolerance(self, model: Model, calls: int) -> float:
        """The smallest tolerance at which 20 samples take at most `calls` calls on average, within 3 %."""
        low, high = -8.0, 4.0
        while high - low > 0.01:
            middle = (low + high) / 2
            low, high = (low, middle) if self.adaptive(model, 10**middle, 20)[1] <= calls else (middle, high)
        return 10**high


def measure(study: Study, process: str) -> Iterator[dict[str, Any]]:
    """The cells of one process, each a line of the record."""
    reference = load_reference()
    limiting = rows(process)[0], rows(process)[-1]
    limits = {row.limit: study.cell(process, row.solver, study.converged, row.grid) for row in limiting}
    generator = torch.Generator().manual_seed(0)
    picks = [torch.randint(study.samples, (study.samples,), generator=generator) for _ in range(RESAMPLES)]
    distance = lambda features: frechet_distance(reference.test, features)  # noqa: E731
    whole = {k: distance(v["features"]) for k, v in limits.items()}
    resampled = {k: torch.tensor([distance(v["features"][pick]) for pick in picks]) for k, v in limits.items()}
    for row in rows(process):
        for calls in (*COLUMNS, study.converged):
            if calls == study.converged and row not in limiting:
                continue
            cell, limit = study.cell(process, row.solver, calls, row.grid), limits[row.limit]
            if not cell:
                continue
            frechet = distance(cell["features"])
            again = torch.tensor([distance(cell["features"][pick]) for pick in picks])
            ratio, spread = frechet / whole[row.limit], again / resampled[row.limit]
            yield {
                "process": process, "row": row.title, "solver": row.solver, "column": calls,
                "calls": float(cell["calls"]), "seconds": float(cell["seconds"]), "frechet": frechet,
                "interval": interval(frechet, again), "ratio": ratio, "ratio interval": interval(ratio, spread),
                "rmse": float((cell["images"].float() - limit["images"].float()).square().mean().sqrt()),
                "tolerance": None if torch.isnan(cell["tolerance"]) else float(cell["tolerance"]),
            }  # fmt: skip


def interval(value: float, resampled: Tensor) -> list[float]:
    """The basic bootstrap's 95 % interval: twice the value minus the resamples' quantiles, which undoes their bias."""
    low, high = torch.quantile(resampled.double(), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return [2 * value - high, 2 * value - low]


def page(record: dict[str, Any]) -> str:
    """The page of docs: one table a process."""
    lines = [
        "# The published table, on real data",
        "",
        "Fashion-MNIST, one UNet of "
        f"{record['parameters']:,} parameters trained for {record['images']:,} images under each process "
        "(`models/`, with their cards). "
        f"{record['samples']:,} samples a cell, the same starting noises and labels in all of them, seed "
        f"{record['seed']}; {record['machine']}, torch {record['torch']}, {record['date']}:",
        "",
        f"    {record['command']}",
        "",
        "A cell: Frechet distance in the shipped classifier's features against the 10,000 test images / its ratio to "
        "the converged run's with a 95 % bootstrap interval / root mean square distance to the converged run's images "
        "(pixels in [-1, 1]). ODE samplers share one converged run, the last row's. "
        f"{record['samples']:,} real images against the test set (the floor): {record['floor']:.3f}. "
        "Published samplers run on the `power` grid, the last row on the process's default. RK45's tolerance is the "
        "smallest that keeps the mean calls within the column; its calls are means over samples.",
        "",
    ]
    for process in dict.fromkeys(cell["process"] for cell in record["cells"]):
        cells = [cell for cell in record["cells"] if cell["process"] == process]
        columns = [*COLUMNS, record["converged"]]
        lines += [f"## {process}", "", f"| sampler | {' | '.join(map(str, columns))} |", "|---" * 6 + "|"]
        for title in dict.fromkeys(cell["row"] for cell in cells):
            found = {cell["column"]: cell for cell in cells if cell["row"] == title}
            lines.append(f"| {title} | {' | '.join(text(found.get(column), column) for column in columns)} |")
        paper = " / ".join(f"{ratio:.2f} at {calls}" for calls, ratio in PAPER[process].items())
        lines += ["", f"The paper's ratios to its converged value: {paper}.", ""]
    return "\n".join(lines)


def text(cell: dict[str, Any] | None, column: int) -> str:
    """One cell of the page."""
    if cell is None:
        return "as below" if column not in COLUMNS else "not run"
    low, high = cell["ratio interval"]
    calls = "" if abs(cell["calls"] - column) < 0.5 else f" ({cell['calls']:.0f} calls)"
    return f"{cell['frechet']:.2f} / {cell['ratio']:.2f} [{low:.2f}, {high:.2f}] / {cell['rmse']:.3f}{calls}"


def write_cards(record: dict[str, Any]) -> None:
    """The Frechet distances of the record into the cards of the models they were measured on."""
    same = {"samples": record["samples"], "date": record["date"]}
    for process in dict.fromkeys(cell["process"] for cell in record["cells"]):
        grids = {row.solver: row.grid for row in rows(process)} | {"rk45": "its own steps"}
        lines = [
            {"solver": cell["solver"], "grid": grids[cell["solver"]], "calls": round(cell["calls"]), **same,
             "Frechet": cell["frechet"]}
            for cell in record["cells"] if cell["process"] == process
        ]  # fmt: skip
        floor = {"solver": "real images (floor)", "grid": "", "calls": "", **same, "Frechet": record["floor"]}
        add_quality(MODELS / f"fashion-{process}", [*lines, floor])


def main() -> None:
    """Makes what is missing, prints each cell, writes the record; or writes the page or the cards from the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000, help="a cell (default: 2000)")
    parser.add_argument("--converged", type=int, default=200, help="calls of the converged runs (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--process", nargs="+", choices=PAPER, default=list(PAPER))
    parser.add_argument("--work", type=Path, default=Path("runs/published_table"))
    parser.add_argument("--kept", action="store_true", help="make no cell, report those in --work")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--page", type=Path, help="write the page from --out and run nothing")
    parser.add_argument("--cards", action="store_true", help="write the models' cards from --out and run nothing")
    args = parser.parse_args()
    if args.page or args.cards:
        record = read_json(args.out, "a record of this script")
        if args.page:
            write_text(args.page, page(record))
        if args.cards:
            write_cards(record)
        return
    study = Study(args.work, args.samples, args.converged, args.seed, args.kept)
    cells: list[dict[str, Any]] = []
    for process in args.process:
        for cell in measure(study, process):
            cells.append(cell)
            print(f"{process:9} {cell['row']:22} {text(cell, cell['column'])}  {cell['seconds']:.0f} s", flush=True)
    training = fs.load(MODELS / f"fashion-{args.process[0]}").facts["training"]
    record = {
        "date": str(date.today()), "torch": torch.__version__, "machine": hardware(), "samples": args.samples,
        "converged": args.converged, "seed": args.seed, "parameters": training["parameters"],
        "images": training["images"], "floor": load_reference().floor(args.samples).frechet,
        "command": f"python benchmarks/published_table.py --samples {args.samples} --out {args.out}", "cells": cells,
    }  # fmt: skip
    write_text(args.out, json_text(record))


if __name__ == "__main__":
    main()
