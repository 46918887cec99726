"""Solvers against each other on any model, at equal network calls: speed, quality, coverage, distance to the ODE's end.

    from fewstep import bench

    ready = bench.prepare(bench.Asked(solvers=["default", "ddim"], calls=[5, 10], images=256))
    print(bench.table_text(ready.measure().rows))

`fewstep bench` is the same with plots and files.
"""

from __future__ import annotations

from fewstep.bench.compare import Asked, Bench, Measured, check_words, prepare
from fewstep.bench.pictures import figures
from fewstep.bench.report import csv_text, table_text
from fewstep.bench.subject import Subject

__all__ = ["Asked", "Bench", "Measured", "Subject", "check_words", "csv_text", "figures", "prepare",
           "table_text"]  # fmt: skip
