"""Fitting: a solver made for one model, in minutes.

    teacher (many calls, once) -> start (the nearest published table) -> descent through the loop -> table with a card

- `door`: `fit`;
- `teacher`: the runs and their end states, recorded;
- `starts`: which published solver and grid to begin with;
- `freedom`: what is free, as a vector, and the tables it says (the formulas are in `fewstep.solver.fitted`);
- `objective`: how far end states are from the teacher's;
- `descent`: gradient descent, resumable.

The package is `fitting` because the function is `fit` (importing a submodule sets its name on the package).
"""

from fewstep.fitting.descent import Descent
from fewstep.fitting.door import fit

__all__ = ["Descent", "fit"]
