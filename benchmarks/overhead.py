"""What a run takes beyond its network calls: the shipped model's run beside the bare calls of its network.

    python benchmarks/overhead.py --out benchmarks/results/overhead_HARDWARE_DATE.json
    python benchmarks/overhead.py --device cuda --batch 1 256 --out ...        # where a GPU can be had

A case is a solver and a batch. `run` is `fewstep.sample` with its table made before, as `fewstep sample` calls it;
`calls` is the network alone, called as often on inputs of the same shape, dtype and labels (the loop's time labels
included, nothing else). They are run alternately, once each a repeat; the overhead is the median over the repeats of
run / calls - 1. On a processor the time is this process's own, so that others on the machine do not count; on a GPU it
is the wall clock up to the end of the last kernel, and the plan is also run compiled and captured as one CUDA graph:
`share` is calls / run, the share of the network's own floor that is reached.

Prediction, before the first run (2026-11-21): the network takes 12 ms for one image and 5 ms an image for 64; a step of
the loop takes 20 us and what comes before the run (plan, noise, wrapped calls) 200 us a step: 2 % for one image, below
0.5 % for 64.

Seen on 2026-11-21 (results/overhead_xeon_2026-11-21.json, two cores, nothing else running): one image 6 to 7 %, as 10
calls take 54 to 59 ms and what is outside the network 4 ms, twice what it takes alone, since every call leaves the
caches cold; 64 images 0 to 2 %. Noise on a Brownian path is dearer: DDPM takes 17 % more for one image of 784 numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import torch

import fewstep as fs
from fewstep.loop import Captured, Plan
from fewstep.loop.drive import noises_of
from fewstep.loop.plan import on_raw_outputs
from fewstep.noise import noise_source
from fewstep.pace import hardware


def cases(model: fs.Model, solver: str, steps: int, batch: int, device: str) -> dict[str, Callable[[], object]]:
    """The run, and its network calls alone; on a GPU also the run compiled and captured."""
    table, shape = fs.tabulate(solver, model.process, steps=steps), (batch, *model.shape)
    denoiser = model.denoiser([k % max(len(model.labels), 1) for k in range(batch)] if model.labels else None)
    inputs = torch.randn(shape, device=device)
    labels = [denoiser.ready(row.at).label for row in table.rows if row.at is not None]
    times = [torch.full((batch,), label, device=device) for label in labels]
    run = partial(fs.sample, denoiser, model.process, solver=table, shape=shape, device=device, progress=False)

    def calls() -> None:
        with torch.inference_mode():
            for t in times:
                denoiser.net(inputs, t)

    if torch.device(device).type != "cuda":
        return {"run": run, "calls": calls}
    plan = Plan.of(on_raw_outputs(table, denoiser), denoiser, like=inputs)
    noises = list(noises_of(table, noise_source(), shape, inputs.dtype, inputs.device))
    captured = Captured(plan, inputs, noises)
    compiled = partial(run, compile=True)
    return {"run": run, "compiled": compiled, "captured": partial(captured, inputs, noises), "calls": calls}


def seconds(run: Callable[[], object], device: str) -> float:
    """How long a function takes."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        run()
        torch.cuda.synchronize(device)
        return time.perf_counter() - began
    began = time.process_time()
    run()
    return time.process_time() - began


def main() -> None:
    """Measures each case, prints a line each, writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solver", nargs="+", default=["ddim", "dpmpp-2m", "unipc-3", "ddpm"])
    parser.add_argument("--steps", type=int, default=10, help="network calls of a run (default: 10)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--repeat", type=int, default=15, help="runs of each case (default: 15)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    if args.device == "cpu":
        torch.set_num_threads(1)
    model = fs.load(device=args.device)
    machine = hardware() if args.device == "cpu" else torch.cuda.get_device_name(args.device)
    record: dict = {"date": str(date.today()), "machine": machine, "torch": torch.__version__, "steps": args.steps,
                    "threads": torch.get_num_threads(), "network": str(model.dtype), "repeat": args.repeat,
                    "cases": []}  # fmt: skip
    for batch in args.batch:
        for solver in args.solver:
            made = cases(model, solver, args.steps, batch, args.device)
            for run in made.values():
                run()
            taken: dict[str, list[float]] = {name: [] for name in made}
            for _ in range(args.repeat):
                for name, run in made.items():
                    taken[name].append(seconds(run, args.device))
            image = {name: statistics.median(values) / batch * 1e3 for name, values in taken.items()}
            over = {
                name: statistics.median(a / b - 1 for a, b in zip(values, taken["calls"], strict=True))
                for name, values in taken.items()
                if name != "calls"
            }
            record["cases"].append({"solver": solver, "batch": batch, "ms an image": image, "overhead": over,
                                    "share": {name: 1 / (1 + value) for name, value in over.items()}})  # fmt: skip
            print(f"batch {batch}, {solver}:", *(f"{name} {ms:.2f} ms an image;" for name, ms in image.items()),
                  *(f"{name} {value:+.1%}" for name, value in over.items()))  # fmt: skip
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
