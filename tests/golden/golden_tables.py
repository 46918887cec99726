"""The two tables of the golden tests: families that do not exist here yet, and known faults of references."""

from __future__ import annotations

import math
from dataclasses import dataclass

from golden_case import EXACT

__all__ = ["FAULTS", "NOT_YET", "Fault"]

NOT_YET = {
    "DPM-Solver singlestep of order 2 and 3": "the singlestep family is not built yet",
    "DPM-Solver-v3": "tables that read model statistics (v3) are not built yet",
    "SDE-DPM-Solver": "stochastic exponential solvers beyond order 1 in data form are not built yet",
    "PNDM, iPNDM and FON": "pseudo-numerical methods are not built yet",
    "adaptive steps": "grids that depend on the state are not built yet, and the reference couples the batch",
    "ancestral steps of order 2": "two-stage ancestral steps are not built yet",
    "dpm_2 (midpoint in log sigma of a step in sigma)": "its stage lies off the Runge-Kutta node: a family of its own",
    "RK45": "an adaptive black-box integrator, compared through the exact solution only",
    "L-DEIS (another root of Sigma)": "an ablation of gDDIM, with a root of Sigma that its paper rejects",
    "gDDIM's Euler step at the end": "gDDIM's extra Euler step after the last time is not built",
    "Euler-Maruyama": "the ablation of gDDIM's order 0 by Euler-Maruyama is not built",
    "clipped predictions": "prediction hooks (clipping) are not built yet",
}


@dataclass(frozen=True)
class Fault:
    """What a reference does wrong, and what is asked of ours instead.

    `tolerance` bounds the reference's own error, relative; None: its result is not finite, and ours must be. With
    `emulated`, our solver with the reference's quadrature must agree to that; with `nearer`, ours must be nearer to
    the same entry with a better quadrature than to this one.
    """

    what: str
    tolerance: float | None
    emulated: float | None = None
    nearer: bool = False


FAULTS = {
    "not finite": Fault("a division 0/0: a repeated last sigma, or UniPC at sigma = 0 with bh1 or noise", None),
    "repeated last sigma": Fault("the last step has no length; compared with our run without it", EXACT),
    "a step lands beside the next time": Fault(
        "it goes to t - 1000//n whatever the spacing; taken step by step", EXACT
    ),
    "vary_coeff from order 2 on": Fault("its coefficients do not integrate a line; ours must be finite", math.inf),
    "quadrature official": Fault("left Riemann sums of 10000 nodes", 0.5, EXACT, nearer=True),
    "quadrature midpoint": Fault("midpoint sums of 10000 nodes", 2e-5, EXACT),
    # a node that falls on a kink may take either slope
    "quadrature official through a table": Fault("left Riemann sums over 1000 kinks", 0.5, 1e-4, nearer=True),
    "quadrature midpoint through a table": Fault("midpoint sums over 1000 kinks", 2e-2, 1e-4),
    # not emulated: 10000 roots a step take minutes; the weights themselves are compared with the stored arrays
    "quadrature official of 2x2 matrices": Fault("left Riemann sums of 10000 or 1000 nodes", 1.0, nearer=True),
    "quadrature midpoint of 2x2 matrices": Fault("midpoint sums of 10000 nodes", 2e-4),
}
