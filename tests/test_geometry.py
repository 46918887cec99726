"""Encodings, local sampling, trajectories and chains over noise levels, on closed-form data."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

import fewstep as fs
import oracle
from fewstep.denoiser import Counted, Dataset, Gaussian, Mixture, wrap
from fewstep.geometry.chain import _closed_form
from fewstep.likelihood.lift import lift
from fewstep.process import CLD, EDM, PROCESSES, VP, Flow

SHARP = ("multistep-pc-3", "unipc-3")  # more than one order beyond ddim


def data(process, count: int = 8):
    mixture = oracle.denoiser(process)
    return mixture, mixture.sample(count, torch.Generator().manual_seed(0))


def blobs(process, d: int = 16, count: int = 40) -> Dataset:
    """A finite data set in three clusters."""
    g = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(3, d, dtype=torch.float64, generator=g)
    return Dataset(process, centres[torch.arange(count) % 3] + 0.3 * torch.randn(count, d, generator=g))


# --- encode and decode


def round_trip(process, solver, steps: int) -> float:
    mixture, x = data(process, 4)
    way = {"solver": solver, "grid": "log-snr", "steps": steps}
    return float((fs.decode(mixture, process, fs.encode(mixture, process, x, **way), **way) - x).norm())


@pytest.mark.parametrize("name", ["vp", "edm", "flow", "blurring", "cld"])
def test_ddim_loses_one_over_n(name):
    p = oracle.process(name)
    errors = [round_trip(p, "ddim", n) for n in (64, 128)]
    assert 1.7 < errors[0] / errors[1] < 2.4


@pytest.mark.parametrize("solver", SHARP)
@pytest.mark.parametrize("name", ["vp", "edm", "ve"])
def test_high_order_loses_little(name, solver):
    assert round_trip(oracle.process(name), solver, 128) < 1e-4


def test_encoding_is_where_the_ode_goes():
    p = VP()
    mixture, x = data(p)
    z = fs.encode(mixture, p, x, solver="multistep-pc-3", steps=100)
    torch.testing.assert_close(z, oracle.quantile_map(mixture, x, p.t_min, p.t_max), rtol=0, atol=1e-4)


def test_encoding_of_a_point_mass_is_its_noise():
    """DDIM up is exact on a point: z = M x0 + R eps with the eps it holds."""
    p = VP()
    x0, eps = torch.full((2, 3), 0.7, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    z = fs.encode(Gaussian(p, 0.7, 0.0), p, z=p.diffuse(x0, p.t_min, eps), solver="ddim", steps=3)
    torch.testing.assert_close(z, p.diffuse(x0, 1.0, eps), rtol=0, atol=1e-9)


def test_an_explicit_grid_is_used_backwards():
    p, grid = Flow(), torch.tensor([1.0, 0.7, 0.4, 0.1], dtype=torch.float64)
    mixture, x = data(p)
    seen = []
    spy = lambda z, t: (seen.append(float(t)), mixture(z, t))[1]  # noqa: E731
    fs.encode(spy, p, x, solver="ddim", grid=grid)
    assert seen == [0.1, 0.4, 0.7]
    table = fs.tabulate("ddim", p, grid=grid)
    assert torch.equal(fs.encode(mixture, p, x, solver=table), fs.encode(mixture, p, x, solver="ddim", grid=grid))


def test_the_velocity_of_cld_given_a_position():
    """N(mean, std^2) of v given x where the data is so wide that it prefers no position; log q is its density."""
    p, t, wide = CLD(), 0.3, 1e3
    x, eps = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    z, log_q = lift(p, x, t, eps)
    assert torch.equal(p.to_data(z), x)
    m = p.M(t).values
    c = wide**2 * m @ m.T + p.Sigma(t).values
    law = torch.distributions.Normal(c[1, 0] / c[0, 0] * x, (c[1, 1] - c[1, 0] ** 2 / c[0, 0]).sqrt())
    torch.testing.assert_close(z[:, 1], law.loc + law.scale * eps, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_q, law.log_prob(z[:, 1]).sum(1), rtol=1e-4, atol=1e-3)


def test_slerp():
    a, b = torch.randn(2, 4, 5, dtype=torch.float64)
    w = torch.linspace(0, 1, 5, dtype=torch.float64)
    path = fs.slerp(a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True), w)
    torch.testing.assert_close(path.norm(dim=2), torch.ones(5, 4, dtype=torch.float64))
    turn = torch.nn.functional.cosine_similarity(path[1:], path[:-1], dim=2).acos()
    torch.testing.assert_close(turn, turn[:1].expand_as(turn))
    torch.testing.assert_close(fs.slerp(a, b, 1.0), b)
    torch.testing.assert_close(fs.slerp(a, a, 0.3), a)
    with pytest.raises(ValueError, match="give two of the same"):
        fs.slerp(a, b[:2], 0.5)


def test_interpolated_encodings_decode_to_data():
    """Between two encodings of Gaussian data lies Gaussian data: the decoder is linear there."""
    p = VP()
    gaussian, x = Gaussian(p, 0.0, 0.5), 0.5 * torch.randn(2, 400, dtype=torch.float64)
    way = {"solver": "multistep-pc-3", "steps": 60}
    z = fs.encode(gaussian, p, x, **way)
    middle = fs.decode(gaussian, p, fs.slerp(z[:1], z[1:], 0.5), **way)
    torch.testing.assert_close(middle, fs.slerp(x[:1], x[1:], 0.5), rtol=0, atol=1e-3)


def test_refusals_of_encode():
    mixture, x = data(Flow())
    with pytest.raises(ValueError, match="adds noise: an encoding wants a deterministic"):
        fs.encode(mixture, Flow(), x, solver="ddpm", steps=4)
    with pytest.raises(ValueError, match="where sigma = 0"):
        fs.encode(mixture, Flow(), x, solver="ddim", grid=torch.tensor([0.9, 0.0]))
    with pytest.raises(ValueError, match="give x or z"):
        fs.encode(mixture, Flow())


# --- Boomerang and ODE-Jump


@pytest.mark.parametrize("name", PROCESSES)
def test_boomerang_goes_further_with_t(name):
    p = oracle.process(name)
    mixture, x = data(p, 64)
    times = p.inverse_log_snr(torch.tensor([3.0, 1.0, -1.0], dtype=torch.float64)).tolist()
    times = [t for t in times if p.t_min < t <= p.t_max]
    far = [float((fs.boomerang(mixture, p, x, t=t, steps=8) - x).norm()) for t in times]
    assert far == sorted(far)
    assert far[0] > 0


def test_boomerang_on_a_point_returns():
    p = EDM()
    x = torch.full((2, 3), 0.7, dtype=torch.float64)
    found = fs.boomerang(Gaussian(p, 0.7, 0.0), p, x, t=2.0, solver="ddim", steps=3)
    assert float((found - x).abs().max()) < 0.01  # sigma_min is left
    with pytest.raises(ValueError, match="start the grid at t"):
        fs.boomerang(Gaussian(p, 0.7, 0.0), p, x, t=2.0, grid=torch.tensor([1.0, 0.1]))
    with pytest.raises(ValueError, match="give a time in"):
        fs.boomerang(Gaussian(p, 0.7, 0.0), p, x, t=200.0)


def test_jump_is_a_short_run_and_a_denoising():
    p = EDM()
    counted, x = Counted(blobs(p)), 80 * torch.randn(4, 16, dtype=torch.float64)
    found = fs.jump(counted, p, solver="ddim", steps=10, share=0.7, x=x)
    assert counted.calls == 8
    grid = fs.tabulate("ddim", p, steps=10).grid[:8]
    assert torch.equal(found, fs.sample(blobs(p), p, solver="ddim", grid=grid, x=x, final="denoise"))
    with pytest.raises(ValueError, match="got share=0"):
        fs.jump(counted, p, share=0.0, steps=10, x=x)


def test_the_end_can_be_skipped():
    """The last fifth of the steps moves the prediction less than a twentieth of the data's deviation."""
    p = EDM()
    mixture = Mixture(p, blobs(p).items, 0.1)
    x = 80 * torch.randn(32, 16, dtype=torch.float64)
    whole = fs.sample(mixture, p, solver="ddim", steps=20, x=x)
    found = fs.jump(mixture, p, solver="ddim", steps=20, share=0.8, x=x)
    assert float((found - whole).square().mean().sqrt()) < 0.05 * float(mixture.means.std())


# --- trajectories


@pytest.mark.parametrize(("final", "calls"), [("zero", 30), ("state", 31), ("denoise", 30)])
def test_the_geometry_of_trajectories(final, calls):
    """Paths lie in few dimensions; the denoised path is nearer its end than the states at every time."""
    p = EDM()
    counted = Counted(blobs(p))
    path = fs.trajectory(counted, p, solver="ddim", steps=30, final=final, shape=(16, 16))
    assert counted.calls == calls  # at sigma = 0 there is nothing left to predict
    assert path.times.tolist() == fs.tabulate("ddim", p, steps=30, final=final).grid.tolist()
    assert float(path.explained(3)[:, 2].min()) > 0.99
    end = path.positions[-1]
    states, denoised = ((way - end).norm(dim=2).mean(1)[:-1] for way in (path.positions, path.denoised))
    assert bool((denoised < states).all())
    assert bool((path.gap()[:-1].mean(1).diff() < 0).all())


@pytest.mark.parametrize("process", [VP(), EDM(), Flow(t_max=0.999), CLD()])
def test_a_step_of_ddim_moves_towards_the_prediction(process):
    """z_bar_s lies on the segment from z_bar_t to D, at rho_s / rho_t (blocks: the point mass alone)."""
    p = process
    denoiser = blobs(p) if p.kind == "scalar" else Gaussian(p, 0.3, 0.0)
    grid = p.inverse_log_snr(torch.linspace(-3, 3, 8, dtype=torch.float64))
    path = fs.trajectory(denoiser, p, solver="ddim", grid=grid, shape=(4, 16))
    if p.kind == "scalar":
        ratio = (-p.log_snr(path.times)).exp()
        ratio = (ratio[1:] / ratio[:-1])[:, None, None]
        torch.testing.assert_close(
            path.positions[1:], ratio * path.positions[:-1] + (1 - ratio) * path.denoised[:-1], rtol=0, atol=1e-9
        )
    else:
        rho = (-p.log_snr(path.times)).exp()
        assert bool((path.gap() < 8 * rho[:, None]).all())
    assert path.states.shape == (8, 4, *p.state_shape((16,)))


def test_measures_of_known_paths():
    u = torch.linspace(0, math.pi / 2, 50, dtype=torch.float64)
    circle = 3 * torch.stack([u.cos(), u.sin(), 0 * u], 1)[:, None]
    line = u[:, None, None] * torch.ones(1, 1, 3, dtype=torch.float64)
    path = fs.Trajectory(times=u, states=circle, positions=circle, denoised=line)
    torch.testing.assert_close(path.curvature(), torch.full((48, 1), 1 / 3, dtype=torch.float64))
    assert abs(float(path.length()) - 3 * math.pi / 2) < 1e-3
    assert abs(float(path.deviation().max()) - 3 * (1 - 0.5**0.5)) < 1e-3
    assert abs(float(path.straightness()) - 2**0.5 / (math.pi / 2)) < 1e-3
    assert float(path.straightness("denoised")) == pytest.approx(1.0)
    assert float(path.curvature("denoised").max()) < 1e-6
    explained = path.explained(3)[0]
    assert float(explained[0]) < 0.999 < float(explained[1])
    with pytest.raises(ValueError, match="choose positions or denoised"):
        path.length("states")


def test_an_infinite_start_is_left_out():
    p = Flow()
    path = fs.trajectory(blobs(p), p, solver="ddim", steps=5, shape=(2, 16))
    assert path.times[0] < 1
    assert torch.equal(path.denoised[-1], path.positions[-1])  # t = 0: nothing to denoise


# --- denoising MCMC

FAR = torch.tensor([[-1.5], [1.5]], dtype=torch.float64)  # two modes that Langevin near data does not cross


@pytest.mark.parametrize("process", [EDM(), VP()])
def test_chain_crosses_between_modes(process):
    p, runs = process, {"eta": 0.3, "solver": "ddim", "steps": 8, "skip": 10}
    mixture = Mixture(p, FAR, 0.2, torch.tensor([0.3, 0.7]))
    x = FAR[:1].expand(300, 1)
    found = fs.denoising_mcmc(
        mixture, p, x, levels=12, saved=2, burn=100, highest=float(p.inverse_log_snr(-1.5)), **runs
    )
    y = found.samples.flatten()
    assert abs(float((y > 0).double().mean()) - 0.7) < 0.08
    assert abs(float((y.abs() - 1.5).square().mean().sqrt()) - 0.2) < 0.05
    counts = torch.bincount(found.history[100:].flatten(), minlength=12).double()
    assert float((counts / counts.mean() - 1).abs().max()) < 0.35  # p(t) is uniform
    assert found.calls == (120, 16)
    assert found.calls_a_sample == 68
    low = fs.denoising_mcmc(mixture, p, x, levels=found.times[-2:], saved=1, burn=100, **runs)
    assert float((low.samples > 0).double().mean()) == 0.0


def test_langevin_at_one_level():
    """With one level and Gaussian data the chain is linear, and its own stationary variance is known."""
    p, t, eta, s = EDM(), 0.8, 0.5, 0.6
    x = torch.zeros(4000, 1, dtype=torch.float64)
    level = torch.tensor([t], dtype=torch.float64)
    found = fs.denoising_mcmc(Gaussian(p, 0.0, s), p, x, levels=level, eta=eta, skip=40, solver="ddim", steps=1)
    keep = 1 - eta / 2 * t**2 / (s**2 + t**2)
    assert abs(float(found.states.var()) / (eta * t**2 / (1 - keep**2)) - 1) < 0.1


@pytest.mark.parametrize("name", ["vp", "edm", "blurring", "cld"])
def test_level_given_the_state_is_bayes(name):
    """p(t | y) on Gaussian data against the covariance of y = Psi^-1 z written out."""
    p = oracle.process(name)
    times = p.inverse_log_snr(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64))
    shape = (2, 2) if name == "blurring" else (2,)
    gaussian = Gaussian(p, torch.zeros(shape), 0.8)
    size = math.prod(p.state_shape(shape))
    y = torch.randn(3, *p.state_shape(shape), dtype=torch.float64)
    unit = torch.eye(size, dtype=torch.float64).reshape(size, *p.state_shape(shape))
    point = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    rows = []
    for t in times.tolist():
        back = partial(fs.process.operator.apply, fs.process.operator.inverse(p.Psi(t)))
        noise = back(p.diffuse(0 * unit.flatten(1)[:, : math.prod(shape)].reshape(size, *shape), t, unit)).reshape(
            size, -1
        )
        signal = back(p.diffuse(point, t, 0 * y[:1].expand(len(point), *y.shape[1:]))).reshape(len(point), -1)
        law = torch.distributions.MultivariateNormal(torch.zeros(size, dtype=torch.float64),
                                                     noise.T @ noise + 0.64 * signal.T @ signal)  # fmt: skip
        rows.append(law.log_prob(y.flatten(1)))
    exact = torch.stack(rows, 1).log_softmax(1)
    torch.testing.assert_close(_closed_form(gaussian, p, times, None)(y).log_softmax(1), exact)


def test_the_models_own_likelihood_gives_the_levels():
    p, times = VP(t_max=1.2), torch.tensor([0.5, 0.2], dtype=torch.float64)
    mixture = Mixture(p, FAR, 0.3)
    y = torch.randn(4, 1, dtype=torch.float64)
    exact = _closed_form(mixture, p, times, None)(y).log_softmax(1)
    found = fs.likelihood_levels(mixture, p, times, tolerance=1e-6)(y).log_softmax(1)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="bound on positions alone"):
        fs.likelihood_levels(mixture, CLD(), times)


def test_a_classifier_of_the_level_is_asked():
    p, times = EDM(), torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    net = wrap(lambda x, _: 0 * x, p, "data")
    level = lambda y: torch.nn.functional.one_hot(torch.full((len(y),), 1), 3).double()  # noqa: E731
    found = fs.denoising_mcmc(net, p, torch.zeros(5, 2), levels=times, level=level, greedy=True, skip=3, steps=2)
    assert found.history.tolist() == [[1] * 5] * 3
    with pytest.raises(ValueError, match="got a network without level="):
        fs.denoising_mcmc(net, p, torch.zeros(5, 2), levels=times)
    with pytest.raises(ValueError, match="give times above t_min"):
        fs.denoising_mcmc(
            net, p, torch.zeros(5, 2), levels=torch.tensor([1.0, 0.002], dtype=torch.float64), level=level
        )
    with pytest.raises(ValueError, match="got eta=3"):
        fs.denoising_mcmc(net, p, torch.zeros(5, 2), eta=3)
    with pytest.raises(ValueError, match="got burn=-5"):
        fs.denoising_mcmc(net, p, torch.zeros(5, 2), burn=-5)


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_a_chain_does_not_depend_on_its_batch(solver):
    p = EDM()
    mixture, x = Mixture(p, FAR, 0.3), torch.zeros(4, 1, dtype=torch.float64)
    run = partial(fs.denoising_mcmc, mixture, p, levels=4, saved=2, skip=3, steps=4, seed=5, solver=solver)
    whole, part = run(x), run(x[2:], first=2)
    torch.testing.assert_close(part.samples, whole.samples[:, 2:], rtol=0, atol=1e-12)
