"""Log densities, bounds and bits against closed forms: mixtures, Gaussians, points, levels."""

from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
from fewstep.denoiser import Dataset, Gaussian, Mixture
from fewstep.likelihood.lift import data_time
from fewstep.process import CLD, EDM, PROCESSES, VP, Blurring, Discrete, Process
from fewstep.process.operator import apply, inverse
from fewstep.solver import DDIM, DDPM
from fewstep.solver.sde.ancestral import added_noise, posterior

MEANS = torch.tensor([[-1.0, 0.5], [0.2, -0.8], [1.1, 1.0]], dtype=torch.float64)
STDS, WEIGHTS = torch.tensor([0.5, 0.3, 0.4]), torch.tensor([0.3, 0.45, 0.25])


def problem(process: Process, count: int = 6) -> tuple[Mixture, torch.Tensor, torch.Tensor]:
    """A mixture in two dimensions on a process, draws of it, and the log density of the data itself."""
    shape = getattr(process, "size", (2,))
    mixture = Mixture(process, MEANS.reshape(3, *shape), STDS, WEIGHTS)
    x = mixture.sample(count, torch.Generator().manual_seed(0))
    normal = torch.distributions.MultivariateNormal
    parts = [normal(m, s**2 * torch.eye(2, dtype=torch.float64)) for m, s in zip(MEANS, STDS, strict=True)]
    flat = x.reshape(count, 2)
    exact = torch.stack([p.log_prob(flat) + w.log() for p, w in zip(parts, WEIGHTS, strict=True)]).logsumexp(0)
    return mixture, x, exact


def process(name: str) -> Process:
    if name == "blurring":
        return Blurring(size=(1, 2), sigma_blur_max=1.0)
    return PROCESSES[name](size=(1, 2)) if hasattr(PROCESSES[name], "size") else PROCESSES[name]()


# --- log_prob


@pytest.mark.parametrize("name", [n for n in PROCESSES if n != "cld"])
def test_log_prob_is_the_density_at_t_min(name):
    p = process(name)
    mixture, x, _ = problem(p, 3)
    prior = lambda z: fs.marginal_log_prob(mixture, z, p.t_max)  # noqa: E731
    found = fs.log_prob(mixture, p, x, prior=prior, tolerance=1e-5)
    exact = fs.marginal_log_prob(mixture, p.coordinates(x), data_time(p))
    torch.testing.assert_close(found.nats, exact, rtol=0, atol=5e-4)
    assert not found.error.any()
    assert found.says.startswith("the value")


@pytest.mark.parametrize("p", [VP(t_min=1e-5, t_max=1.5), EDM(sigma_min=1e-3, sigma_max=3e4)], ids=["vp", "edm"])
def test_log_prob_is_the_density_of_data(p):
    mixture, x, exact = problem(p)
    found = fs.log_prob(mixture, p, x, tolerance=1e-7)
    assert float((found.nats - exact).abs().max()) < 1e-4


def test_log_prob_integrates_to_one():
    """A law of its own: that of the sampler, whose prior is not the data's marginal at t_max."""
    p = VP(t_max=0.7)
    mixture = Mixture(p, torch.tensor([[-1.0], [0.8]]), torch.tensor([0.5, 0.3]))
    x = torch.linspace(-6, 6, 601, dtype=torch.float64)[:, None]
    found = fs.log_prob(mixture, p, x)
    assert abs(float(found.nats.exp().sum() * 0.02) - 1) < 1e-6
    assert float((found.nats - fs.marginal_log_prob(mixture, x, p.t_min)).abs().max()) > 1e-2


def test_cld_bound_is_below_and_tight():
    """Its gap falls with t_min; more velocities do not lower it."""
    mixture, x, exact = problem(CLD())
    prior = lambda z: fs.marginal_log_prob(mixture, z, 1.0)  # noqa: E731
    found = fs.log_prob(mixture, CLD(), x, prior=prior, draws=4, tolerance=1e-4)
    assert "lower bound" in found.says
    assert float((found.nats - exact).abs().max()) < 5e-3
    assert bool(((found.nats - exact).abs() < 5 * found.error + 1e-3).all())
    early = fs.log_prob(mixture, CLD(), x, t=0.05, prior=prior, draws=4, tolerance=1e-4)
    assert float((early.nats - exact).abs().max()) > 20 * float((found.nats - exact).abs().max())
    assert bool(fs.log_prob(mixture, CLD(), x[:1], prior=prior, draws=1, tolerance=1e-3).error.isnan().all())


def test_hutchinson_and_its_error_bar():
    p, std = VP(), torch.linspace(0.2, 1.5, 8, dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=g))[0]
    oracle = Gaussian(p, torch.zeros(8), std)
    turned = lambda z, t: oracle(z @ turn, t) @ turn.T  # noqa: E731  # a Jacobian that is not diagonal
    x = torch.randn(20, 8, dtype=torch.float64, generator=g) * std @ turn.T
    exact = fs.log_prob(turned, p, x)
    found = fs.log_prob(turned, p, x, divergence="hutchinson", probes=32)
    ratio = (found.nats - exact.nats) / found.error
    assert 0.5 < float(ratio.square().mean().sqrt()) < 1.7
    assert abs(float((found.nats - exact.nats).mean())) < 4 * float(found.error.mean()) / 20**0.5
    assert bool(fs.log_prob(turned, p, x[:2], divergence="hutchinson", probes=1).error.isnan().all())


def test_a_batch_mate_changes_nothing():
    p = VP()
    mixture, x, _ = problem(p)
    whole = fs.log_prob(mixture, p, x, divergence="hutchinson", seed=3)
    part = fs.log_prob(mixture, p, x[2:4], divergence="hutchinson", seed=3, first=2)
    torch.testing.assert_close(part.nats, whole.nats[2:4], rtol=0, atol=1e-10)
    assert part.calls.tolist() == whole.calls[2:4].tolist()
    assert len(set(whole.calls.tolist())) > 1


def test_looser_tolerance_fewer_calls():
    mixture, x, _ = problem(VP())
    calls = [float(fs.log_prob(mixture, VP(), x, tolerance=tol).calls.double().mean()) for tol in (1e-3, 1e-5, 1e-7)]
    assert calls[0] < calls[1] < calls[2]


def test_dataset_has_a_density_at_a_time():
    p = EDM()
    items = torch.randn(5, 3, dtype=torch.float64)
    x = items[:2] + 0.3
    as_mixture = Mixture(p, items, 0.0)
    data = Dataset(p, items, chunk=2)
    for t in (0.5, torch.tensor([0.5, 2.0], dtype=torch.float64)):
        torch.testing.assert_close(fs.marginal_log_prob(data, x, t), fs.marginal_log_prob(as_mixture, x, t))
    prior = lambda z: fs.marginal_log_prob(data, z, p.t_max)  # noqa: E731
    found = fs.log_prob(data, p, x, t=0.5, prior=prior)
    torch.testing.assert_close(found.nats, fs.marginal_log_prob(data, x, 0.5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PROCESSES)
def test_marginal_is_normal(name):
    """The closed form on one Gaussian against the covariance written out."""
    p = process(name)
    shape = getattr(p, "size", (2,))
    oracle = Gaussian(p, torch.full(shape, 0.4, dtype=torch.float64), 0.6)
    t, n = 0.5 * (p.t_max + p.t_min), 4 if name == "cld" else 2
    eye = torch.eye(n, dtype=torch.float64).reshape(n, *p.state_shape(shape))
    root = apply(p.R(t), eye).reshape(n, n)
    through = apply(p.M(t), p.coordinates(torch.eye(2, dtype=torch.float64).reshape(2, *shape))).reshape(2, n)
    mean = apply(p.M(t), p.coordinates(oracle.means))[0].flatten()
    law = torch.distributions.MultivariateNormal(mean, root.T @ root + 0.36 * through.T @ through)
    z = torch.randn(3, *p.state_shape(shape), dtype=torch.float64)
    torch.testing.assert_close(fs.marginal_log_prob(oracle, z, t), law.log_prob(z.flatten(1)))


def test_refusals_of_log_prob():
    mixture, x, _ = problem(VP())
    with pytest.raises(ValueError, match="got process='a bridge': give a process"):
        fs.log_prob(mixture, "a bridge", x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="still holds the data .*it has no likelihood: raise t_max"):
        fs.log_prob(lambda z, t: mixture(z, t), VP(t_max=0.3), x)
    with pytest.raises(ValueError, match="where sigma = 0"):
        fs.log_prob(mixture, VP(), x, t=0.0)
    with pytest.raises(ValueError, match="no derivative in the state"):
        fs.log_prob(lambda z, t: mixture(z, t).detach(), VP(), x)
    with pytest.raises(ValueError, match="calls do not reach the end"):
        fs.log_prob(mixture, VP(), x, tolerance=1e-12, max_calls=50)
    with pytest.raises(ValueError, match="step became too small"):
        fs.log_prob(lambda z, t: mixture(z, t) * math.nan, VP(), x)
    with pytest.raises(ValueError, match="give both the same process"):
        fs.log_prob(mixture, EDM(), x)
    with pytest.raises(ValueError, match="choose auto, exact or hutchinson"):
        fs.log_prob(mixture, VP(), x, divergence="trace")
    with pytest.raises(ValueError, match=r"give \(probes, 6"):
        fs.log_prob(mixture, VP(), x, probes=torch.ones(1, 3))


# --- bits


def test_bits_of_uniform_levels():
    nats = torch.tensor([-3 * math.log(256 * 2 / 255)], dtype=torch.float64)  # uniform over 256 bins of 2/255
    torch.testing.assert_close(fs.bits_per_dim(nats, 3), torch.tensor([8.0], dtype=torch.float64))
    levels = torch.tensor([[0.0] * 4000, [1.0] * 4000], dtype=torch.float64)
    noisy = fs.dequantise(levels, bin=0.5)
    assert float((noisy - levels).abs().max()) <= 0.25
    assert abs(float((noisy - levels).var()) - 0.25 / 12) < 1e-3
    assert torch.equal(fs.dequantise(levels[1:], bin=0.5, first=1), noisy[1:])
    with pytest.raises(ValueError, match="put them in data units"):
        fs.dequantise(torch.zeros(2, 2, dtype=torch.uint8))


# --- elbo


@pytest.mark.parametrize("name", ["vp", "edm", "cld", "blurring", "discrete"])
@pytest.mark.parametrize("solver", [DDPM(), DDPM(variance="beta"), DDIM(eta=0.7)])
def test_bound_on_a_point_is_known(name, solver):
    """On one point D = x0: what is left of L_t is the mismatch of variances and gains."""
    p = process(name)
    x = torch.full((2, 1, 2) if name == "blurring" else (2, 2), 0.7, dtype=torch.float64)
    found = fs.elbo(Gaussian(p, 0.7, 0.0), p, x, solver=solver, steps=5, draws=3)
    if solver == DDPM():
        assert float(found.steps.abs().max()) < 1e-6
    else:
        assert float(found.steps.mean()) > 1e-2
    c, m = p.coordinates(x), apply(p.M(p.t_max), p.coordinates(x))
    white = apply(inverse(p.R(p.t_max)), m)
    torch.testing.assert_close(found.prior, 0.5 * white.flatten(1).square().sum(1))
    if p.kind == "scalar":
        std = math.exp(-p.log_snr(p.t_min))
        law = torch.distributions.Normal(c, std)
        torch.testing.assert_close(found.data, -law.log_prob(c).sum(1))


def test_bound_of_ddim_on_a_point_is_known():
    """A row keeps another share of z than the posterior: E L_t gains ((K - A) sigma_t / C)^2 / 2."""
    p, eta, (t, u) = VP(), 0.7, (0.6, 0.3)
    x = torch.full((20_000, 1), 3.0, dtype=torch.float64)
    grid = torch.tensor([t, u], dtype=torch.float64)
    found = fs.elbo(Gaussian(p, 3.0, 0.0), p, x, solver=DDIM(eta=eta), grid=grid)
    gain, wanted = posterior(p, t, u)
    ours = eta**2 * wanted
    keep = (p.sigma(u) ** 2 - ours) ** 0.5 / p.sigma(t)
    exact = 0.5 * (((gain - keep) * p.sigma(t)) ** 2 / ours + 1 / eta**2 - 1 + math.log(eta**2))
    assert abs(float(found.steps.mean()) / exact - 1) < 0.05


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_bound_on_a_gaussian_is_known(variance):
    """E L_t for N(0, s^2) in closed form: D = s^2 (n x + sqrt(n) eps) / (1 + s^2 n)."""
    p, s, x = VP(), 0.6, torch.tensor([[0.8], [-0.3]], dtype=torch.float64)
    solver, grid = DDPM(variance=variance), torch.tensor([1.0, 0.6, 0.3, 0.1], dtype=torch.float64)
    many = x.repeat_interleave(40_000, 0)
    found = fs.elbo(Gaussian(p, 0.0, s), p, many, solver=solver, grid=grid)
    steps = found.steps.reshape(2, -1, 3).mean(1)
    for k, (t, u) in enumerate([(1.0, 0.6), (0.6, 0.3), (0.3, 0.1)]):
        n = (p.alpha(t) / p.sigma(t)) ** 2
        gain, wanted = posterior(p, t, u)
        ours = wanted if variance == "posterior" else added_noise(p, t, u)
        b = p.alpha(u) - gain * p.alpha(t)
        miss = b**2 * (x**2 + s**4 * n) / (1 + s**2 * n) ** 2
        exact = 0.5 * (miss / ours + wanted / ours - 1 - math.log(wanted / ours))[:, 0]
        torch.testing.assert_close(steps[:, k], exact, rtol=0.03, atol=1e-3)
    assert bool(found.error.isnan().all())
    again = fs.elbo(Gaussian(p, 0.0, s), p, x, solver=solver, grid=grid, draws=2)
    assert bool((again.error > 0).all())


@pytest.mark.parametrize(("name", "solver", "grid", "few"), [
    ("vp", "ddpm-beta", "default", 1), ("edm", "ddpm", "default", 8), ("flow", "ddpm", "log-snr", 8),
    ("cld", "ddpm", "default", 8), ("blurring", "ddpm", "default", 8), ("discrete", "ddpm", "default", 8),
])  # fmt: skip
def test_bound_is_below_and_closes_with_steps(name, solver, grid, few):
    p = process(name)
    mixture, x, exact = problem(p, 24)
    gaps = []
    for steps in (few, 64):
        found = fs.elbo(mixture, p, x, solver=solver, grid=grid, steps=steps, draws=4)
        gaps.append(float((exact - found.nats).mean()))
        assert found.calls == 4 * len(found.times)
    assert -0.3 < gaps[1] < gaps[0] / 5


def test_equal_steps_of_flow_leave_the_bound_open():
    """From sigma = k/n to (k-1)/n near the data: r = (k/(k-1))^2 loses (r - 1 - log r) / 2 a dimension whatever n is.

    The sum over k is Euler's gamma + pi^2/12.
    """
    p = fs.Flow()
    mixture, x, exact = problem(p, 24)
    found = fs.elbo(mixture, p, x, grid="uniform", steps=64, draws=8)
    gap, error = float((exact - found.nats).mean()), float(found.error.square().sum().sqrt() / len(x))
    assert error < 0.4
    assert abs(gap - 2 * (0.5772156649 + math.pi**2 / 12)) < error


def test_levels_have_probabilities():
    """The discrete decoder is a law over levels, and the bound on levels is about that on dequantised data."""
    p, levels = Discrete(), torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    near = lambda z, t: torch.full_like(z, 0.13)  # noqa: E731
    found = fs.elbo(near, p, levels, steps=4, bin=0.25)
    assert abs(float((-found.data).exp().sum()) - 1) < 1e-9
    data = Mixture(p, levels, 1e-3)
    bound = fs.elbo(data, p, levels, solver="ddpm", steps=200, bin=0.25)
    assert abs(float(bound.bits_per_dim().mean()) - math.log2(9)) < 0.7
    with pytest.raises(ValueError, match="has its own"):
        bound.bits_per_dim(bin=0.25)


def test_refusals_of_elbo():
    mixture, x, _ = problem(VP())
    with pytest.raises(ValueError, match="adds no noise, so the bound is infinite"):
        fs.elbo(mixture, VP(), x, solver="ddim", steps=4)
    with pytest.raises(ValueError, match="DPMMultistep, whose row 2 .* is no Gaussian given the row before"):
        fs.elbo(mixture, VP(), x, solver="dpmpp-2m", steps=4)
    with pytest.raises(ValueError, match="got bin=0"):
        fs.elbo(mixture, VP(), x, steps=4, bin=0)
    heat = fs.HeatDissipation(size=(2, 2))
    with pytest.raises(ValueError, match="still holds the data .* no likelihood: raise t_max"):
        fs.elbo(Gaussian(heat, 0.0, 0.5), heat, torch.zeros(2, 1, 2, 2))


def test_an_answer_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"returned shape \(1, 3\): it must return \(2, 3\)"):
        fs.log_prob(lambda z, t: z[:1], VP(), torch.zeros(2, 3))
