r"""Solvers for guided sampling that take model and guidance apart, around any inner solver.

With D = D_base + delta the ODE's field is a sum, and guidance alone moves a state, frozen over a step, by

$$ z_s \mathrel{+}= -(R_s - \Psi_s \Psi_t^{-1} R_t)\, R^{-1} M\, \delta $$

(the noise form's step with the noise that belongs to delta). Splitting alternates it with steps of the inner solver on
D_base, whose history then holds the model's smooth predictions only. CFG++ keeps the model's noise. Guidance on the
reverse mean moves a stochastic step by its own covariance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fewstep.process.operator import Coefficient, inverse, transpose
from fewstep.solver.base import Outer, Promise, Solver
from fewstep.solver.ode.pndm import PNDM
from fewstep.solver.sde.ancestral import DDIM, DDPM
from fewstep.solver.weights import first_order
from fewstep.tableau import Form, Through, Writer

__all__ = ["CFGPlusPlus", "ReverseMean", "Splitting"]


@dataclass(frozen=True, kw_only=True)
class _Around(Outer):
    """What all share: an inner solver that runs on the head `base`, with something done to each state it makes."""

    inner: Solver = dataclasses.field(default_factory=DDIM)

    label: ClassVar[str] = ""  # of those that want an inner solver of one row a step
    field = "inner"

    def __post_init__(self) -> None:
        if self.inner.heads:
            raise ValueError(f"got {self.inner!r} as inner solver: give one that reads the data prediction alone")
        if self.label and not self.inner.one_row:
            raise ValueError(f"got {self.inner!r} inside {self.label}: give a solver that makes one row a step")

    def _passed_on(self, order: int, ends: tuple[str, ...] | None = None) -> Promise:
        """The inner solver's promise, but for a point mass, which guidance moves."""
        inner = self.inner.promise
        ends = inner.ends if ends is None else ends
        return replace(inner, order=order, point_mass=(), moments=None, heads=("base", "guidance"), ends=ends)


@dataclass(frozen=True, kw_only=True)
class Splitting(_Around):
    r"""LTSP and STSP: steps of the model by the inner solver, steps of the guidance between them.

    Lie-Trotter (`strang=False`): the model's step, then the guidance's at its end, by Euler. Strang: half a guidance
    step at t, the model's step, half a guidance step at s. Calls: the inner solver's on `base`, and one (Lie-Trotter)
    or two (Strang) a step on `guidance`. An inner solver that makes one row a step keeps its history across guidance;
    others are run a step at a time.

    Order 1; Strang's is 2 around a solver of one step and of order 2. Around a multistep solver it is 1, because the
    predictions it remembers have moved with the guidance too (measured; the paper's STSP4 is of this kind). Where we
    differ: the two half steps that meet at a time are one midpoint step there, of the same two calls; published are two
    Euler steps (`midpoint=False`), whose order is 1.

    References: Wizadwongsa, Suwajanakorn, Accelerating guided diffusion sampling with splitting numerical methods,
    2023, Algorithms 1 and 2, https://arxiv.org/abs/2301.11558.

    Args:
        inner: any solver of tables; the paper's is PLMS4, near to `ipndm-4`.
        strang: Strang's splitting instead of Lie and Trotter's.
        midpoint: second-order guidance steps (Strang only).
    """

    inner: Solver = dataclasses.field(default_factory=lambda: PNDM(points=4, start="ramp"))
    strang: bool = True
    midpoint: bool = True

    @property
    def promise(self) -> Promise:
        """A guidance step divides by R where it ends."""
        second = self.strang and self.midpoint and not self.inner.one_row
        return self._passed_on(min(self.inner.order, 2 if second else 1), ends=())

    def calls(self, steps: int, *, to_zero: bool) -> int:
        guidance = (2 if self.strang else 1) * steps
        if self.inner.one_row:
            return self.inner.calls(steps, to_zero=to_zero) + guidance
        each, last = (self.inner.calls(1, to_zero=end) for end in (False, to_zero))
        return (steps - 1) * each + last + guidance

    def write(self, w: Writer) -> None:
        p = w.process
        before, after = {s: t for t, s in w.steps}, dict(w.steps)

        def reach(at: float, t: float, s: float) -> Coefficient:
            """What guidance at time `at`, frozen over the step from t to s, multiplies delta with."""
            _, push = first_order(p, "noise", t, s)
            return -1.0 * (p.transition(at, s) * push * inverse(p.R(at)) * p.M(at))

        def moved(z: Form, seen: Form, at: float, far: Coefficient) -> Form:
            w.call(seen, at)
            return w.row(z + far * w.head(seen, "guidance"), at)

        def guided(z: Form, t: float) -> Form:
            """The guidance between the model's step that ended at t and the one that begins there."""
            if not self.strang:
                return moved(z, z, t, reach(t, before[t], t)) if t in before else z
            halves = [0.5 * reach(t, before[t], t)] if t in before else []
            halves += [0.5 * reach(t, t, after[t])] if t in after else []
            if len(halves) == 2 and self.midpoint:
                whole = halves[0] + halves[1]
                return moved(z, moved(z, z, t, 0.5 * whole), t, whole)
            for half in halves:
                z = moved(z, z, t, half)
            return z

        run(self.inner, w, guided)


@dataclass(frozen=True, kw_only=True)
class CFGPlusPlus(_Around):
    r"""CFG++: z_s = (the inner solver's step on `base`) + M_s delta, so that only the clean part is guided.

    With DDIM inside this is z_s = M_s D_guided + R_s eps_base. One call a step, which evaluates both heads; an inner
    solver that makes one row a step. Guidance scales are small here, in [0, 1] for the paper; as delta is added once a
    step, whatever its length, there is no limit of many steps and no order.

    References: Chung, Kim, Park, Nam, Ye, CFG++: manifold-constrained classifier free guidance for diffusion models,
    2024, Algorithm 2, https://arxiv.org/abs/2406.08070.
    """

    label = "CFG++"

    @property
    def promise(self) -> Promise:
        return self._passed_on(0)

    def write(self, w: Writer) -> None:
        class Shifted(_Base):
            def row(self, form: Form, t: float) -> Form:
                return super().row(form + self.process.M(t) * self.head(self.called[0], "guidance"), t)

        self.inner.write(Shifted(w))


@dataclass(frozen=True, kw_only=True)
class ReverseMean(_Around):
    r"""Guidance as a step in the state: z_s = (the inner solver's step on `base`) + C C^T g, or + step g.

    With C C^T, the covariance of the noise in the step, it is classifier guidance on the reverse mean;
    g = Sigma_t^{-1} M_t delta is the gradient that delta, the head `guidance`, came from, so it takes any guidance.
    Guidance on the noise is the same denoiser without this solver: the two agree in the limit of many steps and differ
    by a step's square; a step without noise, as one that ends in the prediction, has no guidance here. With a number it
    is a step of gradient ascent of that size, after any solver's: published DPS around `DDPM`, of
    `fewstep.dps(..., normalised=True)`.

    References: Dhariwal, Nichol, Diffusion models beat GANs on image synthesis, 2021,
    https://arxiv.org/abs/2105.05233, with the gradient at z_t, as its code has it, and not at the mean; Chung et al.,
    2022, https://arxiv.org/abs/2209.14687.

    Args:
        inner: a solver that makes one row a step; a stochastic one where no step is given.
        step: the size of a step in the state, above 0, in units of the state's variance; None is C C^T.
    """

    inner: Solver = dataclasses.field(default_factory=DDPM)
    step: float | None = None

    label = "ReverseMean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step is None and not self.inner.stochastic:
            raise ValueError(
                f"got {self.inner!r} inside ReverseMean, whose steps have no noise: give a stochastic one, or a step"
            )
        if self.step is not None and not self.step > 0:
            raise ValueError(f"got step={self.step}: give one above 0, or None for the covariance of the solver's own")

    @property
    def promise(self) -> Promise:
        return self._passed_on(0 if self.step is not None else min(1, self.inner.order))

    def write(self, w: Writer) -> None:
        step = self.step

        class Moved(_Base):
            def row(self, form: Form, t: float) -> Form:
                z, at = self.called
                far = [c * transpose(c) for symbol, c in form if symbol[0] == "xi"] if step is None else [step]
                for each in far:
                    gradient = each * (inverse(self.process.Sigma(at)) * self.process.M(at))
                    form = form + gradient * self.head(z, "guidance")
                return super().row(form, t)

        self.inner.write(Moved(w))


class _Base(Through):
    """Calls return the head `base`."""

    def __init__(self, w: Writer) -> None:
        super().__init__(w)
        self._at: dict[Any, float] = {}
        self.called = w.start, w.times[0]  # the latest call's state and time

    def call(self, z: Form, at: float, *, to: float | None = None) -> Form:
        super().call(z, at, to=to)
        self.called, self._at[next(iter(z.terms))] = (z, at), at
        return self.head(z, "base")

    def eps(self, z: Form) -> Form:
        """R^-1 (z - M D)."""
        at = self._at[next(iter(z.terms))]
        back = inverse(self.process.R(at))
        return back * z - (back * self.process.M(at)) * self.head(z, "base")


class _Spliced(_Base):
    """Something is done to every state made at a time of the grid."""

    def __init__(self, w: Writer, then: Callable[[Form, float], Form]) -> None:
        super().__init__(w)
        self._then = then
        self.start = then(w.start, w.times[0])

    def row(self, form: Form, t: float) -> Form:
        return self._then(super().row(form, t), t)


def run(inner: Solver, w: Writer, then: Callable[[Form, float], Form]) -> None:
    """Writes the inner solver's steps with `then` done to the start and to each state at a time of the grid."""
    if inner.one_row:
        inner.write(_Spliced(w, then))
        return
    z = then(w.start, w.times[0])
    for t, s in w.steps:
        inner.write(_Base(w).between(z, [t, s]))
        z = then(w.last, s)
