"""`fewstep explain`: the table of numbers a solver is on a process and a grid."""

from __future__ import annotations

import argparse

from fewstep.cli.common import at_least, final_argument, option, pick, solver_or_table

__all__ = ["arguments", "run"]

STEPS = 5


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fewstep explain`."""
    add = parser.add_argument
    add("solver", help="a name from `fewstep list solvers`, or a table file")
    add("--option", type=option, action="append", default=[], metavar="NAME=VALUE",
        help="an option of the solver, as in eta=0.5; repeatable")  # fmt: skip
    add("--process", help="a name from `fewstep list processes` (default: vp)")
    add("--steps", type=at_least(1), help=f"at most this many network calls (default: {STEPS})")
    add("--grid", help="a name from `fewstep list grids` (default: the process's own)")
    final_argument(parser)
    add("--save", metavar="FILE", help="write the table to this file, for `fewstep sample --solver FILE`")


def run(args: argparse.Namespace) -> None:
    """Prints a solver as its table: rows, times, weights, network calls."""
    from fewstep.grid import GRIDS
    from fewstep.loop import tabulate
    from fewstep.process import ALL_PROCESSES
    from fewstep.solver.config import Tableau

    table = solver_or_table(args, ("option", "process", "steps", "grid", "final"))
    if not isinstance(table, Tableau):
        process = pick(ALL_PROCESSES, args.process or "vp", "process")()
        grid = args.grid or "default"
        pick(GRIDS, grid, "grid")
        table = tabulate(table, process, steps=args.steps or STEPS, grid=grid, final=args.final or "zero")
    if args.save:
        table.save(args.save)
    print(table.explain())
    if args.save:
        print(f"\nSaved as {args.save}")
