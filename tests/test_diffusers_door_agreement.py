"""The same solver on the same levels from the same noise, here and in diffusers: equal to float32 rounding."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fewstep as fs

pytest.importorskip("diffusers")

import diffusers  # noqa: E402

import diffusers_tiny as tiny  # noqa: E402
from fewstep.interop.diffusers import FewStepScheduler  # noqa: E402

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TOLERANCE = 1e-5


def march(scheduler: Any, x: Tensor, seed: int = 0) -> Tensor:
    """A pipeline's loop around a network that knows its input and which call it is."""
    generator = torch.Generator().manual_seed(seed)
    takes = "generator" in scheduler.step.__code__.co_varnames
    for i, t in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = torch.tanh((1 + 0.1 * i) * seen) - 0.3 * seen.roll(1, -1)
        x = scheduler.step(output, t, x, **({"generator": generator} if takes else {})).prev_sample
    return x


def noise(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 4, 8, 8)), generator=torch.Generator().manual_seed(7))


def distance(a: Tensor, b: Tensor, scale: float = 1.0) -> float:
    """Relative to the result, or to the noise it was made from where that is larger."""
    return float((a - b).norm() / max(float(b.norm()), scale * float(noise().norm())))


def by_levels(theirs: Any, solver: Any, n: int) -> float:
    """The distance between both results, ours on the levels that theirs made of n steps."""
    theirs.set_timesteps(n)
    ours = FewStepScheduler.from_config(theirs.config, solver=solver)
    levels = theirs.sigmas.double()
    keep = torch.ones(len(levels), dtype=torch.bool)
    keep[1:] = levels[1:] != levels[:-1]  # Heun's has every level twice
    ours.set_timesteps(sigmas=levels[keep])
    # A fault of theirs: DEIS ends at the level of its last call, which then does nothing.
    assert len(ours.timesteps) == len(theirs.timesteps) - isinstance(theirs, diffusers.DEISMultistepScheduler)
    exploding = float(theirs.init_noise_sigma) != 1
    scale = float((1 + levels[0] ** 2) ** 0.5) if exploding else 1.0
    x = noise()
    return distance(march(ours, x * ours.init_noise_sigma), march(theirs, x * scale), scale)


def multistep(points: int, **options: Any) -> Any:
    return fs.DPMMultistep(points=points, **{"final_ramp": True, **options})


LEVELS: dict[str, tuple[Callable[[], Any], Any]] = {
    "euler": (lambda: diffusers.EulerDiscreteScheduler(**SD, use_karras_sigmas=True), "ddim"),
    "euler, exponential": (lambda: diffusers.EulerDiscreteScheduler(**SD, use_exponential_sigmas=True), "ddim"),
    "euler, v": (
        lambda: diffusers.EulerDiscreteScheduler(**SD, use_karras_sigmas=True, prediction_type="v_prediction"),
        "ddim",
    ),
    "euler, data": (
        lambda: diffusers.EulerDiscreteScheduler(**SD, use_karras_sigmas=True, prediction_type="sample"),
        "ddim",
    ),
    "heun": (lambda: diffusers.HeunDiscreteScheduler(**SD, use_karras_sigmas=True), "edm"),
    "lms": (lambda: diffusers.LMSDiscreteScheduler(**SD, use_karras_sigmas=True), "lms-4"),
    "dpm++ 2m": (lambda: diffusers.DPMSolverMultistepScheduler(**SD, use_karras_sigmas=True), multistep(2)),
    "dpm++ 2m, heun": (
        lambda: diffusers.DPMSolverMultistepScheduler(**SD, use_karras_sigmas=True, solver_type="heun"),
        multistep(2, type="heun"),
    ),
    "dpm++ 3m": (
        lambda: diffusers.DPMSolverMultistepScheduler(**SD, use_karras_sigmas=True, solver_order=3),
        multistep(3),
    ),
    "dpm++ 2m sde": (
        lambda: diffusers.DPMSolverMultistepScheduler(
            **SD, use_karras_sigmas=True, algorithm_type="sde-dpmsolver++"
        ),
        fs.SDEMultistep(type="midpoint", final_ramp=True),
    ),
    "unipc-2": (lambda: diffusers.UniPCMultistepScheduler(**SD, use_karras_sigmas=True), "unipc-2"),
    "unipc-3": (
        lambda: diffusers.UniPCMultistepScheduler(**SD, use_karras_sigmas=True, solver_order=3),
        "unipc-3",
    ),
    "deis": (
        lambda: diffusers.DEISMultistepScheduler(**SD, use_karras_sigmas=True),
        fs.Multistep(points=2, form="noise", clock="log-snr"),
    ),
    "edm": (lambda: diffusers.EDMEulerScheduler(), "ddim"),
    "edm, v": (lambda: diffusers.EDMEulerScheduler(prediction_type="v_prediction"), "ddim"),
    "edm, 2m": (lambda: diffusers.EDMDPMSolverMultistepScheduler(), multistep(2)),
}  # fmt: skip


MORE = ("lms", "heun", "deis")  # their Karras levels divide by n - 1, or their only call does nothing


@pytest.mark.parametrize(("name", "n"), [(name, n) for name in LEVELS for n in (1, 2, 7) if n > (name in MORE)])
def test_same_levels(name: str, n: int) -> None:
    make, solver = LEVELS[name]
    assert by_levels(make(), solver, n) < TOLERANCE


@pytest.mark.parametrize(("kind", "zero_snr"), [
    ("epsilon", False), ("v_prediction", False), ("v_prediction", True), ("sample", False), ("sample", True),
])  # fmt: skip
def test_ddim_on_its_time_steps(kind: str, zero_snr: bool) -> None:
    theirs = diffusers.DDIMScheduler(
        **SD, set_alpha_to_one=False, clip_sample=False, prediction_type=kind, timestep_spacing="trailing",
        rescale_betas_zero_snr=zero_snr,
    )  # fmt: skip
    theirs.set_timesteps(10)
    ours = FewStepScheduler.from_config(theirs.config, solver="ddim")
    ours.set_timesteps(timesteps=theirs.timesteps)
    assert torch.equal(ours.timesteps, theirs.timesteps.float())
    assert distance(march(ours, noise()), march(theirs, noise())) < TOLERANCE


@pytest.mark.parametrize("clip", [{}, {"clip_sample": True, "clip_sample_range": 0.7}, {"thresholding": True}])
def test_ddpm_with_its_noise_and_clipping(clip: dict[str, Any]) -> None:
    clip = {"clip_sample": False, "sample_max_value": 1.5, **clip}
    theirs = diffusers.DDPMScheduler(**clip)
    theirs.set_timesteps(10)
    ours = FewStepScheduler.from_config(theirs.config, solver="ddpm")
    ours.set_timesteps(timesteps=theirs.timesteps)
    x = noise()
    assert distance(march(ours, x, seed=3), march(theirs, x, seed=3)) < TOLERANCE
    if clip["clip_sample"]:
        plain = FewStepScheduler.from_config(theirs.config, solver="ddpm", clip_sample=False)
        plain.set_timesteps(timesteps=theirs.timesteps)
        assert distance(march(plain, x, seed=3), march(theirs, x, seed=3)) > 0.01


@pytest.mark.parametrize(
    "config",
    [
        {"shift": 3.0},
        {"use_dynamic_shifting": True},
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "shift_terminal": 0.02},
        {"use_karras_sigmas": True, "shift_terminal": 0.05},
        {"invert_sigmas": True},
    ],
)
def test_flow_with_its_shift(config: dict[str, Any]) -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    mu = {"mu": 0.9} if config.get("use_dynamic_shifting") else {}
    theirs.set_timesteps(sigmas=torch.linspace(1, 1 / 8, 8).tolist(), **mu)
    ours, want = FewStepScheduler.from_config(theirs.config, solver="ddim"), march(theirs, noise())
    for asked in ({"num_inference_steps": 8}, {"sigmas": torch.linspace(1, 1 / 8, 8)}):
        if "sigmas" in asked and config.get("use_karras_sigmas"):
            continue  # given levels are used as they are
        ours.set_timesteps(**asked, **mu)
        assert torch.allclose(ours.timesteps, theirs.timesteps, rtol=1e-6, atol=1e-4)
        assert distance(march(ours, noise()), want) < TOLERANCE


def test_noise_is_added_as_there() -> None:
    theirs = diffusers.DDPMScheduler(**SD)
    ours = FewStepScheduler.from_config(theirs.config, solver="ddim")
    x0, eps, at = noise(), noise().flip(0), torch.tensor([3, 701])
    assert torch.allclose(ours.add_noise(x0, eps, at), theirs.add_noise(x0, eps, at), atol=1e-6)
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    flow.set_timesteps(5)
    flow.set_begin_index(2)
    ours = FewStepScheduler.from_config(flow.config, solver="ddim")
    ours.set_timesteps(timesteps=flow.timesteps)
    t = flow.timesteps[2:3]
    assert torch.allclose(ours.scale_noise(x0, t, eps), flow.scale_noise(x0, t, eps), atol=1e-6)


def test_the_comparison_on_a_users_weights_runs(tmp_path: Path) -> None:
    path = Path(__file__).parent.parent / "benchmarks" / "diffusers_agreement.py"
    spec = importlib.util.spec_from_file_location("diffusers_agreement", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    tiny.dit().save_pretrained(tmp_path / "pipe")
    script.main(["--model", str(tmp_path / "pipe"), "--steps", "4", "--out", str(tmp_path / "out.json")])
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert len(rows) == len(script.BETAS) - 1
    for row in rows.values():
        assert row["calls"] == [4, 4]
        assert row["their repeat"] == 0.0
        assert row["difference"] < 1e-5
