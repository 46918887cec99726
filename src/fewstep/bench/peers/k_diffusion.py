"""The samplers of k-diffusion on its Karras and exponential levels and on our default grid.

Only its sampling module is loaded: the package itself imports training, CLIP and torchvision, which sampling never
uses. For the same reason it is installed with `pip install --no-deps k-diffusion`.
"""

from __future__ import annotations

import sys
from functools import cache, partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from fewstep.bench.contender import Contender
from fewstep.bench.peers.level import SAME_GRID, Levels, peer
from fewstep.denoiser.base import Denoises

__all__ = ["SAMPLERS", "contenders"]

SAMPLERS = ("euler", "heun", "dpm_2", "lms", "dpmpp_2m")
SPACINGS = ("karras", "exponential", SAME_GRID)


def contenders() -> list[Contender]:
    """Every deterministic sampler on every spacing."""
    _sampling()
    pairs = [(sampler, spacing) for sampler in SAMPLERS for spacing in SPACINGS] + [("dpm_fast", "log-snr")]
    return [peer(f"k-diffusion/{sampler}@{spacing}", version("k-diffusion"), partial(_march, sampler, spacing))
            for sampler, spacing in pairs]  # fmt: skip


@cache
def _sampling() -> Any:
    """k_diffusion.sampling, with empty modules in place of what it imports and deterministic sampling does not use."""
    spec = find_spec("k_diffusion")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'k_diffusion'", name="k_diffusion")
    package, utils = ModuleType("k_diffusion"), ModuleType("k_diffusion.utils")
    package.__path__ = [str(Path(spec.origin).parent)]
    utils.__dict__["append_dims"] = lambda x, dims: x[(..., *[None] * (dims - x.ndim))]
    standing_in = {"k_diffusion": package, "k_diffusion.utils": utils}
    if find_spec("torchsde") is None:
        standing_in["torchsde"] = ModuleType("torchsde")
    before = {name: sys.modules.get(name) for name in standing_in}
    sys.modules.update(standing_in)
    try:
        return import_module("k_diffusion.sampling")
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
        sys.modules.pop("k_diffusion.sampling", None)


def _march(
    sampler: str, spacing: str, denoiser: Denoises, levels: Levels, noise: Tensor, steps: int
) -> tuple[Tensor, str]:
    """One call of a sampler, on x = z / alpha."""
    sampling = _sampling()

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return levels.denoised(denoiser, x, float(sigma.flatten()[0]), "ve")

    if sampler == "dpm_fast":
        x = sampling.sample_dpm_fast(model, noise * levels.high, levels.low, levels.high, steps, disable=True)
        return x * levels.scale(levels.low, "ve"), "state"
    if spacing == SAME_GRID:
        sigmas = levels.grid(steps).float()
    else:
        sigmas = getattr(sampling, f"get_sigmas_{spacing}")(steps, levels.low, levels.high)
    x = getattr(sampling, f"sample_{sampler}")(model, noise * sigmas[0], sigmas, disable=True)
    last = float(sigmas[-1])
    return (x, "data") if last == 0 else (x * levels.scale(last, "ve"), "state")
