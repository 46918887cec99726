"""The pairs (noise, end) that a teacher records before a stage begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep.fitting.teacher import Task, record
from fewstep.loop import tabulate
from fewstep.process import Process
from fewstep.process.operator import apply, inverse
from fewstep.saved import Saved
from fewstep.train.company import in_turn
from fewstep.train.objective import Stage
from fewstep.train.pairs import Batch, Recorded
from fewstep.train.player import Denoises
from fewstep.train.students.network import digest_of
from fewstep.train.trainer import Trainer
from fewstep.words import whole

__all__ = ["check_recording", "recorded"]


def check_recording(stages: Sequence[Stage], process: Process) -> None:
    """Refuses, before any work, runs that a teacher cannot make."""
    for stage in stages:
        if isinstance(getattr(stage.objective, "coupling", None), Recorded):
            whole("pairs", stage.pairs)
            tabulate(stage.solver, process, steps=stage.calls)


def recorded(trainer: Trainer, stage: Stage, k: int, out: Path, shape: tuple[int, ...], labels: Sequence[str]) -> None:
    """The pairs of a stage, recorded by its teacher; what a killed run has of them is gone on from."""
    if stage.pairs:
        with in_turn():
            _recorded(trainer, stage, k, out, shape, labels)


def _recorded(trainer: Trainer, stage: Stage, k: int, out: Path, shape: tuple[int, ...], labels: Sequence[str]) -> None:
    objective: Any = stage.objective  # one that reads pairs
    process = objective.process
    calls, seed = stage.calls, trainer.config.seed
    about = {"method": trainer.setup["method"], "data": trainer.setup["data"], "step": trainer.since[0], "seed": seed}
    about["teacher"] = digest_of(trainer.players["teacher"].net) if trainer.players.became else trainer.setup["teacher"]
    saved = Saved(out / f"pairs-{k}.safetensors", {**about, "pairs": stage.pairs, "calls": calls})
    if not {"x0", "eps"} <= saved.read().keys():
        classes = np.random.default_rng([seed, 3]).integers(0, len(labels) + 1, stage.pairs) if labels else None

        def conditioned(where: slice) -> Denoises:
            told = {} if classes is None else {"class_labels": torch.from_numpy(classes[where])}
            return trainer.players.teacher(Batch(torch.empty(where.stop - where.start, 0), told))

        task = Task(conditioned=conditioned, process=process, shape=shape, samples=stage.pairs, held_out=0,
                    batch=1024, seed=seed, dtype=torch.float64, along=stage.along)  # fmt: skip
        table = tabulate(stage.solver, process, steps=calls)
        ends = record(task, table, saved, progress=False)
        starts = torch.cat([task.start(where) for where in task.slices(held_out=False)])
        eps = apply(inverse(process.R(process.t_max)), starts)
        more = {} if classes is None else {"class_labels": torch.from_numpy(classes)}
        saved.write({"eps": eps, "x0": ends, **more}, now=True)
    digest = objective.coupling.digest  # of the numbers that are trained on, read once
    if trainer.notes.setdefault(f"pairs-{k}", digest) != digest:
        raise ValueError(
            f"{out / f'pairs-{k}.safetensors'} holds other pairs than the checkpoint was trained on; a run goes on "
            "only as it began; start anew with resume=False."
        )
