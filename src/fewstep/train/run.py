"""`fewstep train` as a function: data in, a resumable run, a model folder out.

OUT/checkpoint.safetensors   everything the run needs to go on
OUT/sheet.png                samples of the averaged weights, renewed while it runs
OUT/model/                   the model folder, written when the budget is spent
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fewstep.data import Images, read_images
from fewstep.data.images import KNOWN_DATA
from fewstep.denoiser import TIMES
from fewstep.files import atomic, extra, physical_memory
from fewstep.model import Model, build_network, call_network, save_model
from fewstep.nets import WordedUNet
from fewstep.pace import Pace
from fewstep.process import CLD, EDM, VP, Blurring, Cosine, Discrete, Flow, Process, SubVP
from fewstep.process.config import process_to_json
from fewstep.terminal import png
from fewstep.train.card import card
from fewstep.train.company import in_turn, same, together
from fewstep.train.loop import BUDGET, Setup, Stopped, TrainConfig, Trainer, check_sides, network_config, read_header
from fewstep.train.progress import Progress, duration
from fewstep.words import typed, usable_device

__all__ = ["TRAINABLE", "Setup", "check_sides", "export", "network_config", "train", "write_sheet"]

MOST_CHANNELS, MOST_LAYERS = 16_384, 64  # of a resolution

# Processes that can be trained here, made for images of (height, width), and what the network learns to return unless
# said otherwise.
TRAINABLE: dict[str, tuple[Callable[[tuple[int, int]], Process], str]] = {
    "vp": (lambda size: VP(), "v"),
    "cosine": (lambda size: Cosine(), "v"),
    "sub-vp": (lambda size: SubVP(), "v"),
    "flow": (lambda size: Flow(), "flow"),
    "blurring": (lambda size: Blurring(size=size), "v"),
    "cld": (lambda size: CLD(), "v"),
    "edm": (lambda size: EDM(), "edm"),
    "scaled-linear": (lambda size: scaled_linear(), "noise"),
}


@typed
def train(
    data: str | Path | Images,
    out: str | Path,
    *,
    process: str | None = None,
    predicts: str | None = None,
    law: str | None = None,
    images: int | None = None,
    hours: float | None = None,
    batch: int | None = None,
    lr: float | None = None,
    warmup: int | None = None,
    ema: float | None = None,
    drop_label: float | None = None,
    seed: int | None = None,
    channels: tuple[int, ...] | None = None,
    layers: int | None = None,
    patch: int | None = None,
    words: bool | None = None,
    resume: bool = True,
    save_every: float = 120.0,
    sheet_every: float | None = 600.0,
    device: str | torch.device = "cpu",
    pace: Pace | None = None,
    command: str | None = None,
    quiet: bool = False,
) -> Path:
    """Trains a denoiser until the budget is spent and returns the model folder `out`/model.

    Options left at None are those of the run in `out` when there is one, else the defaults of `TrainConfig` and
    `Setup`. Killed at any moment, the same call goes on from the last checkpoint and ends in the same weights. A run
    that is over is exported again; with a larger budget it goes on.

    Args:
        data: an npz file, a folder of pictures (see `read_images`), or `Images`.
        out: the run's folder.
        process: a key of `TRAINABLE`.
        predicts: what the network learns to return: "noise", "data", "v", "flow" or "edm".
        law: how times are drawn: log-SNR "normal", or time "uniform", as most published networks were trained.
        images: budget in images seen.
        hours: budget in hours of training, all sessions together.
        batch, lr, warmup, ema, drop_label, seed: as in `TrainConfig`.
        channels: channels of each resolution of the UNet.
        layers: residual blocks per resolution.
        patch: side of the squares of pixels folded into channels (1: none).
        words: the network is told the words of the labels' names, and can be asked for other words.
        resume: False starts anew and overwrites the run in `out`.
        save_every: seconds between checkpoints.
        sheet_every: seconds between sample sheets; None: no sheets.
        device: where to train.
        pace: precision, memory format and threads; what it leaves open is as in the run in `out`, or else measured
            (`fewstep.pace`).
        command: the command line, for the card; None: told from the options.
        quiet: shows nothing.

    Raises:
        ValueError: one sentence, for options, data or a checkpoint that do not fit.
        Stopped: after Ctrl-C or SIGTERM; the checkpoint is saved.
    """
    out = Path(out)
    checkpoint = out / "checkpoint.safetensors"
    goes_on, rank = same(resume and checkpoint.exists()), together()[0]
    header = read_header(checkpoint) if goes_on else {"config": {}, "setup": {}}
    given = {"process": process, "predicts": predicts, "channels": channels, "layers": layers, "patch": patch,
             "words": words}  # fmt: skip
    setup = _merge(Setup(), header["setup"], given)
    data = data if isinstance(data, Images) else read_images(data, words=setup.words)
    given = {"images": images, "hours": hours, "batch": batch, "lr": lr, "warmup": warmup, "ema": ema}
    given |= {"law": law, "drop_label": drop_label, "seed": seed}
    config = _merge(TrainConfig(), header["config"], given)
    _check(config, setup, data, save_every, sheet_every)
    sheet_every = sheet_every if rank == 0 else None
    usable_device(device)
    if sheet_every is not None:
        extra("PIL.Image", "train", "a sample sheet")  # missing: said before the work, not after
    noising, learns, clock = _learned(setup, data)
    _check_size(setup, data)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        net = build_network(network_config(setup, data))
    saved_setup = {name: getattr(setup, name) for name in ("process", "predicts", "channels", "layers", "patch")}
    told = lambda classes: classes  # noqa: E731
    if isinstance(net, WordedUNet):
        texts, saved_setup["words"] = net.read(("", *data.names)), True
        told = lambda classes: texts[classes]  # noqa: E731
    trainer = Trainer(
        net,
        noising,
        data.images,
        data.labels,
        config,
        checkpoint,
        lambda z, t, classes: call_network(net, z, TIMES[clock](noising, t), told(classes), setup.patch, noising),
        predicts=learns,
        setup={**saved_setup, "data": data.fingerprint()},
        device=device,
        pace=pace,
    )
    with Progress(quiet=quiet or rank > 0) as progress:
        if goes_on:
            trainer.load()
            changed = [n for n in BUDGET if header["config"][n] != getattr(config, n)]
            notes = "".join(f"; {n} is now {getattr(config, n):g}, was {header['config'][n]:g}" for n in changed)
            notes += "" if header["sealed"] else "; it has no checksum, as of earlier versions, and is taken as it is"
            progress.say(f"goes on from step {trainer.step} of {checkpoint}{notes}")
        else:
            trainer.save()  # an output folder that cannot be written is found before the work, not after
        if data.labels is not None:
            counts = np.bincount(data.labels, minlength=len(data.names))
            if never := ", ".join(name for name, n in zip(data.names, counts, strict=True) if not n):
                progress.say(f"no picture has the label {never}: samples of it will be noise")
        sheet_at = trainer.seconds + (sheet_every or math.inf)

        def draw_sheet() -> None:
            try:
                write_sheet(_in_memory(trainer, setup, data), out / "sheet.png")
            except ValueError as error:  # samples that are not finite end no training
                progress.say(f"no sheet at step {trainer.step}: {error}")

        def report(t: Trainer, loss: float) -> None:
            nonlocal sheet_at
            progress(t, loss)
            if t.seconds >= sheet_at:
                sheet_at = t.seconds + (sheet_every or math.inf)
                draw_sheet()

        try:
            trainer.run(report, save_every)
        except Stopped:
            progress.say(f"stopped at step {trainer.step}; saved; the same command goes on from {checkpoint}")
            raise
        if sheet_every is not None:
            draw_sheet()
        folder = out / "model"
        with in_turn():
            if rank == 0:
                export(trainer, folder, data=data, setup=setup, command=command or _command(config, setup, data))
        progress.say(f"trained {duration(trainer.seconds)}; the model is in {folder}")
    return folder


def export(trainer: Trainer, folder: Path, *, data: Images, setup: Setup, command: str) -> Path:
    """Writes the averaged weights as a model folder with its card."""
    model = _in_memory(trainer, setup, data)
    config = trainer.config
    training = {
        "command": command,
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "images": trainer.step * config.batch,
        "steps": trainer.step,
        "hours": round(trainer.seconds / 3600, 3),
        "hardware": trainer.hardware,
        "pace": asdict(trainer.pace),
        "versions": f"torch {torch.__version__}, diffusers {extra('diffusers', 'diffusers', 'training').__version__}",
        **{f.name: getattr(config, f.name) for f in fields(config) if f.name not in BUDGET},
    }
    facts: dict[str, Any] = {
        "training": training,
        "data": {"source": data.source, "count": len(data.images), "fingerprint": data.fingerprint()},
    }
    if data.fingerprint() in KNOWN_DATA:
        facts["data"]["licence"] = KNOWN_DATA[data.fingerprint()]
    about = {
        "process": process_to_json(model.process),
        **{name: getattr(model, name) for name in ("predicts", "time", "shape", "patch", "labels")},
    }
    return save_model(
        folder,
        model.net,
        process=model.process,
        predicts=model.predicts,
        time=model.time,
        shape=model.shape,
        patch=model.patch,
        labels=model.labels,
        facts=facts,
        card=card(network_config(setup, data), about | facts),
    )


def write_sheet(
    model: Model, path: str | Path, *, rows: int = 8, columns: int | None = None, steps: int = 10, seed: int = 0
) -> None:
    """Samples rows x columns images and writes them as a PNG: a column for each of up to 16 labels, else 8 columns."""
    from fewstep.loop import sample

    columns = columns or (len(model.labels) if 2 <= len(model.labels) <= 16 else 8)
    count = rows * columns
    labels = torch.arange(count) % columns % len(model.labels) if model.labels else None
    if model.worded:  # all over the texts
        labels = torch.arange(count) * len(model.labels) // count
    z = sample(model.denoiser(labels), model.process, steps=steps, shape=(count, *model.shape), seed=seed,
               progress=False)  # fmt: skip
    with atomic(path) as part, part.open("wb") as file:
        png(model.process.to_data(z), file, columns=columns)


def scaled_linear() -> Discrete:
    """Stable Diffusion's betas: the squares of 1,000 equal steps from .00085^(1/2) to .012^(1/2)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return Discrete(alphas_cumprod=tuple((1 - betas).cumprod(0).tolist()))


def _learned(setup: Setup, data: Images) -> tuple[Process, str, str]:
    """The process, what the network learns to return, and the time it is told."""
    make, usual = TRAINABLE[setup.process]
    predicts = setup.predicts or usual
    return make(data.shape[1:]), predicts, "log-sigma/4" if predicts == "edm" else "index"


def _in_memory(trainer: Trainer, setup: Setup, data: Images) -> Model:
    """The model of the averaged weights as they stand."""
    net: nn.Module = copy.deepcopy(trainer.average).eval()
    _, learns, clock = _learned(setup, data)
    return Model(
        net=net,
        process=trainer.process,
        predicts=learns,
        time=clock,
        shape=data.shape,
        patch=setup.patch,
        labels=data.names,
    )


def _merge(default: Any, stored: dict[str, Any], given: dict[str, Any]) -> Any:
    """The dataclass `default` with the stored values, then the given ones that are not None."""
    names = {f.name for f in fields(default)}
    for name in names & stored.keys():
        value, like = stored[name], getattr(default, name)
        kind = {tuple: list, float: int | float}.get(type(like), type(like))
        if like is not None and (isinstance(value, bool) != isinstance(like, bool) or not isinstance(value, kind)):
            raise ValueError(f"the checkpoint holds {name} = {value!r}, which no run saves; name another folder.")
    values = {k: v for k, v in stored.items() if k in names} | {k: v for k, v in given.items() if v is not None}
    return replace(default, **{k: tuple(map(_plain, v)) if k == "channels" else _plain(v) for k, v in values.items()})


def _plain(value: Any) -> Any:
    """A number of numpy or torch as Python's own, so that it can be saved."""
    return value.item() if hasattr(value, "item") else value


def _check(config: TrainConfig, setup: Setup, data: Images, save_every: float, sheet_every: float | None) -> None:
    """Refuses options that cannot work, in one sentence each."""
    if setup.process not in TRAINABLE:
        raise ValueError(
            f"process came as {setup.process!r}; training takes {', '.join(TRAINABLE)}; choose one of these."
        )
    process, learns, _ = _learned(setup, data)
    known = [] if process.t_max > 1 else ["v", "flow"] if process.kind == "block" else ["data", "noise", "v", "flow"]
    if "noise" in known and process.log_snr(process.t_max) == -math.inf:
        known.remove("noise")  # it says nothing of data at alpha = 0, where sampling begins
    known += ["edm"] * (process.kind == "scalar")
    if learns not in known:
        raise ValueError(
            f"predicts came as {learns!r}; on {setup.process} a network learns {', '.join(known)}; choose one of these."
        )
    config.check(len(data.images))
    checks = {
        "channels": (
            setup.channels,
            setup.channels and all(1 <= c <= MOST_CHANNELS for c in setup.channels),
            f"positive whole numbers up to {MOST_CHANNELS}, one for each resolution",
        ),
        "layers": (setup.layers, 1 <= setup.layers <= MOST_LAYERS, f"1 to {MOST_LAYERS}"),
        "patch": (setup.patch, setup.patch >= 1, "a whole number of at least 1"),
        "save_every": (save_every, not math.isnan(save_every), "a number; 0 saves after each step"),
        "sheet_every": (sheet_every, sheet_every is None or sheet_every > 0, "a number above 0, or None for no sheets"),
    }
    for name, (value, good, allowed) in checks.items():
        if not good:
            raise ValueError(f"{name} came as {value}; allowed is {allowed}; change it.")
    check_sides(setup, data.shape)


def _check_size(setup: Setup, data: Images) -> None:
    """Refuses a network that does not fit into memory, before it is made."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_network(network_config(setup, data)).parameters())
    if 20 * parameters > physical_memory():  # float32 weights, gradients, two moments, averaged weights
        raise ValueError(
            f"channels {setup.channels} and layers {setup.layers} came, a network of {parameters:,} parameters; "
            f"training takes 20 bytes of each, and {physical_memory() / 2**30:.0f} GiB are here; give smaller ones."
        )


def _command(config: TrainConfig, setup: Setup, data: Images) -> str:
    """A command line that makes the same run."""
    words = []
    for f, value in ((f, getattr(options, f.name)) for options in (config, setup) for f in fields(options)):
        if value != f.default:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words.append(f"--{f.name.replace('_', '-')}" + (f" {text}" if value is not True else ""))
    return " ".join(["fewstep train", data.source, "OUT", *words])
