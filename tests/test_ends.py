"""A thousand steps, singular ends, and the limit at alpha = 0, for every solver; the instrument judges the ends."""

from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
import oracle
from fewstep.check.exactness import check_point_mass, point_mass
from fewstep.process import PROCESSES, Flow
from fewstep.process.operator import magnitude
from fewstep.solver import TABLES

LONG = ("ddpm", "heun", "multistep-pc-3", "dpmpp-3m", "unipc-3", "deis-tab-3")


def flow_grid(steps: int, high: float = 1.0, low: float = 0.0) -> torch.Tensor:
    return torch.linspace(high, low, steps + 1, dtype=torch.float64)


def accepts(name: str, *ends: str) -> bool:
    return all(end in TABLES[name]().ends for end in ends)


@pytest.mark.parametrize("name", oracle.DISTINCT)
def test_ends_of_a_flow(name):
    """From pure noise and to clean data where that is declared, refused where it is not."""
    report = fs.check.solver(name, "flow", only=["ends"])
    assert report.ok, f"\n{report}"


@pytest.mark.parametrize("name", LONG)
def test_a_thousand_steps(name):
    p = PROCESSES["vp"]()
    table = fs.tabulate(name, p, grid=oracle.grid(p, 1000))
    mixture = oracle.denoiser(p)
    counted = fs.Counted(mixture)
    start = oracle.starts(p, float(table.grid[0]), 4)
    z = fs.sample(counted, p, solver=table, x=start, seed=1)
    assert counted.calls == table.nfe
    if not table.noises:
        exact = oracle.quantile_map(mixture, start, *table.grid[[0, -1]].tolist())
        assert float((z - exact).abs().max()) < 1e-5
    assert bool(z.isfinite().all())


@pytest.mark.parametrize(
    "name",
    [name for name in oracle.DISTINCT if accepts(name, "alpha=0", "sigma=0") and "scalar" in TABLES[name]().point_mass],
)
def test_fifty_steps_from_end_to_end(name):
    """A point mass ends on its point, to rounding."""
    table = TABLES[name]().tabulate(Flow(), flow_grid(50))
    m, r, cs = point_mass(table)[-1]
    assert m == pytest.approx(1.0, abs=1e-12)
    assert all(abs(c) < 1e-12 for c in (r, *cs.values()))
    check_point_mass(table, tolerance=1e-12)
    assert table.nfe == TABLES[name]().calls(50, to_zero=True)


@pytest.mark.parametrize("name", [name for name in oracle.DISTINCT if accepts(name, "alpha=0") and "unipc" not in name])
def test_alpha_zero_is_the_limit(name):
    """Weights at t = 1 are those of a start at t = 1 - e as e falls; where a log-SNR node drops out, like 1/log e.

    UniPC does not claim it: its coefficient 1/2 would keep the prediction made at infinity, so it solves there instead.
    A Runge-Kutta method starts at t = 1 in a form of its own.
    """
    solver = TABLES[name]().tabulate(Flow(), flow_grid(6)).solver

    def final(high: float) -> dict:
        return oracle.numbers(solver.tabulate(Flow(), torch.cat([torch.tensor([high], dtype=torch.float64), inner])))[
            -1
        ]

    def gap(e: float) -> float:
        near = final(1 - e)
        return max(magnitude(at.get(s, 0.0) - near.get(s, 0.0)) for s in at.keys() | near.keys())

    inner = flow_grid(6)[1:-1]
    at = final(1.0)
    far, close = gap(1e-4), gap(1e-12)
    assert close < 1e-10 or close < 0.75 * far, (far, close)
    assert close < 1.5 / math.log(1e12)


TIMES_AT_ZERO = {"vp": 0.0, "sub-vp": 0.0, "cosine": 0.0, "edm": 0.0, "flow": 0.0, "discrete": 0.0}


@pytest.mark.parametrize("name", PROCESSES)
def test_the_time_at_sigma_zero_is_one_of_the_process(name):
    p = PROCESSES[name]()
    assert p.t_zero == TIMES_AT_ZERO.get(name)
    if p.t_zero is None:
        with pytest.raises(ValueError, match="which has no time at sigma = 0: end at t_min"):
            fs.to_zero(fs.GRIDS["default"])(p, 4)
    else:
        assert p.sigma(p.t_zero) == 0
        assert fs.to_zero(fs.GRIDS["default"], append=False)(p, 4)[-1] == p.t_zero


def test_a_beta_that_begins_at_zero_has_its_time_at_zero():
    assert fs.to_zero(fs.GRIDS["uniform"], append=False)(fs.VP(beta_min=0.0, t_min=0.01), 4)[-1] == 0


@pytest.mark.parametrize(
    ("process", "has_zero"),
    [(fs.VP(), True), (fs.EDM(), True), (fs.VE(), False), (fs.CLD(), False)],
    ids=lambda v: type(v).__name__,
)
def test_a_solver_says_whether_its_table_may_end_there(process, has_zero):
    grid, may = fs.to_zero(fs.GRIDS["default"], append=False), ("ddim", "dpmpp-2m", "gaussian-split", "heun")
    for name in (*may, "ddim-cfgpp", "ltsp", "taylor-2", "quasi-taylor-2"):
        solver = TABLES[name]()
        assert solver.reaches_zero(process) == (has_zero and name in (*may, "ddim-cfgpp"))
        if solver.reaches_zero(process):
            table = fs.tabulate(solver, process, grid=grid, steps=4)
            assert all(magnitude(c) < math.inf for row in table.rows for _, c in row.form)
        else:
            with pytest.raises(ValueError, match="sigma = 0"):
                fs.tabulate(solver, process, grid=grid, steps=4)


@pytest.mark.parametrize("name", ["heun", "midpoint", "rk4", "edm", "deis-rhork-kutta3"])
def test_classical_methods_start_a_flow_at_its_noise(name):
    """Slopes of z in t from t = 1 on, order as declared; later starts and other processes are as they were."""
    solver, p = TABLES[name](), Flow()
    table = fs.tabulate(name, p, nfe=solver.calls(4, to_zero=True))
    assert table.grid[0] == 1.0
    assert (table.solver.form, table.solver.clock) == ("state", "t")
    denoiser = fs.Gaussian(p, 0.2, 0.5)
    x = torch.tensor([[1.0], [-0.7]], dtype=torch.float64)
    t = 0.2
    exact = (1 - t) * 0.2 + math.hypot((1 - t) * 0.5, t) * x  # the ODE of a Gaussian keeps its standardised value
    grids = [torch.linspace(1, t, n + 1, dtype=torch.float64) for n in (8, 32)]
    ends = [fs.sample(denoiser, p, solver=name, grid=grid, x=x) for grid in grids]
    few, many = ((end - exact).abs().max() for end in ends)
    assert math.log(few / many) / math.log(4) > solver.order - 0.3
    later = torch.tensor([0.99, 0.5, 0.1], dtype=torch.float64)
    assert solver.tabulate(p, later).solver == solver
    assert fs.tabulate(name, fs.VP(), steps=9).solver == solver
