"""GITS: the dynamic programme against exhaustive search, the costs against their definition, and what it is for."""

from __future__ import annotations

import itertools

import pytest
import torch

import fewstep as fs
import oracle
from fewstep.fitting.search import gits, klub, path_costs, step_costs
from fewstep.stats.trajectory import cheapest

torch.set_num_threads(1)


@pytest.mark.parametrize("gamma", [1.0, 1.15, 2.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_the_cheapest_way_is_the_best_of_all(gamma, steps):
    ways = [(0, *inner, 6) for inner in itertools.combinations(range(1, 6), steps - 1)]
    for seed in range(10):
        g = torch.Generator().manual_seed(seed)
        costs = torch.rand(7, 7, generator=g, dtype=torch.float64).triu(1)
        costs[costs == 0] = torch.inf
        price = lambda way: sum(gamma**m * float(costs[i, j]) for m, (i, j) in enumerate(itertools.pairwise(way)))  # noqa: B023, E731
        assert tuple(cheapest(costs, steps, gamma)) == min(ways, key=price)


def test_costs_are_the_misses_of_one_step():
    p = oracle.process("vp")
    times = oracle.grid(p, 4)
    costs = step_costs(oracle.denoiser(p), p, times, shape=(8, 1), teacher=fs.DDIM(), seed=2, dtype=torch.float64)
    assert bool(costs.tril().triu(0).diagonal().isinf().all())
    assert float(costs.diagonal(1).abs().max()) < 1e-12  # the teacher is DDIM itself
    whole = fs.sample(oracle.denoiser(p), p, solver="ddim", grid=times, shape=(8, 1), seed=2, dtype=torch.float64)
    once = fs.sample(
        oracle.denoiser(p), p, solver="ddim", grid=times[[0, -1]], shape=(8, 1), seed=2, dtype=torch.float64
    )
    miss = (whole - once).abs().mean() / p.alpha(float(times[-1]))
    assert float(costs[0, -1]) == pytest.approx(float(miss), rel=1e-10)


@pytest.mark.parametrize(("name", "gain"), [("edm", 0.95), ("vp", 0.98), ("flow", 1.01), ("blurring", 0.9)])
def test_a_found_grid_beats_the_default_one(name, gain):
    """On flow, whose equal steps are near the best that 64 samples find, it is as good."""
    p = oracle.process(name)
    model = oracle.denoiser(p)
    shape = (64, *model.means.shape[1:])
    found = gits(model, p, shape=shape, points=20, dtype=torch.float64)
    run = lambda solver, grid, steps: fs.sample(  # noqa: E731
        model, p, solver=solver, grid=grid, steps=steps, shape=shape, seed=7, dtype=torch.float64
    )
    exact = run("multistep-3", "log-snr", 60)
    error = lambda grid: float((run("ddim", grid, 5) - exact).norm())  # noqa: E731
    assert len(found(p, 5)) == 6
    assert error(found) < gain * error("default")


def test_what_cannot_be_cut_is_refused():
    p = oracle.process("vp")
    found = gits(oracle.denoiser(p), p, shape=(2, 1), points=4)
    with pytest.raises(ValueError, match="at most 4"):
        found(p, 5)
    with pytest.raises(ValueError, match="search again"):
        found(fs.EDM(), 3)
    with pytest.raises(ValueError, match="one call a step"):
        gits(oracle.denoiser(p), p, shape=(2, 1), points=4, teacher=fs.EDMHeun())
    with pytest.raises(ValueError, match="gamma=0"):
        gits(oracle.denoiser(p), p, shape=(2, 1), points=4, gamma=0)


@pytest.mark.parametrize("name", ["vp", "cld", "blurring"])
def test_path_costs_are_the_integral_of_what_the_prediction_moves(name):
    p = oracle.process(name)
    model, times = oracle.denoiser(p), oracle.grid(p, 200)
    shape = (32, *model.means.shape[1:])
    costs = path_costs(model, p, times, shape=shape, teacher=fs.DDIM(), dtype=torch.float64)
    assert bool((costs.triu(1)[costs.isfinite()] >= 0).all())
    assert float(costs[0, -1]) > float(costs[0, 100] + costs[100, -1])  # more steps lose less
    seen = []
    fs.sample(model, p, solver="ddim", grid=times, shape=shape, dtype=torch.float64,
              callback=lambda row, t, z, d: seen.append(p.coordinates(d)))  # fmt: skip
    n = torch.exp(2 * p.log_snr(times)) if name != "blurring" else None
    if n is not None:
        off = torch.stack([(d - seen[20]).square().flatten(1).sum(1).mean() for d in seen[20:91]])
        wanted = 0.5 * torch.trapezoid(off, n[20:91])
        assert float(costs[20, 90]) == pytest.approx(float(wanted), rel=1e-9)


def test_the_grid_of_least_divergence_is_where_its_costs_are_least():
    p = oracle.process("vp")
    model = oracle.denoiser(p)
    options = {"shape": (8, 1), "seed": 2, "dtype": torch.float64}
    times = fs.GRIDS["log-snr"](p, 12)
    costs = path_costs(model, p, times, teacher=fs.Multistep(points=2), **options)
    found = klub(model, p, grid=times, points=12, **options)(p, 4)
    ways = [(0, *inner, 12) for inner in itertools.combinations(range(1, 12), 3)]
    best = min(ways, key=lambda way: sum(float(costs[i, j]) for i, j in itertools.pairwise(way)))
    assert found.tolist() == times[list(best)].tolist()
    with pytest.raises(ValueError, match="ends without noise"):
        klub(
            oracle.denoiser(oracle.process("flow")),
            oracle.process("flow"),
            grid=torch.tensor([1.0, 0.5, 0.0]),
            **options,
        )
