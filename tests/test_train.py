"""Training runs: resumed equals uninterrupted bit for bit, refusals, stopping, export."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.files import load_tensors
from fewstep.interop.load import load
from fewstep.process.operator import apply, inverse, magnitude
from fewstep.process.predict import preconditioning
from fewstep.train import TRAINABLE, Stopped, add_quality, measure, read_images, train
from fewstep.train.loop import TrainConfig, Trainer, read_header
from fewstep.train.progress import duration

pytest.importorskip("diffusers")

TINY = {"batch": 8, "channels": (4, 4), "patch": 1, "hours": 1e6, "sheet_every": None, "quiet": True}
STEPS = 24


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "clothes.npz"
    images, labels = rng.integers(0, 256, (40, 8, 8)).astype(np.uint8), rng.integers(0, 3, 40).astype(np.uint8)
    np.savez_compressed(path, x_train=images, y_train=labels, x_test=images[:4], y_test=labels[:4])
    return path


def tensors(out: Path) -> dict[str, torch.Tensor]:
    return load_tensors(out / "checkpoint.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "whole", images=8 * STEPS, **TINY)
    script = f"""
import sys, torch
torch.set_num_threads(1)
from fewstep.train import train
train({str(data)!r}, {str(tmp_path / "killed")!r}, images={8 * STEPS}, save_every=-1.0, **{TINY!r})
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", script], env=environment)
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    deadline = time.monotonic() + 60
    while not (checkpoint.exists() and read_header(checkpoint)["step"] >= 3):
        assert time.monotonic() < deadline
        assert child.poll() is None, "the child ended before it could be killed"
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert 3 <= read_header(checkpoint)["step"] < STEPS
    folder = train(data, tmp_path / "killed", **(TINY | {"hours": None}))
    assert read_header(checkpoint)["step"] == STEPS
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "killed"))
    assert (folder / "fewstep.json").exists()
    assert not list(checkpoint.parent.glob(".*"))


def test_going_on_many_times_equals_going_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(data, tmp_path / "whole", images=8 * STEPS, **TINY)
    run = Trainer.run

    def stopped_run(self: Trainer, report, save_every=120.0):
        first = self.step

        def stop_after_five(trainer: Trainer, loss: float) -> None:
            report(trainer, loss)
            if trainer.step == first + 5:
                os.kill(os.getpid(), signal.SIGINT)

        run(self, stop_after_five, save_every)

    monkeypatch.setattr(Trainer, "run", stopped_run)
    stops = 0
    while True:
        try:
            train(data, tmp_path / "parts", images=8 * STEPS, **TINY)
            break
        except Stopped:
            stops += 1
    assert stops == 4  # after 6, 12, 18 and 24 steps: the signal comes during the sixth
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))


def test_model_folder_holds_the_averaged_weights_and_the_card(data: Path, tmp_path: Path) -> None:
    folder = train(data, tmp_path / "run", images=8 * STEPS, seed=5, **TINY)
    model = load(folder, dtype=torch.float32)
    ema = {k.removeprefix("ema."): v for k, v in tensors(tmp_path / "run").items() if k.startswith("ema.")}
    for name, value in model.net.named_parameters():
        assert torch.equal(value, ema[name].bfloat16().float())
    assert model.labels == ("0", "1", "2")
    assert model.shape == (1, 8, 8)
    card = (folder / "README.md").read_text()
    for words in ("fewstep train clothes.npz OUT --images 192", "--seed 5", "192 (24 steps of 8)", "Not measured."):
        assert words in card
    assert str(tmp_path) not in card
    add_quality(folder, [{"calls": 10, "frechet": 1.5}, {"calls": 100, "frechet": 1.25}])
    assert "| 10 | 1.5 |" in (folder / "README.md").read_text()
    assert load(folder).facts["quality"][1] == {"calls": 100, "frechet": 1.25}


def test_other_options_are_refused_and_a_larger_budget_goes_on(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "run", images=80, **TINY)
    for name, value in {"batch": 4, "lr": 0.5, "seed": 1, "channels": (8, 4), "process": "flow", "layers": 2}.items():
        with pytest.raises(ValueError, match=f"was made with {name} = .* goes on only as it began"):
            train(data, tmp_path / "run", **(TINY | {name: value}))
    other = tmp_path / "other.npz"
    np.savez(other, x=np.zeros((40, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="was made with data"):
        train(other, tmp_path / "run", **TINY)
    train(data, tmp_path / "run", images=160, **TINY)
    assert read_header(tmp_path / "run" / "checkpoint.safetensors")["step"] == 20
    train(data, tmp_path / "run", images=80, resume=False, **(TINY | {"seed": 1}))
    assert read_header(tmp_path / "run" / "checkpoint.safetensors")["step"] == 10


def test_a_checkpoint_without_setup_is_read(data: Path, tmp_path: Path) -> None:
    """Checkpoints of before the setup was saved in them go on when the network fits."""
    from fewstep.files import save_tensors

    train(data, tmp_path / "run", images=80, **TINY)
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    header, saved = read_header(checkpoint), load_tensors(checkpoint)
    del header["setup"]
    save_tensors(checkpoint, saved, {"fewstep": json.dumps(header)})
    train(data, tmp_path / "run", images=160, **TINY)
    assert read_header(checkpoint)["step"] == 20
    save_tensors(checkpoint, saved, {"fewstep": json.dumps(header)})
    with pytest.raises(ValueError, match="another network"):
        train(data, tmp_path / "run", images=160, **(TINY | {"channels": (8, 8)}))


@pytest.mark.parametrize("content", [b"", b"abc" * 100])
def test_a_broken_checkpoint_is_refused(data: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="not a whole training checkpoint"):
        train(data, tmp_path / "run", images=80, **TINY)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"images": 0}, "images came as 0"),
        ({"hours": -1.0}, "hours came as"),
        ({"batch": 41}, "1 to 40"),
        ({"lr": float("nan")}, "lr came as"),
        ({"drop_label": 2.0}, "drop_label"),
        ({"process": "heat"}, "training takes vp"),
        ({"channels": ()}, "positive whole"),
        ({"patch": 3}, "divisible by 6"),
        ({"channels": (4, 4, 4, 4, 4)}, "divisible by 16"),
    ],
)
def test_options_that_cannot_work_are_refused(data: Path, tmp_path: Path, option: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        train(data, tmp_path / "run", **(TINY | {"images": 80} | option))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("process", ["vp", "cosine", "sub-vp", "flow"])
def test_every_trainable_process_learns(tmp_path: Path, process: str) -> None:
    """One constant image: the loss falls well below that of a network that returns zero (1 or more)."""
    data = tmp_path / "grey.npz"
    np.savez(data, images=np.full((16, 8, 8), 200, np.uint8))
    losses: list[float] = []
    run = Trainer.run

    def watched(self: Trainer, report, save_every=120.0):
        run(self, lambda trainer, loss: (losses.append(loss), report(trainer, loss)), save_every)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run", watched)
        options = TINY | {"process": process, "images": 960, "lr": 2e-2, "warmup": 0}
        folder = train(data, tmp_path / "run", **options)
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])
    assert load(folder).labels == ()


def test_batches_are_a_function_of_the_step_and_labels_are_dropped(data: Path, tmp_path: Path) -> None:
    from fewstep.process import VP

    images = read_images(data)

    def trainer(seed: int) -> Trainer:
        net = torch.nn.Linear(1, 1)
        config = TrainConfig(batch=16, seed=seed, drop_label=0.5)
        return Trainer(net, VP(), images.images, images.labels, config, tmp_path / "c", lambda z, *_: z)

    a, b = trainer(0), trainer(0)
    a.batch(0)
    for x, y in zip(a.batch(3), b.batch(3), strict=True):
        assert torch.equal(x, y)  # type: ignore[arg-type]
    x0, t, labels, eps = a.batch(3)
    assert x0.shape == eps.shape == (16, 1, 8, 8)
    assert -1 <= x0.min() <= x0.max() <= 1
    assert t.dtype == torch.float64
    assert 1e-3 <= t.min() < t.max() <= 1
    assert labels is not None
    assert 0 < (labels == 0).sum() < 16
    assert labels.max() <= 3
    assert not torch.equal(eps, trainer(1).batch(3)[3])
    assert not torch.equal(eps, a.batch(4)[3])


def test_image_folders_with_and_without_labels(tmp_path: Path) -> None:
    picture = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for i, name in enumerate(["cats", "dogs"]):
        (tmp_path / "a" / name).mkdir(parents=True)
        for j in range(3):
            picture.fromarray(rng.integers(0, 256, (6, 4, 3)).astype(np.uint8)).save(tmp_path / "a" / name / f"{j}.png")
        (tmp_path / "b").mkdir(exist_ok=True)
        picture.fromarray(np.full((6, 4), 9 * i, np.uint8)).save(tmp_path / "b" / f"{name}.png")
    labelled, flat = read_images(tmp_path / "a"), read_images(tmp_path / "b")
    assert labelled.shape == (3, 6, 4)
    assert labelled.names == ("cats", "dogs")
    assert labelled.labels is not None
    assert labelled.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert flat.images[:, 0, 0].tolist() == [0, 9]
    assert flat.labels is None
    assert flat.shape == (1, 6, 4)
    picture.fromarray(np.zeros((5, 4), np.uint8)).save(tmp_path / "b" / "z.png")
    with pytest.raises(ValueError, match="one size"):
        read_images(tmp_path / "b")
    (tmp_path / "b" / "z.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="not a readable picture"):
        read_images(tmp_path / "b")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((4, 8), np.uint8)}, "images are a uint8 array"),
        ({"x": np.zeros((4, 8, 8))}, "a scale that cannot be told"),
        ({"x": np.zeros((4, 8, 8, 2), np.uint8)}, "C of 1, 3 or 4"),
        ({"x": np.zeros((4, 8, 8), np.uint8), "y": np.array([0, 1, -1, 0])}, "labels count from 0"),
        ({"x": np.array([None])}, "not a readable npz"),
    ],
)
def test_data_that_cannot_be_read_is_refused(tmp_path: Path, arrays: dict, words: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        read_images(tmp_path / "d.npz")


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no data"):
        read_images(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match="not a readable npz"):
        read_images(tmp_path / "text.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        read_images(tmp_path / "empty")


def test_an_output_folder_that_cannot_be_written_is_found_before_the_work(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write"):
        train(data, tmp_path / "file" / "run", images=80, **TINY)


def test_sheets_are_made_while_it_runs(data: Path, tmp_path: Path) -> None:
    picture = pytest.importorskip("PIL.Image")
    train(data, tmp_path / "run", images=40, **(TINY | {"sheet_every": 1e-9}))
    with picture.open(tmp_path / "run" / "sheet.png") as sheet:
        assert sheet.size[0] >= 8 * 8
        assert sheet.size[1] >= 8 * 8


def test_measured_quality_goes_into_the_card(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.integers(0, 256, (16, 28, 28)).astype(np.uint8), y=np.arange(16) % 10)
    folder = train(tmp_path / "d.npz", tmp_path / "run", images=16, **(TINY | {"patch": 2}))
    rows = measure(folder, runs=(("ddim", 2), ("ddpm", 3)), samples=24, batch=16)
    assert [row["calls"] for row in rows[:2]] == [2, 3]
    assert rows[0]["Frechet"] > 2 * rows[-1]["Frechet"]  # an untrained network against real images
    assert "| ddpm | 3 |" in (folder / "README.md").read_text()
    assert load(folder).facts["quality"] == rows


@pytest.mark.parametrize("process", ["vp", "blurring", "cld"])
def test_the_models_cards_say_what_the_published_table_measured(process: str) -> None:
    from fewstep.train.card import card

    root = Path(__file__).parent.parent
    record = json.loads((root / "benchmarks" / "results" / "published_table_xeon_2026-11-21.json").read_text())
    folder = root / "models" / f"fashion-{process}"
    about = json.loads((folder / "fewstep.json").read_text())
    measured = [(cell["solver"], round(cell["calls"]), cell["frechet"], record["samples"], record["date"])
                for cell in record["cells"] if cell["process"] == process]  # fmt: skip
    columns = ("solver", "calls", "Frechet", "samples", "date")
    *said, floor = [tuple(row[column] for column in columns) for row in about["quality"]]
    assert said == measured
    assert floor[2] == record["floor"]
    assert (folder / "README.md").read_text() == card(json.loads((folder / "config.json").read_text()), about)


def test_plain_lines_where_no_terminal_is(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(data, tmp_path / "run", images=80, **(TINY | {"quiet": False}))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("step 1 ")
    assert "loss" in lines[0]
    assert "left" in lines[0]
    assert "the model is in" in lines[-1]


def test_durations_are_told_as_a_person_would() -> None:
    assert [duration(s) for s in (4.2, 720, 11_100)] == ["4 s", "12 min", "3 h 05 min"]


@pytest.mark.parametrize("process", ["vp", "flow", "blurring", "cld", "edm", "scaled-linear"])
def test_every_kind_of_process_trains_and_its_model_samples(data: Path, tmp_path: Path, process: str) -> None:
    """The network sees pixels of one channel whatever the state is, and the folder tells its process."""
    model = load(train(data, tmp_path / process, process=process, images=16, **TINY))
    assert model.net.config["in_channels"] == 1
    z = fs.sample(model.denoiser([0, 1]), model.process, steps=3, shape=(2, *model.shape), seed=0)
    assert model.process.to_data(z).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("process", "predicts"),
    [(name, learns) for name, (_, learns) in TRAINABLE.items()]
    + [
        ("vp", "noise"),
        ("vp", "data"),
        ("vp", "flow"),
        ("vp", "edm"),
        ("flow", "noise"),
        ("cld", "flow"),
        ("blurring", "noise"),
    ],
)
@pytest.mark.parametrize("law", ["normal", "uniform"])
def test_the_loss_is_zero_for_the_network_that_knows(
    data: Path, tmp_path: Path, process: str, predicts: str, law: str
) -> None:
    """The target is the F of x0 = p z + q F: a network that returns it has no loss, whatever it is called with."""
    images = read_images(data)
    noising = TRAINABLE[process][0]((8, 8))
    if process == "flow":
        noising = replace(noising, t_max=0.999)  # at t = 1 itself a prediction of noise has no data in it
    config = TrainConfig(images=16, batch=8, law=law)
    trainer = Trainer(torch.nn.Linear(1, 1), noising, images.images, images.labels, config, tmp_path / "none",
                      lambda x, t, classes: target, predicts=predicts)  # fmt: skip
    x0, t, _, eps = trainer.batch(0)
    denoiser = fs.wrap(lambda x, times: target.double(), noising, predicts, sigma_data=0.5)
    _, p, q = preconditioning(predicts, noising, t)
    z = noising.diffuse(x0.double(), t, eps.double())
    target = apply(inverse(q), noising.coordinates(x0.double()) - apply(p, z)).float()
    off = (denoiser(z, t) - x0).abs().max() / abs(magnitude(q))  # the target is rounded to float32
    assert off < 1e-5
    assert float(trainer.loss(0)) < 1e-8


def test_times_follow_their_law(data: Path, tmp_path: Path) -> None:
    """Uniform in time: the mean of (t - 1/2)^2 is 1/12. Normal: mean and deviation of the log-SNR are the config's."""
    images = read_images(data)
    every = torch.arange(4096, dtype=torch.float64).add(0.5) / 4096
    for law in ("uniform", "normal"):
        config = TrainConfig(images=16, batch=8, law=law, log_snr_mean=0.2, log_snr_std=0.8)
        trainer = Trainer(torch.nn.Linear(1, 1), fs.VP(), images.images, None, config, tmp_path / "none", lambda *a: a)
        t = trainer._times(every)
        if law == "uniform":
            assert ((t - 0.5) ** 2).mean().item() == pytest.approx(1 / 12, rel=3e-3)
        else:
            lam = fs.VP().log_snr(t)
            assert (lam.mean().item(), lam.std().item()) == pytest.approx((0.2, 0.8), rel=5e-3)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"predicts": "score"}, "predicts"),
        ({"process": "edm", "predicts": "v"}, "edm"),
        ({"process": "flow", "predicts": "noise"}, "predicts"),
        ({"process": "cld", "predicts": "edm"}, "predicts"),
        ({"process": "cld", "predicts": "noise"}, "predicts"),
        ({"law": "cosine"}, "law"),
    ],
)
def test_what_cannot_be_learned_is_refused(data: Path, tmp_path: Path, options: dict[str, str], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        train(data, tmp_path / "out", images=16, **options, **TINY)
