"""What guidance buys and costs on the shipped model: label accuracy and coverage against the scale w, plotted.

    python benchmarks/guidance.py --out benchmarks/results/guidance_fashion-unet_HARDWARE_DATE.json \
        --plot docs/images/guidance.png

For every rule and scale the same noises and labels are sampled; the classifier of `fewstep.quality` says which share
has the label it was asked for, and its features are compared with those of as many real images. A point is written
when it is done, and a run of the same --out goes on with those that are missing.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import torch

import fewstep as fs
from fewstep.files import write_json
from fewstep.pace import hardware
from fewstep.quality import load_classifier, load_reference
from fewstep.terminal import Bar

RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "interval": {"interval": (0.15, 0.6)},  # where classes are decided, in VP's time
    "rescale": {"rule": fs.Rescale(share=0.7)},
    "apg": {"rule": fs.APG(parallel=0.0)},
}
SHOWN = ("accuracy", "recall", "coverage", "precision", "frechet")


def point(model: fs.Model, rule: str, scale: float, args: argparse.Namespace) -> dict[str, float]:
    """Samples with one rule and scale, and what the yardsticks say of them."""
    labels, images, began = torch.arange(args.images) % len(model.labels), [], time.perf_counter()
    for first in range(0, args.images, args.batch):
        part = labels[first : first + args.batch]
        options = {} if scale == 1 else RULES[rule]
        guided = fs.guide(model.denoiser(part), model.denoiser(None), scale, **options)
        where = {"shape": (len(part), *model.shape), "first": first, "progress": False}
        images.append(fs.sample(guided, model.process, steps=args.steps, **where).clamp(-1, 1))
    x, judge = torch.cat(images), load_classifier()
    quality = load_reference().quality(judge.features(x)).as_dict()
    accuracy = float((judge.logits(x).argmax(1) == labels).double().mean())
    return {"accuracy": accuracy, **quality, "seconds": time.perf_counter() - began}


def plot(points: list[dict[str, Any]], path: Path) -> None:
    """Accuracy, coverage and Frechet distance against the scale, a line a rule."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for axis, (name, label) in zip(
        axes,
        {"accuracy": "label accuracy", "recall": "recall", "frechet": "Frechet distance"}.items(),
        strict=True,
    ):
        for rule in dict.fromkeys(p["rule"] for p in points):
            line = sorted((p["scale"], p[name]) for p in points if p["rule"] == rule or p["scale"] == 1)
            axis.plot(*zip(*line, strict=True), marker="o", markersize=3, label=rule)
        axis.set(xlabel="guidance scale w", title=label)
        axis.grid(alpha=0.3)
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measures the missing points, prints and writes each, and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--scales", type=float, nargs="+", default=[0, 1, 1.5, 2, 3, 5, 8])
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=["plain"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    about = {k: getattr(args, k) for k in ("images", "steps")} | {"solver": "the default", "seed": 0}
    record: dict[str, Any] = {"about": about, "points": []}
    if args.out.exists():
        record = json.loads(args.out.read_text(encoding="utf-8"))
        if record["about"] != about:
            parser.error(f"{args.out} was measured with {record['about']}: give another --out, or the same settings")
    points, model = record["points"], fs.load()
    # one point of scale 1 serves every rule, and one of scale 0 the plain one
    wanted = [(r, s) for r, s in product(args.rules, args.scales) if s > 1 or r == args.rules[0]]
    left = [pair for pair in wanted if not any((p["rule"], p["scale"]) == pair for p in points)]
    with Bar(len(left), "guidance") as bar:
        for rule, scale in left:
            found = {"rule": rule, "scale": scale, **point(model, rule, scale, args)}
            print(f"{rule:9} w {scale:4g}: " + "  ".join(f"{k} {found[k]:.3f}" for k in SHOWN), flush=True)
            points.append(found)
            made = {"date": str(date.today()), "torch": torch.__version__, "machine": hardware()}
            write_json(args.out, made | record)
            bar.advance()
    if args.plot:
        plot(points, args.plot)


if __name__ == "__main__":
    main()
