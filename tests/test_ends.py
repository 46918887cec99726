"""One to a thousand steps, singular ends, and counted network calls, for every solver."""

from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
import oracle
from fewstep.process import PROCESSES, Flow
from fewstep.process.operator import magnitude
from fewstep.solver import SOLVERS
from fewstep.tableau.check import check_point_mass, point_mass

torch.set_num_threads(1)

STATIONS = (1, 2, 5, 50)
LONG = ("ddpm", "heun", "multistep-pc-3", "dpmpp-3m", "unipc-3", "deis-tab-3")


def flow_grid(steps: int, high: float = 1.0, low: float = 0.0) -> torch.Tensor:
    return torch.linspace(high, low, steps + 1, dtype=torch.float64)


def accepts(name: str, *ends: str) -> bool:
    return all(end in SOLVERS[name]().ends for end in ends)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", SOLVERS)
def test_few_steps_count_their_calls(name, process):
    p, s = oracle.process(process), SOLVERS[name]()
    if p.kind not in s.kinds:
        return
    mixture = oracle.denoiser(p)
    shape = (2, *mixture.means.shape[1:])
    for steps in (1, 2, 3):
        g = oracle.grid(p, steps)
        counted = fs.Counted(mixture)
        z = fs.sample(counted, p, solver=s, grid=g, shape=shape, dtype=torch.float64)
        assert bool(z.isfinite().all())
        assert counted.calls == s.calls(steps, to_zero=False) == s.tabulate(p, g).nfe
        assert counted.evaluations == 2 * counted.calls


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


@pytest.mark.parametrize("steps", STATIONS)
@pytest.mark.parametrize("name", [name for name in SOLVERS if accepts(name, "alpha=0", "sigma=0")])
def test_flow_from_end_to_end(name, steps):
    """From pure noise (alpha = 0) to clean data (sigma = 0): finite, and a point mass ends on its point."""
    s = SOLVERS[name]()
    table = s.tabulate(Flow(), flow_grid(steps))
    m, r, cs = point_mass(table)[-1]
    assert m == pytest.approx(1.0, abs=1e-12)
    assert all(abs(c) < 1e-12 for c in (r, *cs.values()))
    if "scalar" in s.point_mass:
        check_point_mass(table, tolerance=1e-12)
    assert table.nfe == s.calls(steps, to_zero=True)
    z = fs.sample(oracle.denoiser(Flow()), Flow(), solver=table, shape=(8, 1), dtype=torch.float64)
    assert float(z.abs().max()) < 4


@pytest.mark.parametrize("steps", STATIONS)
@pytest.mark.parametrize("name", [name for name in SOLVERS if accepts(name, "sigma=0")])
def test_flow_to_clean_data(name, steps):
    s = SOLVERS[name]()
    g = flow_grid(steps, high=0.9)
    table = s.tabulate(Flow(), g)
    assert table.nfe == s.calls(steps, to_zero=True)
    m, r, cs = point_mass(table)[-1]
    exact = 1e-10 if "scalar" in s.point_mass else 1e-6 if not table.noises else 2.0
    assert abs(m - 1) < exact
    assert all(abs(c) < exact for c in (r, *cs.values()))
    z = fs.sample(oracle.denoiser(Flow()), Flow(), solver=table, shape=(8, 1), dtype=torch.float64)
    assert bool(z.isfinite().all())


@pytest.mark.parametrize("name", [name for name in SOLVERS if accepts(name, "alpha=0") and "unipc" not in name])
def test_alpha_zero_is_the_limit(name):
    """Weights at t = 1 are those of a start at t = 1 - e as e falls; where a log-SNR node drops out, like 1/log e.

    UniPC does not claim it: its coefficient 1/2 would keep the prediction made at infinity, so it solves there instead.
    """

    def final(high: float) -> dict:
        return oracle.numbers(
            SOLVERS[name]().tabulate(Flow(), torch.cat([torch.tensor([high], dtype=torch.float64), inner]))
        )[-1]

    def gap(e: float) -> float:
        near = final(1 - e)
        return max(magnitude(at.get(s, 0.0) - near.get(s, 0.0)) for s in at.keys() | near.keys())

    inner = flow_grid(6)[1:-1]
    at = final(1.0)
    far, close = gap(1e-4), gap(1e-12)
    assert close < 1e-10 or close < 0.75 * far, (far, close)
    assert close < 1.5 / math.log(1e12)


@pytest.mark.parametrize("name", SOLVERS)
def test_singular_ends_that_are_not_declared_are_refused(name):
    s = SOLVERS[name]()
    if "alpha=0" not in s.ends:
        with pytest.raises(ValueError, match="starts at t = 1, where alpha = 0"):
            s.tabulate(Flow(), flow_grid(4, low=0.1))
    if "sigma=0" not in s.ends:
        with pytest.raises(ValueError, match="ends at t = 0, where sigma = 0"):
            s.tabulate(Flow(), flow_grid(4, high=0.9))
