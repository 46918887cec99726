"""Draws the README's picture: the same noises in few network calls, by this library's default and by DDIM.

    python benchmarks/few_calls.py [--out docs/images/few-calls.png]

Both run the shipped model from the same starts, each on the grid it has when nothing is said: the default of the
process here, equal steps in time for DDIM. The last column is the ODE itself, 200 calls of `multistep-pc-3`; under each
panel stands the RMS distance to it over all samples, not only the four that are shown.
"""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
import torch
from torch import Tensor

import fewstep as fs

CALLS = (4, 5, 6, 10)
SHOWN = (0, 3, 8, 9)  # a t-shirt, a dress, a bag, a boot: samples by number, of the class of that number


def panel(images: Tensor) -> Tensor:
    """Four pictures (4, 1, height, width), two by two, with a little space between them."""
    spaced = torch.nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)[:, 0]
    return torch.cat([torch.cat(list(row), -1) for row in spaced.split(2)], -2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="docs/images/few-calls.png", help="where the picture goes")
    parser.add_argument("--samples", type=int, default=250, help="over how many the distance is taken")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    model = fs.load()
    denoiser = model.denoiser([n % 10 for n in range(args.samples)])
    run = {"process": model.process, "shape": (args.samples, *model.shape), "seed": args.seed}
    exact = fs.sample(denoiser, solver="multistep-pc-3", grid="log-snr", steps=200, final="state", **run)
    samplers = {"fewstep": {}, "DDIM": {"solver": "ddim", "grid": "uniform"}}

    figure, axes = plt.subplots(2, len(CALLS) + 1, figsize=(12, 5.1), layout="constrained")
    for row, (name, options) in zip(axes, samplers.items(), strict=True):
        for axis, calls in zip(row, CALLS, strict=False):
            x = fs.sample(denoiser, steps=calls, final="state", **options, **run)
            off = float((x - exact).square().mean().sqrt())
            show(axis, x, f"{off:.3f} from the ODE")
            print(f"{name:8} {calls:3} calls: {off:.3f} from the ODE")
        row[0].set_ylabel(name, fontsize=15)
        show(row[-1], exact, "the ODE")
    for axis, calls in zip(axes[0], (*CALLS, 200), strict=True):
        axis.set_title(f"{calls} network calls", fontsize=13)
    figure.savefig(args.out, dpi=100, facecolor="white")
    print(args.out)


def show(axis: plt.Axes, images: Tensor, below: str) -> None:
    axis.imshow(panel(images[list(SHOWN)]), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(below, fontsize=11, color="0.35")
    axis.spines[:].set_visible(False)


if __name__ == "__main__":
    main()
