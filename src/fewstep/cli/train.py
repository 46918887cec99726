"""`fewstep train`: makes a model folder from images."""

from __future__ import annotations

import argparse
from typing import Any

from fewstep.cli.common import at_least, check_device, pace_arguments, pace_of

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fewstep train`."""
    add = parser.add_argument
    text = (
        "an npz file with x_train and y_train, or other usual names; or a folder of pictures, or of one folder a label"
    )
    add("data", help=text)
    add("out", help="the run's folder: checkpoint.safetensors, sheet.png, and model/ at the end")
    add("--process", help="vp, cosine, sub-vp, flow, blurring, cld, edm or scaled-linear (default: vp)")
    add("--predicts", help="what the network learns to return: noise, data, v, flow or edm (default: the process's)")
    add("--law", help="how times are drawn: log-SNR normal, or time uniform (default: normal)")
    add("--images", type=at_least(1), help="budget in images seen (default: 2000000)")
    add("--hours", type=float, help="budget in hours, all sessions together (default: 24)")
    add("--batch", type=at_least(1), help="images a step (default: 128)")
    add("--lr", type=float, help="the largest learning rate (default: 0.001)")
    add("--warmup", type=at_least(0), help="images until the learning rate is reached (default: 20000)")
    add("--ema", type=float, help="decay of the averaged weights, a step (default: 0.999)")
    add("--drop-label", type=float, help="share of labels left out, in [0, 1] (default: 0.1)")
    add("--channels", type=channels, help="channels of each resolution, separated by commas (default: 64,128)")
    add("--layers", type=at_least(1), help="residual blocks a resolution (default: 1)")
    add("--patch", type=at_least(1), help="side of the squares of pixels folded into channels (default: 2)")
    add("--seed", type=at_least(0), help="everything random is a function of it (default: 0)")
    add("--device", default="cpu", help="where to train (default: cpu)")
    pace_arguments(parser)
    add("--save-every", type=float, default=120.0, help="seconds between checkpoints (default: 120)")
    add("--sheet-every", type=float, default=600.0, help="seconds between sample sheets; 0: none (default: 600)")
    add("--anew", action="store_true", help="start anew and overwrite the run in OUT")
    add("--quiet", action="store_true", help="show no progress")


def run(args: argparse.Namespace) -> None:
    """Trains a denoiser on images; killed at any moment, the same command goes on with nothing lost.

    What is not given is taken from the run in OUT when there is one. A run that is over is exported again; with a
    larger --images or --hours it goes on.
    """
    from fewstep.train import train

    check_device(args.device)
    names = ("process", "predicts", "law", "images", "hours", "batch", "lr", "warmup", "ema", "drop_label", "seed",
             "channels", "layers", "patch", "save_every", "device", "quiet")  # fmt: skip
    given: dict[str, Any] = {name: getattr(args, name) for name in names}
    print(train(args.data, args.out, resume=not args.anew, sheet_every=args.sheet_every or None, pace=pace_of(args),
                **given))  # fmt: skip


def channels(text: str) -> tuple[int, ...]:
    """Argparse type: whole numbers separated by commas."""
    return tuple(at_least(1)(part) for part in text.split(","))
