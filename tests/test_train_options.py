"""Options of a training run: each impossible value is one sentence that names it; the possible ends run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from fewstep.files import physical_memory
from fewstep.train import Images, run as runs, train

pytest.importorskip("diffusers")

TINY = {"images": 16, "batch": 8, "channels": (4, 4), "patch": 1, "sheet_every": None, "quiet": True}


def pictures(n: int = 16, side: int = 8) -> Images:
    levels = np.random.default_rng(0).integers(0, 256, (n, side, side)).astype(np.uint8)
    return Images(images=levels, labels=None, names=(), source="noise")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("images", (0, -1, 1.5, "many", True)),
        ("hours", (0, -1.0, math.nan, math.inf, "one")),
        ("batch", (0, 17, 2.5)),
        ("lr", (0, -1e-3, math.nan, math.inf)),
        ("warmup", (-1, 0.5)),
        ("ema", (1, -0.1, math.nan)),
        ("drop_label", (-0.1, 1.1, math.nan)),
        ("seed", (-1, 2**63, 0.5)),
        ("channels", ((), (0, 4), 64, "64", (4, 2.5), (10**6,), (4, True))),
        ("layers", (0, 10**9)),
        ("patch", (0, 3, 16, 10**9)),
        ("save_every", (math.nan, "often")),
        ("sheet_every", (0, -1, math.nan)),
        ("device", ("cuda:99", "nowhere")),
        ("process", ("x",)),
        ("data", (None, 3)),
    ],
)
def test_an_impossible_value_is_named(tmp_path: Path, name: str, values: tuple) -> None:
    for value in values:
        options = {"data": pictures(), "out": tmp_path / "run"} | TINY | {name: value}
        with pytest.raises(ValueError, match=name):
            train(**options)
    assert not (tmp_path / "run" / "model").exists()


def test_a_network_larger_than_the_machine_is_refused_before_it_is_made(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(runs, "physical_memory", lambda: 20 * 1_000_000)
    with pytest.raises(ValueError, match=r"channels \(64, 128\) .* a network of [1-9],[0-9]{3},[0-9]{3} parameters"):
        train(pictures(), tmp_path, **(TINY | {"channels": (64, 128)}))
    assert physical_memory() > 2**28


def test_a_resolution_that_normalises_to_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="images of 4x4 came .* one pixel"):
        train(pictures(16, 4), tmp_path, **(TINY | {"channels": (4, 4, 4)}))


@pytest.mark.parametrize(
    "options",
    [
        {"images": 1, "batch": 1, "data": pictures(1)},
        {"images": 4, "batch": 1, "data": pictures(1, 4), "channels": [4, 4]},
        {"warmup": 0, "ema": 0, "drop_label": 1, "save_every": 0},
        {"lr": np.float32(1e-3), "images": np.int64(16), "channels": np.array([4, 4]), "hours": 1},
        {"save_every": math.inf},
    ],
)
def test_values_at_the_ends_train(tmp_path: Path, options: dict) -> None:
    folder = train(**({"data": pictures(), "out": tmp_path} | TINY | options))
    assert (folder / "fewstep.json").is_file()


def test_no_line_of_a_run_says_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(pictures(), tmp_path, **(TINY | {"quiet": False}))
    said = capsys.readouterr().err
    assert "step 1 " in said
    assert "nan" not in said.partition("the model is in")[0]
    assert "left" in said


def test_a_class_without_a_picture_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Images(images=pictures().images, labels=np.arange(16) % 2 * 2, names=("a", "b", "c"), source="some")
    train(data, tmp_path, **(TINY | {"quiet": False}))
    assert "no picture has the label b: samples of it will be noise" in capsys.readouterr().err


def test_samples_that_are_not_finite_end_no_training(tmp_path: Path, monkeypatch, capsys) -> None:
    def broken(model: object, path: Path) -> None:
        raise ValueError("the samples are not finite")

    monkeypatch.setattr(runs, "write_sheet", broken)
    folder = train(pictures(), tmp_path, **(TINY | {"quiet": False, "sheet_every": 600.0}))
    assert folder.is_dir()
    assert "no sheet at step 2: the samples are not finite" in capsys.readouterr().err
