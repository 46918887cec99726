"""Problems on which a default is chosen and judged: exact mixtures, the same through networks that err, networks."""

from __future__ import annotations

from .exact import DATA, ERRORS, Data, Exact, Problem
from .sets import CHOOSE, JUDGE, MODELS, Network, find

__all__ = ["CHOOSE", "DATA", "ERRORS", "JUDGE", "MODELS", "Data", "Exact", "Network", "Problem", "find"]
