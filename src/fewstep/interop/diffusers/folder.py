"""Folders that diffusers saved, as models of this library: `fewstep.load("path/to/pipeline")`.

The scheduler's config says what the network was trained for; see `fewstep.interop.diffusers.convention`. The network
sees and predicts latents where the pipeline does. Weights are read from safetensors alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.blueprint import is_whole, unfit
from fewstep.denoiser import Wrapped
from fewstep.files import read_json
from fewstep.interop.diffusers.codec import codec_of
from fewstep.interop.diffusers.convention import Convention
from fewstep.interop.diffusers.safe import INDEX, check_folder
from fewstep.interop.diffusers.scheduler import FewStepScheduler
from fewstep.interop.diffusers.weights import network_in, network_of
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
        decode: latents -> pictures in [-1, 1], where the folder has an autoencoder that is known, else None.
        names: of the network's classes, where it has any: the pipeline's, or numbers.
        said: of a model `told` prompts, which are its labels, their embeddings and that of the negative one, the last.
        within: the largest size of the data's entries, 1 where the network sees pictures themselves; inf for latents.
    """

    convention: Convention
    texts: Callable[..., Any] | None = None
    decode: Callable[[Tensor], Tensor] | None = None
    names: tuple[str, ...] = ()
    said: Tensor | None = None
    within: float = math.inf

    def denoiser(self, label: Any = None, *, prompt: str | list[str] | None = None, **conditions: Any) -> Wrapped:
        """The denoiser (z, t) -> x0_hat with the network's conditions bound to it.

        Args:
            label: the network's class number, or a (B,) tensor of them; of a model that was `told`, which of its
                labels, as in `Model.denoiser`, and None for no class or the negative prompt.
            prompt: a text, or one per sample, for pipelines with one text encoder.
            conditions: any further arguments of the network, as `encoder_hidden_states`.
        """
        if self.labels:
            label = self._nothing if label is None else self._numbers(label)
        if self.said is not None:
            label, at = None, -1 if label is None else label
            conditions["encoder_hidden_states"] = self.said[torch.as_tensor(at, device=self.said.device).reshape(-1)]
        elif prompt is not None:
            conditions["encoder_hidden_states"] = self._encoded(prompt)
        if label is not None:
            conditions["class_labels"] = self._classes(label)
        elif "class_labels" not in conditions and (table := self._table) is not None:
            raise ValueError(f"got no label for a network of classes 0 to {table.num_embeddings - 1}: give one")
        made = self.convention.denoiser(partial(self._network, **conditions), dtype=self.dtype)
        return replace(made, error=self.error, within=self.within)

    def told(self, prompts: Sequence[str] = (), negative: str = "") -> DiffusersModel:
        """The model with labels, as models of this library have them: its prompts, or else its classes.

        `denoiser(None)` is then the negative prompt, or the class of none where the network has one.
        """
        if not prompts:
            return replace(self, labels=self.names)
        return replace(self, labels=tuple(prompts), said=self._encoded([*prompts, negative]))

    def _encoded(self, prompt: str | list[str]) -> Tensor:
        """What the network is told of texts."""
        if self.texts is None:
            raise ValueError(
                "got a prompt for a pipeline without one text encoder: encode it with the pipeline and give what "
                "the network takes, as encoder_hidden_states"
            )
        return self.texts(prompt, next(self.net.parameters()).device, 1, False)[0].to(self.dtype)

    @property
    def free(self) -> bool:
        """Whether there is a denoiser without a label."""
        return self.said is not None or self._table is None or self._nothing is not None and bool(self.labels)

    def _numbers(self, label: Any) -> Tensor:
        """Which of the labels, a scalar or (B,)."""
        each = [self.labels.index(v) if v in self.labels else v for v in label] if isinstance(label, list) else label
        return checked_classes(each, len(self.labels), label, "give one of the labels or its number.")

    @property
    def _nothing(self) -> int | None:
        """The class that stands for none: of a DiT the one after its classes."""
        count = getattr(self.net, "config", {}).get("num_embeds_ada_norm")
        return count if (table := self._table) is not None and table.num_embeddings == (count or 0) + 1 else None

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
        return _table_of(self.net)

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
    single: Path | None = None,
) -> DiffusersModel:
    """Reads a pipeline that diffusers saved, or the folder of its network; nothing in it is run.

    Weights are those of the variant asked for, or those without one, else the only variant (as fp16) that is there; one
    file, or shards and their index. Every tensor of the network is there, and no other.

    Args:
        folder: with model_index.json, or `unet` or `transformer` inside such a folder.
        dtype: the network's; None is float32, whatever it is stored in.
        device: where the network lives.
        variant: as "fp16", of which files the weights are.
        single: the file that they are in instead, of a whole model, by diffusers' names or those of its origin.

    Raises:
        ValueError: for a folder without a network or a scheduler, whose scheduler does not say what is predicted, that
            is not whole, or that holds code or leads out of itself (`fewstep.interop.diffusers.safe`).
    """
    folder = Path(folder).expanduser().absolute()
    whole = folder if single is not None or (folder / INDEX).is_file() else folder.parent
    index = check_folder(whole)
    part = next((whole / name for name in PARTS if (whole / name / "config.json").is_file()), None)
    if single is not None and (part is None or not (whole / SCHEDULER).is_file()):
        lacking = SCHEDULER if part is not None else " or ".join(f"{name}/config.json" for name in PARTS)
        raise ValueError(
            f"got {single} with the configs of {folder}, which has no {lacking}: put it there, as its pipeline has it"
        )
    if part is None or not (whole / SCHEDULER).is_file():
        raise ValueError(
            f"got {folder}, which has no {' or '.join(PARTS)} beside a {SCHEDULER}: give a folder that a pipeline's "
            "save_pretrained wrote"
        )
    config = read_json(part / "config.json", "a network")
    cls = _class_of(config, part)
    convention = FewStepScheduler.from_config(whole / SCHEDULER).convention
    net, weights = network_of(part, cls, config, variant) if single is None else network_in(single, cls, config, part)
    nn.Module.to(net, device=device, dtype=dtype)
    shape = _shape(net, part)
    coded = any(re.search("Autoencoder|VAE|VQ", each[1]) for each in index.values() if each)
    pictures = _axes(net) == 2 and shape[0] in (1, 3) and bool(index) and not coded
    return DiffusersModel(net=net, process=convention.process, predicts=convention.predicts, time=convention.steps,
                          shape=shape, dtype=next(net.parameters()).dtype, path=single or folder, weights=weights,
                          convention=convention, texts=_texts(whole, index, device),
                          decode=codec_of(whole / "vae", device, variant), names=_names(net, whole),
                          within=1.0 if pictures else math.inf)  # fmt: skip


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


def _shape(net: Any, part: Path) -> tuple[int, ...]:
    """(C, H, W), or (C, L) of a network of one axis; (C,) where the config has no sample_size."""
    channels, size = net.config.get("in_channels"), net.config.get("sample_size")
    sides = (size,) * (_axes(net) or 2) if isinstance(size, int) else tuple(size or ())
    if not all(is_whole(n, LONGEST if len(sides) == 1 else SIDE) for n in (channels, *sides)):
        given = f"in_channels={channels!r:.40} and sample_size={size!r:.40}"
        raise unfit(f"{part / 'config.json'} has {given}; whole numbers from 1 to {SIDE} are allowed")
    return (channels, *sides)


def _names(net: nn.Module, whole: Path) -> tuple[str, ...]:
    """The names of a network's classes: the first word of each in the pipeline's `id2label`, or numbers."""
    if (table := _table_of(net)) is None:
        return ()
    count = getattr(net, "config", {}).get("num_embeds_ada_norm") or table.num_embeddings
    index = read_json(whole / INDEX, "a pipeline") if (whole / INDEX).is_file() else {}
    given = index.get("id2label") or {}
    names = tuple(str(given.get(str(k), k)).partition(",")[0] for k in range(count))
    return names if len({*names}) == count else tuple(map(str, range(count)))


def _table_of(net: nn.Module) -> nn.Embedding | None:
    named = net.named_modules()
    return next((m for name, m in named if isinstance(m, nn.Embedding) and "class_embed" in name), None)


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
        pipe: Any = DiffusionPipeline.from_pretrained(
            str(whole), use_safetensors=True, low_cpu_mem_usage=False, **parts
        ).to(device)
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
