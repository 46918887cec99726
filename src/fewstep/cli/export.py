"""`fewstep export`: a model and a solver as one ONNX file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fewstep.cli.common import Usage, at_least, build, option, pick, solver_or_table

__all__ = ["arguments", "run"]

STEPS = 10  # network calls where the command line names none
NEAR = 1e-3  # |ONNX - torch| / |torch| beyond which the file is wrong; untrained networks reach 2e-4 by rounding


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fewstep export`."""
    add = parser.add_argument
    add("model", nargs="?", help="a model folder (default: the shipped Fashion-MNIST model)")
    add("--solver", help="a name from `fewstep list solvers`, or a table file (default: the measured best)")
    text = "an option of the solver, as in eta=0.5; repeatable"
    add("--option", type=option, action="append", default=[], metavar="NAME=VALUE", help=text)
    add("--grid", help="a name from `fewstep list grids` (default: the process's own)")
    count = parser.add_mutually_exclusive_group()
    count.add_argument("--steps", type=at_least(1), help=f"at most this many network calls (default: {STEPS})")
    count.add_argument("--nfe", type=at_least(1), help="exactly this many network calls, or refused")
    add("--out", default="sampler.onnx", help="the file (default: sampler.onnx)")


def run(args: argparse.Namespace) -> None:
    """Writes network and solver as one ONNX graph, and compares a run of it with torch.

    The graph maps standard normals (`noise`, and `xi` for a solver that draws any) and class numbers (`labels`, -1 for
    none) to `samples`. onnxruntime runs it without torch.
    """
    import torch

    import fewstep as fs
    from fewstep.interop import onnx
    from fewstep.stats import attach

    solver = solver_or_table(args, ("option", "grid", "steps", "nfe"))
    if isinstance(solver, fs.Driver):
        raise Usage(f"got --solver {args.solver}, which chooses its steps while it runs: a graph needs a table")
    grid = args.grid or "default"
    pick(fs.GRIDS, grid, "grid")
    if Path(args.out).suffix != ".onnx":
        raise Usage(f"got --out {args.out}: name a file that ends in .onnx")
    model = fs.load(args.model, dtype=torch.float32)
    if solver is None:
        solver = build(fs.SOLVERS, fs.DEFAULT_SOLVERS[model.process.kind], "solver", args.option)
    count = {"nfe": args.nfe} if args.nfe else {"steps": args.steps or STEPS}
    options = {} if isinstance(solver, fs.Tableau) else {"grid": grid, **count}
    table = fs.tabulate(attach(solver, model.path), model.process, **options)
    print(f"writing {table.nfe} network calls as a graph, some seconds each", file=sys.stderr)
    path = onnx.export(model, table, args.out)
    far = onnx.difference(model, table, path)
    if not far < NEAR:
        path.unlink()
        raise ValueError(
            f"the graph's samples are {far:.1e} from torch's, of their size, and at most {NEAR:g} is right"
        )
    size = path.stat().st_size / 2**20
    print(f"{path}: {table.nfe} network calls, {size:.1f} MiB, {far:.1e} from torch (onnxruntime, two samples)")
