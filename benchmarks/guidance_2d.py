"""Guidance in the plane, where every answer is known: samples of each kind, on one mixture and its exact classifiers.

    python benchmarks/guidance_2d.py --out docs/images/guidance-2d.png

Six clusters on two rows: a column is a class, a row another. Printed for each panel: the share of samples nearest to a
cluster that was asked for, of 500.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fewstep as fs

VP = fs.VP()
CENTRES = torch.tensor([[x, y] for y in (-1.0, 1.0) for x in (-2.0, 0.0, 2.0)], dtype=torch.float64)
STD = 0.3


def mixture(*clusters: int) -> fs.Mixture:
    """The clusters of these numbers alone."""
    return fs.Mixture(VP, CENTRES[list(clusters)], STD)


EVERY, LEFT, TOP = mixture(*range(6)), mixture(0, 3), mixture(3, 4, 5)


def log_share(part: fs.Mixture, z: Tensor, t: Any) -> Tensor:
    """The exact classifier: log p(part | z)."""
    share = torch.tensor(len(part.means) / len(CENTRES), dtype=torch.float64).log()
    return (fs.marginal_log_prob(part, z, t) - fs.marginal_log_prob(EVERY, z, t) + share).clamp(max=0.0)


def panels() -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Title -> (denoiser, the clusters it should find)."""
    left, top = partial(log_share, LEFT), partial(log_share, TOP)
    line = fs.Observation(lambda x: x[:, :1], torch.tensor([[1.0]], dtype=torch.float64), 0.3)
    return {
        "the model": (EVERY, (0, 1, 2, 3, 4, 5)),
        "left, w = 1": (fs.ClassifierGuided(EVERY, left), (0, 3)),
        "left, w = 4": (fs.guide(LEFT, EVERY, 4.0), (0, 3)),
        "left, w = 4, APG": (fs.guide(LEFT, EVERY, 4.0, rule=fs.APG()), (0, 3)),
        "left AND top": (fs.Composed(EVERY, (LEFT, TOP), (1.0, 1.0)), (3,)),
        "left OR top": (
            fs.ClassifierGuided(EVERY, fs.disjunction(left, fs.conjunction(top, fs.negation(left)))),
            (0, 3, 4, 5),
        ),
        "NOT left": (fs.Complement(EVERY, LEFT, left), (1, 2, 4, 5)),
        "x = 1 seen, PiGDM": (fs.pigdm(EVERY, line, std=1.9), (1, 2, 4, 5)),
    }


def main() -> None:
    """Samples each panel, prints how many samples are where they should be, and draws."""
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    figure, axes = plt.subplots(2, 4, figsize=(11, 4.6), layout="constrained", sharex=True, sharey=True)
    for axis, (title, (denoiser, wanted)) in zip(axes.flat, panels().items(), strict=True):
        x = fs.sample(denoiser, VP, steps=20, shape=(500, 2), dtype=torch.float64)
        nearest = (x[:, None] - CENTRES).square().sum(2).argmin(1)
        share = sum(float((nearest == k).double().mean()) for k in wanted)
        print(f"{title:20} {share:.3f}", flush=True)
        axis.scatter(*CENTRES.T, s=600 * STD**2, facecolors="none", edgecolors="tab:gray", linewidths=0.8)
        axis.scatter(*x.T, s=3, alpha=0.5, linewidths=0)
        axis.set_title(title, fontsize=10)
        axis.set(xlim=(-4.5, 4.5), ylim=(-2.8, 2.8))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
