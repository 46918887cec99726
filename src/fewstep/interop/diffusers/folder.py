"""Folders that diffusers saved, as models of this library: `fewstep.load("path/to/pipeline")`.

The scheduler's config says what the network was trained for; see `fewstep.interop.diffusers.convention`. The network
sees and predicts latents where the pipeline does. Weights are read from safetensors alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoiser import Wrapped
from fewstep.files import read_json, sha256
from fewstep.interop.diffusers.convention import Convention
from fewstep.interop.diffusers.scheduler import FewStepScheduler
from fewstep.model import WEIGHTS, Model

__all__ = ["DiffusersModel", "load_folder"]

PARTS = ("unet", "transformer")  # a pipeline's network
SCHEDULER = Path("scheduler") / "scheduler_config.json"


@dataclass(frozen=True, kw_only=True)
class DiffusersModel(Model):
    """A network of a diffusers pipeline, and what its scheduler says of it.

    Attributes:
        convention: process, prediction and time steps, as the scheduler's config has them.
        texts: the pipeline's `encode_prompt` where it has one text encoder, else None.
    """

    convention: Convention
    texts: Callable[..., Any] | None = None

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
            device = next(self.net.parameters()).device
            conditions["encoder_hidden_states"] = self.texts(prompt, device, 1, False)[0]
        if label is not None:
            conditions["class_labels"] = torch.as_tensor(label)
        return self.convention.denoiser(partial(self._network, **conditions), dtype=self.dtype)

    def _network(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        spread = {k: _spread(v, len(x)) for k, v in conditions.items()}
        out = self.net(x, t, **spread, return_dict=False)[0]
        return out[:, : x.shape[1]] if out.shape[1] == 2 * x.shape[1] else out  # without a learned variance


def load_folder(
    folder: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> DiffusersModel:
    """Reads a pipeline that diffusers saved, or the folder of its network.

    Args:
        folder: with model_index.json, or `unet` or `transformer` inside such a folder.
        dtype: the network's; None: as it is stored.
        device: where the network lives.

    Raises:
        ValueError: for a folder without a network or a scheduler, or whose scheduler does not say what is predicted.
    """
    import diffusers
    from diffusers.models.modeling_utils import ModelMixin

    folder = Path(folder)
    whole = folder if (folder / "model_index.json").is_file() else folder.parent
    part = next((whole / name for name in PARTS if (whole / name / "config.json").is_file()), None)
    if part is None or not (whole / SCHEDULER).is_file():
        raise ValueError(
            f"got {folder}, which has no {' or '.join(PARTS)} beside a {SCHEDULER}: give a folder that a pipeline's "
            "save_pretrained wrote"
        )
    name = read_json(part / "config.json", "a network").get("_class_name")
    cls: Any = getattr(diffusers, str(name), None)
    if not (isinstance(cls, type) and issubclass(cls, ModelMixin)):
        raise ValueError(f"got {part}, a network of class {name!r}, which diffusers {diffusers.__version__} has not")
    convention = FewStepScheduler.from_config(whole / SCHEDULER).convention
    net: Any = cls.from_pretrained(str(part), use_safetensors=True)
    nn.Module.to(net, device=device, dtype=dtype)
    net.eval().requires_grad_(False)
    size = net.config.get("sample_size")
    sides = (size, size) if isinstance(size, int) else tuple(size or ())
    return DiffusersModel(
        net=net,
        process=convention.process,
        predicts=convention.predicts,
        time=convention.steps,
        shape=(net.config["in_channels"], *sides),
        dtype=next(net.parameters()).dtype,
        path=folder,
        weights=sha256(part / WEIGHTS) if (part / WEIGHTS).is_file() else None,
        convention=convention,
        texts=_texts(whole, device),
    )


def _texts(whole: Path, device: str | torch.device) -> Callable[..., Any] | None:
    """The text encoder of a pipeline that has one, read when the first prompt comes."""
    index = read_json(whole / "model_index.json", "a pipeline") if (whole / "model_index.json").is_file() else {}
    if "text_encoder" not in index or "text_encoder_2" in index:
        return None

    def encode(*arguments: Any) -> Any:
        from diffusers.pipelines.pipeline_utils import DiffusionPipeline

        without = {name: None for name in (*PARTS, "vae") if name in index}
        pipe: Any = DiffusionPipeline.from_pretrained(str(whole), use_safetensors=True, **without).to(device)
        return pipe.encode_prompt(*arguments)

    return encode


def _spread(value: Any, batch: int) -> Any:
    """A condition for one sample, for all of a batch; those of a mapping each."""
    if isinstance(value, Mapping):
        return {k: _spread(v, batch) for k, v in value.items()}
    if not isinstance(value, Tensor):
        return value
    value = value[None] if value.ndim == 0 else value
    return value.expand(batch, *value.shape[1:]) if len(value) == 1 else value
