"""A custom node of ComfyUI: every solver in the samplers' menu, and a loader of tables.

Copy this file into ComfyUI's `custom_nodes`, where `pip install fewstep` has been run in ComfyUI's environment. Then

- the sampler menus list every solver as `fewstep_<name>`, on noise-predicting and on flow models;
- `FewStep sampler` gives one as SAMPLER, with its options written NAME=VALUE, for custom sampling;
- `FewStep table` loads a file of `fewstep fit` or `fewstep explain --save` and gives SAMPLER and SIGMAS.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.interop import k_diffusion
from fewstep.interop.carried import carried
from fewstep.process import EDM, Flow, ScalarProcess
from fewstep.solver.config import Tableau
from fewstep.words import written

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "FewStepSampler", "FewStepTable", "register"]


def process_on(model_sampling: Any) -> ScalarProcess:
    """The process on whose time a model's sigmas lie: `Flow` where ComfyUI's model sampling is CONST, else `EDM`."""
    return Flow() if any(kind.__name__ == "CONST" for kind in type(model_sampling).__mro__) else EDM()


def sampler(name: str) -> Callable[..., Tensor]:
    """The function that ComfyUI calls for a sampler, on the process of the model it hands over."""
    function = k_diffusion.sample(name)

    def sample(model: Any, x: Tensor, sigmas: Tensor, **others: Any) -> Tensor:
        process = process_on(model.inner_model.inner_model.model_sampling)
        return function(model, x, sigmas, process=process, **others)

    sample.__name__, sample.__doc__ = f"sample_fewstep_{name}", function.__doc__
    return sample


def register() -> None:
    """Puts every solver into ComfyUI's sampler menus."""
    samplers, functions = import_module("comfy.samplers"), import_module("comfy.k_diffusion.sampling")
    menus = [samplers.SAMPLER_NAMES, samplers.KSampler.SAMPLERS]
    for name in k_diffusion.SAMPLERS:
        setattr(functions, f"sample_fewstep_{name}", sampler(name))
        for menu in menus:  # usually one list
            if f"fewstep_{name}" not in menu:
                menu.append(f"fewstep_{name}")


class FewStepSampler:
    """SAMPLER of a solver."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "make"
    CATEGORY = "sampling/custom_sampling/samplers"
    DESCRIPTION = "A solver of fewstep. Options are NAME=VALUE, separated by commas, as in eta=0.5, s_noise=1.0"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What the node asks for."""
        return {
            "required": {
                "solver": (list(k_diffusion.SAMPLERS), {"default": "gaussian_split"}),
                "options": ("STRING", {"default": ""}),
            }
        }

    def make(self, solver: str, options: str) -> tuple[Any]:
        """The sampler."""
        return (import_module("comfy.samplers").KSAMPLER(sampler(solver), dict(written(options))),)


class FewStepTable:
    """SAMPLER and SIGMAS of a table file."""

    RETURN_TYPES = ("SAMPLER", "SIGMAS")
    FUNCTION = "make"
    CATEGORY = "sampling/custom_sampling/samplers"
    DESCRIPTION = "A solver fitted to a model, from a file of `fewstep fit`"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What the node asks for."""
        return {"required": {"model": ("MODEL",), "file": ("STRING", {"default": "fitted.table"})}}

    def make(self, model: Any, file: str) -> tuple[Any, Tensor]:
        """The sampler, and the noise levels it was made for, on the model's axis."""
        if not Path(file).is_file():
            raise ValueError(f"got the table {file}, where there is no file: name one that `fewstep fit` wrote")
        process = process_on(model.get_model_object("model_sampling"))
        table = carried(Tableau.load(file), process)
        march = partial(k_diffusion.march, table, process=process)
        return import_module("comfy.samplers").KSAMPLER(march), table.grid.float()


NODE_CLASS_MAPPINGS = {"FewStepSampler": FewStepSampler, "FewStepTable": FewStepTable}
NODE_DISPLAY_NAME_MAPPINGS = {"FewStepSampler": "FewStep sampler", "FewStepTable": "FewStep table"}

with suppress(ModuleNotFoundError):  # outside ComfyUI there is nothing to register with
    register()
