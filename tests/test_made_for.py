"""What a student brings: its own tables are used unasked at every door, and what cannot be right is refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import fewstep as fs
from fewstep.cli import main
from fewstep.loop.tabulate import table_of
from fewstep.process import ALL_PROCESSES
from fewstep.tableau import MadeFor
from fewstep.train.methods import METHODS
from fewstep.train.students import train_student

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {"batch": 16, "steps": 6, "width": 8, "depth": 2, "quiet": True}
MADE = {  # a student of each kind
    "own": ("progressive", {"steps": 8, "to": 4}),
    "ends": ("consistency", {}),
    "jumps": ("shortcut", {}),
    "any": ("reflow", {"distil": 0.0, "pairs": 32, "calls": 2}),
}


def points(dim: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(64, dim))


def teacher(process: fs.Process) -> fs.Mixture:
    return fs.Mixture(process, torch.tensor([[0.5, 0.5], [-0.5, 0.0]]), 0.2)


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, fs.Model]:
    return {rows: fs.load(folder, dtype=torch.float32) for rows, folder in folders.items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for rows, (method, options) in MADE.items():
        out = tmp_path_factory.mktemp(rows)
        taught = {"own": teacher(fs.VP()), "ends": teacher(fs.EDM()), "any": teacher(fs.Flow())}.get(rows)
        made[rows] = train_student(points(), out, method=method, teacher=taught, options=options, **TINY)
    return made


def drawn(denoiser: object, process: fs.Process, **options: object) -> Tensor:
    return fs.sample(denoiser, process, shape=(3, 2), progress=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", MADE)
def test_a_folder_keeps_what_its_student_was_made_for(rows: str, models: dict[str, fs.Model]) -> None:
    made = models[rows].made_for
    assert made is not None
    assert made.rows == rows
    assert sorted(made.by_calls) == {"own": [4], "ends": [1, 2], "jumps": [1, 2, 4], "any": [1]}[rows]


@pytest.mark.parametrize(("rows", "calls"), [("own", 4), ("ends", 2), ("jumps", 4), ("any", 1)])
def test_a_student_runs_by_its_own_table_unasked(rows: str, calls: int, models: dict[str, fs.Model]) -> None:
    model = models[rows]
    counted = fs.Counted(model.denoiser())
    found = drawn(counted, model.process)
    assert counted.calls == calls
    assert torch.equal(found, drawn(model.denoiser(), model.process, solver=model.tables[str(calls)]))
    assert torch.equal(found, drawn(model.denoiser(), model.process, steps=calls) if rows != "any" else found)


@pytest.mark.parametrize(
    "wrapper",
    [
        lambda d, _: fs.Counted(d),
        lambda d, _: fs.Thresholded(d),
        lambda d, _: fs.guide(d, d, 2.0),
        lambda d, _: _Own(d),
        lambda d, _: fs.retime(d, fs.Flow()),
    ],
)
def test_a_wrapper_passes_on_what_its_student_was_made_for(wrapper, models: dict[str, fs.Model]) -> None:
    model = models["own"]
    wrapped = wrapper(model.denoiser(), model.process)
    process = wrapped.process or model.process
    table = table_of(wrapped, process, None, (2,))
    assert table.nfe == 4
    assert torch.allclose(process.log_snr(table.grid), model.process.log_snr(model.tables["4"].grid), atol=1e-6)
    with pytest.raises(ValueError, match="made for its own table of 4 network calls"):
        drawn(wrapped, process, solver="unipc-3", steps=4)


class _Own:
    """A wrapper of a user's."""

    process = None

    def __init__(self, denoiser: object) -> None:
        self.denoiser = denoiser

    def __call__(self, z: Tensor, t: object) -> Tensor:
        return self.denoiser(z, t)  # type: ignore[operator]


REFUSED = {
    "own": [
        {"steps": 3}, {"nfe": 8}, {"solver": "ddim", "steps": 4, "grid": "uniform"}, {"solver": "unipc-3", "steps": 4},
        {"grid": "karras"}, {"grid": torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)}, {"final": "state"},
        {"final": "denoise"}, {"solver": "lcm"}, {"solver": "rk45"},
    ],
    "ends": [{"solver": "ddim", "steps": 2}, {"solver": "unipc-3"}, {"solver": "ddpm", "steps": 2}],
    "jumps": [{"solver": "multistep-2", "steps": 5}, {"solver": "ddpm-beta", "steps": 4}, {"solver": "rk45"}],
}  # fmt: skip
RIGHT = {
    "own": [{"steps": 4}, {"nfe": 4}, {"solver": "default", "steps": 4}],
    "ends": [{"steps": 1}, {"steps": 3}, {"solver": "lcm", "steps": 5}, {"solver": "ddim", "nfe": 1},
             {"grid": "karras", "steps": 2}, {"final": "state", "steps": 2}],
    "jumps": [{"steps": 3}, {"nfe": 8}, {"solver": "ddim", "grid": "uniform", "steps": 5}, {"solver": "unipc-3",
              "nfe": 1}, {"solver": "lcm", "steps": 2}, {"final": "state"}],
    "any": [{"steps": 3}, {"solver": "multistep-2"}, {"solver": "rk45"}],
}  # fmt: skip


@pytest.mark.parametrize(("rows", "options"), [(rows, o) for rows, some in REFUSED.items() for o in some])
def test_what_cannot_be_right_for_a_student_is_refused(rows: str, options: dict, models: dict[str, fs.Model]) -> None:
    model = models[rows]
    with pytest.raises(ValueError, match=r"^got .* for a student made for .*: [^.]*$"):
        drawn(model.denoiser(), model.process, **options)


@pytest.mark.parametrize(("rows", "options"), [(rows, o) for rows, some in RIGHT.items() for o in some])
def test_what_is_right_for_a_student_runs(rows: str, options: dict, models: dict[str, fs.Model]) -> None:
    model = models[rows]
    assert drawn(model.denoiser(), model.process, **options).isfinite().all()


def test_its_own_grid_by_hand_is_its_own_table(models: dict[str, fs.Model]) -> None:
    model = models["own"]
    own = drawn(model.denoiser(), model.process)
    assert torch.equal(own, drawn(model.denoiser(), model.process, grid=model.tables["4"].grid))
    assert torch.equal(own, drawn(model.denoiser(), model.process, solver="ddim", grid=model.tables["4"].grid))


def test_a_table_fitted_to_a_students_weights_runs_and_another_does_not(models: dict[str, fs.Model]) -> None:
    model = models["own"]
    table = fs.tabulate("multistep-2", model.process, steps=3)
    assert drawn(model.denoiser(), model.process, solver=replace(table, card={"weights": model.weights})).numel() == 6
    with pytest.raises(ValueError, match="for a student made for"):
        drawn(model.denoiser(), model.process, solver=replace(table, card={"weights": "0" * 64}))


def test_two_students_of_different_tables_do_not_run_together(models: dict[str, fs.Model]) -> None:
    model = models["own"]
    other = models["ends"]
    with pytest.raises(ValueError, match="for a student made for"):
        drawn(fs.guide(model.denoiser(), fs.retime(other.denoiser(), model.process), 2.0), model.process)


@pytest.mark.parametrize("rows", ["own", "ends", "jumps"])
def test_means_are_not_asked_of_a_student(rows: str, models: dict[str, fs.Model]) -> None:
    model = models[rows]
    x = torch.zeros(2, 2, dtype=torch.float64)
    for ask in (fs.log_prob, fs.encode):
        with pytest.raises(ValueError, match="for a student made for"):
            ask(model.denoiser(), model.process, x)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_says_which_rows_are_right(method: str) -> None:
    made = METHODS[method]()
    student = made.made_for(ALL_PROCESSES[made.process]())
    assert (student is None) == (not made.tables(ALL_PROCESSES[made.process]()))
    if student is not None:
        assert all(student.fits(table) for table in student.tables.values())
        assert (student.rows == "ends") == (type(student.solver) is fs.TABLES["lcm"])
        assert (student.rows == "jumps") == made.destination


def test_what_a_student_was_made_for_is_said() -> None:
    table = fs.tabulate("ddim", fs.VP(), steps=1)
    assert str(MadeFor(tables={"1": table})) == "a student made for its own table of 1 network call"
    with pytest.raises(ValueError, match="rows='all'"):
        MadeFor(tables={"1": table}, rows="all")
    with pytest.raises(ValueError, match="no table"):
        MadeFor(tables={})


def test_a_damaged_folder_of_a_student_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["own"], tmp_path / "model")
    about = json.loads((folder / "fewstep.json").read_text())
    (folder / "fewstep.json").write_text(json.dumps(about | {"rows": "all"}))
    with pytest.raises(ValueError, match="has rows 'all'"):
        fs.load(folder, dtype=torch.float32)
    (folder / "fewstep.json").write_text(json.dumps(about))
    fs.tabulate("ddim", fs.Flow(), steps=4).save(folder / "table-4.safetensors")
    with pytest.raises(ValueError, match="table-4 for Flow"):
        fs.load(folder, dtype=torch.float32)


def test_the_command_line_samples_a_student_by_its_own_table(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "--model", str(folders["own"])]) == 0
    assert "DDIM(eta=0.0) on VP: 4 steps, 4 network calls" in capsys.readouterr().out
    command = ["sample", str(folders["own"]), "--num", "3", "--out", str(tmp_path / "out"), "--threads", "1"]
    assert main(command) == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    own = fs.load(folders["own"], dtype=torch.float32).tables["4"]
    assert record["network_calls"] == 4
    assert record["times"] == own.grid.tolist()
    assert main([*command[:-3], str(tmp_path / "no"), "--steps", "7"]) != 0
    assert main([*command[:-3], str(tmp_path / "no"), "--solver", "rk45"]) != 0
    assert main([*command[:-3], str(tmp_path / "no"), "--solver", "unipc-3", "--dry-run"]) != 0
    said = capsys.readouterr().err.strip().splitlines()
    assert all(re.match(r"fewstep: got .* for a student made for its own table of 4 network calls: ", s) for s in said)
    assert len(said) == 3
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(("rows", "words"), [("own", ()), ("jumps", ("--steps", "2")), ("ends", ())])
def test_a_graph_of_a_student_is_its_own_table(
    rows: str, words: tuple[str, ...], folders: dict[str, Path], tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "s.onnx"
    assert main(["export", str(folders[rows]), "--out", str(path), *words]) == 0
    about = json.loads({p.key: p.value for p in onnx.load(path).metadata_props}["fewstep"])
    assert about["network_calls"] == {"own": 4, "jumps": 2, "ends": 2}[rows]
    assert main(["export", str(folders[rows]), "--out", str(tmp_path / "no.onnx"), "--solver", "unipc-3"]) != 0
    assert not (tmp_path / "no.onnx").exists()


def test_a_bench_of_a_student_runs_its_own_table_and_sets_students_beside_a_model(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--images", "8", "--threads", "1", "--resamples", "20"]
    assert main(["bench", str(folders["own"]), *few, "--out", str(tmp_path / "alone")]) == 0
    rows = json.loads((tmp_path / "alone" / "table.json").read_text())["rows"]
    assert [(row["name"], row["calls"]) for row in rows if row["group"] == "fewstep"] == [("default", 4)]
    assert not any(row.get("failed") for row in rows)
    plain = train_student(points(), tmp_path / "plain", method="denoise", **TINY)
    beside = ["--students", str(folders["own"]), str(folders["jumps"]), "--solver", "ddim", "--calls", "3"]
    assert main(["bench", str(plain), *beside, *few, "--out", str(tmp_path / "beside")]) == 0
    rows = json.loads((tmp_path / "beside" / "table.json").read_text())["rows"]
    assert sorted(row["calls"] for row in rows if row["group"] == "students") == [1, 2, 4, 4]
    assert main(["bench", str(plain), "--students", str(plain), *few, "--out", str(tmp_path / "no")]) != 0
    assert "brings no table" in capsys.readouterr().err
