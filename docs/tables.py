"""Writes the tables of docs/choosing.md: the solvers from the registry, the measured ones from benchmarks/results.

    python docs/tables.py            # rewrites the blocks in place
    python docs/tables.py --check    # exit status 1 when a block is not what this would write

A block stands between `<!-- NAME: ... -->` and `<!-- end NAME -->`. Of each study the
file with the latest name is used.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import fewstep as fs
from fewstep.solver.base import ALL_KINDS

PAGE = Path(__file__).parent / "choosing.md"
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"

WHEN = {
    "ddpm": "ancestral sampling, posterior variance; many calls",
    "ddpm-beta": "the same with the forward variance; many calls",
    "ddim": "the plain first-order step; `eta` adds noise; invertible in the limit",
    "euler": "Euler on dz/dt; the common sampler of flow models",
    "heun": "two calls a step, no history: steps can be taken alone",
    "midpoint": "as heun",
    "rk4": "four calls a step; long runs, reference solutions",
    "edm": "EDM's sampler without churn",
    "edm-sde": "EDM's sampler with its ImageNet churn; corrects errors, wants tens of steps",
    "multistep-1": "DDIM by the general formula",
    "multistep-2": "two predictions, exact quadrature, data form",
    "multistep-3": "three predictions, data form",
    "multistep-pc-2": "two predictions and a corrector at no further call",
    "multistep-pc-3": "three predictions and a corrector; reference solutions",
    "deis-tab-1": "DEIS tAB1: noise form, interpolated in t",
    "deis-tab-2": "DEIS tAB2; the default on blocks and frequencies",
    "deis-tab-3": "DEIS tAB3",
    "dpmpp-2m": "DPM-Solver++ (2M), as published",
    "dpmpp-3m": "DPM-Solver++ (3M), as in the authors' code (order 2)",
    "dpmpp-3m-corrected": "3M with the factor that the expansion asks for",
    "unipc-1": "UniPC-1",
    "unipc-2": "UniPC-2",
    "unipc-3": "UniPC-3; the default on scalar processes",
}


def solvers() -> str:
    """One line a solver of the registry, with what it declares."""
    lines = []
    for name, make in fs.SOLVERS.items():
        s = make()
        calls = s.calls(11, to_zero=False) - s.calls(10, to_zero=False)
        order = str(s.order) if s.order else "0 (another law)"
        noise, start = ("yes" if flag else "no" for flag in (s.stochastic, "alpha=0" in s.ends))
        lines.append((f"`{name}`", order, str(calls), noise, _kinds(s.kinds), _kinds(s.point_mass), start, WHEN[name]))
    head = (
        "solver",
        "order",
        "calls a step",
        "noise",
        "processes",
        "exact on one point",
        "from alpha = 0",
        "what, when",
    )
    return _markdown(head, lines)


def defaults() -> str:
    """What is taken when nothing is said."""
    processes = {name: make() for name, make in fs.PROCESSES.items()}
    lines = [(n, p.kind, f"`{fs.DEFAULT_SOLVERS[p.kind]}`", f"`{p.default_grid}`") for n, p in processes.items()]
    return _markdown(("process", "kind", "solver", "grid"), lines)


def default_solver() -> str:
    """The best pairs of benchmarks/default_solver.py."""
    found = _latest("default_solver")
    if found is None:
        return "No result of `benchmarks/default_solver.py` lies in `benchmarks/results`."
    name, record = found
    problems = ", ".join(dict.fromkeys(row["problem"] for row in record["rows"]))
    calls = ", ".join(map(str, dict.fromkeys(row["calls"] for row in record["rows"])))
    lines = [(*(f"`{part}`" for part in pair.split(" / ")), f"{score:.3f}") for pair, score in record["ranking"][:8]]
    return f"{record['date']}, torch {record['torch']}, {problems} at {calls} calls (`{name}`):\n\n" + _markdown(
        ("solver", "grid", "mean log distance to the best"), lines
    )


def default_grid() -> str:
    """The scores of benchmarks/default_grid.py."""
    found = _latest("default_grid")
    if found is None:
        return "No result of `benchmarks/default_grid.py` lies in `benchmarks/results`."
    name, record = found
    calls = ", ".join(map(str, record["calls"]))
    grids = list(next(iter(next(iter(record["processes"].values()))["mean log rmse"].values())))
    lines = [
        (
            process,
            f"`{solver}`",
            *(f"{score:.2f}{'*' if grid == entry['default'] else ''}" for grid, score in scores.items()),
        )
        for process, entry in record["processes"].items()
        for solver, scores in entry["mean log rmse"].items()
    ]
    return (
        f"{record['date']}, torch {record['torch']}, {record['num']} samples, {calls} calls (`{name}`):\n\n"
        + _markdown(("process", "solver", *grids), lines)
    )


BLOCKS = {"defaults": defaults, "solvers": solvers, "default-solver": default_solver, "default-grid": default_grid}


def fill(text: str) -> str:
    """The page with every block written anew."""
    for name, make in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name}:[^>]*-->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(
                f"got a page without the block {name!r}: put <!-- {name}: --> and <!-- end {name} --> back"
            )
        block = make()
        text = pattern.sub(lambda found, block=block: f"{found[1]}\n{block}\n\n{found[2]}", text)
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Writes or checks the page; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say whether the page is in sync")
    check = parser.parse_args(argv).check
    old = PAGE.read_text(encoding="utf-8")
    new = fill(old)
    if check:
        print("in sync" if new == old else f"{PAGE.name} is not in sync: run python docs/tables.py")
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


def _latest(study: str) -> tuple[str, dict] | None:
    files = sorted(RESULTS.glob(f"{study}_*.json"), key=lambda p: re.sub(r".*_", "", p.stem))
    return (files[-1].name, json.loads(files[-1].read_text(encoding="utf-8"))) if files else None


def _kinds(kinds: tuple[str, ...]) -> str:
    return "all" if set(kinds) == set(ALL_KINDS) else ", ".join(kinds) or "none"


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
