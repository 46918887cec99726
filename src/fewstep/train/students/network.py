"""The network of a student, how it and its teacher are read, and what a checkpoint says of them."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.data import Images
from fewstep.denoiser import TIMES
from fewstep.denoiser.base import fingerprint
from fewstep.model import Model, build_network, call_network
from fewstep.model.model import config_of
from fewstep.nets import MLP, Told
from fewstep.process import Process
from fewstep.process.predict import EDM_LIKE, PREDICTIONS
from fewstep.train.methods import Method
from fewstep.train.pairs import Batch
from fewstep.train.player import Asked, Denoises, Reads, Student
from fewstep.train.run import Setup, check_sides, network_config
from fewstep.train.source import Source
from fewstep.words import pick

__all__ = ["Sizes", "asked", "digest_of", "known", "student", "told", "tried"]

COUNTED = ("index", "index-int", "thousandths")  # times that run to 1000


def student(
    method: Method, on: Process, taught: Any, net: nn.Module | Mapping[str, Any] | None, source: Source,
    predicts: str | None, time: str | None, sizes: Sizes, seed: int, deviation: float, autocast: torch.dtype | None,
) -> tuple[nn.Module, Reads, dict[str, Any]]:  # fmt: skip
    """The network, how it is read, and what a checkpoint says of it."""
    classes = 0 if source.labels is None else int(source.labels.max()) + 1
    about: dict[str, Any] = {"patch": 1, "labels": tuple(map(str, range(classes)))}
    about["predicts"] = pick({v: v for v in (*PREDICTIONS, *EDM_LIKE)}, predicts or method.predicts or "v", "predicts")
    if time is not None:
        pick(TIMES, time, "time")
    about["time"] = time or ("share" if method.given else "log-sigma/4" if on.t_max > 1 else "t")
    about["sigma_data"] = deviation
    if isinstance(taught, Model) and net is None and method.denoises and method.outputs == 1:
        net = told(copy.deepcopy(taught.net), method, taught.time).float().requires_grad_(True)
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
            net = method.network(size, sizes.width, sizes.depth) or MLP(
                size, sizes.width, sizes.depth, classes=classes, destination=method.destination,
                guided=method.guided, outputs=method.outputs, beside=beside, modes=method.modes,
            )  # fmt: skip
    elif isinstance(net, Mapping):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = told(build_network(net), method, about["time"])
    elif not isinstance(net, nn.Module):
        raise ValueError(
            f"got a {type(net).__name__} as net: give a torch.nn.Module called as net(x, t), or the config of a class "
            "of diffusers"
        )
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


def told(net: nn.Module, method: Method, time: str) -> nn.Module:
    """The network, which is told what the method tells; it returns the same until it has learned to listen."""
    more = {name for name in ("destination", "guided") if getattr(method, name)}
    had: Mapping[str, Any] = getattr(net, "config", {})
    if not more - {name for name in more if had.get(name)}:
        return net
    both = {name: name in more or bool(had.get(name)) for name in ("destination", "guided")}
    if isinstance(net, MLP):
        return net.told(**both)
    if isinstance(net, Told):
        wider = build_network(config_of(net) | both)
        wider.load_state_dict(net.state_dict(), strict=False)
        return wider
    return Told(net, **both, scale=1000.0 if time in COUNTED else 1.0)


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
            call = partial(_pictured, net, batch.conditions, about["patch"], process, autocast)
        return Student(net=call, process=process, predicts=about["predicts"], time=about["time"],
                       sigma_data=about["sigma_data"], destination=destination, dtype=torch.float32)  # fmt: skip

    return read


def _pictured(
    net: nn.Module, given: Mapping[str, Tensor], patch: int, process: Process, autocast: torch.dtype | None, x: Tensor,
    t: Tensor, s: Tensor | None = None,
) -> Tensor:  # fmt: skip
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast is not None):
        return call_network(net, x, t, given.get("class_labels"), patch, process, s, given.get("w"), given.get("y"))


def known(taught: Any) -> str | None:
    """Who the teacher is, where its weights say it."""
    if isinstance(taught, tuple):
        return " ".join(filter(None, map(known, taught))) or None
    return digest_of(taught.net) if isinstance(taught, Model) else fingerprint(taught)


def digest_of(net: nn.Module) -> str:
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


def tried(net: nn.Module, reads: Reads, process: Process, source: Source, method: Method) -> None:
    """Refuses, before any work, a network of the user's that is not called as the method calls it."""
    batch = source(0, 0.0).batch
    batch = batch.told(w=torch.zeros(len(batch.x0))) if method.guided else batch
    t = torch.full((len(batch.x0),), process.t_max, dtype=torch.float64)
    z = batch.x0.new_zeros(len(batch.x0), *process.state_shape(source.shape))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            reads(copy.deepcopy(net), batch)(z, t, t)
    except (TypeError, RuntimeError, IndexError) as error:
        told = ", ".join(["x", "t", *["s"] * method.destination, *(f"{name}=" for name in batch.conditions)])
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"got a {type(net).__name__} that cannot be called as net({told}) on x of {tuple(z.shape)} ({reason}): "
            "give one that can"
        ) from error
