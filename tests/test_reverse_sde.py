"""The reverse SDE, Langevin steps and quasi-Taylor: what they are in special cases, and the laws they leave alone."""

from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
from fewstep.check.exactness import covariance, gaussian
from fewstep.process.operator import magnitude
from fewstep.solver import (
    SSCS,
    AnnealedLangevin,
    EulerMaruyama,
    PredictorCorrector,
    QuasiTaylor,
    ReverseDiffusion,
    StochasticQuasiTaylor,
)
from fewstep.solver.sde.euler import PREDICTORS


def grid(*times: float) -> torch.Tensor:
    return torch.tensor(times, dtype=torch.float64)


def terms(solver, process, *times):
    return solver.tabulate(process, grid(*times)).rows[1].form.terms


def test_euler_maruyama_and_reverse_diffusion_on_ve_are_the_papers() -> None:
    """VE: z + (sigma_t^2 - sigma_s^2) score + sqrt(sigma_t^2 - sigma_s^2) xi, and with g^2 h for Euler-Maruyama."""
    ve, t, s = fs.VE(), 0.7, 0.6
    variance = ve.sigma(t) ** 2 - ve.sigma(s) ** 2
    found = terms(ReverseDiffusion(), ve, t, s, 0.5)
    assert found["z", 0] == pytest.approx(1.0)
    assert found["xi", 0] == pytest.approx(math.sqrt(variance))
    assert found["y", 0, "noise"] == pytest.approx(-variance / ve.sigma(t))
    found = terms(EulerMaruyama(), ve, t, s, 0.5)
    rate = 2 * ve.sigma(t) ** 2 * math.log(ve.sigma(1.0) / ve.sigma(0.0))  # g^2
    assert found["xi", 0] == pytest.approx(math.sqrt(rate * 0.1))
    assert found["y", 0, "noise"] == pytest.approx(-rate * 0.1 / ve.sigma(t))


def test_reverse_diffusion_on_a_table_is_score_sdes() -> None:
    """Discrete VP: (2 - sqrt(1 - beta)) z + beta score + sqrt(beta) xi at neighbouring steps."""
    betas = torch.linspace(1e-4, 0.02, 100, dtype=torch.float64)
    process = fs.Discrete(alphas_cumprod=(1 - betas).cumprod(0))
    t, s, after = (1.0, 0.99, 0.98)  # steps 99, 98, 97
    beta = float(betas[99])
    found = terms(ReverseDiffusion(), process, t, s, after)
    assert found["z", 0] == pytest.approx(2 - math.sqrt(1 - beta), abs=1e-12)
    assert found["xi", 0] == pytest.approx(math.sqrt(beta), abs=1e-12)
    assert found["y", 0, "noise"] == pytest.approx(-beta / process.sigma(t), abs=1e-12)


def test_annealed_langevin_on_ve_is_ncsns() -> None:
    """a_i = eps sigma_i^2 / sigma_L^2: z + a_i/2 score + sqrt(a_i) xi, and the level changes without moving."""
    ve, t, s = fs.VE(), 0.7, 0.4
    table = AnnealedLangevin(inner=2, step=0.2).tabulate(ve, grid(t, s, 0.3))
    a = 0.2 * ve.sigma(t) ** 2
    for row in table.rows[1:3]:
        (z, keep), (_, noise), (_, xi) = row.form.terms.items()
        assert keep == pytest.approx(1.0)
        assert z[0] == "z"
        assert noise == pytest.approx(-a / 2 / ve.sigma(t))
        assert xi == pytest.approx(math.sqrt(a))
    assert [row.t for row in table.rows[:4]] == [t, t, s, s]
    assert table.nfe == 4
    assert "xi" not in [symbol[0] for symbol in table.rows[-1].form.terms]


@pytest.mark.parametrize("name", ["vp", "ve", "cld", "blurring"])
def test_langevin_steps_keep_the_law_of_their_time(name: str) -> None:
    """Small Langevin steps at one time, from the right law, stay in it: on Gaussian data the bias is of order a."""
    process = fs.Blurring(size=(2, 2)) if name == "blurring" else fs.PROCESSES[name]()
    data = fs.Gaussian(process, torch.zeros(1, 2, 2), 0.6)
    t = 0.5
    bias = []
    for step in (0.04, 0.02):
        solver = AnnealedLangevin(inner=60, step=step, denoise=False)
        table = solver.tabulate(process, grid(t, t - 1e-9))
        g = torch.Generator().manual_seed(1)
        x0, eps = (torch.randn(4000, *shape, dtype=torch.float64, generator=g)
                   for shape in ((1, 2, 2), process.state_shape((1, 2, 2))))  # fmt: skip
        start = process.diffuse(0.6 * x0, t, eps)
        after = fs.sample(data, process, solver=table, x=start, seed=2)
        bias.append(float(after.square().mean() / start.square().mean() - 1))
    assert max(map(abs, bias)) < 0.05


def test_the_predictors_are_the_solvers_of_their_name() -> None:
    vp, times = fs.VP(), (0.7, 0.6, 0.5)
    data = fs.Gaussian(vp, torch.tensor([0.3, -1.0]), 0.7)
    start = torch.randn(5, 2, dtype=torch.float64)
    for name in PREDICTORS:
        table = PredictorCorrector(predictor=name, inner=1, snr=1e-6).tabulate(vp, grid(*times))
        x = fs.sample(data, vp, solver=table, x=start, seed=3)
        plain = fs.sample(data, vp, solver=name, grid=grid(*times), x=start, seed=3)
        assert table.nfe == 4
        same = bool((x - plain).abs().max() < 1e-5)
        assert same == (name != "ddpm"), name  # which adds its last noise too


def test_sscs_leaves_the_stationary_law_alone_and_is_of_first_order() -> None:
    """Data N(0, 1) with gamma = 1 is stationary: every step keeps the covariance, whatever its length."""
    process = fs.CLD(gamma=1.0)
    data = fs.Gaussian(process, torch.zeros(3, dtype=torch.float64), 1.0)
    table = SSCS().tabulate(process, grid(1.0, 0.6, 0.1))
    x = fs.sample(data, process, solver=table, shape=(200_000, 3), dtype=torch.float64,
                  noise=torch.Generator().manual_seed(1))  # fmt: skip
    found = torch.cov(x.transpose(1, 2).reshape(-1, 2).T)
    assert (found - torch.diag(torch.tensor([1.0, process.mass], dtype=torch.float64))).abs().max() < 5e-3
    with pytest.raises(ValueError, match="it splits a velocity from a position"):
        SSCS().tabulate(fs.VP(), grid(1.0, 0.5))


def test_quasi_taylor_is_the_papers_on_vp() -> None:
    """rho = 1 + beta h/2 + h^2/4 (beta^2/2 - beta'), mu = -beta h/2 + h^2/4 (beta' - beta^2/(2 sigma^2)) / sigma."""
    vp, t, s = fs.VP(), 0.5, 0.46
    h, beta, rate, sigma = t - s, vp.beta_min + t * (vp.beta_max - vp.beta_min), vp.beta_max - vp.beta_min, vp.sigma(t)
    found = terms(QuasiTaylor(), vp, t, s)
    assert found["z", 0] == pytest.approx(1 + beta * h / 2 + h**2 / 4 * (beta**2 / 2 - rate), abs=1e-9)
    mu = -beta * h / 2 + h**2 / 4 * (rate - beta**2 / (2 * sigma**2))
    assert found["y", 0, "noise"] == pytest.approx(mu / sigma, abs=1e-8)


@pytest.mark.parametrize(
    ("name", "step"), [("vp", 0.02), ("cosine", 0.02), ("cld", 0.02), ("blurring", 0.02), ("heat", 1e-3)]
)
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_quasi_taylor_tends_to_ddim_with_its_degree(name: str, step: float, degree: int) -> None:
    """The coefficients minus DDIM's shrink as h^(degree + 1); on flow they are linear in h, and gone.

    On heat frequencies fade within a hundredth of the time, so derivatives come from a stretch as short as that.
    """
    process, t = fs.PROCESSES[name](), 0.5
    off = []
    for h in (step, step / 2):
        found = terms(QuasiTaylor(degree=degree), process, t, t - h)
        carry = process.transition(t - h, t)
        noise = process.R(t - h) - carry * process.R(t)
        off.append(max(magnitude(found["z", 0] - carry), magnitude(found["y", 0, "noise"] - noise)))
    assert math.log2(off[0] / off[1]) > degree + 0.8


def test_stochastic_quasi_taylor_has_the_mean_and_variance_of_ddpm() -> None:
    vp, gaps = fs.VP(), []
    for steps in (40, 80):
        times = torch.linspace(0.8, 0.2, steps + 1, dtype=torch.float64)
        ends = [gaussian(solver.tabulate(vp, times), 0.4)[-1] for solver in (StochasticQuasiTaylor(), fs.DDPM())]
        (m, *ours), (n, *theirs) = ends
        gaps.append((abs(m - n), abs(covariance(*ours) - covariance(*theirs))))
    assert gaps[1][0] < gaps[0][0] / 1.8
    assert gaps[1][1] < gaps[0][1] / 1.8


def test_bad_options_are_refused_in_a_sentence() -> None:
    for make, match in (
        (lambda: AnnealedLangevin(inner=0), "whole number of at least 1"),
        (lambda: AnnealedLangevin(step=4.0), "a number in"),
        (lambda: PredictorCorrector(predictor="heun"), "choose euler-maruyama, reverse-diffusion or ddpm"),
        (lambda: QuasiTaylor(degree=4), "choose 1, 2 or 3"),
        (lambda: StochasticQuasiTaylor().tabulate(fs.CLD(), grid(0.5, 0.4)), "no covariance"),
    ):
        with pytest.raises(ValueError, match=match):
            make()
