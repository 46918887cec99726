"""The Gaussian split: what it is in special cases, what it carries exactly, and how it compares on mixtures."""

from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
import oracle
from fewstep.check.exactness import gaussian
from fewstep.process import PROCESSES
from fewstep.process.operator import Block, apply, inverse, magnitude, transpose
from fewstep.solver import GaussianSplit, Multistep
from fewstep.solver.ode.gaussian_split import Widened
from oracle import numbers
from test_equivalences import assert_same

torch.set_num_threads(1)


@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("process", PROCESSES)
def test_without_width_it_is_the_data_form(process, corrector):
    p = oracle.process(process)
    g = oracle.grid(p, 5)
    ours = GaussianSplit(std=0.0, width=math.inf, relax=0.0 if corrector else math.inf, ending=0).tabulate(p, g)
    assert_same(ours, Multistep(points=3, corrector=corrector).tabulate(p, g))


def test_with_a_wide_gaussian_one_step_tends_to_an_euler_step_of_the_score():
    """With std -> infinity the step from t to s is the exact ODE for a score that is constant up to its own decay."""
    p = fs.EDM()
    g = torch.tensor([2.0, 1.0], dtype=torch.float64)
    (row,) = numbers(GaussianSplit(points=1, std=1e4, ending=0).tabulate(p, g))[-1:]
    assert row["z", 0] + row["y", 0] == pytest.approx(1.0, abs=1e-6)
    assert row["z", 0] == pytest.approx(1 - (4 - 1) / 4 / 2, abs=1e-6)  # z - (t^2 - s^2)/2 * (z - D)/t^2


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("steps", [1, 3])
def test_data_of_its_own_width_is_carried_exactly(process, steps):
    p, std = oracle.process(process), 0.7
    table = GaussianSplit(std=std, ending=0).tabulate(p, oracle.grid(p, steps))
    for row, (m, r, noises) in zip(table.rows, gaussian(table, std), strict=True):
        exact = p.Sigma(row.t) + std**2 * (p.M(row.t) * transpose(p.M(row.t)))
        assert magnitude(m - p.M(row.t)) < 1e-12
        assert magnitude(r * transpose(r) - exact) < 1e-12
        assert not noises


def test_data_of_another_width_is_not():
    p = fs.VP()
    table = GaussianSplit(std=0.7, ending=0).tabulate(p, oracle.grid(p, 3))
    m, r, _ = gaussian(table, 0.3)[-1]
    assert abs(r * r - p.Sigma(table.rows[-1].t) - 0.09 * p.M(table.rows[-1].t) ** 2) > 1e-4


@pytest.mark.parametrize("process", ["vp", "blurring", "cld"])
def test_the_mean_behind_a_prediction(process):
    """A Gaussian's own mean comes back from its data prediction at any state."""
    p, std, t = oracle.process(process), 0.6, 0.4
    shape = p.size if isinstance(p, fs.Blurring) else (3,)
    g = torch.Generator().manual_seed(0)
    mean = torch.randn(shape, dtype=torch.float64, generator=g)
    z = torch.randn(4, *p.state_shape(tuple(shape)), dtype=torch.float64, generator=g)
    d = p.coordinates(fs.Gaussian(p, mean, std)(z, t))
    a, b = Widened(p, std).mean(t)
    assert torch.allclose(apply(a, d) - apply(b, z), p.coordinates(mean).expand_as(d), atol=1e-12)


def test_the_wider_root_of_blocks_solves_its_equation():
    """R~' = (F + 1/2 G G^T Sigma~^-1) R~: the carry from t to s against small steps of the equation."""
    p = fs.CLD()
    g = torch.tensor([0.4, 0.2], dtype=torch.float64)
    wide, t = Widened(p, 0.5), 0.4
    made = numbers(GaussianSplit(points=1, std=0.5, ending=0).tabulate(p, g))[-1]
    r = torch.eye(2, dtype=torch.float64)
    n = 300
    h = -0.2 / n
    pull = lambda u: (p.F(u) + 0.5 * (p.GG(u) * inverse(wide.Sigma(u)))).values  # noqa: E731
    for _ in range(n):
        middle = r + h / 2 * pull(t) @ r
        r, t = r + h * pull(t + h / 2) @ middle, t + h
    a, b = wide.mean(0.4)
    whole = p.M(0.2) - Block(r) * p.M(0.4)
    assert magnitude(made["z", 0] - (Block(r) - whole * b)) < 1e-4
    assert magnitude(made["y", 0] - whole * a) < 1e-4


@pytest.mark.parametrize("process", PROCESSES)
def test_the_last_step_ends_in_the_prediction(process):
    """With an ending the last row is DDIM's step from the row before it, the next to last one of two points."""
    p = oracle.process(process)
    g = oracle.grid(p, 6)
    *_, before, last = GaussianSplit().tabulate(p, g).rows
    expected = Multistep(points=1).tabulate(p, g[-2:]).rows[-1]
    for (_, found), (_, same) in zip(last.form, expected.form, strict=True):
        assert magnitude(found - same) < 1e-12
    assert len([s for s, _ in before.form if s[0] == "y"]) > 1


def test_the_corrector_yields_at_few_steps():
    """A corrected row is (1 - theta) of the predicted one and theta of the corrector's, which does not read it."""
    p = fs.VP()
    for n in (3, 5, 10, 40):
        row = GaussianSplit(relax=5.0, std=0.0).tabulate(p, oracle.grid(p, n)).rows[2]
        assert row.form.terms["z", 1] == pytest.approx(1 - 1 / (1 + (5 / n) ** 3), rel=1e-9)


@pytest.mark.parametrize(("process", "grid", "ending"), [("flow", "uniform", 2), ("edm", "karras", 0)])
def test_singular_ends(process, grid, ending):
    """On karras the last step into sigma = 0 does not shrink with their number: one of first order keeps its miss."""
    p = fs.Flow() if process == "flow" else fs.EDM(sigma_min=0.0)
    mixture = oracle.denoiser(p)
    x = p.prior(torch.randn(32, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    solver = GaussianSplit(ending=ending)
    ends = [fs.sample(mixture, p, solver=solver, grid=grid, steps=n, x=x) for n in (20, 40, 80)]
    assert float((ends[2] - ends[1]).norm()) < 0.5 * float((ends[1] - ends[0]).norm()) < 0.05


@pytest.mark.parametrize(("process", "plain", "corrected"), [("vp", 0.8, 0.3), ("cld", 1.2, 0.1)])
def test_ten_calls_on_a_mixture_of_sharp_parts(process, plain, corrected):
    """Shares of the least that the usual solvers miss, each on its grid: on CLD the plain one is level with them."""
    p = oracle.process(process)
    g = torch.Generator().manual_seed(0)
    means = 1.2 * torch.randn(5, 3, dtype=torch.float64, generator=g)
    mixture = fs.Mixture(p, means, 0.1 + 0.3 * torch.rand(5, dtype=torch.float64, generator=g))
    x = p.prior(torch.randn(64, *p.state_shape((3,)), dtype=torch.float64, generator=g))
    exact = fs.sample(mixture, p, solver="multistep-pc-3", grid="logistic", steps=120, x=x, final="state")

    def miss(solver: str, grid: str) -> float:
        z = fs.sample(mixture, p, solver=solver, grid=grid, steps=10, x=x, final="state")
        return float((z - exact).flatten(1).norm(dim=1).median())

    others = [("deis-tab-2", "power"), ("multistep-3", "log-snr"), ("deis-tab-3", "logistic")]
    least = min(miss(*pair) for pair in others)
    assert miss("gaussian-split-pc", "logistic") < corrected * least
    assert miss("gaussian-split", "logistic") < plain * least


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 0}, "got points=0: give a number of at least 1"),
        ({"std": -1.0}, "got std=-1.0: give a finite number"),
        ({"std": math.inf}, "got std=inf"),
        ({"width": 0.0}, "got width=0.0"),
        ({"relax": -1.0}, "got relax=-1.0: give a number of at least 0"),
        ({"ending": -1}, "got ending=-1: give a number of at least 0"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GaussianSplit(**options)


@pytest.mark.parametrize(("options", "ends"), [
    ({}, {"alpha=0", "sigma=0"}),
    ({"width": math.inf}, {"sigma=0"}),
    ({"width": math.inf, "std": 0.0}, {"alpha=0", "sigma=0"}),
    ({"width": math.inf, "points": 1, "relax": math.inf}, {"alpha=0", "sigma=0"}),
    ({"width": math.inf, "points": 1}, {"sigma=0"}),
    ({"std": 0.0, "ending": 0}, {"alpha=0"}),
    ({"width": math.inf, "ending": 0}, {"sigma=0"}),
])  # fmt: skip
def test_the_ends_it_declares_are_those_it_reaches(options, ends):
    solver = GaussianSplit(**options)
    assert set(solver.ends) == ends
    for end, times in (("alpha=0", [1.0, 0.7, 0.5, 0.3, 0.1]), ("sigma=0", [0.9, 0.7, 0.5, 0.3, 0.0])):
        grid = torch.tensor(times, dtype=torch.float64)
        if end in ends:
            assert all(
                magnitude(c) < math.inf for row in fs.tabulate(solver, fs.Flow(), grid=grid).rows for _, c in row.form
            )
        else:
            with pytest.raises(ValueError, match="for GaussianSplit, which is singular there"):
                fs.tabulate(solver, fs.Flow(), grid=grid)
