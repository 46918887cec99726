"""`fewstep stats`: measures on a model what some samplers read, and stores it beside the weights."""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.cli.common import at_least, check_device, model_argument, pace_arguments, pace_of, usage

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.model import Model

__all__ = ["arguments", "run"]

DRAWN_WITH = {"all": 20, "variance": 20, "error": 8}  # network calls of the samples that stand for data
ENOUGH = 256  # data points that the error is measured on


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fewstep stats`."""
    model_argument(parser)
    add = parser.add_argument
    add("--data", help="an npz file or folder of pictures, as for `fewstep train` (default: samples of the model)")
    add("--samples", type=at_least(2), default=1024, help="how many data points (default: 1024)")
    add("--nodes", type=at_least(3), default=120, help="at how many log-SNRs (default: 120)")
    text = (
        "error: where the network is weak, in seconds, for the default; variance: for analytic-ddpm and analytic-ddim "
        "too; all: for dpm-solver-v3 too, three times the work (default: all)"
    )
    add("--only", choices=("all", "variance", "error"), default="all", help=text)
    add("--batch", type=at_least(1), default=64, help="data points a network call (default: 64)")
    add("--seed", type=at_least(0), default=0, help="everything random is a function of it (default: 0)")
    add("--device", default="cpu", help="where the network runs (default: cpu)")
    pace_arguments(parser, precision=False)
    add("--out", help="the file (default: statistics.safetensors in the model folder)")


def run(args: argparse.Namespace) -> None:
    """Measures where a model is weak, and its statistics for analytic-ddpm, analytic-ddim and dpm-solver-v3.

    Killed at any moment, the same command goes on where it was. `fewstep sample` finds the file in the model folder.
    """
    import torch

    from fewstep.files import Results
    from fewstep.interop.load import load
    from fewstep.stats import FILE, measure
    from fewstep.stats.errors import FILE as ERRORS

    check_device(args.device)
    model = load(
        args.model,
        device=args.device,
        dtype=torch.float32,
        pace=pace_of(args),
        variant=args.variant,
        config=args.config,
    )
    assert model.path is not None
    if args.only == "all" and model.process.kind != "scalar":
        args.only = "variance"
    out = Path(args.out) if args.out else model.path / (ERRORS if args.only == "error" else FILE)
    with Results(out.parent):  # one that cannot be written is refused before the work
        data, labels = _data(model, args) if args.data else _drawn(model, args)
    try:
        _error(model, args, data[:ENOUGH], labels, out if args.only == "error" else out.with_name(ERRORS))
    except ValueError as error:
        if args.only == "error":
            raise
        print(error, file=sys.stderr)
    if args.only == "error":
        return

    with model.pace.threaded():
        statistics = measure(
            None, model.process, data.to(args.device), nodes=args.nodes, v3=args.only == "all", batch=args.batch,
            seed=args.seed, out=out, weights=model.weights, labels=labels,
            conditioned=lambda where: model.denoiser(labels and labels[where]),
        )  # fmt: skip
    print(f"{statistics} of {statistics.samples} data points: {out}")


def _error(model: Model, args: argparse.Namespace, data: Tensor, labels: Sequence[int] | None, out: Path) -> None:
    """Measures the error, says where the network is weak and what the default makes of it, and writes the table."""
    from dataclasses import replace

    from fewstep.model.draw import suited
    from fewstep.stats import errors_of

    with model.pace.threaded():
        errors = errors_of(
            model.denoiser(labels and labels[:1]), data.to(args.device), batch=args.batch, seed=args.seed,
            conditioned=lambda where: model.denoiser(labels and labels[: len(data)][where]), progress=True,
        )  # fmt: skip
    replace(errors, weights=model.weights).save(out)
    first = suited(None, replace(model, error=errors.error), 1.0).first(model.process, 10)
    where = f"at {first:.1f}" if math.isfinite(first) else "at the start"
    print(f"{errors.sentence}: the default makes its first call {where}: {out}")


def _data(model: Model, args: argparse.Namespace) -> tuple[Tensor, Sequence[int] | None]:
    """Pictures and labels of a data set, chosen by the seed."""
    import numpy as np

    from fewstep.data import read_images
    from fewstep.model.record import class_numbers
    from fewstep.quality import images_to_tensor

    given = read_images(args.data)
    with usage():
        given.check_shape(model.shape, args.data)
        chosen = np.random.default_rng(args.seed).permutation(len(given.images))[: args.samples]
        images = images_to_tensor(given.images[chosen])
        if given.labels is None or not model.labels:
            return images, None
        theirs = class_numbers(given.names, model.labels, f"label in {args.data}")
    return images, [theirs[k] for k in given.labels[chosen].tolist()]


def _drawn(model: Model, args: argparse.Namespace) -> tuple[Tensor, Sequence[int] | None]:
    """Samples of the model itself, every class in turn."""
    from fewstep.loop import tabulate
    from fewstep.model.draw import draw, suited

    if args.only == "error":
        args.samples = min(args.samples, ENOUGH)
    table = tabulate(suited(None, model, 1.0), model.process, steps=DRAWN_WITH[args.only])
    labels = [k % len(model.labels) for k in range(args.samples)] if model.labels else None
    with warnings.catch_warnings():  # what advises this very command
        warnings.filterwarnings("ignore", "got .* that leave the data's range")
        drawn = draw(model, table, num=args.samples, labels=labels, seed=args.seed, batch=args.batch,
                     device=args.device, progress=True)  # fmt: skip
    return drawn.samples, labels
