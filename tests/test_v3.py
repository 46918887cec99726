"""DPM-Solver-v3: its special cases, what statistics are worth, and tables that carry them."""

from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
import oracle
from fewstep.process.operator import Diagonal
from fewstep.solver import DPMSolverV3, Multistep
from test_equivalences import SCALAR, assert_same

torch.set_num_threads(1)

MEAN, VARIANCE = 0.8, 0.3


def gaussian_statistics(nodes: int, shape: tuple[int, ...] = (), mean: float = MEAN) -> fs.Statistics:
    """Of N(mean, variance) data: f = -l mean, so that s = 0 and b = -l' mean leave g constant."""
    lam = torch.linspace(-5, 5, nodes, dtype=torch.float64)
    rho2 = (-2 * lam).exp()
    l = rho2 / (VARIANCE + rho2)  # noqa: E741
    b = 2 * VARIANCE * rho2 / (VARIANCE + rho2) ** 2 * mean
    wide = lambda x: x.reshape(-1, *(1,) * len(shape)).expand(nodes, *shape)  # noqa: E731
    return fs.Statistics(log_snr=lam, l=wide(l), s=wide(0 * l), b=wide(b))


def smooth_statistics(shape: tuple[int, ...] = ()) -> fs.Statistics:
    """Of no network: any will do for the order."""
    lam = torch.linspace(-3, 3, 2000, dtype=torch.float64)
    wide = lambda x: x.reshape(-1, *(1,) * len(shape)).expand(-1, *shape)  # noqa: E731
    return fs.Statistics(log_snr=lam, l=wide(torch.sigmoid(-2 * lam)), s=wide(0.5 * lam.sin()), b=wide(0.3 * lam.cos()))


@pytest.mark.parametrize("process", SCALAR)
@pytest.mark.parametrize("points", [1, 2, 3])
def test_without_statistics_the_predictor_is_the_data_form_with_exact_weights(process, points):
    p = oracle.process(process)
    grid = oracle.grid(p, 6)
    for ramp in (False, True):
        ours = DPMSolverV3(points=points, corrector=False, final_ramp=ramp).tabulate(p, grid)
        assert_same(ours, Multistep(points=points, final_ramp=ramp).tabulate(p, grid), 1e-12)


def test_with_one_point_the_pseudo_corrector_is_the_adams_corrector():
    p = oracle.process("vp")
    grid = oracle.grid(p, 6)
    ours = DPMSolverV3(points=1, corrector_pseudo=True).tabulate(p, grid)
    assert_same(ours, Multistep(points=1, corrector=True).tabulate(p, grid), 1e-12)


def test_pseudo_orders_up_to_two_are_the_orders():
    p = oracle.process("vp")
    grid = oracle.grid(p, 6)
    plain, pseudo = (DPMSolverV3(points=2, predictor_pseudo=x).tabulate(p, grid) for x in (False, True))
    assert_same(plain, pseudo, 1e-12)
    plain, pseudo = (
        DPMSolverV3(points=3, predictor_pseudo=x, final_ramp=False).tabulate(p, grid) for x in (False, True)
    )
    with pytest.raises(AssertionError):
        assert_same(plain, pseudo, 1e-6)


@pytest.mark.parametrize("process", ["vp", "edm", "flow"])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_one_step_is_exact_on_gaussian_data_with_its_statistics(process, shape):
    """The linear part and the bias alone solve the ODE; the error is the interpolation's."""
    p = oracle.process(process)
    grid = oracle.grid(p, 1)
    denoiser = fs.Gaussian(p, torch.full((3,), MEAN), math.sqrt(VARIANCE))
    x = p.diffuse(torch.zeros(4, 3).double(), float(grid[0]), torch.randn(4, 3, dtype=torch.float64))
    exact = oracle.gaussian_map(denoiser, x, *grid.tolist())

    def error(nodes: int, **options: object) -> float:
        solver = DPMSolverV3(points=1, statistics=gaussian_statistics(nodes, shape), **options)
        return float((fs.sample(denoiser, p, solver=solver, grid=grid, x=x) - exact).abs().max())

    plain = float((fs.sample(denoiser, p, solver="dpm-solver-v3", grid=grid, x=x) - exact).abs().max())
    assert plain > 0.05
    assert error(2000) < 1e-4 * plain
    for rule in ("gauss", "trapezoid"):
        assert 3.5 < error(100, rule=rule) / error(200, rule=rule) < 4.5


@pytest.mark.parametrize("options", [{}, {"corrector_pseudo": True}, {"corrector": False}, {"predictor_pseudo": True}])
@pytest.mark.parametrize("points", [1, 2, 3])
def test_order_with_statistics(points, options):
    pr = oracle.Problem("vp")
    solver = DPMSolverV3(points=points, statistics=smooth_statistics(), **options)
    run = lambda n: fs.sample(pr.denoiser, pr.process, solver=solver, grid=oracle.grid(pr.process, n), x=pr.start)  # noqa: E731
    errors = [pr.error(run(n)) for n in (32, 128)]
    assert math.log2(errors[0] / errors[1]) / 2 > solver.order - 0.25, errors


def test_statistics_depend_on_log_snr_alone():
    """The same table on VP, flow and EDM, up to alpha."""
    ends = []
    for name in ("vp", "edm", "flow"):
        p = oracle.process(name)
        grid = oracle.grid(p, 6)
        start = p.alpha(float(grid[0])) * torch.linspace(-9, 9, 8, dtype=torch.float64)[:, None]
        z = fs.sample(oracle.denoiser(p), p, solver=DPMSolverV3(statistics=smooth_statistics()), grid=grid, x=start)
        ends.append(z / p.alpha(float(grid[-1])))
    assert float((ends[0] - ends[1]).abs().max()) < 1e-10
    assert float((ends[0] - ends[2]).abs().max()) < 1e-10


def test_the_half_corrector_corrects_late_states_only():
    p = oracle.process("vp")
    grid = oracle.grid(p, 8)
    rows = lambda bound: len(DPMSolverV3(points=2, correct_up_to=bound).tabulate(p, grid).rows)  # noqa: E731
    late = int((grid[2:-1] <= 0.4).sum())
    assert rows(0.0) == 9
    assert rows(0.4) == 9 + late
    assert rows(math.inf) == 9 + 6


def test_a_table_per_pixel_is_saved_with_its_numbers(tmp_path):
    """The solver comes back where its statistics are; the numbers always do."""
    p = oracle.process("vp")
    file = gaussian_statistics(50, (3,)).save(tmp_path / "statistics.safetensors")
    table = DPMSolverV3(statistics=str(file)).tabulate(p, oracle.grid(p, 4))
    assert any(isinstance(c, Diagonal) for row in table.rows for _, c in row.form)
    assert "weights are per pixel" in table.explain()
    table.save(tmp_path / "table")
    loaded = fs.Tableau.load(tmp_path / "table")
    assert loaded == table
    assert loaded.solver == table.solver
    file.unlink()
    alone = fs.Tableau.load(tmp_path / "table")
    assert alone == table
    assert alone.solver is None
    x = torch.randn(2, 3)
    assert torch.equal(
        fs.sample(oracle.denoiser(p), p, solver=alone, x=x), fs.sample(oracle.denoiser(p), p, solver=table, x=x)
    )


def test_what_does_not_fit_is_refused(tmp_path):
    lam = torch.linspace(-1, 1, 3)
    with pytest.raises(ValueError, match="without l, s, b"):
        DPMSolverV3(statistics=fs.Statistics(log_snr=lam, eps2=torch.ones(3)))
    with pytest.raises(ValueError, match="got points=0"):
        DPMSolverV3(points=0)
    with pytest.raises(ValueError, match="rule='simpson'"):
        DPMSolverV3(rule="simpson")
    with pytest.raises(ValueError, match="where alpha = 0"):
        DPMSolverV3(statistics=gaussian_statistics(9)).tabulate(fs.Flow(), torch.tensor([1.0, 0.5, 0.1]).double())
    with pytest.raises(ValueError, match="measured in one log-SNR"):
        DPMSolverV3().tabulate(fs.CLD(), torch.tensor([1.0, 0.5]).double())
