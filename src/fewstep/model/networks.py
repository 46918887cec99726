"""The networks that a model folder may hold: built from a diffusers config, and called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.blueprint import check_arguments
from fewstep.files import extra
from fewstep.process import Process

__all__ = ["NETWORKS", "build_network", "call_network", "config_of"]

# The diffusers classes that are called as net(x, t, class_labels=y).sample, and where each is defined.
NETWORKS = {
    "UNet2DModel": "diffusers.models.unets.unet_2d",
    "DiTTransformer2DModel": "diffusers.models.transformers.dit_transformer_2d",
}


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


def config_of(net: nn.Module) -> dict[str, Any]:
    """The diffusers config of a network, without what depends on the machine."""
    name = type(net).__name__
    if name not in NETWORKS:
        raise ValueError(
            f"a {name} came as network; a model folder holds one of {', '.join(NETWORKS)}; use one of these."
        )
    config: Mapping[str, Any] = net.config  # type: ignore[assignment] - set by diffusers
    return {"_class_name": name} | {k: v for k, v in config.items() if not k.startswith("_")}
