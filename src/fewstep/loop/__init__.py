"""The only loop: `tabulate` and `sample` for people, `Plan` and `walk` underneath."""

from __future__ import annotations

from fewstep.loop.parallel import Parallel
from fewstep.loop.plan import Plan
from fewstep.loop.sample import sample, solve
from fewstep.loop.standing import Standing
from fewstep.loop.tabulate import tabulate
from fewstep.loop.walk import Captured, walk

__all__ = ["Captured", "Parallel", "Plan", "Standing", "sample", "solve", "tabulate", "walk"]
