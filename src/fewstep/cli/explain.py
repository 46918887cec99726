"""`fewstep explain`: the table of numbers a solver is on a process and a grid."""

from __future__ import annotations

import argparse
import json
import math
from typing import TYPE_CHECKING, Any

from fewstep.cli.common import Usage, at_least, final_argument, option, pick, solver_or_table, variant_argument

if TYPE_CHECKING:
    from fewstep.tableau import Tableau

__all__ = ["arguments", "run"]

STEPS = 5


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fewstep explain`."""
    add = parser.add_argument
    add("solver", nargs="?", help="a name from `fewstep list solvers`, or a table file (default: the measured best)")
    add("--option", type=option, action="append", default=[], metavar="NAME=VALUE",
        help="an option of the solver, as in eta=0.5; repeatable")  # fmt: skip
    add("--process", help="a name from `fewstep list processes` (default: vp)")
    add("--model", metavar="FOLDER", help="on the process of this model, and as it is set for the model")
    variant_argument(parser)
    add("--steps", type=at_least(1), help=f"at most this many network calls (default: {STEPS})")
    add("--grid", help="a name from `fewstep list grids` (default: the process's own)")
    final_argument(parser)
    add("--json", action="store_true", help="the same for programs: rows, times, terms with their weights")
    add("--save", metavar="FILE", help="write the table to this file, for `fewstep sample --solver FILE`")


def run(args: argparse.Namespace) -> None:
    """Prints a solver as its table: rows, times, weights, network calls."""
    from fewstep.grid import GRIDS
    from fewstep.interop.load import load
    from fewstep.loop import tabulate
    from fewstep.model.draw import table_for
    from fewstep.process import ALL_PROCESSES
    from fewstep.solver import DEFAULT_SOLVERS, SOLVERS
    from fewstep.solver.config import Tableau

    if args.model and args.process:
        raise Usage(f"got --model and --process {args.process}: the model has its own process; leave one out")
    table = solver_or_table(args, ("option", "process", "model", "steps", "grid", "final"))
    if not isinstance(table, Tableau):
        pick(GRIDS, args.grid or "default", "grid")
        process = pick(ALL_PROCESSES, args.process or "vp", "process")()
        model = load(args.model, variant=args.variant, config=args.config) if args.model else None
        process = process if model is None else model.process
        table = table or SOLVERS[DEFAULT_SOLVERS[process.kind]]()
        steps = args.steps or (STEPS if model is None or model.made_for is None else None)
        how = {"steps": steps, "grid": args.grid or "default", "final": args.final or "zero"}
        table = tabulate(table, process, **how) if model is None else table_for(model, table, 1.0, **how)
    if args.save:
        table.save(args.save)
    print(json.dumps(numbers(table), indent=1) if args.json else table.explain())
    if args.save and not args.json:
        print(f"\nSaved as {args.save}")


def numbers(table: Tableau) -> dict[str, Any]:
    """What `explain` prints, as numbers: a weight is a number, or one a frequency, or a matrix; null is infinite."""
    from fewstep.process.operator import Block, Diagonal
    from fewstep.tableau.row import name

    rows = []
    for row in table.rows:
        snr = float(table.process.log_snr(row.t))
        weights = [(name(symbol), c.values.tolist() if isinstance(c, Diagonal | Block) else float(c))
                   for symbol, c in row.form]  # fmt: skip
        terms = [{"of": symbol, "weight": weight} for symbol, weight in weights]
        snr = snr if math.isfinite(snr) else None
        rows.append({"time": row.t, "log_snr": snr, "call": row.at, "given": row.given, "terms": terms})
    noises = [{"stream": n.stream, "from": n.t, "to": n.s} for n in table.noises]
    config = None if table.solver is None else table.solver.config()
    return {
        "solver": config,
        "process": repr(table.process),
        "network_calls": table.nfe,
        "rows": rows,
        "noises": noises,
    }
