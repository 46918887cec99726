"""ONNX graphs of network and table: onnxruntime makes the images that torch makes."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep.cli import main
from fewstep.model import Model, save_model
from fewstep.nets import MLP

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")


class Tiny(nn.Module):
    """A network of the convention of diffusers: net(x, t, class_labels=y).sample."""

    def __init__(self, channels=1, classes=4):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.label = nn.Conv2d(channels, channels, 3, padding=1), nn.Embedding(classes, channels)

    def forward(self, x, t, class_labels=None):
        x = self.conv(x) + torch.sin(t / 100)[:, None, None, None]
        x = x if class_labels is None else x + self.label(class_labels)[:, :, None, None]
        return SimpleNamespace(sample=torch.tanh(x))


def tiny(process=None, labels=("a", "b", "c"), **options):
    made = {"predicts": "v", "time": "index", "shape": (1, 4, 4)} | options
    net = Tiny(made["shape"][0] * made.get("patch", 1) ** 2).eval().requires_grad_(False)
    return Model(net=net, process=process or fs.VP(), labels=labels, **made)


def run(path, given):
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == list(given)
    return torch.from_numpy(session.run(["samples"], {name: x.numpy() for name, x in given.items()})[0])


CASES = {
    "multistep": ("unipc-3", {}),
    "noises": ("dpmpp-2m-sde", {"labels": (), "time": "t"}),
    "stages and a patch": ("dpmpp-2s", {"patch": 2, "predicts": "data"}),
    "ancestral on flow": ("ddim", {"process": fs.Flow(), "predicts": "flow", "time": "t"}),
    "frequencies": ("multistep-2", {"process": fs.Blurring(size=(4, 4)), "predicts": "data"}),
    "blocks": ("gaussian-split", {"process": fs.CLD(), "predicts": "v", "labels": ()}),
}


@pytest.mark.parametrize("name", CASES)
def test_onnxruntime_makes_the_same_samples_for_any_batch(name, tmp_path):
    import onnx as format

    from fewstep.interop import onnx

    solver, options = CASES[name]
    near = 1e-5
    model = tiny(**options)
    table = fs.tabulate(solver, model.process, steps=2)
    path = onnx.export(model, table, tmp_path / "sampler.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["sampler.onnx"]
    for num in (1, 3, 70):
        labels = [k % 3 for k in range(num)] if model.labels else None
        found = run(path, onnx.inputs(model, table, num, labels=labels, seed=5))
        z = fs.sample(model.denoiser(labels), model.process, solver=table, shape=(num, *model.shape), seed=5)
        wanted = model.process.to_data(z)
        assert float((found - wanted).norm() / wanted.norm()) < near
    assert onnx.difference(model, table, path) < near
    plain = onnx.inputs(model, table, 2)
    assert plain["labels"].tolist() == [-1, -1] if model.labels else "labels" not in plain
    z = fs.sample(model.denoiser(), model.process, solver=table, shape=(2, *model.shape))
    torch.testing.assert_close(run(path, plain), model.process.to_data(z), rtol=near, atol=near)
    about = json.loads({p.key: p.value for p in format.load(path).metadata_props}["fewstep"])
    assert (about["network_calls"], about["times"]) == (table.nfe, table.grid.tolist())
    assert about["labels"] == list(model.labels)


@pytest.mark.parametrize("told", [
    {"predicts": "v", "time": "t", "destination": True},
    {"predicts": "edm", "time": "log-sigma/4", "sigma_data": 0.9},
])  # fmt: skip
def test_a_graph_tells_its_network_what_a_model_tells_it(told, tmp_path):
    from fewstep.interop import onnx

    torch.manual_seed(0)
    net = MLP(4, width=8, depth=2, destination="destination" in told).eval().requires_grad_(False)
    if net.second is not None:
        nn.init.normal_(net.second.weight)
    model = Model(net=net, process=fs.VP(), shape=(4,), **told)
    table = fs.tabulate("ddim", model.process, steps=2)
    path = onnx.export(model, table, tmp_path / "sampler.onnx")
    found = run(path, onnx.inputs(model, table, 3, seed=5))
    wanted = fs.sample(model.denoiser(), model.process, solver=table, shape=(3, 4), seed=5)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_what_a_graph_cannot_hold_is_refused(tmp_path):
    from fewstep.interop import onnx

    with pytest.raises(ValueError, match="a table written for"):
        onnx.export(tiny(), fs.tabulate("ddim", fs.EDM(), steps=2), tmp_path / "sampler.onnx")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    unet = pytest.importorskip("diffusers.models.unets.unet_2d")
    net = unet.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), mid_block_type=None, layers_per_block=1, norm_num_groups=4, num_class_embeds=3,
    )  # fmt: skip
    where = tmp_path_factory.mktemp("model") / "tiny"
    return save_model(where, net, process=fs.VP(), predicts="v", shape=(1, 8, 8), labels=("a", "b"))


def test_the_command(folder, tmp_path, capsys):
    """Its default ends where that of `fewstep sample` does; guidance is in the graph, which is compared with torch."""
    out = tmp_path / "sampler.onnx"
    assert main(["export", str(folder), "--steps", "2", "--guidance", "3", "--out", str(out)]) == 0
    assert "2 network calls" in capsys.readouterr().out
    props = pytest.importorskip("onnx").load(out).metadata_props
    about = json.loads(next(prop.value for prop in props if prop.key == "fewstep"))
    assert (about["times"][-1], about["guidance"]) == (0.0, 3.0)
    assert main(["sample", str(folder), "--steps", "2", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["times"] == about["times"]


@pytest.mark.parametrize(("words", "sentence"), [
    (["--solver", "rk45"], "chooses its steps while it runs"),
    (["--out", "sampler.pt"], "ends in .onnx"),
    (["--solver", "unipc3"], "did you mean"),
    (["--grid", "karas"], "did you mean"),
])  # fmt: skip
def test_a_wrong_command_line_is_one_sentence(words, sentence, capsys):
    assert main(["export", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_importing_the_library_imports_no_door():
    heavy = ("onnx", "onnxruntime", "onnxscript", "diffusers", "matplotlib")
    code = f"import sys, fewstep as fs; fs.presets.edm; print(*[m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
