"""A trained network, the process it was trained for, its labels and its facts: how it is built and called."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.blueprint import check_arguments, describing
from fewstep.denoiser import Bridged, Wrapped, wrap
from fewstep.denoiser.bridged import End
from fewstep.denoiser.watch import NetworkError
from fewstep.files import extra
from fewstep.nets import MLP, Told, WordedUNet
from fewstep.nets.worded import split
from fewstep.pace import Pace
from fewstep.process import Bridge, Process
from fewstep.process.predict import EDM_LIKE
from fewstep.tableau import MadeFor, Tableau

__all__ = ["NETWORKS", "Model", "build_network", "call_network", "check_batch", "checked_classes", "config_of",
           "wrapped"]  # fmt: skip

# The classes that are called as net(x, t, class_labels=y), and where each is defined; those of diffusers on images.
NETWORKS = {
    "UNet2DModel": "diffusers.models.unets.unet_2d",
    "DiTTransformer2DModel": "diffusers.models.transformers.dit_transformer_2d",
    "MLP": "fewstep.nets",
    "WordedUNet": "fewstep.nets",
}


TOLD = ("destination", "guided", "scale", "octaves")  # of a network of diffusers that is told more than a time


@dataclass(frozen=True, kw_only=True)
class Model:
    """A trained network and everything needed to sample it.

    Attributes:
        net: the diffusers network, in eval mode.
        process: the process it was trained for.
        predicts: what it returns (the names of `fewstep.denoiser.wrap`).
        time: its time convention; "index" is 1000 t - 1.
        shape: (C, H, W) of one image in data space.
        patch: p: the network sees (C p p, H / p, W / p), each p x p square of pixels folded into channels.
        labels: the names of the classes; label i is `labels[i]`, which the network knows as class i + 1 (0: no label);
            of a network that is told words the texts that it was trained on, and any other words are a label, too.
        dtype: the network's; states stay float32.
        pace: how the network runs here: its precision, memory format and threads.
        path: the folder, or None for a model in memory.
        weights: SHA-256 of the file of its weights, by which statistics and fitted tables know their model.
        facts: the rest of fewstep.json: "training" and "quality", as the card tells them.
        error: of the network's output, as `fewstep stats` measured it beside the weights; 0 where it is not known.
        sigma_data: of the data that it was trained on, where it predicts "edm" or "consistency".
        destination: whether the network is told where a row leads, after the time.
        given: whether the network sees another end y beside the state, as one that restores pictures does.
        made_for: of a student, the tables that it brings, and which others are right for it.
    """

    net: nn.Module
    process: Process
    predicts: str
    time: str
    shape: tuple[int, ...]
    patch: int = 1
    labels: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    pace: Pace = field(default_factory=Pace)
    path: Path | None = None
    weights: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: float = 0.0
    sigma_data: float = 0.5
    destination: bool = False
    given: bool = False
    made_for: MadeFor | None = None

    @property
    def tables(self) -> Mapping[str, Tableau]:
        """Of a student, those that it was made for, by a name that says the calls."""
        return {} if self.made_for is None else self.made_for.tables

    @property
    def worded(self) -> bool:
        """Whether the network is told words, so that any text is a label."""
        return isinstance(self.net, WordedUNet)

    @property
    def takes_w(self) -> bool:
        """Whether the network is told the guidance, as a student of `guided` is."""
        return bool(getattr(self.net, "config", {}).get("guided"))

    def denoiser(
        self,
        label: int | str | Tensor | Sequence[int | str] | None = None,
        *,
        w: float | None = None,
        y: Tensor | None = None,
    ) -> Any:
        """The denoiser (z, t) -> x0_hat for one label, for a label per sample, or for none.

        Args:
            label: an index or a name from `labels`; a (B,) integer tensor or a list of either, for batches of
                B; or None.
            w: the guidance that a student was trained to be told, 0 for none.
            y: (B, *shape) or (1, *shape), the other end, of a model that is given one.
        """
        if self.given != (y is not None):
            raise ValueError(
                "got a model that restores what it is given, and no y: give denoiser(y=...), or `fewstep restore`"
                if self.given
                else "got y for a model that was trained without another end: leave it out"
            )
        if y is not None and tuple(y.shape[1:]) != tuple(self.shape):
            raise ValueError(f"got y of shape {tuple(y.shape)} for a model of {self.shape}: give (batch, *that)")
        classes = self._classes(label)
        if classes is not None:
            classes = classes.to(next(self.net.parameters()).device)

        labelled = partial(self._call, classes=classes, w=w, y=y)  # tensors of a partial go along with their samples
        made = wrapped(labelled, self.process, self.predicts, self.time, self.sigma_data, destination=self.destination)
        within = 1.0 if len(self.shape) == 3 else math.inf
        made = replace(made, weights=self.weights, within=within, error=self.error, made_for=self.made_for)
        if y is None or not isinstance(self.process, Bridge):
            return made
        return Bridged(made, End(y), self.process, residual=True)

    def _call(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        *,
        classes: Tensor | None,
        w: float | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        labels = classes.expand(len(x)) if classes is not None and classes.ndim == 0 else classes
        if labels is not None and labels.ndim == 2 and len(labels) == 1:  # one text for all
            labels = labels.expand(len(x), -1)
        if labels is not None:
            check_batch(len(x), len(labels))
        return call_network(self.net, x, t, labels, self.patch, self.process, s, w, y)

    def _classes(self, label: int | str | Tensor | Sequence[int | str] | None) -> Tensor | None:
        """The network's class numbers: a scalar, a (B,) tensor, or None for a network without classes; or words."""
        if isinstance(self.net, WordedUNet):
            texts = self._texts(label)
            numbers = self.net.read(texts)
            for text, row in zip(texts, numbers, strict=True):
                if split(text) and not row.any():
                    known = ", ".join((self.net.known or [*self.labels])[:8])
                    raise ValueError(f"label came as {text!r:.80}; this model was trained on words as {known}; "
                                     "give some of these, or none.")  # fmt: skip
            return numbers
        if label is None:
            return torch.tensor(0) if self.labels else None
        if not self.labels:
            raise ValueError(f"label came as {label!r}; this model was trained without labels; leave it out.")
        number = lambda v: self.labels.index(v) if isinstance(v, str) and v in self.labels else v  # noqa: E731
        names = ", ".join(f"{i} {name}" for i, name in enumerate(self.labels[:12]))
        allowed = f"labels are {names}{' ...' if len(self.labels) > 12 else ''}; give one of these numbers or names, "
        wanted = [number(v) for v in label] if isinstance(label, list | tuple) else number(label)
        return checked_classes(wanted, len(self.labels), label, f"{allowed}one per sample, or none.") + 1

    def _texts(self, label: int | str | Tensor | Sequence[int | str] | None) -> list[str]:
        """The text of each label: that of its number, or any words."""
        if label is None:
            return [""]
        given: Any = label.tolist() if isinstance(label, Tensor) else label
        each = [*given] if isinstance(given, list | tuple) else [given]
        numbers = [v for v in each if not isinstance(v, str)]
        if numbers:
            allowed = f"labels are texts, or numbers from 0 to {len(self.labels) - 1}; give such, or none."
            checked_classes(numbers, len(self.labels), label, allowed)
        return [v if isinstance(v, str) else self.labels[v] for v in each]


def checked_classes(wanted: Any, count: int, label: Any, allowed: str) -> Tensor:
    """Whole numbers from 0 and below the count, a scalar or (B,); else a ValueError that the label came as it is."""
    try:
        found = torch.as_tensor(wanted)
    except (TypeError, ValueError, RuntimeError):  # what is no number
        found = torch.tensor(math.nan)
    whole = found.ndim <= 1 and found.numel() > 0 and not (found.is_floating_point() or found.dtype == torch.bool)
    if not whole or bool(((found < 0) | (found >= count)).any()):
        raise ValueError(f"label came as {label!r:.80}; {allowed}")
    return found.long()


def check_batch(count: int, labels: int) -> None:
    """Refuses labels that are not one for each sample of a batch."""
    if count != labels:
        raise ValueError(
            f"a batch of {count} samples came for {labels} labels; one label for all or one per sample is allowed; "
            "make the denoiser with as many labels as the batch has samples."
        )


def wrapped(
    net: Callable[..., Tensor], process: Process, predicts: str, time: str, sigma_data: float, destination: bool = False
) -> Wrapped:
    """The denoiser of a network that was trained here; of images in [-1, 1] unless the deviation is told."""
    data = sigma_data if predicts in EDM_LIKE else None
    return wrap(net, process, predicts=predicts, time=time, dtype=torch.float32, sigma_data=data,
                destination=destination)  # fmt: skip


def build_network(config: Mapping[str, Any]) -> nn.Module:
    """A new network from a diffusers config: `_class_name` (one of `NETWORKS`) and the class's arguments."""
    name = config.get("_class_name")
    if name == "Told":
        mine = check_arguments(Told, {k: config[k] for k in TOLD if k in config}, "config.json")
        inside = {k: v for k, v in config.items() if k not in (*TOLD, "network")}
        with describing(name, "config.json"):
            return Told(build_network(inside | {"_class_name": config.get("network")}), **mine)
    if not isinstance(name, str) or name not in NETWORKS:
        raise ValueError(
            f"config.json names the network class {name!r:.80}; allowed are {', '.join(NETWORKS)}; convert the model "
            "to one of these or wrap the network yourself with fewstep.wrap."
        )
    cls = getattr(extra(NETWORKS[name], "diffusers", f"a {name}"), name)
    given = check_arguments(cls, config, "config.json")
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if not k.startswith("_")}
    with describing(name, "config.json"):
        return cls(**arguments)


def call_network(
    net: nn.Module,
    x: Tensor,
    t: Tensor,
    classes: Tensor | None,
    patch: int,
    process: Process,
    s: Tensor | None = None,
    w: float | Tensor | None = None,
    y: Tensor | None = None,
) -> Tensor:
    """The network behind its door: (B, C, H, W) -> (B, C, H, W) with pixels folded into channels inside.

    The network sees pixels: a process with other coordinates is taken there and back.

    Args:
        net: a network of `NETWORKS`.
        x: (B, C, H, W) float32 in the process's coordinates; the network's dtype is entered behind them.
        t: the network's own time, a number or (B,).
        classes: (B,) class numbers, 0 for no label; None for a network without classes.
        patch: p, the side of the squares folded into channels.
        process: the process whose coordinates x has.
        s, w: the destination and the guidance, of a network that is told them.
        y: (B, C, H, W) or (1, C, H, W) in data space, what the network sees beside the state.
    """
    if x.ndim < (2 if isinstance(net, MLP) else 4):
        raise NetworkError(f"it is called with a state of shape {tuple(x.shape)}, without a batch in front: give shape="
                           f"(4, {', '.join(map(str, x.shape))}) for four samples of that")  # fmt: skip
    t = torch.as_tensor(t, device=x.device, dtype=torch.float32).expand(x.shape[0])
    w = None if w is None else torch.as_tensor(w, device=t.device).to(t.dtype).expand(len(x))
    if isinstance(net, MLP):
        return net(x, t, s, class_labels=classes, w=w, y=y)
    x = process.from_coordinates(x).to(next(net.parameters()).dtype)
    x = x if y is None else torch.cat([x, y.to(x).expand(len(x), *y.shape[1:])], 1)
    x = nn.functional.pixel_unshuffle(x, patch) if patch > 1 else x
    told = (t, s) if isinstance(net, Told) else (t,)
    out = net(x, *told, class_labels=classes, **({"w": w} if isinstance(net, Told) else {})).sample
    out = nn.functional.pixel_shuffle(out, patch) if patch > 1 else out
    return process.coordinates(out.float().contiguous())


def config_of(net: nn.Module) -> dict[str, Any]:
    """The diffusers config of a network, without what depends on the machine."""
    name = type(net).__name__
    if name not in NETWORKS and name != "Told":
        raise ValueError(
            f"a {name} came as network; a model folder holds one of {', '.join(NETWORKS)}; use one of these."
        )
    config: Mapping[str, Any] = net.config  # type: ignore[assignment] - set by diffusers
    return {"_class_name": name} | {k: v for k, v in config.items() if not k.startswith("_")}
