"""`FewStepScheduler` call by call beside `fewstep.sample`; half a run, two runs, a changed state."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fewstep as fs
from fewstep.solver import ALIASES

pytest.importorskip("diffusers")

from diffusers_march import FLOW, SD, march, net, noise, scheduler  # noqa: E402

FEW = ["ddim", "ddpm", "unipc-3", "dpmpp-2s", "heun", "edm-sde", "rk4", "gaussian-split", "pndm", "lcm", "restart"]


def same_as_sample(name: Any, n: int, **config: Any) -> None:
    """Runs a scheduler beside `sample`: the same bits, and as many calls as asked for at most."""
    s = scheduler(name, n, **config)
    assert len(s.timesteps) == s.table.nfe == s.num_inference_steps <= n
    x = noise()
    ours = march(s, x, torch.Generator().manual_seed(3))
    want = fs.sample(
        s.convention.denoiser(net), s.process, solver=s.table, x=x, noise=torch.Generator().manual_seed(3),
        callback=lambda *_: None,  # rows are then made in the same order of additions
    )  # fmt: skip
    assert bool(ours.isfinite().all())
    assert torch.equal(ours, want)
    assert torch.equal(ours, march(s, x, torch.Generator().manual_seed(3)))  # and the object serves the next run


@pytest.mark.parametrize("config", [SD, FLOW, {**SD, "final_sigmas_type": "sigma_min"}], ids=["betas", "flow", "state"])
@pytest.mark.parametrize("name", FEW)
def test_a_run_is_sample_call_by_call(name: str, config: dict[str, Any]) -> None:
    same_as_sample(name, 7, **config)


def test_noise_before_the_first_call_is_part_of_the_start() -> None:
    s, x, g = scheduler(fs.EDMHeun(churn=1.0), None), noise(), torch.Generator()
    s.set_timesteps(timesteps=[900, 600, 300])
    assert float(s.timesteps[0]) > 900
    assert len(s.table.noises) == 2  # of three steps
    want = fs.sample(
        s.convention.denoiser(net), s.process, solver=s.table, x=x, noise=g.manual_seed(3), callback=lambda *_: None
    )
    assert torch.equal(march(s, x, g.manual_seed(3)), want)


# The fewest calls of the solvers that take more than one; a last step to sigma = 0 is a single call.
FEWEST = {
    2: ["heun", "midpoint", "edm", "edm-sde", "s-pndm", "plms", "dpm-solver-2", "dpmpp-2s", "res-2s",
        "predictor-corrector-annealed", "dpmpp-sde", "seeds-2",
        "dpm-2-ancestral", "dpm-2-ancestral-flow", "dpmpp-2s-ancestral", "dpmpp-2s-ancestral-flow"],
    3: ["dpm-solver-3", "dpmpp-3s", "deis-rhork-kutta3", "seeds-3"],
    4: ["rk4", "pndm"], 5: ["annealed-langevin"], 6: ["restart"],
}  # fmt: skip
FEWEST_ON = {
    "betas": {name: calls for calls, names in FEWEST.items() for name in names},
    "zero": {"predictor-corrector-annealed": 2, "annealed-langevin": 5},
    "flow": {"predictor-corrector-annealed": 2, "annealed-langevin": 5},
}
CONFIGS = {"betas": {**SD, "final_sigmas_type": "sigma_min"}, "zero": SD, "flow": FLOW}
# What a pipeline cannot run, by a part of the sentence that says why.
NEVER = dict.fromkeys(
    ["sn-ddpm", "npr-ddpm", "taylor-2", "ltsp", "stsp", "ddim-cfgpp", "euler-ancestral-cfgpp", "dpmpp-2m-cfgpp"],
    "beside the network's prediction",
) | {"sscs": "covers block processes"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FEWEST_ON)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 12, 30])
@pytest.mark.parametrize("name", [name for name in fs.TABLES if name not in ALIASES])
def test_every_solver_is_sample_call_by_call(name: str, n: int, kind: str) -> None:
    config, fewest = CONFIGS[kind], FEWEST_ON[kind].get(name, 1)
    if refused := NEVER.get(name) or (n < fewest and f"takes at least {fewest} network calls: give {fewest}"):
        with pytest.raises(ValueError, match=refused):
            scheduler(name, n, **config)
    else:
        same_as_sample(name, n, **config)


@pytest.mark.parametrize("name", ["ddpm", "unipc-2", "edm-sde"])
def test_edm_networks_get_their_scale(name: str) -> None:
    config = {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0, "prediction_type": "epsilon"}
    s = scheduler(name, 6, **config)
    x = noise() * s.init_noise_sigma
    want = fs.sample(
        fs.wrap(net, fs.EDM(), predicts="edm", sigma_data=0.5), fs.EDM(), solver=s.table, x=x,
        noise=torch.Generator().manual_seed(3),
    )  # fmt: skip
    assert torch.allclose(march(s, x, torch.Generator().manual_seed(3)), want, rtol=1e-4, atol=1e-4)


def test_shapes_of_sound_and_video() -> None:
    for shape in ((2, 3, 16), (1, 3, 4, 4, 4)):
        assert march(scheduler(), noise(*shape)).shape == shape


def test_half_precision_rounds_what_is_seen_and_not_what_is_kept() -> None:
    s, x = scheduler("ddim", 50), noise().bfloat16()
    seen, kept = x, x.float()
    for t in s.timesteps:
        output = net(seen.float(), t)
        seen = s.step(output, t, seen).prev_sample
        assert seen.dtype == torch.bfloat16
    twin = s.fork()
    for t in s.timesteps:
        output = net(kept.bfloat16().float(), t)
        kept = twin.step(output, t, kept).prev_sample
    assert torch.equal(seen, kept.bfloat16())


def test_an_abandoned_run_does_not_leak() -> None:
    s, x = scheduler(), noise()
    want = march(s, x)
    march(s, noise(seed=1), stop=4)
    assert torch.equal(march(s, x), want)  # begun again at once
    march(s, noise(seed=1), stop=4)
    s.set_timesteps(6)
    assert torch.equal(march(s, x), want)


def test_two_runs_at_once_are_told_apart() -> None:
    s, a, b = scheduler(), noise(seed=1), noise(seed=2)
    want = march(s, a), march(s, b)
    for t in s.timesteps:
        a = s.step(net(a, t), t, a).prev_sample
        b = s.step(net(b, t), t, b).prev_sample
    assert torch.equal(a, want[0])
    assert torch.equal(b, want[1])


def test_two_runs_that_cannot_be_told_apart_are_refused() -> None:
    s, a, b = scheduler(), noise(seed=1), noise(seed=2)
    first, second = s.timesteps[:2]
    a, b = (s.step(net(x, first), first, x).prev_sample for x in (a, b))
    s.step(net(a, second), second, a + 1)
    with pytest.raises(ValueError, match="fork"):
        s.step(net(b, second), second, b + 1)


def test_a_fork_is_independent() -> None:
    s, a, b = scheduler(), noise(seed=1), noise(seed=2)
    want = []
    for x in (a, b):
        for t in s.timesteps:
            x = s.step(net(x, t), t, x).prev_sample + 0.1  # changed states, which would not be told apart
        want.append(x)
    twin = s.fork()
    for t in s.timesteps:
        a = s.step(net(a, t), t, a).prev_sample + 0.1
        b = twin.step(net(b, t), t, b).prev_sample + 0.1
    assert torch.equal(a, want[0])
    assert torch.equal(b, want[1])


def test_a_changed_state_belongs_to_no_run_of_before() -> None:
    s, x = scheduler(), noise()
    first, second = s.timesteps[:2]
    x = s.step(net(x, first), first, x).prev_sample
    s.set_timesteps(6)
    s.fork()
    with pytest.raises(ValueError, match="in order"):
        s.step(net(x, second), second, x + 1)
    s.step(net(x, second), second, x)  # as it went out it is that run's


def test_a_time_step_that_is_left_out_is_refused() -> None:
    """A run may begin late, but once under way it goes through all of its time steps."""
    s, x = scheduler(), noise()
    x = s.step(net(x, s.timesteps[0]), s.timesteps[0], x).prev_sample
    with pytest.raises(ValueError, match="in order"):
        s.step(net(x, s.timesteps[2]), s.timesteps[2], x)


def test_a_change_in_place_is_noticed() -> None:
    ends = []
    for in_place in (True, False):
        s, x = scheduler("unipc-3"), noise()
        for i, t in enumerate(s.timesteps):
            x = s.step(net(x, t), t, x).prev_sample
            if i == 2:
                x = x.add_(1.0) if in_place else x + 1.0
        ends.append(x)
    assert torch.equal(*ends)


@pytest.mark.parametrize("solver", ["dpmpp-2s", "seeds-3", "unipc-3"])
@pytest.mark.parametrize("begin", [0, 1, 2, 4])
def test_a_later_begin_carries_a_point_exactly(solver: str, begin: int) -> None:
    s = scheduler(solver, 6, **SD | {"prediction_type": "sample", "final_sigmas_type": "sigma_min"})
    s.set_begin_index(begin)
    c, eps = torch.full((1, 4, 4, 4), 0.7).double(), noise(1, 4, 4, 4).double()
    x = s.add_noise(c, eps, s.timesteps[begin : begin + 1])
    for t in s.timesteps[begin:]:
        x = s.step(c, t, x).prev_sample
    alpha, sigma = (f(s.table.rows[-1].t) for f in (s.process.alpha, s.process.sigma))
    if solver != "seeds-3":  # which draws noise of its own
        assert torch.allclose(x, alpha * c + sigma * eps, atol=1e-6)
    assert float((x - alpha * c).std()) == pytest.approx(sigma, rel=0.4)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "unipc-3", "heun", "multistep-pc-2", "gaussian-split"])
def test_what_a_pipeline_changes_counts(solver: str) -> None:
    """Around a fixed prediction a state's change shrinks with its noise, also where a corrector restates the state."""
    s, x = scheduler(solver, 6, **SD | {"prediction_type": "sample"}), noise().double()
    ends = []
    for moved in (0.0, 1.0):
        z = x
        for i, t in enumerate(s.timesteps):
            z = z + moved if i == 4 else z
            z = s.step(torch.zeros_like(z), t, z).prev_sample
        ends.append(z)
    row = [row for row in s.table.rows if row.at is not None][4]
    share = s.process.sigma(s.table.rows[-1].t) / s.process.sigma(row.t)
    assert torch.allclose(ends[1] - ends[0], torch.full_like(x, share), rtol=1e-3)


@pytest.mark.parametrize("solver", ["unipc-3", "dpmpp-2s", "rk4", "ddpm", "lcm"])
@pytest.mark.parametrize("begin", [1, 2, 5])
def test_a_later_begin_keeps_the_time_steps(solver: str, begin: int) -> None:
    s = scheduler(solver, 9)
    s.set_begin_index(begin)
    rest = s.timesteps[begin:]
    at = torch.tensor([row.at for row in s.table.rows if row.at is not None], dtype=torch.float64)
    assert torch.equal(s.convention.timestep(at).float(), rest)
    start = s.add_noise(noise(), noise(seed=2), rest[:1])
    z = march(s, start, torch.Generator().manual_seed(0))
    want = fs.sample(
        s.convention.denoiser(net), s.process, solver=s.table, x=start, noise=torch.Generator().manual_seed(0),
        callback=lambda *_: None,
    )  # fmt: skip
    assert torch.equal(z, want)


def test_a_begin_on_the_grid_is_the_solver_on_the_rest() -> None:
    s = scheduler("unipc-3", 9)
    grid = s.table.grid
    s.set_begin_index(4)
    assert s.table == fs.tabulate("unipc-3", s.process, grid=grid[4:])
