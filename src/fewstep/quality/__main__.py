"""Makes a classifier folder, a feature space for one data set: `python -m fewstep.quality DATA.npz --out FOLDER`.

Trains the classifier on the training images without 5,000 held-out ones, measures it, and writes weights, reference
features and the card. The shipped folder was made so; `fewstep bench --features FOLDER` takes any.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import numpy as np
import torch

from fewstep.data import read_images
from fewstep.data.images import KNOWN_DATA
from fewstep.files import write_text
from fewstep.quality.classifier import Classifier, accuracy, images_to_tensor, save_classifier, train_classifier
from fewstep.quality.reference import Reference, load_reference, save_reference

HELD_OUT = 5000  # training images the classifier never sees
STORED = 2048  # of those, features stored for the data-to-data floor


def read(path: Path) -> dict[str, np.ndarray]:
    """Pictures and labels of both splits, by the names that an npz file has for them."""
    data: dict[str, np.ndarray] = {}
    names = []
    for part in ("train", "test"):
        found = read_images(path, split=part)
        if found.labels is None:
            raise ValueError(f"{path} has no labels for x_{part}; a classifier learns labels; write y_{part}.")
        data |= {f"x_{part}": found.images, f"y_{part}": found.labels}
        names.append(found.names)
    if names[0] != names[1]:
        raise ValueError(f"{path} has classes {names[0]} in y_train and {names[1]} in y_test; both have the same ones; "
                         "give all of them, or class_names.")  # fmt: skip
    return data


def split(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, in order, and held-out rows, in random order."""
    held_out = np.random.default_rng(seed).permutation(n)[:HELD_OUT]
    return np.setdiff1d(np.arange(n), held_out), held_out


def write_folder(
    out: Path, net: Classifier, path: Path, data: dict[str, np.ndarray], *, epochs: int, seed: int, hours: float
) -> str:
    """Writes weights, reference features and card; returns the card."""
    save_classifier(out, net)
    keep, held_out = split(seed, len(data["x_train"]))
    stored = held_out[:STORED]
    features = lambda images: net.features(images_to_tensor(images))  # noqa: E731
    classes = lambda labels: torch.from_numpy(labels.astype(np.int64))  # noqa: E731
    save_reference(out / "reference.safetensors", Reference(
        test=features(data["x_test"]), test_labels=classes(data["y_test"]),
        held_out=features(data["x_train"][stored]), held_out_labels=classes(data["y_train"][stored]),
    ))  # fmt: skip
    test = accuracy(net, data["x_test"], data["y_test"])
    unseen = accuracy(net, data["x_train"][held_out], data["y_train"][held_out])
    learnt = accuracy(net, data["x_train"][keep], data["y_train"][keep])
    floor = load_reference(out / "reference.safetensors").floor(512)
    parameters = sum(p.numel() for p in net.parameters())
    about = read_images(path)
    c, h, w = about.shape
    card = f"""# {about.source}: classifier and reference features

A convolutional network of {parameters:,} parameters; its last hidden layer ({net.config["features"]} units after ReLU)
is the feature space in which fewstep measures samples of this data set.

| measured | value |
|---|---|
| accuracy, {len(data["x_test"]):,} test images | {100 * test:.2f} % |
| accuracy, {HELD_OUT:,} held-out training images | {100 * unseen:.2f} % |
| accuracy, images trained on | {100 * learnt:.2f} % |
| data-to-data floor at 512 images: Frechet distance | {floor.frechet:.4f} |
| the same: kernel distance | {floor.kernel:.5f} +- {floor.kernel_error:.5f} |
| the same: precision, recall, density, coverage (k = 5) | {floor.precision:.3f}, {floor.recall:.3f}, """
    card += f"""{floor.density:.3f}, {floor.coverage:.3f} |

- Command: `python -m fewstep.quality {path.name} --out FOLDER --epochs {epochs} --seed {seed}`.
- Training: {epochs} epochs over {len(keep):,} images, AdamW, one-cycle learning rate, flips and shifts,
  {net.pace.precision} ({net.pace.memory_format}, threads: {net.pace.threads}); {hours * 60:.0f} minutes
  ({platform.machine()}), torch {torch.__version__}, seed {seed}.
- `weights.safetensors`: float16. `reference.safetensors`: float16 features and labels of the test images and of the
  first {STORED:,} held-out training images, in random order. Features, no images.
- Images enter as floats in [-1, 1], shape (B, {c}, {h}, {w}).
- Data: {KNOWN_DATA.get(about.fingerprint(), about.source)}.
- Use: comparing samples of this data set at equal sample size. Numbers in this feature space are not comparable with
  published FID or KID, which use Inception features.
"""
    write_text(out / "README.md", card)
    return card


def main(argv: list[str] | None = None) -> None:
    """Trains, measures and writes."""
    parser = argparse.ArgumentParser(prog="python -m fewstep.quality", description=__doc__)
    parser.add_argument(
        "data", type=Path, help="npz with x_train, y_train, x_test, y_test; pictures (N, H, W) or (N, H, W, C), uint8"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    data = read(args.data)
    start = time.monotonic()
    keep, _ = split(args.seed, len(data["x_train"]))
    net = train_classifier(
        data["x_train"][keep],
        data["y_train"][keep],
        epochs=args.epochs,
        seed=args.seed,
        report=lambda epoch, loss: print(f"epoch {epoch + 1}/{args.epochs}  loss {loss:.4f}", flush=True),
    )
    hours = (time.monotonic() - start) / 3600
    print(write_folder(args.out, net, args.data, data, epochs=args.epochs, seed=args.seed, hours=hours))


if __name__ == "__main__":
    main()
