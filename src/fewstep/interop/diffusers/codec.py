r"""The autoencoder of a pipeline's folder: latents as the network has them, z, to pictures in [-1, 1].

$$ x = \mathrm{decode}(z / s + m), \qquad \text{or} \qquad x = \mathrm{decode}(z \odot \sigma / s + \mu), $$

with s, m the config's `scaling_factor` and `shift_factor`, and mu, sigma its `latents_mean` and `latents_std` where it
has those. Weights are read as those of the network are.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.files import read_json
from fewstep.interop.diffusers.weights import network_of

__all__ = ["KNOWN", "codec_of"]

KNOWN = ("AutoencoderKL",)  # the classes whose latents are these


def codec_of(part: Path, device: str | torch.device, variant: str | None) -> Any:
    """The function latents -> pictures of a `vae` folder, read at its first call; None where there is none known."""
    if not (part / "config.json").is_file() or not any(part.glob("*.safetensors")):
        return None
    config = read_json(part / "config.json", "an autoencoder")
    return partial(_decode, part, device, variant, []) if config.get("_class_name") in KNOWN else None


def _decode(part: Path, device: Any, variant: str | None, kept: list[Any], latents: Tensor) -> Tensor:
    """Pictures (n, 3, H, W) float32 of latents (n, C, h, w)."""
    if not kept:
        import diffusers

        config = read_json(part / "config.json", "an autoencoder")
        cls = getattr(diffusers, config["_class_name"])
        kept.append(network_of(part, cls, config, variant, fallback=True)[0].float().to(device))
    net = kept[0]
    z, scale = latents.to(device, torch.float32), net.config.scaling_factor
    wide = lambda v: torch.tensor(v, device=z.device).reshape(1, -1, 1, 1)  # noqa: E731
    mean, std = (getattr(net.config, f"latents_{name}", None) for name in ("mean", "std"))
    if mean is not None and std is not None:
        z = z * wide(std) / scale + wide(mean)
    else:
        z = z / scale + (getattr(net.config, "shift_factor", None) or 0.0)
    with torch.no_grad():
        return net.decode(z, return_dict=False)[0].float().cpu()
