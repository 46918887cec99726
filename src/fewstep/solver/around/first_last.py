r"""Other first and last steps for any solver, as options of one wrapper.

- Analytic first step: at the start the state is almost noise alone, so the first call is left out and answered by the
  best prediction for Gaussian data N(0, std^2),

$$ D = (1 + \mathrm{std}^2 M^T \Sigma^{-1} M)^{-1} \mathrm{std}^2 M^T \Sigma^{-1} z, \qquad
   \epsilon = R^{-1} (z - M D) $$

  which is eps = R^-1 z for std = 0. A table with it differs from the solver's in coefficients only.
- Order-preserving start: a multistep solver of p predictions begins with fewer, and its order is that of its beginning.
  Its first p - 2 steps are taken by a singlestep method of one order less instead, whose local error is small enough.
- Lower order at the end: the last step is of first order (or a ramp down to it, where the solver has one), which
  forgives predictions that change fast near data.

The last step to zero or to the state is a matter of the grid: `fewstep.to_zero`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from fewstep.process.operator import inverse, transpose
from fewstep.solver.base import LAST, Outer, Promise, Solver
from fewstep.solver.config import NAMED
from fewstep.solver.ode.dpm import DPMMultistep
from fewstep.solver.ode.exponential import Multistep
from fewstep.solver.ode.singlestep import inside, singlestep
from fewstep.solver.ode.unipc import UniPC
from fewstep.solver.weights import first_order
from fewstep.tableau import Form, Through, Writer
from fewstep.words import among, pick, within

__all__ = ["FinalEuler", "FirstLast"]


@dataclass(frozen=True, kw_only=True)
class FirstLast(Outer):
    r"""A solver with another first or last step.

    Order: 1 with the analytic first step, with an order-preserving start what the solver's predictions allow, up to 4;
    else the solver's, and at most 2 with a lower order at the end. Calls: the solver's, less one for the analytic first
    step, more by p - 2 singlestep steps for the start.

    References: analytic first step: Dockhorn, Vahdat, Kreis, GENIE: higher-order denoising diffusion solvers, 2022,
    https://arxiv.org/abs/2210.05475, who take eps = z on VP, where R is 1 at the start.

    Args:
        solver: the solver, or its name.
        first: "own"; "analytic"; or "order", for `Multistep`, `DPMMultistep` and `UniPC`.
        last: "own" or "lower".
        std: the deviation of the data that the analytic first step assumes, 0 for one point at the origin.
    """

    solver: Solver | str
    first: str = "own"
    last: str = "own"
    std: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.solver, str):
            vars(self).update(solver=pick(NAMED, self.solver, "solver")())
        among(self, first=("own", "analytic", "order"), last=("own", "lower"))
        within(self, std="[0, inf)")
        if self.first == "order" and not isinstance(self._inner, Multistep | DPMMultistep | UniPC):
            raise ValueError(
                f"got first='order' for {type(self._inner).__name__}, which has no start of lower order that could be "
                "replaced: give a Multistep, DPMMultistep or UniPC"
            )
        self.as_inside()

    @property
    def _inner(self) -> Any:
        """The solver, with its own ramp at the end where it has one and a lower order is wanted there."""
        ramps = self.last == "lower" and hasattr(self.solver, "final_ramp")
        return replace(self.solver, final_ramp=True) if ramps else self.solver  # type: ignore[type-var]

    @property
    def _cut(self) -> bool:
        """Whether the last step is taken here."""
        return self.last == "lower" and not hasattr(self.solver, "final_ramp")

    @property
    def _start(self) -> tuple[int, int]:
        """How many steps the start has, and the order of each."""
        if self.first != "order":
            return 0, 1
        s = self._inner
        return max(0, s.points - 2), min(3, s.points - 1 + getattr(s, "corrector", False))

    @property
    def promise(self) -> Promise:
        s = self._inner
        ends = tuple(e for e in s.ends if e == "sigma=0" or not self._start[0])
        if self.first == "analytic":
            return replace(s.promise, order=min(1, s.order), point_mass=(), moments=None, ends=ends)
        preserved = self.first == "order" and getattr(s, "corrected", True)
        order = min(4, s.points + getattr(s, "corrector", False)) if preserved else s.order
        lower = self.last == "lower" or getattr(s, "final_ramp", None)
        return replace(s.promise, order=min(order, 2) if lower else order, ends=ends)

    def calls(self, steps: int, *, to_zero: bool) -> int:
        """A run of one call keeps it."""
        own = self._own_calls(steps, to_zero=to_zero)
        return own - (self.first == "analytic" and own > 1)

    def _own_calls(self, steps: int, *, to_zero: bool) -> int:
        """The calls when the first one is made."""
        (count, order), s = self._start, self._inner
        if self._cut:
            return 1 + (s.calls(steps - 1, to_zero=False) if steps > 1 else 0)
        return s.calls(steps, to_zero=to_zero) + min(count, steps - to_zero) * (order - 1)

    def write(self, w: Writer) -> None:
        if self.first == "analytic" and self.heads:
            raise ValueError(f"got first='analytic' for a solver that reads {', '.join(self.heads)}: give first='own'")
        to_zero = w.process.log_snr(w.times[-1]) == math.inf
        saves = self.first == "analytic" and self._own_calls(len(w.steps), to_zero=to_zero) > 1
        inner = _Analytic(w, self.std) if saves else _Start(w, self._inner, *self._start)
        if self._cut:
            inner.between(w.start, w.times[:-1])
        if inner.steps:
            self._inner.write(inner)
        if self._cut:
            t, s = w.steps[-1]
            form = "noise" if getattr(self._inner, "form", "data") == "noise" else "data"
            z, d = inner.last, inner.call(inner.last, t)
            carry, whole = first_order(w.process, form, t, s)
            w.row(carry * z + whole * (d if form == "data" else inner.eps(z)), s)
        if isinstance(inner, _Analytic) and not inner.used:
            raise ValueError("got first='analytic' for a solver whose first call is not at the start: give first='own'")


@dataclass(frozen=True, kw_only=True)
class FinalEuler(Outer):
    r"""Any solver, with an Euler step on the reverse SDE's drift in the last interval of the grid, without noise.

    $$ z_s = z_t + (s - t) (F_t z_t + G_t G_t^T R_t^{-T} \epsilon) $$

    So score-based samplers remove what noise is left: the whole of G G^T is taken, and not the half of it that the ODE
    has, so the step aims at the mean of what is below. Order at most 1; one call in the last step, the solver's in the
    others. A point mass is not carried exactly: the last step takes the variance of the ODE's step away twice.

    References: Song et al., Score-based generative modeling through SDEs, 2021, https://arxiv.org/abs/2011.13456; the
    last step of gDDIM's samplers (`noise_removal`), https://github.com/qsh-zh/gDDIM, from t_min to 0.

    Args:
        solver: what takes the steps before the last.
    """

    solver: Solver = Multistep(points=3, form="noise", clock="t")

    def __post_init__(self) -> None:
        self.as_inside()

    @property
    def promise(self) -> Promise:
        return Promise(min(self.solver.order, 1), stochastic=self.solver.stochastic, point_mass=(), ends=LAST)

    def calls(self, steps: int, *, to_zero: bool) -> int:  # noqa: ARG002
        return self.solver.calls(steps - 1, to_zero=False) + 1

    def write(self, w: Writer) -> None:
        p, (t, s) = w.process, w.steps[-1]
        self.solver.write(Through(w).between(w.start, w.times[:-1]))
        z = w.last
        w.call(z, t)
        drift = p.F(t) * z + (p.GG(t) * transpose(inverse(p.R(t)))) * w.eps(z)
        w.row(z + (s - t) * drift, s)


class _Analytic(Through):
    """The call at the start is answered by a linear form of the start."""

    def __init__(self, w: Writer, std: float) -> None:
        super().__init__(w)
        p, t = w.process, w.times[0]
        self._data, self._eps = Form({}), inverse(p.R(t)) * self.start
        if std:
            matched = std**2 * (transpose(p.M(t)) * inverse(p.Sigma(t)))
            self._data = (inverse(1.0 + matched * p.M(t)) * matched) * self.start
            self._eps = self._eps - (inverse(p.R(t)) * p.M(t)) * self._data
        self.used = False

    def call(self, z: Form, at: float, *, to: float | None = None) -> Form:
        self.used = self.used or z == self.start
        return self._data if z == self.start else super().call(z, at, to=to)

    def eps(self, z: Form) -> Form:
        return self._eps if z == self.start else super().eps(z)


class _Start(Through):
    """The rows at the first times of the grid are made by singlestep."""

    def __init__(self, w: Writer, solver: Any, count: int, order: int) -> None:
        super().__init__(w)
        self._solver, self._order, self._made = solver, order, 0
        to_zero = w.process.log_snr(w.times[-1]) == math.inf
        self._count = min(count, len(w.steps) - to_zero)

    def row(self, form: Form, t: float) -> Form:
        if self._made < self._count and t == self.times[self._made + 1]:
            clock = getattr(self._solver, "clock", "log-snr")
            times = inside(self, self.times[self._made], t, self._order, clock)
            self._made += 1
            return self.w.row(singlestep(self.w, self.last, times, self._solver.form, "midpoint", clock), t)
        if self._made and t == self.times[self._made]:
            return self.last  # the start's rows have their order without a corrector
        return super().row(form, t)
