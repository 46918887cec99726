"""Pictures by words: texts are found beside pictures, told to a network, and asked for again."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.cli import main
from fewstep.data import read_images
from fewstep.nets.worded import LONGEST, WordedUNet, split, vocabulary_of
from fewstep.train import train

pytest.importorskip("diffusers")

TEXTS = ("red square", "red disc", "Blue  square", "blue disc")
PACE = ("--precision", "float32", "--memory-format", "contiguous", "--threads", "1")
TINY = ("--channels", "24,24", "--patch", "1", "--batch", "8", "--images", "16", "--sheet-every", "0", "--quiet")


def pictures(n: int = 16, side: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "shapes.npz"
    np.savez(path, x_train=pictures(), captions=np.array(TEXTS * 4), group=np.arange(16) % 3)
    return path


@pytest.fixture(scope="module")
def folder(npz):
    out = npz.parent / "run"
    assert main(["train", str(npz), str(out), "--words", *TINY, *PACE]) == 0
    assert "--words`" in (out / "model" / "README.md").read_text()
    return out / "model"


@pytest.fixture(scope="module")
def model(folder):
    return fs.load(folder, pace=fs.Pace(precision="float32", memory_format="contiguous", threads=1))


def told(model, label):
    """Numbers that a denoiser's network is told."""
    return model.denoiser(label).net.keywords["classes"]


def test_common_words_are_one_number_and_rare_ones_their_pieces():
    known = vocabulary_of(["smiling cat", "Smiling face", "taco"])
    assert known[0] == "smiling"
    assert set(known[1:]) == {"#^ca", "#cat", "#at$", "#^fa", "#fac", "#ace", "#ce$", "#^ta", "#tac", "#aco", "#co$"}
    net = WordedUNet(known, 4, 3, 3, (4,), norm_num_groups=4)
    numbers = net.read(["Smiling, smiling!", "cats", "", "smiling " * 100])
    of = {word: k + 1 for k, word in enumerate(known)}
    assert numbers.shape == (4, LONGEST)
    assert numbers[0, :3].tolist() == [of["smiling"], of["smiling"], 0]
    assert numbers[1, :3].tolist() == [of["#^ca"], of["#cat"], 0]  # a word that nobody trained on
    assert not numbers[2].any()
    assert numbers[3].all()


def test_words_are_a_set_behind_which_zeros_say_nothing():
    torch.manual_seed(0)
    net = WordedUNet(("cat", "smiling"), 4, 3, 3, (8,), norm_num_groups=2).eval()
    x, t = torch.randn(3, 3, 4, 4), torch.full((3,), 0.5)
    texts = ("smiling cat", "cat smiling", "")
    out = [net(x, t, class_labels=net.read([text]).expand(3, -1)).sample for text in texts]
    short = net(x, t, class_labels=torch.tensor([[2, 1]]).expand(3, -1)).sample
    none = net(x, t, class_labels=torch.zeros(3, dtype=torch.long)).sample
    torch.testing.assert_close(out[0], out[1])
    torch.testing.assert_close(out[0], short)
    torch.testing.assert_close(out[2], none)
    assert (out[0] - none).abs().max() > 1e-3


def test_texts_of_an_npz_become_labels(npz):
    found = read_images(npz, words=True)
    assert found.names == ("Blue square", "blue disc", "red disc", "red square")
    assert [found.names[k] for k in found.labels[:4]] == [" ".join(text.split()) for text in TEXTS]
    assert read_images(npz).names == ("0", "1", "2")  # without, the groups


@pytest.mark.parametrize("kind", ["captions.json", "NAME.txt"])
def test_texts_of_a_folder_become_labels(kind, tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "more").mkdir()
    for k, (one, text) in enumerate(zip(pictures(4), TEXTS, strict=True)):
        image.fromarray(one).save(tmp_path / "more" / f"{k}.png")
        if kind == "NAME.txt":
            (tmp_path / "more" / f"{k}.txt").write_text(text + "\n")
    if kind == "captions.json":
        (tmp_path / kind).write_text(json.dumps({f"more/{k}.png": text for k, text in enumerate(TEXTS)}))
    found = read_images(tmp_path, words=True)
    assert [found.names[k] for k in found.labels] == [" ".join(text.split()) for text in TEXTS]
    if kind == "NAME.txt":
        (tmp_path / "more" / "2.txt").unlink()
    else:
        (tmp_path / kind).write_text(json.dumps({"more/0.png": "red"}))
    with pytest.raises(ValueError, match=r"2\.txt.*write it|no text for more/1\.png.*add it"):
        read_images(tmp_path, words=True)


def test_names_of_classes_are_words_where_there_are_no_texts(tmp_path):
    np.savez(tmp_path / "a.npz", x=pictures(4), y=[0, 1, 0, 1], class_names=["red cat", "cat"])
    assert read_images(tmp_path / "a.npz", words=True).names == ("red cat", "cat")
    np.savez(tmp_path / "b.npz", x=pictures(4))
    with pytest.raises(ValueError, match="has no words beside its pictures"):
        read_images(tmp_path / "b.npz", words=True)


def test_a_model_of_words_knows_its_texts_and_others(model):
    assert model.worded
    assert model.labels == ("Blue square", "blue disc", "red disc", "red square")
    assert torch.equal(told(model, 1), told(model, "Blue, disc!"))
    assert told(model, [0, "red"]).shape == (2, LONGEST)
    assert not told(model, None).any()
    for label, why in (("xyzzy", "trained on words as"), (4, "numbers from 0 to 3"), ([0.5], "numbers from 0 to 3")):
        with pytest.raises(ValueError, match=why):
            model.denoiser(label)


def test_guided_words_are_one_call_of_twice_the_batch(model):
    guided = fs.guide(model.denoiser("red square"), model.denoiser(), 3.0)
    counted, sizes = fs.Counted(guided), []
    hook = model.net.register_forward_pre_hook(lambda net, args: sizes.append(len(args[0])))
    x = fs.sample(counted, model.process, steps=3, shape=(4, *model.shape), seed=0)
    hook.remove()
    assert sizes == [8, 8, 8]
    each = fs.guide(model.denoiser(["red square"] * 4), model.denoiser([""] * 4), 3.0)
    torch.testing.assert_close(x, fs.sample(each, model.process, steps=3, shape=(4, *model.shape), seed=0))
    assert (x - fs.sample(model.denoiser(), model.process, steps=3, shape=(4, *model.shape), seed=0)).abs().max() > 1e-3


def test_a_prompt_is_sampled(folder, tmp_path, capsys):
    run = [
        "sample",
        str(folder),
        *PACE,
        "--steps",
        "2",
        "--num",
        "3",
        "--guidance",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    words = ["--prompt", "red blue square", "--prompt", "disc"]
    assert main([*run, *words, "--format", "safetensors"]) == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["prompts"] == ["red blue square", "disc"]
    assert record["labels"] == [0, 1, 0]
    capsys.readouterr()
    assert main([*run, "--prompt", "red", "--label", "1"]) == 2
    assert "--prompt and --label" in capsys.readouterr().err
    assert main([*run, "--prompt", "red", "--negative", "blue"]) == 2
    assert "leads away from no words" in capsys.readouterr().err
    assert main([*run, "--prompt", "xyzzy"]) == 2
    assert "trained on words as" in capsys.readouterr().err
    assert main(["sample", *PACE, "--prompt", "sneaker"]) == 2
    assert "has no text encoder" in capsys.readouterr().err


def test_a_run_on_words_goes_on(npz, tmp_path):
    small = {"channels": (24, 24), "patch": 1, "batch": 8, "sheet_every": None, "quiet": True,
             "pace": fs.Pace(precision="float32", memory_format="contiguous", threads=1)}  # fmt: skip
    whole = train(npz, tmp_path / "a", words=True, images=32, **small)
    train(npz, tmp_path / "b", words=True, images=16, **small)
    again = train(npz, tmp_path / "b", images=32, **small)  # words: as in the run
    a, b = (fs.load(one, pace=small["pace"]) for one in (whole, again))
    assert a.worded
    assert a.net.config == b.net.config


@pytest.mark.parametrize("words", [[1, 2], "red", ["red"] * 3, None])
def test_a_vocabulary_that_is_none_is_refused(words, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"vocabulary": words}))
    with pytest.raises(ValueError, match=r"vocabulary|belong together"):
        fs.load(tmp_path / "m")


def test_words_are_split_as_they_are_read():
    assert split("Smiling cat-eyes, O'Hara #1") == ["smiling", "cat", "eyes", "o", "hara", "1"]
