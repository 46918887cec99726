"""The tests of the tests: solvers broken on purpose, each of which a check must reject."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import oracle
from fewstep.process.operator import cholesky, inverse
from fewstep.solver import DDIM, DDPM, Multistep, RungeKutta
from fewstep.solver.ancestral import posterior
from fewstep.solver.runge_kutta import Method, clock, step
from fewstep.solver.unipc import UniPC
from fewstep.tableau.check import check_moments, check_point_mass
from test_promises import order_error, problem, slope

torch.set_num_threads(1)


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

    def _step(self, w, z, t, s, nodes, new, *, solve):
        latest = nodes[0][1]
        return super()._step(w, z, t, s, [nodes[0], *((u, 2.0 * latest - y) for u, y in nodes[1:])], new, solve=solve)


@dataclass(frozen=True, kw_only=True)
class DroppedCorrection(Multistep):
    """Claims the corrector's order and leaves the corrector out."""

    @property
    def order(self):
        return 3

    @property
    def moments(self):
        return None


class SwappedWeights(RungeKutta):
    """Ralston's weights, exchanged."""

    def write(self, w):
        z = w.start
        for t, s in w.steps:
            z = step(w, Method(((), (2 / 3,)), (3 / 4, 1 / 4), 2), self.form, clock(self.clock), z, t, s)


@pytest.mark.parametrize("process", ["vp", "edm", "flow", "blurring", "cld"])
@pytest.mark.parametrize("broken", [SwappedTimes(), ScaledNoise()], ids=lambda s: type(s).__name__)
def test_point_mass_rejects(broken, process):
    p = problem(process).process
    with pytest.raises(ValueError, match="row 1 .* carries a point mass"):
        check_point_mass(broken.tabulate(p, oracle.grid(p, 7)))


@pytest.mark.parametrize("process", ["vp", "edm", "flow", "blurring", "cld"])
@pytest.mark.parametrize("broken", [SwappedCoefficients(), WrongSign()], ids=lambda s: type(s).__name__)
def test_moments_reject_what_the_point_mass_is_blind_to(broken, process):
    p = problem(process).process
    table = broken.tabulate(p, oracle.grid(p, 7))
    check_point_mass(table)
    with pytest.raises(ValueError, match="row 2 .* misses a prediction of degree 1"):
        check_moments(table)


@pytest.mark.parametrize(
    "broken",
    [
        SwappedTimes(),
        SwappedCoefficients(points=2),
        WrongSign(points=2),
        WrongSignUniPC(points=2, final_ramp=False),
        DroppedCorrection(points=3),
        SwappedWeights(),
    ],
    ids=lambda s: type(s).__name__,
)
def test_order_rejects(broken):
    errors = [order_error(broken, "vp", n) for n in (32, 128)]
    assert slope(errors) < broken.order - 0.25, errors


def test_weak_order_rejects():
    errors = [order_error(ScaledNoise(), "vp", n) for n in (32, 128)]
    assert slope(errors) < 0.75, errors
