"""The default: what its rule chooses, what it carries exactly, and how it fares through a network that errs."""

from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
import oracle
from fewstep.check.exact import problem, small
from fewstep.check.exactness import gaussian
from fewstep.process import PROCESSES
from fewstep.process.operator import magnitude, transpose
from fewstep.solver import Default, GaussianSplit

torch.set_num_threads(1)


@pytest.mark.parametrize(("options", "calls", "first"), [
    ({"predicts": "noise"}, 5, math.log(0.037 / 0.3)),
    ({"predicts": "score"}, 20, math.log(0.037 / 0.3)),
    ({"predicts": "noise"}, 3, -1.4),
    ({"predicts": "noise"}, 4, -1.5),
    ({"predicts": "noise", "guidance": 9.0}, 4, -1.2),
    ({"predicts": "noise", "error": 0.02}, 5, math.log(0.02 / 0.3)),
    ({"predicts": "noise", "error": 0.2}, 5, -1.5),
    ({"predicts": "noise", "size": 4 * 784}, 5, math.log(0.037 / 2 / 0.3)),
    ({"predicts": "noise", "error": 0.01, "guidance": 4.0}, 5, math.log(0.01 * 5 / 0.3)),
    ({"predicts": "noise", "std": 1.0}, 5, math.log(0.037 / 0.3) - math.log(2)),
    ({"predicts": "v"}, 5, -math.inf),
    ({"predicts": "v", "size": 12}, 3, -1.4),
    ({"predicts": "v", "size": 12}, 8, -2.1),
    ({"predicts": "v", "size": 12, "std": 2.0}, 20, -2.4 - math.log(2)),
    ({"predicts": "noise", "size": 12, "error": 0.001}, 20, -2.1),
    ({"predicts": "noise", "size": 12, "error": 0.06}, 8, math.log(0.06 / 0.3)),
    ({"predicts": "edm"}, 5, -math.inf),
    ({"size": 2}, 5, -math.inf),
    ({"size": 2}, 3, -2 - 3 / 13),
    ({"size": 784}, 8, 0.6 - math.log(784) / 2 - 8 / 13),
    ({"size": 64, "std": 1.0}, 8, -2 - 8 / 13 - math.log(2)),
    ({"size": 784, "guidance": 4.0}, 8, -math.inf),
])  # fmt: skip
def test_the_first_call_is_where_the_rule_says(options, calls, first):
    process = fs.VP()
    begins = float(process.log_snr(process.t_max))
    table = fs.tabulate(Default(**options), process, steps=calls)
    at = next(row.at for row in table.rows if row.at is not None)
    assert float(process.log_snr(at)) == pytest.approx(max(first, begins), abs=1e-6)
    assert Default(**options).first(process, calls) == pytest.approx(first)


def test_it_is_at_the_start_where_that_is_near_or_frequencies_have_their_own():
    solver = Default(predicts="noise")
    assert solver.first(fs.EDM(sigma_max=10.0), 5) == -math.inf  # log-SNR -2.3
    assert solver.first(fs.EDM(sigma_max=25.0), 5) > -math.inf  # -3.2
    assert solver.first(fs.Blurring(size=(4, 4)), 5) == -math.inf


def test_points_corrector_and_last_call_depend_on_what_is_known():
    process = fs.VP()
    exact, network = Default(), Default(predicts="v")
    assert (exact.at(process, 8).points, exact.at(process, 8).std, exact.at(process, 8).relax) == (3, 0.5, 5.0)
    assert (network.at(process, 8).points, network.at(process, 8).std, network.at(process, 8).relax) == (2, 0, math.inf)
    assert [Default(guidance=4.0).at(process, n).points for n in (4, 5, 10, 11)] == [1, 2, 2, 3]
    assert Default(std=2.0).at(process, 8).std == 2.0
    last = [float(process.log_snr(fs.tabulate(s, process, steps=8).grid[-2])) for s in (network, exact)]
    assert last[0] == pytest.approx(2.2, abs=1e-6)
    assert last[1] > 2


def test_guidance_moves_steps_towards_noise_and_the_deviation_of_data_moves_them_all():
    process = fs.VP()
    middle = lambda **options: float(process.log_snr(fs.tabulate(Default(**options), process, steps=8).grid[4]))  # noqa: E731
    assert middle(guidance=4.0) < middle(size=2) - 0.3
    assert middle(predicts="noise", error=0.001) < middle(predicts="v") - 0.3
    assert middle(predicts="v", std=1.0) < middle(predicts="v") - 0.4


@pytest.mark.parametrize("predicts", ["", "noise", "v"])
@pytest.mark.parametrize("name", PROCESSES)
def test_it_takes_a_call_a_step(name, predicts):
    process, solver = oracle.process(name), Default(predicts=predicts)
    zero = fs.to_zero(solver.grid("default"), append=False)
    for n in range(1, 21) if name == "vp" else (1, 2, 3, 5, 11):
        assert fs.tabulate(solver, process, steps=n).nfe == n
        if solver.reaches_zero(process):
            assert fs.tabulate(solver, process, grid=zero, nfe=n).nfe == n


@pytest.mark.parametrize("name", ["vp", "edm"])
def test_with_a_first_call_inside_of_the_grid_the_order_is_one(name):
    """Before it no prediction is kept, so steps there have one point."""
    pr = problem(small(name))

    def error(solver: fs.Solver, n: int) -> float:
        z = fs.sample(pr.denoiser, pr.process, solver=solver, grid=oracle.grid(pr.process, n), x=pr.start)
        return pr.error(z)

    late = GaussianSplit(first=-1.0)
    assert late.order == Default().order == 1
    assert GaussianSplit().order == 2
    assert math.log2(error(late, 64) / error(late, 128)) == pytest.approx(1, abs=0.25)
    assert error(GaussianSplit(first=-30.0), 64) == error(GaussianSplit(), 64)


@pytest.mark.parametrize("name", ["vp", "edm", "flow", "cld"])
@pytest.mark.parametrize("steps", [1, 3])
def test_data_of_its_own_width_is_carried_exactly_from_a_later_first_call_on(name, steps):
    p, std = oracle.process(name), 0.7
    grid = oracle.grid(p, steps)
    first = 0.7 * float(p.log_snr(grid[0])) + 0.3 * float(p.log_snr(grid[1]))
    table = GaussianSplit(std=std, ending=0, first=first).tabulate(p, grid)
    assert float(p.log_snr(next(row.at for row in table.rows if row.at is not None))) == pytest.approx(first)
    assert len(table.rows) > 1 + steps
    for row, (m, r, noises) in zip(table.rows, gaussian(table, std), strict=True):
        exact = p.Sigma(row.t) + std**2 * (p.M(row.t) * transpose(p.M(row.t)))
        assert magnitude(r * transpose(r) - exact) < 1e-12
        assert magnitude(m - p.M(row.t)) < 1e-12 or row.t == table.rows[1].t  # before a call the mean is not known
        assert not noises


def test_upwards_its_times_stay_as_they_are():
    up = fs.tabulate(Default(predicts="noise"), fs.VP(), steps=8, final="state").grid.flip(0)
    table = Default(predicts="noise").tabulate(fs.VP(), up)
    assert torch.equal(table.grid, up)


def test_it_returns_from_a_file(tmp_path):
    for solver in (Default(predicts="noise", guidance=3.0, size=12, std=0.8, error=0.01), GaussianSplit()):
        table = fs.tabulate(solver, fs.VP(), steps=4)
        table.save(tmp_path / "a.table")
        loaded = fs.Tableau.load(tmp_path / "a.table")
        assert loaded.solver == solver
        assert loaded == table
    assert "Infinity" not in (tmp_path / "a.table").read_bytes().decode("latin-1")


@pytest.mark.parametrize(("options", "said"), [
    ({"size": 0}, "^got size=0: give a number of at least 1"),
    ({"std": -1.0}, "^got std=-1.0: give a finite number of at least 0"),
    ({"std": math.inf}, "^got std=inf: give a finite number of at least 0"),
    ({"error": -0.1}, "^got error=-0.1: give a finite number of at least 0"),
])  # fmt: skip
def test_it_refuses_what_makes_no_sense(options, said):
    with pytest.raises(ValueError, match=said):
        Default(**options)


def erring() -> tuple[fs.Mixture, fs.Denoiser]:
    """Six parts in 256 dimensions on VP, exactly and through a noise that is wrong by .04: half of it a shift."""
    g, process = torch.Generator().manual_seed(0), fs.VP()
    exact = fs.Mixture(process, torch.randn(6, 1, 16, 16, generator=g) / 2, 0.1)
    error = 0.028 + 0.028 * torch.randn(1, 16, 16, generator=g)

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a, s = process.alpha(t[0]), process.sigma(t[0])
        return (x - a * exact(x, t[0])) / s + error

    return exact, fs.wrap(network, process, predicts="noise", time="t")


def test_through_a_network_that_errs_it_is_nearer_by_a_factor_than_what_does_not_know():
    exact, seen = erring()
    process, how = exact.process, {"shape": (64, 1, 16, 16)}
    truth = fs.sample(exact, process, solver="multistep-pc-3", grid="logistic", steps=60, **how)

    def miss(n: int, solver: str, grid: str = "default") -> float:
        z = fs.sample(seen, process, solver=solver, grid=grid, steps=n, **how)
        if solver == "default":
            assert float(z.abs().max()) < 1.2 * float(truth.abs().max())
        return float((z - truth).square().mean().sqrt())

    for n in (3, 4, 5, 6, 8, 10):
        others = miss(n, "gaussian-split"), miss(n, "gaussian-split", "logistic"), miss(n, "ddim", "uniform")
        assert 1.8 * miss(n, "default") < min(others), n


def test_every_way_to_name_it_is_told_of_the_denoiser():
    _, seen = erring()
    how = {"steps": 4, "shape": (2, 1, 16, 16)}
    told = fs.sample(seen, fs.VP(), solver=Default(predicts="noise", size=256), **how)
    for solver in (None, "default", Default, Default()):
        assert torch.equal(fs.sample(seen, fs.VP(), solver=solver, **how), told)
        assert torch.equal(fs.solve(seen, fs.VP(), solver=solver, **how).state, told)
    assert not torch.equal(fs.sample(seen, fs.VP(), solver=Default(size=255), **how), told)


def test_a_network_that_predicts_noise_is_not_asked_where_there_is_no_data():
    """Flow starts at alpha = 0, where noise says nothing of data: the first call is made later."""
    network = fs.wrap(lambda x, t: x, fs.Flow(), "noise")
    assert fs.sample(network, fs.Flow(), steps=4, shape=(1, 784)).isfinite().all()


def test_a_table_on_its_own_grid_is_kept():
    solver = Default(predicts="noise")
    first, again = (fs.tabulate(solver, fs.VP(), steps=7) for _ in range(2))
    assert first.rows is again.rows
