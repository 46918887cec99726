"""Guidance by observations and on the reverse mean, against exact posteriors."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

import fewstep as fs
from fewstep.denoiser.base import of_samples
from guided_mixture import FIRST, MEANS, PROCESSES, log_class, middle, mixture, process_of, states


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_inverse_problems_have_the_gaussian_posterior(name: str, noise: float) -> None:
    """A mask of two places: PiGDM and DDNM are the posterior mean on every process, with and without noise."""
    process = process_of(name)
    t, std = middle(process), 0.7
    z, prior = states(process, t), fs.Gaussian(process, 0.0, std)
    y = torch.tensor([[[0.5, -1.0]]], dtype=torch.float64)
    observation = fs.Observation(lambda x: x[..., 0, :], y, noise)
    found = fs.DDNM(prior, observation, std=std)(z, t)
    assert (fs.pigdm(prior, observation, std=std)(z, t) - found).abs().max() < 1e-9
    wanted = prior(z, t)
    if process.kind != "diagonal":  # places are independent: those unseen stay, those seen are weighed
        n = math.exp(2 * process.log_snr(t))
        c = std**2 / (1 + std**2 * n)
        wanted[..., 0, :] += c / (c + noise**2) * (y - wanted[..., 0, :])
        assert (found - wanted).abs().max() < 1e-10
    elif noise == 0:
        assert (found[..., 0, :] - y).abs().max() < 1e-10
        assert (found - wanted)[..., 1, :].abs().max() > 1e-3  # the unseen are correlated with the seen


def test_the_samples_of_pigdm_have_the_posterior_moments() -> None:
    vp, std, noise = fs.VP(), 0.7, 0.4
    observation = fs.Observation(lambda x: x[:, :1] + x[:, 1:], torch.tensor([[1.2]], dtype=torch.float64), noise)
    guided = fs.pigdm(fs.Gaussian(vp, 0.0, std), observation, std=std)
    x = fs.sample(guided, vp, steps=30, shape=(4000, 2), dtype=torch.float64)
    A = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    gain = std**2 * A.T / (2 * std**2 + noise**2)
    mean, cov = (gain * 1.2).T[0], std**2 * (torch.eye(2, dtype=torch.float64) - gain @ A)
    assert (x.mean(0) - mean).abs().max() < 0.04
    assert (torch.cov(x.T) - cov).abs().max() < 0.03


def test_dps_is_classifier_guidance_by_the_likelihood_at_x0_hat() -> None:
    vp, t = fs.VP(), 0.4
    z, prior = states(vp, t), fs.Gaussian(vp, 0.0, 0.7)
    y = MEANS[:1]
    found = fs.dps(prior, fs.Observation(lambda x: x, y, 0.5), 2.0)(z, t)
    n = float(vp.alpha(t) / vp.sigma(t)) ** 2
    c = 0.49 / (1 + 0.49 * n)  # q dD/dz = C for Gaussian data
    d = prior(z, t)
    assert (found - d - 2.0 * c * (y - d) / 0.25).abs().max() < 1e-12
    norm = (y - d).flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    away = fs.dps(prior, fs.Observation(lambda x: x, y), normalised=True)
    assert (away(z, t) - d - c * (y - d) / norm).abs().max() < 1e-12
    table = fs.tabulate(fs.ReverseMean(inner=fs.DDIM(), step=0.3), vp, grid=torch.tensor([t, 0.3], dtype=torch.float64))
    q = float(vp.sigma(t)) ** 2 / float(vp.alpha(t))
    runs = [
        fs.sample(found, vp, solver=s, x=z) for found, s in ((away, table), (prior, fs.DDIM().tabulate(vp, table.grid)))
    ]
    assert (runs[0] - runs[1] - 0.3 * c / q * (y - d) / norm).abs().max() < 1e-12
    with pytest.raises(ValueError, match="without noise for dps"):
        fs.dps(prior, fs.Observation(lambda x: x, y))


def test_ddnm_without_noise_is_the_range_null_decomposition() -> None:
    vp, t = fs.VP(), 0.4
    z, prior = states(vp, t), mixture(vp)
    A = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    y = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found = fs.DDNM(prior, fs.Observation(lambda x: x.flatten(1) @ A.T, y))(z, t)
    d = prior(z, t).flatten(1)
    assert (found.flatten(1) - d - (y - d @ A.T) @ torch.linalg.pinv(A).T).abs().max() < 1e-10
    index = torch.tensor([3, 1])
    part = of_samples(fs.DDNM(prior, fs.Observation(lambda x: x.flatten(1) @ A.T, y)), index, 5)
    assert (part(z[index], t) - found[index]).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["vp", "flow", "cld"])
def test_replacement_holds_the_known_part_and_leaves_an_independent_rest(name: str) -> None:
    process = process_of(name)
    prior = fs.Gaussian(process, 0.3, 0.7)
    y, mask = torch.tensor([[2.0, 0.0]], dtype=torch.float64), torch.tensor([True, False])
    table = fs.tabulate("ddim", process, steps=6)
    row, last = len(table.rows) - 1, table.rows[-1].t
    run = partial(fs.sample, prior, process, solver=table, shape=(6, 2), dtype=torch.float64)
    for fresh in (True, False):
        known = run(after=fs.Replacement(process, y, mask, fresh=fresh))
        eps = fs.Noise(0).normal("replacement", row if fresh else 0, tuple(known.shape), dtype=torch.float64)
        assert (known - process.diffuse(y.expand(6, 2), last, eps))[..., 0].abs().max() < 1e-12
        assert (known - run())[..., 1].abs().max() < 1e-12
    with pytest.raises(ValueError, match="whose states mix all places"):
        fs.Replacement(process_of("blurring"), MEANS[:1], mask)
    with pytest.raises(ValueError, match="give one that broadcasts"):
        fs.Replacement(process, y, torch.ones(3))


def test_the_reverse_mean_and_the_noise_agree_in_the_limit() -> None:
    vp = fs.VP()
    guided = fs.ClassifierGuided(mixture(vp), partial(log_class, vp, FIRST))
    t, s = 0.5, 0.45
    table = fs.tabulate(fs.ReverseMean(), vp, grid=torch.tensor([t, s], dtype=torch.float64))
    plain = fs.tabulate(fs.DDPM(), vp, grid=table.grid)
    z = states(vp, t)
    runs = [fs.sample(d, vp, solver=s, x=z) for d, s in ((guided, table), (mixture(vp), plain))]
    a = float(vp.alpha(t) / vp.alpha(s))
    variance = (float(vp.sigma(t)) ** 2 - a**2 * float(vp.sigma(s)) ** 2) * float(vp.sigma(s) / vp.sigma(t)) ** 2
    z = z.requires_grad_(True)
    (g,) = torch.autograd.grad(log_class(vp, FIRST, z, t).sum(), z)
    assert (runs[0] - runs[1] - variance * g).abs().max() < 1e-10
    gaps = []
    for steps in (25, 50):
        both = [
            fs.sample(guided, vp, solver=solver, steps=steps, shape=(32, 1, 2, 2), dtype=torch.float64)
            for solver in (fs.DDPM(), fs.ReverseMean())
        ]
        gaps.append(float((both[0] - both[1]).square().mean().sqrt()))
    assert gaps[1] < 0.75 * gaps[0]
    with pytest.raises(ValueError, match="whose steps have no noise"):
        fs.ReverseMean(inner=fs.DDIM())


@pytest.mark.parametrize("name", ["vp", "cld", "blurring"])
def test_the_reverse_mean_runs_on_every_kind(name: str) -> None:
    process = process_of(name)
    guided = fs.ClassifierGuided(mixture(process), partial(log_class, process, FIRST))
    options = {"steps": 40, "shape": (32, 1, 2, 2), "dtype": torch.float64}
    x = process.to_data(fs.sample(guided, process, solver=fs.ReverseMean(), **options))
    nearest = (x[:, None] - MEANS).square().flatten(2).sum(2).argmin(1)
    assert (nearest < 2).double().mean() > 0.9
