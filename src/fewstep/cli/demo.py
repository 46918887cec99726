"""`fewstep demo`: few steps against many on the shipped model, measured on this machine."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from functools import partial
from typing import Any

from fewstep.cli.common import at_least, pace_arguments, pace_of

__all__ = ["arguments", "run"]

MOST, FEWEST = 512, 16  # samples of each solver
SECONDS = 100.0  # for all of it, measuring apart


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fewstep demo`."""
    add = parser.add_argument
    text = f"samples for each solver (default: {MOST}, or as many as a slow machine makes in two minutes)"
    add("--num", type=at_least(FEWEST), help=text)
    add("--steps", type=at_least(1), default=10, help="network calls of the default solver (default: 10)")
    add("--ancestral-steps", type=at_least(1), default=100, help="network calls of ancestral sampling (default: 100)")
    add("--batch", type=at_least(1), default=64, help="samples a network call (default: 64)")
    add("--seed", type=at_least(0), default=0, help="both solvers start from the noises of this seed (default: 0)")
    pace_arguments(parser)
    add("--out", default="out/demo", help="folder for the pictures and demo.json (default: out/demo)")


def run(args: argparse.Namespace) -> None:
    """Samples the shipped model in 10 network calls and in 100, from the same noises, and measures both.

    The kernel distance is unbiased (its standard error follows it); the Frechet distance is biased upward at this size,
    so the last line gives both for as many real images: what a perfect model would reach. A first batch is timed, and a
    machine on which all samples would take longer than two minutes takes fewer.
    """
    began = time.monotonic()
    from fewstep.files import Results
    from fewstep.interop.load import load
    from fewstep.loop import tabulate
    from fewstep.model.draw import draw, suited
    from fewstep.model.record import class_labels
    from fewstep.quality import load_classifier, load_reference
    from fewstep.solver import DEFAULT_SOLVERS, SOLVERS, TABLES
    from fewstep.terminal import Bar, png, table as aligned

    model, classifier, reference = load(pace=pace_of(args)), load_classifier(), load_reference()
    plan = [(DEFAULT_SOLVERS[model.process.kind], args.steps), ("ddpm", args.ancestral_steps)]
    calls = sum(steps for _, steps in plan)
    if args.num is None:
        timed = partial(draw, model, tabulate(None, model.process, steps=1), num=args.batch, batch=args.batch)
        timed()  # warms up
        each = calls * timed().seconds / args.batch
        args.num = max(FEWEST, min(MOST, int((SECONDS - (time.monotonic() - began)) / each)))
        if args.num < MOST:
            print(f"{args.num} samples of each: on this machine {MOST} would take about {MOST * each / 60:.0f} minutes "
                  f"(--num {MOST} takes them all)", file=sys.stderr)  # fmt: skip
    floor = reference.floor(args.num)
    labels = class_labels(None, model.labels, args.num)
    lines, records = [], []
    with Results(args.out) as results:
        with Bar(calls, "sampling") as bar:
            for name, steps in plan:
                table = tabulate(suited(TABLES[name](), model, 1.0), model.process, steps=steps)
                drawn = draw(model, table, num=args.num, labels=labels, seed=args.seed, batch=args.batch,
                             progress=lambda share, k=bar.done, n=steps: bar.to(k + share * n))  # fmt: skip
                quality = reference.quality(classifier.features(drawn.images))
                sheet = results.write(f"{name}-{drawn.calls}.png", partial(png, drawn.samples[:100]))
                lines.append(_line(name, str(drawn.calls), f"{drawn.seconds:.1f}", quality))
                record = {"sheet": sheet.name, "network_calls": drawn.calls, "seconds": round(drawn.seconds, 3)}
                records.append(record | {"solver": SOLVERS[name]().config(), "quality": quality.as_dict()})
        lines.append(_line("real images (floor)", "", "", floor))
        record = {"num": args.num, "seed": args.seed, "pace": asdict(model.pace), "floor": floor.as_dict()}
        results.record("demo.json", {**record, "runs": records})
    head = ["solver", "calls", "seconds", "kernel distance", "Frechet distance"]
    print(f"{args.num} samples of each from the same {args.num} noises, against {floor.reference:,} real images:\n")
    print(aligned(head, lines))
    print("\nSmaller is better; the last line is what a perfect model would reach with as many images.")
    print("Pictures: " + ", ".join(str(results.folder / record["sheet"]) for record in records))


def _line(name: str, calls: str, seconds: str, quality: Any) -> list[str]:
    return [name, calls, seconds, f"{quality.kernel:.4f} +- {quality.kernel_error:.4f}", f"{quality.frechet:.2f}"]
