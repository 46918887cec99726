"""Fitting: a solver made for one model, in minutes.

    teacher (many calls, once) -> start (the nearest published table) -> descent through the loop -> table with a card

The package is `fitting` because the function is `fit` (importing a submodule sets its name on the package).
"""

from fewstep.fitting.descent import Descent
from fewstep.fitting.door import fit

__all__ = ["Descent", "fit"]
