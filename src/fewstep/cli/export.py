"""`fewstep export`: a model and a solver as one ONNX file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fewstep.cli.common import (
    Usage,
    build,
    final_argument,
    guidance_argument,
    guidance_of,
    pick,
    sampler_arguments,
    solver_or_table,
)

__all__ = ["arguments", "run"]

STEPS = 10  # network calls where the command line names none
NEAR = 1e-3  # |ONNX - torch| / |torch| beyond which the file is wrong; untrained networks reach 2e-4 by rounding


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fewstep export`."""
    sampler_arguments(parser, STEPS)
    guidance_argument(parser)
    final_argument(parser)
    parser.add_argument("--out", default="sampler.onnx", help="the file (default: sampler.onnx)")


def run(args: argparse.Namespace) -> None:
    """Writes network and solver as one ONNX graph, and compares a run of it with torch.

    The graph maps standard normals (`noise`, and `xi` for a solver that draws any) and class numbers (`labels`, -1 for
    none) to `samples`. onnxruntime runs it without torch.
    """
    import torch

    from fewstep.grid import GRIDS
    from fewstep.interop import onnx
    from fewstep.interop.load import load
    from fewstep.model.draw import table_for
    from fewstep.solver import DEFAULT_SOLVERS, SOLVERS, Driver
    from fewstep.solver.config import Tableau
    from fewstep.stats import attach

    solver = solver_or_table(args, ("option", "grid", "steps", "nfe", "final"))
    if isinstance(solver, Driver):
        raise Usage(f"got --solver {args.solver}, which chooses its steps while it runs: a graph needs a table")
    grid = args.grid or "default"
    pick(GRIDS, grid, "grid")
    if Path(args.out).suffix != ".onnx":
        raise Usage(f"got --out {args.out}: name a file that ends in .onnx")
    onnx.needed()  # before the model, whose own extra is a part of it
    model = load(args.model, dtype=torch.float32, variant=args.variant, config=args.config)
    if solver is None:
        solver = build(SOLVERS, DEFAULT_SOLVERS[model.process.kind], "solver", args.option)
    guidance = guidance_of(args.guidance, {args.solver: solver}, classes=bool(model.labels) or model.takes_w)
    if isinstance(solver, Tableau):
        table = table_for(model, solver, guidance)
    else:
        table = table_for(model, attach(solver, model), guidance, grid=grid, steps=args.steps, nfe=args.nfe,
                          final=args.final or "zero")  # fmt: skip
    print(f"writing {table.nfe} network calls as a graph, some seconds each", file=sys.stderr)
    path = onnx.export(model, table, args.out, guidance=guidance)
    far = onnx.difference(model, table, path, guidance=guidance)
    if not far < NEAR:
        path.unlink()
        raise ValueError(
            f"the graph's samples are {far:.1e} from torch's, of their size, and at most {NEAR:g} is right"
        )
    size = path.stat().st_size / 2**20
    print(f"{path}: {table.nfe} network calls, {size:.1f} MiB, {far:.1e} from torch (onnxruntime, two samples)")
