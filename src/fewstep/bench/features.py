"""Feature spaces: where quality is measured, and the features of real samples that others are held against.

| name            | what it is                                                                       |
|-----------------|----------------------------------------------------------------------------------|
| classifier      | the shipped classifier of 28x28 clothes, whose reference features come with it    |
| pixels          | the samples themselves, flattened                                                |
| a folder        | a classifier made by `python -m fewstep.quality`; or a vision model of            |
|                 | transformers (DINOv2 and its like), weights from safetensors                      |
| module:function | any function of samples (n, *shape) -> (n, d); file.py:function works too         |
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.bench.subject import Subject
from fewstep.check.subject import named_object
from fewstep.data import read_images
from fewstep.files import extra, kept_tensors, read_json, save_tensors, sha256
from fewstep.quality import images_to_tensor, load_classifier, load_reference
from fewstep.quality.classifier import KIND, SHIPPED

__all__ = ["Features", "Real", "check_features", "features_of", "real"]

MOST = 10_000  # real samples on either side
BATCH = 256
CLOTHES = (1, 28, 28)
GIVE = "classifier, pixels, the folder of a vision model, or module:function"


@dataclass(frozen=True, kw_only=True)
class Features:
    """`of`: samples (n, *shape) -> features (n, d) float32; `digest` says which function it is."""

    name: str
    digest: str
    of: Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Real:
    """Features of real samples: `reference` (n, d) is what others are held against, `other` (m, d) gives the floor."""

    source: str
    reference: Tensor
    other: Tensor


def features_of(name: str | None, subject: Subject) -> Features:
    """The feature space by its name; None is the classifier for 28x28 pictures and the samples themselves otherwise."""
    name = name or ("classifier" if subject.shape == CLOTHES else "pixels")
    if name == "pixels":
        return Features(name=name, digest=name, of=lambda x: x.flatten(1).float())
    if name == "classifier":
        if subject.shape != CLOTHES:
            sees = f"got the features classifier for samples of shape {subject.shape}: it sees {CLOTHES}"
            raise ValueError(f"{sees}; give {GIVE.removeprefix('classifier, ')}")
        return Features(name=name, digest=sha256(SHIPPED / "weights.safetensors"), of=load_classifier().features)
    if Path(name).is_dir():
        return _classifier(Path(name), subject) or _transformer(Path(name))
    check_features(name)
    function = named_object(name)
    where = Path(name.rpartition(":")[0])
    digest = sha256(where) if where.is_file() else name
    return Features(name=name, digest=digest, of=lambda x: _checked(torch.as_tensor(function(x)), x, name))


def check_features(name: str | None) -> None:
    """Refuses what is no name of a feature space."""
    if name not in (None, "pixels", "classifier") and ":" not in name and not Path(name).is_dir():
        raise ValueError(f"got the features {name!r}: give {GIVE}")


def real(features: Features, subject: Subject, data: str | Path | None, kept: Path) -> Real | None:
    """Features of real samples: of `data`, of the subject's own, or the shipped ones; None where there are none.

    Of own data one half, in random order, is the reference and the other the floor; at most 10,000 each. What was
    computed is kept in the folder `kept`.
    """
    if data is not None:
        given = read_images(data)
        given.check_shape(subject.shape, data)
        samples, source, digest = images_to_tensor(given.images), given.source, given.fingerprint()
    elif subject.data is not None:
        samples, source, digest = subject.data.float(), f"the data of {subject.name}", subject.digest
    elif features.name != "classifier":
        return None
    else:
        shipped = load_reference()
        return Real(source="the shipped reference features", reference=shipped.test, other=shipped.held_out)
    if len(samples) < 8:
        raise ValueError(f"got {len(samples)} real samples in {source}: give at least 8")
    path = kept / f"real-{hashlib.sha256(f'{digest} {features.digest}'.encode()).hexdigest()[:16]}.safetensors"
    if not (found := kept_tensors(path)):
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[: 2 * MOST]
        half = len(order) // 2
        parts = {"reference": order[:half], "other": order[half:]}
        found = {name: torch.cat([features.of(samples[rows]) for rows in part.split(BATCH)])
                 for name, part in parts.items()}  # fmt: skip
        save_tensors(path, found, sealed=True)
    return Real(source=source, **found)


def _classifier(folder: Path, subject: Subject) -> Features | None:
    """The classifier of a folder; None where it holds something else."""
    config = folder / "config.json"
    if not config.is_file() or read_json(config, "a feature space").get("kind") != KIND:
        return None
    net = load_classifier(folder)
    if subject.shape != (sees := tuple(net.config["shape"])):
        raise ValueError(f"got the classifier {folder} for samples of shape {subject.shape}: it sees {sees}")
    return Features(name=folder.resolve().name, digest=sha256(folder / "weights.safetensors"), of=net.features)


def _transformer(folder: Path) -> Features:
    """The pooled output of a vision model of transformers, from a folder with config.json and model.safetensors.

    Pictures are resized to the model's own size (bicubic) and normalised with the folder's mean and standard deviation.
    """
    models = extra("transformers", "features", "a vision model as feature space")
    try:
        net: nn.Module = models.AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    except Exception as error:  # the library raises what it comes upon
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{folder} is not a model folder that transformers reads ({reason}): give one with config.json and "
            "model.safetensors"
        ) from error
    size = getattr(net.config, "image_size", None)
    if not isinstance(size, int):
        raise ValueError(f"{folder} holds no vision model with an image_size in config.json: give one, as DINOv2")
    path = folder / "preprocessor_config.json"
    about = read_json(path, "a vision model") if path.is_file() else {}
    mean, std = (torch.tensor(about.get(key, [0.5] * 3)).view(-1, 1, 1) for key in ("image_mean", "image_std"))

    @torch.inference_mode()
    def of(x: Tensor) -> Tensor:
        parts = []
        for part in x.float().split(BATCH):
            pixels = nn.functional.interpolate(part, size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1)
            pixels = ((pixels + 1) / 2).expand(-1, 3, -1, -1)
            out = net(pixel_values=(pixels - mean) / std)
            pooled = getattr(out, "pooler_output", None)
            parts.append((out.last_hidden_state[:, 0] if pooled is None else pooled).flatten(1))
        return torch.cat(parts)

    return Features(name=folder.resolve().name, digest=sha256(folder / "model.safetensors"), of=of)


def _checked(features: Tensor, samples: Tensor, name: str) -> Tensor:
    if features.ndim != 2 or len(features) != len(samples):
        raise ValueError(
            f"{name} made features of shape {tuple(features.shape)} of {len(samples)} samples: they must be (n, d)"
        )
    return features.detach().float().cpu()
