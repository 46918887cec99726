"""Samples any trained diffusion or flow model in few steps: process -> grid -> solver -> table -> one loop.

Public names are imported on first use, so that `fewstep --help` needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.denoiser import (
        Counted as Counted,
        Dataset as Dataset,
        Gaussian as Gaussian,
        Mixture as Mixture,
        wrap as wrap,
    )
    from fewstep.grid import GRIDS as GRIDS
    from fewstep.loop import sample as sample, tabulate as tabulate
    from fewstep.model import Model as Model, load as load
    from fewstep.noise import Noise as Noise
    from fewstep.process import (
        CLD as CLD,
        EDM as EDM,
        PROCESSES as PROCESSES,
        VE as VE,
        VP as VP,
        Blurring as Blurring,
        Cosine as Cosine,
        Discrete as Discrete,
        Flow as Flow,
        Process as Process,
        ScalarProcess as ScalarProcess,
        SubVP as SubVP,
    )
    from fewstep.solver import (
        DDIM as DDIM,
        DDPM as DDPM,
        DEFAULT_SOLVERS as DEFAULT_SOLVERS,
        SOLVERS as SOLVERS,
        DPMMultistep as DPMMultistep,
        EDMHeun as EDMHeun,
        Multistep as Multistep,
        RungeKutta as RungeKutta,
        Solver as Solver,
        UniPC as UniPC,
    )
    from fewstep.tableau import Tableau as Tableau

__version__ = "0.1.0"

# Every public name and the module it lives in; a test holds this table and the imports above to be equal.
_HOME = {
    "fewstep.denoiser": (
        "Counted",
        "Dataset",
        "Gaussian",
        "Mixture",
        "wrap",
    ),
    "fewstep.grid": ("GRIDS",),
    "fewstep.loop": (
        "sample",
        "tabulate",
    ),
    "fewstep.model": (
        "Model",
        "load",
    ),
    "fewstep.noise": ("Noise",),
    "fewstep.process": (
        "CLD",
        "EDM",
        "PROCESSES",
        "VE",
        "VP",
        "Blurring",
        "Cosine",
        "Discrete",
        "Flow",
        "Process",
        "ScalarProcess",
        "SubVP",
    ),
    "fewstep.solver": (
        "DDIM",
        "DDPM",
        "DEFAULT_SOLVERS",
        "SOLVERS",
        "DPMMultistep",
        "EDMHeun",
        "Multistep",
        "RungeKutta",
        "Solver",
        "UniPC",
    ),
    "fewstep.tableau": ("Tableau",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *_MODULE]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Finds a public name in its module the first time it is asked for."""
    if name not in _MODULE:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}; fewstep.__all__ lists what it has")
    value = getattr(import_module(_MODULE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
