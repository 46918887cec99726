"""Emoji by name: pictures of one style with a tenth of the names held out, and what a model draws for those.

    python benchmarks/emoji.py data emoji32.npz emoji.npz
    fewstep train emoji.npz OUT --words --channels 64,96,128 --batch 64
    python benchmarks/emoji.py sheet emoji.npz OUT/model --plot docs/images/emoji.png --out benchmarks/results

`emoji32.npz` holds images (N, 32, 32, 4), style, style_names, name and skin_tone; those of fluent3d (Microsoft's Fluent
Emoji, MIT licence) without a skin tone are laid on white. A name is held out where others have each of its words, so
that it can be put together. The figure is the rank of a held-out name's own picture among all held-out pictures, by
their distance to the sample in pixels: 1 of 154 is best, 77.5 what chance gives.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from textwrap import fill

import numpy as np
import torch

import fewstep as fs

SHOWN, SCALES, STEPS = 20, (1.0, 3.0), 20


def prepare(args: argparse.Namespace) -> None:
    """Writes the pictures and texts, those held out as the test split."""
    with np.load(args.source, allow_pickle=False) as z:
        style = z["style_names"].tolist().index(args.style)
        chosen = (z["style"] == style) & (z["skin_tone"] == "")
        rgba, names = z["images"][chosen].astype(np.float32), z["name"][chosen]
    opaque = rgba[..., 3:] / 255
    pictures = (rgba[..., :3] * opaque + 255 * (1 - opaque)).round().astype(np.uint8)
    words = [set(re.findall(r"\w+", name.casefold())) for name in names.tolist()]
    left, held = Counter(word for each in words for word in each), []
    for k in np.random.default_rng(0).permutation(len(names)):
        if len(held) < len(names) // 10 and words[k] and all(left[word] > 2 for word in words[k]):
            held.append(k)
            left.subtract(words[k])
    kept = np.setdiff1d(np.arange(len(names)), held)
    held = np.sort(held)
    np.savez_compressed(args.data, x_train=pictures[kept], captions=names[kept], x_test=pictures[held],
                        captions_test=names[held])  # fmt: skip
    print(f"{args.data}: {len(kept)} pictures, {len(held)} held out")


def drawn(model: fs.Model, names: list[str], scale: float) -> torch.Tensor:
    """A sample of each name, in [-1, 1]."""
    denoiser = fs.guide(model.denoiser(names), model.denoiser(), scale)
    x = fs.sample(denoiser, model.process, steps=STEPS, shape=(len(names), *model.shape), seed=0)
    return x.clamp(-1, 1)


def sheet(args: argparse.Namespace) -> None:
    """Draws held-out names beside their own pictures, and measures the ranks."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    model = fs.load(args.model)
    with np.load(args.data, allow_pickle=False) as z:
        names = z["captions_test"].tolist()
        real = torch.from_numpy(z["x_test"]).movedim(-1, 1) / 127.5 - 1
    made = {scale: drawn(model, names, scale) for scale in SCALES}
    ranks = {}
    for scale, x in made.items():
        far = torch.cdist(x.flatten(1), real.flatten(1))
        ranks[scale] = float((1 + (far < far.diagonal()[:, None]).sum(1)).double().median())
    rows = {"real": real, f"w = {SCALES[-1]:g}": made[SCALES[-1]]}
    shown = np.linspace(0, len(names) - 1, SHOWN).round().astype(int)
    half = SHOWN // 2
    fig, axes = plt.subplots(2 * len(rows), half, figsize=(10, 5.4))
    for axis in axes.flat:
        axis.set_axis_off()
    for r, (title, x) in enumerate(rows.items()):
        for c, k in enumerate(shown):
            axis = axes[r + len(rows) * (c // half), c % half]
            axis.imshow((x[k].movedim(0, -1) + 1) / 2)
            if r == 0:
                axis.set_title(fill(names[k], 12), fontsize=8)
            if c % half == 0:
                axis.text(-6, 16, title, rotation=90, ha="center", va="center", fontsize=9)
    fig.savefig(args.plot, dpi=80, bbox_inches="tight")
    training = model.facts["training"]
    record = {"date": datetime.now(UTC).date().isoformat(), "torch": torch.__version__, "calls": STEPS,
              "held_out": len(names), "median_rank": {f"{scale:g}": rank for scale, rank in ranks.items()},
              "training": training}  # fmt: skip
    file = Path(args.out) / f"emoji_{args.machine}_{record['date']}.json"
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in record.items() if k != "training"}))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("data", help="write the pictures and texts")
    first.add_argument("source")
    first.add_argument("data")
    first.add_argument("--style", default="fluent3d")
    first.set_defaults(run=prepare)
    second = commands.add_parser("sheet", help="draw and measure the held-out names")
    second.add_argument("data")
    second.add_argument("model")
    second.add_argument("--plot", default="docs/images/emoji.png")
    second.add_argument("--out", default="benchmarks/results")
    second.add_argument("--machine", default="xeon")
    second.set_defaults(run=sheet)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
