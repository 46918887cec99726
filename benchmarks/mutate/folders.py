"""Folders and data: models, pipelines of diffusers, classifiers, training runs, what stopped runs left, pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler, UNet2DModel
from kind import Files, Kind, reading, running
from PIL import Image

import fewstep as fs
from fewstep.bench.cell import Cell, Study
from fewstep.check.matrix import Store
from fewstep.check.report import Report, Verdict
from fewstep.data.images import Images, read_images
from fewstep.files import WEIGHTS
from fewstep.model import Model, save_model
from fewstep.quality.classifier import Classifier, load_classifier, save_classifier
from fewstep.quality.reference import Reference, load_reference, save_reference
from fewstep.stats import measure
from fewstep.train.run import train

__all__ = ["KINDS"]

DATA = Images(
    images=np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8),
    labels=np.arange(6) % 2,
    names=("a", "b"),
    source="data",
)
VERDICT = Verdict(name="order", process="vp", status="pass", measured=1.0, claimed=1.0, sentence="as claimed")
RUN = {"batch": 2, "channels": (4, 8), "patch": 1, "save_every": 1e9, "sheet_every": None, "quiet": True}


def _unet(channels: int = 1, **options: Any) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=channels, out_channels=channels, block_out_channels=(4, 8), layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False,
        norm_num_groups=2, **options,
    ).eval()  # fmt: skip


def _model(folder: Path, process: fs.Process, **options: Any) -> None:
    labels = options.get("labels", ())
    net = _unet(num_class_embeds=len(labels) + 1 if labels else None)
    save_model(folder / "model", net, process=process, predicts="v", shape=(1, 8, 8), dtype=torch.float32, **options)
    (folder / "model" / "README.md").unlink()


def _seal_model(files: Files) -> None:
    about = json.loads(files["model/fewstep.json"])
    if "weights_sha256" in about:
        about["weights_sha256"] = _digest(files[f"model/{WEIGHTS}"])
        files["model/fewstep.json"] = json.dumps(about).encode()


def _digest(raw: bytes) -> str:
    import hashlib

    return hashlib.sha256(raw).hexdigest()


def _use_model(folder: Path) -> None:
    with reading():
        model = fs.load(folder / "model")
    _sampled(model, 0 if model.labels else None)


def _sampled(model: Model, label: Any) -> None:
    if np.prod(model.shape) > 2**16:
        return  # a whole model of large pictures
    with running():
        denoiser = model.denoiser(label)
        x = torch.ones(2, *model.process.state_shape(model.shape))
        fs.sample(denoiser, model.process, solver="ddim", steps=2, x=x, progress=False)


def _pipeline(folder: Path, scheduler: Any, net: Any = None, **options: Any) -> None:
    net = net or _unet(3)
    name = "transformer" if isinstance(net, DiTTransformer2DModel) else "unet"
    net.save_pretrained(folder / "pipe" / name, **options)
    scheduler.save_pretrained(folder / "pipe" / "scheduler")
    index = {"_class_name": "DDPMPipeline", "_diffusers_version": "0.35.0", name: ["diffusers", type(net).__name__],
             "scheduler": ["diffusers", type(scheduler).__name__]}  # fmt: skip
    (folder / "pipe" / "model_index.json").write_text(json.dumps(index))


def _dit() -> DiTTransformer2DModel:
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10, norm_num_groups=2,
    ).eval()  # fmt: skip


def _use_pipeline(folder: Path) -> None:
    with reading():
        model = fs.load(folder / "pipe")
    _sampled(model, 0 if isinstance(model.net, DiTTransformer2DModel) else None)


def _classifier(folder: Path) -> None:
    torch.manual_seed(0)
    save_classifier(folder / "net", Classifier(shape=(1, 8, 8), channels=(2, 2, 2), features=4, classes=3).eval())
    rows = torch.rand(8, 4)
    save_reference(folder / "reference.safetensors", Reference(
        test=rows, test_labels=torch.arange(8), held_out=rows, held_out_labels=torch.arange(8)))  # fmt: skip


def _use_classifier(folder: Path) -> None:
    with reading():
        net = load_classifier(folder / "net")
        reference = load_reference(folder / "reference.safetensors")
    net.logits(torch.zeros(2, *net.config["shape"]))
    with running():
        reference.quality(reference.held_out[:6], k=2)


def _checkpoint(folder: Path) -> None:
    train(DATA, folder / "run", images=2, **RUN)
    for path in sorted((folder / "run").rglob("*"), reverse=True):
        if path.name != "checkpoint.safetensors":
            path.rmdir() if path.is_dir() else path.unlink()


def _use_checkpoint(folder: Path) -> None:
    with reading(), running():
        train(DATA, folder / "run", images=4, **RUN)


def _npz(folder: Path, save: Callable[..., None], **arrays: Any) -> None:
    save(folder / "data.npz", **arrays)


def _use_data(folder: Path, name: str) -> None:
    with reading():
        data = read_images(folder / name)
    data.fingerprint()
    batch = torch.from_numpy(data.images[:2].astype(np.float32) / 127.5 - 1)
    assert bool(batch.isfinite().all())
    if data.labels is not None:
        assert len(data.labels) == len(data.images)
        assert data.labels.max() < len(data.names)


def _pictures(folder: Path, mode: str, suffix: str, *, labelled: bool) -> None:
    rng = np.random.default_rng(0)
    for i in range(4):
        picture = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).convert(mode)
        path = folder / "pictures" / (f"class{i % 2}" if labelled else "") / f"{i}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = io.BytesIO()
        picture.save(raw, {".png": "PNG", ".jpg": "JPEG"}[suffix])
        path.write_bytes(raw.getvalue())


def _measure(folder: Path, **options: Any) -> Any:
    process = fs.VP()
    data = torch.ones(2, 1, 2, 2) * torch.tensor([0.1, -0.3]).view(2, 1, 1, 1)
    return measure(fs.Gaussian(process, 0.0, 0.5), process, data, nodes=3, out=folder / "s.safetensors",
                   progress=False, **options)  # fmt: skip


def _left(run: Callable[[Path], Any], folder: Path) -> None:
    """What a run has written while it worked, its end apart."""
    with mock.patch("pathlib.Path.unlink"), mock.patch("fewstep.saved._EVERY", -1.0):
        run(folder)
    for path in folder.iterdir():
        if not path.name.endswith((".part", ".starts", ".teacher")):
            path.unlink()


def _fit(folder: Path) -> Any:
    process = fs.VP()
    return fs.fit(fs.Gaussian(process, 0.1, 0.5), process, steps=2, shape=(2,), samples=4, held_out=4, batch=4,
                  solver="multistep-2", grid=("uniform", "logistic"), teacher_steps=4,
                  descent=fs.Descent(iterations=2, every=1), progress=False, out=folder / "fit")  # fmt: skip


def _as_good_as_none(run: Callable[[Path], Any], folder: Path) -> None:
    """A damaged part never stops the run that finds it."""
    if any(
        path.is_symlink() or not path.is_file() and (path.suffix or not path.is_dir()) for path in folder.rglob("*")
    ):
        return  # somebody put something else there
    with running():
        run(folder)


class _Study(Study):
    """A study whose samples are made of nothing."""

    def _part(self, cell: Cell, first: int, size: int) -> dict[str, torch.Tensor]:
        one = torch.tensor(1.0, dtype=torch.float64)
        return {
            "seconds": one,
            "shown": torch.zeros(2, 1),
            "error": torch.zeros(size),
            "features": torch.zeros(size, 2),
        }


def _bench(folder: Path) -> dict[str, torch.Tensor]:
    run: Any = SimpleNamespace(digest="d", end="state", calls=2)
    subject: Any = SimpleNamespace(digest="s")
    features: Any = SimpleNamespace(digest="f")
    exact: Any = SimpleNamespace(digest="e")
    study = _Study(subject=subject, features=features, exact=exact, kept=folder / "kept")
    made = study.make(Cell(run=run, seed=0), 4)
    assert [len(made[name]) for name in ("error", "features")] == [4, 4]
    return made


def _store(folder: Path) -> None:
    Store(folder).put("ddim", "vp", Report("ddim", (VERDICT,)))


def _use_store(folder: Path) -> None:
    Store(folder).get("ddim", "vp")


KINDS = {
    "model": Kind(
        weight=3,
        makes=lambda: [partial(_model, process=fs.VP()), partial(_model, process=fs.VP(), labels=("a", "b")),
                       partial(_model, process=fs.Blurring(size=(8, 8)), facts={"quality": [{"fid": 3.0}]})],
        use=_use_model,
        seal=_seal_model,
    ),
    "pipeline": Kind(
        weight=2,
        makes=lambda: [partial(_pipeline, scheduler=DDPMScheduler()),
                       partial(_pipeline, scheduler=FlowMatchEulerDiscreteScheduler()),
                       partial(_pipeline, scheduler=DDPMScheduler(), net=_dit()),
                       partial(_pipeline, scheduler=DDPMScheduler(), max_shard_size="6KB")],
        use=_use_pipeline,
    ),
    "classifier": Kind(weight=3, makes=lambda: [_classifier], use=_use_classifier),
    "checkpoint": Kind(weight=1, makes=lambda: [_checkpoint], use=_use_checkpoint),
    "npz": Kind(
        weight=4,
        makes=lambda: [
            partial(_npz, save=np.savez, x_train=DATA.images, y_train=DATA.labels, class_names=np.array(["a", "b"])),
            partial(_npz, save=np.savez_compressed, images=np.zeros((6, 8, 8, 3), np.uint8), labels=np.arange(6) % 3),
        ],
        use=partial(_use_data, name="data.npz"),
    ),
    "pictures": Kind(
        weight=4,
        makes=lambda: [partial(_pictures, mode="RGB", suffix=".png", labelled=True),
                       partial(_pictures, mode="L", suffix=".png", labelled=False),
                       partial(_pictures, mode="RGBA", suffix=".png", labelled=False),
                       partial(_pictures, mode="P", suffix=".png", labelled=False),
                       partial(_pictures, mode="RGB", suffix=".jpg", labelled=False)],
        use=partial(_use_data, name="pictures"),
    ),
    "measurement": Kind(
        weight=1, makes=lambda: [partial(_left, _measure)], use=partial(_as_good_as_none, _measure)
    ),
    "fit": Kind(weight=0.5, makes=lambda: [partial(_left, _fit)], use=partial(_as_good_as_none, _fit)),
    "bench": Kind(weight=2, makes=lambda: [_bench], use=partial(_as_good_as_none, _bench)),
    "verdicts": Kind(weight=1, makes=lambda: [_store], use=partial(_as_good_as_none, _use_store)),
}  # fmt: skip
