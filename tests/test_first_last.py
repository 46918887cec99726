"""Other first and last steps: what they change, what they cost, and what they gain."""

from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
from fewstep.check.exact import grid, problem, small
from fewstep.loop.tabulate import informed
from fewstep.process.operator import magnitude
from fewstep.solver import (
    DDIM,
    CFGPlusPlus,
    Default,
    DPMMultistep,
    EDMHeun,
    FinalEuler,
    FirstLast,
    GaussianSplit,
    Multistep,
    ReverseMean,
    Singlestep,
    Splitting,
    UniC,
    UniPC,
)
from oracle import numbers

torch.set_num_threads(1)


def same(a: fs.Tableau, b: fs.Tableau) -> bool:
    left, right = numbers(a), numbers(b)
    return len(left) == len(right) and all(
        magnitude(x.get(key, 0.0) - y.get(key, 0.0)) < 1e-12 for x, y in zip(left, right, strict=True) for key in x | y
    )


@pytest.mark.parametrize("std", [0.0, 0.8])
@pytest.mark.parametrize(("solver", "process"), [
    ("unipc-3", "vp"), ("unipc-3", "edm"),
    *((s, p) for s in ("ddim", "deis-tab-2", "multistep-pc-3", "heun", "dpmpp-2s", "euler")
      for p in ("vp", "edm", "blurring", "cld")),
])  # fmt: skip
def test_on_the_data_it_assumes_the_analytic_step_changes_nothing(solver, std, process):
    """Its answer is the exact prediction for N(0, std^2) data, at no call."""
    p, own = small(process), fs.SOLVERS[solver]()
    shape = tuple(p.size) if process == "blurring" else (1,)
    data = fs.Gaussian(p, torch.zeros(shape, dtype=torch.float64), std)
    wrapped = FirstLast(solver=own, first="analytic", std=std)
    counted = fs.Counted(data)
    run = lambda s, d: fs.sample(d, p, solver=s, grid=grid(p, 4), shape=(5, *shape), dtype=torch.float64)  # noqa: E731
    assert torch.allclose(run(wrapped, counted), run(own, data), rtol=1e-10, atol=1e-10)
    assert counted.calls == own.calls(4, to_zero=False) - 1 == wrapped.calls(4, to_zero=False)
    assert wrapped.tabulate(p, grid(p, 4)).rows[0].at is None


def test_at_std_zero_the_first_noise_is_the_state_itself():
    p = fs.VP()
    first = FirstLast(solver="ddim", first="analytic").tabulate(p, grid(p, 3)).rows[1]
    kept = {s: c for s, c in first.form}
    assert kept == {("z", 0): pytest.approx(p.sigma(first.t) / p.sigma(float(grid(p, 3)[0])))}


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (Multistep(points=2), 2),
        (Multistep(points=3), 3),
        (Multistep(points=4, form="noise", clock="t"), 4),
        (Multistep(points=3, corrector=True), 4),
        (DPMMultistep(points=3, corrected=True), 3),
        (DPMMultistep(points=3), 2),
        (UniPC(points=3, final_ramp=False), 4),
        (UniPC(points=3), 2),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, int) else str(x),
)
def test_an_order_preserving_start_keeps_the_order(solver, order):
    wrapped = FirstLast(solver=solver, first="order")
    assert wrapped.order == order
    report = fs.check.solver(lambda: wrapped, "edm", label="first='order'")
    assert report.ok, f"\n{report}"


def test_a_corrector_leaves_the_start_alone():
    """With four predictions and a corrector, a first row that is corrected again ends in 3.4."""
    p = small("edm")
    pr, wrapped = problem(p), FirstLast(solver=Multistep(points=4, corrector=True), first="order")
    few, many = (pr.error(fs.sample(pr.denoiser, p, solver=wrapped, grid=grid(p, n), x=pr.start)) for n in (64, 256))
    assert math.log2(few / many) / 2 > wrapped.order - 0.25 == 3.75


def test_blocks_have_such_a_start_too():
    report = fs.check.solver(lambda: FirstLast(solver=Multistep(points=3), first="order"), "cld", label="start")
    assert report.ok, f"\n{report}"


def test_the_start_costs_singlestep_calls():
    s = FirstLast(solver=Multistep(points=4), first="order")
    p = fs.VP()
    assert s.calls(6, to_zero=False) == 6 + 2 * 2 == s.tabulate(p, grid(p, 6)).nfe
    assert s.calls(1, to_zero=True) == 1
    table = s.tabulate(fs.EDM(), torch.tensor([5.0, 1.0, 0.0], dtype=torch.float64))
    assert table.nfe == s.calls(2, to_zero=True) == 4
    plain = FirstLast(solver=Multistep(points=2), first="order")
    assert same(plain.tabulate(p, grid(p, 5)), Multistep(points=2).tabulate(p, grid(p, 5)))
    with pytest.raises(ValueError, match="alpha = 0"):
        s.tabulate(fs.Flow(), torch.linspace(1, 0, 5, dtype=torch.float64))


@pytest.mark.parametrize("make", [Multistep, UniPC, DPMMultistep])
def test_a_lower_order_at_the_end_is_the_solvers_own_ramp(make):
    p = fs.VP()
    ramp, plain = make(points=3, final_ramp=True), make(points=3, final_ramp=False)
    assert same(FirstLast(solver=plain, last="lower").tabulate(p, grid(p, 12)), ramp.tabulate(p, grid(p, 12)))


@pytest.mark.parametrize("solver", [EDMHeun(), Singlestep(points=3), Singlestep(points=2, form="noise")])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_without_a_ramp_the_last_step_is_ddim(solver, steps):
    p = fs.VP()
    times = grid(p, steps)
    wrapped = FirstLast(solver=solver, last="lower")
    table = wrapped.tabulate(p, times)
    assert table.nfe == wrapped.calls(steps, to_zero=False)
    last = DDIM().tabulate(p, times[-2:])
    data = fs.Gaussian(p, torch.ones(1, dtype=torch.float64), 0.7)
    z = torch.randn(4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    middle = z if steps == 1 else fs.sample(data, p, solver=solver, grid=times[:-1], x=z)
    assert torch.allclose(
        fs.sample(data, p, solver=wrapped, grid=times, x=z), fs.sample(data, p, solver=last, x=middle)
    )


@pytest.mark.parametrize(
    "wrapped",
    [
        FirstLast(solver="dpmpp-2m", first="analytic", std=0.5),
        FirstLast(solver="heun", first="analytic", last="lower"),
        FirstLast(solver="heun", last="lower"),
        FirstLast(solver="ddpm", last="lower"),
        FirstLast(solver=UniPC(points=2), last="lower"),
    ],
    ids=lambda s: f"{type(s.solver).__name__}-{s.first}-{s.last}",
)
def test_promises(wrapped):
    report = fs.check.solver(lambda: wrapped, "vp", label="wrapped")
    assert report.ok, f"\n{report}"


def test_a_wrapped_solver_is_saved_with_its_table(tmp_path):
    wrapped = FirstLast(solver=UniPC(points=2, b="bh1"), first="order", last="lower")
    table = wrapped.tabulate(fs.VP(), grid(fs.VP(), 4))
    table.save(tmp_path / "table")
    loaded = fs.Tableau.load(tmp_path / "table")
    assert loaded == table
    assert loaded.solver == wrapped


def test_what_makes_no_sense_is_refused():
    for options, message in (
        ({"solver": "ddim", "first": "late"}, "choose own, analytic or order"),
        ({"solver": "ddim", "last": "zero"}, "choose own or lower"),
        ({"solver": "ddim", "first": "analytic", "std": -1.0}, "std=-1"),
        ({"solver": "heun", "first": "order"}, "no start of lower order"),
        ({"solver": "dim"}, "did you mean ddim"),
    ):
        with pytest.raises(ValueError, match=message):
            FirstLast(**options)
    for make in (FirstLast, fs.FinalEuler, lambda solver: fs.UniC(predictor=solver)):
        with pytest.raises(ValueError, match="got a RK45 as .*: give a solver of tables"):
            make(solver=fs.RK45())
    with pytest.raises(ValueError, match="whose first call is not at the start"):
        FirstLast(solver=EDMHeun(churn=10.0), first="analytic").tabulate(fs.EDM(), grid(fs.EDM(), 4))


NOISE = Default(predicts="noise", size=3072)


@pytest.mark.parametrize("name", ["default", "karras"])
def test_a_solver_around_the_default_has_its_grid(name):
    """The default's own places its calls by the rule; that of the process would spend them elsewhere."""
    own = fs.tabulate(NOISE, fs.VP(), steps=6, grid=name).grid
    assert not torch.equal(own, fs.tabulate("multistep-2", fs.VP(), steps=6, grid=name).grid)
    for solver in (FirstLast(solver=NOISE), FinalEuler(solver=NOISE), FirstLast(solver=NOISE, last="lower")):
        table = fs.tabulate(solver, fs.VP(), steps=6, grid=name)
        assert {row.t for row in table.rows} >= set(table.grid.tolist())
        if not isinstance(solver, FinalEuler):
            assert torch.equal(table.grid, own)
    assert torch.equal(fs.tabulate(Splitting(inner=NOISE), fs.VP(), steps=18).grid, NOISE.grid("default")(fs.VP(), 6))


def test_a_solver_around_the_default_hears_of_the_network():
    net = fs.guide(*(fs.wrap(lambda x, t: 0 * x, fs.VP(), "v") for _ in range(2)), 3.0)
    heard = informed(Default(), net, (3, 8, 8))
    assert (heard.predicts, heard.guidance, heard.size) == ("v", 3.0, 192)
    assert informed(FinalEuler(solver=FirstLast(solver="default")), net, (3, 8, 8)).solver.solver == heard
    apart = informed(Splitting(inner=Default()), net, (3, 8, 8)).inner  # which sees the unguided part alone
    assert (apart.predicts, apart.guidance) == ("v", 1.0)
    mine = FirstLast(solver=DDIM())
    assert informed(mine, net, (3, 8, 8)) is mine


def test_what_adds_to_each_row_refuses_a_solver_of_more_than_one():
    """The default's first call may lie behind a row, and its corrector makes rows again."""
    assert UniC(predictor=GaussianSplit(relax=math.inf)).calls(4, to_zero=False) == 4
    for inner in (Default(), NOISE, GaussianSplit(), EDMHeun(method="euler", churn=4.0), Multistep(corrector=True)):
        for around in (CFGPlusPlus, lambda inner: ReverseMean(inner=inner, step=0.1)):
            with pytest.raises(ValueError, match="inside (CFG|ReverseMean).*give a solver that makes one row a step"):
                around(inner=inner)
    pair = fs.guide(fs.Gaussian(fs.VP(), 0.0, 1.0), fs.Gaussian(fs.VP(), 0.3, 1.0), 2.0)
    table = fs.tabulate(Splitting(inner=Default()), fs.VP(), steps=12)
    assert table.nfe == 12
    assert fs.sample(pair, fs.VP(), solver=table, shape=(2, 3), progress=False).isfinite().all()
