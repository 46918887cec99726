"""`fewstep demo`: few steps against many on the shipped model, measured on this machine."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from fewstep.cli.common import at_least, tabulated

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fewstep demo`."""
    add = parser.add_argument
    add("--num", type=at_least(16), default=512, help="samples for each solver (default: 512)")
    add("--steps", type=at_least(1), default=10, help="network calls of the default solver (default: 10)")
    add("--ancestral-steps", type=at_least(1), default=100, help="network calls of ancestral sampling (default: 100)")
    add("--batch", type=at_least(1), default=64, help="samples a network call (default: 64)")
    add("--seed", type=at_least(0), default=0, help="both solvers start from the noises of this seed (default: 0)")
    add("--out", default="out/demo", help="folder for the pictures and demo.json (default: out/demo)")


def run(args: argparse.Namespace) -> None:
    """Samples the shipped model in 10 network calls and in 100, from the same noises, and measures both.

    The kernel distance is unbiased (its standard error follows it); the Frechet distance is biased upward at this size,
    so the last line gives both for as many real images: what a perfect model would reach.
    """
    import fewstep as fs
    from fewstep.cli.sample import class_labels
    from fewstep.draw import draw
    from fewstep.files import Results
    from fewstep.quality import load_classifier, load_reference
    from fewstep.ui import Bar, png, table as aligned

    model, classifier, reference = fs.load(), load_classifier(), load_reference()
    floor = reference.floor(args.num)
    labels = class_labels(None, model.labels, args.num)
    plan = [(fs.DEFAULT_SOLVERS[model.process.kind], args.steps), ("ddpm", args.ancestral_steps)]
    lines, records = [], []
    with Results(args.out) as results:
        with Bar(sum(steps for _, steps in plan), "sampling") as bar:
            for name, steps in plan:
                solver = fs.TABLES[name]()
                table = tabulated(solver, model.process, to_zero=solver.reaches_zero(model.process), steps=steps)
                drawn = draw(model, table, num=args.num, labels=labels, seed=args.seed, batch=args.batch,
                             progress=lambda share, k=bar.done, n=steps: bar.to(k + share * n))  # fmt: skip
                quality = reference.quality(classifier.features(drawn.images))
                sheet = results.write(f"{name}-{drawn.calls}.png", partial(png, drawn.samples[:100]))
                lines.append(_line(name, str(drawn.calls), f"{drawn.seconds:.1f}", quality))
                record = {"sheet": sheet.name, "network_calls": drawn.calls, "seconds": round(drawn.seconds, 3)}
                records.append(record | {"solver": fs.SOLVERS[name]().config(), "quality": quality.as_dict()})
        lines.append(_line("real images (floor)", "", "", floor))
        results.record("demo.json", {"num": args.num, "seed": args.seed, "floor": floor.as_dict(), "runs": records})
    head = ["solver", "calls", "seconds", "kernel distance", "Frechet distance"]
    print(f"{args.num} samples of each from the same {args.num} noises, against {floor.reference:,} real images:\n")
    print(aligned(head, lines))
    print("\nSmaller is better; the last line is what a perfect model would reach with as many images.")
    print("Pictures: " + ", ".join(str(results.folder / record["sheet"]) for record in records))


def _line(name: str, calls: str, seconds: str, quality: Any) -> list[str]:
    return [name, calls, seconds, f"{quality.kernel:.4f} +- {quality.kernel_error:.4f}", f"{quality.frechet:.2f}"]
