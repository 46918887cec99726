"""Which pictures a bench makes, each with the line that says what was measured."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fewstep.bench.compare import Bench, Measured
from fewstep.bench.figures import trilemma, work_precision
from fewstep.bench.sheet import sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figures"]


def figures(bench: Bench, found: Measured) -> Iterator[tuple[str, Figure]]:
    """(file name, figure): the plots, and a sheet where samples are pictures; none without matplotlib."""
    if find_spec("matplotlib") is None:
        print("no plots: matplotlib is not installed; run pip install 'fewstep[bench]'", file=sys.stderr)
        return
    about = bench.about()
    each = f"{about['images']:,} samples" + (f" x {len(about['seeds'])} seeds" if len(about["seeds"]) > 1 else "")
    title = f"{about['model']}, {each}, {about['features']} features; {about['date']}, {about['machine']}"
    if any("rmse" in row for row in found.rows):
        yield "work-precision", work_precision(found.rows, title)
        if any("frechet" in row and "rmse" in row for row in found.rows):
            yield "trilemma", trilemma(found.rows, title)
        if bench.study.subject.images:
            yield "sheet", sheet(found.made, found.exact, title)
