"""The weights of a part of a pipeline's folder: which files, held against its config, and the network they make."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import no_init_weights
from torch import Tensor, nn

from fewstep.blueprint import check_arguments, check_fits, describing, unfit
from fewstep.files import WEIGHTS, load_tensors, read_json, sha256, tensor_shapes

__all__ = ["network_in", "network_of", "weights_of"]

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def network_of(
    part: Path, cls: Any, config: Mapping[str, Any], variant: str | None, *, fallback: bool = False
) -> tuple[Any, str]:
    """The network of a part, in eval mode, and the SHA-256 of its weights; refused where config and weights differ.

    With `fallback` a variant that this part has not stands for none.
    """
    config = check_arguments(cls, config, part / "config.json", null=True)
    files = weights_of(part, None if fallback and variant not in _variants(part) else variant)
    found = [tensor_shapes(file) for file in files]
    joined = {name: about for shard in found for name, about in shard.items()}
    if len(joined) < sum(map(len, found)):
        raise unfit(f"{part} has a tensor in two shards; each lies in one")
    check_fits(partial(_made, cls, config, part), joined, part, renamed=_renamed)
    with no_init_weights():
        net = _made(cls, config, part)
    tensors = {name: t for file in files for name, t in load_tensors(file).items()}
    net.load_state_dict(_renamed(net, tensors))
    digests = [sha256(file) for file in files]
    weights = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return net.eval().requires_grad_(False), weights


def network_in(file: Path, cls: Any, config: Mapping[str, Any], part: Path) -> tuple[Any, str]:
    """The network of a config with weights out of one file of a whole model, by diffusers' names or its origin's.

    The names are translated by diffusers' own reader of such files; that every tensor is there is seen to here.
    """
    config = check_arguments(cls, config, part / "config.json", null=True)
    shapes, tensors = tensor_shapes(file), load_tensors(file)

    def renamed(net: nn.Module, _: Any) -> Mapping[str, Any]:
        tensors.update(found := dict(_renamed(net, _translated(net, dict(tensors), file))))
        for name in {*tensors} - {*found}:
            del tensors[name]
        return {name: (DTYPES.get(t.dtype, str(t.dtype)), tuple(t.shape)) for name, t in tensors.items()}

    check_fits(partial(_made, cls, config, part), shapes, file, renamed=renamed)
    with no_init_weights():
        net = _made(cls, config, part)
    net.load_state_dict(tensors)
    return net.eval().requires_grad_(False), sha256(file)


def _translated(net: Any, tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The tensors by diffusers' names, as it translates those of the code that a network comes from."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    if {*net.state_dict()} <= {*tensors}:
        return tensors
    name = type(net).__name__
    how = SINGLE_FILE_LOADABLE_CLASSES.get(name, {}).get("checkpoint_mapping_fn")
    if how is None:
        raise ValueError(f"got {file} as weights of a {name}, whose names diffusers cannot translate: give a folder")
    try:
        return how(config=dict(net.config), checkpoint=tensors)
    except Exception as error:  # whatever it comes upon where tensors are missing
        reason = " ".join(str(error).split())[:200]
        raise unfit(f"{file} does not hold a {name} as its config has it ({type(error).__name__}: {reason})") from error


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
