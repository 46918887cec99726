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
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.data import Images
from fewstep.denoiser import Denoiser, as_denoiser
from fewstep.denoiser.base import fingerprint, same_process, told
from fewstep.files import save_tensors
from fewstep.fitting.teacher import Task, record
from fewstep.interop.load import load
from fewstep.loop import tabulate
from fewstep.model import Model, build_network, call_network, save_model
from fewstep.model.model import NETWORKS
from fewstep.nets import MLP
from fewstep.pace import Pace
from fewstep.process import ALL_PROCESSES, Bridge, Process
from fewstep.process.operator import apply, inverse
from fewstep.saved import Saved
from fewstep.train.methods import METHODS, Method, Setting
from fewstep.train.objective import Stage
from fewstep.train.pairs import Batch
from fewstep.train.player import EMA, Asked, Denoises, Player, Players, Reads, Student
from fewstep.train.progress import Progress
from fewstep.train.run import Setup, check_sides, network_config, train
from fewstep.train.source import Source, read_data, sourced
from fewstep.train.trainer import BUDGET, Stopped, TrainConfig, Trainer
from fewstep.words import build, pick, usable_device

__all__ = ["train_student"]

Teacher = Any  # a denoiser, a Model, the folder of one; for guided methods also (conditional, unconditional)


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
            weights in the end. None: the teacher's own network, or a perceptron of `width` and `depth`; for `bridge` on
            pictures a UNet of `channels`, `layers` and `patch` (`fewstep.train.train`).
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
    source = sourced(data, labels, config, taught)
    _check_pairs(made, on, source)
    deviation = made.deviation(source.first)
    sizes = Sizes(width, depth, tuple(channels), layers, patch)
    autocast = None if pace is None or pace.precision != "bfloat16" else torch.bfloat16
    student, reads, about = _student(made, on, taught, net, source, predicts, time, sizes, config.seed, deviation,
                                     autocast)  # fmt: skip
    if lr is None and isinstance(student, MLP):
        config = replace(config, lr=max(config.lr, made.lr * 96 / max(96, student.config["width"])))
    student.to(usable_device(device))
    setting = Setting(process=on, size=math.prod(source.shape), taught=taught is not None,
                      started=isinstance(taught, Model) and net is None, folder=out, deviation=deviation)  # fmt: skip
    players = Players(
        {
            "net": Player(student, reads, averages=made.averages, optimiser=made.optimiser),
            **made.others(setting, student, reads),
        },
        None if taught is None else asked(taught),
    )
    checkpoint = out / "checkpoint.safetensors"
    stages = made.stages(setting)
    said = {"method": repr(made), "process": repr(on), "data": source.digest, "teacher": _known(taught), **about}
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
        sigma_data=about["sigma_data"], destination=made.destination, given=made.given, made_for=made.made_for(on),
    )  # fmt: skip


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


def _known(taught: Any) -> str | None:
    """Who the teacher is, where its weights say it."""
    if isinstance(taught, tuple):
        return " ".join(filter(None, map(_known, taught))) or None
    return _digest(taught.net) if isinstance(taught, Model) else fingerprint(taught)


def _digest(net: nn.Module) -> str:
    """Of a network's numbers."""
    whole = hashlib.sha256()
    for tensor in net.state_dict().values():
        whole.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return whole.hexdigest()[:16]


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


def _student(
    method: Method, on: Process, taught: Any, net: nn.Module | None, source: Source, predicts: str | None,
    time: str | None, sizes: Sizes, seed: int, deviation: float, autocast: torch.dtype | None,
) -> tuple[nn.Module, Reads, dict[str, Any]]:  # fmt: skip
    """The network, how it is read, and what a checkpoint says of it."""
    classes = 0 if source.labels is None else int(source.labels.max()) + 1
    about: dict[str, Any] = {"patch": 1, "labels": tuple(map(str, range(classes)))}
    about["predicts"] = predicts or method.predicts or "v"
    about["time"] = time or ("share" if method.given else "log-sigma/4" if on.t_max > 1 else "t")
    about["sigma_data"] = deviation
    if isinstance(taught, Model) and net is None and method.denoises:
        net = _begun(taught.net, method)
        about |= {**_reading(taught), "labels": taught.labels}
    elif net is None and method.given and source.data.dtype == np.uint8:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = _unet(source, sizes, about["labels"])
        about |= {"patch": sizes.patch, "time": time or "thousandths"}
    elif net is None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            size = math.prod(source.shape)
            beside = size * (method.given or method.noise)
            net = MLP(size, sizes.width, sizes.depth, classes=classes, destination=method.destination,
                      guided=method.guided, outputs=method.outputs, beside=beside, modes=method.modes)  # fmt: skip
    elif not isinstance(net, nn.Module):
        raise ValueError(f"got a {type(net).__name__} as net: give a torch.nn.Module called as net(x, t)")
    about["network"] = f"{type(net).__name__}, {sum(p.numel() for p in net.parameters())} parameters"
    return net, reader(on, about, destination=method.destination, autocast=autocast), about


@dataclass(frozen=True)
class Sizes:
    """Of a new network: a perceptron's, and a UNet's."""

    width: int
    depth: int
    channels: tuple[int, ...]
    layers: int
    patch: int


def _unet(source: Source, sizes: Sizes, labels: tuple[str, ...]) -> nn.Module:
    """A UNet that sees y beside the state."""
    images = Images(images=source.data[:1], labels=None, names=(), source="")
    setup = Setup(channels=sizes.channels, layers=sizes.layers, patch=sizes.patch)
    check_sides(setup, images.shape)
    config = network_config(setup, images)
    config |= {"in_channels": 2 * config["in_channels"], "num_class_embeds": len(labels) + 1 if labels else None}
    return build_network(config)


def _begun(teacher: nn.Module, method: Method) -> nn.Module:
    """A network that begins as the teacher's and is told what the method tells."""
    net = copy.deepcopy(teacher)
    if isinstance(net, MLP) and (method.destination or method.guided):
        had = net.config
        net = net.told(destination=method.destination or bool(had["destination"]),
                       guided=method.guided or bool(had["guided"]))  # fmt: skip
    return net.float().requires_grad_(True)


def _reading(model: Model) -> dict[str, Any]:
    """What `reader` needs of a model."""
    return {name: getattr(model, name) for name in ("predicts", "time", "patch", "sigma_data")}


def reader(
    process: Process, about: Mapping[str, Any], *, destination: bool = False, autocast: torch.dtype | None = None
) -> Reads:
    """How the output of a network is read, for a batch's conditions."""

    def read(net: Any, batch: Batch) -> Student:
        if isinstance(net, MLP) or not hasattr(net, "config"):
            call = partial(net, **batch.conditions)
        else:
            labels, y = batch.conditions.get("class_labels"), batch.conditions.get("y")
            call = partial(_pictured, net, labels, about["patch"], process, y, autocast)
        return Student(net=call, process=process, predicts=about["predicts"], time=about["time"],
                       sigma_data=about["sigma_data"], destination=destination, dtype=torch.float32)  # fmt: skip

    return read


def _pictured(
    net: nn.Module, labels: Tensor | None, patch: int, process: Process, y: Tensor | None,
    autocast: torch.dtype | None, x: Tensor, t: Tensor,
) -> Tensor:  # fmt: skip
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast is not None):
        return call_network(net, x, t, labels, patch, process, y=y)


def _record(trainer: Trainer, stage: Stage, k: int, out: Path, shape: tuple[int, ...], labels: Sequence[str]) -> None:
    """The pairs of a stage, recorded by its teacher; what a killed run has of them is gone on from."""
    if not stage.pairs:
        return
    objective: Any = stage.objective  # one that reads pairs
    process = objective.process
    calls, seed = stage.calls, trainer.config.seed
    about = {"method": trainer.setup["method"], "data": trainer.setup["data"], "step": trainer.since[0], "seed": seed}
    about["teacher"] = _digest(trainer.players["teacher"].net) if trainer.players.became else trainer.setup["teacher"]
    saved = Saved(out / f"pairs-{k}.safetensors", {**about, "pairs": stage.pairs, "calls": calls})
    if not {"x0", "eps"} <= saved.read().keys():
        classes = np.random.default_rng([seed, 3]).integers(0, len(labels) + 1, stage.pairs) if labels else None

        def conditioned(where: slice) -> Denoises:
            told = {} if classes is None else {"class_labels": torch.from_numpy(classes[where])}
            return trainer.players.teacher(Batch(torch.empty(0), told))

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
