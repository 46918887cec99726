"""Folders that diffusers saved, as models of this library: `fewstep.load("path/to/pipeline")`.

The scheduler's config says what the network was trained for; see `fewstep.interop.diffusers.convention`. The network
sees and predicts latents where the pipeline does. Weights are read from safetensors alone.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import no_init_weights
from torch import Tensor, nn

from fewstep.blueprint import check_arguments, check_fits, describing, is_whole, unfit
from fewstep.denoiser import Wrapped
from fewstep.files import WEIGHTS, load_tensors, read_json, sha256, tensor_shapes
from fewstep.interop.diffusers.convention import Convention
from fewstep.interop.diffusers.safe import INDEX, check_folder
from fewstep.interop.diffusers.scheduler import FewStepScheduler
from fewstep.model import Model
from fewstep.model.folder import SIDE
from fewstep.model.model import check_batch, checked_classes

__all__ = ["DiffusersModel", "load_folder"]

PARTS = ("unet", "transformer")  # a pipeline's network
SCHEDULER = Path("scheduler") / "scheduler_config.json"
AXES = {1: "length", 2: "height, width", 3: "depth, height, width"}
LONGEST = 2**24  # the most numbers of a sound


@dataclass(frozen=True, kw_only=True)
class DiffusersModel(Model):
    """A network of a diffusers pipeline, and what its scheduler says of it.

    Attributes:
        convention: process, prediction and time steps, as the scheduler's config has them.
        texts: the pipeline's `encode_prompt` where it has one text encoder, else None.
        within: the largest size of the data's entries, 1 where the network sees pictures themselves; inf for latents.
    """

    convention: Convention
    texts: Callable[..., Any] | None = None
    within: float = math.inf

    def denoiser(self, label: Any = None, *, prompt: str | list[str] | None = None, **conditions: Any) -> Wrapped:
        """The denoiser (z, t) -> x0_hat with the network's conditions bound to it.

        Args:
            label: the network's class number, or a (B,) tensor of them.
            prompt: a text, or one per sample, for pipelines with one text encoder.
            conditions: any further arguments of the network, as `encoder_hidden_states`.
        """
        if prompt is not None:
            if self.texts is None:
                raise ValueError(
                    "got a prompt for a pipeline without one text encoder: encode it with the pipeline and give what "
                    "the network takes, as encoder_hidden_states"
                )
            conditions["encoder_hidden_states"] = self.texts(prompt, next(self.net.parameters()).device, 1, False)[0]
        if label is not None:
            conditions["class_labels"] = self._classes(label)
        elif "class_labels" not in conditions and (table := self._table) is not None:
            raise ValueError(f"got no label for a network of classes 0 to {table.num_embeddings - 1}: give one")
        made = self.convention.denoiser(partial(self._network, **conditions), dtype=self.dtype)
        return replace(made, error=self.error, within=self.within)

    def _classes(self, label: Any) -> Tensor:
        """The network's class numbers, a scalar or (B,); other conditions of classes (times, vectors) as they come."""
        table, kind = self._table, getattr(self.net, "config", {}).get("class_embed_type")
        if table is not None:
            knows = f"this network knows the classes 0 to {table.num_embeddings - 1}; give one of these numbers"
            return checked_classes(label, table.num_embeddings, label, f"{knows}, or one per sample.")
        if kind is None or isinstance(label, str):
            raise ValueError(f"label came as {label!r:.80}; this network has no classes; leave it out.")
        return torch.as_tensor(label)

    @property
    def _table(self) -> nn.Embedding | None:
        """The network's numbers for its classes."""
        named = self.net.named_modules()
        return next((m for name, m in named if isinstance(m, nn.Embedding) and "class_embed" in name), None)

    def _network(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        if (axes := _axes(self.net)) is not None and x.ndim < axes + 2:
            raise ValueError(
                f"got states of shape {tuple(x.shape[1:])} for a {type(self.net).__name__}, which sees "
                f"({self.shape[0]}, {AXES[axes]}): give x or shape of such states"
            )
        classes = conditions.get("class_labels")
        if isinstance(classes, Tensor) and classes.ndim and len(classes) != 1:
            check_batch(len(x), len(classes))
        out = self.net(x, t, **{k: _spread(v, len(x)) for k, v in conditions.items()}, return_dict=False)[0]
        return out[:, : x.shape[1]] if out.shape[1] == 2 * x.shape[1] else out  # without a learned variance


def load_folder(
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    variant: str | None = None,
) -> DiffusersModel:
    """Reads a pipeline that diffusers saved, or the folder of its network; nothing in it is run.

    Weights are those of the variant asked for, or those without one, else the only variant (as fp16) that is there; one
    file, or shards and their index. Every tensor of the network is there, and no other.

    Args:
        folder: with model_index.json, or `unet` or `transformer` inside such a folder.
        dtype: the network's; None is float32, whatever it is stored in.
        device: where the network lives.
        variant: as "fp16", of which files the weights are.

    Raises:
        ValueError: for a folder without a network or a scheduler, whose scheduler does not say what is predicted, that
            is not whole, or that holds code or leads out of itself (`fewstep.interop.diffusers.safe`).
    """
    folder = Path(folder).expanduser().absolute()
    whole = folder if (folder / INDEX).is_file() else folder.parent
    index = check_folder(whole)
    part = next((whole / name for name in PARTS if (whole / name / "config.json").is_file()), None)
    if part is None or not (whole / SCHEDULER).is_file():
        raise ValueError(
            f"got {folder}, which has no {' or '.join(PARTS)} beside a {SCHEDULER}: give a folder that a pipeline's "
            "save_pretrained wrote"
        )
    config = read_json(part / "config.json", "a network")
    cls = _class_of(config, part)
    config = check_arguments(cls, config, part / "config.json", null=True)
    convention = FewStepScheduler.from_config(whole / SCHEDULER).convention
    files = weights_of(part, variant)
    found = [tensor_shapes(file) for file in files]
    joined = {name: about for shard in found for name, about in shard.items()}
    if len(joined) < sum(map(len, found)):
        raise unfit(f"{part} has a tensor in two shards; each lies in one")
    check_fits(partial(_made, cls, config, part), joined, part, renamed=_renamed)
    with no_init_weights():
        net = _made(cls, config, part)
    tensors = {name: t for file in files for name, t in load_tensors(file).items()}
    net.load_state_dict(_renamed(net, tensors))
    nn.Module.to(net, device=device, dtype=dtype)
    net.eval().requires_grad_(False)
    digests, shape = [sha256(file) for file in files], _shape(net, part)
    coded = any(re.search("Autoencoder|VAE|VQ", each[1]) for each in index.values() if each)
    pictures = _axes(net) == 2 and shape[0] in (1, 3) and bool(index) and not coded
    weights = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return DiffusersModel(net=net, process=convention.process, predicts=convention.predicts, time=convention.steps,
                          shape=shape, dtype=next(net.parameters()).dtype, path=folder, weights=weights,
                          convention=convention, texts=_texts(whole, index, device),
                          within=1.0 if pictures else math.inf)  # fmt: skip


def weights_of(part: Path, variant: str | None = None) -> list[Path]:
    """The files of a network's weights: one, or shards in the order of their names; those without a variant first."""
    pairs = _variants(part)
    if variant is not None and variant not in pairs:
        known = f"the variants {', '.join(sorted(pairs))}" if pairs else "no variant"
        raise ValueError(f"got variant={variant!r} for {part}, which has {known}: give one that is there, or none")
    index, file = part / f"{WEIGHTS}.index.json", part / WEIGHTS
    if variant is None and pairs and not (index.is_file() or file.is_file()):
        if len(pairs) > 1:
            raise ValueError(
                f"{part} has no {WEIGHTS} but the variants {', '.join(sorted(pairs))}; weights without a variant or "
                f"one alone are read by themselves; give variant={min(pairs)!r} or another of them."
            )
        (variant,) = pairs
    index, file = pairs[variant] if variant is not None else (index, file)
    return _shards(index) if index.is_file() else [file]


def _variants(part: Path) -> dict[str, tuple[Path, Path]]:
    """(index, file) of every variant of a network's weights, of which one is there."""
    kind = ".safetensors"
    stem = WEIGHTS.removesuffix(kind)
    named = re.compile(rf"{stem}(?:{kind}\.index\.(.+)\.json|\.(?!.*-\d+-of-\d+)(.+){kind})")
    found = {m[1] or m[2] for p in part.iterdir() if (m := named.fullmatch(p.name))}
    return {name: (part / f"{stem}{kind}.index.{name}.json", part / f"{stem}.{name}{kind}") for name in found}


def _shards(index: Path) -> list[Path]:
    """The files that an index of shards names, which lie beside it; what they hold is what it says."""
    found = read_json(index, "a network").get("weight_map")
    named: dict[str, Any] = found if isinstance(found, dict) and found else {"": None}
    for name in named.values():
        if not isinstance(name, str) or name != Path(name).name or not name.endswith(".safetensors"):
            raise unfit(f"{index} names the shard {name!r:.80}; a shard is a safetensors file beside the index")
    files = [index.parent / name for name in sorted({*named.values()})]
    for file in files:
        held, listed = {*tensor_shapes(file)}, {name for name, at in named.items() if at == file.name}
        if odd := sorted(held ^ listed):
            where = "holds, which the index does not name" if odd[0] in held else "does not hold, which the index names"
            raise unfit(f"{file} {where}: {odd[0]}; shards and index belong together")
    return files


def _class_of(config: Mapping[str, Any], part: Path) -> Any:
    """The class of a network in diffusers, which is called with a state and a time step."""
    import diffusers
    from diffusers.models.modeling_utils import ModelMixin

    name = config.get("_class_name")
    cls: Any = getattr(diffusers, name, None) if isinstance(name, str) and not name.startswith("_") else None
    if not (isinstance(cls, type) and issubclass(cls, ModelMixin)):
        raise ValueError(
            f"got {part}, a network of class {name!r:.80}, which diffusers {diffusers.__version__} has not"
        )
    if "timestep" not in signature(cls.forward).parameters:
        raise ValueError(f"got {part}, a {name}, which takes no time step: give a network that a pipeline samples with")
    return cls


def _made(cls: Any, config: Mapping[str, Any], part: Path) -> nn.Module:
    """The network of a config."""
    from diffusers.models.unets.unet_1d_blocks import SelfAttention1d

    with describing(cls.__name__, part / "config.json"):
        net = cls.from_config(config)
        for module in net.modules():  # of a UNet1D: a head for every 32 channels, and so none for fewer, which fails
            if isinstance(module, SelfAttention1d):
                module.num_heads = max(module.num_heads, 1)
        return net


def _renamed(net: nn.Module, tensors: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """The tensors by today's names: attention had others, and some classes keep what they no longer read."""
    net._fix_state_dict_keys_on_load(tensors)  # type: ignore[operator] - ModelMixin's
    ignored = getattr(net, "_keys_to_ignore_on_load_unexpected", None) or []
    known = net.state_dict()
    return {k: v for k, v in tensors.items() if k in known or not any(re.search(pattern, k) for pattern in ignored)}


def _shape(net: Any, part: Path) -> tuple[int, ...]:
    """(C, H, W), or (C, L) of a network of one axis; (C,) where the config has no sample_size."""
    channels, size = net.config.get("in_channels"), net.config.get("sample_size")
    sides = (size,) * (_axes(net) or 2) if isinstance(size, int) else tuple(size or ())
    if not all(is_whole(n, LONGEST if len(sides) == 1 else SIDE) for n in (channels, *sides)):
        given = f"in_channels={channels!r:.40} and sample_size={size!r:.40}"
        raise unfit(f"{part / 'config.json'} has {given}; whole numbers from 1 to {SIDE} are allowed")
    return (channels, *sides)


def _axes(net: nn.Module) -> int | None:
    """The axes of a network's states behind their channels, by its first convolution."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return next((kinds.index(type(m)) + 1 for m in net.modules() if type(m) in kinds), None)  # type: ignore[arg-type]


def _texts(whole: Path, index: Mapping[str, Any], device: str | torch.device) -> Callable[..., Any] | None:
    """The text encoder of a pipeline that has one, read when the first prompt comes."""
    if index.get("text_encoder") is None or index.get("text_encoder_2") is not None:
        return None
    return partial(_encode, whole, index["text_encoder"], [name for name in (*PARTS, "vae") if name in index], device)


def _encode(whole: Path, kind: tuple[str, str], without: list[str], device: Any, *arguments: Any) -> Any:
    """What a pipeline's `encode_prompt` returns, with a text encoder that is whole."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    check_folder(whole)
    library, name = kind
    cls: Any = getattr(import_module(library), name, None) if library == "transformers" else None
    if not hasattr(cls, "from_pretrained"):
        raise ValueError(f"got {whole}, whose text encoder is a {library}.{name}: encode the prompt with the pipeline")
    try:
        at = str(whole / "text_encoder")
        encoder, about = cls.from_pretrained(at, use_safetensors=True, local_files_only=True, output_loading_info=True)
        if lacking := sorted(map(str, {*about["missing_keys"], *about["mismatched_keys"]})):
            raise ValueError(f"its text encoder has no {lacking[0]}")
        parts: dict[str, Any] = {"text_encoder": encoder, **dict.fromkeys(without)}
        pipe: Any = DiffusionPipeline.from_pretrained(str(whole), use_safetensors=True, **parts).to(device)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"got a prompt for {whole}, whose text encoder cannot be read ({reason}): fetch the "
            "folder again, or give encoder_hidden_states"
        ) from error
    return pipe.encode_prompt(*arguments)


def _spread(value: Any, batch: int) -> Any:
    """A condition for one sample, for all of a batch; those of a mapping each."""
    if isinstance(value, Mapping):
        return {k: _spread(v, batch) for k, v in value.items()}
    if not isinstance(value, Tensor):
        return value
    value = value[None] if value.ndim == 0 else value
    return value.expand(batch, *value.shape[1:]) if len(value) == 1 else value
