"""Coefficients and exact solutions of the golden folder: CLD, blurring, DEIS weights, probability-flow ODEs."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch
from golden_case import difference
from golden_store import OTHER, absent, store

from fewstep.denoiser import Mixture
from fewstep.likelihood import Likelihood, log_prob, marginal_log_prob
from fewstep.loop import sample
from fewstep.process import CLD, EDM, VP, Blurring, Discrete, Flow, Process
from fewstep.process.clock import clock
from fewstep.solver import DDIM, Multistep, UniPC
from fewstep.solver.weights import weights

GOLDEN = store()

CLD_OFFSET = CLD(offset=1e-6)
TRUE = {  # process, start and end; the start state is x_T, times sigma on EDM
    "vp_linear_t1_to_1e-3": (VP(), 1.0, 1e-3),
    "vp_linear_t1_to_1e-3_tODE": (VP(), 1.0, 1e-3),
    "vp_linear_t1_to_1e-4": (VP(), 1.0, 1e-4),
    "vp_linear_t1_to_0": (VP(), 1.0, 0.0),
    "vp_discrete_t1_to_1e-3": (Discrete(), 1.0, 1e-3),
    "edm_80_to_0.002": (EDM(), 80.0, 0.002),
    "edm_80_to_0": (EDM(), 80.0, 0.0),
    "flow_1_to_0": (Flow(), 1.0, 0.0),
}


def _named(pattern: str) -> list:
    """The arrays of a name. Another folder may have none of them; that this one has none fails when collected."""
    names = sorted(name for name in GOLDEN.npz if re.fullmatch(pattern, name))
    return names or ([pytest.param("", marks=pytest.mark.skip(f"{OTHER} has no {pattern}"))] if OTHER else [])


def _array(name: str) -> torch.Tensor:
    if name not in GOLDEN.npz:
        absent(name)
    return GOLDEN.array(name)


@pytest.mark.parametrize("name", _named("true/.*"))
def test_fine_grid_reaches_exact_solution(name):
    """Twice the steps until an order-3 solver is at the ODE's solution, and at least at order 1.7 in the last two."""
    label, d = re.fullmatch(r"true/(.*)_d(\d+)", name).groups()
    if label not in TRUE:
        absent(f"start and end for {label} in TRUE")
    process, start, end = TRUE[label]
    x = torch.tensor(GOLDEN.problem(int(d))["x_T"], dtype=torch.float64) * (start if isinstance(process, EDM) else 1)
    solver = UniPC(points=3, final_ramp=False)
    errors, steps = [], 100
    while len(errors) < 2 or (errors[-1] > 1e-6 and steps <= 6400):
        grid = _fine(process, start, end, steps)
        z = sample(GOLDEN.mixture(process, int(d)), process, solver=solver, grid=grid, x=x)
        errors.append(difference(z, _array(name)))
        steps *= 2
    print(f"{label} d={d}: {' '.join(f'{error:.1e}' for error in errors)}")
    assert errors[-1] <= 1e-6
    assert errors[-1] <= errors[-2] / 2**1.7


def _fine(process: Process, start: float, end: float, steps: int) -> torch.Tensor:
    """Uniform in log-SNR; at a singular end a last (or first) step to it from where nothing is left to happen."""
    low = float(process.log_snr(start)) if process.log_snr(start) > -20 else -11.0
    high = float(process.log_snr(end)) if process.log_snr(end) < 20 else 11.0
    inner = process.inverse_log_snr(torch.linspace(low, high, steps + 1, dtype=torch.float64))
    ends = ([start] if inner[0] < start - 1e-12 else []), ([end] if inner[-1] > end + 1e-12 else [])
    inner = inner.tolist()
    inner[0], inner[-1] = (inner[0] if ends[0] else start), (inner[-1] if ends[1] else end)
    return torch.tensor([*ends[0], *inner, *ends[1]], dtype=torch.float64)


def test_cld_covariance_and_root():
    t = _array("gddim_cld_extra/cld_t")
    torch.testing.assert_close(
        CLD_OFFSET.Sigma(t).values, _array("gddim_cld_extra/cld_Sigma_closed_form"), rtol=1e-14, atol=1e-15
    )
    torch.testing.assert_close(CLD_OFFSET.Psi(t).values, _array("gddim_cld_extra/cld_Psi_0_t"), rtol=1e-14, atol=1e-15)
    ours, theirs = CLD_OFFSET.R(t).values, _array("gddim_cld_extra/cld_R_dop853")
    s, r = torch.cartesian_prod(*2 * [torch.arange(len(t))]).T
    carried = (ours[s] @ torch.linalg.inv(ours[r]), theirs[s] @ torch.linalg.inv(theirs[r]))
    torch.testing.assert_close(*carried, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", _named("gddim_cld_extra/cld_A[BM][0-9]_eps_coef_n10_.*"))
def test_cld_weights(name):
    """Adams weights of gDDIM, up to the constant rotation that its root of Sigma leaves free."""
    kind, order, quad = re.fullmatch(r".*/cld_A([BM])([0-9])_eps_coef_n10_(.*)", name).groups()
    times, theirs, k = _array("gddim_cld_extra/cld_rev_ts_n10").tolist(), _array(name), int(order)
    at = _array("gddim_cld_extra/cld_t")[-1].item()
    turn = torch.linalg.inv(CLD_OFFSET.R(at).values) @ _array("gddim_cld_extra/cld_R_dop853")[-1]
    for n in range(len(times) - 1):
        past = times[max(0, n - k + (kind == "M")) : n + 1][::-1]
        nodes = [times[n + 1], *past] if kind == "M" else past
        carry, found = weights(CLD_OFFSET, "noise", clock("t"), times[n], times[n + 1], nodes)
        ours = torch.stack([b.values @ turn for b in found])
        assert difference(ours, theirs[n, : len(nodes)]) < (1e-3 if quad == "official" else 1e-5)
        assert not theirs[n, len(nodes) :].any()
        torch.testing.assert_close(carry.values, _array("gddim_cld_extra/cld_x_coef_n10")[n], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", _named("deis_coefs/.*"))
def test_deis_weights(name):
    """DEIS tAB weights; the reference's quadrature is what the tolerance is."""
    order, phase, quad, steps = re.fullmatch(r"deis_coefs/deis_tAB(\d)_(.*)_(.*)_n(\d+)", name).groups()
    same = [
        e
        for e in GOLDEN.entries
        if e.config.get("schedule") == "vp_linear"
        and f"{e.config.get('ts_phase')}{e.config.get('ts_order')}" == phase
        and e.config.get("num_step") == int(steps)
    ]
    if not same:
        absent(f"entry with the grid of {name}")
    times, theirs = same[0].grid("t"), _array(name)
    for n in range(len(times) - 1):
        nodes = times[max(0, n - int(order)) : n + 1][::-1]
        _, found = weights(VP(), "noise", clock("t"), times[n], times[n + 1], nodes)
        limit = 1e-3 if quad == "official" else 3e-7
        assert difference(torch.tensor(found, dtype=torch.float64), theirs[n, : len(nodes)]) < limit


def test_blurring_schedule():
    t, process = _array("gddim_bdm_extra/bdm_t"), Blurring(size=(32, 32))
    scaling = process.frequency_scaling(t)
    # The stored "alpha" is the squared one
    torch.testing.assert_close(process.alpha(t) ** 2, _array("gddim_bdm_extra/bdm_alpha"), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(scaling[:, 0], _array("gddim_bdm_extra/bdm_freq_scaling_row0"), rtol=1e-6, atol=1e-12)
    diagonal = torch.diagonal(scaling, dim1=1, dim2=2)
    torch.testing.assert_close(diagonal, _array("gddim_bdm_extra/bdm_freq_scaling_diag"), rtol=1e-6, atol=1e-12)
    assert abs(process.t_max - float(_array("gddim_bdm_extra/bdm_sampling_T"))) < 1e-12


@pytest.mark.parametrize("name", _named("gddim_bdm_extra/bdm_order0_nfe[0-9]+_y"))
def test_blurring_order_0(name):
    """gDDIM of order 0 on blurring diffusion; the stored means are DCT coefficients."""
    process, theirs = Blurring(size=(32, 32)), _array(name)[..., 0]
    means = process.from_coordinates(_array("gddim_bdm_extra/bdm_mu").reshape(-1, 32, 32))
    stds, shares = _array("gddim_bdm_extra/bdm_gmm_s"), _array("gddim_bdm_extra/bdm_gmm_w")
    start, grid = _array("gddim_bdm_extra/bdm_yT")[..., 0], _array(name.removesuffix("_y") + "_ts")
    for solver in (DDIM(), Multistep(points=1, form="noise", clock="t")):
        z = sample(Mixture(process, means, stds, shares), process, solver=solver, grid=grid, x=start)
        assert difference(z, theirs) < 1e-9


@pytest.mark.parametrize("name", _named("score_sde_extra/lik_.*(bpd|logp).*"))
def test_likelihood(name):
    """Log densities of score_sde: VP from t = 1e-5, prior N(0, I), exact divergence or the stored Rademacher probe.

    The bits are those of data in [0, 1] in 256 levels. A tolerance of 1e-5 is the reference's own error.
    """
    what, d = re.fullmatch(r"score_sde_extra/lik_(.*)_d(\d+)", name).groups()
    theirs = _array(name)
    if what == "exact_logp_at_eps_nats":
        mixture, data = GOLDEN.mixture(VP(), int(d)), _array(f"score_sde_extra/lik_data_d{d}")
        assert difference(marginal_log_prob(mixture, data, 1e-5), theirs) < 1e-8
        return
    official = what.startswith("bpd_official")
    found = _likelihood(int(d), official)
    ours = found.nats if what.endswith("logp_nats") else found.bits_per_dim(bin=1 / 256)
    loose = official and not what.endswith("tol1e-09")
    assert difference(ours, theirs) < (1e-4 if loose else 1e-7)
    assert difference(found.z, _array(f"score_sde_extra/lik_pfode_z_d{d}")) < 1e-7


@cache
def _likelihood(d: int, official: bool) -> Likelihood:
    process, data = VP(t_min=1e-5), _array(f"score_sde_extra/lik_data_d{d}")
    normal = lambda z: torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)  # noqa: E731
    probes = _array(f"score_sde_extra/lik_probe_d{d}")[None] if official else 1
    how = "auto" if official else "exact"
    mixture = GOLDEN.mixture(process, d)
    return log_prob(mixture, process, data, prior=normal, divergence=how, probes=probes, tolerance=1e-9)
