"""The custom node of ComfyUI, in a stub of the interface that its source has (comfy/samplers.py)."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import fewstep as fs
from fewstep.interop import k_diffusion as K

SIGMAS = torch.tensor([14.6, 7.0, 3.1, 1.2, 0.5, 0.1, 0.0])


def model(x, sigma, scale=0.8):
    return torch.tanh(x / (1 + sigma[:, None] ** 2)) * scale


@pytest.fixture
def comfy(monkeypatch):
    package, samplers, diffusion, functions = (
        ModuleType(name) for name in ("comfy", "comfy.samplers", "comfy.k_diffusion", "comfy.k_diffusion.sampling")
    )
    samplers.SAMPLER_NAMES = ["euler", "uni_pc_bh2"]
    samplers.KSampler = type("KSampler", (), {"SAMPLERS": samplers.SAMPLER_NAMES})

    class KSAMPLER:
        """As comfy/samplers.py has it: what a sampler's function is called with, and what is done around it."""

        def __init__(self, sampler_function, extra_options=None, inpaint_options=None):
            self.sampler_function, self.extra_options = sampler_function, dict(extra_options or {})

        def sample(
            self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
            disable_pbar=False,
        ):  # fmt: skip
            extra_args["denoise_mask"] = denoise_mask
            model_k = Inpainted(model_wrap, noise, latent_image)
            sampling = model_wrap.inner_model.model_sampling
            noise = sampling.noise_scaling(sigmas[0], noise, latent_image)
            told = None
            if callback is not None:
                told = lambda x: callback(x["i"], x["denoised"], x["x"], len(sigmas) - 1)  # noqa: E731
            return self.sampler_function(
                model_k, noise, sigmas, extra_args=extra_args, callback=told, disable=disable_pbar, **self.extra_options
            )

    samplers.KSAMPLER = KSAMPLER
    samplers.ksampler = lambda name, extra_options=None: KSAMPLER(getattr(functions, f"sample_{name}"), extra_options)
    for module in (package, samplers, diffusion, functions):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return SimpleNamespace(samplers=samplers, functions=functions)


class CONST:
    """ComfyUI's mark of a flow model."""

    def noise_scaling(self, sigma, noise, latent_image):
        return sigma * noise + (1 - sigma) * (0.0 if latent_image is None else latent_image)


class EPS:
    """Its mark of a model that predicts noise: states x0 + sigma eps."""

    def noise_scaling(self, sigma, noise, latent_image):
        return sigma * noise + (0.0 if latent_image is None else latent_image)


class Inpainted:
    """The model that samplers call: outside the mask the image is put back, on the way in with noise of its level."""

    def __init__(self, model_wrap, noise, latent_image):
        self.inner_model, self.noise, self.latent_image = model_wrap, noise, latent_image

    def __call__(self, x, sigma, denoise_mask, model_options=None, seed=None):
        if denoise_mask is None:
            return self.inner_model(x, sigma, model_options=model_options or {}, seed=seed)
        sampling, level = self.inner_model.inner_model.model_sampling, sigma[:, None]
        x = x * denoise_mask + sampling.noise_scaling(level, self.noise, self.latent_image) * (1 - denoise_mask)
        out = self.inner_model(x, sigma, model_options=model_options or {}, seed=seed)
        return out * denoise_mask + self.latent_image * (1 - denoise_mask)


def wrapped(process, denoise=None):
    """What ComfyUI calls model_wrap: its guider, with the model inside; guidance is told to hooks behind it."""

    def call(x, sigma, model_options, seed):
        out = {"denoised": 0.5 + 0.1 * torch.tanh(x) if denoise is None else denoise(x, sigma)}
        for hook in model_options.get("sampler_post_cfg_function", []):
            assert model_options["disable_cfg1_optimization"]
            out["denoised"] = hook(out | {"uncond_denoised": 0.9 * out["denoised"], "sigma": sigma, "input": x})
        return out["denoised"]

    kind = type("ModelSampling", (CONST if isinstance(process, fs.Flow) else EPS,), {})
    call.inner_model = SimpleNamespace(model_sampling=kind())
    return call


def sampled(made, process, sigmas, noise, callback=None, **more):
    """A SAMPLER run by ComfyUI's loop."""
    args = {"model_options": {"transformer_options": {"sample_sigmas": sigmas}}, "seed": 7}
    return made.sample(
        wrapped(process, more.pop("denoise", None)), sigmas, args, callback, noise, disable_pbar=True, **more
    )


def test_comfyui_lists_and_runs_every_solver(comfy):
    from fewstep.interop import comfyui

    comfyui.register()
    comfyui.register()  # a reload adds nothing
    names = comfy.samplers.SAMPLER_NAMES
    assert names[:2] == ["euler", "uni_pc_bh2"]
    assert names[2:] == [f"fewstep_{name}" for name in K.SAMPLERS]
    told, noise = [], torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    found = sampled(
        comfy.samplers.ksampler("fewstep_dpmpp_2m"), fs.EDM(), SIGMAS, noise, lambda *args: told.append(args)
    )
    wanted = K.sample_dpmpp_2m(lambda x, sigma: 0.5 + 0.1 * torch.tanh(x), 14.6 * noise, SIGMAS, disable=True)
    torch.testing.assert_close(found, wanted)
    assert [(step, total) for step, _, _, total in told] == [(i, 6) for i in range(6)]
    assert all(d.shape == x.shape == noise.shape for _, d, x, _ in told)
    flow = torch.linspace(1, 0, 7)
    found = sampled(comfy.samplers.ksampler("fewstep_multistep_2"), fs.Flow(), flow, noise)
    wanted = fs.sample(lambda z, t: 0.5 + 0.1 * torch.tanh(z), fs.Flow(), solver="multistep-2", grid=flow, x=noise)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("process", [fs.EDM(), fs.Flow()])
@pytest.mark.parametrize("name", ["gaussian_split", "dpmpp_2m_sde", "euler_cfg_pp", "heun", "dpm_adaptive"])
def test_comfyui_masks_seeds_and_guides(comfy, name, process):
    """Inside a mask the image changes and outside it does not; the seed in extra_args is the noise's."""
    from fewstep.interop import comfyui

    made, image = comfyui.FewStepSampler().make(name, "")[0], torch.full((4, 2), 0.3)
    noise, mask = torch.randn(4, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([[1.0, 0.0]])
    sigmas = torch.linspace(0.95, 0, 5) if isinstance(process, fs.Flow) else SIGMAS
    once, again = (sampled(made, process, sigmas, noise, latent_image=image, denoise_mask=mask) for _ in range(2))
    assert torch.equal(once, again)
    torch.testing.assert_close(once[:, 1], image[:, 1], rtol=0, atol=1e-2)
    assert float((once[:, 0] - image[:, 0]).abs().min()) > 0.05


def test_comfyui_nodes(comfy, tmp_path):
    from fewstep.interop import comfyui

    for node in comfyui.NODE_CLASS_MAPPINGS.values():
        assert {"RETURN_TYPES", "FUNCTION", "CATEGORY"} <= set(dir(node))
        assert callable(getattr(node(), node.FUNCTION))
        assert set(node.RETURN_TYPES) <= {"SAMPLER", "SIGMAS"}
        for kind, *options in node.INPUT_TYPES()["required"].values():
            assert kind in ("STRING", "MODEL") or options[0]["default"] in kind
    (made,) = comfyui.FewStepSampler().make("dpmpp_2m_sde", "eta=0.5, solver_type='heun'")
    assert made.extra_options == {"eta": 0.5, "solver_type": "heun"}
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    found = sampled(made, fs.EDM(), SIGMAS, noise, denoise=model)
    options = {"seed": 7, "eta": 0.5, "solver_type": "heun"}
    wanted = K.sample_dpmpp_2m_sde(model, 14.6 * noise, SIGMAS, disable=True, **options)
    torch.testing.assert_close(found, wanted)
    with pytest.raises(ValueError, match="NAME=VALUE"):
        comfyui.FewStepSampler().make("dpmpp_2m_sde", "eta 0.5")

    file = tmp_path / "fitted.table"
    table = fs.tabulate("unipc-3", fs.VP(), steps=5)
    table.save(file)
    patcher = SimpleNamespace(get_model_object=lambda name: getattr(wrapped(fs.EDM()).inner_model, name))
    sampler, sigmas = comfyui.FewStepTable().make(patcher, str(file))
    levels = torch.exp(-fs.VP().log_snr(table.grid)).float()
    torch.testing.assert_close(sigmas, levels)
    found = sampled(sampler, fs.EDM(), sigmas, noise)
    alpha = lambda t: fs.VP().alpha(float(t))  # noqa: E731
    here = fs.sample(lambda z, t: 0.5 + 0.1 * torch.tanh(z / alpha(t)), fs.VP(), solver=table,
                     x=noise * levels[0] * alpha(table.grid[0]))  # fmt: skip
    torch.testing.assert_close(alpha(table.grid[-1]) * found, here, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="there is no file"):
        comfyui.FewStepTable().make(patcher, str(tmp_path / "none"))


def test_comfyui_takes_a_copy_of_the_file(comfy, tmp_path):
    from fewstep.interop import comfyui

    copy = tmp_path / "fewstep_nodes.py"
    copy.write_text(Path(comfyui.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    module = runpy.run_path(str(copy))
    assert set(module["NODE_CLASS_MAPPINGS"]) == {"FewStepSampler", "FewStepTable"}
    assert "fewstep_gaussian_split" in comfy.samplers.KSampler.SAMPLERS
