"""Scheduler configs as published: old, partial, with nulls, through every door; and given times at the ends."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import fewstep as fs

diffusers = pytest.importorskip("diffusers")

import diffusers_tiny as tiny  # noqa: E402
from diffusers_march import FLOW, SD, march, noise, scheduler  # noqa: E402
from fewstep.interop.diffusers import FewStepScheduler  # noqa: E402

CLASSES = sorted(name for name in dir(diffusers) if name.endswith("Scheduler"))
ZERO = SD | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
FILES: dict[str, dict[str, Any]] = {
    "SD 1.5": {
        "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_start": 0.00085,
        "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "set_alpha_to_one": False, "steps_offset": 1,
        "skip_prk_steps": True, "trained_betas": None, "clip_sample": False,
    },
    "DDPM of 0.1": {"_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "num_train_timesteps": 500},
    "DDIM": {"_class_name": "DDIMScheduler", "beta_start": 1e-4, "beta_end": 0.02},
    "DDIM in flax": {"_class_name": "FlaxDDIMScheduler", "beta_schedule": "scaled_linear", "beta_end": 0.012},
    "LCM": {"_class_name": "LCMScheduler", "prediction_type": "epsilon"},
    "TCD": {"_class_name": "TCDScheduler"},
    "DPM++": {"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "epsilon", "solver_order": 2},
    "Euler, v": {"_class_name": "EulerDiscreteScheduler", "prediction_type": "v_prediction"},
    "Heun": {"_class_name": "HeunDiscreteScheduler"},
    "UniPC, flow": {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 3.0,
                    "prediction_type": "flow_prediction"},
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    "EDM": {"_class_name": "EDMEulerScheduler"},
    "cascade": {"_class_name": "DDPMWuerstchenScheduler"},
}  # fmt: skip


def live(saved: dict[str, Any]) -> Any:
    """The config of the scheduler that diffusers itself makes of a file."""
    return getattr(diffusers, saved["_class_name"].removeprefix("Flax")).from_config(saved).config


def same(got: Any, want: Any) -> None:
    """The same convention, times, clipping and samples."""
    assert got.convention == want.convention
    for s in (got, want):
        s.set_timesteps(4)
    assert torch.equal(got.sigmas, want.sigmas)
    x = noise() * got.init_noise_sigma
    assert torch.equal(
        march(got, x, torch.Generator().manual_seed(1)), march(want, x, torch.Generator().manual_seed(1))
    )


@pytest.mark.parametrize("name", FILES)
def test_a_partial_file_is_the_scheduler_of_its_class_through_every_door(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = FILES[name]
    want = FewStepScheduler.from_config(live(saved), solver="dpmpp-2m")
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.parent.mkdir()
    file.write_text(json.dumps(saved))
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    home = f"~/{tmp_path.name}"
    for source in (file, str(file.parent), tmp_path, f"{home}/scheduler/"):
        same(FewStepScheduler.from_pretrained(source, solver="dpmpp-2m"), want)
    same(FewStepScheduler.from_pretrained(home, subfolder="scheduler", solver="dpmpp-2m"), want)
    same(FewStepScheduler.from_config(file, solver="dpmpp-2m"), want)
    same(FewStepScheduler.from_config(saved, solver="dpmpp-2m"), want)
    want.save_pretrained(tmp_path / "ours")
    same(FewStepScheduler.from_pretrained(tmp_path / "ours"), want)


def test_an_option_takes_the_place_of_a_default() -> None:
    got = FewStepScheduler.from_config(FILES["SD 1.5"], prediction_type="sample", clip_sample=True)
    assert (got.convention.predicts, got.config["clip_sample"]) == ("data", True)


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # diffusers sums tensors with numpy
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_read_with_its_own_defaults(name: str) -> None:
    """What it stands for, or the same refusal, as the config of the scheduler in memory."""
    minimal = {"_class_name": name}
    try:
        config = live(minimal)
    except (TypeError, ImportError):  # an argument without default; torchsde is not here
        config = None
    try:
        want, refused = FewStepScheduler.from_config(config or minimal), ""
    except ValueError as error:
        want, refused = None, str(error)
    if want is None:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the sentence is compared
            FewStepScheduler.from_config(minimal)
        assert str(caught.value) == refused
        return
    got = FewStepScheduler.from_config(minimal)
    assert got.convention == want.convention
    ours = [key for key in want.config if not key.startswith("_")]
    assert {key: got.config[key] for key in ours} == {key: want.config[key] for key in ours}


def test_defaults_of_classes_that_need_torchsde() -> None:
    """Read from the source, since diffusers cannot import them here."""
    import ast
    from importlib.util import find_spec

    from fewstep.interop.diffusers.saved import BESIDE_TORCHSDE

    files = ("scheduling_dpmsolver_sde", "scheduling_cosine_dpmsolver_multistep")
    for file, (name, ours) in zip(files, BESIDE_TORCHSDE.items(), strict=True):
        tree = ast.parse(Path(find_spec(f"diffusers.schedulers.{file}").origin).read_text())  # type: ignore[union-attr]
        made = next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name)
        init = next(node for node in made.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
        given = init.args.args[-len(init.args.defaults) :]
        defaults = {a.arg: ast.literal_eval(v) for a, v in zip(given, init.args.defaults, strict=True)}
        assert {key: defaults[key] for key in ours} == ours
        base = FewStepScheduler._get_init_keys(FewStepScheduler) & set(defaults)
        whole = FewStepScheduler.from_config(defaults)  # nothing that counts is left out
        assert base
        assert FewStepScheduler.from_config({"_class_name": name}).convention == whole.convention


@pytest.mark.parametrize(
    ("more", "key", "value"),
    [
        ({"num_train_timesteps": None}, "num_train_timesteps", 1000),
        ({"beta_start": None, "beta_end": None, "beta_schedule": None}, "beta_schedule", "linear"),
        ({"clip_sample": None}, "clip_sample", False),
        ({"thresholding": None, "sample_max_value": None}, "sample_max_value", 1.0),
        ({"predict_epsilon": False}, "prediction_type", "sample"),
        ({"nobody": None}, "prediction_type", "epsilon"),
    ],
)
def test_null_is_a_value_left_out(more: dict[str, Any], key: str, value: Any) -> None:
    s = FewStepScheduler.from_config({"_class_name": "DDPMScheduler", **more})
    assert s.config[key] == value
    s.set_timesteps(3)
    assert march(s, noise(), torch.Generator().manual_seed(0)).isfinite().all()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"_class_name": "os.system"}, "os.system"),
        ({"_class_name": ["pipeline", "MyScheduler"]}, "MyScheduler"),
        ({"_class_name": "DDPMPipeline"}, "DDPMPipeline"),
        ({"_class_name": "MyScheduler"}, "MyScheduler"),
        ({"_class_name": "DDPMScheduler", "prediction_type": None}, "prediction_type"),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "quad"}, "beta_schedule 'quad'"),
        ({"_class_name": "DDPMScheduler", "num_train_timesteps": "many"}, "num_train_timesteps='many'"),
        ({"_class_name": "DDPMScheduler", "num_train_timesteps": 0}, "num_train_timesteps=0"),
        ({"_class_name": "DDPMScheduler", "num_train_timesteps": 10**12}, "num_train_timesteps=1000000000000"),
        ({"_class_name": "DDPMScheduler", "beta_end": [0.02]}, r"beta_end=.0\.02"),
        ({"_class_name": "DDPMScheduler", "clip_sample": "no"}, "clip_sample='no'"),
        ({"_class_name": "DDPMScheduler", "clip_sample_range": -1.0}, "above 0"),
        (
            {"_class_name": "DDPMScheduler", "thresholding": True, "dynamic_thresholding_ratio": 2.0},
            "quantile=2.0: give 0 < quantile <= 1",
        ),
        ({"_class_name": "DDPMScheduler", "trained_betas": [0.1, "x"]}, "trained_betas"),
        ({"_class_name": "DDPMScheduler", "trained_betas": [0.1, 2.0]}, "trained_betas"),
        ({"_class_name": "EDMEulerScheduler", "sigma_data": 0.0}, "sigma_data"),
        ({"_class_name": "EDMEulerScheduler", "sigma_schedule": "linear"}, "sigma_schedule 'linear'"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": -1.0}, "shift=-1"),
        ({"_class_name": "DDPMScheduler", "solver": "/etc/passwd"}, "solver '/etc/passwd'"),
        ({"_class_name": "FewStepScheduler", "prediction_type": "epsilon", "solver": {"table": "AAAA"}}, "table"),
        ({"_class_name": "FewStepScheduler", "prediction_type": "epsilon", "solver": {"class": "os"}}, "class 'os'"),
        ({"_class_name": "FewStepScheduler", "prediction_type": "epsilon", "process": {"name": "x"}}, "process 'x'"),
        ([1, 2], "a list as a scheduler's config"),
    ],
)
def test_configs_that_are_refused(config: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FewStepScheduler.from_config(config).set_timesteps(4)


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "scheduler_config.json")
    (tmp_path / "deep.json").write_text("[" * 10**5)
    for source in (tmp_path, tmp_path / "deep.json", tmp_path / "scheduler_config.json"):
        with pytest.raises(ValueError, match="is missing|no regular file|nested too deep"):
            FewStepScheduler.from_pretrained(source)
    with pytest.raises(ValueError, match="is missing"):
        FewStepScheduler.from_pretrained(tmp_path, subfolder="nowhere")


def test_a_pipeline_and_a_folder_read_a_partial_file_alike(tmp_path: Path) -> None:
    tiny.ddpm().save_pretrained(tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": "LCMScheduler"}))
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "LCMScheduler"]}))
    pipe = tiny.quiet(diffusers.DiffusionPipeline.from_pretrained(str(tmp_path)))
    inside = FewStepScheduler.from_config(pipe.scheduler.config)
    assert fs.load(tmp_path).process == inside.process == FewStepScheduler.from_pretrained(tmp_path).process
    pipe.scheduler = FewStepScheduler.from_pretrained(tmp_path)
    pipe.save_pretrained(tmp_path / "again")
    assert fs.load(tmp_path / "again").process == inside.process


@pytest.mark.parametrize("solver", ["edm-sde", "pndm", "dpm-2", "deis-tab-2", "restart", "euler-maruyama"])
@pytest.mark.parametrize(
    ("config", "given"),
    [
        (ZERO, {"timesteps": [999, 600, 200]}),
        (ZERO, {"sigmas": [float("inf"), 10.0, 1.0]}),
        (FLOW, {"sigmas": [1.0, 0.8, 0.2]}),
        (FLOW, {"timesteps": [1000.0, 800.0, 200.0]}),
        (FLOW, {"timesteps": [999.5, 800.0, 200.0], "sigmas": [1.0, 0.8, 0.2]}),
    ],
)
def test_given_times_at_a_singular_end_are_refused_with_the_table(solver: str, config: Any, given: Any) -> None:
    with pytest.raises(ValueError, match="where alpha = 0, for"):
        scheduler(solver, None, **config).set_timesteps(**given)
    with pytest.raises(ValueError, match="where alpha = 0, for"):
        fs.tabulate(solver, fs.Flow(), grid=torch.tensor([1.0, 0.8, 0.2], dtype=torch.float64))


@pytest.mark.parametrize("solver", ["euler-maruyama", "reverse-diffusion", "quasi-taylor-2", "dpm-2m-sde"])
@pytest.mark.parametrize("config", [SD, {"shift": 1.0}])
def test_a_given_sigma_of_zero_is_refused_where_the_table_ends_before(solver: str, config: Any) -> None:
    s = scheduler(solver, None, **config)
    with pytest.raises(ValueError, match="where sigma = 0, for"):
        s.set_timesteps(sigmas=[0.9, 0.5, 0.0])
    s.set_timesteps(sigmas=[0.9, 0.5, 0.1])  # the end that flows add is ours
    assert s.sigmas[:2].tolist() == pytest.approx([0.9, 0.5], rel=1e-6)


@pytest.mark.parametrize("solver", ["ddim", "unipc-3", "dpmpp-2m", "gaussian-split", "lcm"])
def test_given_times_at_singular_ends_are_kept_where_the_table_can(solver: str) -> None:
    s = scheduler(solver, None, **ZERO)
    for given in ({"timesteps": [999, 600, 200]}, {"timesteps": [998, 600, 200]}):
        s.set_timesteps(**given)
        assert s.timesteps[0] == given["timesteps"][0]
        assert march(s, noise(), torch.Generator().manual_seed(0)).isfinite().all()
    s.set_timesteps(sigmas=[100.0, 10.0, 1.0, 0.0])  # none of these is the last of the table, which has no end
    assert s.sigmas.tolist() == pytest.approx([100.0, 10.0, 1.0, 0.0], rel=1e-5)


def test_levels_within_the_range_are_not_taken_for_its_end() -> None:
    s = scheduler("ddim", None)
    last = float(FewStepScheduler(**SD).convention.level(torch.tensor(1.0, dtype=torch.float64)))
    for level in (last * (1 - 5e-5), last):
        s.set_timesteps(sigmas=[level, 1.0, 0.1])
        assert float(s.sigmas[0]) == pytest.approx(level, rel=1e-6)
    s.set_timesteps(sigmas=[last * (1 + 5e-5), 1.0, 0.1])  # rounded beyond it
    assert s.table.grid[0] == 1
    with pytest.raises(ValueError, match="defined on"):
        s.set_timesteps(sigmas=[last * 1.001, 1.0, 0.1])


@pytest.mark.parametrize("solver", ["heun", "dpm-2", "ddim", "dpmpp-2m", "reverse-diffusion"])
def test_noise_predictions_of_pure_noise_are_refused_by_every_solver(solver: str) -> None:
    """A zero terminal SNR with epsilon says nothing of the data: no solver begins beside it and explodes."""
    config = ZERO | {"prediction_type": "epsilon"}
    with pytest.raises(ValueError, match="alpha = 0|holds no"):
        march(scheduler(solver, 6, **config), noise(), torch.Generator().manual_seed(0))
