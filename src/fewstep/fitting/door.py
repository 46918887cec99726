"""`fit`: a solver made for one model: teacher, start, descent, card."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.base import Denoises
from fewstep.denoiser.bridged import of_slice
from fewstep.fitting.card import card, digest, origin
from fewstep.fitting.descent import Descent, descend, judge
from fewstep.fitting.objective import Features, objective as objective_of, paired, perceived
from fewstep.fitting.starts import FOUND, best_start
from fewstep.fitting.teacher import Task, record
from fewstep.grid import Grid
from fewstep.loop import tabulate
from fewstep.process.base import Process
from fewstep.process.bridge import boots
from fewstep.saved import Saved
from fewstep.solver import Solver
from fewstep.tableau import Tableau
from fewstep.words import one_of, typed, usable_device, whole

__all__ = ["METHODS", "fit"]

METHODS = ("gradient", "dp")
FINALS = ("zero", "state")  # a fit has no call to spend on more


@typed
def fit(
    denoiser: Denoises | None,
    process: Process,
    *,
    steps: int,
    shape: tuple[int, ...],
    mode: str = "free",
    method: str = "gradient",
    objective: str = "paired",
    features: Features | None = None,
    real: Tensor | None = None,
    solver: str | Solver | None = None,
    grid: str | Tensor | Grid | None = None,
    final: str = "zero",
    teacher: str | Solver | Tableau = "multistep-3",
    teacher_steps: int = 50,
    samples: int = 512,
    held_out: int = 128,
    batch: int = 32,
    descent: Descent | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    conditioned: Callable[[slice], Denoises] | None = None,
    out: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    remarks: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Tableau:
    r"""Fits a solver of `steps` calls to a model; a table that `sample`, `explain` and `Tableau.save` take.

    A teacher of many calls takes noises to their end states, once. Of a few published solvers and grids the one that
    ends nearest to them (in features too, where the objective has them) is the start, and its grid, its weights and the
    times its network is called at are moved by gradient descent through the loop until held-out noises say stop. The
    number of a run is its noise's, from 2^31 on: apart from those that `sample` draws.

    Args:
        denoiser: (z, t) -> x0_hat, differentiable in both; or None, with `conditioned`.
        steps: network calls of the fitted table.
        shape: of one sample, in data space, without the batch.
        mode: "exact" keeps every row exact for data that is one point; "free" keeps nothing (`fewstep.solver.fitted`).
        method: "gradient"; or "dp": the start alone, on a grid that dynamic programming finds on the model.
        objective: "paired", "features" or "kid" (`fewstep.fitting.objective`).
        features: (B, *shape) -> (B, d), differentiable, for the last two.
        real: features (m, d) of real samples, for "kid": the distance is to them, not to the teacher's samples.
        solver, grid: of the start, instead of the best of a few; the solver deterministic, the grid also "gits" or
            "klub", found on the model.
        final: where named grids and the teacher end, "zero" or "state", as in `tabulate`.
        teacher, teacher_steps: the solver of the end states, and its calls.
        samples, held_out: runs the solver is fitted on, and judged by.
        batch: runs a network call.
        descent: how long and how fast.
        seed: of the noises.
        dtype, device: of the states.
        conditioned: the denoiser of a slice of the runs, where conditions differ between them.
        out: the file to write. Beside it lie `teacher-*.safetensors`, kept for further fits to the same teacher, and
            `<out>.part` while it works: the same call goes on where it was stopped, to the same numbers.
        about: more for the card, ready for JSON (the guidance scale, the labels); a teacher of other ones is another.
        remarks: more for the card, ready for JSON, which decides nothing.
        progress: show bars with the time left on a terminal.

    Returns:
        The table; its `card` holds the held-out RMSE of the start and of the fitted table, and what made them.

    Raises:
        ValueError: one sentence, for what cannot be fitted.
    """
    if (denoiser is None) == (conditioned is None):
        raise ValueError("got both a denoiser and conditioned, or none of them: give one")
    if boots(process, process.t_max):
        raise ValueError(
            f"got {type(process).__name__}, whose runs begin at y with noise of their own: a fit moves the weights of "
            "tables without noise; fit on a bridge that is not pinned, as fewstep.IRSDE, or give a grid by hand"
        )
    one_of("method", method, METHODS)
    if method == "dp" and real is not None:
        raise ValueError("got real samples with method='dp', which looks at the teacher alone: leave them out")
    one_of("final", final, FINALS)
    if whole("samples", samples) < 2 or whole("held_out", held_out) < 2:
        raise ValueError(f"got samples={samples} and held_out={held_out}: give at least 2 of each")
    if objective != "paired" and whole("batch", batch) < 2:
        raise ValueError(f"got batch={batch} with objective={objective!r}, which compares samples: give at least 2")
    if out is not None and Path(out).is_dir():
        raise ValueError(f"got out={str(out)!r}, which is a folder: name a file in it")
    began, loss, descent = time.perf_counter(), objective_of(objective, features, real), descent or Descent()
    calls, out = whole("steps", steps), None if out is None else Path(out)
    conditioned = conditioned or partial(of_slice, denoiser, samples + held_out)
    task = Task(conditioned=conditioned, process=process, shape=tuple(shape), samples=samples,
                held_out=held_out, batch=whole("batch", batch), seed=seed, dtype=dtype,
                device=usable_device(device))  # fmt: skip
    ideal = teacher if isinstance(teacher, Tableau) else tabulate(teacher, process, steps=teacher_steps, final=final)
    source = origin(task, ideal, about or {})
    kept, part, tried = (None if out is None else out.with_name(name.format(out.name)) for name in (
        f"teacher-{digest(source)[:12]}.safetensors", "{}.part", "{}.starts"))  # fmt: skip
    ends = record(task, ideal, Saved(kept, source), progress=progress)
    grids = tuple(FOUND) if method == "dp" and grid is None else grid
    freedom, names = best_start(
        task, ends, paired if features is None else partial(perceived, features=features),
        calls=calls, mode=mode, solver=solver, grid=grids, final=final,
        path=tried, about={**source, "mode": mode, "calls": calls, "objective": objective}, progress=progress,
    )  # fmt: skip
    start = freedom.fitted(freedom.origin)
    table, looks = start, torch.tensor([[0.0, 0.0]])
    if method == "gradient":
        space = f"{getattr(features, '__module__', '')}:{getattr(features, '__qualname__', type(features).__name__)}"
        digest_of_real = None if real is None else hashlib.sha256(real.double().cpu().numpy().tobytes()).hexdigest()
        about = {**source, "mode": mode, "objective": objective, "start": names, "batch": batch, **descent.__dict__,
                 "solver": freedom.solver.config(), "grid": freedom.grid.tolist(),
                 "features": [space, digest_of_real]}  # fmt: skip
        table, looks = descend(freedom, task, ends, loss, descent, saved=Saved(part, about), progress=progress)
    errors = [math.sqrt(judge(one, task, ends, paired)) for one in (start, table)]
    losses = {"loss": {"start": float(looks[0, 1]), "fitted": float(looks[:, 1].min())}}
    table = replace(table, card=card(source, task, ideal, {
        "mode": mode, "final": table.final, "objective": objective, "real": 0 if real is None else len(real),
        "method": method, "calls": calls, "start": names, "rmse": {"start": errors[0], "fitted": errors[1]},
        **(losses if method == "gradient" else {}), "iterations": int(looks[-1, 0]),
        "seconds": round(time.perf_counter() - began, 1), **(remarks or {}),
    }))  # fmt: skip
    if out is not None:
        table.save(out)
        for path in (part, tried):
            Saved(path, {}).remove()
    return table
