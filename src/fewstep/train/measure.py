"""Measures a model folder against the shipped reference features and writes the numbers into its card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fewstep.interop.load import load
from fewstep.loop import tabulate
from fewstep.model.draw import draw, suited
from fewstep.quality import Quality, load_classifier, load_reference
from fewstep.solver import DEFAULT_SOLVERS, TABLES
from fewstep.train.card import add_quality

__all__ = ["measure"]

DEFAULT = DEFAULT_SOLVERS["scalar"]  # trainable processes are scalar
RUNS = ((DEFAULT, 5), (DEFAULT, 10), (DEFAULT, 20), ("ddpm", 100))


def measure(
    folder: str | Path,
    *,
    runs: Sequence[tuple[str, int]] = RUNS,
    samples: int = 2048,
    batch: int = 128,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Samples a model of 28x28 clothes with each (solver, steps), measures all from the same noises, fills its card.

    Labels go round: sample i has label i mod the number of labels. The last row is the floor: as many real images.
    About 1.5 ms a sample and call on one core with bfloat16 units.

    Args:
        folder: a model folder of 1x28x28 images.
        runs: pairs of a name in `SOLVERS` and a number of steps.
        samples: how many, at most the 2,048 of the floor.
        batch: samples a network call.
        seed: of the noises.
        dtype: of the network, as in `fewstep.load`.
        report: called with each finished row.

    Returns:
        The rows as they stand in the card.
    """
    model = load(folder, dtype=dtype)
    if model.shape != (1, 28, 28):
        raise ValueError(
            f"{folder} makes images of shape {model.shape}; the shipped reference features are of 1x28x28 clothes; "
            "measure others with fewstep.quality on features of your own."
        )
    classifier, reference = load_classifier(), load_reference()
    floor = reference.floor(samples)
    labels = [k % len(model.labels) for k in range(samples)] if model.labels else None
    rows: list[dict[str, Any]] = []
    for solver, steps in runs:
        table = tabulate(suited(TABLES[solver](), model, 1.0), model.process, steps=steps)
        drawn = draw(model, table, num=samples, labels=labels, seed=seed, batch=batch)
        quality = reference.quality(classifier.features(drawn.images))
        milliseconds = 1000 * drawn.seconds / samples
        rows.append({"solver": solver, "calls": drawn.calls, "ms a sample": milliseconds, **_row(quality)})
        if report is not None:
            report(rows[-1])
    rows.append({"solver": "real images (floor)", "calls": "", "ms a sample": "", **_row(floor)})
    if report is not None:
        report(rows[-1])
    add_quality(folder, rows)
    return rows


def _row(quality: Quality) -> dict[str, Any]:
    return {
        "samples": quality.samples,
        "Frechet": quality.frechet,
        "kernel x 1000": f"{1000 * quality.kernel:.1f} +- {1000 * quality.kernel_error:.1f}",
        **{name: getattr(quality, name) for name in ("precision", "recall", "density", "coverage")},
    }
