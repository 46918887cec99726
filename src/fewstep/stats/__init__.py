"""Statistics of trained networks: measured once (`fewstep stats`), stored beside the weights, read by samplers."""

from __future__ import annotations

from fewstep.stats.measurement import measure
from fewstep.stats.statistics import FILE, Statistics, attach
from fewstep.stats.trajectory import analytic_grid

__all__ = ["FILE", "Statistics", "analytic_grid", "attach", "measure"]
