"""`fewstep fit`: makes a solver for a model."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.common import (
    Usage,
    at_least,
    check_device,
    final_argument,
    guidance_of,
    model_argument,
    number,
    pace_arguments,
    pace_of,
    pick,
    usage,
)

if TYPE_CHECKING:
    from fewstep.model import Model

__all__ = ["arguments", "run"]

SHIPPED = "shipped"
CLASSIFIER = "classifier"  # the shipped one, for 28 x 28 clothes


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fewstep fit`."""
    model_argument(parser)
    add = parser.add_argument
    add("--steps", type=at_least(1), default=5, help="network calls of the fitted solver (default: 5)")
    text = "exact: a single data point stays exact in every row; free: nothing is kept (default: free)"
    add("--mode", choices=("exact", "free"), default="free", help=text)
    text = "gradient: descent through the solver; dp: a published solver on a grid found by dynamic programming"
    add("--method", choices=("gradient", "dp"), default="gradient", help=f"{text} (default: gradient)")
    text = "distance to the teacher: paired pixels, pixels and features, or kernel distance of features"
    add("--objective", choices=("paired", "features", "kid"), default="paired", help=f"{text} (default: paired)")
    text = f"{CLASSIFIER} (the shipped one), the folder of another, or MODULE:FUNCTION, FILE.py:FUNCTION"
    add("--features", help=f"feature space of the last two: {text} (default: {CLASSIFIER})")
    text = f"real samples that kid goes to, an npz file or a folder of pictures; {SHIPPED}: those of the shipped model"
    add("--data", help=f"{text} (default: the teacher's samples)")
    add("--solver", help="start from this solver (default: the best of a few)")
    add("--grid", help="and on this grid; gits and klub are found on the model (default: the best of a few)")
    final_argument(parser)
    text = "guidance scale that is fitted for; 1 is none (default: 1)"
    add("--guidance", type=number, metavar="W", default=1.0, help=text)
    add("--label", help="class names or numbers, separated by commas, used in turn (default: every class in turn)")
    add("--teacher-steps", type=at_least(1), default=50, help="network calls of the teacher (default: 50)")
    add("--samples", type=at_least(2), default=512, help="noises the solver is fitted on (default: 512)")
    add("--held-out", type=at_least(2), default=128, help="noises it is judged by, others (default: 128)")
    add("--iterations", type=at_least(1), default=300, help="of gradient descent (default: 300)")
    add("--batch", type=at_least(2), default=32, help="samples a network call (default: 32)")
    add("--seed", type=at_least(0), default=0, help="of the noises (default: 0)")
    add("--device", default="cpu", help="where the network runs (default: cpu)")
    pace_arguments(parser)
    add("--out", help="the file of the fitted table (default: fitted-STEPS.table)")


def run(args: argparse.Namespace) -> None:
    """Makes a solver for a model: fits grid, weights and times of a few steps to what many steps do.

    Killed at any moment, the same command goes on where it was. `fewstep sample --solver FILE` takes the result. The
    teacher's samples stay beside it, for further fits of the same model.
    """
    from fewstep.files import Results
    from fewstep.fitting import Descent, fit
    from fewstep.grid import GRIDS
    from fewstep.interop.load import load
    from fewstep.model.draw import conditioned
    from fewstep.model.record import class_labels
    from fewstep.solver import DRIVERS, TABLES

    out = Path(args.out or f"fitted-{args.steps}.table")
    check_device(args.device)
    if args.objective == "paired" and args.features:
        raise Usage("got --features with --objective paired, which has no use for them: give features or kid")
    if args.objective != "kid" and args.data:
        raise Usage(f"got --data with --objective {args.objective}, which goes to the teacher: give kid")
    if args.data == SHIPPED and args.features not in (None, CLASSIFIER):
        raise Usage(f"got --data {SHIPPED}, which are features of the shipped classifier: give --features {CLASSIFIER}")
    if args.solver in DRIVERS:
        raise Usage(f"got --solver {args.solver}, which chooses its steps while it runs: a fit begins at a table")
    if args.solver is not None:
        pick(TABLES, args.solver, "solver")
    if args.grid is not None:
        pick({**GRIDS, "gits": None, "klub": None}, args.grid, "grid")
    model = load(args.model, device=args.device, pace=pace_of(args), variant=args.variant, config=args.config)
    guidance_of(args.guidance, {}, classes=bool(model.labels))  # refused without classes
    features = None if args.objective == "paired" else feature_space(args.features or CLASSIFIER, model.shape)
    with usage():
        labels = class_labels(args.label, model.labels, args.samples + args.held_out)
    with Results(out.parent):  # one that cannot be written is refused before the work
        pass
    named = {"features": args.features or CLASSIFIER, "data": args.data}  # which the functions do not know
    with model.pace.threaded():
        table = fit(
            None, model.process, steps=args.steps, shape=model.shape, mode=args.mode, method=args.method,
            objective=args.objective, features=features, real=real_features(args.data, features, model),
            solver=args.solver, grid=args.grid, final=args.final or "zero",
            teacher_steps=args.teacher_steps, samples=args.samples, held_out=args.held_out, batch=args.batch,
            descent=Descent(iterations=args.iterations), seed=args.seed, device=args.device, out=out,
            conditioned=lambda where: conditioned(model, labels and labels[where], args.guidance),
            about={"guidance": args.guidance, "labels": args.label, "pace": asdict(model.pace)},
            remarks=named if features is not None else None,
        )  # fmt: skip
    card = dict(table.card or {})
    rmse, names = card["rmse"], card["start"]
    print(f"{args.steps} network calls, from {names['solver']} on {names['grid']}: held-out distance to the teacher "
          f"{rmse['start']:.4f} -> {rmse['fitted']:.4f}, {card['seconds']:.0f} s: {out}")  # fmt: skip


def feature_space(name: str, shape: tuple[int, ...]) -> Callable[[Any], Any]:
    """The features of a name, differentiable; a classifier's are refused where it sees samples of another shape."""
    from fewstep.check.subject import named_object
    from fewstep.quality import load_classifier

    if name != CLASSIFIER and not Path(name).is_dir():
        with usage():
            function = named_object(name) if ":" in name else None
        if not callable(function):
            raise Usage(f"got --features {name}: give {CLASSIFIER}, the folder of one, or MODULE:FUNCTION")
        return function
    net = load_classifier(None if name == CLASSIFIER else name).requires_grad_(False)
    if shape != (sees := tuple(net.config["shape"])):
        raise Usage(f"got --features {name} for samples of shape {shape}: it sees {sees}")
    return lambda images: net.body.to(images.device)(images.clamp(-1, 1))


def real_features(data: str | None, features: Any, model: Model) -> Any:
    """Features of at most 10,000 real samples; None where no data are named."""
    import torch

    if data is None:
        return None
    if data == SHIPPED:
        from fewstep.quality import load_reference

        return load_reference().held_out
    from fewstep.data import read_images
    from fewstep.quality import images_to_tensor

    given = read_images(data)
    with usage():
        given.check_shape(model.shape, data)
    chosen = torch.randperm(len(given.images), generator=torch.Generator().manual_seed(0))[:10_000]
    with torch.no_grad():
        return torch.cat([features(images_to_tensor(given.images[part.numpy()])) for part in chosen.split(256)])
