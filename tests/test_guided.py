"""Solvers that take model and guidance apart, and the Taylor step with the exact derivative."""

from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
from fewstep.denoiser.guided import rate
from fewstep.process.operator import apply, inverse
from fewstep.solver import CFGPlusPlus, ReverseMean, Splitting, Taylor

VP = fs.VP()
CENTRES = 1.5 * torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
EVERY, THREE = fs.Mixture(VP, CENTRES, 0.25), fs.Mixture(VP, CENTRES[:3], 0.25)
START = torch.randn(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def grid(steps: int) -> torch.Tensor:
    return VP.inverse_log_snr(torch.linspace(-4.9, 3.5, steps + 1, dtype=torch.float64))


def run(denoiser, solver, steps: int) -> torch.Tensor:
    return fs.sample(denoiser, VP, solver=solver, grid=grid(steps), x=START)


@pytest.mark.parametrize("name", ["vp", "flow", "cosine", "edm", "cld", "blurring"])
def test_the_derivative_along_the_ode_is_the_difference_quotient(name: str) -> None:
    process = fs.Blurring(size=(2, 2)) if name == "blurring" else fs.PROCESSES[name]()
    g = torch.Generator().manual_seed(0)
    mixture = fs.Mixture(process, torch.randn(3, 1, 2, 2, dtype=torch.float64, generator=g), 0.4)
    t, h = (2.0, 1e-5) if name == "edm" else (0.4, 1e-5)
    x0, eps = (
        torch.randn(5, *s, dtype=torch.float64, generator=g) for s in ((1, 2, 2), process.state_shape((1, 2, 2)))
    )
    z = process.diffuse(x0, t, eps)
    spread = process.R_rate(t) * inverse(process.R(t))
    velocity = apply(spread, z) + apply(process.M_rate(t) - spread * process.M(t), process.coordinates(mixture(z, t)))
    ahead, behind = (process.coordinates(mixture(z + d * velocity, t + d)) for d in (h, -h))
    assert (rate(mixture, process, t)(z) - (ahead - behind) / (2 * h)).abs().max() < 1e-6


def test_taylor_is_of_second_order_and_reads_the_head_of_any_denoiser() -> None:
    exact = run(EVERY, "multistep-pc-3", 500)
    denoiser = fs.Differentiated(lambda z, t: EVERY(z, t), VP)  # one without a head of its own
    for solver in (Taylor(), Taylor(form="data", clock="log-snr")):
        errors = [float((run(denoiser, solver, n) - exact).square().mean().sqrt()) for n in (20, 40)]
        assert math.log2(errors[0] / errors[1]) > 1.75, solver
    with pytest.raises(ValueError, match="'derivative', which the denoiser does not return"):
        run(lambda z, t: EVERY(z, t), Taylor(), 3)


def test_guidance_by_parts_is_guidance() -> None:
    guided, t = fs.guide(THREE, EVERY, 3.0), 0.3
    parts = [guided.head(name, t) for name in ("base", "guidance")]
    assert (guided(START, t) - sum(part(START) for part in parts if part is not None)).abs().max() < 1e-14
    whole = EVERY(START, t) + 3.0 * (THREE(START, t) - EVERY(START, t))
    assert (guided(START, t) - whole).abs().max() < 1e-12
    with pytest.raises(ValueError, match="give two of one process"):
        fs.guide(THREE, fs.Mixture(fs.Flow(), CENTRES, 0.25), 2.0)


def test_splitting_orders_and_the_published_half_steps() -> None:
    """Strang is of order 2 around Heun with midpoint guidance, and of order 1 with the published Euler halves."""
    guided = fs.guide(THREE, EVERY, 4.0)
    exact = run(guided, "multistep-pc-3", 500)
    slopes = {}
    for name, solver in {
        "strang": Splitting(inner=fs.RungeKutta()),
        "published": Splitting(inner=fs.RungeKutta(), midpoint=False),
        "lie": Splitting(inner=fs.RungeKutta(), strang=False),
    }.items():
        errors = [float((run(guided, solver, n) - exact).square().mean().sqrt()) for n in (40, 80)]
        slopes[name] = math.log2(errors[0] / errors[1])
    assert slopes["strang"] > 1.75
    assert 0.75 < slopes["lie"] < 1.5
    assert slopes["published"] < 1.6


def test_each_part_is_called_in_its_own_rows_only() -> None:
    counts = {"base": 0, "guidance": 0}

    def counted(name, f):
        def call(z, t):
            counts[name] += 1
            return f(z, t)

        return call

    guided = fs.Guided(base=counted("base", EVERY), shift=counted("guidance", lambda z, t: 0.1 * z), process=VP)
    for solver, expected in (("ltsp", (7, 7)), ("stsp", (14, 14)), ("ddim-cfgpp", (7, 7))):
        counts.update(base=0, guidance=0)
        table = fs.tabulate(solver, VP, grid=grid(7))
        fs.sample(guided, VP, solver=table, x=START)
        assert (counts["base"], counts["guidance"]) == expected, solver
        assert table.nfe == (7 if "cfgpp" in solver else sum(expected))


def test_without_guidance_splitting_and_cfgpp_are_the_inner_solver() -> None:
    none = fs.Guided(base=EVERY, shift=lambda z, t: 0 * z, process=VP)
    for inner in (fs.DDIM(), fs.DPMMultistep(points=2), fs.PNDM(points=4, start="ramp"), fs.RungeKutta()):
        plain = run(EVERY, inner, 9)
        assert (run(none, Splitting(inner=inner), 9) - plain).abs().max() < 1e-12
        if not isinstance(inner, fs.RungeKutta):
            assert (run(none, CFGPlusPlus(inner=inner), 9) - plain).abs().max() < 1e-12


def test_cfgpp_with_ddim_is_guided_data_and_unguided_noise() -> None:
    guided, t, s = fs.guide(THREE, EVERY, 0.6), 0.5, 0.4
    times = torch.tensor([t, s], dtype=torch.float64)
    found = fs.sample(guided, VP, solver=CFGPlusPlus(), grid=times, x=START)
    eps = (START - VP.alpha(t) * EVERY(START, t)) / VP.sigma(t)
    assert (found - VP.alpha(s) * guided(START, t) - VP.sigma(s) * eps).abs().max() < 1e-13
    with pytest.raises(ValueError, match="one row a step"):
        CFGPlusPlus(inner=fs.RungeKutta()).tabulate(VP, grid(3))
    with pytest.raises(ValueError, match="reads the data prediction alone"):
        Splitting(inner=Taylor())


SINGULAR = [CFGPlusPlus(), CFGPlusPlus(inner=fs.DDIM(eta=1.0)), CFGPlusPlus(inner=fs.DPMMultistep(points=2)),
            ReverseMean(), ReverseMean(inner=fs.DDIM(), step=0.1)]  # fmt: skip


@pytest.mark.parametrize("process", [VP, fs.EDM(), fs.Flow()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("solver", SINGULAR, ids=repr)
def test_a_step_to_sigma_zero_is_the_limit_of_steps_near_it(solver, process) -> None:
    guided = fs.guide(fs.Mixture(process, CENTRES[:3], 0.25), fs.Mixture(process, CENTRES, 0.25), 0.6)
    times = fs.to_zero(fs.GRIDS["uniform"], append=False)(process, 6)
    near = times.clone()
    near[-1] = 1e-10
    ends = [fs.sample(guided, process, solver=solver, grid=g, shape=(8, 2), dtype=torch.float64) for g in (times, near)]
    assert (ends[0] - ends[1]).abs().max() < 1e-4
    assert solver.ends == solver.inner.ends
    with pytest.raises(ValueError, match="where sigma = 0, for Splitting"):
        Splitting().tabulate(process, fs.to_zero(fs.GRIDS["uniform"], append=False)(process, 6)[1:])
