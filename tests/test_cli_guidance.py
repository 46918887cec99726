"""`--guidance` of `fewstep sample` and `bench`: what runs, what is counted and recorded, what is said and refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import fewstep as fs
from fewstep import bench
from fewstep.bench.subject import subject
from fewstep.cli import main
from fewstep.model.draw import draw
from test_cli_sample import sample, tiny  # noqa: F401 - a fixture


@pytest.fixture
def fitted(tmp_path):
    """A table file whose card says guidance 2."""
    path = tmp_path / "a.table"
    table = fs.tabulate("dpmpp-2m", fs.VP(), steps=3)
    replace(table, card={"guidance": 2.0, "weights": "a" * 64}).save(path)
    return path


def samples(folder):
    return np.load(folder / "samples.npz")["samples"]


def test_samples_are_those_of_guide_and_an_evaluation_is_a_network_s(tiny, tmp_path, capsys):  # noqa: F811
    assert sample(tiny, tmp_path, "--solver", "ddim", "--guidance", "3", "--seed", "7", "--memory", "64GiB") == 0
    model = fs.load(tiny)
    denoiser = fs.guide(model.denoiser([0, 1, 2, 0, 1]), model.denoiser(None), 3.0)
    z = fs.sample(denoiser, model.process, solver="ddim", steps=3, shape=(5, 1, 8, 8), seed=7)
    np.testing.assert_allclose(samples(tmp_path), z.numpy(), rtol=1e-4, atol=1e-4)
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["guidance"], record["memory"], record["compile"]) == (3.0, 64 * 2**30, False)
    assert (record["network_calls"], record["network_evaluations"]) == (3, 6)
    assert "3 network calls each (6 evaluations)" in capsys.readouterr().out


@pytest.mark.parametrize(("solver", "guidance", "calls", "evaluations"), [
    ("ddim", 1.0, 3, 3), ("ddim", 2.0, 3, 6), ("ddim", 0.0, 3, 3), ("ddim-cfgpp", 0.6, 3, 6), ("ltsp", 2.0, 6, 9),
])  # fmt: skip
def test_evaluations_are_counted_at_the_network(tiny, solver, guidance, calls, evaluations):  # noqa: F811
    model = fs.load(tiny)
    table = fs.tabulate(solver, model.process, nfe=calls)
    drawn = draw(model, table, num=3, batch=2, labels=[0, 1, 2], guidance=guidance)
    assert (drawn.calls, drawn.evaluations) == (calls, evaluations)
    limited = draw(model, table, num=3, batch=2, labels=[0, 1, 2], guidance=guidance, memory="64GiB")
    assert (limited.calls, limited.evaluations) == (calls, evaluations)


def test_a_solver_of_guided_models_asks_for_guidance(tiny, tmp_path, capsys):  # noqa: F811
    assert sample(tiny, tmp_path, "--solver", "ddim-cfgpp") == 1
    assert "guidance (fewstep.guide, fewstep.Guided, --guidance) makes one that does" in capsys.readouterr().err


def test_the_two_predictions_are_one_network_call(tiny, monkeypatch):  # noqa: F811
    model, seen = fs.load(tiny), []
    inner = type(model)._call
    monkeypatch.setattr(
        type(model), "_call", lambda self, x, t, **more: seen.append(len(x)) or inner(self, x, t, **more)
    )
    draw(model, fs.tabulate("ddim", model.process, steps=2), num=3, labels=[0, 1, 2], guidance=2.0)
    assert seen == [6, 6]


@pytest.mark.filterwarnings("ignore:got a table fitted to the weights")
@pytest.mark.parametrize(("argv", "said", "scale"), [
    ((), "a.table was fitted to guidance 2 and runs with it; --guidance sets another\n", 2.0),
    (("--guidance", "2"), "", 2.0),
    (("--guidance", "1"), "a.table was fitted to guidance 2 and runs with 1\n", 1.0),
])  # fmt: skip
def test_a_fitted_table_runs_with_its_guidance(tiny, fitted, tmp_path, capsys, argv, said, scale):  # noqa: F811
    assert main(["sample", str(tiny), "--num", "2", "--out", str(tmp_path), "--solver", str(fitted), *argv]) == 0
    assert capsys.readouterr().err.endswith(said)
    assert json.loads((tmp_path / "run.json").read_text())["guidance"] == scale


@pytest.mark.parametrize("argv", [["--guidance", "2"], ["--guidance", "0"]])
def test_a_model_without_classes_is_not_guided(tiny, tmp_path, monkeypatch, capsys, argv):  # noqa: F811
    model = replace(fs.load(tiny), labels=())
    monkeypatch.setattr("fewstep.interop.load.load", lambda *_, **__: model)
    assert sample(tiny, tmp_path, *argv) == 2
    assert "for a model that was trained without classes: leave it out" in capsys.readouterr().err


def test_a_scale_is_a_finite_number(tiny, tmp_path, capsys):  # noqa: F811
    for text in ("much", "nan", "inf"):
        assert sample(tiny, tmp_path, "--guidance", text) == 2
        assert f"got {text}, but only finite numbers are allowed" in capsys.readouterr().err


def test_bench_guides_every_contender_and_the_exact_run(tiny, fitted, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(bench, "figures", lambda *_: ())
    argv = ["bench", str(tiny), "--calls", "3", "--images", "4", "--exact", "10", "--features", "pixels",
            "--resamples", "20", "--batch", "4", "--solver"]  # fmt: skip
    with pytest.warns(UserWarning, match="a table fitted to the weights aaaaaaaaaaaa"):
        assert main([*argv, str(fitted), "ddim", "--dry-run", "--out", str(tmp_path / "o")]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["guidance"] == 2.0
    assert "a.table was fitted to guidance 2 and runs with it" in err
    rmse = {}
    for scale in ("1", "4"):
        assert main([*argv, "ddim", "--guidance", scale, "--out", str(tmp_path / "same")]) == 0
        rows = json.loads((tmp_path / "same" / "table.json").read_text())["rows"]
        rmse[scale] = rows[0]["rmse"]
    assert rmse["1"] != rmse["4"]
    model = fs.load(tiny)
    guided = subject(str(tiny)).guided(4.0)
    denoiser = guided.of(1, 2)
    assert isinstance(denoiser, type(fs.guide(model.denoiser(1), model.denoiser(None), 4.0)))
    assert denoiser.scale == 4.0
    with pytest.raises(ValueError, match="got guidance 2 for a model that was trained without classes"):
        replace(guided, classes=0, guidance=1.0).guided(2.0)
