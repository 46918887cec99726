"""The card of a trained model: README.md of its folder, written from the facts in fewstep.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.files import Results, json_text, read_json

__all__ = ["add_quality", "card"]


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
    lines = [
        f"# {data.get('source', 'images')}: a denoiser for {c}x{h}x{w} images",
        "",
        f"{config['_class_name']} of diffusers, {training.get('parameters', 0):,} parameters, on squares of "
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


def _pace(pace: Mapping[str, Any] | None) -> str:
    """How a network was run while it was trained; those before this was recorded ran in bfloat16 autocast."""
    if pace is None:
        return "bfloat16 autocast"
    precision = "bfloat16 autocast" if pace["precision"] == "bfloat16" else pace["precision"]
    return f"{precision}, {pace['memory_format']}, threads: {pace['threads']}"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
