"""Networks of diffusers that are told s and w: they begin as they were, learn, and come back from their folders."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep.model import build_network, save_model
from fewstep.model.model import config_of
from fewstep.nets import Told
from fewstep.train.students import train_student

pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread")

UNET = {
    "_class_name": "UNet2DModel", "sample_size": 4, "in_channels": 1, "out_channels": 1, "layers_per_block": 1,
    "block_out_channels": [4, 4], "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2,
    "norm_num_groups": 2, "num_class_embeds": 3, "add_attention": False,
}  # fmt: skip
DIT = {
    "_class_name": "DiTTransformer2DModel", "num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 1,
    "out_channels": 1, "num_layers": 2, "norm_num_groups": 1, "sample_size": 4, "patch_size": 2,
    "num_embeds_ada_norm": 1000,
}  # fmt: skip
FEW = {"batch": 4, "steps": 3, "quiet": True, "lr": 1e-2}
OPTIONS = {"guided": (("steps", 4), ("to", 2)), "shortcut": (("steps", 4),)}


def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 4, 4)).astype(np.uint8)


def teacher(folder: Path, process: str = "vp") -> Path:
    torch.manual_seed(0)
    predicts, time = ("edm", "log-sigma/4") if process == "edm" else ("v", "index")
    return save_model(folder, build_network(UNET), process=fs.PROCESSES[process](), predicts=predicts, time=time,
                      shape=(1, 4, 4), labels=("a", "b"), dtype=torch.float32)  # fmt: skip


@pytest.mark.parametrize("config", [UNET, DIT], ids=["UNet2DModel", "DiT"])
def test_a_network_that_is_told_more_returns_what_it_did_until_it_listens(config: dict) -> None:
    torch.manual_seed(0)
    plain = build_network(config).eval()
    told = Told(copy.deepcopy(plain), destination=True, guided=True, scale=1000.0).eval()
    x, t, y = torch.randn(3, 1, 4, 4), torch.tensor([3.0, 500.0, 999.0]), torch.tensor([0, 1, 2])
    with torch.no_grad():
        before = plain(x, t, class_labels=y).sample
        called = told(x, t, t / 2, class_labels=y, w=torch.tensor([0.0, 1.0, 4.0])).sample
        torch.testing.assert_close(called, before, rtol=1e-5, atol=1e-6)
        for layer in ("second", "guide"):
            heard = copy.deepcopy(told)
            for name, weight in heard.named_parameters():
                if f".{layer}." in name:
                    nn.init.normal_(weight)
            far = {"second": (t / 4, None), "guide": (t, torch.full((3,), 3.0))}[layer]
            near = heard(x, t, class_labels=y).sample
            assert not torch.allclose(heard(x, t, far[0], class_labels=y, w=far[1]).sample, near, atol=1e-4)
    again = build_network(config_of(told))
    again.load_state_dict(told.state_dict())
    assert config_of(again) == config_of(told)


@pytest.mark.parametrize("method", ["trajectory", "shortcut", "mean-flow", "guided", "latent-consistency"])
def test_students_of_a_unet_are_told_and_their_folders_sample(method: str, tmp_path: Path) -> None:
    process = {"trajectory": "edm", "shortcut": "flow", "mean-flow": "flow"}.get(method, "vp")
    given = {"method": method, "teacher": teacher(tmp_path / "teacher", process), "options": OPTIONS.get(method, ())}
    folder = train_student(pictures(), tmp_path / "run", **FEW, **given, labels=np.arange(16) % 2)
    model = fs.load(folder, dtype=torch.float32)
    assert isinstance(model.net, Told)
    heard = [
        float(v.abs().max()) for name, v in model.net.named_parameters() if ".second." in name or ".guide." in name
    ]
    assert min(heard) > 0  # they were learned
    told = {"w": 2.0} if model.takes_w else {}
    x = fs.sample(model.denoiser(1, **told), model.process, shape=(2, 1, 4, 4), seed=0, progress=False)
    assert torch.isfinite(x).all()
    if told:
        other = fs.sample(model.denoiser(1, w=0.0), model.process, shape=(2, 1, 4, 4), seed=0, progress=False)
        assert not torch.equal(x, other)


def test_a_network_by_config_is_told_without_a_teacher(tmp_path: Path) -> None:
    config = UNET | {"num_class_embeds": None}
    folder = train_student(pictures(), tmp_path, **FEW, method="shortcut", net=config, options=OPTIONS["shortcut"])
    assert fs.load(folder).destination
    assert fs.load(folder).net.config["network"] == "UNet2DModel"


def test_a_denoiser_without_w_teaches_a_network_that_is_told_it(tmp_path: Path) -> None:
    process = fs.VP()
    pair = tuple(fs.Mixture(process, torch.tensor(m), 0.2) for m in ([[0.5, 0.5]], [[0.5, 0.5], [-0.5, 0.0]]))

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x, t, *, w):
            return self.layer(torch.cat([x, t[:, None].to(x), w[:, None].to(x)], 1))

    net, x = Own(), np.random.default_rng(0).normal(size=(16, 2))
    before = net.layer.weight.detach().clone()
    train_student(x, tmp_path, **FEW, method="guided", teacher=pair, net=net, options=OPTIONS["guided"])
    assert (net.layer.weight != before).all()
