"""What a scheduler's config says, what it refuses, and that it is saved."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fewstep as fs

pytest.importorskip("diffusers")

from diffusers_march import FLOW, SD, march, net, noise, scheduler  # noqa: E402
from fewstep.interop.diffusers import FewStepScheduler, convention_of  # noqa: E402

EDM = {"sigma_min": 0.3, "sigma_max": 500.0, "sigma_data": 1.0, "prediction_type": "v_prediction",
       "sigma_schedule": "exponential", "final_sigmas_type": "zero"}  # fmt: skip


def test_the_last_step_goes_to_zero_where_the_config_asks() -> None:
    s = scheduler("ddim", 6, **SD, final_sigmas_type="zero")
    assert float(s.sigmas[-1]) == 0
    assert float(s.timesteps[-1]) > 1  # and no call is spent at the process's last time
    assert float(scheduler("euler-maruyama", 6, **SD, final_sigmas_type="zero").sigmas[-1]) > 0  # singular there


def test_time_steps_and_levels_are_used_exactly() -> None:
    s = scheduler("ddim", None)
    s.set_timesteps(timesteps=[900.25, 500.0, 20.75])
    assert s.timesteps.tolist() == [900.25, 500.0, 20.75]
    assert s.table.grid[:3].tolist() == [(t + 1) / 1000 for t in (900.25, 500.0, 20.75)]
    s.set_timesteps(sigmas=[14.615, 6.475, 1.1, 0.1, 0.0])  # the first is the last of the betas, rounded
    assert s.table.grid[0] == 1
    assert s.sigmas[1:].tolist() == pytest.approx([6.475, 1.1, 0.1, 0.0], rel=1e-6)


@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
def test_published_spacings(spacing: str) -> None:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    config = {k: v for k, v in SD.items()} | {f"use_{spacing}_sigmas": True}
    theirs = DPMSolverMultistepScheduler(**config)
    theirs.set_timesteps(8)
    ours = FewStepScheduler.from_config(theirs.config, solver="ddim")
    ours.set_timesteps(8)
    assert ours.sigmas.tolist() == pytest.approx(theirs.sigmas.tolist(), rel=2e-4)


def test_saved_and_loaded(tmp_path: Path) -> None:
    x = noise()
    table = fs.tabulate(fs.DDIM(), FewStepScheduler(**SD).process, steps=5)
    table.save(tmp_path / "table.safetensors")
    for solver in ("unipc-3", fs.DDIM(eta=0.5), tmp_path / "table.safetensors", None):
        s = scheduler(solver, 5)
        s.save_pretrained(tmp_path / "saved")
        again = FewStepScheduler.from_pretrained(tmp_path / "saved")
        again.set_timesteps(5)
        ends = [march(one, x, torch.Generator().manual_seed(0)) for one in (s, again)]
        assert torch.equal(*ends)


def test_other_libraries_config_comes_back() -> None:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(**SD, solver_order=3)
    back = DPMSolverMultistepScheduler.from_config(FewStepScheduler.from_config(theirs.config).config)
    assert back.config.solver_order == 3
    assert torch.equal(back.betas, theirs.betas)


def test_clipping_is_a_denoiser_of_its_own() -> None:
    s = scheduler("unipc-2", 6, **SD, clip_sample=True, clip_sample_range=0.4)
    x = noise()
    clipped = fs.Thresholded(s.convention.denoiser(net), None, bound=0.4)
    want = fs.sample(clipped, s.process, solver=s.table, x=x, callback=lambda *_: None)
    assert torch.equal(march(s, x), want)
    s = scheduler("ddim", 6, **SD, clip_sample=True, clip_sample_range=0.4)
    out = s.step(net(x, s.timesteps[0]), s.timesteps[0], x)
    assert float(out.pred_original_sample.abs().max()) == pytest.approx(0.4)


def test_the_threshold_of_a_large_picture() -> None:
    """2^24 numbers and more, where torch.quantile stops: pictures of 3 x 2400 x 2400, videos, batches."""
    s = scheduler("ddim", 2, **SD | {"prediction_type": "sample"}, thresholding=True, sample_max_value=2.0)
    x0 = 2 * torch.randn(1, 3, 2400, 2400)
    found = s.step(x0, s.timesteps[0], torch.zeros_like(x0)).pred_original_sample
    most = min(2.0, float(np.quantile(x0.abs().numpy(), 0.995)))
    assert torch.allclose(found, x0.clamp(-most, most) / most, atol=1e-5)


def test_a_learned_variance_is_left_out() -> None:
    s, x = scheduler("ddim", 6), noise()
    t = s.timesteps[0]
    both = torch.cat([net(x, t), torch.full_like(x, 9.0)], 1)
    assert torch.equal(s.step(both, t, x).prev_sample, s.fork().step(net(x, t), t, x).prev_sample)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: FewStepScheduler(), "prediction_type"),
        (lambda: scheduler("unipc-33"), "did you mean"),
        (lambda: scheduler("rk45"), "before the run"),
        (lambda: scheduler("taylor-2"), "derivative"),
        (lambda: scheduler("sscs"), "covers block"),
        (lambda: FewStepScheduler.from_config({**SD}, slover="ddim"), r"did you mean solver\?"),
        (lambda: scheduler("heun", 1, **SD, final_sigmas_type="sigma_min"), "at least 2"),
        (lambda: scheduler().set_timesteps(), "give one of"),
        (lambda: scheduler().set_timesteps(sigmas=[1.0, 2.0]), "rises"),
        (lambda: scheduler().set_timesteps(sigmas=[20.0, 2.0]), "defined on"),
        (lambda: scheduler(**FLOW, use_dynamic_shifting=True), "mu"),
        (lambda: scheduler(n=None).set_timesteps(5, mu=1.0), "mu"),
        (lambda: scheduler(n=None).step(noise(), 999.0, noise()), "set_timesteps"),
        (lambda: scheduler(**SD, use_karras_sigmas=True, use_beta_sigmas=True), "one of them"),
        (lambda: scheduler(fs.tabulate("ddim", fs.VP(), steps=5)), "written for"),
        (lambda: scheduler().step(noise(), 5.0, noise()), "in order"),
        (lambda: scheduler(n=4).set_begin_index(4), "leaves no call"),
        (lambda: scheduler().step(noise(), scheduler().timesteps[0], noise(), eta=0.5), "has no eta"),
        (lambda: scheduler().step(noise(), 999.0, noise(), s_churn=1.0), "s_churn in step"),
        (lambda: scheduler().set_timesteps(5, jump_length=2), "jump_length in set_timesteps"),
        (lambda: scheduler(**FLOW).set_timesteps(timesteps=[900, 500], sigmas=[0.9]), "as many of one"),
        (lambda: scheduler().set_timesteps(timesteps=[900, 500], sigmas=[0.9, 0.1]), "give one of"),
        (lambda: scheduler(**SD | {"beta_schedule": "linaer"}), "did you mean"),
        (lambda: FewStepScheduler.from_config({**EDM, "prediction_type": "trigflow"}), "trigflow"),
        (lambda: FewStepScheduler.from_config({"clip_denoised": True, "sigma_data": 0.5}), "of its own|of their own"),
        (lambda: FewStepScheduler.from_config({"snr": 0.15, "sampling_eps": 1e-5}), "is a driver"),
        (lambda: FewStepScheduler.from_config({"mask_token_id": 3}), "tokens"),
        (lambda: FewStepScheduler.from_config({"shift": 1.0, "stages": 3}), "Helios"),
        (lambda: FewStepScheduler.from_config({"scaler": 2.0, "s": 0.008}), "scaler=1"),
        (lambda: scheduler(fs.tabulate("ddim", FewStepScheduler(**SD).process, steps=5), 6), "num_inference_steps=5"),
        (lambda: scheduler("ddim", n=3, **SD, rescale_betas_zero_snr=True).step(noise(), 999.0, noise()), "alpha = 0"),
    ],
)  # fmt: skip
def test_one_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


def test_a_network_trained_here_runs_there() -> None:
    model = fs.load(dtype=torch.float32)
    s = FewStepScheduler(process=model.process, prediction_type="v_prediction", solver="ddim")
    s.set_timesteps(4)
    assert s.process == model.process
    assert float(s.timesteps[0]) == pytest.approx(1000 * model.process.t_max - 1)


def test_levels_beyond_the_betas() -> None:
    """Stable Video Diffusion's config: levels up to 700, time steps log(sigma) / 4."""
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    theirs = EulerDiscreteScheduler(
        **SD | {"prediction_type": "v_prediction"}, sigma_min=0.002, sigma_max=700.0, timestep_type="continuous",
        use_karras_sigmas=True,
    )  # fmt: skip
    theirs.set_timesteps(6)
    s = FewStepScheduler.from_config(theirs.config, solver="ddim")
    s.set_timesteps(6)
    assert s.sigmas.tolist() == pytest.approx(theirs.sigmas.tolist(), rel=1e-5)
    assert s.timesteps.tolist() == pytest.approx(theirs.timesteps.tolist(), rel=1e-5)
    assert march(s, noise(1, 2, 4, 4, 4)).isfinite().all()


def test_diffusers_loads_what_is_saved_here() -> None:
    from diffusers.models.unets.unet_2d import UNet2DModel

    model = fs.load(dtype=torch.float32, pace=fs.Pace(memory_format="contiguous"))  # as diffusers loads it
    theirs = UNet2DModel.from_pretrained(str(model.path)).eval()
    x = noise(1, 4, 14, 14)
    y = torch.tensor([3])
    with torch.no_grad():
        assert torch.equal(theirs(x, 500.0, class_labels=y).sample, model.net(x, 500.0, class_labels=y).sample)


def test_zero_terminal_snr_behind_a_shift() -> None:
    """CogVideoX shifts the SNR first, and then moves its end to 0."""
    from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler

    for shift in (1.0, 3.0):
        theirs = CogVideoXDDIMScheduler(
            rescale_betas_zero_snr=True, snr_shift_scale=shift, prediction_type="v_prediction", clip_sample=False
        )
        ours = FewStepScheduler.from_config(theirs.config, solver="ddim")
        assert torch.allclose(ours.alphas_cumprod, theirs.alphas_cumprod.float(), atol=1e-6)
        theirs.set_timesteps(5)
        ours.set_timesteps(timesteps=theirs.timesteps)
        a = b = noise()
        for t in theirs.timesteps:
            a, b = theirs.step(net(a, t), t, a).prev_sample, ours.step(net(b, t), t, b).prev_sample
        assert torch.allclose(a, b, atol=1e-5)


def test_singular_solvers_begin_a_time_step_later() -> None:
    zero = SD | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    assert float(scheduler("deis-tab-2", 4, **zero).timesteps[0]) == pytest.approx(998)
    assert float(scheduler("deis-tab-2", 4, **FLOW).timesteps[0]) == pytest.approx(999)
    for solver in ("unipc-3", "heun"):
        assert float(scheduler(solver, 4, **zero).timesteps[0]) == 999
        assert float(scheduler(solver, 4, **FLOW).timesteps[0]) == 1000


def test_time_steps_of_a_cosine_preconditioning() -> None:
    """Stable Audio's scheduler, which its config alone tells from EDM's: it has an order and no algorithm."""
    audio = FewStepScheduler.from_config({**EDM, "solver_order": 2}, solver="ddim")
    audio.set_timesteps(5)
    levels = audio.sigmas[:-1].double()
    assert audio.timesteps.tolist() == pytest.approx((2 / torch.pi * levels.atan()).tolist(), rel=1e-6)
    assert (levels[1:] / levels[:-1]).tolist() == pytest.approx([(0.3 / 500) ** 0.25] * 4, rel=1e-5)
    edm = FewStepScheduler.from_config(EDM, solver="ddim")
    edm.set_timesteps(5)
    x = 500 * noise()
    outputs = [net(noise(seed=i), 0.0) for i in range(5)]
    ends = []
    for s in (audio, edm):
        z = x
        for t, output in zip(s.timesteps, outputs, strict=True):
            level = s.sigmas[:-1][s.timesteps == t]
            assert torch.allclose(s.scale_model_input(z, t), z / (level**2 + 1) ** 0.5, rtol=1e-5)
            z = s.step(output, t, z).prev_sample
        ends.append(z)
    assert torch.equal(*ends)  # the label is all that differs
    again = FewStepScheduler.from_config(audio.config)
    assert again.convention.timestep(torch.tensor([2.0])) == audio.convention.timestep(torch.tensor([2.0]))


def test_a_cosine_of_ratios_is_a_table() -> None:
    """Stable Cascade: its pipelines find the ratio of a whole time step in the betas, and the noise is as there."""
    from diffusers.schedulers.scheduling_ddpm_wuerstchen import DDPMWuerstchenScheduler

    theirs = DDPMWuerstchenScheduler()
    s = FewStepScheduler.from_config(theirs.config, solver="ddpm")
    a = torch.cumprod(1 - s.betas, 0)
    assert torch.allclose(a, s.alphas_cumprod, rtol=1e-4)
    least = torch.cos(torch.tensor(0.008 / 1.008 * torch.pi / 2)) ** 2
    ratio = ((a[[99, 499, 899]] * least).sqrt().acos() / (torch.pi / 2)) * 1.008 - 0.008
    assert torch.allclose(theirs._alpha_cumprod(ratio, "cpu"), a[[99, 499, 899]], rtol=1e-4)
    with pytest.raises(AttributeError, match="betas"):
        _ = scheduler(**FLOW).betas


def test_continuous_time_steps_without_levels_are_over_the_betas() -> None:
    config = SD | {"prediction_type": "v_prediction", "timestep_type": "continuous", "set_alpha_to_one": False}
    s = scheduler("ddim", 4, **config)
    ends = FewStepScheduler(**SD).alphas_cumprod[[-1, 0]]
    assert torch.allclose(s.sigmas[[0, -1]], (1 / ends - 1).sqrt(), rtol=1e-4)
    assert torch.allclose(s.timesteps, s.sigmas[:-1].log() / 4, atol=1e-6)
    assert convention_of(config | {"prediction_type": "epsilon"}).steps == "index"


def test_a_shift_that_is_not_asked_for_is_not_done() -> None:
    """Flux schnell's and Z-Image's pipelines hand a mu to schedulers that have a shift of their own."""
    s = scheduler(n=4, **FLOW)
    want = s.timesteps
    s.set_timesteps(4, mu=0.9)
    assert torch.equal(s.timesteps, want)


def test_a_pipeline_may_begin_later_without_a_word() -> None:
    s, x = scheduler("unipc-3", 6), noise()
    z = x
    for t in s.timesteps[2:]:
        z = s.step(net(z, t), t, z).prev_sample
    s.set_timesteps(6)
    s.set_begin_index(2)
    assert torch.equal(z, march(s, x))


def test_tokens_at_times_of_their_own_stay() -> None:
    s, x = scheduler("ddim", 3, **FLOW), noise(2, 5, 4)
    t, own = s.timesteps[0], torch.full((2, 5), float(s.timesteps[0]))
    own[:, 0] = 0.0
    moved = s.step(-net(x, t), t, x, per_token_timesteps=own).prev_sample
    assert torch.equal(moved[:, 0], x[:, 0])
    assert torch.equal(moved[:, 1:], s.fork().step(net(x, t), t, x).prev_sample[:, 1:])


@pytest.mark.parametrize("solver", ["unipc-3", "dpmpp-2m-sde"])
def test_a_deep_copy_goes_its_own_way(solver: str) -> None:
    """Also in the middle of a run, which both then finish."""
    s, x = scheduler(solver, 5), noise()
    want = march(s, x)
    for t in s.timesteps[:2]:
        x = s.step(net(x, t), t, x).prev_sample
    twin, y = deepcopy(s), x
    for t in s.timesteps[2:]:
        x = s.step(net(x, t), t, x).prev_sample
        y = twin.step(net(y, t), t, y).prev_sample
    assert torch.equal(x, want)
    assert torch.equal(y, want)


@pytest.mark.parametrize(
    "config",
    [
        {"flow_shift": 3.0},
        {"flow_shift": 1.0, "use_dynamic_shifting": True},
        {"flow_shift": 1.0, "use_karras_sigmas": True, "sigma_min": 0.01, "sigma_max": 200.0},
    ],
)
def test_levels_of_flows_that_their_scheduler_makes(config: dict[str, Any]) -> None:
    """Wan's and Sana's are even from 1 to 1/N; Cosmos-Predict2.5's are Karras levels of sigma / alpha."""
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    theirs = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", **config)
    mu = {"mu": 0.7} if "use_dynamic_shifting" in config else {}
    theirs.set_timesteps(6, **mu)
    ours = FewStepScheduler.from_config(theirs.config, solver="unipc-2")
    ours.set_timesteps(6, **mu)
    assert torch.allclose(ours.sigmas, theirs.sigmas, rtol=1e-5, atol=2e-6)  # theirs begin a millionth below 1


def test_a_config_with_a_name_of_python_s_is_read_as_without():
    config = {"_class_name": "DDPMScheduler", "prediction_type": "epsilon"}
    found = [FewStepScheduler.from_config(config | more).convention for more in ({}, {"__class__": "x", "__init__": 1})]
    assert found[0].predicts == found[1].predicts == "noise"
