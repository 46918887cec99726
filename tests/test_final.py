"""How a run ends is one word, decided with the table: at sigma = 0 wherever there is such an end."""

from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
from fewstep.loop.tabulate import FINALS
from fewstep.solver import LangevinCorrected

VP = fs.VP()
PROCESSES = {name: make() for name, make in fs.PROCESSES.items()}
NO_ZERO = {"ve", "cld", "blurring", "ve-blur", "heat", "masking"}  # which have no time without noise


@pytest.mark.parametrize("name", PROCESSES)
def test_a_table_ends_at_sigma_zero_where_process_and_solver_do(name):
    p = PROCESSES[name]
    table, state = (fs.tabulate("ddim", p, steps=5, final=final) for final in ("zero", "state"))
    assert table.nfe == state.nfe == 5
    assert table.grid[:-1].tolist() == state.grid[:-1].tolist()
    assert state.grid[-1] == p.t_min
    assert table.final == ("state" if p.t_zero is None else "zero")
    assert table.grid[-1] == (p.t_min if p.t_zero is None else p.t_zero)
    assert (table == state) == (p.t_zero in (None, p.t_min))
    assert fs.tabulate("ddim", p, steps=5) == table


def test_some_processes_have_such_an_end_and_some_have_none():
    assert {name for name, p in PROCESSES.items() if p.t_zero is None} == NO_ZERO


@pytest.mark.parametrize("solver", ["euler-maruyama", "ltsp", "taylor-2"])
def test_a_solver_that_is_singular_there_quietly_ends_in_the_state(solver):
    assert fs.tabulate(solver, VP, steps=8) == fs.tabulate(solver, VP, steps=8, final="state")


def test_a_grid_that_leads_to_the_last_time_is_moved_and_any_other_end_is_its_own():
    karras, low = fs.GRIDS["karras"], lambda p, n: torch.linspace(1, 0.2, n + 1, dtype=torch.float64)  # noqa: ARG005
    assert fs.tabulate("ddim", VP, grid=karras, steps=4) == fs.tabulate("ddim", VP, grid="karras", steps=4)
    assert fs.tabulate("ddim", VP, grid="karras", steps=4).grid[-1] == 0
    assert fs.tabulate("ddim", VP, grid=low, steps=4).grid[-1] == 0.2
    after = fs.tabulate("ddim", VP, grid=fs.to_zero(karras), steps=4).grid.tolist()
    assert after == [*karras(VP, 3).tolist(), 0.0]
    given = karras(VP, 4)
    for final in FINALS:
        assert torch.equal(fs.tabulate("ddim", VP, grid=given, final=final).grid, given)


def test_the_calls_to_an_end_are_counted_as_that_end_takes_them():
    heun = lambda final, grid="default": fs.tabulate("heun", VP, grid=grid, steps=7, final=final)  # noqa: E731
    assert [(t.nfe, len(t.grid) - 1) for t in map(heun, FINALS)] == [(7, 4), (6, 3), (6, 3)]
    low = lambda p, n: torch.linspace(1, 0.2, n + 1, dtype=torch.float64)  # noqa: E731, ARG005
    assert heun("zero", low).nfe == 6  # it does not end there


@pytest.mark.parametrize("solver", [None, "unipc-3", "ddpm", "heun"])
def test_every_way_to_run_ends_alike(solver):
    d = fs.Mixture(VP, torch.tensor([[1.0, -0.5], [-1.0, 0.3]]), 0.3)
    run = {"solver": solver, "steps": 7, "shape": (3, 2), "seed": 5, "dtype": torch.float64}
    x = fs.sample(d, VP, **run)
    assert torch.equal(x, fs.sample(d, VP, final="zero", **run))
    assert torch.equal(x, fs.solve(d, VP, **run).state)
    assert torch.allclose(x, fs.sample(d, VP, parallel=fs.Parallel(tolerance=0.0), **run), atol=1e-10)
    state = fs.sample(d, VP, final="state", **run)
    table = fs.solve(d, VP, final="state", **run).table(0)
    assert table.grid[-1] == VP.t_min
    again = {key: value for key, value in run.items() if key not in ("solver", "steps")}
    assert torch.equal(state, fs.sample(d, VP, solver=table, **again))
    assert float((x - state).abs().max()) > 1e-4  # what noise is left at t_min


def test_a_driver_that_takes_its_own_times_ends_in_the_state_and_one_that_is_given_them_at_zero():
    d, run = fs.Gaussian(VP, torch.zeros(2), 0.5), {"shape": (2, 2), "steps": 40}
    assert fs.solve(d, VP, solver="rk45", shape=(2, 2)).times.tolist() == [VP.t_min] * 2
    for final, end in (("zero", 0.0), ("state", VP.t_min)):
        outcome = fs.solve(d, VP, solver=LangevinCorrected(predictor=fs.DDPM()), final=final, **run)
        assert outcome.ok
        assert outcome.times.tolist() == [end] * 2
        assert outcome.calls.tolist() == [39 if final == "zero" else 40] * 2  # nothing is corrected at sigma = 0
    singular = fs.solve(d, VP, solver=LangevinCorrected(), **run)  # by its predictor
    assert singular.times.tolist() == [VP.t_min] * 2


def test_another_word_is_refused():
    for call in (
        lambda: fs.tabulate("ddim", VP, steps=2, final="zeros"),
        lambda: fs.sample(lambda z, t: z, VP, steps=2, shape=(1, 1), final="zeros"),  # noqa: ARG005
        lambda: fs.solve(lambda z, t: z, VP, solver="rk45", shape=(1, 1), final="zeros"),  # noqa: ARG005
    ):
        with pytest.raises(ValueError, match="got final='zeros': choose zero, state or denoise"):
            call()


def test_a_fit_ends_there_too():
    d, run = fs.Gaussian(VP, torch.zeros(2), 0.5), {"steps": 3, "shape": (2,), "samples": 8, "held_out": 4,
                                                    "teacher_steps": 6, "method": "dp", "grid": "logistic",
                                                    "progress": False}  # fmt: skip
    for options, end in (({}, "zero"), ({"final": "state"}, "state")):
        table = fs.fit(d, VP, solver="dpmpp-2m", **options, **run)
        assert (table.final, table.card["final"]) == (end, end)
    with pytest.raises(ValueError, match="got final='denoise': choose zero or state"):
        fs.fit(d, VP, final="denoise", **run)


def test_the_scheduler_ends_there_unless_its_config_says_otherwise():
    pytest.importorskip("diffusers")
    from fewstep.interop.diffusers import FewStepScheduler

    said = {"zero": ({}, {"final_sigmas_type": "zero"}, {"set_alpha_to_one": True}),
            "state": ({"final_sigmas_type": "sigma_min"}, {"set_alpha_to_one": False})}  # fmt: skip
    for end, configs in said.items():
        for config in configs:
            scheduler = FewStepScheduler(prediction_type="epsilon", **config)
            scheduler.set_timesteps(5)
            assert scheduler.table.final == end
            assert scheduler.table.grid.tolist() == fs.tabulate(
                scheduler.table.solver, scheduler.process, steps=5, final=end).grid.tolist()  # fmt: skip
    assert not math.isfinite(scheduler.process.log_snr(0.0))
