"""What `fewstep stats` measures on a trained network: statistics and its error, stored beside the weights."""

from __future__ import annotations

from fewstep.solver.statistics import FILE, Statistics, attach
from fewstep.stats.errors import Errors, errors_of
from fewstep.stats.measurement import measure
from fewstep.stats.sanity import check_prediction
from fewstep.stats.trajectory import analytic_grid

__all__ = ["FILE", "Errors", "Statistics", "analytic_grid", "attach", "check_prediction", "errors_of", "measure"]
