r"""UniC as a corrector for any predictor: the state is made again with the prediction that was made at it.

After the predictor has made z~_s and the network was called there, the step is taken once more with that call among the
nodes of the interpolant

$$ z_s = P_s P_t^{-1} z_t + B_s\, y(\tilde z_s, s) + \sum_{j=0}^{p-1} B_j y_j, \qquad
   B_j = P_s \int_t^s \ell_j(u(\tau))\, d(P^{-1} Q)_\tau $$

and the predictor goes on from z_s in place of z~_s. The call is the one the next step needs anyway, so the correction
costs none. (P, Q, y) = (R, M, D) in data form and (Psi, R, eps) in noise form, as in `fewstep.solver.ode.exponential`.

References: Zhao et al., UniPC: a unified predictor-corrector framework for fast sampling of diffusion models, 2023,
https://arxiv.org/abs/2302.04867.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fewstep.solver.base import Outer, Promise, Solver
from fewstep.solver.ode.exponential import Multistep
from fewstep.solver.sde.ancestral import DDIM
from fewstep.tableau import Form, Through, Writer

__all__ = ["UniC"]


@dataclass(frozen=True, kw_only=True)
class UniC(Outer):
    r"""UniC-p after a deterministic predictor of one call a step; order p + 1 if the predictor's is p, at equal calls.

    The order is one more than the predictor's, at most points + 1 and, with the predictor's start, at most 3. State
    kept: the predictor's and the last p predictions. The last row is not corrected, as in UniPC.
    `UniC(predictor=Multistep(points=p), points=p)` is `Multistep(points=p, corrector=True)`.
    We differ from the authors' code in the weights: B_j are the integrals themselves (UniPC's varying coefficients;
    B(h) cancels in its solved systems), on any process, where the code sets the first of them to 1/2.

    Args:
        predictor: a solver that adds no noise and makes one row and one call a step.
        points: p, how many predictions behind the new one are used; None takes the predictor's order.
        form: "data" or "noise", what is interpolated by the corrector.
        clock: "log-snr", "t" or "rho", in which it is.
    """

    predictor: Solver = DDIM()
    points: int | None = None
    form: str = "data"
    clock: str = "log-snr"

    field = "predictor"

    def __post_init__(self) -> None:
        label = type(self.predictor).__name__
        if self.predictor.stochastic:
            raise ValueError(f"got the predictor {label}, which adds noise: UniC corrects steps of the ODE, give one")
        if any(self.predictor.calls(n, to_zero=False) != n for n in (1, 2, 10)):
            raise ValueError(f"got the predictor {label}, which takes more than a call a step: give one that takes one")
        if self.points is not None and self.points < 1:
            raise ValueError(f"got points={self.points}: give at least 1, or None for the predictor's order")
        self.as_inside()
        _ = self._rule

    @property
    def _rule(self) -> Multistep:
        points = self.predictor.order if self.points is None else self.points
        return Multistep(points=max(points, 1), form=self.form, clock=self.clock)

    @property
    def promise(self) -> Promise:
        before, rule = self.predictor, self._rule
        return Promise(
            min(before.order + 1, rule.points + 1, 3),
            point_mass=before.point_mass,
            ends=tuple(end for end in before.ends if end in rule.ends),
        )

    def write(self, w: Writer) -> None:
        correcting = _Correcting(w, self._rule)
        self.predictor.write(correcting)
        if correcting.made != len(w.steps):
            raise ValueError(
                f"got the predictor {type(self.predictor).__name__}, which makes {correcting.made} rows in "
                f"{len(w.steps)} steps: give one that makes one a step and has no corrector of its own"
            )


class _Correcting(Through):
    """After a call it makes the corrected row, which later rows read instead."""

    def __init__(self, w: Writer, rule: Multistep) -> None:
        super().__init__(w)
        self.made = 0
        self._rule = rule
        self._nodes: list[tuple[float, Form]] = []
        self._corrected = w.start
        self._instead: dict[Any, Any] = {}

    def row(self, form: Form, t: float) -> Form:
        self.made += 1
        read: Any = ((c, Form.of(self._instead.get(symbol, symbol))) for symbol, c in form)
        return super().row(Form.total(read), t)

    def call(self, z: Form, at: float, *, to: float | None = None) -> Form:
        d = super().call(z, at, to=to)
        y = d if self._rule.form == "data" else self.eps(z)
        if self._nodes:
            nodes = [(at, y), *self._nodes]
            step = self._rule._step(self.process, self._nodes[0][0], at, self._corrected, nodes)
            self._corrected = super().row(step, at)
            (predicted,), (corrected,) = z.terms, self._corrected.terms
            self._instead[predicted] = corrected
        self._nodes = [(at, y), *self._nodes[: self._rule.points - 1]]
        return d
