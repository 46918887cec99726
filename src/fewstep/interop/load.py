"""Any model folder: one of this library, or one that a diffusers pipeline was saved in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from fewstep.files import PICKLED, WEIGHTS, tensor_shapes
from fewstep.model.folder import load_own, paced
from fewstep.model.model import Model
from fewstep.pace import Pace
from fewstep.stats.errors import known_error
from fewstep.words import typed, usable_device

__all__ = ["SHIPPED", "load"]

SHIPPED = Path(__file__).resolve().parent.parent / "models" / "fashion-unet"


@typed
def load(
    path: str | Path | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    pace: Pace | None = None,
    variant: str | None = None,
    config: str | Path | None = None,
) -> Model:
    """Reads a model folder; None: the shipped class-conditional Fashion-MNIST model.

    Args:
        path: the folder; one that a diffusers pipeline was saved in is read by `fewstep.interop.diffusers`.
        dtype: the network's, the same as the pace's precision; None: float32 or bfloat16, whichever is faster here.
        device: where the network lives.
        pace: precision, memory format and threads; what it leaves open is measured (`fewstep.pace`). Threads are for
            `fewstep.model.draw` and the commands: `fewstep.sample` runs with torch's own.
        variant: of a pipeline's folder, which weights: those of "fp16" are diffusion_pytorch_model.fp16.safetensors.
            None: those without a variant, or the only one there.
        config: of a checkpoint of one file (.safetensors), the folder of its pipeline's configs: unet/config.json or
            transformer/config.json, and scheduler/scheduler_config.json. None: one beside it that has its name.

    Raises:
        ValueError: one sentence, for a folder that is not whole, not safe or not of this format.
    """
    folder, device = SHIPPED if path is None else Path(path).expanduser(), usable_device(device)
    given = Pace(precision=str(dtype).removeprefix("torch.")) if dtype is not None else Pace()
    if pace is not None and pace.precision not in (None, given.precision or pace.precision):
        raise ValueError(f"got dtype={dtype} and a pace of precision {pace.precision}: give one of them")
    given = given.over(pace or Pace())
    single = None
    if folder.suffix in {".safetensors", *PICKLED} and folder.exists() and not folder.is_dir():
        single, folder = folder, _configs(folder, config)
    elif config is not None:
        raise ValueError(f"got config={str(config)!r} for {folder}, which is no checkpoint of one file: leave it out")
    if not folder.is_dir():
        there = f"{folder} is no folder" if folder.exists() else f"there is no model folder {folder}"
        raise ValueError(
            f"{there}; a model is a folder with config.json, {WEIGHTS} and fewstep.json; "
            "name one, or leave it out for the shipped model."
        )
    theirs = any((at / "model_index.json").exists() for at in (folder, folder.absolute().parent))
    if single is not None or theirs and not (folder / "fewstep.json").exists():
        from fewstep.interop.diffusers.folder import load_folder

        model = load_folder(folder, dtype=given.dtype if given.precision else None, device=device, variant=variant,
                            single=single)  # fmt: skip
        stored = Pace(precision=str(model.dtype).removeprefix("torch."))
        made = paced(model.net, lambda x: model.net(x, 1), model.shape, stored.over(given), device)
        made.place(model.net)
        return replace(model, pace=made, error=known_error(folder, model.weights))
    if variant is not None:
        raise ValueError(f"got variant={variant!r} for {folder}, a model folder, whose weights have none: leave it out")
    return load_own(folder, given, device)


def _configs(file: Path, config: str | Path | None) -> Path:
    """The folder of the configs of a checkpoint of one file, which is looked at first."""
    tensor_shapes(file)
    if config is not None:
        return Path(config).expanduser()
    if not (beside := file.with_suffix("")).is_dir():
        raise ValueError(
            f"got {file}, which says neither what its network is nor what it was trained for: give its configs as "
            f"config=FOLDER with unet/config.json and scheduler/scheduler_config.json, or put that at {beside}"
        )
    return beside
