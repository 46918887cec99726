"""`fewstep train`: makes a model folder from data, or a student of a teacher."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from fewstep.cli.common import (
    Usage,
    at_least,
    build,
    check_device,
    named,
    option,
    pace_arguments,
    pace_of,
    pick,
    several,
)

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fewstep train`."""
    add = parser.add_argument
    text = (
        "METHOD: a name of `fewstep list methods` (default: denoise); DATA: an npz file with x_train and y_train, or "
        "other usual names, or with points x; or a folder of pictures, or of one folder a label; OUT: the run's "
        "folder: checkpoint.safetensors, sheet.png, and model/ at the end"
    )
    add("words", nargs="+", metavar="[METHOD] [DATA] OUT", help=text)
    add("--teacher", metavar="MODEL", help="the model folder that a method imitates")
    add("--option", type=option, action="append", default=[], metavar="NAME=VALUE",
        help="an option of the method, as steps=64; repeatable")  # fmt: skip
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
    add("--channels", type=several(1), help="channels of each resolution, separated by commas (default: 64,128)")
    add("--layers", type=at_least(1), help="residual blocks a resolution (default: 1)")
    add("--patch", type=at_least(1), help="side of the squares of pixels folded into channels (default: 2)")
    text = (
        "train on words: texts beside the pictures (captions in an npz file, captions.json or NAME.txt in a folder) or "
    )
    add("--words", dest="worded", action="store_true", help=text + "else the names of the labels")
    add("--seed", type=at_least(0), help="everything random is a function of it (default: 0)")
    add("--device", default="cpu", help="where to train (default: cpu)")
    pace_arguments(parser)
    add("--save-every", type=float, default=120.0, help="seconds between checkpoints (default: 120)")
    add("--sheet-every", type=float, default=600.0, help="seconds between sample sheets; 0: none (default: 600)")
    _mixed(parser)
    add("--anew", action="store_true", help="start anew and overwrite the run in OUT")
    add("--quiet", action="store_true", help="show no progress")


def run(args: argparse.Namespace) -> None:
    """Trains a denoiser on images, or by METHOD; killed at any moment, the same command goes on with nothing lost.

    What is not given is taken from the run in OUT when there is one. A run that is over is exported again; with a
    larger --images or --hours it goes on. METHOD distils the --teacher, or learns from scratch, on images or points.
    """
    from fewstep.process import ALL_PROCESSES
    from fewstep.process.predict import EDM_LIKE, PREDICTIONS
    from fewstep.train import METHODS, train, train_student
    from fewstep.train.company import joined, together
    from fewstep.train.source import floats

    check_device(args.device)
    predicted = dict.fromkeys((*PREDICTIONS, *EDM_LIKE))
    args.process = args.process and named(dict.fromkeys((*ALL_PROCESSES, "scaled-linear")), args.process, "process")
    args.predicts = args.predicts and named(predicted, args.predicts, "predicts")
    words, method = list(args.words), None
    if words[0] in METHODS and (len(words) > 1 or args.teacher):
        method = words.pop(0)
    elif len(words) == 3:
        pick(METHODS, words[0], "method")
    if len(words) not in (1, 2) or (len(words) == 1 and not args.teacher):
        raise Usage(f"got {' '.join(args.words)!r}: give [METHOD] DATA OUT, or METHOD --teacher MODEL OUT")
    data, out = words if len(words) == 2 else (None, words[0])
    names = ("process", "predicts", "images", "hours", "batch", "lr", "warmup", "ema", "drop_label", "seed",
             "save_every", "device", "quiet")  # fmt: skip
    given: dict[str, Any] = {name: getattr(args, name) for name in names}
    given |= {"resume": not args.anew, "pace": pace_of(args)}
    plain = method in (None, "denoise") and args.teacher is None and not args.option
    if plain and data is not None and floats(data) is None:
        shapes = {name: getattr(args, name) for name in ("law", "layers", "patch")}
        shapes["channels"] = args.channels and tuple(args.channels)
        shapes["words"] = args.worded or None
        made = partial(train, data, out, sheet_every=args.sheet_every or None, **shapes, **given)
    else:
        if args.worded:
            raise Usage(
                f"got --words with {method or 'such data'}: words are told where pictures are denoised; leave it out"
            )
        shapes = {name: value for name in ("channels", "layers", "patch") if (value := getattr(args, name)) is not None}
        made_by = build(METHODS, method or "denoise", "method", [*dict(args.option).items()])
        given |= {"method": made_by, "teacher": args.teacher}
        made = partial(train_student, data, out, **shapes, **given)
    with joined():
        folder, (rank, _) = made(), together()
    if rank == 0:
        print(folder)


def _mixed(parser: argparse.ArgumentParser) -> None:
    """Lets options stand between the words, as METHOD DATA --teacher MODEL OUT."""

    def parse(args: Any = None, namespace: Any = None) -> Any:
        del parser.parse_known_args
        try:
            return parser.parse_known_intermixed_args(args, namespace)
        finally:
            parser.parse_known_args = parse

    parser.parse_known_args = parse  # type: ignore[method-assign]
