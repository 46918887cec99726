"""Grids known by name, beside their closed forms and beside diffusers' own numbers."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import beta as beta_law

import fewstep as fs
from fewstep.grid import (
    beta,
    dynamic_mu,
    exponential,
    flow_shift,
    karras,
    kl_optimal,
    linear_quadratic,
    log_snr,
    sgm_uniform,
    to_zero,
    uniform,
)
from fewstep.grid.published import AYS, ays
from fewstep.grid.spacing import beta_quantile

LATENT = fs.EDM(sigma_min=0.029, sigma_max=14.615)  # sigma is its time, and AYS's tables run over this range


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.5, 2.0), (3.0, 0.8), (1.0, 1.0), (5.0, 4.0)])
def test_beta_quantiles(a, b):
    q = torch.linspace(0, 1, 401, dtype=torch.float64)
    exact = torch.from_numpy(beta_law.ppf(q.numpy(), a, b))
    assert torch.allclose(beta_quantile(q, a, b), exact, rtol=1e-12, atol=1e-15)


def test_beta_is_denser_at_both_ends_of_time():
    gaps = -beta(fs.VP(), 10).diff()
    assert gaps[0] < gaps[2] < gaps[4]
    assert gaps[-1] < gaps[-3] < gaps[-5]
    assert torch.allclose(beta(fs.VP(), 10, a=1.0, b=1.0), uniform(fs.VP(), 10))


def test_kl_optimal_is_even_in_the_arctangent():
    angle = kl_optimal(LATENT, 9).atan()
    assert torch.allclose(angle.diff(), (math.atan(0.029) - math.atan(14.615)) / 9 * torch.ones(9).double())
    narrow = (kl_optimal(LATENT, 9, std=0.2) / 0.2).atan().diff()
    assert torch.allclose(narrow, narrow[:1].expand(9))


@pytest.mark.parametrize("steps", [2, 5, 8, 33])
def test_linear_quadratic_is_the_published_polynomial(steps):
    half, c = steps // 2, 0.025
    a = (half - c * steps) / (half * (steps - half) ** 2)
    line = c / half - 2 * (half - c * steps) / (steps - half) ** 2
    i = torch.arange(steps + 1, dtype=torch.float64)
    way = torch.where(i < half, c / half * i, a * i**2 + line * i + a * half**2)
    assert torch.allclose(linear_quadratic(fs.Flow(), steps), 1 - way, atol=1e-14)
    in_sigma = linear_quadratic(LATENT, steps, clock="rho")
    assert torch.allclose((in_sigma - 0.029) / (14.615 - 0.029), 1 - way, atol=1e-12)


@pytest.mark.parametrize("table", AYS)
def test_ays_passes_through_its_table(table):
    published = torch.tensor(AYS[table], dtype=torch.float64)
    edm = fs.EDM(sigma_min=float(published[-1]), sigma_max=float(published[0]))
    assert torch.allclose(ays(edm, 10, table=table), published, rtol=1e-12)
    fine = ays(edm, 30, table=table)
    assert torch.allclose(fine[::3], published, rtol=1e-12)
    log = fine.log().diff()
    assert torch.allclose(log[::3], log[1::3])  # straight in log(sigma) in between
    vp = fs.VP()
    stretched = vp.log_snr(ays(vp, 10, table=table))
    ratio = stretched.diff() / -published.log().diff()
    assert torch.allclose(ratio, ratio[:1].expand(10))


def test_flow_shift_moves_log_snr():
    flow = fs.Flow()
    plain, shifted = uniform(flow, 8), flow_shift(mu=0.9)(flow, 8)
    assert torch.allclose((flow.log_snr(plain) - flow.log_snr(shifted))[1:-1], torch.tensor(0.9, dtype=torch.float64))
    assert torch.allclose(flow_shift(math.exp(0.9))(flow, 8), shifted)
    assert torch.allclose(flow_shift(1.0, grid=karras)(LATENT, 8), karras(LATENT, 8), rtol=1e-10)
    back = flow_shift(1 / 3, grid=flow_shift(3.0))(fs.VP(), 8)
    assert torch.allclose(back, uniform(fs.VP(), 8), rtol=1e-9)


def test_mu_follows_the_size():
    assert (dynamic_mu(256), dynamic_mu(4096)) == (0.5, 1.15)
    assert dynamic_mu(1024) == pytest.approx(0.63)
    assert torch.equal(flow_shift(tokens=1024)(fs.Flow(), 6), flow_shift(mu=dynamic_mu(1024))(fs.Flow(), 6))


def test_exponential_is_log_snr_and_sgm_uniform_ends_in_one_jump():
    assert torch.equal(exponential(fs.VP(), 7), log_snr(fs.VP(), 7))
    published = to_zero(sgm_uniform, append=False)(fs.VP(), 4)
    assert published.tolist() == [*uniform(fs.VP(), 4).tolist()[:-1], 0.0]


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_to_zero(steps):
    for process in (fs.VP(), fs.EDM(), fs.Discrete(), fs.Cosine()):
        times = to_zero(karras)(process, steps)
        assert len(times) == steps + 1
        assert times[0] == process.t_max
        assert process.log_snr(float(times[-1])) == math.inf
        if steps > 1:
            assert torch.equal(times[:-1], karras(process, steps - 1))
    assert torch.equal(to_zero(karras)(fs.Flow(), steps), karras(fs.Flow(), steps))
    for process in (fs.VE(), fs.CLD(), fs.Blurring(size=(2, 2))):
        with pytest.raises(ValueError, match="no time at sigma = 0"):
            to_zero(karras)(process, steps)


def test_bad_options_are_refused():
    for call in (
        lambda: flow_shift(),
        lambda: flow_shift(3.0, mu=1.0),
        lambda: flow_shift(0.0),
        lambda: dynamic_mu(0),
        lambda: ays(fs.VP(), 5, table="sd3"),
        lambda: beta(fs.VP(), 5, a=0.0),
        lambda: kl_optimal(fs.VP(), 5, std=0.0),
        lambda: linear_quadratic(fs.VP(), 5, threshold=0.7),
    ):
        with pytest.raises(ValueError, match="got "):
            call()


@pytest.mark.parametrize(
    ("option", "grid"),
    [
        ("use_karras_sigmas", karras),
        ("use_exponential_sigmas", exponential),
        ("use_beta_sigmas", lambda p, n: beta(p, n, clock="rho")),
    ],
)
def test_sigmas_of_diffusers(option, grid):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", **{option: True})
    scheduler.set_timesteps(11)
    theirs = scheduler.sigmas.double()
    edm = fs.EDM(sigma_min=float(theirs[-2]), sigma_max=float(theirs[0]))
    assert torch.allclose(to_zero(grid)(edm, 11), theirs, rtol=1e-5)


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_dynamic_shift_of_diffusers(tokens):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=[1 - i / 7 for i in range(7)], mu=dynamic_mu(tokens))
    assert torch.allclose(flow_shift(tokens=tokens)(fs.Flow(), 7), scheduler.sigmas.double(), atol=1e-6)


def test_tables_of_diffusers():
    utils = pytest.importorskip("diffusers.schedulers.scheduling_utils")
    names = {"sd15": "StableDiffusion", "sdxl": "StableDiffusionXL", "svd": "StableDiffusionVideo"}
    for ours, theirs in names.items():
        assert list(AYS[ours][:-1]) == utils.AysSchedules[f"{theirs}Sigmas"][:-1]
