"""Likelihoods of events on the sphere: volcanoes, earthquakes, fires; learned by `fewstep train`, a minute a row.

    python benchmarks/sphere.py --data sphere_events.npz               # latitudes and longitudes (N, 2) in degrees
    python benchmarks/sphere.py --data more.npz --method riemannian-flow --seed 1

The events of every array of the file are split 80 / 10 / 10 by the seed. Of each split the table has minus the mean
log density by area, in nats (2.531 of the uniform law), of the test split the kernel density estimate's too, whose
spread is chosen on the second split; then the mass all over and the largest | |x| - 1 | of 1,000 samples.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fewstep as fs
from fewstep.manifold import Field, Sphere, load
from fewstep.pace import hardware
from fewstep.train.drifts.manifold import vectors

SPREADS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def even(count: int) -> Tensor:
    """Points of equal areas."""
    k = torch.arange(count, dtype=torch.float64) + 0.5
    z, angle = 1 - 2 * k / count, math.pi * (1 + 5**0.5) * k
    flat = (1 - z * z).sqrt()
    return torch.stack([flat * angle.cos(), flat * angle.sin(), z], 1)


def mass(field: Field) -> float:
    """Of the density: the mean of two grids of even points."""
    found = [float(field.log_prob(even(count), steps=60).exp().mean() * 4 * math.pi) for count in (20_000, 21_111)]
    return sum(found) / 2


def estimate(train: Tensor, x: Tensor, spread: float) -> float:
    """Minus the mean log density of the heat kernel put on every event."""
    s = torch.full((len(train),), spread, dtype=torch.float64)
    logs = [Sphere(2).log_kernel(one.expand(len(train), 3), train, s).logsumexp(0) for one in x]
    return math.log(len(train)) - float(torch.stack(logs).mean())


def row(events: np.ndarray, args: argparse.Namespace) -> dict[str, float]:
    """All figures of one kind of event."""
    order = np.random.default_rng(args.seed).permutation(len(events))
    ends = (int(0.8 * len(events)), int(0.9 * len(events)))
    train, held, test = (events[part] for part in np.split(order, ends))
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        path = fs.train(train, folder, method=args.method, options={"degrees": True}, width=128, depth=4, batch=512,
                        steps=args.steps, seed=args.seed, quiet=True)  # fmt: skip
        field = load(path)
    found: dict[str, float] = {"events": len(events), "seconds": time.process_time() - began}
    points = [torch.from_numpy(vectors(part)) for part in (train, held, test)]
    for name, x in zip(("train", "held out", "test"), points, strict=True):
        found[name] = -float(field.log_prob(x[:2000]).mean())
    best = min(SPREADS, key=lambda spread: estimate(points[0], points[1][:200], spread))
    found["test, kernels"] = estimate(points[0], points[2][:500], best)
    found["mass"] = mass(field)
    found["off the sphere"] = float((field.draw(1000).norm(dim=1) - 1).abs().max())
    return {name: float(f"{value:.3g}") for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="an npz file of arrays (N, 2), degrees")
    parser.add_argument("--method", choices=("riemannian-score", "riemannian-flow"), default="riemannian-score")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where the figures are written (default: nowhere)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    with np.load(args.data, allow_pickle=False) as file:
        for name in file.files:
            rows[name] = row(file[name], args)
            print(f"{name:<12}", *(f"{key} {value:g} " for key, value in rows[name].items()), flush=True)
    if args.out:
        made = {"date": str(date.today()), "torch": torch.__version__, "machine": hardware(), "seed": args.seed}
        args.out.write_text(json.dumps(made | {"method": args.method, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
