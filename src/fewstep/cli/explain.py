"""`fewstep explain`: the table of numbers a solver is on a process and a grid."""

from __future__ import annotations

import argparse

from fewstep.cli.common import at_least, build, option, pick

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fewstep explain`."""
    parser.add_argument("solver", help="a name from `fewstep list solvers`")
    parser.add_argument("--option", type=option, action="append", default=[], metavar="NAME=VALUE",
                        help="an option of the solver, as in eta=0.5; may be given several times")  # fmt: skip
    parser.add_argument("--process", default="vp", help="a name from `fewstep list processes` (default: vp)")
    parser.add_argument("--steps", type=at_least(1), default=5, help="at most this many network calls (default: 5)")
    parser.add_argument("--grid", default="default", help="a name from `fewstep list grids` (default: the process's)")


def run(args: argparse.Namespace) -> None:
    """Prints a solver as its table: rows, times, weights, network calls."""
    import fewstep as fs

    solver = build(fs.SOLVERS, args.solver, "solver", args.option)
    process = pick(fs.PROCESSES, args.process, "process")()
    pick(fs.GRIDS, args.grid, "grid")
    print(fs.tabulate(solver, process, steps=args.steps, grid=args.grid).explain())
