"""The tests of the instrument: solvers broken on purpose, each of which a verdict must reject by name."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

import fewstep as fs
from fewstep.process.operator import cholesky, inverse
from fewstep.solver import DDIM, DDPM, Multistep, Promise, RungeKutta, Solver
from fewstep.solver.ode.runge_kutta import Method, clock, step
from fewstep.solver.ode.unipc import UniPC
from fewstep.solver.sde.ancestral import posterior


class SwappedTimes(DDIM):
    """What remains of the noise is carried from s to t instead of from t to s."""

    def write(self, w):
        z, p = w.start, w.process
        for t, s in w.steps:
            keep = p.R(t) * inverse(p.R(s))
            z = w.row(keep * z + (p.M(s) - keep * p.M(t)) * w.call(z, t), s)


class ScaledNoise(DDPM):
    """The posterior's noise, a tenth too large."""

    def write(self, w):
        z, p = w.start, w.process
        for t, s in w.steps:
            gain, covariance = posterior(p, t, s)
            form = gain * z + (p.M(s) - gain * p.M(t)) * w.call(z, t)
            z = w.row(form + 1.1 * cholesky(covariance) * w.noise(t, s), s)


class AlternatingNoise(DDPM):
    """Every second noise with the other sign: the law is right, the path is another one on every grid."""

    def write(self, w):
        z, p = w.start, w.process
        for k, (t, s) in enumerate(w.steps):
            gain, covariance = posterior(p, t, s)
            form = gain * z + (p.M(s) - gain * p.M(t)) * w.call(z, t)
            z = w.row(form + (-1.0) ** k * cholesky(covariance) * w.noise(t, s), s)


class SwappedCoefficients(Multistep):
    """The weights of the latest two predictions, exchanged."""

    def _step(self, process, t, s, z, nodes):
        if len(nodes) > 1:
            (a, y), (b, x), *rest = nodes
            nodes = [(a, x), (b, y), *rest]
        return super()._step(process, t, s, z, nodes)


class WrongSign(Multistep):
    """Every difference D_j - D_0 with the other sign."""

    def _step(self, process, t, s, z, nodes):
        latest = nodes[0][1]
        return super()._step(process, t, s, z, [nodes[0], *((u, 2.0 * latest - y) for u, y in nodes[1:])])


class WrongSignUniPC(UniPC):
    """UniPC with h of the other sign in its nodes."""

    def _step(self, w, z, t, s, nodes, *, solve):
        now, latest = nodes[0]
        turned = [(u, 2.0 * latest - y if u < now else y) for u, y in nodes[1:]]
        return super()._step(w, z, t, s, [nodes[0], *turned], solve=solve)


@dataclass(frozen=True, kw_only=True)
class DroppedCorrection(Multistep):
    """Claims the corrector's order and leaves the corrector out."""

    @property
    def promise(self):
        return Promise(3)


class SwappedWeights(RungeKutta):
    """Ralston's weights, exchanged."""

    def write(self, w):
        z = w.start
        for t, s in w.steps:
            z = step(w, Method(((), (2 / 3,)), (3 / 4, 1 / 4), 2), self.form, clock(self.clock), z, t, s)


class WrongOrder(DDIM):
    """Claims order 2."""

    @property
    def promise(self):
        return Promise(2)


class WrongCalls(RungeKutta):
    """Says it takes one call a step, and takes two."""

    def calls(self, steps, *, to_zero):
        return steps


class Undecided(DDIM):
    """Writes another table each time it is asked."""

    def write(self, w):
        z, p = w.start, w.process
        for t, s in w.steps:
            d = w.call(z, t)
            keep = p.R(s) * inverse(p.R(t))
            z = w.row(keep * z + (p.M(s) - keep * p.M(t)) * d + 1e-12 * random.random() * d, s)


class Cancelling(DDIM):
    """Adds a large multiple of the prediction and takes it away in the next row: right in float64 only."""

    def write(self, w):
        z, p = w.start, w.process
        for t, s in w.steps:
            d = w.call(z, t)
            keep = p.R(s) * inverse(p.R(t))
            far = w.row(keep * z + (1e6 + (p.M(s) - keep * p.M(t))) * d, s)
            z = w.row(far - 1e6 * d, s)


class ShortRunsOverflow(DDIM):
    """Infinite with a single step."""

    def write(self, w):
        super().write(w)
        if len(w.steps) == 1:
            w.row(1e300 * w.row(1e300 * w.start, w.times[-1]), w.times[-1])


class PastInfinity(Multistep):
    """Claims to start at alpha = 0, where its clock is infinite."""

    @property
    def ends(self):
        return ("alpha=0", "sigma=0")


class NoReason(DDIM):
    """Covers scalar processes alone and does not say why."""

    kinds = ("scalar",)


# solver, process, the verdicts that must be red, and no other
MUTANTS: list[tuple[Solver, str, set[str]]] = [
    *((SwappedTimes(), p, {"point-mass"}) for p in ("edm", "flow", "blurring", "cld")),
    *((ScaledNoise(), p, {"point-mass"}) for p in ("edm", "flow", "blurring", "cld")),
    *((SwappedCoefficients(), p, {"moments"}) for p in ("edm", "flow", "blurring", "cld")),
    *((WrongSign(), p, {"moments"}) for p in ("edm", "flow", "blurring", "cld")),
    (SwappedTimes(), "vp", {"point-mass", "order", "marginals", "ends"}),
    (ScaledNoise(), "vp", {"point-mass", "weak-order", "marginals"}),
    (AlternatingNoise(), "vp", {"strong-order"}),
    (SwappedCoefficients(points=2), "vp", {"moments", "order", "marginals"}),
    (WrongSign(points=2), "vp", {"moments", "order", "marginals"}),
    (WrongSignUniPC(points=2, final_ramp=False), "vp", {"moments", "order", "marginals"}),
    (DroppedCorrection(points=3), "vp", {"order", "marginals"}),
    (SwappedWeights(), "vp", {"order", "marginals"}),
    (WrongOrder(), "vp", {"order", "marginals"}),
    (WrongCalls(), "vp", {"calls", "ends"}),
    (Undecided(), "vp", {"repeat"}),
    (Cancelling(), "vp", {"dtype", "point-mass"}),
    (ShortRunsOverflow(), "vp", {"calls", "finite", "ends"}),
    (PastInfinity(points=2, form="noise", clock="rho"), "flow", {"ends"}),
    (NoReason(), "cld", {"kinds"}),
]


@pytest.mark.parametrize(
    ("broken", "process", "red"), MUTANTS, ids=[f"{type(s).__name__}-{process}" for s, process, _ in MUTANTS]
)
def test_the_instrument_rejects(broken, process, red):
    quick = process != "vp" and red <= {"point-mass", "moments"}
    report = fs.check.solver(broken, process, only=sorted(red | {"point-mass"}) if quick else ())
    assert not report.ok
    assert {v.name for v in report.failures} == red, f"\n{report}"
    assert all(v.sentence for v in report)


def test_a_verdict_names_the_row_that_is_wrong():
    assert "row 1 " in fs.check.solver(SwappedTimes(), "vp", only=["point-mass"])["point-mass"].sentence
    assert "row 2 " in fs.check.solver(WrongSign(), "vp", only=["moments"])["moments"].sentence
