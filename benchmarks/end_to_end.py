"""Seconds of 1,000 images at equal Frechet distance: a diffusers pipeline and fewstep on the shipped network.

    python benchmarks/end_to_end.py --fitted fitted-4.table --out benchmarks/results/end_to_end_HARDWARE_DATE.json

The pipeline is the loop that the pipelines of diffusers run: `set_timesteps`, the network at every time step,
`scheduler.step`. It gets each scheduler on the spacings below, and all of them the same noises and classes as fewstep.
Both sides call the same network on batches of the same size. A row is one sampler at one number of steps: wall-clock
seconds of all images, network included, and the Frechet distance of the images in the shipped classifier's features
(test images as the reference). What it answers: for each row of fewstep, how many times longer the fastest pipeline
takes whose Frechet distance is not above it; and at equal calls, how much longer than its network a run of fewstep is.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import diffusers
import torch
from torch import Tensor

import fewstep as fs
from fewstep.model import call_network
from fewstep.model.draw import draw
from fewstep.noise import Noise
from fewstep.pace import hardware
from fewstep.quality import frechet_distance, load_classifier, load_reference

SCHEDULERS = {
    "DDIM": (diffusers.DDIMScheduler, {"timestep_spacing": "trailing", "clip_sample": False}),
    "UniPC": (diffusers.UniPCMultistepScheduler, {}),
    "UniPC, karras": (diffusers.UniPCMultistepScheduler, {"use_karras_sigmas": True}),
    "DPM++ 2M": (diffusers.DPMSolverMultistepScheduler, {}),
    "DPM++ 2M, karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "DPM++ 3M": (diffusers.DPMSolverMultistepScheduler, {"solver_order": 3}),
    "DPM++ 2M, lu": (diffusers.DPMSolverMultistepScheduler, {"use_lu_lambdas": True}),
    "DEIS": (diffusers.DEISMultistepScheduler, {}),
}  # fmt: skip


def betas(process: fs.Process, count: int = 1000) -> Tensor:
    """The process's own betas on `count` evenly spaced times: what a scheduler is made of."""
    t = torch.linspace(process.t_min, process.t_max, count, dtype=torch.float64)
    alphas = torch.sigmoid(2 * process.log_snr(t))
    return 1 - alphas / torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])


def batches(images: int, batch: int) -> Iterator[tuple[int, int]]:
    for first in range(0, images, batch):
        yield first, min(batch, images - first)


@torch.inference_mode()
def pipeline(model: fs.Model, scheduler: object, steps: int, images: int, batch: int) -> Tensor:
    """Images of a diffusers pipeline's loop."""
    parts = []
    for first, size in batches(images, batch):
        scheduler.set_timesteps(steps)
        x = Noise(0, first).normal("initial", 0, (size, *model.shape)) * scheduler.init_noise_sigma
        classes = torch.arange(first, first + size) % len(model.labels) + 1
        for t in scheduler.timesteps:
            v = call_network(model.net, scheduler.scale_model_input(x, t), t, classes, model.patch, model.process)
            x = scheduler.step(v, t, x).prev_sample
        parts.append(x.clamp(-1, 1))
    return torch.cat(parts)


def ours(model: fs.Model, table: fs.Tableau, images: int, batch: int) -> Tensor:
    labels = [k % len(model.labels) for k in range(images)]
    return draw(model, table, num=images, labels=labels, batch=batch).images


@torch.inference_mode()
def bare(model: fs.Model, calls: int, images: int, batch: int) -> Tensor:
    """As many calls of the network as a run takes, and nothing else."""
    for _, size in batches(images, batch):
        x, classes = torch.randn(size, *model.shape), torch.ones(size, dtype=torch.long)
        for _ in range(calls):
            call_network(model.net, x, torch.full((size,), 500.0), classes, model.patch, model.process)
    return x


def main() -> None:
    """Measures, prints a line each, writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--calls", type=int, nargs="+", default=[4, 5, 10], help="of the default (default: 4 5 10)")
    parser.add_argument("--fitted", type=Path, nargs="*", default=[], help="tables of fewstep fit")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 8, 10, 12, 15, 20], help="of the pipelines")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, classifier, real = fs.load(), load_classifier(), load_reference().test
    tables = {f"default, {n}": fs.tabulate(None, model.process, steps=n) for n in args.calls}
    tables |= {f"fitted, {(t := fs.tabulate(path, model.process)).nfe} ({path.name})": t for path in args.fitted}
    runs: dict[str, tuple[str, int, Callable[[], Tensor]]] = {}
    for name, table in tables.items():
        runs[f"fewstep {name}"] = ("fewstep", table.nfe, lambda t=table: ours(model, t, args.images, args.batch))
        runs[f"network {table.nfe}"] = (
            "network",
            table.nfe,
            lambda n=table.nfe: bare(model, n, args.images, args.batch),
        )
    for name, (cls, options) in SCHEDULERS.items():
        for steps in args.steps:
            made = cls(trained_betas=betas(model.process).numpy(), prediction_type="v_prediction", **options)
            runs[f"{name}, {steps}"] = (
                "diffusers", steps, lambda s=made, n=steps: pipeline(model, s, n, args.images, args.batch)
            )  # fmt: skip
    rows = []
    bare(model, 2, 2 * args.batch, args.batch)  # warm
    for name, (side, calls, run) in runs.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            began, cpu = time.perf_counter(), time.process_time()
            images = run()
            taken, cpu = time.perf_counter() - began, time.process_time() - cpu
        distance = None if side == "network" else float(frechet_distance(classifier.features(images), real))
        rows.append({"name": name, "side": side, "calls": calls, "seconds": taken, "cpu": cpu, "frechet": distance})
        print(
            f"{name}: {taken:.1f} s ({cpu:.1f} s of processor)" + (f", {distance:.3f}" if distance else ""), flush=True
        )
    floor = {row["calls"]: row["cpu"] for row in rows if row["side"] == "network"}
    for row in rows:
        if row["side"] != "fewstep":
            continue
        equal = [other for other in rows if other["side"] == "diffusers" and other["frechet"] <= row["frechet"]]
        best = min(equal, key=lambda other: other["cpu"], default=None)
        row |= {"over the network": row["cpu"] / floor[row["calls"]] - 1, "equal": best and best["name"],
                "times faster": best and best["cpu"] / row["cpu"]}  # fmt: skip
        beside = f"{row['times faster']:.2f} times faster than {best['name']}" if best else "no pipeline reaches it"
        print(f"{row['name']} at {row['frechet']:.3f}: {beside}; {row['over the network']:+.1%} over the network")
    if args.out:
        record = {"date": str(date.today()), "machine": hardware(), "torch": torch.__version__,
                  "diffusers": diffusers.__version__, "images": args.images, "batch": args.batch, "seed": 0,
                  "rows": rows}  # fmt: skip
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
