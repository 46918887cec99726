"""`FewStepScheduler` in tiny pipelines of real classes."""

from __future__ import annotations

import math
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fewstep as fs

pytest.importorskip("diffusers")

import diffusers_tiny as tiny  # noqa: E402
from diffusers_march import noise  # noqa: E402
from diffusers_transformers import TRANSFORMERS  # noqa: E402
from diffusers_unets import UNETS, picture  # noqa: E402
from fewstep.interop.diffusers import FewStepScheduler  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")  # Mochi asks for float32 there

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


# name -> (pipeline, arguments, share of num_inference_steps that is run)
MANY = UNETS | TRANSFORMERS
# Whose pipelines hand their own levels to a scheduler, or whose scheduler makes those that we make.
OTHERS = ("pixart", "sana", "hunyuan dit", "aura", "cogvideox", "wan")
STEPS = ("mochi", "ltx condition", "cogview4")  # whose levels are their own: they are steps and not calls
LEVELLED = [name for name in TRANSFORMERS if not name.startswith(OTHERS)]
LEVELLED += ["stable video", "sdxl edm"]


def image(pipe: Any, arguments: dict[str, Any], n: int, **more: Any) -> Tensor:
    made = pipe(
        **{**arguments, "generator": torch.Generator().manual_seed(0), **more}, num_inference_steps=n, return_dict=False
    )[0]  # fmt: skip
    return torch.as_tensor(made[0] if isinstance(made, list) else made)


def calls_of(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time steps that a pipeline's scheduler is asked to step at from now on."""
    seen: list[float] = []
    step = FewStepScheduler.step

    def counted(self: Any, model_output: Tensor, timestep: Any, *arguments: Any, **more: Any) -> Any:
        seen.append(float(timestep))
        return step(self, model_output, timestep, *arguments, **more)

    counted.__wrapped__ = step  # pipelines look at its parameters
    monkeypatch.setattr(FewStepScheduler, "step", counted)
    return seen


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


def test_a_pipeline_is_saved_with_it(tmp_path: Path) -> None:
    pipe = tiny.ddpm()
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver="dpmpp-2m", grid="karras")
    pipe.save_pretrained(tmp_path)
    again = tiny.quiet(type(pipe).from_pretrained(tmp_path))
    assert type(again.scheduler) is FewStepScheduler
    for p in again.unet.parameters():  # diffusers maps them from the file, where a matrix product rounds otherwise
        p.data = p.data.clone()
    images = [
        torch.as_tensor(p(num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np").images)
        for p in (pipe, again)
    ]
    assert torch.equal(*images)


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
    table = fs.tabulate(solver, model.process, steps=6, final="state")
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


def swept(name: str, solver: str, n: int, monkeypatch: pytest.MonkeyPatch, stage: int = 1) -> None:
    """Finite, the table's calls and less than a step's (`stage`) fewer than asked for, the same under a seed."""
    pytest.importorskip("transformers")
    make, arguments, share = MANY[name]
    pipe = make()
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver=solver)
    seen = calls_of(pipe, monkeypatch)
    once = image(pipe, arguments, n)
    least, most = math.floor(n * share + 1e-9), math.ceil(n * share - 1e-9)  # pipelines round the one way or the other
    assert len(seen) == pipe.scheduler.table.nfe
    assert least - (stage - 1) <= len(seen) <= most
    assert bool(once.isfinite().all())
    assert torch.equal(once, image(pipe, arguments, n))


@pytest.mark.parametrize("name", MANY)
def test_more_pipelines(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    swept(name, "dpmpp-2m-sde", 5, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 30])
@pytest.mark.parametrize("solver", ["ddim", "unipc-3", "gaussian-split", "ddpm", "lcm", "deis-tab-3"])
@pytest.mark.parametrize("name", MANY)
def test_every_pipeline(name: str, solver: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    swept(name, solver, n, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "stage"), [("heun", 2), ("dpmpp-2s", 2), ("seeds-3", 3), ("rk4", 4)])
@pytest.mark.parametrize("name", [name for name in MANY if name not in STEPS])
def test_every_pipeline_with_more_calls_a_step(
    name: str, solver: str, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept(name, solver, 9, monkeypatch, stage)


@pytest.mark.parametrize("name", LEVELLED)
def test_pipelines_give_what_their_own_scheduler_gives(name: str) -> None:
    pytest.importorskip("transformers")
    make, arguments, _ = MANY[name]
    pipe = make()
    if name == "mochi":  # its scheduler's time steps are a bit off ours (24.999977, 25), which its network sees
        rounded = lambda module, given, named: (given, named | {"timestep": (named["timestep"] * 8).round() / 8})  # noqa: E731
        pipe.transformer.register_forward_pre_hook(rounded, with_kwargs=True)
    wanted = image(pipe, arguments, 4)
    euler = "Euler" in type(pipe.scheduler).__name__
    solver = "ddim" if euler else fs.DPMMultistep(points=2, final_ramp=True)
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver=solver)
    assert float((image(pipe, arguments, 4) - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("name", ["qwen image", "flux fill", "ltx", "hunyuan video"])
def test_levels_that_pipelines_make_are_a_number_of_calls(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A singlestep solver does not take a multiple of the calls, and a table made for them runs."""
    pytest.importorskip("transformers")
    make, arguments, _ = MANY[name]
    pipe = make()
    own, seen = pipe.scheduler, calls_of(pipe, monkeypatch)
    pipe.scheduler = FewStepScheduler.from_config(own.config, solver="dpmpp-2s")
    image(pipe, arguments, 5)
    assert len(seen) == 5
    table = fs.tabulate("dpmpp-2m", fs.Flow(), grid=torch.tensor([1.0, 0.7, 0.3, 0.0], dtype=torch.float64))
    pipe.scheduler = FewStepScheduler.from_config(own.config, solver=table)
    seen.clear()
    assert bool(image(pipe, arguments, 3).isfinite().all())
    assert seen == pytest.approx([1000.0, 700.0, 300.0])


def test_a_network_is_told_what_its_pipeline_says() -> None:
    """CogView4 shifts the levels and tells its network the time steps before shift, at stages those in between."""
    pytest.importorskip("transformers")
    make, arguments, _ = MANY["cogview4"]
    pipe = make()
    own = pipe.scheduler.config
    pipe.scheduler = FewStepScheduler.from_config(own, solver="dpmpp-2m")
    image(pipe, arguments, 3)
    told = pipe.scheduler.timesteps.tolist()
    assert told == [1000.0, 500.0, 1.0]
    assert abs(500 - 1000 * float(pipe.scheduler.sigmas[1])) > 1
    pipe.scheduler = FewStepScheduler.from_config(own, solver="dpmpp-2s")
    with pytest.raises(ValueError, match="where alpha = 0, for Singlestep"):  # the level 1 that it gives is kept
        image(pipe, arguments, 3)
    pipe.scheduler.set_timesteps(timesteps=[999.0, 500.0, 1.0], sigmas=[0.95, 0.6, 0.1], mu=1.0)
    told = pipe.scheduler.timesteps.tolist()
    assert told[::2] == [999.0, 500.0, 1.0]
    assert told[0] > told[1] > told[2] > told[3] > told[4]


def test_eta_is_that_of_the_run() -> None:
    pytest.importorskip("transformers")
    pipe, arguments = tiny.sd(), {"prompt": "a", "height": 16, "width": 16, "output_type": "latent"}
    ends = {}
    for given, passed in ((0.0, 0.5), (0.5, 0.0), (0.0, 0.0)):
        pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver=fs.DDIM(eta=given))
        ends[given, passed] = image(pipe, arguments, 4, eta=passed)
    assert torch.equal(ends[0.0, 0.5], ends[0.5, 0.0])
    assert not torch.equal(ends[0.0, 0.5], ends[0.0, 0.0])
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver="unipc-3")
    with pytest.raises(ValueError, match="has no eta"):
        image(pipe, arguments, 4, eta=0.5)


@pytest.mark.parametrize("solver", ["unipc-3", "dpmpp-2m-sde"])
def test_a_batch_of_generators_and_of_images(solver: str) -> None:
    pytest.importorskip("transformers")
    pipe, arguments = tiny.sd(), {"prompt": ["a", "b"], "height": 16, "width": 16, "output_type": "latent"}
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver=solver)
    both = pipe(
        **arguments, num_inference_steps=3, num_images_per_prompt=2, guidance_rescale=0.5,
        generator=[torch.Generator().manual_seed(i) for i in range(4)],
    ).images  # fmt: skip
    assert both.shape == (4, 4, 8, 8)
    alone = pipe(
        **arguments | {"prompt": "b"}, num_inference_steps=3, guidance_rescale=0.5,
        generator=torch.Generator().manual_seed(2),
    ).images  # fmt: skip
    assert torch.allclose(both[2:3], alone, atol=1e-4)


def test_an_interrupted_pipeline_leaves_nothing_behind() -> None:
    pytest.importorskip("transformers")
    pipe, arguments = tiny.sd(), {"prompt": "a", "height": 16, "width": 16, "output_type": "latent"}
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver="unipc-3")
    want = image(pipe, arguments, 5)

    def stop(pipe: Any, i: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._interrupt = i == 1
        return tensors

    image(pipe, arguments, 5, callback_on_step_end=stop)
    assert torch.equal(image(pipe, arguments, 5), want)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m-sde", "heun"])
def test_both_sides_of_a_refiner(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SDXL's base goes to a time, and its refiner from there to the end: together the calls of one run."""
    pytest.importorskip("transformers")
    base, refiner = tiny.sdxl(), tiny.sdxl("StableDiffusionXLImg2ImgPipeline")
    whole = {"prompt": "a", "height": 16, "width": 16, "output_type": "latent"}
    for pipe in (base, refiner):
        pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver=solver)
    seen = calls_of(base, monkeypatch)
    latents = image(base, whole, 8, denoising_end=0.6)
    begun = len(seen)
    found = image(refiner, {"prompt": "a", "image": latents, "output_type": "latent"}, 8, denoising_start=0.6)
    assert 0 < begun < 8
    assert seen == base.scheduler.timesteps.tolist()
    if solver == "ddim":
        torch.testing.assert_close(found, image(base, whole, 8), rtol=1e-4, atol=1e-4)


def test_a_pipeline_that_reckons_for_itself_is_refused() -> None:
    """Latent upscale scales its own sums by the levels of states x0 + sigma eps."""
    s = FewStepScheduler(solver="ddim", prediction_type="sample")
    s.set_timesteps(3)
    with pytest.raises(ValueError, match="the scheduler it came with"):
        s.scale_model_input(s.sigmas[0], s.timesteps[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pipelines_in_half_precision(dtype: torch.dtype) -> None:
    pytest.importorskip("transformers")
    ends = []
    for kind in (torch.float32, dtype):
        pipe = UNETS["sdxl edm"][0]().to(dtype=kind)
        pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver="dpmpp-2m")
        start = picture(1, 4, 8, 8).to(kind)
        ends.append(image(pipe, UNETS["sdxl edm"][1], 3, latents=start).float())
    assert bool(ends[1].isfinite().all())
    assert float((ends[0] - ends[1]).norm() / ends[0].norm()) < 0.2


def test_levels_and_time_steps_that_a_user_gives() -> None:
    """Align-your-steps levels and time steps through a pipeline's own arguments, beside Euler's method there."""
    pytest.importorskip("transformers")
    from diffusers.schedulers.scheduling_utils import AysSchedules

    pipe = tiny.sdxl()
    arguments = {"prompt": "a", "height": 16, "width": 16, "output_type": "latent"}
    own = pipe.scheduler
    for given in ({"sigmas": AysSchedules["StableDiffusionXLSigmas"]}, {"timesteps": [900, 500, 100]}):
        ends = []
        for s in (own, FewStepScheduler.from_config(own.config, solver="ddim")):
            pipe.scheduler = s
            ends.append(pipe(**arguments, **given, generator=torch.Generator().manual_seed(0)).images)
        assert len(pipe.scheduler.timesteps) == len(given.get("timesteps") or given["sigmas"][1:])
        told = pipe.scheduler.timesteps, own.timesteps.float()  # theirs from levels are linear in log sigma
        assert torch.allclose(*told, rtol=0, atol=0.02)
        # the printed levels round the first, which the betas have
        assert float((ends[0] - ends[1]).norm() / ends[0].norm()) < (1e-4 if "sigmas" in given else 1e-5)
