"""A trained model as a folder: a diffusers network, the process it was trained for, its labels and its card.

    fashion-unet/
        config.json                            the diffusers class (`_class_name`) and its arguments
        diffusion_pytorch_model.safetensors    weights, bfloat16 or float32
        fewstep.json                           process, prediction, time convention, patch, shape, labels, facts
        README.md                              the card: how it was made, how good it is

    model = load()                       # the shipped one
    denoiser = model.denoiser(label=3)   # (z, t) -> x0_hat, for sample(denoiser, model.process, ...)

A folder may come from anywhere, so nothing in it is run: the class comes from a fixed list, the weights from
safetensors alone, and every file is checked before a network is built.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn

from fewstep.blueprint import check_arguments, check_call, check_fits, is_whole
from fewstep.denoiser import PREDICTIONS, TIMES, Wrapped, wrap
from fewstep.files import (
    extra,
    load_tensors,
    read_json,
    save_tensors,
    sha256,
    tensor_shapes,
    whole_folder,
    write_json,
    write_text,
)
from fewstep.pace import Pace, choose
from fewstep.process import Process
from fewstep.process.config import process_from_json, process_to_json
from fewstep.stats.errors import known_error
from fewstep.words import typed, usable_device

__all__ = ["NETWORKS", "Model", "build_network", "call_network", "load", "save_model"]

SHIPPED = Path(__file__).resolve().parent / "models" / "fashion-unet"
WEIGHTS = "diffusion_pytorch_model.safetensors"
FORMAT = 1
SIDE = 4096  # the most channels, rows or columns of an image: a cosine basis of that side fits into memory

# The diffusers classes that are called as net(x, t, class_labels=y).sample, and where each is defined.
NETWORKS = {
    "UNet2DModel": "diffusers.models.unets.unet_2d",
    "DiTTransformer2DModel": "diffusers.models.transformers.dit_transformer_2d",
}


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
        labels: the names of the classes; label i is `labels[i]`, which the network knows as class i + 1 (0: no label).
        dtype: the network's; states stay float32.
        pace: how the network runs here: its precision, memory format and threads.
        path: the folder, or None for a model in memory.
        weights: SHA-256 of the file of its weights, by which statistics and fitted tables know their model.
        facts: the rest of fewstep.json: "training" and "quality", as the card tells them.
        error: of the network's output, as `fewstep stats` measured it beside the weights; 0 where it is not known.
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

    def denoiser(self, label: int | str | Tensor | Sequence[int | str] | None = None) -> Wrapped:
        """The denoiser (z, t) -> x0_hat for one label, for a label per sample, or for none.

        Args:
            label: an index or a name from `labels`; a (B,) integer tensor or a list of either, for batches of
                B; or None.
        """
        classes = self._classes(label)
        if classes is not None:
            classes = classes.to(next(self.net.parameters()).device)

        labelled = partial(self._call, classes=classes)  # tensors of a partial go along with their samples
        made = _wrapped(labelled, self.process, self.predicts, self.time)
        return replace(made, weights=self.weights, within=1.0, error=self.error)

    def _call(self, x: Tensor, t: Tensor, *, classes: Tensor | None) -> Tensor:
        y = classes.expand(len(x)) if classes is not None and classes.ndim == 0 else classes
        if y is not None and len(y) != len(x):
            raise ValueError(
                f"a batch of {len(x)} samples came for {len(y)} labels; one label for all or one per sample is "
                "allowed; make the denoiser with as many labels as the batch has samples."
            )
        return call_network(self.net, x, t, y, self.patch, self.process)

    def _classes(self, label: int | str | Tensor | Sequence[int | str] | None) -> Tensor | None:
        """The network's class numbers: a scalar, a (B,) tensor, or None for a network without classes."""
        if label is None:
            return torch.tensor(0) if self.labels else None
        if not self.labels:
            raise ValueError(f"label came as {label!r}; this model was trained without labels; leave it out.")
        try:
            numbers = [self._number(v) for v in label] if isinstance(label, list | tuple) else self._number(label)
            wanted = torch.as_tensor(numbers)
        except (TypeError, ValueError, RuntimeError):  # what is no number
            wanted = torch.tensor(math.nan)
        whole = (
            wanted.ndim <= 1 and wanted.numel() > 0 and not (wanted.is_floating_point() or wanted.dtype == torch.bool)
        )
        if not whole or bool(((wanted < 0) | (wanted >= len(self.labels))).any()):
            names = ", ".join(f"{i} {name}" for i, name in enumerate(self.labels[:12]))
            more = " ..." if len(self.labels) > 12 else ""
            raise ValueError(
                f"label came as {label!r:.80}; labels are {names}{more}; give one of these numbers or names, one per "
                "sample, or none."
            )
        return wanted.long() + 1

    def _number(self, label: Any) -> Any:
        """A class's number for its name; another value as it is."""
        return self.labels.index(label) if isinstance(label, str) else label


def call_network(net: nn.Module, x: Tensor, t: Tensor, classes: Tensor | None, patch: int, process: Process) -> Tensor:
    """The network behind its door: (B, C, H, W) -> (B, C, H, W) with pixels folded into channels inside.

    The network sees pixels: a process with other coordinates is taken there and back.

    Args:
        net: a network of `NETWORKS`.
        x: (B, C, H, W) float32 in the process's coordinates; the network's dtype is entered behind them.
        t: the network's own time, a number or (B,).
        classes: (B,) class numbers, 0 for no label; None for a network without classes.
        patch: p, the side of the squares folded into channels.
        process: the process whose coordinates x has.
    """
    t = torch.as_tensor(t, device=x.device, dtype=torch.float32).expand(x.shape[0])
    x = process.from_coordinates(x).to(next(net.parameters()).dtype)
    x = nn.functional.pixel_unshuffle(x, patch) if patch > 1 else x
    out = net(x, t, class_labels=classes).sample
    out = nn.functional.pixel_shuffle(out, patch) if patch > 1 else out
    return process.coordinates(out.float().contiguous())


@typed
def load(
    path: str | Path | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    pace: Pace | None = None,
) -> Model:
    """Reads a model folder; None: the shipped class-conditional Fashion-MNIST model.

    Args:
        path: the folder; one that a diffusers pipeline was saved in is read by `fewstep.interop.diffusers`.
        dtype: the network's, the same as the pace's precision; None: float32 or bfloat16, whichever is faster here.
        device: where the network lives.
        pace: precision, memory format and threads; what it leaves open is measured (`fewstep.pace`). Threads are for
            `fewstep.draw` and the commands: `fewstep.sample` runs with torch's own.

    Raises:
        ValueError: one sentence, for a folder that is not whole, not safe or not of this format.
    """
    folder, device = SHIPPED if path is None else Path(path).expanduser(), usable_device(device)
    given = Pace(precision=str(dtype).removeprefix("torch.")) if dtype is not None else Pace()
    if pace is not None and pace.precision not in (None, given.precision or pace.precision):
        raise ValueError(f"got dtype={dtype} and a pace of precision {pace.precision}: give one of them")
    given = given.over(pace or Pace())
    if not folder.is_dir():
        there = f"{folder} is no folder" if folder.exists() else f"there is no model folder {folder}"
        raise ValueError(
            f"{there}; a model is a folder with config.json, {WEIGHTS} and fewstep.json; "
            "name one, or leave it out for the shipped model."
        )
    if not (folder / "fewstep.json").exists() and (folder / "model" / "fewstep.json").exists():
        raise ValueError(f"{folder} is a training run, not a model folder; its model is {folder / 'model'}; name that.")
    theirs = any((at / "model_index.json").exists() for at in (folder, folder.absolute().parent))
    if theirs and not (folder / "fewstep.json").exists():
        from fewstep.interop.diffusers.folder import load_folder

        model = load_folder(folder, dtype=given.dtype if given.precision else None, device=device)
        stored = Pace(precision=str(model.dtype).removeprefix("torch."))
        made = _paced(model.net, lambda x: model.net(x, 1), model.shape, stored.over(given), device)
        made.place(model.net)
        return replace(model, pace=made, error=known_error(folder, model.weights))
    config, about = (read_json(folder / name, "a model folder") for name in ("config.json", "fewstep.json"))
    known, digest = _check_about(about, folder / "fewstep.json"), about.get("weights_sha256")
    check_fits(partial(build_network, config), tensor_shapes(folder / WEIGHTS), folder / WEIGHTS)
    tensors = load_tensors(folder / WEIGHTS, digest=digest)
    net = build_network(config)
    _check_ends(net, known, folder)
    net.load_state_dict({name: t.float() for name, t in tensors.items()})
    net.eval().requires_grad_(False)
    run = partial(_run, net, bool(known["labels"]), known["patch"], known["process"])
    made = _paced(net, run, known["shape"], given, device)
    nn.Module.to(net, device=device, dtype=made.dtype)  # not diffusers' own, which warns of nothing
    made.place(net)
    facts = {name: about[name] for name in ("training", "quality", "data") if name in about}
    weights = sha256(folder / WEIGHTS)
    error = known_error(folder, weights)
    return Model(net=net, dtype=made.dtype, pace=made, path=folder, weights=weights, facts=facts, error=error, **known)


def save_model(
    folder: str | Path,
    net: nn.Module,
    *,
    process: Process,
    predicts: str,
    shape: Sequence[int],
    time: str = "index",
    patch: int = 1,
    labels: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
    card: str = "",
    dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """Writes a model folder that `load` reads: whole in a folder beside it first, then renamed to `folder`.

    Args:
        folder: where; an older model folder there is replaced, any other folder with files in it is refused.
        net: a network of a class in `NETWORKS`.
        process, predicts, shape, time, patch, labels: as in `Model`.
        facts: "training", "quality" and "data", written into fewstep.json.
        card: the text of README.md.
        dtype: of the stored weights.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "fewstep.json").exists():
        raise ValueError(
            f"{folder} holds other files than a model; a model folder is written whole; name a new folder."
        )
    with whole_folder(folder) as part:
        save_tensors(part / WEIGHTS, {name: t.to(dtype) for name, t in net.state_dict().items()})
        write_json(part / "config.json", _config_of(net))
        about = {
            "format": FORMAT,
            "process": process_to_json(process),
            "predicts": predicts,
            "time": time,
            "shape": list(shape),
            "patch": patch,
            "labels": list(labels),
            "weights_sha256": sha256(part / WEIGHTS),
        }
        write_json(part / "fewstep.json", about | dict(facts or {}))
        write_text(part / "README.md", card)
    return folder


def build_network(config: Mapping[str, Any]) -> nn.Module:
    """A new network from a diffusers config: `_class_name` (one of `NETWORKS`) and the class's arguments."""
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in NETWORKS:
        raise ValueError(
            f"config.json names the network class {name!r:.80}; allowed are {', '.join(NETWORKS)}; convert the model "
            "to one of these or wrap the network yourself with fewstep.wrap."
        )
    cls = getattr(extra(NETWORKS[name], "diffusers", f"a {name}"), name)
    given = check_arguments(cls, config, "config.json")
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if not k.startswith("_")}
    try:
        return cls(**arguments)
    except Exception as error:
        raise ValueError(
            f"config.json does not describe a {name} ({' '.join(str(error).split())[:300]}); it holds that class's "
            "arguments; fetch or write the folder again."
        ) from error


def _config_of(net: nn.Module) -> dict[str, Any]:
    """The diffusers config of a network, without what depends on the machine."""
    name = type(net).__name__
    if name not in NETWORKS:
        raise ValueError(
            f"a {name} came as network; a model folder holds one of {', '.join(NETWORKS)}; use one of these."
        )
    config: Mapping[str, Any] = net.config  # type: ignore[assignment] - set by diffusers
    return {"_class_name": name} | {k: v for k, v in config.items() if not k.startswith("_")}


def _check_about(about: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The fields of `Model` that fewstep.json holds, each checked; what is not known of it, or lacks, is said."""
    if about.get("format") != FORMAT or isinstance(about.get("format"), bool):
        raise ValueError(
            f"{where} has format {about.get('format')!r:.80}; this version reads {FORMAT}; update fewstep."
        )
    shape, patch, labels = about.get("shape"), about.get("patch", 1), about.get("labels", [])
    digest = about.get("weights_sha256", "0" * 64)
    checks = {
        "predicts": (about.get("predicts") in [*PREDICTIONS, "edm"], f"one of {', '.join(PREDICTIONS)}, edm"),
        "time": (about.get("time") in [*TIMES], f"one of {', '.join(TIMES)}"),
        "shape": (
            isinstance(shape, list) and len(shape) == 3 and all(is_whole(side, SIDE) for side in shape),
            f"three positive whole numbers: channels, height, width, each at most {SIDE}",
        ),
        "patch": (is_whole(patch, SIDE), f"a positive whole number of at most {SIDE}"),
        "labels": (isinstance(labels, list) and all(isinstance(v, str) for v in labels), "a list of names"),
        "weights_sha256": (isinstance(digest, str) and len(digest) == 64, "a SHA-256 in hexadecimal"),
        "training": (isinstance(about.get("training", {}), dict), "an object"),
        "data": (isinstance(about.get("data", {}), dict), "an object"),
        "quality": (_rows(about.get("quality", [])), "a list of objects"),
    }
    for name, (good, allowed) in checks.items():
        if not good:
            raise ValueError(
                f"{where} has {name} {about.get(name)!r:.80}; it must be {allowed}; fetch or write the folder again."
            )
    if unknown := sorted(set(about) - {*checks, "format", "process"}):
        warn(f"{where} has {unknown[0]!r}, which this version does not know and does not read", stacklevel=4)
    if "weights_sha256" not in about:
        warn(f"{where} has no weights_sha256: its weights are read unchecked", stacklevel=4)
    return {
        "process": process_from_json(about.get("process"), where),
        "predicts": about["predicts"],
        "time": about["time"],
        "shape": tuple(shape or ()),
        "patch": patch,
        "labels": tuple(labels),
    }


def _check_ends(net: nn.Module, known: Mapping[str, Any], folder: Path) -> None:
    """Refuses a network that does not take and return what fewstep.json says, or does not know its labels."""
    config: Mapping[str, Any] = net.config  # type: ignore[assignment] - set by diffusers
    (channels, *sides), patch, labels = known["shape"], known["patch"], known["labels"]
    folded, taken = channels * patch**2, config["in_channels"]
    if known["process"].kind != "block" and (any(side % patch for side in sides) or taken != folded):
        raise ValueError(
            f"{folder / 'fewstep.json'} has shape {known['shape']} and patch {patch}, which are {folded} channels for "
            f"the network, whose config.json says in_channels={taken}; fetch or write the folder again."
        )
    table = next((m for m in net.modules() if isinstance(m, nn.Embedding)), None)
    most = 0 if table is None else table.num_embeddings - 1
    if len(labels) > most or bool(labels) != (table is not None):
        raise ValueError(
            f"{folder / 'fewstep.json'} has {len(labels)} labels; the network of config.json knows {most} classes "
            "beside none; fetch or write the folder again."
        )
    process = known["process"]
    if process.kind == "diagonal" and process.size != tuple(sides):
        raise ValueError(
            f"{folder / 'fewstep.json'} has shape {known['shape']} and a process on images of {process.size}; one "
            "of frequencies has the images' own size; fetch or write the folder again."
        )
    _wrapped(lambda x, t: x, process, known["predicts"], known["time"])
    if process.kind != "block":
        size = (1, folded, *(side // patch for side in sides))
        check_call(partial(build_network, _config_of(net)), size, folder / "config.json", labelled=bool(labels))


def _wrapped(net: Callable[..., Tensor], process: Process, predicts: str, time: str) -> Wrapped:
    """The denoiser of a network that was trained here, with the sigma_data of images in [-1, 1]."""
    data = 0.5 if predicts == "edm" else None
    return wrap(net, process, predicts=predicts, time=time, dtype=torch.float32, sigma_data=data)


def _rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _run(net: nn.Module, labelled: bool, patch: int, process: Process, x: Tensor) -> Tensor:
    """A call of the network at some time with no label."""
    classes = torch.zeros(len(x), dtype=torch.long) if labelled else None
    return call_network(net, x, torch.tensor(0.5), classes, patch, process)


def _paced(
    net: nn.Module, run: Callable[[Tensor], object], shape: tuple[int, ...], given: Pace, device: torch.device
) -> Pace:
    """The pace of a network that is sampled, by timed runs on images of the shape."""

    def prepare(pace: Pace, size: int) -> Callable[[], object]:
        nn.Module.to(net, dtype=pace.dtype)
        pace.place(net)
        x = torch.linspace(-1, 1, size * math.prod(shape)).reshape(size, *shape).to(next(net.parameters()).dtype)
        return torch.no_grad()(partial(run, x))

    return choose(net, prepare, use="sample", given=given, device=device)
