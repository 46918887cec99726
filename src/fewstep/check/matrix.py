"""The registries under the instrument: solver x process, resumable, and the page that shows it."""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from fewstep.check.report import Report, Verdict
from fewstep.check.subject import load, solver
from fewstep.files import read_json, write_text
from fewstep.solver import names
from fewstep.words import VERSION

__all__ = ["Store", "markdown", "report"]

ORDERS = ("order", "weak-order")


@dataclass(frozen=True)
class Store:
    """Keeps finished cells in a folder, one file each, as long as the package's source stays what it was."""

    folder: Path
    fresh: bool = False
    asked: str = ""  # what was asked beyond the plain verdicts: cells of another question are other cells

    def get(self, name: str, process: str) -> list[Verdict] | None:
        """The verdicts of a cell that is done."""
        path = self._path(name, process)
        if self.fresh or not path.exists():
            return None
        try:
            return [_verdict(v) for v in read_json(path, "a folder of cells")["verdicts"]]
        except (ValueError, LookupError, TypeError) as error:
            print(f"made anew, since it cannot be taken up: {error}", file=sys.stderr)
            return None

    def put(self, name: str, process: str, cell: Report) -> None:
        """Keeps a cell; the file is whole or absent."""
        write_text(self._path(name, process), cell.to_json())

    def _path(self, name: str, process: str) -> Path:
        return self.folder / f"{source_digest()}{self.asked}" / f"{name}@{process}.json"


@cache
def source_digest() -> str:
    """A digest of the package's source: what a kept cell was measured with."""
    root, digest = Path(__file__).parent.parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def report(
    subject: str,
    processes: Iterable[str],
    store: Store | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    tick: Callable[[], None] | None = None,
    thorough: bool = False,
    compile: bool = False,
    only: Iterable[str] = (),
) -> Report:
    """The verdicts on a solver, cell by cell; a cell that the store has is not measured again."""
    made = replace(load(subject), **options) if options else subject
    found: list[Verdict] = []
    for process in processes:
        kept = store.get(subject, process) if store else None
        if kept is None:
            cell = solver(made, process, label=subject, thorough=thorough, compile=compile, only=tuple(only))
            if store:
                store.put(subject, process, cell)
            kept = list(cell)
        found += kept
        if tick is not None:
            tick()
    return Report(subject, tuple(found))


def markdown(reports: Sequence[Report]) -> str:
    """The page: order measured and error at ten calls in every cell, or a number that leads to the reason."""
    import torch

    processes = list(dict.fromkeys(p for r in reports for p in r.processes))
    reasons: dict[str, int] = {}
    lines = [("solver", "order", *processes), ("---",) * (len(processes) + 2)]
    for r in reports:
        claims = {v.claimed for v in r if v.name in ORDERS and v.claimed is not None}
        claim = f"{claims.pop():g}" if claims else "none"
        called = ", ".join(f"`{name}`" for name in names(r.solver))
        lines.append((called, claim, *(_cell(r, p, reasons) for p in processes)))
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    notes = "\n".join(f"{number}. {reason}" for reason, number in reasons.items())
    red = [f"- `{r.solver}` on {v.process}, {v.name}: {v.sentence}" for r in reports for v in r.failures]
    counts = {status: sum(v.status == status for r in reports for v in r) for status in ("pass", "fail", "skip")}
    return f"""# Conformance

Every solver on every process, held to what it declares by `fewstep check`. Written by

```
fewstep check --all --markdown docs/conformance.md
```

on {time.strftime("%Y-%m-%d")} with fewstep {VERSION}, torch {torch.__version__}, source {source_digest()}:
{len(reports)} solvers, {len(processes)} processes, {counts["pass"]} promises kept, {counts["fail"]} not,
{counts["skip"]} that do not apply. `fewstep check NAME` prints the verdicts behind a row.

A cell holds the order that was measured and the error at ten network calls, on a mixture of three Gaussians between
log-SNRs -2.5 and 2.5 in float64. The error is the relative root mean square distance to the exact solution of the
probability-flow ODE; where noise is added (w), it is the largest deviation of mean or covariance from the exact law
of Gaussian data, and the order is the weak one. The column "order" is what the solver claims, start and end included.
A number in brackets is the reason, below the table, why a cell or its order does not apply. Orders above the claim are
possible: an error term may vanish on a problem; "exact" is an error below 1e-11.

{table}

## Why a cell does not apply

{notes or "All of them apply."}

## Promises that are not kept

{chr(10).join(red) or "None."}
"""


def _cell(r: Report, process: str, reasons: dict[str, int]) -> str:
    """One cell: order and error, the reason's number, or the names of what failed."""
    found = {v.name: v for v in r if v.process == process}
    if failed := [v.name for v in found.values() if v.status == "fail"]:
        return f"**{', '.join(failed)}**"
    if "kinds" in found:
        return _reason(found["kinds"], reasons)
    order = next((found[name] for name in ORDERS if name in found), None)
    parts = []
    for v, how in ((order, ".1f"), (found.get("error-10"), ".0e")):
        if v is not None:
            number = "exact" if v.measured == math.inf else format(v.measured or 0.0, how)
            parts.append(number if v.measured is not None else _reason(v, reasons))
    return " / ".join(dict.fromkeys(parts)) + (" w" if "weak-order" in found else "")


def _reason(v: Verdict, reasons: dict[str, int]) -> str:
    return f"[{reasons.setdefault(v.sentence, len(reasons) + 1)}]"


def _verdict(data: dict[str, Any]) -> Verdict:
    """A verdict as JSON holds it; numbers that are not finite are words there."""
    if data["status"] not in ("pass", "fail", "skip"):
        raise ValueError(f"got a verdict {data['status']!r}")
    return Verdict(**{**data, **{k: float(data[k]) for k in ("measured", "claimed") if data[k] is not None}})
