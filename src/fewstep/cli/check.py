"""`fewstep check`: a solver held to what it declares."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fewstep.cli.common import Usage, build, option, pick

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fewstep check`."""
    add = parser.add_argument
    add("solver", nargs="*", help="a name from `fewstep list solvers`, path/to/file.py:object, or module:object")
    add("--option", type=option, action="append", default=[], metavar="NAME=VALUE",
        help="an option of a solver given by name, as in eta=0.5; repeatable")  # fmt: skip
    add("--process", action="append", metavar="NAME",
        help="a name from `fewstep list processes`, or path/to/file.py:object; repeatable (all)")  # fmt: skip
    add("--only", action="append", metavar="VERDICT", help="only this verdict, such as order; repeatable")
    add("--thorough", action="store_true", help="every number of steps from 1 to 64")
    add("--compile", action="store_true", help="also compile the walk with torch.compile (seconds a process)")
    add("--all", action="store_true", help="every solver of the registry")
    add("--json", metavar="FILE", help="write the verdicts to this file")
    add("--markdown", metavar="FILE", help="write the matrix solver x process to this page")
    add("--resume", metavar="FOLDER", default="out/check",
        help="where --all keeps what is done, to go on after an interruption (out/check)")  # fmt: skip
    add("--fresh", action="store_true", help="forget what --resume kept")


def run(args: argparse.Namespace) -> None:
    """Holds solvers to what they declare: order, exactness, calls, batches, dtypes, laws, singular ends.

    A name in a registry, or a solver of your own: `fewstep check path/to/file.py:MySolver --process vp`. Ends with
    exit code 1 when a promise is not kept; what does not apply says why and counts neither way.
    """
    import torch

    from fewstep.check import matrix
    from fewstep.check.drivers import DRIVER_VERDICTS
    from fewstep.check.verdicts import VERDICTS
    from fewstep.files import write_json, write_text
    from fewstep.process import ALL_PROCESSES
    from fewstep.solver import ALIASES, SOLVERS
    from fewstep.terminal import Bar

    if bool(args.solver) == args.all:
        raise Usage("got both solvers and --all: give one" if args.all else "got no solver: name one, or give --all")
    if args.option and (args.all or len(args.solver) > 1 or ":" in args.solver[0]):
        raise Usage("got --option without one solver by name to set it on: leave it out, or name one solver")
    for name in args.only or ():
        pick(VERDICTS | DRIVER_VERDICTS, name, "verdict")
    for name in args.process or ():
        if ":" not in name:
            pick(ALL_PROCESSES, name, "process")
    names = [name for name in SOLVERS if name not in ALIASES] if args.all else args.solver
    for name in names:
        if ":" not in name:
            pick(SOLVERS, name, "solver")
    if args.option:
        build(SOLVERS, names[0], "solver", args.option)  # refuses what it does not have
    torch.set_num_threads(1)  # the states are tiny: more threads only wait for each other
    processes = args.process or list(ALL_PROCESSES)
    extras = [name for name in ("thorough", "compile") if getattr(args, name)]
    asked = "".join(f"-{word}" for word in (*(args.only or ()), *extras))
    kept = args.all and not any(":" in name for name in processes)  # what a file of one's own says may change
    store = matrix.Store(Path(args.resume), fresh=args.fresh, asked=asked) if kept else None
    reports = []
    with Bar(len(names) * len(processes), "checking") as bar:
        for name in names:
            report = matrix.report(
                name, processes, store, options=dict(args.option), tick=bar.advance,
                thorough=args.thorough, compile=args.compile, only=args.only or (),
            )  # fmt: skip
            reports.append(report)
            if not args.all:
                print(report.sheet(colour=sys.stdout.isatty()) + "\n", flush=True)
            elif not report.ok:
                print(report.summary(), flush=True)
    if args.json:
        data = [report.to_dict() for report in reports]
        write_json(args.json, data if args.all or len(data) > 1 else data[0])
    if args.markdown:
        write_text(args.markdown, matrix.markdown(reports))
    red = sum(len(report.failures) for report in reports)
    if args.all:
        print(f"{len(reports)} solvers on {len(processes)} processes: {red} promises not kept")
    if red:
        raise ValueError(f"{red} promise{'s are' if red > 1 else ' is'} not kept: the lines above say which")
