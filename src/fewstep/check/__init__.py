"""The instrument: takes any solver and holds it to what it declares, one verdict a promise, on every process."""

from __future__ import annotations

from fewstep.check.report import Report, Verdict
from fewstep.check.subject import load, solver

__all__ = ["Report", "Verdict", "load", "solver"]
