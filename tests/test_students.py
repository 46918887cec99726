"""Runs of every method on points: what is resumed, what is refused, and what comes out."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fewstep as fs
from fewstep.cli import main
from fewstep.files import load_tensors
from fewstep.nets import MLP
from fewstep.train import Stopped
from fewstep.train.methods import METHODS
from fewstep.train.progress import Bins
from fewstep.train.students import train_student
from fewstep.train.students.figures import energy

BATCH, STEPS = 16, 18
TINY = {"batch": BATCH, "steps": STEPS, "width": 8, "depth": 2, "quiet": True}
OPTIONS = {  # stages with borders, few pairs
    "progressive": (("steps", 8), ("to", 2)),
    "guided": (("steps", 4), ("to", 2)),
    "reflow": (("pairs", 64), ("calls", 4)),
    "knowledge": (("pairs", 64), ("calls", 4)),
    "bridge": (("degrade", "noise0.2"),),
    "operator": (("pairs", 64), ("calls", 8)),
    **{name: (("rounds", 1), ("steps", 3)) for name in ("dsb", "dsbm", "fbsde")},
}


pytestmark = pytest.mark.usefixtures("one_thread")


def points() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(64, 2))


def mixture(method: str) -> fs.Mixture:
    process = fs.PROCESSES[METHODS[method]().process]()
    return fs.Mixture(process, torch.tensor([[0.5, 0.5], [-0.5, 0.0]]), 0.2)


def options(method: str, **more: object) -> dict:
    teacher = mixture(method) if METHODS[method]().needs else None
    teacher = (teacher, teacher) if METHODS[method]().guided else teacher
    return TINY | {"method": method, "teacher": teacher, "options": OPTIONS.get(method, ())} | more


def tensors(out: Path) -> dict[str, Tensor]:
    return load_tensors(out / "checkpoint.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def stop_every(steps: int):
    """Asks the run to stop after so many steps of this session."""
    done = [0]

    def watch(trainer: object, loss: float) -> None:  # noqa: ARG001
        done[0] += 1
        if done[0] == steps:
            os.kill(os.getpid(), signal.SIGINT)

    return watch


def data_of(method: str) -> np.ndarray:
    """Points for a method, on the circle for those of manifolds."""
    x = points()
    return x / np.linalg.norm(x, axis=1, keepdims=True) if method.startswith("riemannian") else x


@pytest.mark.parametrize("method", METHODS)
def test_a_run_in_parts_ends_in_the_weights_of_one_in_one(method: str, tmp_path: Path) -> None:
    train_student(data_of(method), tmp_path / "whole", **options(method))
    stops = 0
    while True:
        try:
            train_student(data_of(method), tmp_path / "parts", **options(method), watch=stop_every(4))
            break
        except Stopped:
            stops += 1
    assert stops == 3
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))


@pytest.mark.parametrize("method", METHODS)
def test_the_folder_of_a_student_samples_by_its_own_tables(method: str, tmp_path: Path) -> None:
    made = train_student(data_of(method), tmp_path, **options(method))
    if not METHODS[method]().denoises:  # heads, and fields on manifolds
        left = {"riemannian": "field", "dsb": "bridge", "dsbm": "bridge", "fbsde": "bridge"}
        assert made == tmp_path / f"{left.get(method.partition('-')[0], 'network')}.safetensors"
        return
    model = fs.load(made, dtype=torch.float32)
    assert model.shape == (2,)
    tables = model.tables or {"10": None}
    for calls, table in tables.items():
        told = {"y": torch.zeros(4, 2)} if model.given else {"w": 1.0} if METHODS[method]().guided else {}
        counted = fs.Counted(model.denoiser(**told))
        x = fs.sample(counted, model.process, solver=table, shape=(4, 2), progress=False)
        assert torch.isfinite(x).all()
        assert counted.calls == int(calls)
    average = {k.removeprefix("ema."): v for k, v in tensors(tmp_path).items() if k.startswith("ema.")}
    for name, value in model.net.named_parameters():
        assert torch.equal(value, average[name])


def test_a_students_card_says_how_it_is_run(tmp_path: Path) -> None:
    folder = train_student(points(), tmp_path, **options("consistency"))
    card = (folder / "README.md").read_text()
    assert "`Consistency(" in card
    assert "its own tables, of 1, 2 calls" in card
    assert f"{BATCH * STEPS:,} ({STEPS:,} steps of {BATCH})" in card


def test_a_student_is_halved_again_on_its_own_times(tmp_path: Path) -> None:
    first = fs.load(train_student(points(), tmp_path / "4", method="progressive", teacher=mixture("progressive"),
                                  options={"steps": 8, "to": 4, "grid": "log-snr"}, **TINY))  # fmt: skip
    again = {"steps": 4, "to": 2}
    second = fs.load(
        train_student(points(), tmp_path / "2", method="progressive", teacher=first, options=again, **TINY)
    )
    assert second.tables["2"].grid.tolist() == first.tables["4"].grid.tolist()[::2]
    other = fs.load(train_student(points(), tmp_path / "3", method="progressive", teacher=mixture("progressive"),
                                  options=again, **TINY))  # fmt: skip
    assert other.tables["2"].grid.tolist() != second.tables["2"].grid.tolist()


def test_a_network_of_the_users_own_is_trained_in_place(tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.linear(torch.cat([x, t[:, None]], 1))

    net = Own()
    before = net.linear.weight.detach().clone()
    train_student(points(), tmp_path, **options("denoise", net=net))
    assert not torch.equal(net.linear.weight, before)
    assert torch.equal(net.linear.weight, tensors(tmp_path)["ema.linear.weight"])


def test_labels_are_told_and_dropped(tmp_path: Path) -> None:
    labels = np.arange(64) % 3
    model = fs.load(train_student(points(), tmp_path, **options("flow", labels=labels)), dtype=torch.float32)
    assert model.labels == ("0", "1", "2")
    z, t = torch.zeros(2, 2), 0.5
    each = model.denoiser(torch.tensor([0, 2]))(z, t)
    assert not torch.equal(each[0], each[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "nothing"}, "method 'nothing'"),
        ({"method": "progressive", "teacher": None}, "without a teacher"),
        ({"method": "progressive", "options": (("steps", 6), ("to", 4))}, "power of 2"),
        ({"method": "denoise", "options": (("weight", "heavy"),)}, "weight 'heavy'"),
        ({"method": "denoise", "options": (("wait", 1),)}, "option of denoise 'wait'"),
        ({"method": "consistency", "process": fs.VP()}, "made for EDM"),
        ({"batch": 65}, "batch came as 65; allowed is 1 to 64"),
        ({"data": np.full((64, 2), np.nan)}, "not finite"),
        ({"data": np.zeros((64, 2), int)}, "give floats"),
        ({"labels": np.zeros(3, int)}, "one a sample"),
        ({"net": 3}, "torch.nn.Module"),
        ({"net": nn.Linear(2, 2)}, r"cannot be called as net\(x, t\)"),
        ({"teacher": 3}, "got a int as teacher"),
        ({"data": None, "teacher": None, "method": "flow"}, "got no data"),
        ({"method": "guided", "teacher": mixture("guided")}, "without labels"),
        ({"method": "knowledge", "options": (("pairs", 0),)}, "pairs=0"),
        ({"method": "knowledge", "options": (("solver", "hoin"),)}, "solver 'hoin'"),
        ({"method": "denoise", "predicts": "foo"}, "predicts 'foo'"),
        ({"method": "denoise", "time": "foo"}, "time 'foo'"),
        ({"width": 0, "method": "flow", "teacher": None}, "width=0"),
        *[
            ({name: value}, f"{name if name != 'steps' else 'images'} came as")
            for name, value in {
                "lr": -1.0,
                "ema": 2.0,
                "seed": -1,
                "steps": -1,
                "hours": 0.0,
                "drop_label": 3.0,
            }.items()
        ],
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work(change: dict, words: str, tmp_path: Path) -> None:
    method = change.get("method", "consistency")
    given = options(method if method in METHODS else "denoise") | {"data": points()} | change
    with pytest.raises(ValueError, match=words):
        train_student(given.pop("data"), tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_a_student_teaches_only_on_its_own_times_and_a_teacher_its_own_labels(tmp_path: Path) -> None:
    labels = {"labels": np.arange(64) % 3}
    teacher = train_student(points(), tmp_path / "teacher", **options("denoise", steps=2, **labels))
    given = options("progressive", teacher=teacher, steps=2)
    student = train_student(points(), tmp_path / "student", **given)
    for method in ("knowledge", "denoise", "progressive"):
        with pytest.raises(ValueError, match="a student made for its own table of 2 network calls as teacher"):
            train_student(points(), tmp_path / "run", **options(method, teacher=student))
    with pytest.raises(ValueError, match="got the label 6 and a teacher of 3"):
        train_student(points(), tmp_path / "run", **given, labels=np.arange(64) % 7)
    with pytest.raises(ValueError, match="got no data"):
        train_student(None, tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
    folder = train_student(None, tmp_path / "operator", **options("operator", teacher=teacher, steps=2))
    assert fs.load(folder).tables  # a network of four outputs beside the teacher's of one


def test_a_run_that_diverges_names_the_step_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the loss of step"):
        train_student(points(), tmp_path, **options("denoise", lr=1e30, save_every=-1.0))
    assert all(torch.isfinite(v).all() for v in tensors(tmp_path).values())


def test_a_run_goes_on_only_as_it_began(tmp_path: Path) -> None:
    train_student(points(), tmp_path, **options("denoise"))
    for change in ({"method": "score"}, {"batch": 8}, {"seed": 1}, {"width": 9}, {"data": points() + 1}):
        given = options("denoise") | {"data": points()} | change
        with pytest.raises(ValueError, match="goes on only as it began|another network"):
            train_student(given.pop("data"), tmp_path, **given)


def test_a_run_goes_on_only_with_its_teacher_and_pairs_are_of_it(tmp_path: Path) -> None:
    """Another teacher of the same kind, and a run begun anew whose own flow is another, have pairs of their own."""
    for seed in (0, 1):
        train_student(points(), tmp_path / f"teacher-{seed}", **options("denoise", seed=seed))
    given = options("knowledge", teacher=tmp_path / "teacher-0" / "model")
    train_student(points(), tmp_path / "run", **given)
    before = load_tensors(tmp_path / "run" / "pairs-0.safetensors")["x0"]
    other = given | {"teacher": tmp_path / "teacher-1" / "model"}
    with pytest.raises(ValueError, match="teacher"):
        train_student(points(), tmp_path / "run", **other)
    train_student(points(), tmp_path / "run", **other, resume=False)
    assert not torch.equal(load_tensors(tmp_path / "run" / "pairs-0.safetensors")["x0"], before)
    ends = []
    for lr in (2e-3, 4e-3):
        train_student(points(), tmp_path / "own", **options("reflow", lr=lr), resume=False)
        ends.append(load_tensors(tmp_path / "own" / "pairs-1.safetensors")["x0"])
    assert not torch.equal(*ends)


def test_a_student_that_is_told_more_begins_as_its_teacher(tmp_path: Path) -> None:
    """The teacher's perceptron knows neither s nor w: the student's has both, and returns the same at first."""
    teacher = fs.load(train_student(points(), tmp_path / "teacher", **options("flow")), dtype=torch.float32)
    z, t = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), torch.linspace(0.1, 0.9, 5)
    for method, more in (("mean-flow", {}), ("guided", {"labels": np.arange(64) % 3})):
        if more:
            teacher = fs.load(train_student(points(), tmp_path / "labels", **options("flow", **more)))
        given = options(method, teacher=teacher, steps=1, lr=1e-30, **more)
        student = fs.load(train_student(points(), tmp_path / method, **given), dtype=torch.float32)
        told = {"w": torch.ones(5)} if more else {}
        args = (t,) if more else (t, t / 2)
        label = {"class_labels": torch.tensor([0, 1, 2, 3, 0])} if more else {}
        assert torch.equal(student.net(z, *args, **label, **told), teacher.net(z, t, **label))
        made = fs.load(train_student(points(), tmp_path / f"{method}-far", **given | {"steps": 40, "lr": 1e-2}))
        far = {"w": 4 * torch.ones(5)} if more else {}
        away = (t,) if more else (t, t / 4)
        assert not torch.equal(made.net(z, *args, **label, **told), made.net(z, *away, **label, **far))


def test_the_log_tells_of_the_gradient_the_bins_and_the_way_to_the_teacher(tmp_path: Path, capsys) -> None:
    teacher = train_student(points(), tmp_path / "teacher", **options("denoise", steps=60))
    capsys.readouterr()
    given = options("denoise", teacher=teacher, lr=1e-30, quiet=False)
    train_student(points(), tmp_path / "run", **given)
    log = capsys.readouterr().err
    assert "gradient" in log
    assert "squared error of x0 by log-SNR" in log
    words = log.splitlines()[-1].split()
    assert words[:2] == ["step", f"{STEPS}:"]
    assert float(words[words.index("map") + 1]) < 0.02  # it is the teacher, in 10 calls
    train_student(points(), tmp_path / "away", **given | {"net": MLP(2, 8, 2)})
    words = capsys.readouterr().err.splitlines()[-1].split()
    assert float(words[words.index("map") + 1]) > 0.1


def test_errors_are_told_by_log_snr() -> None:
    bins = Bins()
    bins(torch.tensor([-7.0, -7.0, 1.0]), torch.tensor([1.0, 3.0, 0.5]))
    assert bins.means() == {"..-6": 2.0, "0..2": 0.5}


def test_the_energy_of_equal_samples_is_nothing_and_of_shifted_ones_what_it_is() -> None:
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.randn(2000, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert abs(energy(x, y)) < 0.01
    assert energy(x + 1, y) == pytest.approx(0.54, abs=0.03)  # 2 E|N(1, 2)| - 4/sqrt(pi), E|N(1, 2)| = 1.399


def test_the_command_trains_points_by_a_method_and_the_face_does_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "points.npz", x=points())
    words = ["flow", str(tmp_path / "points.npz"), str(tmp_path / "flow"), "--images", "64", "--batch", "16", "--quiet"]
    assert main(["train", *words]) == 0
    out, teacher, few = str(tmp_path / "short"), str(tmp_path / "flow" / "model"), words[3:]
    options = ["--option", "pairs=16", "--option", "calls=2"]
    assert main(["train", "reflow", words[1], "--teacher", teacher, out, *few, *options]) == 0
    assert set(fs.load(tmp_path / "short" / "model").tables) == {"1"}
    few = {"batch": 16, "steps": 2, "quiet": True}
    made = fs.train(points(), tmp_path / "face", method="shortcut", options={"steps": 4}, **few)
    assert set(fs.load(made).tables) == {"1", "2", "4"}


def test_a_command_without_data_or_teacher_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "flow", str(tmp_path / "out")]) == 2
    assert "METHOD --teacher MODEL OUT" in capsys.readouterr().err
    assert main(["train", "a", "b", "c"]) == 2


def test_data_of_any_kind_trains(tmp_path: Path) -> None:
    x, labels = points().astype(np.float32), np.arange(64) % 3
    np.savez(tmp_path / "labelled.npz", x=x, y=labels)
    np.save(tmp_path / "points.npy", x)
    series = np.random.default_rng(1).normal(size=(64, 3, 2))
    items = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(labels))
    made = {name: fs.load(train_student(data, tmp_path / name, **options("flow")), dtype=torch.float32)
            for name, data in {"a": tmp_path / "labelled.npz", "b": tmp_path / "points.npy", "c": series,
                               "d": items}.items()}  # fmt: skip
    assert [model.labels for model in made.values()] == [("0", "1", "2"), (), (), ("0", "1", "2")]
    assert same(tensors(tmp_path / "a"), tensors(tmp_path / "d"))
    assert made["c"].shape == (3, 2)
    z = fs.sample(made["c"].denoiser(), made["c"].process, shape=(2, 3, 2), steps=2, progress=False)
    assert z.isfinite().all()


def test_data_of_another_range_than_the_teachers_is_refused_before_any_work(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    for data in (np.random.default_rng(0).random((64, 1, 28, 28)), np.full((64, 1, 28, 28), 255.0)):
        with pytest.raises(ValueError, match=r"a teacher of pictures in \[-1, 1\]"):
            train_student(data, tmp_path / "run", **options("progressive", teacher=fs.load(dtype=torch.float32)))
    (tmp_path / "broken.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match="not a readable npy file"):
        train_student(tmp_path / "broken.npy", tmp_path / "run", **options("flow"))
    assert not (tmp_path / "run").exists()
