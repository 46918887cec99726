"""The two tables of the golden tests: families that do not exist here yet, and known faults of references."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FAULTS", "NOT_YET", "Fault"]

NOT_YET = {
    "clipped predictions": "prediction hooks (clipping) are not built yet",
}


@dataclass(frozen=True)
class Fault:
    """What a reference does wrong, and what is asserted instead of agreement between ours and its number.

    `asks` is one of
    - "finite": ours has the right shape and finite numbers; their values are compared with nothing;
    - "agrees": ours agrees as everywhere else, after the repair that `what` names;
    - "sums": with the reference's own sums our solver agrees with the entry, as everywhere else; ours agrees with the
      limit of such sums; and ours is nearer to the entry with midpoint sums than to the one with left sums.

    Nothing here bounds how large a reference's own error is: that depends on the problem. `kinks` (with "sums"): a
    node on a kink may take either slope, so the sums are held to what that choice changes where it changes anything,
    and ours, which does not resolve kinks, must be nearer to the limit than the entry with left sums. `weights` (with
    "sums"): how wrong the reference's weights are in the step to t_min, relative, and in a step to s by (t_min / s)^2 +
    1/1000 of it; the sums are held to ten times what that does to them.
    """

    what: str
    asks: str
    kinks: bool = False
    weights: float = 0.0


LEFT, MIDDLE = "left Riemann sums of 10000 nodes", "midpoint sums of 10000 nodes"
# Near t_min its 2x2 matrices are 1.4e-6 off, as the stored weights of the last step show (test_cld_weights)
TABULATED = 2e-6

FAULTS = {
    "not finite": Fault("a division 0/0: a repeated last sigma, or UniPC at sigma = 0 with bh1 or noise", "finite"),
    "sign in sde-dpmsolver++ of order 3": Fault(
        "its phi_3 has -1/2 for 1/2, which makes it of order 1; compared with our solver given that sign", "agrees"
    ),
    "repeated last sigma": Fault("the last step has no length; compared with our run without it", "agrees"),
    "float32 right-hand side": Fault(
        "its network and drift run in float32 inside a float64 integrator; our float64 run is finite", "finite"
    ),
    "a step lands beside the next time": Fault(
        "it goes to t - 1000//n whatever the spacing; taken step by step", "agrees"
    ),
    "vary_coeff from order 2 on": Fault(
        "its coefficients do not integrate a line; our exact weights must give finite numbers, and their values are "
        "compared at order 1 only",
        "finite",
    ),
    "quadrature official": Fault(LEFT, "sums"),
    "quadrature midpoint": Fault(MIDDLE, "sums"),
    "quadrature official through a table": Fault(f"{LEFT} over 1000 kinks", "sums", kinks=True),
    "quadrature midpoint through a table": Fault(f"{MIDDLE} over 1000 kinks", "sums", kinks=True),
    "quadrature official of 2x2 matrices": Fault(f"{LEFT} (order0: 1000)", "sums", weights=TABULATED),
    "quadrature midpoint of 2x2 matrices": Fault(MIDDLE, "sums", weights=TABULATED),
}
