"""`fewstep bench`: what it writes, what it draws, what it refuses, feature spaces."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench_toy import D, every_peer, fake, toy
from fewstep import bench
from fewstep.bench.cell import Study
from fewstep.bench.contender import OURS, PEERS
from fewstep.bench.features import features_of, real
from fewstep.cli import main


@pytest.fixture
def toy_file(tmp_path):
    path = tmp_path / "toy.py"
    path.write_text(
        "import torch\nimport fewstep as fs\n\n"
        "class Toy:\n"
        "    process, shape = fs.VP(), (1, 4, 4)\n"
        "    mixture = fs.Mixture(process, torch.linspace(-0.5, 0.5, 32).view(2, 1, 4, 4).double(),"
        " torch.tensor([0.2, 0.3]).double())\n"
        "    data = torch.randn(400, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.3\n\n"
        "    def denoiser(self, labels):\n        return self.mixture\n\n"
        "class Bare(Toy):\n    data = None\n\n"
        "def thirds(x):\n    return x.flatten(1)[:, ::3]\n\n"
        "def flat(x):\n    return x\n"
    )
    return path


def run(toy_file, out, *argv: str) -> int:
    return main(["bench", f"{toy_file}:Toy", "--calls", "4,6", "--images", "60", "--exact", "30", "--out", str(out),
                 "--resamples", "20", *argv])  # fmt: skip


def test_the_command_writes_tables_and_plots_and_does_no_work_twice(toy_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "figures", lambda *_: ())
    out = tmp_path / "out"
    argv = ["--solver", "default", "ddim@karras", "--seeds", "0,1", "--features", f"{toy_file}:thirds"]
    assert run(toy_file, out, *argv) == 0
    first = capsys.readouterr().out
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    record = json.loads((out / "table.json").read_text())
    assert [row["name"] for row in rows][:4] == ["default", "ddim@karras"] * 2
    assert {row["images"] for row in rows[:5]} == {"120"}
    assert all(float(row["frechet_low"]) < float(row["frechet"]) < float(row["frechet_high"]) for row in rows[:5])
    assert record["seeds"] == [0, 1]
    assert record["versions"]["torch"] == torch.__version__
    assert "fewstep" in record["command"]
    monkeypatch.setattr(Study, "_part", lambda *_: pytest.fail("work was done twice"))
    assert run(toy_file, out, *argv) == 0
    assert capsys.readouterr().out == first


def test_contenders_are_chosen_by_frechet_distance_on_a_seed_that_is_not_measured(toy_file, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "figures", lambda *_: ())
    seeds, made = [], Study.make
    monkeypatch.setattr(Study, "make", lambda s, cell, count: seeds.append((cell.seed, count)) or made(s, cell, count))
    argv = ["--solver", "default", "ddim@*", "--select", "2", "--select-images", "40", "--select-by", "frechet"]
    assert run(toy_file, tmp_path / "out", *argv, "--seeds", "0,3") == 0
    assert {count for seed, count in seeds if seed == 4} == {16, 40}
    assert {count for seed, count in seeds if seed != 4} == {60}
    ranking = json.loads((tmp_path / "out" / "table.json").read_text())["preselection"]
    for calls in (4, 6):
        here = [row for row in ranking if row["calls"] == calls and row["images"] == 40]
        assert [row["frechet"] for row in here] == sorted(row["frechet"] for row in here)
        assert here[0]["chosen"]
    with pytest.raises(ValueError, match="no real samples: give --data, or select by rms"):
        bench.prepare(bench.Asked(model=f"{toy_file}:Bare", select_by="frechet", out=str(tmp_path)))


def test_the_plots_are_written(toy_file, tmp_path):
    pytest.importorskip("matplotlib")
    pictures = pytest.importorskip("PIL.Image")
    peers = ["--peers", "torchdiffeq/euler@*", "--select", "1"] if "torchdiffeq/euler@karras" in every_peer() else []
    assert run(toy_file, tmp_path / "out", "--solver", "default", "ddim", *peers) == 0
    assert {p.name for p in (tmp_path / "out").glob("*g")} == {
        f"{name}{behind}.{kind}"
        for name in ("work-precision", "trilemma")
        for behind in ("", "-narrow")
        for kind in ("png", "svg")
    }
    pixels = np.asarray(pictures.open(tmp_path / "out" / "work-precision.png").convert("RGB"))
    colours = {tuple(c) for c in pixels.reshape(-1, 3)}
    assert (0x00, 0x72, 0xB2) in colours
    assert ((0x33, 0x33, 0x33) in colours) == bool(peers)
    if peers:
        ranking = json.loads((tmp_path / "out" / "table.json").read_text())["preselection"]
        assert [row["chosen"] for row in ranking if row["group"] == PEERS].count(True) == 2


@pytest.mark.parametrize(
    ("name", "group", "said"),
    [
        ("default", OURS, "fewstep (default)"),
        ("unipc-3@karras", OURS, "UniPC-3, karras"),
        ("dpmpp-2m@karras+state", OURS, "DPM++ 2M, karras, state"),
        ("diffusers/unipc-3@karras", PEERS, "UniPC-3, karras (diffusers)"),
    ],
)
def test_names_are_written_as_people_write_them(name, group, said):
    from fewstep.bench.pictures import readable

    assert readable(name, group) == said


def test_the_plots_name_lines_in_a_legend_and_hold_no_fitted_table_against_the_ode():
    pytest.importorskip("matplotlib")
    from fewstep.bench.pictures import AIM, work_precision

    rows = [{"name": name, "group": group, "calls": n, "frechet": 1.0 / n, "rmse": 1.0 / n}
            for name, group in (("default", OURS), ("fitted-4", "fitted"), ("diffusers/ddim@karras", PEERS))
            for n in (4, 8)]  # fmt: skip
    for narrow in (False, True):
        figure = work_precision(rows, "title", narrow=narrow)
        assert figure.get_figwidth() * 150 <= 1200
        named = [{line.get_label() for line in axes.lines} for axes in figure.axes]
        assert "fitted" in named[0]
        assert "fitted" not in named[1]
        assert [AIM in " ".join(axes.get_xlabel().split()) for axes in figure.axes] == [False, True]
        legend = {text.get_text() for text in figure.legends[0].texts}
        assert {"fewstep (default)", "fitted", "DDIM, karras (diffusers)"} <= legend
        assert not any(axes.texts for axes in figure.axes)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_has_a_row_a_solver_and_shows_the_nearest_peer(channels):
    pytest.importorskip("matplotlib")
    from fewstep.bench.pictures import sheet

    made = []
    for name, group, shade, error in (("ours", OURS, 0.0, 0.1), ("far", PEERS, -1.0, 0.4), ("near", PEERS, 1.0, 0.2)):
        m = fake(name, group, [torch.zeros(12, D)], error)
        shown = {"shown": torch.full((12, channels, 4, 4), shade)}
        made.append(replace(m, seeds=tuple(seed | shown for seed in m.seeds)))
    figure = sheet(made, torch.full((12, channels, 4, 4), -1.0), "title")
    words = [text.get_text() for axes in figure.axes for text in axes.texts] + [
        a.get_title("left") for a in figure.axes
    ]
    assert {"ours", "best of others", "near", "5 calls", "exact"} <= set(words)
    assert "far" not in words
    tiles = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    assert [int(tile[2, 2].max()) for tile in tiles] == [128, 0, 255, 0]
    assert tiles[0].ndim == (2 if channels == 1 else 3)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--solver", "unipc-4"], "unipc-3"),
        (["--solver", "ddim@karas"], "karras"),
        (["--solver", "rk45"], "got rk45 to compare at equal calls: it chooses its steps while it runs"),
        (["--guidance", "2"], "got guidance 2 for a model that was trained without classes"),
        (["--solver", "made.table"], "there is no file"),
        (["--peers", "diffuser/ddim"], "fits none"),
        (["--solver", "ddim", "--without", "*"], "no contender"),
        (["--features", "inception"], "module:function"),
        (["--features", "TOY:flat"], "(n, d)"),
        (["--features", "classifier"], "(1, 28, 28)"),
        (["--data", "nothing.npz"], "no data at"),
        (["--calls", "3,none"], "whole numbers from 1"),
        (["--device", "quantum"], "quantum"),
    ],
)
def test_what_is_wrong_is_one_sentence(argv, words, toy_file, tmp_path, capsys):
    argv = [word.replace("TOY", str(toy_file)) for word in argv]
    assert run(toy_file, tmp_path / "out", *argv) != 0
    out, err = capsys.readouterr()
    assert words in err
    assert err.count("\n") == 1
    assert not list((tmp_path / "out").glob("*.csv"))


def test_real_pictures_are_reference_and_floor(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (40, 6, 6, 3)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", images=images)
    subject = replace(toy(), shape=(3, 6, 6), images=True)
    features = features_of("pixels", subject)
    found = real(features, subject, tmp_path / "data.npz", tmp_path / "kept")
    assert found.reference.shape == found.other.shape == (20, 108)
    both = torch.cat([found.reference, found.other])
    flat = torch.from_numpy(images).permute(0, 3, 1, 2).flatten(1) / 127.5 - 1
    assert torch.allclose(both.sort(0).values, flat.sort(0).values, atol=1e-6)
    with pytest.raises(ValueError, match="its own data"):
        real(features, toy(), tmp_path / "data.npz", tmp_path / "kept")


def test_the_shipped_reference_goes_with_the_classifier_alone(tmp_path):
    clothes = replace(toy(), shape=(1, 28, 28), images=True)
    assert len(real(features_of(None, clothes), clothes, None, tmp_path).reference) == 10_000
    assert real(features_of("pixels", clothes), clothes, None, tmp_path) is None


def test_a_vision_model_is_a_feature_space(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28,
                                       patch_size=14)  # fmt: skip
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dino")
    features = features_of(str(tmp_path / "dino"), replace(toy(), shape=(1, 10, 10)))
    x = torch.rand(5, 1, 10, 10) * 2 - 1
    assert features.of(x).shape == (5, 16)
    assert torch.allclose(features.of(x)[1:2], features.of(x[1:2]), atol=1e-5)
    with pytest.raises(ValueError, match="not a model folder"):
        features_of(str(tmp_path), toy())
