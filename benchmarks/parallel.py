"""A long ancestral run of the shipped model in parallel in time, beside the same run row by row.

    python benchmarks/parallel.py --images 256 --out benchmarks/results/parallel_HARDWARE_DATE.json

Both runs have the same starting noises, labels and path. Printed, and written with --out: rounds of network calls (the
most of any batch) against the sequential run's, calls an image, and the distance between the images of the two (root
mean square over pixels) against the deviation of the sequential run's pixels. With --exact also a run with tolerance 0,
which must agree to 1e-4, on the first batch.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import date
from pathlib import Path

import torch

import fewstep as fs
from fewstep.pace import hardware


def main() -> None:
    """Runs batch by batch, prints a line each, writes the record after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32, help="images run together (default: 32)")
    parser.add_argument("--solver", choices=list(fs.TABLES), default="ddpm")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--window", type=int, default=64, help="rows called in one round; 0 is all (default: 64)")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--exact", action="store_true", help="also tolerance 0 on the first batch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    model = fs.load(device=args.device)
    table = fs.tabulate(args.solver, model.process, steps=args.steps, final="state")
    how = fs.Parallel(window=args.window or None, tolerance=args.tolerance)
    images, distances, calls, rounds, began = [], [], [], [], time.perf_counter()
    for first in range(0, args.images, args.batch):
        size = min(args.batch, args.images - first)
        denoiser = model.denoiser([(first + i) % len(model.labels) for i in range(size)])
        where = {"shape": (size, *model.shape), "first": first, "device": args.device}
        one = fs.sample(denoiser, model.process, solver=table, progress=False, **where)
        found = fs.solve(denoiser, model.process, solver=table, parallel=how, **where)
        images.append(one.cpu())
        distances.append((found.state - one).flatten(1).double().square().mean(1).sqrt().cpu())
        calls.append(found.calls)
        rounds.append(found.rounds)
        record = {
            "date": str(date.today()), "torch": torch.__version__, "machine": hardware(), **vars(args) | {"out": None},
            "images": first + size, "sequential rounds": table.nfe, "rounds": max(rounds),
            "calls an image": float(torch.cat(calls).double().mean()),
            "distance": float(torch.cat(distances).square().mean().sqrt()), "worst": float(torch.cat(distances).max()),
            "deviation": float(torch.cat(images).std()), "seconds": round(time.perf_counter() - began, 1),
        }  # fmt: skip
        if args.exact and not first:
            exact = fs.solve(denoiser, model.process, solver=table, parallel=fs.Parallel(tolerance=0.0), **where)
            record |= {"exact": float((exact.state - one).abs().max()), "exact rounds": exact.rounds}
            print(f"tolerance 0: {exact.rounds} rounds, {record['exact']:.1e} off at most", flush=True)
        share, deviation = record["rounds"] / table.nfe, record["deviation"]
        print(f"{first + size} images: {record['rounds']} rounds of {table.nfe} ({share:.1%}), "
              f"{record['calls an image']:.0f} calls an image, distance {record['distance'] / deviation:.2e} of the "
              f"deviation {deviation:.3f} (worst image {record['worst'] / deviation:.2e})", flush=True)  # fmt: skip
        if args.out:
            args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
