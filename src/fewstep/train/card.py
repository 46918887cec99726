"""The card of a trained model, README.md of its folder: written from the facts in fewstep.json; and its quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fewstep.files import Results, json_text, read_json
from fewstep.interop.load import load
from fewstep.loop import tabulate
from fewstep.model.draw import draw, suited
from fewstep.quality import Quality, load_classifier, load_reference
from fewstep.solver import DEFAULT_SOLVERS, TABLES

__all__ = ["add_quality", "card", "measure"]

DEFAULT = DEFAULT_SOLVERS["scalar"]  # trainable processes are scalar
RUNS = ((DEFAULT, 5), (DEFAULT, 10), (DEFAULT, 20), ("ddpm", 100))


def card(config: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """The text of README.md.

    Args:
        config: config.json.
        about: fewstep.json with its facts: "training" (see `fewstep.train.train`), "data", "quality".
    """
    training, data = about.get("training", {}), about.get("data", {})
    c, h, w = about["shape"]
    process = dict(about["process"])
    name = process.pop("name")
    numbers = ", ".join(f"{k} = {v:g}" for k, v in process.items() if isinstance(v, (int, float)))
    labels = ", ".join(f"{i} {label}" for i, label in enumerate(about["labels"])) or "none"
    kind = f"{config['_class_name']} of diffusers"
    if "vocabulary" in config:
        kind = "WordedUNet, a UNet2DModel of diffusers that is told words"
        labels = f"words; trained on {len(about['labels']):,} texts, as {', '.join(map(repr, about['labels'][:3]))}"
    lines = [
        f"# {data.get('source', 'images')}: a denoiser for {c}x{h}x{w} images",
        "",
        f"{kind}, {training.get('parameters', 0):,} parameters, on squares of "
        f"{about['patch']}x{about['patch']} pixels folded into channels.",
        f"Process `{name}` ({numbers}); predicts `{about['predicts']}`; network time `{about['time']}`. "
        "Images are floats in [-1, 1].",
        f"Labels: {labels}.",
        "",
        "    import fewstep as fs",
        "    model = fs.load(FOLDER)",
        "    x = fs.sample(model.denoiser(label=0), model.process, steps=10, shape=(8, *model.shape), seed=0)"
        if about["labels"]
        else "    x = fs.sample(model.denoiser(), model.process, steps=10, shape=(8, *model.shape), seed=0)",
        "",
        "## Training",
        "",
    ]
    rows = {
        "command": f"`{training['command']}`" if "command" in training else None,
        "images seen": f"{training['images']:,} ({training['steps']:,} steps of {training['batch']})"
        if "images" in training
        else None,
        "hours": f"{training['hours']:.2f}" if "hours" in training else None,
        "hardware": training.get("hardware"),
        "seed": training.get("seed"),
        "loss": f"mean squared error on {about['predicts']}, {_pace(training.get('pace'))}; "
        + (
            "time uniform"
            if training.get("law") == "uniform"
            else f"log-SNR normal, mean {training.get('log_snr_mean')}, deviation {training.get('log_snr_std')}"
        ),
        "optimiser": f"AdamW, learning rate {training.get('lr')} falling linearly to 0, exponential average "
        f"{training.get('ema')} (these weights), labels dropped {training.get('drop_label')}",
        "versions": training.get("versions"),
        "data": data.get("licence") or f"{data.get('source')}, {data.get('count', 0):,} images",
    }
    lines += ["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items() if v is not None), ""]
    lines += ["## Quality", ""]
    quality: Sequence[Mapping[str, Any]] = about.get("quality", [])
    if quality:
        columns = list(quality[0])
        lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        lines += [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in quality]
        lines += [
            "",
            "Distances in the feature space of the shipped Fashion-MNIST classifier, against the 10,000 test images; "
            "not comparable with numbers in Inception features. The floor is as many real images that the classifier "
            "never saw.",
        ]
    else:
        lines += ["Not measured."]
    return "\n".join(lines) + "\n"


def add_quality(folder: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes measured quality into a model folder's fewstep.json and card; each row is one line of the table."""
    folder = Path(folder)
    config, about = (
        read_json(folder / "config.json", "a model folder"),
        read_json(folder / "fewstep.json", "a model folder"),
    )
    about["quality"] = [dict(row) for row in rows]
    with Results(folder) as results:
        results.write("README.md", lambda file: file.write(card(config, about).encode()))
        results.write("fewstep.json", lambda file: file.write(json_text(about).encode() + b"\n"))


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
        rows.append({"solver": solver, "calls": drawn.calls, "ms a sample": milliseconds, **_measured(quality)})
        if report is not None:
            report(rows[-1])
    rows.append({"solver": "real images (floor)", "calls": "", "ms a sample": "", **_measured(floor)})
    if report is not None:
        report(rows[-1])
    add_quality(folder, rows)
    return rows


def _measured(quality: Quality) -> dict[str, Any]:
    return {
        "samples": quality.samples,
        "Frechet": quality.frechet,
        "kernel x 1000": f"{1000 * quality.kernel:.1f} +- {1000 * quality.kernel_error:.1f}",
        **{name: getattr(quality, name) for name in ("precision", "recall", "density", "coverage")},
    }


def _pace(pace: Mapping[str, Any] | None) -> str:
    """How a network was run while it was trained; those before this was recorded ran in bfloat16 autocast."""
    if pace is None:
        return "bfloat16 autocast"
    precision = "bfloat16 autocast" if pace["precision"] == "bfloat16" else pace["precision"]
    return f"{precision}, {pace['memory_format']}, threads: {pace['threads']}"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
