"""The two tables of the golden tests: families that do not exist here yet, and known faults of references."""

from __future__ import annotations

from dataclasses import dataclass

from golden_case import EXACT

__all__ = ["FAULTS", "NOT_YET", "Fault"]

NOT_YET = {
    "DPM-Solver singlestep of order 2 and 3": "the singlestep family is not built yet",
    "DPM-Solver-v3": "tables that read model statistics (v3) are not built yet",
    "UniPC vary_coeff": "not one of the paper's two B(h); the reference is wrong from order 2 on",
    "SDE-DPM-Solver": "stochastic exponential solvers of order 2 and 3, and the noise form of order 1, are not built yet",
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

    `tolerance` is the reference's own error, relative; None: its result is not finite, and ours must be. With
    `nearer`, ours must also be nearer to the same entry with a better quadrature than to this one.
    """

    what: str
    tolerance: float | None
    nearer: bool = False


FAULTS = {
    "not finite": Fault("a division 0/0: a repeated last sigma, or UniPC at sigma = 0 with bh1 or noise", None),
    "repeated last sigma": Fault("the last step has no length; compared with our run without it", EXACT),
    "a step lands beside the next time": Fault(
        "it goes to t - 1000//n whatever the spacing; compared step by step", EXACT
    ),
    "quadrature official": Fault("left Riemann sums of 10000 nodes", 1e-2, nearer=True),
    "quadrature midpoint": Fault("midpoint sums of 10000 nodes", 1e-6),
    "quadrature official through a table": Fault("left Riemann sums over 1000 kinks", 1e-2, nearer=True),
    "quadrature midpoint through a table": Fault("midpoint sums over 1000 kinks", 1e-3),
    "quadrature official of 2x2 matrices": Fault("left Riemann sums of 10000 nodes, 1000 in order0", 0.2, nearer=True),
    "quadrature midpoint of 2x2 matrices": Fault("midpoint sums of 10000 nodes", 1e-5),
}
