"""`FewStepScheduler`: a table run call by call, on tiny pipelines and beside `fewstep.sample`."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fewstep as fs

pytest.importorskip("diffusers")

import diffusers_tiny as tiny  # noqa: E402
from fewstep.interop.diffusers import Clipped, FewStepScheduler  # noqa: E402

SD = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon",
}  # fmt: skip
FLOW = {"shift": 3.0}
FEW = ["ddim", "ddpm", "unipc-3", "dpmpp-2s", "heun", "edm-sde", "rk4", "gaussian-split", "pndm", "lcm", "restart"]


def net(x: Tensor, t: Any) -> Tensor:
    """A network that knows its time."""
    t = torch.as_tensor(t, dtype=torch.float32).reshape(-1, *[1] * (x.ndim - 1))
    return torch.tanh(x * (1 + t / 1000)) - 0.3 * x.roll(1, -1)


def noise(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(*(shape or (2, 4, 4, 4)), generator=torch.Generator().manual_seed(seed))


def scheduler(solver: Any = "unipc-3", n: int | None = 6, **config: Any) -> FewStepScheduler:
    made = FewStepScheduler(solver=solver, **(config or SD))
    if n is not None:
        made.set_timesteps(n)
    return made


def march(s: FewStepScheduler, x: Tensor, generator: torch.Generator | None = None, stop: int | None = None) -> Tensor:
    for t in (s.timesteps if s.begin_index is None else s.timesteps[s.begin_index :])[:stop]:
        x = s.step(net(s.scale_model_input(x, t), t), t, x, generator=generator).prev_sample
    return x


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


@pytest.mark.parametrize("config", [SD, FLOW], ids=["betas", "flow"])
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


@pytest.mark.slow
@pytest.mark.parametrize("config", [SD, FLOW], ids=["betas", "flow"])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 12, 30])
@pytest.mark.parametrize("name", fs.TABLES)
def test_every_solver_is_sample_call_by_call(name: str, n: int, config: dict[str, Any]) -> None:
    try:
        scheduler(name, n, **config)
        refused = ""
    except ValueError as error:
        refused = str(error)
    if not refused:
        same_as_sample(name, n, **config)
    assert not refused or any(word in refused for word in ("takes at least", "beside the network", "covers"))


@pytest.mark.parametrize("name", ["ddpm", "unipc-2", "edm-sde"])
def test_edm_networks_get_their_scale(name: str) -> None:
    config = {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0, "prediction_type": "epsilon"}
    s = scheduler(name, 6, **config)
    x = noise() * s.init_noise_sigma
    want = fs.sample(
        fs.wrap(net, fs.EDM(), predicts="edm"), fs.EDM(), solver=s.table, x=x, noise=torch.Generator().manual_seed(3),
    )  # fmt: skip
    assert torch.allclose(march(s, x, torch.Generator().manual_seed(3)), want, rtol=1e-4, atol=1e-4)


PIPELINES: dict[str, tuple[Any, dict[str, Any], int]] = {
    "ddpm": (tiny.ddpm, {"batch_size": 2}, 5),
    "dit": (tiny.dit, {"class_labels": [1, 2]}, 5),
    "sd": (tiny.sd, {"prompt": "a cat", "height": 16, "width": 16}, 5),
    "img2img": (lambda: tiny.sd("StableDiffusionImg2ImgPipeline"), {"prompt": "a", "image": 0, "strength": 0.6}, 3),
    "inpaint": (
        lambda: tiny.sd("StableDiffusionInpaintPipeline"),
        {"prompt": "a", "image": 0, "mask_image": 0, "strength": 0.8, "height": 16, "width": 16},
        4,
    ),
    "controlnet": (lambda: tiny.sd("StableDiffusionControlNetPipeline"), {"prompt": "a", "image": 0}, 5),
    "sdxl": (tiny.sdxl, {"prompt": "a cat", "height": 16, "width": 16}, 5),
    "sdxl img2img": (
        lambda: tiny.sdxl("StableDiffusionXLImg2ImgPipeline"), {"prompt": "a", "image": 0, "strength": 0.5}, 2,
    ),
    "sd3": (tiny.sd3, {"prompt": "a cat", "height": 16, "width": 16}, 5),
    "sd3 img2img": (
        lambda: tiny.sd3("StableDiffusion3Img2ImgPipeline"), {"prompt": "a", "image": 0, "strength": 0.5}, 3,
    ),
    "flux": (tiny.flux, {"prompt": "a cat", "height": 16, "width": 16, "max_sequence_length": 16}, 5),
}  # fmt: skip


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite, as many calls as asked for, the same under a seed; a stochastic and a deterministic solver."""
    if name not in ("ddpm", "dit"):
        pytest.importorskip("transformers")
    make, arguments, calls = PIPELINES[name]
    arguments = dict(arguments, output_type="np")
    if "image" in arguments:
        arguments["image"] = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    if "mask_image" in arguments:
        arguments["mask_image"] = (torch.arange(16) < 8).float().expand(1, 1, 16, 16)
    pipe, counted = make(), count()
    network = getattr(pipe, "transformer", None) or pipe.unet
    network.register_forward_hook(lambda *_: next(counted) and None)
    made = []
    for solver in ("unipc-3", "ddpm", "ddpm"):
        pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver=solver)
        before = next(counted)
        image = pipe(**arguments, num_inference_steps=5, generator=torch.Generator().manual_seed(0)).images
        assert next(counted) - before - 1 == calls
        made.append(torch.as_tensor(image))
    assert all(bool(image.isfinite().all()) for image in made)
    assert not torch.equal(made[0], made[1])
    assert torch.equal(made[1], made[2])


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


def test_the_last_step_goes_to_zero_where_the_config_asks() -> None:
    s = scheduler("ddim", 6, **SD, final_sigmas_type="zero")
    assert float(s.sigmas[-1]) == 0
    assert float(s.timesteps[-1]) > 1  # and no call is spent at the process's last time
    assert float(scheduler("euler-maruyama", 6, **SD, final_sigmas_type="zero").sigmas[-1]) > 0  # singular there


@pytest.mark.parametrize("solver", ["dpmpp-2s", "seeds-3", "unipc-3"])
@pytest.mark.parametrize("begin", [0, 1, 2, 4])
def test_a_later_begin_carries_a_point_exactly(solver: str, begin: int) -> None:
    s = scheduler(solver, 6, **SD | {"prediction_type": "sample"})
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


def test_a_pipeline_is_saved_with_it(tmp_path: Path) -> None:
    pipe = tiny.ddpm()
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver="dpmpp-2m", grid="karras")
    pipe.save_pretrained(tmp_path)
    again = tiny.quiet(type(pipe).from_pretrained(tmp_path))
    assert type(again.scheduler) is FewStepScheduler
    images = [
        torch.as_tensor(p(num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np").images)
        for p in (pipe, again)
    ]
    assert torch.equal(*images)


def test_other_libraries_config_comes_back() -> None:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(**SD, solver_order=3)
    back = DPMSolverMultistepScheduler.from_config(FewStepScheduler.from_config(theirs.config).config)
    assert back.config.solver_order == 3
    assert torch.equal(back.betas, theirs.betas)


def test_clipping_is_a_denoiser_of_its_own() -> None:
    s = scheduler("unipc-2", 6, **SD, clip_sample=True, clip_sample_range=0.4)
    x = noise()
    clipped = Clipped(inner=s.convention.denoiser(net), bound=0.4)
    want = fs.sample(clipped, s.process, solver=s.table, x=x, callback=lambda *_: None)
    assert torch.equal(march(s, x), want)
    s = scheduler("ddim", 6, **SD, clip_sample=True, clip_sample_range=0.4)
    out = s.step(net(x, s.timesteps[0]), s.timesteps[0], x)
    assert float(out.pred_original_sample.abs().max()) == pytest.approx(0.4)


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
        (lambda: FewStepScheduler.from_config({**SD}, slover="ddim"), "did you mean"),
        (lambda: scheduler("heun", 1), "at least 2"),
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


@pytest.mark.parametrize("solver", ["unipc-3", "ddpm", "dpmpp-2s"])
def test_a_pipeline_is_sample_of_its_folder(solver: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pipe = tiny.sd()
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver=solver)
    pipe.save_pretrained(tmp_path)
    latents = pipe(
        "a cat", num_inference_steps=6, guidance_scale=1.0, generator=torch.Generator().manual_seed(0),
        height=16, width=16, output_type="latent",
    ).images  # fmt: skip
    model, generator = fs.load(tmp_path), torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    table = fs.tabulate(solver, model.process, steps=6)
    want = fs.sample(model.denoiser(prompt="a cat"), model.process, solver=table, x=x, noise=generator)
    assert torch.allclose(latents, want, rtol=1e-4, atol=1e-5)


def test_a_callback_changes_latents() -> None:
    pytest.importorskip("transformers")
    pipe = tiny.sd()
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver="unipc-3")
    seen = []

    def change(pipe: Any, i: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(float(t))
        return {"latents": tensors["latents"] + (1.0 if i == 2 and len(seen) > 4 else 0.0)}

    images = [
        torch.as_tensor(
            pipe(
                "a", num_inference_steps=4, generator=torch.Generator().manual_seed(0), height=16, width=16,
                output_type="np", callback_on_step_end=change,
            ).images
        )
        for _ in range(2)
    ]  # fmt: skip
    assert seen[:4] == seen[4:] == pipe.scheduler.timesteps.tolist()
    assert not torch.allclose(*images, atol=1e-4)


def test_a_refiner_takes_over() -> None:
    """SDXL's base ends in the middle of its run, and the refiner's begins there."""
    pytest.importorskip("transformers")
    base, counted = tiny.sdxl("StableDiffusionXLPipeline"), count()
    base.scheduler = FewStepScheduler.from_config(base.scheduler.config, solver="dpmpp-2m")
    base.unet.register_forward_hook(lambda *_: (next(counted), None)[1])
    common = {"prompt": "a", "num_inference_steps": 8, "generator": torch.Generator().manual_seed(0)}
    latents = base(**common, denoising_end=0.5, height=16, width=16, output_type="latent").images
    before = next(counted)
    assert 0 < before < 8
    again = base(**{**common, "generator": torch.Generator().manual_seed(0)}, height=16, width=16, output_type="np")
    assert next(counted) - before - 1 == 8
    assert bool(torch.as_tensor(again.images).isfinite().all())
    assert latents.shape == (1, 4, 8, 8)


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


@pytest.mark.parametrize("name", ["ddpm", "dit", "sd"])
def test_a_saved_pipeline_is_a_denoiser(name: str, tmp_path: Path) -> None:
    """One call by hand is the pipeline's own network, for what the scheduler says it predicts."""
    pipe = PIPELINES[name][0]()
    pipe.save_pretrained(tmp_path)
    model = fs.load(tmp_path)
    conditions: dict[str, Any] = {"dit": {"label": 3}, "sd": {"prompt": "a cat"}}.get(name, {})
    x = noise(2, *model.shape)
    d = model.denoiser(**conditions)(x, model.process.t_max)
    network, more = getattr(pipe, "transformer", None) or pipe.unet, {}
    if name == "dit":
        more = {"class_labels": torch.tensor([3, 3])}
    elif name == "sd":
        more = {"encoder_hidden_states": pipe.encode_prompt("a cat", "cpu", 2, False)[0]}
    with torch.no_grad():
        eps = network(x, torch.full((2,), 999.0), **more).sample[:, : x.shape[1]]
    alpha, sigma = model.process.alpha(1.0), model.process.sigma(1.0)
    assert torch.allclose(d, (x - sigma * eps) / alpha, rtol=1e-4, atol=1e-3)
    inner = next(tmp_path / part for part in ("unet", "transformer") if (tmp_path / part).is_dir())
    assert fs.load(inner).process == model.process


def test_diffusers_loads_what_is_saved_here() -> None:
    from diffusers.models.unets.unet_2d import UNet2DModel

    model = fs.load(dtype=torch.float32)
    theirs = UNet2DModel.from_pretrained(str(model.path)).eval()
    x = noise(1, 4, 14, 14)
    y = torch.tensor([3])
    with torch.no_grad():
        assert torch.equal(theirs(x, 500.0, class_labels=y).sample, model.net(x, 500.0, class_labels=y).sample)
