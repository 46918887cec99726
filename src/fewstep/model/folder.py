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
from functools import partial
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn

from fewstep.blueprint import check_call, check_fits, is_whole, unfit
from fewstep.denoiser import TIMES
from fewstep.files import (
    WEIGHTS,
    load_tensors,
    read_json,
    save_tensors,
    sha256,
    tensor_shapes,
    whole_folder,
    write_json,
    write_text,
)
from fewstep.grid import GRIDS
from fewstep.model.model import Model, build_network, call_network, config_of, wrapped
from fewstep.nets import MLP, WordedUNet
from fewstep.pace import Pace, choose
from fewstep.process import Process
from fewstep.process.config import process_from_json, process_to_json
from fewstep.process.predict import EDM_LIKE, PREDICTIONS
from fewstep.solver.config import Tableau
from fewstep.stats.errors import known_error
from fewstep.tableau import MadeFor
from fewstep.tableau.made_for import ROWS

__all__ = ["SIDE", "about_of", "load_own", "paced", "save_model"]

FORMAT = 1
_CALLED: dict[str, None] = {}  # networks of the latest configs, which take what they are called with
SIDE = 4096  # the most channels, rows or columns of an image: a cosine basis of that side fits into memory


def load_own(folder: Path, given: Pace, device: torch.device) -> Model:
    """Reads a folder that `save_model` wrote; what the pace leaves open is measured."""
    if not (folder / "fewstep.json").exists() and (folder / "model" / "fewstep.json").exists():
        raise ValueError(f"{folder} is a training run, not a model folder; its model is {folder / 'model'}; name that.")
    config, about = (read_json(folder / name, "a model folder") for name in ("config.json", "fewstep.json"))
    known, digest = _check_about(about, folder / "fewstep.json"), about.get("weights_sha256")
    check_fits(partial(build_network, config), tensor_shapes(folder / WEIGHTS), folder / WEIGHTS)
    tensors = load_tensors(folder / WEIGHTS, digest=digest)
    net = build_network(config)
    _check_ends(net, known, folder)
    net.load_state_dict({name: t.float() for name, t in tensors.items()})
    net.eval().requires_grad_(False)
    run = partial(_run, net, bool(known["labels"]), known["patch"], known["process"], known["given"])
    made = paced(net, run, known["shape"], given, device)
    nn.Module.to(net, device=device, dtype=made.dtype)  # not diffusers' own, which warns of nothing
    made.place(net)
    facts = {name: about[name] for name in ("training", "quality", "data") if name in about}
    weights = sha256(folder / WEIGHTS)
    error = known_error(folder, weights)
    return Model(net=net, dtype=made.dtype, pace=made, path=folder, weights=weights, facts=facts, error=error,
                 made_for=_made_for(about, folder, known["process"]), **known)  # fmt: skip


def about_of(folder: Path) -> dict[str, Any]:
    """The fields of `Model` that a folder's fewstep.json tells, without its network."""
    about, where = read_json(folder / "fewstep.json", "a model folder"), folder / "fewstep.json"
    known = _check_about(about, where)
    return {**known, "made_for": _made_for(about, folder, known["process"])}


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
    sigma_data: float = 0.5,
    destination: bool = False,
    given: bool = False,
    made_for: MadeFor | None = None,
) -> Path:
    """Writes a model folder that `load` reads: whole in a folder beside it first, then renamed to `folder`.

    Args:
        folder: where; an older model folder there is replaced, any other folder with files in it is refused.
        net: a network of a class in `NETWORKS`.
        process, predicts, shape, time, patch, labels: as in `Model`.
        facts: "training", "quality" and "data", written into fewstep.json.
        card: the text of README.md; empty: there is none.
        dtype: of the stored weights.
        sigma_data, destination, given, made_for: as in `Model`.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "fewstep.json").exists():
        raise ValueError(
            f"{folder} holds other files than a model; a model folder is written whole; name a new folder."
        )
    with whole_folder(folder) as part:
        save_tensors(part / WEIGHTS, {name: t.to(dtype) for name, t in net.state_dict().items()})
        write_json(part / "config.json", config_of(net))
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
        about |= {"sigma_data": sigma_data} if sigma_data != 0.5 else {}
        about |= {"destination": True} if destination else {}
        about |= {"given": True} if given else {}
        if made_for is not None:
            about |= {"tables": list(made_for.tables), "rows": made_for.rows, "grid": made_for.grid}
            for name, table in made_for.tables.items():
                table.save(part / f"table-{name}.safetensors")
        write_json(part / "fewstep.json", about | dict(facts or {}))
        if card:
            write_text(part / "README.md", card)
    return folder


def _check_about(about: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The fields of `Model` that fewstep.json holds, each checked; what is not known of it, or lacks, is said."""
    if about.get("format") != FORMAT or isinstance(about.get("format"), bool):
        raise ValueError(
            f"{where} has format {about.get('format')!r:.80}; this version reads {FORMAT}; update fewstep."
        )
    shape, patch, labels = about.get("shape"), about.get("patch", 1), about.get("labels", [])
    digest, rows = about.get("weights_sha256", "0" * 64), about.get("quality", [])
    predictions = [*PREDICTIONS, *EDM_LIKE]
    checks = {
        "predicts": (about.get("predicts") in predictions, f"one of {', '.join(predictions)}"),
        "time": (about.get("time") in [*TIMES], f"one of {', '.join(TIMES)}"),
        "shape": (
            isinstance(shape, list) and 1 <= len(shape) <= 3 and all(is_whole(side, SIDE) for side in shape),
            f"positive whole numbers of at most {SIDE}: channels, height, width; one of a vector, two of a series",
        ),
        "patch": (is_whole(patch, SIDE), f"a positive whole number of at most {SIDE}"),
        "labels": (isinstance(labels, list) and all(isinstance(v, str) for v in labels), "a list of names"),
        "weights_sha256": (isinstance(digest, str) and len(digest) == 64, "a SHA-256 in hexadecimal"),
        "training": (isinstance(about.get("training", {}), dict), "an object"),
        "data": (isinstance(about.get("data", {}), dict), "an object"),
        "sigma_data": (
            isinstance(about.get("sigma_data", 0.5), float) and 0 < about.get("sigma_data", 0.5) < math.inf,
            "a number above 0",
        ),
        **{name: (isinstance(about.get(name, False), bool), "true or false") for name in ("destination", "given")},
        "tables": (_names(about.get("tables", [])), "a list of numbers of calls, as words"),
        "rows": (about.get("rows", "own") in [*ROWS], f"one of {', '.join(ROWS)}"),
        "grid": (about.get("grid", "default") in [*GRIDS], "the name of a grid"),
        "quality": (isinstance(rows, list) and all(isinstance(row, dict) for row in rows), "a list of objects"),
    }
    for name, (good, allowed) in checks.items():
        if not good:
            raise unfit(f"{where} has {name} {about.get(name)!r:.80}; it must be {allowed}")
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
        "sigma_data": about.get("sigma_data", 0.5),
        "destination": about.get("destination", False),
        "given": about.get("given", False),
    }


def _check_ends(net: nn.Module, known: Mapping[str, Any], folder: Path) -> None:
    """Refuses a network that does not take and return what fewstep.json says, or does not know its labels."""
    config: Mapping[str, Any] = net.config  # type: ignore[assignment] - set by diffusers
    where = folder / "fewstep.json"
    if isinstance(net, MLP):
        size = math.prod(known["shape"])
        if config["beside"] != config["size"] * known["given"]:
            takes = f"takes {config['beside']} numbers beside {config['size']}"
            raise unfit(f"{where} has given {known['given']}; the network of config.json {takes}")
        if config["size"] != size or config["classes"] != len(known["labels"]):
            takes = f"the network of config.json takes {config['size']} numbers and {config['classes']}"
            raise unfit(f"{where} has shape {known['shape']} and {len(known['labels'])} labels; {takes}")
        return
    if len(known["shape"]) != 3:
        raise unfit(f"{where} has shape {known['shape']}; a network of images has three axes")
    (channels, *sides), patch, labels = known["shape"], known["patch"], known["labels"]
    folded, taken = channels * (1 + known["given"]) * patch**2, config["in_channels"]
    if known["process"].kind != "block" and (any(side % patch for side in sides) or taken != folded):
        whose = f"{folded} channels for the network, whose config.json says in_channels={taken}"
        raise unfit(f"{where} has shape {known['shape']} and patch {patch}, which are {whose}")
    table = next((m for m in net.modules() if isinstance(m, nn.Embedding)), None)
    most = 0 if table is None else table.num_embeddings - 1
    if not isinstance(net, WordedUNet) and (len(labels) > most or bool(labels) != (table is not None)):
        raise unfit(f"{where} has {len(labels)} labels; the network of config.json knows {most} classes beside none")
    process = known["process"]
    if process.kind == "diagonal" and process.size != tuple(sides):
        wrong = f"{where} has shape {known['shape']} and a process on images of {process.size}"
        raise unfit(f"{wrong}; one of frequencies has the images' own size")
    wrapped(lambda x, t: x, process, known["predicts"], known["time"], known["sigma_data"])
    if process.kind != "block":
        size, built = (1, folded, *(side // patch for side in sides)), config_of(net)
        key = repr((built, size, bool(labels)))
        if key not in _CALLED:
            check_call(partial(build_network, built), size, folder / "config.json", labelled=bool(labels),
                       returns=channels * patch**2)  # fmt: skip
            _CALLED[key] = None
            while len(_CALLED) > 16:
                _CALLED.pop(next(iter(_CALLED)))


def _made_for(about: Mapping[str, Any], folder: Path, process: Process) -> MadeFor | None:
    """What a student's folder brings; a table of another process is none of it."""
    tables = {name: Tableau.load(folder / f"table-{name}.safetensors") for name in about.get("tables", [])}
    for name, table in tables.items():
        if table.process != process:
            raise unfit(f"{folder} has table-{name} for {table.process} and a network for {process}; they must be one")
    rest = {name: about[name] for name in ("rows", "grid") if name in about}
    return MadeFor(tables=tables, **rest) if tables else None


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) and v.isalnum() and len(v) < 16 for v in value)


def _run(net: nn.Module, labelled: bool, patch: int, process: Process, given: bool, x: Tensor) -> Tensor:
    """A call of the network at some time with no label."""
    classes = torch.zeros(len(x), dtype=torch.long) if labelled else None
    return call_network(net, x, torch.tensor(0.5), classes, patch, process, y=torch.zeros_like(x) if given else None)


def paced(
    net: nn.Module, run: Callable[[Tensor], object], shape: tuple[int, ...], given: Pace, device: torch.device
) -> Pace:
    """The pace of a network that is sampled, by timed runs on images of the shape."""

    def prepare(pace: Pace, size: int) -> Callable[[], object]:
        nn.Module.to(net, dtype=pace.dtype)
        pace.place(net)
        x = torch.linspace(-1, 1, size * math.prod(shape)).reshape(size, *shape).to(next(net.parameters()).dtype)
        return torch.no_grad()(partial(run, x))

    return choose(net, prepare, use="sample", given=given, device=device)
