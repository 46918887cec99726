"""`fewstep fit` on a tiny model: a table that `sample` and `explain` take, guidance, features, and refusals."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.cli import main
from fewstep.cli.fit import feature_space
from test_cli_sample import tiny  # noqa: F401 - a fixture

FEW = ["--steps", "2", "--samples", "8", "--held-out", "4", "--batch", "4", "--teacher-steps", "4", "--iterations", "2"]
START = ["--solver", "dpmpp-2m", "--grid", "logistic"]


def features(x):
    """A feature space for the command line."""
    return x.flatten(1)[:, :6]


def run(model, out, *argv):
    return main(["fit", str(model), *FEW, *START, "--out", str(out), *argv])


def test_a_fitted_table_is_sampled_and_explained_and_warns_elsewhere(tiny, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "a.table"
    assert run(tiny, out) == 0
    assert "2 network calls, from dpmpp-2m on logistic: held-out distance" in capsys.readouterr().out
    model, table = fs.load(tiny), fs.Tableau.load(out)
    assert table.card["weights"] == model.weights
    assert table.card["guidance"] == 1.0
    assert main(["explain", str(out)]) == 0
    assert "Fitted(start=DPMMultistep(" in capsys.readouterr().out
    argv = ["--solver", str(out), "--num", "3", "--out", str(tmp_path / "o")]
    assert main(["sample", str(tiny), *argv]) == 0
    assert json.loads((tmp_path / "o" / "run.json").read_text())["network_calls"] == 2

    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    from fewstep.model import save_model

    net = model.net
    with torch.no_grad():
        next(net.parameters()).add_(1.0)
    save_model(other, net, process=model.process, predicts="v", shape=model.shape, labels=model.labels)
    with pytest.warns(UserWarning, match="fitted to the weights"):
        assert main(["sample", str(other), *argv]) == 0


def test_the_recording_serves_further_fits(tiny, tmp_path, capsys):  # noqa: F811
    assert run(tiny, tmp_path / "a.table") == 0
    (teacher,) = tmp_path.glob("teacher-*.safetensors")
    before = teacher.stat().st_mtime_ns
    assert run(tiny, tmp_path / "b.table", "--mode", "exact") == 0
    assert teacher.stat().st_mtime_ns == before
    assert run(tiny, tmp_path / "c.table", "--guidance", "2.5") == 0
    assert len(list(tmp_path.glob("teacher-*.safetensors"))) == 2
    assert fs.Tableau.load(tmp_path / "c.table").card["guidance"] == 2.5
    assert main(["sample", str(tiny), "--solver", str(tmp_path / "c.table"), "--out", str(tmp_path)]) == 0
    assert "c.table was fitted to guidance 2.5 and runs with it" in capsys.readouterr().err


def test_features_by_name(tiny, tmp_path):  # noqa: F811
    assert run(tiny, tmp_path / "a.table", "--objective", "kid", "--features", f"{__file__}:features") == 0
    card = fs.Tableau.load(tmp_path / "a.table").card
    assert (card["objective"], card["real"], card["final"]) == ("kid", 0, "zero")
    shape = fs.load(tiny).shape
    data = tmp_path / "data.npz"
    np.savez(data, x_train=np.random.default_rng(0).integers(0, 255, (12, *shape[1:], shape[0])).astype(np.uint8))
    features = ["--objective", "kid", "--features", "test_fit_cli:features", "--data"]
    assert run(tiny, tmp_path / "a.table", *features, str(data), "--final", "state") == 0
    card = fs.Tableau.load(tmp_path / "a.table").card
    assert (card["real"], card["final"]) == (12, "state")
    assert (card["features"], card["data"]) == ("test_fit_cli:features", str(data))


def test_the_classifier_goes_where_the_samples_are():
    found = feature_space("classifier", (1, 28, 28))
    assert found(torch.zeros(2, 1, 28, 28)).device.type == "cpu"
    assert found(torch.zeros(2, 1, 28, 28, device="meta")).device.type == "meta"


@pytest.mark.parametrize(
    ("argv", "words", "code"),
    [
        (["--features", "classifier"], "no use for them", 2),
        (["--data", "shipped"], "give kid", 2),
        (["--objective", "kid", "--features", "nowhere:f"], "No module named", 2),
        (["--objective", "kid", "--features", "math"], "MODULE:FUNCTION", 2),
        (["--objective", "kid", "--features", "math:nothing"], "math has no nothing", 2),
        (["--objective", "kid", "--features", "math:pi"], "MODULE:FUNCTION", 2),
        (["--objective", "kid"], "it sees (1, 28, 28)", 2),
        (["--objective", "kid", "--features", "test_fit_cli:features", "--data", "shipped"], "give --features", 2),
        (["--solver", "dpmp"], "did you mean", 2),
        (["--grid", "logistc"], "did you mean", 2),
        (["--solver", "rk45"], "got --solver rk45, which chooses its steps while it runs", 2),
        (["--guidance", "nan"], "only finite numbers", 2),
        (["--solver", "ddpm"], "reads xi0", 1),
        (["--label", "hat"], "hat", 2),
        (["--out", "/proc/nowhere/a.table"], "/proc/nowhere", 1),
    ],
)
def test_refusals(tiny, tmp_path, capsys, argv, words, code):  # noqa: F811
    assert run(tiny, tmp_path / "a.table", *argv) == code
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("*.table"))
