"""`fewstep restore`: pictures in, restored pictures out, by a model of `fewstep train bridge`."""

from __future__ import annotations

import argparse
import sys

from fewstep.cli.common import Usage, at_least, check_device, number, pace_arguments, pace_of

__all__ = ["arguments", "run"]

STEPS = 5  # network calls where the command line names none


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fewstep restore`."""
    add = parser.add_argument
    add("model", help="the model folder of `fewstep train bridge`")
    add("files", nargs="+", metavar="FILE_OR_FOLDER", help="pictures of the model's size, or folders of them")
    add("--out", required=True, metavar="DIR", help="the folder for the restored pictures, NAME.png of NAME.*")
    text = (
        "network calls of a picture: 1 is nearest to the picture that was (PSNR) and smooth; 2 to 10 are sharper, and "
    )
    text += f"what is sharp in them is one of the things that may have been there (default: {STEPS})"
    add("--steps", type=at_least(1), default=STEPS, help=text)
    text = "how much of the noise is drawn anew in every step, from 0, the ODE, whose pictures differ by their start "
    text += "alone, to 1, the bridge's own chain, which forgives the network's errors (default: 1)"
    add("--eta", type=number, default=1.0, help=text)
    add("--seed", type=at_least(0), default=0, help="another seed shows other details (default: 0)")
    add("--batch", type=at_least(1), default=16, help="pictures a network call (default: 16)")
    add("--device", default="cpu", help="where the network runs (default: cpu)")
    pace_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Restores pictures: deblurs, enlarges, fills in, whatever the model was trained for.

    Each file is restored by itself; what is wrong with one is said, the others are written, and the exit code is 1.
    Distortion and perception are one knob, the calls: the fewer, the nearer to the truth on average, and the smoother.
    """
    if not 0 <= args.eta <= 1:
        raise Usage(f"got --eta {args.eta:g}: give a share of the noise from 0 to 1")
    check_device(args.device)
    from fewstep.cli.restore.files import listed, restore
    from fewstep.interop.load import load
    from fewstep.loop import tabulate
    from fewstep.solver import DDIM

    model = load(args.model, device=args.device, pace=pace_of(args))
    files = listed(args.files)
    table = tabulate(DDIM(eta=args.eta), model.process, steps=args.steps)
    made = restore(model, files, args.out, solver=table, seed=args.seed, batch=args.batch, device=args.device,
                   progress=True)  # fmt: skip
    for sentence in made.failed.values():
        print(f"fewstep: {sentence}", file=sys.stderr)
    print(f"{len(made.written)} pictures, {made.calls} network calls each: {args.out}")
    if made.failed:
        raise ValueError(
            f"got {len(made.failed)} of {len(files)} pictures that were not restored; the others are written"
        )
