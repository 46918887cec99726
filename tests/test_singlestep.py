"""Singlestep solvers beside their published formulas, Runge-Kutta methods and the samplers they are known as."""

from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
from fewstep.check.exact import grid, mixture, problem, small, starts
from fewstep.process import PROCESSES
from fewstep.process.operator import magnitude
from fewstep.solver import DDIM, HeunPP, RungeKutta, Singlestep
from fewstep.tableau import Tableau
from oracle import numbers

torch.set_num_threads(1)

SCALAR = [name for name, make in PROCESSES.items() if make.kind == "scalar"]


def assert_same(a: Tableau, b: Tableau, tolerance: float = 1e-11) -> None:
    left, right = numbers(a), numbers(b)
    assert len(left) == len(right)
    for x, y in zip(left, right, strict=True):
        for key in x.keys() | y.keys():
            assert magnitude(x.get(key, 0.0) - y.get(key, 0.0)) < tolerance * (1 + magnitude(x.get(key, 0.0))), key


def weights_of(table: Tableau, row: int) -> dict[int, float]:
    """The weights of a row's predictions, by the row they were made at."""
    return {s[1]: c for s, c in table.rows[row].form if s[0] == "y"}


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("form", ["data", "noise"])
def test_one_point_is_ddim(process, form):
    p = small(process)
    for stages in ("inside", "grid"):
        one = Singlestep(points=1, form=form, stages=stages)
        assert_same(DDIM().tabulate(p, grid(p, 5)), one.tabulate(p, grid(p, 5)))


@pytest.mark.parametrize("process", SCALAR)
@pytest.mark.parametrize(("points", "method"), [(1, "euler"), (2, "midpoint"), (3, "heun3")])
def test_in_rho_they_are_runge_kutta_methods(process, points, method):
    """Where the step of a constant noise prediction is linear in the clock, the weights are a Butcher tableau's."""
    p = small(process)
    ours = Singlestep(points=points, form="noise", clock="rho")
    theirs = RungeKutta(method=method, form="noise", clock="rho")
    assert_same(ours.tabulate(p, grid(p, 4)), theirs.tabulate(p, grid(p, 4)), 1e-9)


@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize("type", ["midpoint", "heun"])
@pytest.mark.parametrize("points", [2, 3])
def test_weights_are_the_published_phi_functions(form, type, points):
    """D_1 = (y_1 - y_0)/r_1 and D_2 as in the authors' code, with the r of an uneven grid."""
    p = fs.VP()
    times = grid(p, points)
    table = Singlestep(points=points, form=form, type=type, stages="grid", orders=(points,)).tabulate(p, times)
    lam = p.log_snr(times)
    h = float(lam[-1] - lam[0])
    r = [float(x - lam[0]) / h for x in lam[1:-1]]
    s = float(times[-1])
    if form == "data":
        scale, one = p.alpha(s), -math.expm1(-h)
        two, three = 1 - one / h, (one / h - 1) / h + 0.5
    else:
        scale, one = -p.sigma(s), math.expm1(h)
        two, three = one / h - 1, (one / h - 1) / h - 0.5
    if points == 2:
        slope = (one / 2 if type == "midpoint" else two) / r[0]
        wanted = {0: one - slope, 1: slope}
    elif type == "midpoint":
        wanted = {0: one - two / r[1], 2: two / r[1]}
    else:
        gap = r[1] - r[0]
        y1 = two * r[1] / gap / r[0] - 2 * three / gap / r[0]
        y2 = -two * r[0] / gap / r[1] + 2 * three / gap / r[1]
        wanted = {0: one - y1 - y2, 1: y1, 2: y2}
    found = weights_of(table, -1)
    assert found.keys() == wanted.keys()
    for key, weight in wanted.items():
        assert found[key] == pytest.approx(scale * weight, rel=1e-9), key


def test_res_weighs_by_phi_2():
    """b_1 = phi_1 - phi_2/c_2 and b_2 = phi_2/c_2 at c_2 = 1/2, phi of -h; 2S takes phi_1 alone."""
    p = fs.EDM()
    times = grid(p, 1)
    h = float(p.log_snr(times).diff())
    first = -math.expm1(-h) / h
    second = (1 - first) / h
    found = weights_of(fs.tabulate("res-2s", p, grid=times), -1)
    assert found == {0: pytest.approx(h * (first - 2 * second)), 1: pytest.approx(2 * h * second)}
    assert weights_of(fs.tabulate("dpmpp-2s", p, grid=times), -1) == {1: pytest.approx(h * first)}


def test_dpm_2_is_eulers_step_with_the_slope_at_the_geometric_mean():
    p = fs.EDM()
    table = fs.tabulate("dpm-2", p, grid=torch.tensor([9.0, 4.0, 0.0], dtype=torch.float64))
    assert [row.t for row in table.rows] == pytest.approx([9.0, 6.0, 4.0, 0.0])
    assert weights_of(table, 1) == {0: pytest.approx(6.0 - 9.0)}
    assert weights_of(table, 2) == {1: pytest.approx(4.0 - 9.0)}
    assert weights_of(table, 3) == {2: pytest.approx(0.0 - 4.0)}
    assert table.nfe == 3


@pytest.mark.parametrize(
    ("calls", "plan"),
    [(1, [1]), (2, [2]), (3, [2, 1]), (4, [3, 1]), (5, [3, 2]), (6, [3, 2, 1]), (7, [3, 3, 1]), (9, [3, 3, 2, 1])],
)
def test_fast_meets_every_number_of_calls(calls, plan):
    p = fs.VP()
    table = fs.tabulate("dpm-solver-fast", p, nfe=calls, final="state")
    assert table.nfe == calls
    assert [row.t for row in table.rows] == table.grid.tolist()
    starts_at = [max(s[1] for s, _ in row.form if s[0] == "z") for row in table.rows[1:]]
    ends = [k for k in range(1, calls + 1) if k == calls or starts_at[k] == k]
    assert [b - a for a, b in zip([0, *ends], ends, strict=False)] == plan


def test_a_step_to_zero_takes_one_call():
    zero = torch.tensor([1.0, 0.5, 0.2, 0.1, 0.05, 0.0], dtype=torch.float64)
    table = Singlestep(points=3, stages="grid").tabulate(fs.EDM(), zero)  # 3, 2 becomes 3, 1, 1
    assert table.nfe == 5
    assert weights_of(table, -1).keys() == {4}
    assert [s for s, _ in table.rows[-1].form] == [("y", 4, "x0")]
    assert Singlestep(points=3).calls(5, to_zero=True) == 13 == Singlestep(points=3).tabulate(fs.EDM(), zero).nfe


def test_in_time_the_midpoint_starts_at_alpha_zero():
    """In data form and time's own clock the node of a first step from pure noise is finite, and the order is kept."""
    p = fs.Flow()
    s = Singlestep(points=2, clock="t")
    z = starts(p, 1.0)
    run = lambda solver, n: fs.sample(  # noqa: E731
        mixture(p), p, solver=solver, grid=torch.linspace(1, 0.05, n + 1, dtype=torch.float64), x=z
    )
    exact = run(RungeKutta(method="rk4", form="state", clock="t"), 400)
    few, many = (float((run(s, n) - exact).norm()) for n in (16, 64))
    assert math.log2(few / many) / 2 > 1.75
    with pytest.raises(ValueError, match="alpha = 0"):
        fs.tabulate("dpmpp-2s", p, steps=4)
    assert "alpha=0" not in Singlestep(points=3, clock="t").ends


def test_heun_plus_plus_is_the_published_loop():
    p = fs.EDM()
    d = problem(p).denoiser
    sigmas = grid(p, 5).tolist()
    x = starts(p, sigmas[0], 4)
    ours = fs.sample(d, p, solver="heunpp2", grid=torch.tensor(sigmas, dtype=torch.float64), x=x)
    slope = lambda z, at: (z - d(z, at)) / at  # noqa: E731
    for k, (at, to) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        slopes, z, w = [slope(x, at)], x, 0.0
        ahead = sigmas[k : k + min(3, len(sigmas) - 1 - k)]
        for a, b in zip(ahead[:-1], ahead[1:], strict=True):
            z = z + slopes[-1] * (b - a)
            slopes.append(slope(z, b))
        total = torch.zeros_like(x)
        for b, later in zip(ahead[1:], slopes[1:], strict=True):
            w += b / (len(ahead) * sigmas[0])
            total = total + b / (len(ahead) * sigmas[0]) * later
        x = x + (total + (1 - w) * slopes[0]) * (to - at)
    assert torch.allclose(ours, x, rtol=1e-12, atol=1e-12)
    assert [HeunPP().calls(n, to_zero=True) for n in (1, 2, 3, 10)] == [1, 3, 6, 27]


@pytest.mark.parametrize(
    "options",
    [
        {"points": 4},
        {"form": "velocity"},
        {"type": "taylor"},
        {"stages": "half"},
        {"inner": "heun"},
        {"clock": "sigma"},
        {"orders": (2, 1)},
        {"orders": (4,), "stages": "grid"},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="got "):
        Singlestep(**options)


def test_orders_fill_the_grid():
    s = Singlestep(points=2, stages="grid", orders=[2, 1])
    assert s == Singlestep(points=2, stages="grid", orders=(2, 1))
    assert s.tabulate(fs.VP(), grid(fs.VP(), 3)).nfe == 3
    with pytest.raises(ValueError, match="orders that sum to 4"):
        s.tabulate(fs.VP(), grid(fs.VP(), 4))


@pytest.mark.parametrize("stages", ["inside", "grid"])
@pytest.mark.parametrize(("type", "form", "clock"), [("heun", "noise", "log-snr"), ("midpoint", "data", "t")])
def test_promises_of_options(stages, type, form, clock):
    make = lambda: Singlestep(points=3, form=form, type=type, clock=clock, stages=stages)  # noqa: E731
    report = fs.check.solver(make, "edm", label="singlestep")
    assert report.ok, f"\n{report}"
