"""The only loop: `tabulate` and `sample` for people, `Plan` and `walk` underneath."""

from __future__ import annotations

from fewstep.loop.door import sample, tabulate
from fewstep.loop.graph import Captured
from fewstep.loop.parallel import Parallel
from fewstep.loop.solve import solve
from fewstep.loop.walk import Plan, walk

__all__ = ["Captured", "Parallel", "Plan", "sample", "solve", "tabulate", "walk"]
