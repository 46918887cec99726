"""The algebra of every process, against its own differential equations and against independent answers."""

from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
from fewstep.process.base import Process
from fewstep.process.diagonal import DiagonalProcess
from fewstep.process.operator import Block, Diagonal, apply, cholesky, inverse, log_det, root, transpose

SIZE = (4, 6)


def make(name: str) -> Process:
    make = fs.PROCESSES[name]
    return make(**({"size": SIZE} if make.kind == "diagonal" else {}))


def inner_times(process: Process, n: int = 25) -> torch.Tensor:
    span = process.t_max - process.t_min
    return process.t_min + span * torch.linspace(0.02, 0.98, n, dtype=torch.float64)


def smooth_times(process: Process) -> torch.Tensor:
    """Inner times around which `slope` meets no knot: between those of a table, which are 1/1000 apart."""
    t = inner_times(process)
    return ((1000 * t).floor() + 0.5) / 1000 if isinstance(process, fs.Discrete) else t


def values(c) -> torch.Tensor:
    return c.values if isinstance(c, Block | Diagonal) else c


def slope(f, t: torch.Tensor) -> torch.Tensor:
    """Fourth-order central difference of a coefficient."""
    h = 1e-4 * t
    near, far = values(f(t + h)) - values(f(t - h)), values(f(t + 2 * h)) - values(f(t - 2 * h))
    return (8 * near - far) / (12 * h.reshape(-1, *(1,) * (near.ndim - 1)))


@pytest.fixture(params=list(fs.PROCESSES))
def process(request) -> Process:
    return make(request.param)


def test_m_and_psi_solve_the_drift(process):
    t = smooth_times(process)
    f = process.F(t)
    for solution, rate in ((process.M, process.M_rate(t)), (process.Psi, f * process.Psi(t))):
        measured = slope(solution, t)
        scale = measured.abs().max().clamp(min=1e-3)
        assert ((values(rate) - measured).abs().max() / scale) < 1e-7
    assert torch.allclose(values(process.M_rate(t)), values(f * process.M(t)), rtol=1e-10, atol=1e-12)


def test_r_is_the_root_gddim_asks_for(process):
    t = smooth_times(process)
    r, gg = process.R(t), process.GG(t)
    asked = process.F(t) * r + 0.5 * (gg * transpose(inverse(r)))
    measured = slope(process.R, t)
    scale = measured.abs().max().clamp(min=float(values(r).abs().max()))  # noise that stays has no rate
    assert (values(asked) - measured).abs().max() / scale < 1e-7
    assert (values(process.R_rate(t)) - values(asked)).abs().max() / scale < 1e-9
    assert torch.allclose(values(r * transpose(r)), values(process.Sigma(t)), rtol=1e-12, atol=1e-14)


def test_covariance_solves_the_lyapunov_equation(process):
    t = smooth_times(process)
    f, sigma = process.F(t), process.Sigma(t)
    asked = values(f * sigma + sigma * transpose(f) + process.GG(t))
    measured = slope(process.Sigma, t)
    assert (asked - measured).abs().max() / measured.abs().max().clamp(min=float(values(sigma).abs().max())) < 1e-7


def test_log_snr_falls_and_inverts(process):
    t = inner_times(process, 200)
    lam = process.log_snr(t)
    assert (lam.diff() < 0).all()
    assert torch.allclose(process.inverse_log_snr(lam), t, rtol=1e-10, atol=0)
    for end in (process.t_min, process.t_max):
        assert process.inverse_log_snr(process.log_snr(end)) == pytest.approx(end, rel=1e-8, abs=1e-12)


def test_log_snr_is_the_matched_filters(process):
    """1/2 log M^T Sigma^-1 M; for a diagonal process that of frequency zero, or of the slowest one that fades."""
    t = inner_times(process)
    m = process.M(t)
    square = values(transpose(m) * inverse(process.Sigma(t)) * m)
    if isinstance(process, fs.Masking):  # the clock of a pixel that is never masked
        assert bool((0.5 * square.log().amax((-2, -1)) <= process.log_snr(t)).all())
        assert 0.5 * square.log().amax() > process.log_snr(t).amax() - 0.01
        return
    if process.kind != "scalar":
        square = square[..., 0, 1 if isinstance(process, fs.HeatDissipation) else 0]
    assert torch.allclose(0.5 * square.log(), process.log_snr(t), atol=1e-9)


def test_vector_times_are_the_floats(process):
    t = inner_times(process, 3)
    for f in (process.M, process.R, process.Psi, process.F, process.GG, process.Sigma):
        whole = values(f(t))
        for k, one in enumerate(t.tolist()):
            assert torch.allclose(whole[k], torch.as_tensor(values(f(one)), dtype=torch.float64), rtol=1e-13)


def test_diffuse_and_the_way_back(process):
    data = (3, 2, *SIZE)
    x0 = torch.randn(data, dtype=torch.float64)
    eps = torch.randn(3, *process.state_shape(data[1:]), dtype=torch.float64)
    t = inner_times(process, 3)
    z = process.diffuse(x0, t, eps)
    assert z.shape == eps.shape
    assert process.data_shape(tuple(z.shape[1:])) == data[1:]
    for k, one in enumerate(t.tolist()):
        assert torch.allclose(z[k : k + 1], process.diffuse(x0[k : k + 1], one, eps[k : k + 1]), atol=1e-12)
        p, q = process.data_from_noise(one)
        assert torch.allclose(
            apply(p, z[k : k + 1]) + apply(q, eps[k : k + 1]), process.coordinates(x0[k : k + 1]), atol=1e-9
        )
    assert torch.allclose(process.from_coordinates(process.coordinates(x0)), x0, atol=1e-12)


def test_prior_has_the_marginal_covariance(process):
    if isinstance(process, fs.HeatDissipation):
        with pytest.raises(ValueError, match="blurred images and not noise"):
            process.prior(torch.zeros(1, 1, *SIZE))
        return
    eps = torch.randn(20_000, *process.state_shape((1, *SIZE)), dtype=torch.float64)
    z = process.prior(eps)
    want = values(process.Sigma(process.t_max))
    if process.kind == "block":
        got = torch.cov(z.transpose(0, 1).flatten(1))
        assert torch.allclose(got, want, rtol=0.02, atol=0.02 * float(want.abs().max()))
    else:
        want = want[0, 0] if isinstance(want, torch.Tensor) else want
        assert float(z.var()) == pytest.approx(float(want), rel=0.02)


def test_edges_of_vp_in_closed_form():
    vp = fs.VP()
    assert vp.alpha(1.0) == pytest.approx(math.exp(-5.025), rel=1e-14)
    assert (vp.alpha(0.0), vp.sigma(0.0), vp.log_snr(0.0)) == (1.0, 0.0, math.inf)
    assert vp.sigma(1e-8) == pytest.approx(math.sqrt(1e-9), rel=1e-6)  # not lost to rounding


def test_singular_ends_are_exact():
    flow, cosine = fs.Flow(), fs.Cosine(t_max=1.0)
    assert (flow.alpha(1.0), flow.sigma(0.0)) == (0.0, 0.0)
    assert (flow.log_snr(1.0), flow.log_snr(0.0)) == (-math.inf, math.inf)
    assert (flow.inverse_log_snr(-math.inf), flow.inverse_log_snr(math.inf)) == (1.0, 0.0)
    assert (cosine.alpha(1.0), cosine.inverse_log_snr(-math.inf)) == (0.0, 1.0)


def test_flow_sde_is_the_textbook_one():
    flow = fs.Flow()
    assert flow.F(0.25) == pytest.approx(-1 / 0.75)
    assert flow.GG(0.25) == pytest.approx(2 * 0.25 / 0.75)


def test_discrete_passes_through_its_table():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    table = (1 - betas).cumprod(0)
    process = fs.Discrete(alphas_cumprod=tuple(table.tolist()))
    t = (torch.arange(1000, dtype=torch.float64) + 1) / 1000
    assert torch.allclose(process.alpha(t) ** 2, table, rtol=1e-12)
    assert process.alpha(0.5005) ** 2 == pytest.approx(math.sqrt(table[499] * table[500]), rel=1e-12)
    assert process == fs.Discrete(alphas_cumprod=tuple(table.tolist()))
    zero_terminal = fs.Discrete(alphas_cumprod=(0.9, 0.5, 0.0))
    assert zero_terminal.alpha(1.0) == 0.0
    assert zero_terminal.log_snr(1.0) == -math.inf
    lam = zero_terminal.log_snr(torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64))
    assert torch.allclose(zero_terminal.inverse_log_snr(lam), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64))
    for bad in ((0.5, 0.6), (1.0, 0.5), (), (0.5, -0.1)):
        with pytest.raises(ValueError, match="alphas_cumprod"):
            fs.Discrete(alphas_cumprod=bad)


def test_cld_is_stationary_and_marginalises_the_velocity():
    cld = fs.CLD()
    assert torch.allclose(
        cld.Sigma(20.0).values, torch.diag(torch.tensor([1.0, 0.25], dtype=torch.float64)), atol=1e-12
    )
    assert torch.allclose(cld.Sigma(0.0).values, torch.diag(torch.tensor([0.0, 0.01], dtype=torch.float64)), atol=1e-15)
    assert torch.equal(cld.M(0.0).values, torch.tensor([[1.0], [0.0]], dtype=torch.float64))


def test_blurring_keeps_the_mean_and_blurs_the_rest():
    process = fs.Blurring(size=SIZE)
    d = process.frequency_scaling(0.9)
    assert d[0, 0] == 1.0
    assert (d.diff(dim=0) <= 0).all()
    assert float(d[-1, -1]) == pytest.approx(process.min_scale, rel=1e-6)
    flat = process.coordinates(torch.ones(1, *SIZE, dtype=torch.float64))
    assert float(flat[0, 0, 0]) == pytest.approx(math.sqrt(SIZE[0] * SIZE[1]))
    assert flat.flatten()[1:].abs().max() < 1e-14
    with pytest.raises(ValueError, match=r"Blurring.*use size=\(5, 5\)"):
        process.coordinates(torch.ones(1, 1, 5, 5))


def test_operator_functions():
    a = torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    for c, m in ((Block(a), a), (Diagonal(torch.tensor([[2.0, 9.0]], dtype=torch.float64), 2), None)):
        low, square = cholesky(c), root(c)
        assert torch.allclose(values(low * transpose(low)), c.values)
        assert torch.allclose(values(square * square), c.values)
        assert torch.allclose(values(inverse(c) * c * 2.0 - c * inverse(c)), values(inverse(c) * c))
        if m is not None:
            assert float(log_det(c, (5,))) == pytest.approx(5 * math.log(11.0))
    assert root(-1e-30) == 0.0
    assert cholesky(Block(torch.zeros(2, 2, dtype=torch.float64))).values.abs().max() == 0
    assert log_det(2.0, (3,)) == pytest.approx(3 * math.log(2))


@pytest.mark.parametrize(
    "make_bad",
    [
        lambda: fs.VP(t_min=1.0, t_max=0.5),
        lambda: fs.VP(beta_max=-20.0),
        lambda: fs.VE(sigma_min=0.0),
        lambda: fs.EDM(sigma_min=2.0, sigma_max=1.0),
        lambda: fs.Flow(t_max=1.5),
        lambda: fs.CLD(t_min=0.0),
        lambda: fs.Blurring(size=(4, 4, 4)),
    ],
)
def test_impossible_processes_are_refused(make_bad):
    with pytest.raises(ValueError, match="give "):
        make_bad()


@pytest.mark.parametrize("name", ["blurring", "heat", "ve-blur", "masking"])
def test_a_rate_in_closed_form_is_the_derivative_of_its_mean(name):
    process = fs.PROCESSES[name](size=(6, 5))
    t = torch.linspace(0.02, 0.98, 9, dtype=torch.float64)
    rate, exact = process.F(t).values, DiagonalProcess.F(process, t).values
    assert torch.allclose(rate, exact, rtol=1e-11, atol=1e-13 * float(exact.abs().max()))
    assert torch.equal(process.F(float(t[3])).values, rate[3])
