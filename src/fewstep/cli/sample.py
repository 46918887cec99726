"""`fewstep sample`: the main job. Draws samples and writes a sheet, the numbers and what made them."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from fewstep.cli.common import (
    Usage,
    at_least,
    build,
    check_device,
    final_argument,
    guidance_argument,
    guidance_of,
    pace_arguments,
    pace_of,
    pick,
    sampler_arguments,
    size,
    solver_or_table,
    usage,
)

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.model import Model

__all__ = ["arguments", "run"]

STEPS = 10  # network calls where the command line names none
LEAST = 4  # samples that a distance between sets needs


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fewstep sample`."""
    sampler_arguments(parser, STEPS)
    add = parser.add_argument
    add("--num", type=at_least(1), default=64, help="how many samples (default: 64)")
    add("--label", help="class names or numbers, separated by commas, used in turn (default: every class in turn)")
    text = (
        "what to draw, of a model trained on words or a diffusers folder with a text encoder; repeatable, used in turn"
    )
    add("--prompt", action="append", default=[], metavar="TEXT", help=text)
    add("--negative", metavar="TEXT", help="the text that guidance leads away from (default: an empty one)")
    guidance_argument(parser)
    add("--seed", type=at_least(0), default=0, help="sample k of a seed is the same in every run (default: 0)")
    add("--batch", type=at_least(1), default=64, help="samples a network call (default: 64)")
    text = "the most that the process may hold, as 4GiB: a network call takes as many samples as fit"
    add("--memory", type=size, metavar="SIZE", help=text)
    final_argument(parser, "denoise")
    text = "run the network through torch.compile: a minute at first, then faster calls"
    add("--compile", action="store_true", help=text)
    add("--device", default="cpu", help="where the network runs (default: cpu)")
    pace_arguments(parser)
    add("--quality", action="store_true", help="measure quality against the shipped reference features")
    add("--format", choices=("npz", "safetensors"), default="npz", help="of the samples (default: npz)")
    add("--out", default="out", help="folder for sheet.png, samples and run.json (default: out)")
    add("--dry-run", action="store_true", help="print what would be done as JSON and do nothing")


def run(args: argparse.Namespace) -> None:
    """Samples a model: a sheet of pictures, the samples, and run.json that says how they were made."""
    import torch

    from fewstep.files import json_text
    from fewstep.grid import GRIDS
    from fewstep.interop.load import load
    from fewstep.loop.tabulate import right_for
    from fewstep.model.draw import bare, table_for
    from fewstep.model.record import WRITERS, class_labels, describe
    from fewstep.solver import DEFAULT_SOLVERS, SOLVERS, Driver
    from fewstep.solver.config import Tableau
    from fewstep.stats import attach, check_prediction

    solver = solver_or_table(args, ("option", "grid", "steps", "nfe"))  # what is wrong is refused before any loading
    if args.quality and args.num < LEAST:
        raise Usage(f"got --quality with --num {args.num}: quality is measured on at least {LEAST} samples")
    if args.negative is not None and (not args.prompt or args.guidance in (None, 1)):
        raise Usage("got --negative without --prompt and --guidance, which it is for: give them, or leave it out")
    if args.prompt and args.label is not None:
        raise Usage("got --prompt and --label: give one")
    check_device(args.device)
    pick(GRIDS, args.grid or "default", "grid")
    model = load(args.model, device=args.device, pace=pace_of(args), variant=args.variant, config=args.config)
    model = told(model, args.prompt, args.negative or "")
    guidance = guidance_of(args.guidance, {args.solver: solver}, classes=bool(model.labels) or model.takes_w)
    if solver is None:
        solver = build(SOLVERS, DEFAULT_SOLVERS[model.process.kind], "solver", args.option)
    solver = attach(solver, model)
    if getattr(solver, "statistics", "") is None:
        print(f"no statistics of this model for {type(solver).__name__}, which runs as the method they improve: "
              "measure them with fewstep stats", file=sys.stderr)  # fmt: skip
    if hasattr(model, "convention") and not args.dry_run:  # of diffusers, whose scheduler says what is predicted
        check_prediction(model.denoiser(0 if model.labels else None), model.shape, device=args.device)
    with usage():
        labels = class_labels(args.label, model.labels, args.num)
    grid, driven = args.grid or "default", {}
    if isinstance(solver, Driver):
        right_for(bare(model, guidance), model.process, solver)
        most = args.steps or (None if args.nfe or solver.own_times else STEPS)
        table, driven = solver, {"grid": grid, "steps": most, "nfe": args.nfe}
        end = "zero" if not solver.own_times and solver.reaches_zero(model.process) else "state"
    else:
        count = {} if isinstance(solver, Tableau) else {"grid": grid, "steps": args.steps, "nfe": args.nfe}
        table = table_for(model, solver, guidance, **count, final=args.final or "zero")
        end = table.final
    if args.final == "zero" and end != "zero":
        raise Usage(f"got --final zero for {args.solver}, which takes no step to sigma = 0 here: leave --final out")
    if isinstance(solver, Tableau) and end == "zero" and args.final in ("state", "denoise"):
        raise Usage(f"got --final {args.final} for {args.solver}, which ends at sigma = 0: leave --final out")
    final = "denoise" if args.final == "denoise" else "state" if args.final == "state" else end
    file = args.solver if isinstance(solver, Tableau) else None
    record = describe(model, table, file=file, final=final, num=args.num, labels=labels, guidance=guidance,
                      seed=args.seed, batch=args.batch, device=args.device, memory=args.memory, compile=args.compile,
                      **({"prompts": args.prompt, "negative": args.negative or ""} if args.prompt else {}),
                      **(driven or {"grid": None if file else grid}))  # fmt: skip
    if args.dry_run:
        print(json_text(record))
        return

    from fewstep.files import Results
    from fewstep.model.draw import draw
    from fewstep.solver.driver.base import listed
    from fewstep.terminal import png

    measure = quality_of(model) if args.quality else None
    with Results(args.out) as results:
        drawn = draw(model, table, num=args.num, labels=labels, guidance=guidance, seed=args.seed, batch=args.batch,
                     final=final, device=args.device, memory=args.memory,
                     compile=args.compile, strict=False, progress=True, **driven)  # fmt: skip
        if (decode := getattr(model, "decode", None)) is not None:
            parts = [decode(part) for part in drawn.samples.split(args.batch)]
            drawn = dataclasses.replace(drawn, samples=torch.cat(parts))
        elif hasattr(model, "convention") and model.shape[0] not in (1, 3):
            print(f"got no autoencoder that is known in {model.path}: the samples are latents", file=sys.stderr)
        labels, left = drawn.kept(labels), len(drawn.samples)
        if drawn.aside:
            record["set_aside"] = [{"sample": k, "why": why} for k, why in drawn.aside.items()]
        record |= {"network_calls": drawn.calls, "network_evaluations": drawn.evaluations,
                   "seconds": round(drawn.seconds, 3)}  # fmt: skip
        if drawn.beyond is not None:
            record["beyond_the_data"] = drawn.beyond._asdict()
        if measure is not None and left >= LEAST:
            record["quality"] = measure(drawn.images)
        sheet = results.write("sheet.png", partial(png, drawn.samples))
        samples = results.write(f"samples.{args.format}", WRITERS[args.format](drawn.samples, labels))
        results.record("run.json", record)
    each = "on average" if driven else "each"
    each += f" ({drawn.evaluations} evaluations)" if drawn.evaluations != drawn.calls else ""
    print(f"{left} samples, {drawn.calls} network calls {each}, {drawn.seconds:.1f} s: {sheet}, {samples}")
    if "quality" in record:
        print(sentence(record["quality"]))
    if drawn.aside:
        raise ValueError(
            f"got {len(drawn.aside)} of {args.num} samples that are not whole ({listed([*drawn.aside])}): the others "
            "are written, and run.json says why of each; look at the network, or give more steps"
        )


def told(model: Any, prompts: list[str], negative: str) -> Any:
    """The model with prompts, or the classes of a diffusers network, as its labels."""
    if getattr(model, "worded", False):
        if negative:
            raise Usage(f"got --negative for {model.path}, whose guidance leads away from no words: leave it out")
        with usage():
            model.denoiser(prompts or None)  # unknown words are refused before any work
        return dataclasses.replace(model, labels=tuple(prompts)) if prompts else model
    texts = getattr(model, "texts", None) is not None
    if prompts and not texts:
        raise Usage(f"got --prompt for {model.path}, which has no text encoder of its own: leave it out")
    if texts and not prompts:
        raise Usage(f"got no --prompt for {model.path}, which draws what a text says: give one")
    return model.told(prompts, negative) if hasattr(model, "told") else model


def quality_of(model: Model) -> Callable[[Tensor], dict[str, float]]:
    """Returns samples -> quality numbers; refuses at once a model whose images the shipped classifier cannot see."""
    import torch

    from fewstep.quality import load_classifier, load_reference

    classifier, reference = load_classifier(), load_reference()
    classifier.features(torch.zeros(1, *model.shape))
    return lambda samples: reference.quality(classifier.features(samples)).as_dict()


def sentence(quality: Mapping[str, Any]) -> str:
    """Returns quality numbers as one line."""
    shares = ", ".join(f"{name} {quality[name]:.3f}" for name in ("precision", "recall", "density", "coverage"))
    return (
        f"against {quality['reference']:,} real images: kernel distance {quality['kernel']:.4f} +- "
        f"{quality['kernel_error']:.4f}, Frechet distance {quality['frechet']:.2f}, {shares}"
    )
