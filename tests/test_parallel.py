"""Parallel in time: the sequential run, by rounds of many calls."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import fewstep as fs
import oracle

CASES = [
    *((s, p) for s in ("ddpm", "multistep-pc-3", "edm") for p in ("vp", "cld", "blurring")),
    ("unipc-3", "flow"),
    ("edm-sde", "edm"),
    ("dpm-solver-3", "vp"),
]


def problem(solver: str, process: str, batch: int = 3, steps: int = 24) -> tuple[fs.Mixture, torch.Tensor, fs.Tableau]:
    p = oracle.Problem(process)
    times = oracle.grid(p.process, steps)
    return p.denoiser, p.start[:batch], fs.tabulate(solver, p.process, grid=times)


def run(d, table: fs.Tableau, x: torch.Tensor, parallel, **options) -> fs.Outcome:
    return fs.solve(d, table.process, solver=table, x=x, parallel=parallel, **options)


@pytest.mark.parametrize(("solver", "process"), CASES)
def test_tolerance_0_is_the_sequential_run(solver, process):
    d, x, table = problem(solver, process)
    one = fs.sample(d, table.process, solver=table, x=x, seed=4)
    for window in (None, 5):
        out = run(d, table, x, fs.Parallel(tolerance=0.0, window=window), seed=4)
        assert out.ok
        assert torch.allclose(out.state, one, rtol=1e-10, atol=1e-10)
        assert out.rounds <= table.nfe


@pytest.mark.parametrize(("solver", "process"), CASES)
def test_a_tolerance_saves_rounds(solver, process):
    d, x, table = problem(solver, process)
    one = fs.sample(d, table.process, solver=table, x=x, seed=4)
    out = run(d, table, x, fs.Parallel(tolerance=1e-3, window=None), seed=4)
    assert out.rounds < table.nfe / 2
    assert float((out.state - one).norm() / one.norm()) < 1e-2
    narrow = run(d, table, x, fs.Parallel(tolerance=1e-3, window=6), seed=4)
    assert float((narrow.state - one).norm() / one.norm()) < 1e-2
    assert int(narrow.calls.sum()) < int(out.calls.sum())


def test_a_long_ancestral_run_takes_a_twentieth_of_the_rounds():
    d, x, table = problem("ddpm", "vp", 4, 400)
    one = fs.sample(d, table.process, solver=table, x=x)
    out = run(d, table, x, fs.Parallel(window=200))
    assert out.rounds <= 400 / 20
    assert float((out.state - one).square().mean().sqrt()) < 1e-2 * float(one.std())


def test_a_batch_mate_changes_nothing():
    d, x, table = problem("ddpm", "vp", 5)
    whole = run(d, table, x, fs.Parallel(window=8), seed=4)
    assert len(set(whole.calls.tolist())) > 1
    for i in (0, 3):
        alone = run(d, table, x[i : i + 1], fs.Parallel(window=8), seed=4, first=i)
        assert torch.allclose(alone.state, whole.state[i : i + 1], rtol=1e-12)
        assert int(alone.calls[0]) == int(whole.calls[i])


def test_rounds_and_calls_are_reported():
    d, x, table = problem("ddim", "vp")
    counted, seen = fs.Counted(d), []
    out = run(counted, table, x, fs.Parallel(window=7, chunk=10, report=seen.append))
    assert [r.number for r in seen] == list(range(1, out.rounds + 1))
    assert seen[-1].calls == int(out.calls.sum()) == counted.evaluations
    assert counted.calls > out.rounds  # no more than ten states a call
    assert [r.final for r in seen] == sorted(r.final for r in seen)
    assert "network calls" in str(out)


def test_labels_go_along_with_their_samples():
    d, x, table = problem("ddpm", "vp", 4)
    network = lambda z, t, *, label: d(z, t) + 0.1 * label  # noqa: E731
    bound = fs.wrap(partial(network, label=torch.arange(4.0)[:, None].double()), d.process, predicts="data")
    one = fs.sample(bound, d.process, solver=table, x=x)
    out = run(bound, table, x, fs.Parallel(tolerance=0.0, chunk=7))
    assert torch.allclose(out.state, one, rtol=1e-10)


@pytest.mark.parametrize("how", ["rk45", "parallel"])
def test_labels_go_along_through_guidance_and_other_clocks(how):
    d, x, _ = problem("ddim", "vp", 4)
    p, clock = d.process, fs.EDM()
    network = lambda z, t, *, label: d(z, t) + 0.1 * label  # noqa: E731

    def denoiser(label):
        conditional, plain = (fs.wrap(partial(network, label=v), p, predicts="data") for v in (label, 0.0))
        return fs.retime(fs.guide(conditional, plain, 2.0), clock)

    def solve(label, x):
        if how == "rk45":
            return fs.solve(denoiser(label), clock, solver=fs.RK45(rtol=0.02, atol=0.02), x=x).state
        how_ = fs.Parallel(tolerance=0.0, chunk=3)
        return fs.solve(denoiser(label), clock, solver="ddim", steps=6, x=x, parallel=how_).state

    labels, x = torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None], 80 * x
    alone = torch.cat([solve(labels[i : i + 1], x[i : i + 1]) for i in range(4)])
    assert torch.allclose(solve(labels, x), alone, rtol=1e-9)


def test_further_heads_and_the_square_roots_of_variances():
    d, x, _ = problem("ddim", "vp")

    def with_variance(z, t):
        v = torch.as_tensor(t, dtype=torch.float64)
        return {"x0": d(z, t), "variance": 0.01 * (1 + z**2) * v.reshape(-1, *(1,) * (z.ndim - 1))}

    class Noisy(fs.DDIM):
        """DDIM with noise of a predicted variance."""

        def write(self, w):
            z = w.start
            for t, s in w.steps:
                y, p = w.call(z, t), w.process
                carry = p.R(s) / p.R(t)
                root = w.root(w.head(z, "variance"), w.noise(t, s))
                z = w.row(carry * z + (p.M(s) - carry * p.M(t)) * y + root, s)

    table = Noisy().tabulate(d.process, oracle.grid(d.process, 12))
    one = fs.sample(with_variance, d.process, solver=table, x=x)
    out = run(with_variance, table, x, fs.Parallel(tolerance=0.0))
    assert torch.allclose(out.state, one, rtol=1e-10)


def test_a_chaotic_network_still_ends_exactly():
    _, x, table = problem("ddim", "vp")
    wild = lambda z, t: torch.sin(50 * z)  # noqa: E731, ARG005
    out = run(wild, table, x, fs.Parallel(tolerance=0.0))
    assert torch.equal(out.state, fs.sample(wild, table.process, solver=table, x=x))
    assert out.rounds <= table.nfe


def test_the_door_takes_true_and_a_window():
    d, x, table = problem("ddpm", "vp")
    one = fs.sample(d, table.process, solver=table, x=x)
    for parallel in (True, 9):
        z = fs.sample(d, table.process, solver=table, x=x, parallel=parallel)
        assert torch.allclose(z, one, atol=0.02)
    z = fs.sample(d, table.process, solver=table, x=x, parallel=fs.Parallel(tolerance=0.0), final="denoise")
    assert torch.allclose(z, fs.sample(d, table.process, solver=table, x=x, final="denoise"), atol=1e-10)


def test_what_cannot_be_is_refused():
    d, x, table = problem("ddpm", "vp")
    for options in ({"window": 0}, {"chunk": 0}, {"tolerance": 1.0}, {"tolerance": -1.0}, {"data_std": -1.0}):
        with pytest.raises(ValueError, match="got "):
            fs.Parallel(**options)
    with pytest.raises(ValueError, match="give the one in x0"):
        run(d, table.in_terms_of("noise"), x, True)
    broken = lambda z, t: torch.full_like(z, torch.nan)  # noqa: E731, ARG005
    assert set(run(broken, table, x, True).status) == {"not finite"}
    with pytest.raises(ValueError, match="not finite"):
        fs.sample(broken, table.process, solver=table, x=x, parallel=True)
