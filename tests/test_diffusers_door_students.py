"""Students in diffusers' pipelines: their own tables run unasked, and other steps are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fewstep as fs

diffusers = pytest.importorskip("diffusers")

from fewstep.interop.diffusers import FewStepScheduler  # noqa: E402
from fewstep.model import save_model  # noqa: E402
from fewstep.tableau import MadeFor  # noqa: E402


def net() -> torch.nn.Module:
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(4, 8), norm_num_groups=2, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["own", "jumps", "ends"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = "lcm" if request.param == "ends" else "ddim"
    tables = {str(n): fs.tabulate(name, fs.VP(), steps=n, grid="uniform") for n in (2, 4)}
    made = MadeFor(tables=tables, rows=request.param, grid="uniform")
    return save_model(tmp_path_factory.mktemp("student") / "model", net(), process=fs.VP(), predicts="v",
                      shape=(1, 8, 8), made_for=made)  # fmt: skip


def test_a_pipeline_runs_a_student_by_its_own_table(folder: Path, tmp_path: Path) -> None:
    model = fs.load(folder, dtype=torch.float32)
    scheduler = FewStepScheduler(solver=folder)
    assert scheduler.process == model.process
    assert scheduler.config["prediction_type"] == "v_prediction"
    scheduler.save_pretrained(tmp_path)
    for one in (scheduler, FewStepScheduler(solver=model), FewStepScheduler.from_pretrained(tmp_path)):
        for calls in (2, 4):
            one.set_timesteps(calls)
            assert one.table == model.tables[str(calls)]
    pipe = diffusers.DDPMPipeline(model.net, scheduler)
    pipe.set_progress_bar_config(disable=True)
    found = pipe(num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert found.shape == (1, 8, 8, 1)


def test_a_scheduler_refuses_what_its_student_was_not_made_for(folder: Path) -> None:
    scheduler = FewStepScheduler(solver=folder)
    made = fs.load(folder, dtype=torch.float32).made_for
    assert made is not None
    if made.rows == "own":
        for steps in ({"num_inference_steps": 3}, {"timesteps": [900, 300]}):
            with pytest.raises(ValueError, match="give num_inference_steps=2 or 4"):
                scheduler.set_timesteps(**steps)
    else:
        scheduler.set_timesteps(3)
        assert made.fits(scheduler.table)
        scheduler.set_timesteps(timesteps=[900, 300])
        assert made.fits(scheduler.table)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="has no eta"):
        scheduler.step(torch.zeros(1, 1, 8, 8), scheduler.timesteps[0], torch.ones(1, 1, 8, 8), eta=0.5)


def test_a_model_without_tables_is_no_solver(folder: Path) -> None:
    model = fs.load(folder, dtype=torch.float32)
    for other in (replace(model, made_for=None), replace(model, time="t"), replace(model, predicts="edm")):
        with pytest.raises(ValueError, match="give a student that brings tables"):
            FewStepScheduler(solver=other)
