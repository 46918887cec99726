"""Model folders: a round trip, the door of the network, and everything that is refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from fewstep.files import WEIGHTS, load_tensors, save_tensors
from fewstep.interop.load import load
from fewstep.model import build_network, call_network, save_model
from fewstep.process import PROCESSES, VP, Cosine
from fewstep.process.config import process_from_json, process_to_json

pytest.importorskip("diffusers")

UNET = {
    "_class_name": "UNet2DModel",
    "sample_size": 4,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": [8, 8],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "num_class_embeds": 4,
    "add_attention": False,
}
LABELS = ("shirt", "shoe", "bag")


@pytest.fixture
def net() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_network(UNET).eval()


@pytest.fixture
def folder(tmp_path: Path, net: torch.nn.Module) -> Path:
    return save_model(
        tmp_path / "m",
        net,
        process=VP(),
        predicts="v",
        shape=(1, 8, 8),
        patch=2,
        labels=LABELS,
        facts={"training": {"seed": 3}},
        card="# card\n",
        dtype=torch.float32,
    )


def test_folder_comes_back(folder: Path, net: torch.nn.Module) -> None:
    model = load(folder, dtype=torch.float32)
    assert model.process == VP()
    assert (model.shape, model.patch, model.labels, model.predicts) == ((1, 8, 8), 2, LABELS, "v")
    assert model.facts["training"] == {"seed": 3}
    for name, value in net.state_dict().items():
        assert torch.equal(model.net.state_dict()[name], value)
    assert sorted(p.name for p in folder.iterdir()) == sorted(["README.md", "config.json", WEIGHTS, "fewstep.json"])
    assert sorted(p.name for p in folder.parent.iterdir()) == ["m"]


def test_weights_are_stored_as_bfloat16_by_default(tmp_path: Path, net: torch.nn.Module) -> None:
    save_model(tmp_path / "b", net, process=Cosine(), predicts="v", shape=(1, 8, 8), patch=2, labels=LABELS)
    size = (tmp_path / "b" / WEIGHTS).stat().st_size
    assert size < 2.5 * sum(p.numel() for p in net.parameters()) + 20_000
    assert load(tmp_path / "b").process == Cosine()


def test_a_second_save_replaces_the_folder_and_spares_other_folders(folder: Path, net: torch.nn.Module) -> None:
    save_model(folder, net, process=Cosine(), predicts="v", shape=(1, 8, 8), patch=2, labels=LABELS)
    assert load(folder).process == Cosine()
    other = folder.parent / "photos"
    other.mkdir()
    (other / "cat.txt").write_text("cat")
    with pytest.raises(ValueError, match="other files"):
        save_model(other, net, process=VP(), predicts="v", shape=(1, 8, 8))
    assert (other / "cat.txt").exists()


def test_denoiser_is_the_network_behind_its_door(folder: Path, net: torch.nn.Module) -> None:
    """x0 = alpha z - sigma v for a variance-preserving process, v from the network at index 1000 t - 1."""
    model = load(folder, dtype=torch.float32)
    z, t = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)), 0.4
    labels = torch.tensor([2, 0, 1])
    with torch.inference_mode():
        folded = torch.nn.functional.pixel_unshuffle(z, 2)
        v = net(folded, torch.full((3,), 1000 * t - 1), class_labels=labels + 1).sample
        v = torch.nn.functional.pixel_shuffle(v, 2)
        expected = model.process.alpha(t) * z - model.process.sigma(t) * v
        found = model.denoiser(labels)(z, t)
        per_sample = model.denoiser(labels)(z, torch.full((3,), t, dtype=torch.float64))
        one = model.denoiser("bag")(z[:1], t)
        none = model.denoiser()(z, t)
        null = call_network(net, z, torch.tensor(1000 * t - 1), torch.zeros(3, dtype=torch.long), 2, model.process)
    assert found.shape == z.shape
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(per_sample, expected, atol=1e-5)
    assert torch.allclose(one, expected[:1], atol=1e-5)
    assert torch.allclose(none, model.process.alpha(t) * z - model.process.sigma(t) * null, atol=1e-5)


def test_bfloat16_network_keeps_a_float32_state(folder: Path) -> None:
    z = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wide = load(folder, dtype=torch.float32).denoiser(1)(z, 0.5)
        narrow = load(folder, dtype=torch.bfloat16).denoiser(1)(z, 0.5)
    assert narrow.dtype == torch.float32
    assert 0 < (narrow - wide).abs().max() < 0.1


@pytest.mark.parametrize("label", [3, -1, "hat", 1.5, True, torch.tensor([0, 7]), torch.zeros(0, dtype=torch.long),
                                   ["shoe", "hat"], [0, None], {}, object()])  # fmt: skip
def test_wrong_labels_are_refused(folder: Path, label: object) -> None:
    with pytest.raises(ValueError, match="labels are 0 shirt, 1 shoe, 2 bag"):
        load(folder).denoiser(label)  # type: ignore[arg-type]


def test_names_may_be_given_one_a_sample(folder: Path) -> None:
    z, model = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)), load(folder)
    with torch.inference_mode():
        assert torch.equal(model.denoiser(["bag", 0, "shoe"])(z, 0.5), model.denoiser([2, 0, 1])(z, 0.5))


def test_labels_must_fit_the_batch(folder: Path) -> None:
    with pytest.raises(ValueError, match="3 samples came for 2 labels"):
        load(folder).denoiser([0, 1])(torch.zeros(3, 1, 8, 8), 0.5)


def damage(folder: Path, kind: str) -> None:
    weights = folder / WEIGHTS
    about = json.loads((folder / "fewstep.json").read_text())
    if kind == "missing weights":
        weights.unlink()
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "empty":
        weights.write_bytes(b"")
    elif kind == "text":
        weights.write_bytes(b"not found" * 100)
    elif kind == "flipped bit":
        data = bytearray(weights.read_bytes())
        data[-5] ^= 1
        weights.write_bytes(bytes(data))
    elif kind == "pickle in disguise":
        weights.write_bytes(pickle.dumps({"a": 1}))
    elif kind.startswith("."):
        weights.unlink()
        (folder / f"diffusion_pytorch_model{kind}").write_bytes(pickle.dumps(Bomb()))
    elif kind == "missing config":
        (folder / "config.json").unlink()
    elif kind == "missing fewstep.json":
        (folder / "fewstep.json").unlink()
    elif kind == "broken config":
        (folder / "config.json").write_text("{")
    elif kind == "list config":
        (folder / "config.json").write_text("[]")
    elif kind == "other class":
        (folder / "config.json").write_text(json.dumps(UNET | {"_class_name": "os.system"}))
    elif kind == "other size":
        (folder / "config.json").write_text(json.dumps(UNET | {"block_out_channels": [8, 16]}))
    elif kind == "unknown argument":
        (folder / "config.json").write_text(json.dumps(UNET | {"colour": 1}))
    elif kind == "bad argument":
        (folder / "config.json").write_text(json.dumps(UNET | {"down_block_types": ["Nothing", "DownBlock2D"]}))
    elif kind.startswith("tensor"):
        tensors = load_tensors(weights)
        if kind == "tensor missing":
            tensors.pop("conv_in.bias")
        else:
            tensors["more" if kind == "tensor more" else "conv_in.bias"] = torch.zeros(8, dtype=torch.int64)
        save_tensors(weights, tensors)
    elif kind == "a FIFO":
        weights.unlink()
        os.mkfifo(weights)
    elif kind.startswith("network"):
        new = {
            "network null": {"layers_per_block": None},
            "network word": {"norm_eps": "x"},
            "network flag": {"add_attention": "no"},
            "network huge": {"block_out_channels": [10**6, 10**6]},
            "network without end": {"layers_per_block": 10**9},
            "network overflow": {"block_out_channels": [10**15, 10**15]},
        }
        (folder / "config.json").write_text(json.dumps(UNET | new[kind]))
    else:
        name, value = kind.split("=")
        (folder / "fewstep.json").write_text(json.dumps(about | {name: json.loads(value)}))


class Bomb:
    """A pickle that would leave a file behind when opened."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing weights", "is missing"),
        ("truncated", "truncated or corrupt"),
        ("empty", "truncated or corrupt"),
        ("text", "truncated or corrupt"),
        ("flipped bit", "SHA-256"),
        ("pickle in disguise", "truncated or corrupt"),
        (".bin", "never opened"),
        (".pt", "never opened"),
        (".ckpt", "never opened"),
        ("missing config", "config.json is missing"),
        ("missing fewstep.json", "fewstep.json is missing"),
        ("broken config", "JSON"),
        ("list config", "JSON object"),
        ("other class", "allowed are UNet2DModel"),
        ("other size", "belong together"),
        ("unknown argument", "does not describe"),
        ("bad argument", "does not describe"),
        ('process={"name": "vpp"}', "known are vp"),
        ('process={"name": "vp", "beta": 1}', "allowed are"),
        ('process={"name": "discrete", "alphas_cumprod": [0.5, 0.6]}', "refuses"),
        ("process=null", "known are vp"),
        ('predicts="nothing"', "it must be one of data"),
        ("shape=[1, 8]", "three axes"),
        ("patch=0", "positive"),
        ("labels=[1, 2]", "names"),
        ("format=2", "update fewstep"),
        ("format=true", "update fewstep"),
        ("predicts=null", "predicts None; it must be one of data"),
        ("predicts=[1]", "it must be one of data"),
        ("time={}", "it must be one of"),
        ("shape=null", "positive whole numbers"),
        ("shape=[1, 8, 1000000]", "at most 4096"),
        ("shape=[1, 8, 7]", r"are 4 channels for the network|shape \(1, 8, 7\) and patch 2"),
        ("shape=[3, 8, 8]", "are 12 channels for the network, whose config.json says in_channels=4"),
        ("patch=null", "patch None"),
        ("patch=4", "are 16 channels"),
        ("patch=1000000", "at most 4096"),
        ("labels=null", "a list of names"),
        ('labels=["a", "b", "c", "d"]', "has 4 labels; the network of config.json knows 3 classes"),
        ("labels=[]", "has 0 labels"),
        ("weights_sha256=null", "a SHA-256"),
        ("weights_sha256=7", "a SHA-256"),
        ("training=3", "training 3; it must be an object"),
        ("quality=[1]", "a list of objects"),
        ('process={"name": "vp", "beta_min": "x"}', "values it refuses"),
        ('process={"name": "discrete", "alphas_cumprod": [{}, 1]}', "values it refuses"),
        ('process=["vp"]', "names the process"),
        ("tensor missing", "has conv_in.bias as missing"),
        ("tensor more", "has more as"),
        ("tensor of integers", "conv_in.bias in I64"),
        ("a FIFO", "no regular file"),
        ("network null", "gives layers_per_block as None; UNet2DModel takes a whole number"),
        ("network word", "gives norm_eps as 'x'; UNet2DModel takes a number"),
        ("network flag", "gives add_attention as 'no'; UNet2DModel takes true or false"),
        ("network huge", "config.json asks for"),
        ("network without end", "more parameters than there are weights"),
        ("network overflow", "does not describe"),
    ],
)
def test_folders_that_are_not_whole_are_refused_in_one_sentence(
    folder: Path, kind: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    damage(folder, kind)
    with pytest.raises(ValueError, match=words) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


def test_what_a_folder_does_not_say_is_said(folder: Path) -> None:
    """An unknown key of fewstep.json, and weights without a checksum."""
    about = json.loads((folder / "fewstep.json").read_text())
    (folder / "fewstep.json").write_text(json.dumps(about | {"colour": "red"}))
    with pytest.warns(UserWarning, match="has 'colour', which this version does not know"):
        load(folder)
    about.pop("weights_sha256")
    (folder / "fewstep.json").write_text(json.dumps(about))
    with pytest.warns(UserWarning, match="no weights_sha256: its weights are read unchecked"):
        load(folder)


def test_a_folder_by_any_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder.parent)
    want = load(folder).weights
    for name in (f"{folder}/", "~/m", "m", "./m/"):
        assert load(name).weights == want
    with pytest.raises(ValueError, match="fewstep.json is no folder"):
        load(folder / "fewstep.json")


def test_missing_folders_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="there is no model folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "run").mkdir()
    folder.rename(tmp_path / "run" / "model")
    with pytest.raises(ValueError, match="training run"):
        load(tmp_path / "run")


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_processes_survive_json(name: str) -> None:
    process = PROCESSES[name]()
    again = process_from_json(json.loads(json.dumps(process_to_json(process))))
    assert type(again) is type(process)
    assert again.log_snr(0.5) == process.log_snr(0.5)


def test_a_failed_save_leaves_nothing(tmp_path: Path, net: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(tmp_path / "m", net, process=VP(), predicts="v", shape=(1, 8, 8))
    assert list(tmp_path.iterdir()) == []


def test_shipped_model_loads() -> None:
    model = load()
    assert model.shape == (1, 28, 28)
    assert len(model.labels) == 10
    assert sum(f.stat().st_size for f in model.path.iterdir()) < 8e6  # type: ignore[union-attr]
    with torch.inference_mode():
        x0 = model.denoiser("Trouser")(torch.randn(2, 1, 28, 28), 0.5)
    assert x0.shape == (2, 1, 28, 28)


def test_the_shipped_model_says_how_it_was_made_and_how_good_it_is() -> None:
    model = load()
    training, quality = model.facts["training"], model.facts["quality"]
    assert training["command"].startswith("fewstep train ")
    assert training["hours"] > 0.5
    by_calls = {row["calls"]: row for row in quality}
    assert {10, 100, ""} <= set(by_calls)  # few steps, ancestral sampling, as many real images
    assert all(row["Frechet"] > 0 and row["samples"] >= 2048 for row in quality)
    card = (model.path / "README.md").read_text(encoding="utf-8")  # type: ignore[operator]
    assert training["command"] in card
    assert "Not measured" not in card


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"shape": [1, 8, 6]}, r"cannot be called on \(1, 4, 4, 3\)"),
        (
            {"process": {"name": "blurring", "size": [9, 8]}},
            r"has shape \(1, 8, 8\) and a process on images of \(9, 8\)",
        ),
        ({"process": {"name": "vp", "t_max": 20.0}}, "whose time is no share of a table"),
        ({"format": "x" * 10_000}, "has format 'xxx"),
    ],
)
def test_what_could_not_be_sampled_is_refused_when_it_is_loaded(folder: Path, change: dict, sentence: str) -> None:
    about = json.loads((folder / "fewstep.json").read_text())
    (folder / "fewstep.json").write_text(json.dumps(about | change))
    with pytest.raises(ValueError, match=sentence) as error:
        load(folder, dtype=torch.float32)
    assert len(str(error.value)) < 1000
