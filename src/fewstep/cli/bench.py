"""`fewstep bench`: solvers against each other on your model, at equal network calls."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import fields
from functools import partial

from fewstep.cli.common import (
    at_least,
    check_device,
    guidance_argument,
    guidance_of,
    pace_arguments,
    pace_of,
    several,
    usage,
)

__all__ = ["arguments", "run"]

SOLVERS = ["default", "unipc-3", "dpmpp-2m", "ddim"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fewstep bench`."""
    add = parser.add_argument
    text = "a model folder (default: the shipped one), or file.py:object with process, shape and denoiser(labels)"
    add("model", nargs="?", help=text)
    text = "NAME, NAME@GRID or NAME@GRID+zero, with * for any; a table file, as of fewstep fit; file.py:object "
    text += f"(default: {' '.join(SOLVERS)})"
    add("--solver", nargs="+", default=[], metavar="SOLVER", help=text)
    add("--students", nargs="+", default=[], metavar="STUDENT",
        help="folders of students of the model, which run by their own tables")  # fmt: skip
    text = "also other libraries' samplers, all or those that fit, as 'diffusers/dpm++2m@*'"
    add("--peers", nargs="*", metavar="PATTERN", help=text)
    add("--without", nargs="+", default=[], metavar="PATTERN", help="leave out contenders whose names fit")
    guidance_argument(parser)
    add(
        "--calls",
        type=several(1),
        default=[],
        help="network calls, as 5,10,20 (default: 5,10,20; of a student its own)",
    )
    add("--images", type=at_least(4), default=512, help="samples of each contender, calls and seed (default: 512)")
    add("--seeds", type=several(0), default=[0], help="as 0,1,2; three or more give intervals over seeds (default: 0)")
    text = "measure only the N of each group that come nearest to the exact end states at each number of calls"
    add("--select", type=at_least(1), metavar="N", help=text)
    add("--select-images", type=at_least(4), default=256, help="samples that --select looks at (default: 256)")
    text = "what --select goes by: rms, distance to the exact end states, or frechet, distance to real samples, on a "
    text += "seed of its own (default: rms)"
    add("--select-by", choices=("rms", "frechet"), default="rms", help=text)
    text = "network calls of the run that stands for the exact end states (default: 100)"
    add("--exact", type=at_least(10), default=100, metavar="CALLS", help=text)
    text = "classifier (shipped, 28x28 clothes), pixels, the folder of a vision model (DINOv2), or module:function"
    add("--features", help=text)
    add("--data", help="real samples, an npz file or a folder of pictures (default: the shipped reference features)")
    add("--resamples", type=at_least(20), default=200, help="of the paired bootstrap (default: 200)")
    add("--batch", type=at_least(1), default=128, help="samples a network call (default: 128)")
    add("--device", default="cpu", help="where the network runs (default: cpu)")
    pace_arguments(parser)
    add("--out", default="out/bench", help="folder of tables, plots and what is kept (default: out/bench)")
    add("--dry-run", action="store_true", help="print the contenders and the work, and do nothing")


def run(args: argparse.Namespace) -> None:
    """Measures solvers on a model at equal network calls: speed, quality, coverage, distance to the exact end state.

    All start from the same noises and classes. Writes table.csv, table.json, plots and a sheet of pictures. Killed at
    any moment, the same command goes on where it was; with more samples, seeds or solvers it makes only those.
    """
    from fewstep import bench
    from fewstep.bench.contender import is_table
    from fewstep.files import Results, json_text
    from fewstep.solver.config import Tableau

    check_device(args.device)
    with usage():
        bench.check_words(args.solver, args.peers or (), args.features)
    files = {name: Tableau.load(name) for name in args.solver if is_table(name)}
    args.calls, args.seeds = sorted({*args.calls}), list(dict.fromkeys(args.seeds))
    args.guidance = guidance_of(args.guidance, files, classes=True)
    options = {f.name: getattr(args, f.name) for f in fields(bench.Asked) if f.name in args}
    ready = bench.prepare(bench.Asked(solvers=args.solver, pace=pace_of(args), **options))
    for library, reason in ready.missing.items():
        print(f"{library} takes no part: {reason}", file=sys.stderr)
    if ready.real is None:
        print("quality is not measured: there are no real samples; give --data and --features", file=sys.stderr)
    if args.dry_run:
        names = list(dict.fromkeys(entry.contender.name for entry in ready.entries))
        print(json_text({"contenders": names, "samples times network calls": ready.work(), **ready.about()}))
        return
    with Results(args.out) as results:
        found = ready.measure()
        command = shlex.join(["fewstep", *sys.argv[1:]])
        record = {"command": command, **ready.about(), "rows": found.rows, "preselection": found.ranking}
        results.write("table.csv", lambda file: file.write(bench.csv_text(found.rows).encode()))
        for name, figure in bench.figures(ready, found):
            for kind in ("png", "svg"):
                results.write(f"{name}.{kind}", partial(figure.savefig, format=kind, dpi=150))
        results.record("table.json", record)
    print(bench.table_text(found.rows))
    print(f"written to {args.out}")
