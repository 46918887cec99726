"""Bridges: their algebra, the boot row, and that people see z where the loop walks u."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch

import fewstep as fs
import oracle
from fewstep.check.exact import quantile_map
from fewstep.denoiser.base import of_samples
from fewstep.process.base import derivative
from paired_oracle import Paired

SHAPES = {
    **{name: make() for name, make in fs.BRIDGES.items()},
    "indi-brownian": fs.InDI(kind_of_noise="brownian", noise=0.1),
    "unidb-exact": fs.UniDB(variance="exact", gamma_inv=1e-3),
    "interpolant-trig": fs.Interpolant(path="trig"),
}
MADE = {name: fs.SOLVERS[name]() for name in oracle.DISTINCT}
EXACT = [name for name, made in MADE.items() if "scalar" in made.point_mass and not made.heads]
PINNED = [name for name, p in SHAPES.items() if p.pinned]


def times(p: fs.Bridge, count: int = 40) -> torch.Tensor:
    return torch.linspace(p.t_max, p.t_min, count + 2, dtype=torch.float64)[1:-1]


@pytest.mark.parametrize("name", SHAPES)
def test_log_snr_is_that_of_m_and_r_and_its_inverse_leads_back(name):
    p = SHAPES[name]
    t = times(p)
    lam = p.log_snr(t)
    torch.testing.assert_close(lam, p.alpha(t).log() - p.sigma(t).log(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(p.inverse_log_snr(lam), t, rtol=1e-12, atol=1e-13)
    assert p.inverse_log_snr(math.inf) == 0.0
    assert p.log_snr(0.0) == math.inf
    assert bool((lam.diff() > 0).all())


@pytest.mark.parametrize("name", PINNED)
def test_a_pinned_end_is_y_alone(name):
    p = SHAPES[name]
    assert p.sigma(p.end) == 0.0
    assert p.alpha(p.end) == pytest.approx(0.0, abs=1e-7)
    assert p.n(p.end) == pytest.approx(1.0, abs=1e-7)
    assert p.log_snr(p.end) == -math.inf


def ve(t):
    return torch.zeros_like(t), 2 * t, 1 / (80.0**2 - t**2)


def vp(t):
    beta = 0.1 + 2 * t
    b, whole = 0.1 * t + t**2, 1.1
    return -beta / 2, beta, 1 / (torch.exp(-b) * (math.exp(whole) - torch.exp(b)))


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("i2sb", lambda t: (torch.zeros_like(t), torch.ones_like(t), 1 / (0.1410272507825739 - t))),
        ("ddbm-ve", ve),
        ("ddbm-vp", vp),
        ("ir-sde", lambda t: (-torch.ones_like(t), torch.full_like(t, 2 * (50 / 255) ** 2), torch.zeros_like(t))),
    ],
)
def test_drift_and_noise_are_those_of_the_process_that_was_pinned(name, base):
    """Doob's transform keeps g^2 and adds g^2 d log p(y | z)/dz, here -g^2 h u, to the drift f z."""
    p = SHAPES[name]
    t = times(p, 12)
    f, g2, h = base(t)
    torch.testing.assert_close(p.GG(t), g2, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(p.F(t), f - g2 * h, rtol=1e-9, atol=1e-12)


def test_the_exact_variance_of_unidb_solves_its_equation():
    """R^2' = 2 F R^2 + 2 noise^2, the noise of the process that is steered."""
    p = SHAPES["unidb-exact"]
    t = times(p, 12)
    torch.testing.assert_close(p.GG(t), torch.full_like(t, 2 * p.noise**2), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", SHAPES)
def test_end_of_a_run_is_z_and_one_call_is_the_prediction_at_y(name):
    p, g = SHAPES[name], torch.Generator().manual_seed(3)
    y = torch.randn(5, 2, dtype=torch.float64, generator=g)
    asked = []

    def net(z, t):
        asked.append((z, t))
        return 0.4 * z - 0.1

    x = fs.sample(fs.bridged(net, y), p, steps=1)
    assert len(asked) == 1
    if p.pinned:
        torch.testing.assert_close(asked[0][0], y, rtol=1e-14, atol=0)
        torch.testing.assert_close(x, 0.4 * y - 0.1, rtol=1e-6, atol=0)
    middle, eps = float(times(p, 3)[1]), torch.randn(5, 2, dtype=torch.float64, generator=g)
    start = p.diffuse(0.3 + 0 * y, p.t_max, eps, y)
    x = fs.sample(
        fs.bridged(lambda z, t: 0 * z + 0.3, y), p, solver="ddim", x=start,
        grid=torch.tensor([p.t_max, middle], dtype=torch.float64), noise=eps[None],
    )  # fmt: skip
    torch.testing.assert_close(x, p.diffuse(0.3 + 0 * y, middle, eps, y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("process", ["i2sb", "ir-sde"])
@pytest.mark.parametrize("name", EXACT)
def test_every_row_of_every_solver_carries_a_point_mass_and_y(name, process):
    _rows_carry(SHAPES[process], fs.SOLVERS[name]())


@pytest.mark.parametrize("process", SHAPES)
@pytest.mark.parametrize(
    "name", ["ddpm", "ddim", "multistep-2", "multistep-pc-2", "unipc-3", "dpmpp-2s", "dpmpp-2m-sde"]
)
def test_every_row_on_every_bridge_carries_a_point_mass_and_y(name, process):
    _rows_carry(SHAPES[process], fs.SOLVERS[name]())


def _rows_carry(p: fs.Bridge, solver: fs.Solver) -> None:
    """Row by row: the mean is m x0 + n y, and the noises' covariance R^2."""
    last = float(p.inverse_log_snr(3.0))  # away from singular ends, which not every solver takes
    first = p.end if p.pinned else float(p.inverse_log_snr(-3.0))
    inner = p.inverse_log_snr(torch.tensor([-1.6, 0.1, 0.9, 2.2])).tolist()
    table = solver.tabulate(p, torch.tensor([first, *inner, last], dtype=torch.float64))
    y, x0 = torch.tensor([[0.7, -2.0]], dtype=torch.float64), 0.4
    rows = []
    x = p.diffuse(x0 + 0 * y, first, 0 * y, y)
    end = fs.sample(
        fs.bridged(lambda z, t: torch.full_like(z, x0), y), p, solver=table, x=x,
        noise=torch.zeros(max(1, len(table.noises)), 1, 2, dtype=torch.float64),
        after=lambda row, t, z: (rows.append((t, z)), z)[1],
    )  # fmt: skip
    assert torch.equal(end, rows[-1][1])
    for t, z in rows:
        torch.testing.assert_close(z, p.alpha(t) * x0 + p.n(t) * y, rtol=1e-10, atol=1e-10)
    start = p.sigma(first) ** 2
    for row in table.eliminate().rows[1:]:
        if row.given is None:
            found = sum(c**2 * (start if s[0] == "z" else 1.0) for s, c in row.form if s[0] in ("z", "xi"))
            assert found == pytest.approx(p.sigma(row.t) ** 2, rel=1e-10)


@pytest.mark.parametrize("process", ["i2sb", "ddbm-vp", "ir-sde"])
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("multistep-2", 2), ("multistep-pc-2", 3), ("unipc-3", 2)])
def test_orders_on_the_posterior_of_pairs(name, order, process):
    """Against the exact map of quantiles given y, on a grid that is not uniform."""
    p = SHAPES[process]
    paired, y = Paired(p), torch.tensor([[0.35]], dtype=torch.float64).expand(16, 1)
    weights, means, stds = paired.posterior(y[0, 0])
    alone = fs.Mixture(p, means[:, None], stds, weights)
    grids = {n: oracle.grid(p, n) for n in (16, 64)}
    first, last = (float(t) for t in (grids[16][0], grids[16][-1]))
    g = torch.Generator().manual_seed(0)
    u = p.diffuse(alone.sample(16, g), first, torch.randn(16, 1, dtype=torch.float64, generator=g))
    exact = quantile_map(alone, u, first, last) + p.n(last) * y
    far = {}
    for n, grid in grids.items():
        end = fs.sample(paired.given(y), p, solver=name, grid=grid, x=u + p.n(first) * y)
        far[n] = float((end - exact).norm())
    assert math.log2(far[16] / far[64]) / 2 > order - 0.25


@pytest.mark.parametrize("name", PINNED)
def test_euler_from_a_pinned_end_keeps_a_point(name):
    """In the time itself R' is infinite at y, and one step from near it ended many times as wide as the data."""
    p = SHAPES[name]
    for first in (p.end, float(p.inverse_log_snr(-2.5))):
        for steps in (1, 2, 5):
            grid = torch.linspace(first, 0.0, steps + 1, dtype=torch.float64)
            euler, ddim = (fs.tabulate(solver, p, grid=grid) for solver in ("euler", "ddim"))
            y = torch.full((2, 3), 0.7, dtype=torch.float64)
            net = lambda z, t: torch.tanh(z)  # noqa: E731
            x = p.prior(torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), first, y)
            ends = [fs.sample(fs.bridged(net, y), p, solver=table, x=x, seed=3) for table in (euler, ddim)]
            torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["ir-sde", "resshift", "indi"])
def test_a_start_that_is_not_pinned_is_y_and_noise(name):
    p, y = SHAPES[name], torch.tensor([[0.7, -2.0]], dtype=torch.float64).expand(3, 2)
    seen = []
    fs.sample(fs.bridged(lambda z, t: (seen.append(z), z)[1], y), p, solver="ddim", steps=1, seed=2)
    eps = fs.Noise(2).normal("initial", 0, (3, 2), dtype=torch.float64)
    torch.testing.assert_close(seen[0], y + p.sigma(p.t_max) * eps, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(p.prior(eps, y=y), seen[0], rtol=1e-12, atol=1e-12)


def test_one_y_serves_all_samples():
    p, y = fs.I2SB(variance=1.0), torch.randn(1, 3, generator=torch.Generator().manual_seed(5))
    net = lambda z, t: 0.3 * z  # noqa: E731
    many = fs.sample(fs.bridged(net, y), p, solver="ddpm", steps=4, shape=(5, 3))
    each = fs.sample(fs.bridged(net, y.expand(5, 3)), p, solver="ddpm", steps=4)
    assert torch.equal(many, each)


def test_samples_have_the_law_of_x0_given_y():
    p = fs.I2SB(variance=0.5)
    paired, y = Paired(p), torch.full((4096, 1), 0.35, dtype=torch.float64)
    weights, means, stds = paired.posterior(y[0, 0])
    mean = float((weights * means).sum())
    std = math.sqrt(float((weights * (stds**2 + means**2)).sum()) - mean**2)
    inner = p.inverse_log_snr(torch.linspace(-3.5, 4, 60)).tolist()
    grid = torch.tensor([p.end, *inner, 0.0], dtype=torch.float64)
    x = fs.sample(paired.given(y), p, solver="multistep-2", grid=grid, seed=4)
    assert float(x.mean()) == pytest.approx(mean, abs=4 * std / 64)
    assert float(x.std()) == pytest.approx(std, rel=0.04)


@pytest.mark.parametrize("calls", [5, 10])
def test_the_default_is_nearer_to_the_posterior_than_dbim_on_its_grid(calls):
    p, y = fs.DDBMVP(), torch.full((128, 1), 0.35, dtype=torch.float64)
    paired, share = Paired(p), (torch.arange(128, dtype=torch.float64) + 0.5) / 128
    weights, means, stds = paired.posterior(y[0, 0])
    draws = fs.Mixture(p, means[:, None], stds, weights).sample(200_000, torch.Generator().manual_seed(0))
    exact = torch.quantile(draws.flatten(), share)
    eps = torch.special.ndtri(share)[None, :, None]
    times = torch.linspace(0.999, 1e-4, calls, dtype=torch.float64)
    grid = torch.cat([torch.ones(1, dtype=torch.float64), times])

    def off(**how):
        x = fs.sample(paired.given(y), p, noise=eps, **how)
        return float((x.flatten().sort().values - exact).abs().mean())

    best = min(off(solver=name, grid=grid) for name in ("dbim-1", "dbim-2", "dbim-3"))
    assert off(steps=calls) < best / 2


@pytest.mark.parametrize("name", ["i2sb", "ir-sde", "unidb"])
def test_log_prob_is_that_of_x0_given_y(name):
    """At a time at which hardly any noise is left, against the density of the posterior in closed form."""
    p = SHAPES[name] if name != "i2sb" else fs.I2SB(variance=1.0)
    p = dataclasses.replace(p, t_max=8.0) if name == "ir-sde" else p
    paired, y = Paired(p), torch.tensor([[-0.5], [0.3], [1.0]], dtype=torch.float64)
    x, t = torch.tensor([[-0.9], [0.1], [1.2]], dtype=torch.float64), float(p.inverse_log_snr(4.0))
    found = fs.log_prob(paired.given(y), p, x, t=t)
    for k in range(3):
        weights, means, stds = paired.posterior(y[k, 0])
        m, noise = p.alpha(t), p.sigma(t)
        law = torch.distributions.Normal(m * means + p.n(t) * y[k, 0], (m**2 * stds**2 + noise**2).sqrt())
        exact = float((weights.log() + law.log_prob(x[k, 0])).logsumexp(0))
        assert float(found.nats[k]) == pytest.approx(exact, abs=2e-3)


def test_callbacks_see_z_and_hooks_edit_it():
    p, y = fs.I2SB(variance=1.0), torch.full((2, 3), 2.0, dtype=torch.float64)
    seen = []
    net = lambda z, t: torch.zeros_like(z)  # noqa: E731
    told = lambda row, t, z, d: seen.append((t, z.clone()))  # noqa: E731
    zero = torch.zeros(4, 2, 3, dtype=torch.float64)
    fs.sample(fs.bridged(net, y), p, solver="ddim", steps=4, callback=told, noise=zero)
    assert len(seen) == 4
    for t, z in seen:
        torch.testing.assert_close(z, p.n(t) * y)
    end = fs.sample(fs.bridged(net, y), p, solver="ddim", steps=2, noise=zero, after=lambda row, t, z: z + 0.5)
    t = float(fs.tabulate("ddim", p, steps=2).grid[1])
    assert t > 0
    torch.testing.assert_close(end, torch.full_like(end, 0.5))


def test_a_sample_is_its_own_in_any_batch():
    p, y = fs.GOUB(), torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    denoiser = fs.bridged(lambda z, t: 0.5 * z, y)
    whole = fs.sample(denoiser, p, solver="ddpm", steps=5, seed=8)
    part = fs.sample(of_samples(denoiser, torch.arange(2, 5), 6), p, solver="ddpm", steps=5, seed=8, first=2)
    assert torch.equal(whole[2:5], part)


@pytest.mark.parametrize("predicts", ["noise", "v", "flow", "score"])
def test_what_a_network_predicts_is_of_u(predicts):
    """A network that returns the exact prediction of u, shown z, gives back the exact data."""
    p, y, x0 = fs.IRSDE(noise=0.5), torch.randn(4, 3).double(), 0.25

    def net(z, t, y):
        wide = t[:, None].double()
        m, r = p.alpha(wide), p.sigma(wide)
        eps = (z - p.n(wide) * y - m * x0) / r
        return {"noise": eps, "v": m * eps - r * x0, "flow": eps - x0, "score": -eps / r}[predicts]

    denoiser = fs.bridged(fs.wrap(partial(net, y=y), p, predicts, dtype=torch.float64), y)
    x = fs.sample(denoiser, p, solver="multistep-2", steps=4)
    torch.testing.assert_close(x, torch.full_like(x, x0), rtol=0, atol=1e-9)
    at = denoiser.at(torch.tensor([0.3, 0.9, 1.4, 2.0], dtype=torch.float64))
    torch.testing.assert_close(at(torch.randn(4, 3).double()), torch.full((4, 3), x0).double(), rtol=0, atol=1e-9)


def test_guidance_and_counters_around_a_bridge():
    p, y = fs.I2SB(variance=1.0), torch.randn(3, 2)
    nets = [fs.wrap(lambda z, t, c=c: c + 0 * z, p, "data") for c in (1.0, 3.0)]
    counted = fs.Counted(fs.bridged(fs.guide(*nets, 2.0), y))
    x = fs.sample(counted, p, solver="ddim", steps=3)
    low, high = sorted((1.0 + 2.0 * (3.0 - 1.0), 3.0 + 2.0 * (1.0 - 3.0)))
    assert float(x.mean()) in (pytest.approx(low), pytest.approx(high))
    assert counted.calls == 3


def test_retimed_between_bridges_is_the_same_sampler():
    a, b, y = fs.DDBMVP(), fs.I2SB(variance=0.8), torch.randn(3, 2).double()
    paired = Paired(a)
    lam = torch.linspace(-2.0, 3.0, 9, dtype=torch.float64)
    runs = []
    for p in (a, b):
        denoiser = paired.given(y) if p is a else fs.retime(paired.given(y), b, source=a)
        t = p.inverse_log_snr(lam)
        x = p.diffuse(0 * y, float(t[0]), torch.ones_like(y), y)
        runs.append((fs.sample(denoiser, p, solver="multistep-2", grid=t, x=x), p, float(t[-1])))
    whites = [(z - p.n(t) * y) / p.sigma(t) for z, p, t in runs]
    torch.testing.assert_close(whites[0], whites[1], rtol=1e-9, atol=1e-9)


def test_presets_read_published_networks():
    """Each network answers in its own convention for the one picture x0, and is told an index or level in range."""
    y, x0 = torch.rand(2, 1, 4, 4), 0.25
    times = {"ir": fs.presets.ir_sde_times(), "res": fs.presets.resshift_times()}

    def ir_sde(z, y, index):
        assert bool(((index >= 0) & (index <= 100)).all())
        t = np.interp(index.double().numpy(), np.arange(101), times["ir"].numpy())
        t = torch.from_numpy(t)[:, None, None, None]
        p = fs.IRSDE()
        return ((z - p.n(t) * y - p.alpha(t) * x0) / p.sigma(t)).float()

    def resshift(z, index, lq):
        assert lq.shape == z.shape
        assert bool(((index >= 0) & (index <= 14)).all())
        return torch.full_like(z, x0)

    def ddbm(z, label, xT):
        assert xT.shape == z.shape
        return torch.zeros_like(z)

    made = fs.presets.ir_sde(ir_sde, y)
    x = fs.sample(made, made.process, solver="ddpm", grid=times["ir"][::10].flip(0))
    torch.testing.assert_close(x, torch.full_like(x, x0), atol=1e-4, rtol=0)
    made = fs.presets.resshift(partial(resshift, lq=y), y)
    grid = torch.cat([times["res"].flip(0), torch.zeros(1)])
    torch.testing.assert_close(fs.sample(made, made.process, solver="resshift", grid=grid), torch.full_like(y, x0))
    made = fs.presets.ddbm(partial(ddbm, xT=y), y, fs.DDBMVP())
    assert fs.sample(made, made.process, steps=4).isfinite().all()
    level = []
    made = fs.presets.i2sb(lambda z, at: (level.append(at), torch.zeros_like(z))[1], y)
    assert torch.equal(fs.sample(made, made.process, steps=1), y)  # its first prediction is y
    assert float(level[0][0]) == pytest.approx(1000.0)


def test_a_network_of_vp_runs_on_a_bridge_from_its_pinned_end():
    vp, y, x0 = fs.VP(), torch.randn(3, 2).double(), 0.25

    def net(z, t):
        t = t[:, None].double()
        return (z - vp.alpha(t) * x0) / vp.sigma(t)

    denoiser = fs.retime(fs.wrap(net, vp, "noise", dtype=torch.float64), fs.GOUB())
    x = fs.sample(fs.bridged(denoiser, y), fs.GOUB(), steps=4)
    torch.testing.assert_close(x, torch.full_like(x, x0), rtol=0, atol=1e-6)


def test_tables_of_bridges_are_files(tmp_path):
    p, y = fs.DDBMVE(sigma_max=1.0), torch.randn(2, 3)
    table = fs.tabulate("multistep-2", p, steps=5)
    assert table.nfe == 5
    table.save(tmp_path / "bridge.table")
    loaded = fs.Tableau.load(tmp_path / "bridge.table")
    assert loaded == table
    assert loaded.process == p
    run = lambda solver: fs.sample(fs.bridged(lambda z, t: 0.3 * z, y), p, solver=solver)  # noqa: E731
    assert torch.equal(run(table), run(loaded))


def test_refusals_say_what_to_give():
    p, y = fs.I2SB(), torch.randn(2, 3)
    net = lambda z, t: z  # noqa: E731
    with pytest.raises(ValueError, match="give fewstep.bridged"):
        fs.sample(net, p, steps=3, shape=(2, 3))
    with pytest.raises(ValueError, match="one y a sample"):
        fs.sample(fs.bridged(net, y), p, steps=3, shape=(4, 3))
    with pytest.raises(ValueError, match="y already"):
        fs.bridged(fs.bridged(net, y), y)
    with pytest.raises(ValueError, match="started from x=y"):
        fs.InDI(noise=0.0)
    with pytest.raises(ValueError, match="same process"):
        fs.sample(fs.bridged(fs.wrap(net, fs.GOUB(), "data"), y), p, steps=3)
    with pytest.raises(ValueError, match="not finite"):
        fs.bridged(net, y / 0)


def test_without_noise_y_is_the_noise():
    """InDI at noise 0: x_s = (1 - s/t) D + (s/t) x_t from x_1 = y, which is the flow's DDIM started from y."""
    y, grid = torch.randn(3, 2).double(), [1.0, 0.7, 0.2, 0.0]
    x = y
    for t, s in zip(grid, grid[1:], strict=False):
        x = (1 - s / t) * (0.4 * x - 0.1 + t) + s / t * x
    found = fs.sample(
        lambda z, t: 0.4 * z - 0.1 + t, fs.Flow(), solver="ddim", grid=torch.tensor(grid, dtype=torch.float64), x=y
    )
    torch.testing.assert_close(found, x, rtol=1e-14, atol=1e-14)


def test_rates_are_derivatives():
    for p in SHAPES.values():
        t = times(p, 7)
        torch.testing.assert_close(derivative(p._alpha, t), p.F(t) * p.alpha(t), rtol=1e-10, atol=1e-10)


def toward_y(z, t, y):
    return 0.6 * torch.tanh(z) + 0.3 * y


def held(p, y):
    return fs.bridged(fs.wrap(partial(toward_y, y=y), p, "data", dtype=torch.float32), y)


@pytest.mark.parametrize("name", ["i2sb", "interpolant", "ir-sde", "goub"])
def test_an_encoding_begins_short_of_the_end_and_leads_back(name):
    p, y = SHAPES[name], torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)
    denoiser = Paired(p).given(y)
    x = torch.tensor([[-0.9, 0.1], [0.3, -0.7], [1.2, 0.2], [0.4, 1.0]], dtype=torch.float64)
    z = fs.encode(denoiser, p, x, solver="multistep-pc-2", steps=120)
    back = fs.decode(denoiser, p, z, solver="multistep-pc-2", steps=120)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-2)
    if p.pinned:
        with pytest.raises(ValueError, match="where a state says nothing of the data: start it at"):
            fs.encode(denoiser, p, x, grid=torch.tensor([p.end, p.end / 2, p.end / 10], dtype=torch.float64))


def test_boomerang_is_back_at_data_from_a_state_on_the_bridge():
    """A denoiser that knows the data leads to it, and is shown z = m x0 + n y + R eps on its way."""
    p, y = fs.I2SB(variance=1.0), torch.full((3, 2), 5.0, dtype=torch.float64)
    seen, x0 = [], torch.tensor([[0.2, -0.4]], dtype=torch.float64).expand(3, 2)
    denoiser = fs.bridged(lambda z, t: (seen.append(z), x0)[1], y)
    t, table = 0.5, fs.tabulate("ddim", p, grid=torch.tensor([0.5, 0.2, 0.0], dtype=torch.float64))
    x = fs.boomerang(denoiser, p, x0, t=t, solver="ddim", grid=table.grid, seed=1)
    torch.testing.assert_close(x, x0, rtol=0, atol=1e-12)
    eps = fs.Noise(1).normal("boomerang", 0, (3, 2), dtype=torch.float64)
    torch.testing.assert_close(seen[0], p.diffuse(x0, t, eps, y))


def test_a_fit_runs_from_y_with_the_y_of_each_run():
    p, y = fs.IRSDE(noise=0.5), torch.randn(24, 2, generator=torch.Generator().manual_seed(2))
    options = {"steps": 3, "shape": (2,), "samples": 16, "held_out": 8, "batch": 8, "solver": "multistep-2",
               "grid": "log-snr", "teacher_steps": 30, "progress": False}  # fmt: skip
    table = fs.fit(held(p, y), p, descent=fs.fitting.Descent(iterations=20), **options)
    assert table.card["rmse"]["fitted"] < 0.7 * table.card["rmse"]["start"]

    def far(solver, **how):
        x = p.prior(torch.randn(24, 2, generator=torch.Generator().manual_seed(3)), y=y)
        return fs.sample(held(p, y), p, solver=solver, x=x, **how)

    exact, start = far("multistep-3", steps=60), far("multistep-2", grid="log-snr", steps=3)
    assert float((far(table) - exact).norm()) < float((start - exact).norm())
    with pytest.raises(ValueError, match="got 5 ends y for 24 samples"):
        fs.fit(held(p, y[:5]), p, **options)
    with pytest.raises(ValueError, match="whose runs begin at y with noise of their own"):
        fs.fit(held(fs.I2SB(), y), fs.I2SB(), **options)


def test_statistics_take_each_samples_own_y():
    p, g = fs.I2SB(), torch.Generator().manual_seed(4)
    y, x = torch.randn(12, 2, generator=g), torch.randn(12, 2, generator=g)
    apart = fs.stats.measure(
        None, p, x, nodes=3, batch=5, v3=False, progress=False, conditioned=lambda where: held(p, y[where])
    )
    together = fs.stats.measure(held(p, y), p, x, nodes=3, batch=5, v3=False, progress=False)
    assert torch.equal(together.eps2, apart.eps2)
    found = [fs.stats.errors_of(held(p, y), x, batch=b) for b in (5, 12)]
    assert found[0].errors == pytest.approx(found[1].errors, rel=1e-5)
    assert found[0].predicts == "data"
