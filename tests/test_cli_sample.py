"""`fewstep sample` on a tiny model: what it writes, what it counts, and each thing that can go wrong."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.cli import main
from oracle import DISTINCT

pytest.importorskip("diffusers")
pytest.importorskip("PIL")

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return made(tmp_path_factory.mktemp("model") / "tiny")


def made(folder, channels=1):
    """A model folder with a network of a few thousand parameters, random weights and three classes."""
    from fewstep.model import build_network, save_model

    config = {
        "_class_name": "UNet2DModel",
        "sample_size": 8,
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": 1,
        "block_out_channels": [8],
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "norm_num_groups": 4,
        "num_class_embeds": 4,
        "add_attention": False,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_network(config)
    shape, labels = (channels, 8, 8), ("coat", "Bag", "boot")
    return save_model(folder, net, process=fs.VP(), predicts="v", shape=shape, labels=labels, dtype=torch.float32)


def sample(model, out, *argv: str) -> int:
    return main(["sample", str(model), "--out", str(out), "--num", "5", "--steps", "3", *argv])


def refused(capsys, *words: str) -> None:
    """Asserts that the last command said one sentence with these words and nothing else."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fewstep: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_it_writes_sheet_samples_and_record(tiny, tmp_path, capsys):
    assert sample(tiny, tmp_path / "out", "--label", "bag,2") == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["run.json", "samples.npz", "sheet.png"]
    data = np.load(tmp_path / "out" / "samples.npz")
    assert data["samples"].shape == (5, 1, 8, 8)
    assert data["samples"].dtype == np.float32
    assert data["labels"].tolist() == [1, 2, 1, 2, 1]
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["network_calls"] == 3
    assert record["seed"] == 0
    assert record["labels"] == [1, 2, 1, 2, 1]
    assert record["seconds"] > 0
    assert record["model"]["sha256"] == hashlib.sha256((tiny / WEIGHTS).read_bytes()).hexdigest()
    assert record["versions"]["torch"] == torch.__version__
    assert record["versions"]["noise_stream"] == fs.noise.STREAM
    assert record["process"]["name"] == "vp"
    assert len(record["times"]) >= 3
    assert record["solver"]["class"]
    assert "3 network calls" in capsys.readouterr().out


@pytest.mark.parametrize(("channels", "width", "mode"), [(2, 16, "L"), (3, 8, "RGB"), (4, 32, "L"), (5, 40, "L")])
def test_samples_of_any_number_of_channels_are_written(tmp_path, channels, width, mode):
    picture = pytest.importorskip("PIL.Image")
    assert sample(made(tmp_path / "model", channels), tmp_path / "out", "--num", "1") == 0
    assert np.load(tmp_path / "out" / "samples.npz")["samples"].shape == (1, channels, 8, 8)
    with picture.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.mode == mode
        assert sheet.size == (640 // (width + 4) * (width + 4), 640 // (width + 4) * 12)


def test_samples_do_not_depend_on_the_batch(tiny, tmp_path):
    for batch in ("1", "3", "64"):
        assert sample(tiny, tmp_path / batch, "--batch", batch, "--solver", "ddpm") == 0
    one, three, all_at_once = (np.load(tmp_path / b / "samples.npz")["samples"] for b in ("1", "3", "64"))
    np.testing.assert_allclose(three, one, atol=1e-4)
    np.testing.assert_allclose(all_at_once, one, atol=1e-4)


def test_the_samples_are_the_library_s(tiny, tmp_path):
    assert sample(tiny, tmp_path, "--solver", "ddim", "--seed", "7", "--format", "safetensors") == 0
    from fewstep.files import load_tensors

    model = fs.load(tiny)
    z = fs.sample(model.denoiser([0, 1, 2, 0, 1]), model.process, solver="ddim", steps=3, shape=(5, 1, 8, 8), seed=7)
    torch.testing.assert_close(load_tensors(tmp_path / "samples.safetensors")["samples"], z)


@pytest.mark.parametrize(
    ("options", "end"),
    [((), 0.0), (("--grid", "power"), 0.0), (("--solver", "dpmpp-2m"), 0.0), (("--final", "state"), 1e-3),
     (("--solver", "euler-maruyama"), 1e-3)],
)  # fmt: skip
def test_the_last_step_goes_to_sigma_zero_where_it_can(tiny, tmp_path, options, end):
    assert sample(tiny, tmp_path, *options) == 0
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["times"][-1], record["final"]) == (end, "state" if end else "zero")
    assert record["network_calls"] == 3


@pytest.mark.parametrize("options", [{}, {"solver": "ddpm"}, {"grid": "karras"}, {"final": "state"}])
def test_one_seed_is_one_picture_here_and_in_python(tiny, tmp_path, options):
    assert sample(tiny, tmp_path, *(word for k, v in options.items() for word in (f"--{k}", v))) == 0
    model = fs.load(tiny)
    x = fs.sample(model.denoiser([0, 1, 2, 0, 1]), model.process, steps=3, shape=(5, 1, 8, 8), **options)
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npz")["samples"], x.numpy())


def test_a_solver_that_cannot_end_at_sigma_zero_is_refused(tiny, tmp_path, capsys):
    assert sample(tiny, tmp_path, "--final", "zero", "--solver", "ltsp") == 2
    assert "got --final zero for ltsp, which takes no step to sigma = 0 here" in capsys.readouterr().err


def test_denoising_at_the_end_is_one_of_the_calls(tiny, tmp_path):
    assert sample(tiny, tmp_path, "--final", "denoise", "--solver", "ddim") == 0
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["network_calls"] == 3
    assert len(record["times"]) == 3
    model = fs.load(tiny)
    x = fs.sample(
        model.denoiser([0, 1, 2, 0, 1]), model.process, solver="ddim", steps=3, shape=(5, 1, 8, 8), final="denoise"
    )
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npz")["samples"], x.numpy())


def test_a_dry_run_writes_nothing(tiny, tmp_path, capsys):
    assert sample(tiny, tmp_path / "out", "--dry-run", "--solver", "ddim", "--option", "eta=0.5") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["solver"]["eta"] == 0.5
    assert len(record["times"]) >= 3
    assert not (tmp_path / "out").exists()


def test_a_table_file_runs_like_its_solver(tiny, tmp_path):
    path = tmp_path / "table.safetensors"
    fs.tabulate("dpmpp-2m", fs.VP(), steps=3).save(path)
    assert main(["sample", str(tiny), "--num", "5", "--out", str(tmp_path / "file"), "--solver", str(path)]) == 0
    assert sample(tiny, tmp_path / "name", "--solver", "dpmpp-2m") == 0
    one, two = (np.load(tmp_path / name / "samples.npz")["samples"] for name in ("file", "name"))
    np.testing.assert_array_equal(one, two)
    record, other = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("file", "name"))
    assert record["solver"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["solver"] == {"file": str(path), "sha256": record["solver"]["sha256"], **other["solver"]}
    assert record["times"] == other["times"]
    assert record["network_calls"] == 3


def test_a_table_file_that_ends_at_sigma_zero_is_recorded_so(tiny, tmp_path, capsys):
    path = tmp_path / "table.safetensors"
    fs.tabulate("dpmpp-2m", fs.VP(), grid=fs.to_zero(fs.GRIDS["uniform"], append=False), steps=3).save(path)
    argv = ["sample", str(tiny), "--num", "2", "--out", str(tmp_path), "--solver", str(path)]
    for final in ([], ["--final", "zero"]):
        assert main([*argv, *final]) == 0
        record = json.loads((tmp_path / "run.json").read_text())
        assert (record["final"], record["network_calls"]) == ("zero", 3)
    for final in ("state", "denoise"):
        assert main([*argv, "--final", final]) == 2
        assert "which ends at sigma = 0: leave --final out" in capsys.readouterr().err


def test_a_driver_takes_the_steps_it_needs(tiny, tmp_path, capsys):
    argv = ["sample", str(tiny), "--num", "3", "--solver", "rk45", "--option", "rtol=0.01", "--option", "atol=0.01"]
    assert main([*argv, "--batch", "2", "--out", str(tmp_path)]) == 0
    assert "network calls on average" in capsys.readouterr().out
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["solver"]["class"], record["times"], record["steps"]) == ("RK45", None, None)
    model = fs.load(tiny)
    solver, parts = (
        fs.RK45(rtol=0.01, atol=0.01),
        ([0, 1], [2]),
    )  # a network rounds otherwise in a batch of another size
    x = [fs.sample(model.denoiser(part), model.process, solver=solver, shape=(len(part), 1, 8, 8), first=part[0])
         for part in parts]  # fmt: skip
    assert np.array_equal(np.load(tmp_path / "samples.npz")["samples"], torch.cat(x).numpy())
    assert main([*argv, "--steps", "3", "--out", str(tmp_path / "few")]) == 1
    refused(capsys, "too many calls")


def test_a_table_file_of_another_process_is_refused(tiny, tmp_path, capsys):
    path = tmp_path / "table.safetensors"
    fs.tabulate("ddim", fs.VE(), steps=3).save(path)
    assert main(["sample", str(tiny), "--out", str(tmp_path / "out"), "--solver", str(path)]) == 1
    refused(capsys, "VE", "VP")
    assert main(["sample", str(tiny), "--out", str(tmp_path / "out"), "--solver", str(path), "--steps", "3"]) == 2
    refused(capsys, "leave --steps out")


def test_the_record_is_json_for_every_solver(tiny, capsys, monkeypatch):
    def refuse(word):
        raise AssertionError(word)

    model = fs.load(tiny)
    monkeypatch.setattr("fewstep.interop.load.load", lambda *_, **__: model)
    for name in (name for name in DISTINCT if "scalar" in fs.TABLES[name]().kinds):
        argv = ["sample", str(tiny), "--solver", name, "--steps", "12", "--dry-run"]
        assert main(argv) == 0, name
        record = json.loads(capsys.readouterr().out, parse_constant=refuse)
        assert record["model"]["sha256"] == model.weights


def test_the_network_s_numbers_are_made_once_a_row(tiny, tmp_path, monkeypatch):
    from fewstep.denoiser.network import Wrapped

    made, at = [], Wrapped.at
    monkeypatch.setattr(Wrapped, "at", lambda self, t, output="x0": (made.append(t), at(self, t, output))[1])
    monkeypatch.setattr(Wrapped, "__call__", lambda *_: pytest.fail("called without what was made ready"))
    assert sample(tiny, tmp_path) == 0
    assert len(made) == 3


@pytest.mark.parametrize("options", [("--final", "denoise"), ("--solver", "predictor-corrector", "--steps", "8")])
def test_one_bar_goes_through_all_batches(tiny, tmp_path, monkeypatch, options):
    from fewstep.terminal import Bar

    told = []
    monkeypatch.setattr(Bar, "to", lambda self, done: told.append((self, done / self.total)))
    assert sample(tiny, tmp_path, "--batch", "2", *options) == 0
    bars, shares = zip(*told, strict=True)
    assert len(set(bars)) == 1
    assert {0.4, 0.8, 1.0} < {round(share, 9) for share in shares}  # of 5 samples
    assert sum(0.4 < share < 0.8 for share in shares) >= 2


# ---- what can go wrong


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--solver", "dimm"], "did you mean ddim"),
        (["--grid", "karas"], "did you mean karras"),
        (["--label", "bagg"], "did you mean bag"),
        (["--label", "3"], "coat, bag, boot, 0, 1, 2"),
        (["--option", "etta=1", "--solver", "ddim"], "did you mean eta"),
        (["--option", "eta=big", "--solver", "ddim"], "give a number"),
        (["--steps", "1", "--final", "denoise"], "at least 2"),
        (["--device", "nowhere"], "'nowhere'"),
        (["--device", "meta"], "'meta'"),
        (["--quality", "--num", "3"], "at least 4"),
        (["--quality"], "28"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_argument_is_one_sentence(tiny, tmp_path, capsys, argv, words):
    assert sample(tiny, tmp_path / "out", *argv) != 0
    refused(capsys, words)
    assert not (tmp_path / "out").exists()


def test_an_impossible_number_of_calls_names_the_nearest(tiny, tmp_path, capsys):
    assert main(["sample", str(tiny), "--out", str(tmp_path / "out"), "--solver", "heun", "--nfe", "6"]) == 1
    refused(capsys, "6", "5 or 7")


@pytest.fixture
def broken(tiny, tmp_path):
    """A copy of the model folder to break."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for path in tiny.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("name", ["config.json", "fewstep.json", WEIGHTS])
def test_a_model_folder_that_lacks_a_file_is_refused(broken, tmp_path, capsys, name):
    (broken / name).unlink()
    assert sample(broken, tmp_path / "out") == 1
    refused(capsys, name, "missing")


@pytest.mark.parametrize("name", ["config.json", "fewstep.json", WEIGHTS])
def test_a_truncated_file_of_a_model_is_refused(broken, tmp_path, capsys, name):
    content = (broken / name).read_bytes()
    (broken / name).write_bytes(content[: len(content) // 2])
    assert sample(broken, tmp_path / "out") == 1
    refused(capsys, name)


def test_a_pickle_is_never_opened(broken, tmp_path, capsys):
    (broken / WEIGHTS).unlink()
    (broken / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch touched'\ntR.")
    assert sample(broken, tmp_path / "out") == 1
    refused(capsys, "pickle", "safetensors")


def test_weights_that_are_nan_are_named_by_row_and_time(broken, tmp_path, capsys):
    from fewstep.files import load_tensors, save_tensors, sha256

    tensors = load_tensors(broken / WEIGHTS)
    name = next(name for name in tensors if name.startswith("conv_out"))
    save_tensors(broken / WEIGHTS, tensors | {name: torch.full_like(tensors[name], torch.nan)})
    about = json.loads((broken / "fewstep.json").read_text())
    about["weights_sha256"] = sha256(broken / WEIGHTS)
    (broken / "fewstep.json").write_text(json.dumps(about))
    assert sample(broken, tmp_path / "out") == 1
    refused(capsys, "row", "t = ")
    assert not (tmp_path / "out").exists()


def test_no_such_model_is_one_sentence(tmp_path, capsys):
    assert sample(tmp_path / "none", tmp_path / "out") == 1
    refused(capsys, "no model folder")


def test_an_unwritable_folder_is_refused_before_sampling(tiny, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr("fewstep.model.draw.draw", lambda *_, **__: pytest.fail("sampled before looking"))
    assert sample(tiny, tmp_path / "file" / "out") == 1
    refused(capsys, "cannot write")


def test_a_full_disk_leaves_nothing(tiny, tmp_path, capsys, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert sample(tiny, tmp_path / "out") == 1
    refused(capsys, "No space left on device")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_a_file_that_cannot_grow_leaves_nothing(tiny, tmp_path, capsys, form):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        code = sample(tiny, tmp_path / "out", "--steps", "1", "--format", form)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    refused(capsys, "File too large")
    assert not (tmp_path / "out").exists()


def test_the_folder_of_a_pipeline_is_sampled_and_its_prediction_looked_at(tmp_path):
    """An untrained network returns next to nothing, which looks like v; its scheduler says noise."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    net = UNet2DModel(sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, **blocks)
    DDPMPipeline(net, DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    with pytest.warns(UserWarning, match="predicts='noise', whose output looks perhaps like v"):
        assert sample(tmp_path / "pipe", tmp_path / "out") == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["model"]["sha256"] == hashlib.sha256((tmp_path / "pipe" / "unet" / WEIGHTS).read_bytes()).hexdigest()
    assert (
        main(["bench", str(tmp_path / "pipe"), "--features", "pixels", "--dry-run", "--out", str(tmp_path / "o")]) == 0
    )


class Holed(torch.nn.Module):
    """Not a number for the samples of some classes, whatever stands beside them."""

    def __init__(self, holes):
        super().__init__()
        self.holes, self.size = holes, torch.nn.Parameter(torch.tensor(0.1), requires_grad=False)

    def forward(self, x, t, class_labels):
        bad = torch.isin(class_labels, torch.tensor(self.holes))
        return SimpleNamespace(sample=torch.where(bad[:, None, None, None], torch.nan, self.size * x))


@pytest.mark.parametrize("batch", [1, 2, 64])
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--final", "denoise"),
        ("--solver", "ddpm"),
        ("--solver", "rk45", "--option", "rtol=0.1", "--option", "atol=0.1"),
    ],
)
def test_a_sample_that_is_not_finite_takes_no_other_with_it(tmp_path, capsys, monkeypatch, batch, options):
    labels = ("coat", "Bag", "boot")

    def run(name, holes, num):
        model = fs.Model(
            net=Holed(holes), process=fs.VP(), predicts="noise", time="index", shape=(1, 8, 8), labels=labels
        )
        monkeypatch.setattr("fewstep.interop.load.load", lambda *_, **__: model)
        out, steps = tmp_path / name, 500 if "rk45" in options else 3
        code = main(
            ["sample", "--out", str(out), "--num", str(num), "--batch", str(batch), "--steps", str(steps), *options]
        )
        return code, out

    code, whole = run("whole", [], 7)
    assert code == 0
    assert "set_aside" not in json.loads((whole / "run.json").read_text())
    capsys.readouterr()
    code, out = run("out", [2], 7)
    told = capsys.readouterr()
    assert code == 1
    assert told.out.startswith("5 samples, ")
    assert told.err == (
        "fewstep: got 2 of 7 samples that are not whole (samples 1, 4): the others are written, and run.json says "
        "why of each; look at the network, or give more steps\n"
    )
    record = json.loads((out / "run.json").read_text())
    assert [entry["sample"] for entry in record["set_aside"]] == [1, 4]
    assert all("not finite" in entry["why"] for entry in record["set_aside"])
    left, wanted = np.load(out / "samples.npz"), np.load(whole / "samples.npz")
    keep = [0, 2, 3, 5, 6]
    np.testing.assert_allclose(left["samples"], wanted["samples"][keep], rtol=0, atol=1e-6)
    assert left["labels"].tolist() == wanted["labels"][keep].tolist()
    code, none = run("none", [1, 2, 3], 4)
    assert code == 1
    assert "not finite" in capsys.readouterr().err
    assert not none.exists() or not any(none.iterdir())
