"""What a run leaves: a model folder with the tables that the student was made for and its card, or bare weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from fewstep.files import save_tensors
from fewstep.model import save_model
from fewstep.model.model import NETWORKS
from fewstep.process import Process
from fewstep.tableau import MadeFor
from fewstep.train.company import together
from fewstep.train.methods import Method
from fewstep.train.player import EMA
from fewstep.train.source import Source
from fewstep.train.trainer import BUDGET, Trainer

__all__ = ["written"]


def written(
    out: Path, trainer: Trainer, method: Method, process: Process, source: Source, about: Mapping[str, Any]
) -> Path:
    """Writes the averaged weights; of several processes the first does."""
    average, config = trainer.players["net"].averages[EMA], trainer.config
    bare = type(average).__name__ not in (*NETWORKS, "Told") or not method.denoises
    own = method.file(trainer.players)
    path = out / (own or ("network.safetensors" if bare else "model"))
    if together()[0] > 0:
        return path
    training = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in BUDGET}
    training |= {"method": repr(method), "steps": trainer.step, "images": trainer.step * config.batch}
    training |= {"hours": round(trainer.seconds / 3600, 4), "hardware": trainer.hardware, "pace": asdict(trainer.pace)}
    facts = {"training": training, "data": {"fingerprint": source.digest, "count": len(source.data)}}
    if own is not None:
        method.export(path, trainer.players, math.prod(source.shape), facts)
        return path
    if bare:
        save_tensors(path, average.state_dict(), sealed=True)
        return path
    made_for = method.made_for(process)
    return save_model(
        path, average, process=process, predicts=about["predicts"], time=about["time"], shape=source.shape,
        patch=about["patch"], labels=about["labels"], facts=facts, dtype=torch.float32,
        sigma_data=about["sigma_data"], destination=method.destination, given=method.given, made_for=made_for,
        card=_card(method, process, source, about, trainer, made_for),
    )  # fmt: skip


def _card(
    method: Method, process: Process, source: Source, about: Mapping[str, Any], trainer: Trainer,
    made_for: MadeFor | None,
) -> str:  # fmt: skip
    """README.md of a student's folder."""
    config, told = trainer.config, "w=0.0, " if method.guided else ""
    told += "y=y, " if method.given else ""
    tables = "any solver" if made_for is None else f"its own tables, of {', '.join(made_for.tables)} calls"
    rows = {
        "method": f"`{method!r}`",
        "process": f"`{process!r}`; predicts `{about['predicts']}`, network time `{about['time']}`",
        "network": about["network"],
        "labels": ", ".join(about["labels"]) or None,
        "sampled by": tables,
        "teacher": trainer.setup["teacher"] and f"weights {trainer.setup['teacher']}",
        "data": f"{len(source.data):,} samples of {'x'.join(map(str, source.shape))}, fingerprint {source.digest}",
        "samples seen": f"{trainer.step * config.batch:,} ({trainer.step:,} steps of {config.batch})",
        "hours": f"{trainer.seconds / 3600:.2f}, {trainer.hardware}",
        "optimiser": f"{method.optimiser}, learning rate {config.lr:g}, exponential average {config.ema:g} (these "
        f"weights), seed {config.seed}",
    }  # fmt: skip
    return "\n".join([
        f"# A student by {type(method).__name__}",
        "",
        "    import fewstep as fs",
        "    model = fs.load(FOLDER)",
        f"    x = fs.sample(model.denoiser({told.rstrip(', ')}), model.process, shape=(8, *model.shape), seed=0)",
        "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items() if value), "",
    ])  # fmt: skip
