"""Any method on any array: points, vectors or pictures, with a network of the user's, a teacher's, or a small one.

OUT/checkpoint.safetensors   everything the run needs to go on
OUT/pairs-K.safetensors      the pairs that the teacher of stage K recorded
OUT/model/                   the model folder, with the tables that the student was made for; of a network whose class
                             no folder holds OUT/network.safetensors, the averaged weights, which the network has too
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.data import Images, read_images
from fewstep.denoiser import Denoiser, as_denoiser
from fewstep.denoiser.base import same_process, told
from fewstep.files import save_tensors
from fewstep.fitting.teacher import Task, record
from fewstep.interop.load import load
from fewstep.loop import tabulate
from fewstep.model import Model, call_network, save_model
from fewstep.model.model import NETWORKS
from fewstep.nets import MLP
from fewstep.pace import Pace
from fewstep.process import PROCESSES, Process
from fewstep.process.operator import apply, inverse
from fewstep.saved import Saved
from fewstep.train.methods import METHODS, Method, Setting
from fewstep.train.objective import Stage
from fewstep.train.pairs import Batch, Draw
from fewstep.train.player import EMA, Asked, Denoises, Player, Players, Reads, Student
from fewstep.train.progress import Progress
from fewstep.train.run import train
from fewstep.train.trainer import BUDGET, Stopped, TrainConfig, Trainer, together
from fewstep.words import build, pick, usable_device

__all__ = ["Source", "train_student"]

Teacher = Any  # a denoiser, a Model, the folder of one; for guided methods also (conditional, unconditional)


@dataclass(frozen=True, eq=False)
class Source:
    """Data in memory, drawn in epochs: a batch is a function of (seed, k).

    Args:
        data: (N, *shape), floats as they are or uint8 pictures (N, H, W) or (N, H, W, C).
        labels: (N,) from 0, or None.
        config: batch, seed, and the share of labels left out.
        rank, world: which part of each batch is taken, by whom of how many.
    """

    data: np.ndarray
    labels: np.ndarray | None
    config: TrainConfig
    rank: int = 0
    world: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample, in data space."""
        if self.data.dtype != np.uint8:
            return self.data.shape[1:]
        _, h, w, *c = self.data.shape
        return (c[0] if c else 1, h, w)

    @cached_property
    def deviation(self) -> float:
        """Of the data's entries."""
        return float(self._floats(slice(0, 4096)).std())

    @property
    def digest(self) -> str:
        """Of data and labels."""
        whole = hashlib.sha256(np.ascontiguousarray(self.data).tobytes())
        whole.update(b"" if self.labels is None else np.ascontiguousarray(self.labels).tobytes())
        return whole.hexdigest()[:16]

    def __call__(self, k: int, share: float) -> Draw:
        c, n = self.config, len(self.data)
        per_epoch = n // c.batch
        order = np.random.default_rng([c.seed, 1, k // per_epoch]).permutation(n)
        part = c.batch // self.world
        first = self.rank * part
        rows = order[(k % per_epoch) * c.batch :][: c.batch][first : first + part]
        conditions = {}
        if self.labels is not None:
            dropped = np.random.default_rng([c.seed, 2, k]).random(c.batch)[first : first + part] < c.drop_label
            conditions["class_labels"] = torch.from_numpy(np.where(dropped, 0, self.labels[rows].astype(np.int64) + 1))
        return Draw(Batch(self._floats(rows), conditions), k, share, c.seed, first, c.batch)

    def _floats(self, rows: Any) -> Tensor:
        x = torch.from_numpy(self.data[rows].astype(np.float64))
        if self.data.dtype != np.uint8:
            return x
        return (x[:, None] if x.ndim == 3 else x.movedim(-1, 1)) / 127.5 - 1


def train_student(
    data: Any,
    out: str | Path,
    *,
    method: str | Method = "denoise",
    teacher: Teacher = None,
    net: nn.Module | None = None,
    labels: Any = None,
    process: str | Process | None = None,
    predicts: str | None = None,
    time: str | None = None,
    options: Mapping[str, Any] | Sequence[tuple[str, Any]] = (),
    width: int = 96,
    depth: int = 3,
    steps: int | None = None,
    images: int | None = None,
    hours: float | None = None,
    batch: int | None = None,
    lr: float | None = None,
    warmup: int | None = None,
    ema: float | None = None,
    drop_label: float | None = None,
    seed: int | None = None,
    resume: bool = True,
    save_every: float = 120.0,
    device: str | torch.device = "cpu",
    pace: Pace | None = None,
    quiet: bool = False,
    watch: Callable[[Trainer, float], object] | None = None,
) -> Path:
    """Trains by any method on any array until the budget is spent, and returns the model folder `out`/model.

    Killed at any moment, the same call goes on from the last checkpoint and ends in the same weights. Pictures without
    a teacher or a network of their own are trained as `fewstep train` does (`fewstep.train.train`).

    Args:
        data: floats (N, *shape), uint8 pictures, `Images`, an npz file of either, a folder of pictures; None where a
            model is the teacher of a method that looks at no data.
        out: the run's folder.
        method: a key of `METHODS`, or a method.
        teacher: who is imitated: a model folder, a `Model`, a denoiser; for `guided` a pair of denoisers too.
        net: a module called as net(x, t), or net(x, t, s) where the method tells the destination; it has the averaged
            weights in the end. None: the teacher's own network, or a perceptron of `width` and `depth`.
        labels: (N,) whole numbers from 0, told as class_labels; a share `drop_label` of them is left out.
        process, predicts, time: what is learned on and returned, and the network's time; None: the teacher's, or the
            method's.
        options: of the method, by name.
        steps, images, hours: the budget, in steps of `batch`, in samples, in hours; 2,500 steps where none is given.
        lr, warmup, ema, seed: as in `TrainConfig`.
        resume, save_every, device, pace, quiet: as in `fewstep.train.train`.
        watch: called with the trainer and the loss after every step.

    Raises:
        ValueError: one sentence, for options, data, a teacher or a checkpoint that do not fit.
        Stopped: after Ctrl-C or SIGTERM; the checkpoint is saved.
    """
    data = read_data(data) if isinstance(data, str | Path) else data
    if isinstance(data, Images) and method == "denoise" and teacher is None and net is None and not options:
        return train(data, out, process=process if isinstance(process, str) else None, predicts=predicts, images=images,
                     hours=hours, batch=batch, lr=lr, warmup=warmup, ema=ema, drop_label=drop_label, seed=seed,
                     resume=resume, save_every=save_every, device=device, pace=pace, quiet=quiet)  # fmt: skip
    out = Path(out)
    made = build(METHODS, method, "method", [*dict(options).items()]) if isinstance(method, str) else method
    taught = _taught(teacher, made)
    made = made.after(taught.tables) if isinstance(taught, Model) else made
    on = _process(process, taught, made)
    batch = 256 if batch is None else batch
    budget = images if images is not None else batch * (2500 if steps is None else steps)
    config = TrainConfig(images=budget, hours=1e6 if hours is None else hours, batch=batch,
                         lr=2e-3 if lr is None else lr, warmup=0 if warmup is None else warmup,
                         ema=0.999 if ema is None else ema, drop_label=0.1 if drop_label is None else drop_label,
                         seed=seed or 0)  # fmt: skip
    source = _source(data, labels, config, taught)
    student, reads, about = _student(made, on, taught, net, source, predicts, time, (width, depth), config.seed)
    student.to(usable_device(device))
    setting = Setting(process=on, size=math.prod(source.shape), taught=taught is not None,
                      started=isinstance(taught, Model) and net is None, folder=out)  # fmt: skip
    players = Players(
        {
            "net": Player(student, reads, averages=made.averages, optimiser=made.optimiser),
            **made.others(setting, student, reads),
        },
        None if taught is None else asked(taught),
    )
    checkpoint = out / "checkpoint.safetensors"
    stages = made.stages(setting)
    said = {"method": repr(made), "process": repr(on), "data": source.digest, **about}
    recorded = partial(_record, out=out, shape=source.shape, labels=about["labels"])
    trainer = Trainer(players, stages, source, config, checkpoint, setup=said, device=device, pace=pace,
                      begins=lambda stage, k: recorded(trainer, stage, k))  # fmt: skip
    with Progress(quiet=quiet) as progress:
        if resume and checkpoint.exists():
            trainer.load()
            if trainer.stage >= 0:
                recorded(trainer, stages[trainer.stage], trainer.stage)
            progress.say(f"goes on from step {trainer.step} of {checkpoint}")
        else:
            trainer.save()

        def report(t: Trainer, loss: float) -> None:
            progress(t, loss)
            if watch is not None:
                watch(t, loss)

        try:
            trainer.run(report, save_every)
        except Stopped:
            progress.say(f"stopped at step {trainer.step}; saved; the same command goes on from {checkpoint}")
            raise
    average = trainer.players["net"].averages[EMA]
    if net is not None:
        net.load_state_dict(average.state_dict())
    if type(average).__name__ not in NETWORKS or not made.denoises:
        save_tensors(out / "network.safetensors", average.state_dict(), sealed=True)
        return out / "network.safetensors"
    training = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in BUDGET}
    training |= {"method": repr(made), "steps": trainer.step, "images": trainer.step * config.batch}
    training |= {"hours": round(trainer.seconds / 3600, 4), "hardware": trainer.hardware, "pace": asdict(trainer.pace)}
    facts = {"training": training, "data": {"fingerprint": source.digest, "count": len(source.data)}}
    return save_model(
        out / "model", average, process=on, predicts=about["predicts"], time=about["time"], shape=source.shape,
        patch=about["patch"], labels=about["labels"], facts=facts, dtype=torch.float32,
        sigma_data=about["sigma_data"], destination=made.destination, tables=made.tables(on),
    )  # fmt: skip


def floats(path: str | Path) -> np.ndarray | None:
    """The points of an npz file: x, x_train, data or points where it is (N, D) of floats; None of any other file."""
    if Path(path).suffix == ".npz" and Path(path).is_file():
        with suppress(ValueError, OSError, KeyError), np.load(path, allow_pickle=False) as file:
            for name in ("x", "x_train", "data", "points"):
                if name in file.files and np.issubdtype((x := file[name]).dtype, np.floating) and x.ndim == 2:
                    return x
    return None


def read_data(path: str | Path) -> Any:
    """The points of a file, or else its pictures (`read_images`)."""
    found = floats(path)
    return read_images(path) if found is None else found


def _taught(teacher: Teacher, method: Method) -> Any:
    """A model, a denoiser, a pair of them, or None; refused where the method needs one."""
    if teacher is None:
        if method.needs:
            raise ValueError(
                f"got {type(method).__name__} without a teacher, which it imitates: give teacher=, a model folder or a "
                "denoiser"
            )
        return None
    if isinstance(teacher, str | Path):
        return load(teacher, dtype=torch.float32)
    if isinstance(teacher, tuple):
        return tuple(as_denoiser(part) for part in teacher)
    return teacher if isinstance(teacher, Model) else as_denoiser(teacher)


def asked(taught: Any) -> Asked:
    """(batch, with its conditions or without) -> the teacher's denoiser for them."""
    if isinstance(taught, Model):
        reads = reader(taught.process, _reading(taught), destination=taught.destination)

        def ask(batch: Batch, conditional: bool) -> Denoises:
            none = {"class_labels": torch.zeros(len(batch.x0), dtype=torch.long)} if taught.labels else {}
            told = {k: v for k, v in batch.conditions.items() if k == "class_labels" and taught.labels}
            return reads(taught.net, Batch(batch.x0, none | told if conditional else none))

        return ask
    both = taught if isinstance(taught, tuple) else (taught, taught)
    return lambda batch, conditional: both[0 if conditional else 1]


def _process(process: str | Process | None, taught: Any, method: Method) -> Process:
    """The teacher's process, or the one that is asked for, or the method's own."""
    theirs = taught[0] if isinstance(taught, tuple) else taught
    known = (
        theirs.process if isinstance(theirs, Model) else None if theirs is None else told(theirs, "process", Process)
    )
    wanted = pick(PROCESSES, process, "process")() if isinstance(process, str) else process
    if wanted is not None and isinstance(theirs, Denoiser):
        same_process(theirs, wanted)
    if wanted is not None and known is not None and wanted != known:
        raise ValueError(f"got a teacher on {known} and a run on {wanted}: give both the same process")
    return wanted or known or PROCESSES[method.process]()


def _source(data: Any, labels: Any, config: TrainConfig, taught: Any) -> Source:
    """The data as arrays, refused where they are no numbers or too few."""
    if isinstance(data, Images):
        data, labels = data.images, data.labels
    if data is None and isinstance(taught, Model):
        data = np.zeros((config.batch, *taught.shape))
    x = data.numpy(force=True) if isinstance(data, Tensor) else np.asarray(data)
    if x.dtype == object or x.ndim < 2 or (x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating)):
        raise ValueError(f"got data of {x.dtype} and shape {x.shape}: give floats (N, ...) or uint8 pictures")
    if not np.isfinite(x).all():
        raise ValueError("got data with numbers that are not finite: clean them first")
    if not 1 <= config.batch <= len(x):
        raise ValueError(f"got batch={config.batch} for {len(x)} samples: give 1 to {len(x)}")
    if isinstance(taught, Model) and tuple(taught.shape) != Source(x, None, config).shape:
        raise ValueError(
            f"got data of shape {Source(x, None, config).shape} and a teacher of {taught.shape}: give data like its own"
        )
    y = None if labels is None else np.asarray(labels)
    if y is not None and (y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer) or y.min() < 0):
        raise ValueError(f"got labels of {y.dtype} and shape {y.shape}: give whole numbers from 0, one a sample")
    return Source(x, y, config, *together())


def _student(
    method: Method, on: Process, taught: Any, net: nn.Module | None, source: Source, predicts: str | None,
    time: str | None, sizes: tuple[int, int], seed: int,
) -> tuple[nn.Module, Reads, dict[str, Any]]:  # fmt: skip
    """The network, how it is read, and what a checkpoint says of it."""
    classes = 0 if source.labels is None else int(source.labels.max()) + 1
    about: dict[str, Any] = {"patch": 1, "labels": tuple(map(str, range(classes)))}
    about["predicts"] = predicts or method.predicts or "v"
    about["time"] = time or ("log-sigma/4" if on.t_max > 1 else "t")
    about["sigma_data"] = source.deviation
    if isinstance(taught, Model) and net is None and method.denoises:
        net = copy.deepcopy(taught.net).float().requires_grad_(True)
        about |= {**_reading(taught), "labels": taught.labels}
    elif net is None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = MLP(math.prod(source.shape), *sizes, classes=classes, destination=method.destination,
                      guided=method.guided, outputs=method.outputs)  # fmt: skip
    elif not isinstance(net, nn.Module):
        raise ValueError(f"got a {type(net).__name__} as net: give a torch.nn.Module called as net(x, t)")
    about["network"] = f"{type(net).__name__}, {sum(p.numel() for p in net.parameters())} parameters"
    return net, reader(on, about, destination=method.destination), about


def _reading(model: Model) -> dict[str, Any]:
    """What `reader` needs of a model."""
    return {name: getattr(model, name) for name in ("predicts", "time", "patch", "sigma_data")}


def reader(process: Process, about: Mapping[str, Any], *, destination: bool = False) -> Reads:
    """How the output of a network is read, for a batch's conditions."""

    def read(net: Any, batch: Batch) -> Student:
        if isinstance(net, MLP) or not hasattr(net, "config"):
            call = partial(net, **batch.conditions)
        else:
            labels = batch.conditions.get("class_labels")
            call = partial(_pictured, net, labels, about["patch"], process)
        return Student(net=call, process=process, predicts=about["predicts"], time=about["time"],
                       sigma_data=about["sigma_data"], destination=destination, dtype=torch.float32)  # fmt: skip

    return read


def _pictured(net: nn.Module, labels: Tensor | None, patch: int, process: Process, x: Tensor, t: Tensor) -> Tensor:
    return call_network(net, x, t, labels, patch, process)


def _record(trainer: Trainer, stage: Stage, k: int, out: Path, shape: tuple[int, ...], labels: Sequence[str]) -> None:
    """The pairs of a stage, recorded by its teacher; what a killed run has of them is gone on from."""
    if not stage.pairs:
        return
    objective: Any = stage.objective  # one that reads pairs
    process = objective.process
    calls, seed = stage.calls, trainer.config.seed
    about = {"method": trainer.setup["method"], "data": trainer.setup["data"], "step": trainer.since[0], "seed": seed}
    saved = Saved(out / f"pairs-{k}.safetensors", {**about, "pairs": stage.pairs, "calls": calls})
    if not {"x0", "eps"} <= saved.read().keys():
        classes = np.random.default_rng([seed, 3]).integers(0, len(labels) + 1, stage.pairs) if labels else None

        def conditioned(where: slice) -> Denoises:
            told = {} if classes is None else {"class_labels": torch.from_numpy(classes[where])}
            return trainer.players.teacher(Batch(torch.empty(0), told))

        task = Task(conditioned=conditioned, process=process, shape=shape, samples=stage.pairs, held_out=0,
                    batch=1024, seed=seed, dtype=torch.float64)  # fmt: skip
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
