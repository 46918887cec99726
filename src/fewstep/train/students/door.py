"""Any method on any array: points, vectors or pictures, with a network of the user's, a teacher's, or a small one.

OUT/checkpoint.safetensors   everything the run needs to go on
OUT/sheet.png                of pictures, samples of fixed noises, renewed while it runs
OUT/pairs-K.safetensors      the pairs that the teacher of stage K recorded
OUT/model/                   the model folder, with the tables that the student was made for; of a network whose class
                             no folder holds OUT/network.safetensors, the averaged weights, which the network has too
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.data import Images
from fewstep.denoiser import Denoiser, as_denoiser
from fewstep.denoiser.base import same_process, told
from fewstep.interop.load import load
from fewstep.model import Model
from fewstep.nets import MLP, Waves
from fewstep.pace import Pace
from fewstep.process import ALL_PROCESSES, Bridge, Process
from fewstep.train.company import in_turn, joined, same, together
from fewstep.train.methods import METHODS, Method, Setting
from fewstep.train.player import EMA, Player, Players
from fewstep.train.progress import Progress
from fewstep.train.run import train
from fewstep.train.source import Source, read_data, sourced
from fewstep.train.students.ending import written
from fewstep.train.students.figures import Figures
from fewstep.train.students.network import Sizes, asked, known, student, tried
from fewstep.train.students.recording import check_recording, recorded
from fewstep.train.trainer import Stopped, TrainConfig, Trainer
from fewstep.words import build, pick, typed, usable_device

__all__ = ["train_student"]

SHOWN_EVERY = 600.0  # seconds between figures on fixed noises
Teacher = Any  # a denoiser, a Model, the folder of one; for guided methods also (conditional, unconditional)


@typed
def train_student(
    data: Any,
    out: str | Path,
    *,
    method: str | Method = "denoise",
    teacher: Teacher = None,
    net: nn.Module | Mapping[str, Any] | None = None,
    labels: Any = None,
    process: str | Process | None = None,
    predicts: str | None = None,
    time: str | None = None,
    options: Mapping[str, Any] | Sequence[tuple[str, Any]] = (),
    width: int | None = None,
    depth: int | None = None,
    channels: Sequence[int] = (32, 64),
    layers: int = 1,
    patch: int = 2,
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
        data: floats (N, *shape), uint8 pictures, `Images`, a torch Dataset of samples or (sample, label), an npz or npy
            file, a folder of pictures; for `bridge` a pair (x, y) of such arrays too, an npz file of x and y, or a
            folder of folders x and y; None where a model is the teacher of a method that looks at no data.
        out: the run's folder.
        method: a key of `METHODS`, or a method.
        teacher: who is imitated: a model folder, a `Model`, a denoiser; for `guided` a pair of denoisers too.
        net: a module called as net(x, t), or net(x, t, s) where the method tells the destination; it has the averaged
            weights in the end. Or the config of a class of `fewstep.model.NETWORKS`, "_class_name" and its arguments,
            which is told s and w where the method tells them (`fewstep.nets.Told`). None: the teacher's own network, or
            a perceptron of `width` and `depth` (None: the method's, mostly 96 and 3); for `bridge` on pictures a UNet
            of `channels`, `layers` and `patch`.
        labels: (N,) whole numbers from 0, told as class_labels; a share `drop_label` of them is left out.
        process, predicts, time: what is learned on and returned, and the network's time; None: the teacher's, or the
            method's.
        options: of the method, by name.
        steps, images, hours: the budget, in steps of `batch`, in samples, in hours; where none is given the
            method's, mostly 2,500 steps.
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
    made = build(METHODS, method, "method", [*dict(options).items()]) if isinstance(method, str) else method
    wide, deep = made.width if width is None else width, made.depth if depth is None else depth
    sizes = Sizes(wide, deep, tuple(channels), layers, patch)
    long = made.length if steps is None else steps
    config = _config(long, images, batch, hours=hours, lr=lr, warmup=warmup, ema=ema, drop_label=drop_label, seed=seed)
    with joined():
        return _trained(
            data, Path(out), method=made, teacher=teacher, net=net, labels=labels, process=process, predicts=predicts,
            time=time, sizes=sizes, config=config, rated=lr is not None,
            device=device, pace=pace, how=Session(resume, save_every, quiet, watch),
        )  # fmt: skip


@dataclass(frozen=True)
class Session:
    """How this call of a run goes on, saves and shows itself; a checkpoint knows none of it."""

    resume: bool
    save_every: float
    quiet: bool
    watch: Callable[[Trainer, float], object] | None


def _config(steps: int, images: int | None, batch: int | None, **given: Any) -> TrainConfig:
    """The run that is asked for, of 256 samples a step where nothing is."""
    batch = 256 if batch is None else batch
    budget = images if images is not None else batch * steps
    usual: dict[str, Any] = {"hours": 1e6, "lr": 2e-3, "warmup": 0, "seed": 0}
    told = {name: value for name, value in given.items() if value is not None}
    return TrainConfig(images=budget, batch=batch, **usual | told)


def _trained(
    data: Any, out: Path, *, method: Method, teacher: Teacher, net: nn.Module | Mapping[str, Any] | None, labels: Any,
    process: str | Process | None, predicts: str | None, time: str | None, sizes: Sizes, config: TrainConfig,
    rated: bool, device: str | torch.device, pace: Pace | None, how: Session,
) -> Path:  # fmt: skip
    """The run itself: everything is looked at before anything is written."""
    taught = _taught(teacher, method)
    method = _after(method, taught)
    on = _process(process, taught, method)
    source = sourced(data, labels, config, taught, method.read, blind=method.blind)
    _check_pairs(method, on, source)
    deviation = method.deviation(source.first) or 1.0  # of data that are all one
    autocast = None if pace is None or pace.precision != "bfloat16" else torch.bfloat16
    begins, reads, about = student(method, on, taught, net, source, predicts, time, sizes, config.seed, deviation,
                                   autocast)  # fmt: skip
    if isinstance(net, nn.Module) and method.denoises and not (method.given or method.noise):
        tried(begins, reads, on, source, method)
    if not rated and isinstance(begins, MLP | Waves):
        config = replace(config, lr=max(config.lr, method.lr * 96 / max(96, begins.config["width"])))
    begins.to(usable_device(device))
    setting = Setting(process=on, size=math.prod(source.shape), taught=taught is not None,
                      started=isinstance(taught, Model) and net is None, folder=out, deviation=deviation)  # fmt: skip
    own = Player(begins, reads, averages=method.averages, optimiser=method.optimiser)
    players = Players({"net": own, **method.others(setting, begins, reads)}, None if taught is None else asked(taught))
    stages = method.stages(setting)
    check_recording(stages, on)
    said = {"method": repr(method), "process": repr(on), "data": source.digest, "teacher": known(taught), **about}
    records = partial(recorded, out=out, shape=source.shape, labels=about["labels"])
    trainer = Trainer(players, stages, source, config, out / "checkpoint.safetensors", setup=said,
                      device=device, pace=pace, begins=lambda stage, k: records(trainer, stage, k))  # fmt: skip
    _run(trainer, how, Figures(trainer, method, on, source, len(about["labels"])))
    if isinstance(net, nn.Module):
        net.load_state_dict(own.averages[EMA].state_dict())
    with in_turn():
        return written(out, trainer, method, on, source, about)


def _run(trainer: Trainer, how: Session, figures: Figures) -> None:
    """Goes on, or begins, until the budget is spent."""
    checkpoint = trainer.checkpoint
    with Progress(quiet=how.quiet or together()[0] > 0) as progress:
        if same(how.resume and checkpoint.exists()):
            trainer.load()
            if trainer.stage >= 0 and trainer.begins is not None:
                trainer.begins(trainer.stages[trainer.stage], trainer.stage)
            progress.say(f"goes on from step {trainer.step} of {checkpoint}")
        else:
            trainer.save()

        shown = trainer.seconds

        def show() -> None:
            nonlocal shown
            shown = trainer.seconds
            try:
                found = figures(checkpoint.parent / "sheet.png")
            except ValueError as error:  # samples that are not finite end no training
                progress.say(f"no figure at step {trainer.step}: {error}")
                return
            if found is not None:
                told = "  ".join(f"{name} {value:.3g}" for name, value in found.items())
                progress.say(f"step {trainer.step}: on fixed noises  {told}")

        def report(t: Trainer, loss: float) -> None:
            progress(t, loss)
            if not progress.quiet and t.seconds > shown + SHOWN_EVERY:
                show()
            if how.watch is not None:
                how.watch(t, loss)

        progress.watched(trainer.players)
        try:
            trainer.run(report, how.save_every)
        except Stopped:
            progress.say(f"stopped at step {trainer.step}; saved; the same command goes on from {checkpoint}")
            raise
        if not progress.quiet:
            show()


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
        teacher = load(teacher, dtype=torch.float32)
    if isinstance(teacher, tuple):
        return tuple(as_denoiser(part) for part in teacher)
    if method.guided and not (isinstance(teacher, Model) and teacher.labels):
        raise ValueError(
            f"got a teacher without labels for {type(method).__name__}, which imitates a pair: give a model with "
            "labels, or (conditional, unconditional) denoisers"
        )
    if not callable(getattr(teacher, "denoiser", teacher)):
        raise ValueError(
            f"got a {type(teacher).__name__} as teacher: give a model folder, a Model or a denoiser (z, t)"
        )
    return teacher if isinstance(teacher, Model) else as_denoiser(teacher)


def _after(method: Method, taught: Any) -> Method:
    """The method for its teacher; a student that is right on its own rows alone teaches only what halves it."""
    if not isinstance(taught, Model):
        return method
    made, own = method.after(taught.tables), taught.made_for
    if own is not None and own.rows in ("own", "ends") and made is method:
        raise ValueError(
            f"got {own} as teacher of {type(method).__name__}, which asks it at other times: give the model that "
            "it was made from, or progressive with as many steps as one of its tables has"
        )
    return made


def _process(process: str | Process | None, taught: Any, method: Method) -> Process:
    """The teacher's process, or the one that is asked for, or the method's own."""
    theirs = taught[0] if isinstance(taught, tuple) else taught
    known = (
        theirs.process if isinstance(theirs, Model) else None if theirs is None else told(theirs, "process", Process)
    )
    wanted = pick(ALL_PROCESSES, process, "process")() if isinstance(process, str) else process
    if wanted is not None and isinstance(theirs, Denoiser):
        same_process(theirs, wanted)
    if wanted is not None and known is not None and wanted != known:
        raise ValueError(f"got a teacher on {known} and a run on {wanted}: give both the same process")
    return wanted or known or ALL_PROCESSES[method.process]()


def _check_pairs(method: Method, on: Process, source: Source) -> None:
    """Refuses a bridge without another end, and another end without a bridge."""
    name = type(method).__name__
    if isinstance(on, Bridge) and not method.given:
        raise ValueError(f"got {type(on).__name__}, a bridge, for {name}: give method='bridge'")
    if source.ends is not None and not method.given:
        raise ValueError(f"got pairs (x, y) for {name}: give method='bridge', or x alone")
    if method.given and isinstance(on, Bridge) != (method.predicts == "residual"):
        raise ValueError(f"got kind={method.process} on {on}: give the same of both")
