r"""Restoration on Fashion-MNIST, 4x down-scaled: distance and distortion over calls, bridges and a conditional model.

    python benchmarks/restore.py --data fashion_mnist.npz              # trains what is missing, measures, writes
    python benchmarks/restore.py --data fashion_mnist.npz --num 200    # fewer pictures; prints alone

Four networks of 428,000 parameters see 102,400 pictures each (some 4 minutes of one core in bfloat16): I2SB, InDI and
IR-SDE by `fewstep train bridge`, and the conditional VP model of the same method. Of each the table has, at 1, 2, 5, 10
and 50 calls and by the process's own chain (`ddim` with eta = 1; InDI's has no noise: eta = 0) on the grid of this
library, PSNR and the Frechet distance to the test set in the features of the shipped classifier; the last columns are
the published sampler at 20 calls, on its published grid.

Judged on I2SB: one call has the best PSNR; the best distance lies at 2 to 10 calls; at one of them the distance is at
least 15 % below that of one call at most 1 dB lower; and ours at 5 calls is at or below the published sampler at 20.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fewstep as fs
from fewstep.data.degrade import degradation
from fewstep.model.draw import draw
from fewstep.pace import Pace, hardware
from fewstep.quality import load_classifier, load_reference
from fewstep.quality.metrics import frechet_distance
from fewstep.train.pairs import Batch, Draw
from fewstep.train.students import train_student

HERE = Path(__file__).parent
KINDS = {"i2sb": 1.0, "indi": 0.0, "ir-sde": 1.0, "vp": 1.0}  # eta of the method's own chain
CALLS = (1, 2, 5, 10, 50)
PUBLISHED = 20
TRAINING = {"images": 102_400, "batch": 64, "warmup": 4000, "channels": (32, 48)}
DEGRADE = "downscale4"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="fashion_mnist.npz")
    parser.add_argument("--models", type=Path, default=Path("restore-models"), help="folder of the runs (this)")
    parser.add_argument("--num", type=int, default=400, help="test pictures (400)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for kind in KINDS:
        if not (args.models / kind / "model").exists():
            train_student(args.data, args.models / kind, method="bridge", options={"kind": kind, "degrade": DEGRADE},
                     pace=Pace(precision="bfloat16", threads=1), **TRAINING)  # fmt: skip
    with np.load(args.data) as file:
        x = torch.from_numpy(file["x_test"][: args.num].astype(np.float32) / 127.5 - 1)[:, None]
    y = degradation(DEGRADE)(x, Draw(Batch(x), 0))
    measure = Measure(x)
    found: dict[str, dict[str, list[Any]]] = {"y": {"0": measure(y)}, "other clothes": {"0": measure.floor}}
    print(f"{'':10}" + "".join(f"{n:>16}" for n in (*CALLS, f"published {PUBLISHED}")), flush=True)
    for kind, eta in KINDS.items():
        model = fs.load(
            args.models / kind / "model", pace=Pace(precision="bfloat16", memory_format="contiguous", threads=1)
        )
        tables = {str(n): fs.tabulate(fs.DDIM(eta=eta), model.process, steps=n) for n in CALLS}
        tables["published"] = published(kind, model.process)
        found[kind] = {}
        for name, table in tables.items():
            found[kind][name] = measure(draw(model, table, num=len(y), y=y, batch=100).samples)
        cells = [f"{f'{p:.2f} / {d:.2f}':>16}" for p, d in found[kind].values()]
        print(f"{kind:10}" + "".join(cells), flush=True)
    verdicts = judged(found["i2sb"])
    for name, good in verdicts.items():
        print(f"{'yes' if good else 'NO ':4}{name}")
    if args.num < 400:
        return
    command = "python benchmarks/restore.py --data fashion_mnist.npz"
    record = {"command": command, "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__, "machine": hardware(),
              "columns": ["psnr", "frechet"], "pictures": len(y), "training": TRAINING, "degrade": DEGRADE,
              "found": found, "judged": verdicts}  # fmt: skip
    path = HERE / "results" / f"restore_fashion_xeon_{time.strftime('%Y-%m-%d')}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    drawn(found, HERE.parent / "docs" / "images" / "restore.png")


class Measure:
    """[PSNR in dB, Frechet distance] of restorations of test pictures."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.classifier, reference = x, load_classifier(), load_reference()
        self.test = reference.test.double()
        self.floor: list[Any] = [
            None,
            round(float(frechet_distance(reference.held_out[: len(x)].double(), self.test)), 3),
        ]

    def __call__(self, made: Tensor) -> list[float]:
        made = made.clamp(-1, 1)
        error = (made - self.x).square().flatten(1).mean(1)
        distance = frechet_distance(self.classifier.features(made).double(), self.test)
        return [round(float((10 * torch.log10(4 / error)).mean()), 3), round(float(distance), 3)]


def published(kind: str, process: fs.Process) -> fs.Tableau:
    """The method's own sampler at 20 calls: I2SB's and IR-SDE's posterior on their schedules, InDI's and DDPM's steps.

    I2SB's ends at its index 0 and keeps some y; its first step is the boot.
    """
    if kind == "i2sb":
        times = fs.presets.i2sb_times()
        chosen = torch.linspace(0, len(times) - 1, PUBLISHED + 1).round().long().flip(0)
        grid = times[chosen] * (process.t_max / float(times[-1]))
        return fs.tabulate("ddpm", process, grid=torch.cat([grid.new_tensor([process.t_max]), grid[1:]]))
    if kind == "ir-sde":
        times = fs.presets.ir_sde_times()[:: 100 // PUBLISHED].flip(0)
        return fs.tabulate("ddpm", process, grid=times * (process.t_max / float(times[0])))
    if kind == "indi":
        return fs.tabulate("ddim", process, grid=torch.linspace(1, 0, PUBLISHED + 1, dtype=torch.float64))
    return fs.tabulate("ddpm", process, grid="uniform", steps=PUBLISHED)


def judged(found: dict[str, list[float]]) -> dict[str, bool]:
    """The points of the docstring."""
    (first_psnr, first), few = found["1"], [found[str(n)] for n in CALLS if 2 <= n <= 10]
    runs = [found[str(n)] for n in CALLS]
    return {
        "one call has the best PSNR": first_psnr == max(p for p, _ in runs),
        "the best distance lies at 2 to 10 calls": min(d for _, d in runs) == min(d for _, d in few),
        "15 % below one call's at 1 dB lost": any(d <= 0.85 * first and p >= first_psnr - 1 for p, d in few),
        "5 calls at or below the published 20": found["5"][1] <= found["published"][1],
    }


def drawn(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Distance over PSNR, a line a method."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4.2))
    for kind in KINDS:
        points = [found[kind][str(n)] for n in CALLS]
        (line,) = axes.plot(*zip(*points, strict=True), marker="o", label=kind)
        for n, point in zip(CALLS, points, strict=True):
            axes.annotate(str(n), (point[0], point[1]), textcoords="offset points", xytext=(4, 4), fontsize=8)
        axes.plot(*found[kind]["published"], marker="x", color=line.get_color(), linestyle="none")
    axes.axhline(found["other clothes"]["0"][1], color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="PSNR, dB (to the right: nearer to the picture)", ylabel="Frechet distance (below: sharper)")
    axes.set_yscale("log")
    axes.legend(title="calls at the points; x published, 20")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
