"""Inverse problems on the shipped model: how near each method comes to the image that was observed.

    python benchmarks/inverse_problems.py --out benchmarks/results/inverse_problems_MODEL_HARDWARE_DATE.json

Images are samples of the model itself. Seen of each, with noise of standard deviation 0.05, are its right half, or the
means of 4 x 4 pixels. Printed for each method: its calls, the root mean square of the residual y - A x and of the
distance to the image, and the largest absolute value. A method is written when it is done; a run of the same --out
goes on with those that are missing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fewstep as fs
from fewstep.files import write_json
from fewstep.pace import hardware
from fewstep.terminal import Bar

NOISE, STD = 0.05, 0.5
OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "right half": lambda x: x[..., 14:],
    "means of 4 x 4": lambda x: torch.nn.functional.avg_pool2d(x, 4),
}


def methods(model: Any, seen: fs.Observation) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Name -> (denoiser, options of `sample`)."""
    process, few, many = model.process, {"steps": 20}, {"steps": 40}
    found = {
        "unguided": (model.denoiser(), few),
        "DDNM": (fs.DDNM(model.denoiser(), seen, std=STD), few),
        "pigdm": (fs.pigdm(model.denoiser(), seen, std=STD), few),
        "pigdm, t <= 0.5": (fs.pigdm(model.denoiser(), seen, std=STD, interval=(0.0, 0.5)), few),
        "dps, DDPM": (fs.dps(model.denoiser(), seen, normalised=True), {**many, "solver": fs.ReverseMean(step=1.0)}),
    }
    if seen.forward is OPERATORS["right half"]:  # pixels, which have a place in the state
        y, mask = torch.nn.functional.pad(seen.y, (14, 0)), torch.arange(28) >= 14
        found["replacement"] = (model.denoiser(), {**few, "after": fs.Replacement(process, y, mask)})
        found["replacement, DDPM"] = (
            model.denoiser(),
            {**many, "solver": fs.DDPM(), "after": fs.Replacement(process, y, mask)},
        )
    return found


def main() -> None:
    """Measures what is missing, prints and writes each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    record: dict[str, Any] = {"images": args.images, "points": []}
    if args.out.exists():
        record = json.loads(args.out.read_text(encoding="utf-8"))
        if record["images"] != args.images:
            parser.error(f"{args.out} was measured on {record['images']} images: give another --out, or as many")
    model, points = fs.load(), record["points"]
    where = {"shape": (args.images, *model.shape), "final": "state", "progress": False}
    labels = torch.arange(args.images) % len(model.labels)
    image = fs.sample(model.denoiser(labels), model.process, steps=20, seed=5, **where).clamp(-1, 1)
    with Bar(12, "inverse problems") as bar:
        for problem, forward in OPERATORS.items():
            y = forward(image)
            y = y + NOISE * fs.Noise(7).normal("observation", 0, tuple(y.shape))
            for name, (denoiser, options) in methods(model, fs.Observation(forward, y, NOISE)).items():
                if not any((p["problem"], p["method"]) == (problem, name) for p in points):
                    x = fs.sample(denoiser, model.process, **where, **options)
                    rms = {
                        k: float(v.square().mean().sqrt())
                        for k, v in (("residual", y - forward(x)), ("distance", x - image))
                    }
                    points.append({"problem": problem, "method": name, "calls": options["steps"], **rms,
                                   "largest": float(x.abs().max())})  # fmt: skip
                    print(
                        "  ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in points[-1].values()),
                        flush=True,
                    )
                    made = {"date": str(date.today()), "torch": torch.__version__, "machine": hardware()}
                    write_json(args.out, made | record)
                bar.advance()


if __name__ == "__main__":
    main()
