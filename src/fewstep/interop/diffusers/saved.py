"""Scheduler configs as people have them: files of any version of diffusers, whose classes had defaults they leave out.

A file holds what differed from the defaults of the class that it names, or all of it; null stands for a value left out,
and for False. So a config is read with the defaults of its class, the same through every door. No code is looked up but
by the name of a scheduler class in diffusers, and values are held against our own options.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.files import read_json

__all__ = ["FILE", "completed", "scheduler_file"]

FILE = "scheduler_config.json"
# The defaults of classes that diffusers has only where torchsde is.
BESIDE_TORCHSDE: dict[str, dict[str, Any]] = {
    "DPMSolverSDEScheduler": {"prediction_type": "epsilon", "beta_start": 0.00085, "beta_end": 0.012},
    "CosineDPMSolverMultistepScheduler": {
        "prediction_type": "v_prediction", "sigma_min": 0.3, "sigma_max": 500.0, "sigma_data": 1.0, "solver_order": 2,
        "sigma_schedule": "exponential", "final_sigmas_type": "zero",
    },
}  # fmt: skip


def scheduler_file(path: Path, subfolder: str | None = None) -> Path:
    """The file of a scheduler's config: itself, or of a folder, of a pipeline's folder or of a sub-folder."""
    inner = path / (subfolder or "")
    places = [path] if path.is_file() and not subfolder else [inner / FILE, inner / "scheduler" / FILE]
    file = next((place for place in places if place.is_file()), places[0])
    read_json(file, "a scheduler")
    return file


def completed(config: Any, ours: type) -> dict[str, Any]:
    """The options that a scheduler's config stands for, those that it leaves out as its class has them.

    `ours` is the class that is made. The config of a scheduler in memory (diffusers' FrozenDict) is whole. Without
    `_class_name` nothing is added.

    Raises:
        ValueError: for what is no config, or names a class that diffusers has not.
    """
    from diffusers.configuration_utils import FrozenDict

    if not isinstance(config, Mapping):
        raise ValueError(f"got a {type(config).__name__} as a scheduler's config: give its config, or the file of it")
    name = config.get("_class_name")
    theirs = {} if name is None or isinstance(config, FrozenDict) else _defaults(name)
    given = {k: v for k, v in config.items() if k != "_use_default_values" and not str(k).startswith("__")}
    if "prediction_type" not in given and given.get("predict_epsilon") is False:  # before diffusers 0.8
        given["prediction_type"] = "sample"
    for key, value in given.items():
        if value is None and key != "prediction_type":  # which has no default that would be right
            default = theirs.get(key, _signature(ours).get(key))
            given[key] = False if isinstance(default, bool) else default  # a flag is down, the rest as if left out
    return theirs | given


def _defaults(name: Any) -> dict[str, Any]:
    """What a scheduler class of diffusers does when it is not told otherwise."""
    import diffusers
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    if name == "FewStepScheduler":
        return {}
    known = isinstance(name, str) and name.endswith("Scheduler")
    name = name.removeprefix("Flax") if known else name
    cls: Any = getattr(diffusers, name, None) if known else None
    if known and name in BESIDE_TORCHSDE:
        return dict(BESIDE_TORCHSDE[name])
    if not (isinstance(cls, type) and issubclass(cls, SchedulerMixin)):
        raise ValueError(
            f"got the config of a scheduler of class {str(name)[:80]!r}, whose defaults diffusers "
            f"{diffusers.__version__} does not have: give one of its classes, or a config without _class_name"
        )
    return _signature(cls)


def _signature(cls: type) -> dict[str, Any]:
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
