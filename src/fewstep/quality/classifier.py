r"""A small convolutional classifier whose last hidden layer is the feature space of the quality numbers.

Distances between sets of images (fewstep.quality.metrics) are taken between their features, not their pixels. For
large photographs the custom is Inception-v3; for small pictures a network that knows their own classes sees more.

Symbols: x images (B, C, H, W) in [-1, 1]; phi(x) features (B, d); logits = W phi(x) + b (B, classes).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.files import load_tensors, read_json, save_tensors, write_json
from fewstep.pace import Pace, choose
from fewstep.words import short

__all__ = ["Classifier", "accuracy", "images_to_tensor", "load_classifier", "save_classifier", "train_classifier"]

SHIPPED = Path(__file__).resolve().parent.parent / "models" / "fashion-classifier"
KIND = "fewstep-classifier"  # what its config.json calls itself
_LARGEST = 2**16  # channels, features, classes and pixels on a side of a classifier that is read
_COUNTERS = "num_batches_tracked"  # batch normalisation counts its batches; nothing reads that afterwards


class Classifier(nn.Module):
    """Three convolutions, one hidden layer of `features` units (after ReLU: the feature space), one linear layer.

    Args:
        shape: of a picture, (C, H, W), each side at least 4.
        channels: channels of the three convolutions, at all, a quarter and a sixteenth of the positions.
        features: d, the number of features.
        classes: the number of classes.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...] = (1, 28, 28),
        channels: tuple[int, int, int] = (32, 64, 128),
        features: int = 64,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"shape": list(shape), "channels": list(channels)}
        self.config |= {"features": features, "classes": classes}
        a, b, c = channels
        left = [-(-(side // 4) // 2) for side in shape[1:]]  # positions after two halvings and one more, rounded up
        if not all(left):
            raise ValueError(f"got pictures of shape {tuple(shape)}: give sides of at least 4")
        self.body = nn.Sequential(
            *(nn.Conv2d(shape[0], a, 3, padding=1, bias=False), nn.BatchNorm2d(a), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(b, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU()),
            *(nn.AvgPool2d(2, ceil_mode=True), nn.Flatten(), nn.Dropout(0.3)),
            *(nn.Linear(c * left[0] * left[1], features), nn.BatchNorm1d(features), nn.ReLU()),
        )
        self.head = nn.Linear(features, classes)
        self.pace = Pace()  # how it runs here

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes), with gradients: the training path."""
        return self.head(self.body(x))

    @torch.inference_mode()
    def features(self, x: Tensor, *, batch: int = 256) -> Tensor:
        """phi(x): (B, *shape) in [-1, 1] -> (B, d) float32, computed `batch` images at a time."""
        shape = tuple(self.config["shape"])
        if x.ndim != 4 or tuple(x.shape[1:]) != shape or not x.is_floating_point():
            raise ValueError(
                f"images came as {x.dtype} {tuple(x.shape)}; this classifier takes floats (B, {str(shape)[1:]} in "
                "[-1, 1]; convert them with images_to_tensor or name another feature function."
            )
        with self.pace.threaded():
            return torch.cat([self.body(part.float()) for part in x.split(batch)])

    @torch.inference_mode()
    def logits(self, x: Tensor, *, batch: int = 256) -> Tensor:
        """(B, *shape) in [-1, 1] -> (B, classes) float32."""
        return self.head(self.features(x, batch=batch))


def images_to_tensor(images: np.ndarray) -> Tensor:
    """(N, H, W) or (N, H, W, C) uint8 -> (N, C, H, W) float32 in [-1, 1], the scale of the denoiser's data space."""
    x = torch.from_numpy(images.astype(np.float32) / 127.5 - 1)
    return x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous()


def accuracy(net: Classifier, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images, as `images_to_tensor` takes them, whose largest logit is their label."""
    guess = net.logits(images_to_tensor(images)).argmax(1).numpy()
    return float((guess == labels).mean())


def train_classifier(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int = 16,
    batch: int = 128,
    lr: float = 3e-3,
    weight_decay: float = 0.05,
    seed: int = 0,
    net: Classifier | None = None,
    report: Callable[[int, float], None] | None = None,
    pace: Pace | None = None,
) -> Classifier:
    """Trains with AdamW, one-cycle learning rate, horizontal flips and shifts of up to two pixels; returns it in eval.

    Args:
        images: uint8, as `images_to_tensor` takes them.
        labels: (N,) integers in [0, classes).
        report: called after every epoch with (epoch, mean loss).
        pace: precision, memory format and threads; what it leaves open is measured (`fewstep.pace`). What was chosen is
            `pace` of the classifier that is returned.
    """
    with torch.random.fork_rng(devices=[]), ExitStack() as stack:
        torch.manual_seed(seed)
        x, y = images_to_tensor(images), torch.from_numpy(labels.astype(np.int64))
        net = net if net is not None else Classifier(shape=tuple(x.shape[1:]), classes=int(labels.max()) + 1)
        rng = np.random.default_rng(seed)
        optimiser = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay)
        per_epoch = max(1, len(x) // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=epochs * per_epoch + 1)
        net.train()
        net.pace = choose(net, _timed(net, back=True), use="train", given=pace, sizes=(8, 64))
        net.pace.place(net)
        stack.enter_context(net.pace.threaded())
        for epoch in range(epochs):
            order, losses = torch.from_numpy(rng.permutation(len(x))), []
            for k in range(per_epoch):
                rows = order[k * batch :][:batch]
                part = nn.functional.pad(x[rows], (2, 2, 2, 2), value=-1.0)  # shift: crop a padded copy
                flip = torch.from_numpy(rng.random(batch) < 0.5)[:, None, None, None]
                part = torch.where(flip, part.flip(-1), part)
                i, j = rng.integers(0, 5, 2)
                with net.pace.autocast(torch.device("cpu")):
                    out = net(part[:, :, i : i + x.shape[2], j : j + x.shape[3]])
                loss = nn.functional.cross_entropy(out.float(), y[rows])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                schedule.step()
                losses.append(float(loss.detach()))
            if report is not None:
                report(epoch, float(np.mean(losses)))
    return net.eval()


def save_classifier(folder: str | Path, net: Classifier) -> None:
    """Writes config.json and weights.safetensors (float16) into `folder`, each under its final name only when whole."""
    folder = Path(folder)
    state = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    save_tensors(folder / "weights.safetensors", {k: v for k, v in state.items() if not k.endswith(_COUNTERS)})
    write_json(folder / "config.json", {"kind": KIND, **net.config})


def _sizes(config: dict[str, Any], where: Path) -> dict[str, Any]:
    """The arguments of `Classifier` in a config, each of them whole numbers of at least 1 and of a plain size."""
    for name, count in (("shape", 3), ("channels", 3), ("features", 0), ("classes", 0)):
        value = config.get(name)
        numbers = value if count and isinstance(value, list) else [value]
        if len(numbers) != (count or 1) or not all(type(n) is int and 1 <= n <= _LARGEST for n in numbers):
            allowed = f"a list of {count} whole numbers" if count else "a whole number"
            raise ValueError(
                f"{where} has {name} {short(value)}; {allowed} from 1 to {_LARGEST} is allowed; write the folder again."
            )
    return {name: tuple(v) if isinstance(v := config[name], list) else v
            for name in ("shape", "channels", "features", "classes")}  # fmt: skip


def load_classifier(folder: str | Path | None = None) -> Classifier:
    """The classifier of a folder written by `save_classifier`, in eval mode and float32; None: the shipped one."""
    folder = SHIPPED if folder is None else Path(folder)
    config = read_json(folder / "config.json", "a classifier folder")
    if config.get("kind") != KIND:
        raise ValueError(
            f"{folder / 'config.json'} has kind {short(config.get('kind'))}; a classifier folder has {KIND!r}; "
            "name another folder."
        )
    sizes = _sizes(config, folder / "config.json")
    with torch.device("meta"):  # its shapes are known before there is room for them
        wanted = {k: v.shape for k, v in Classifier(**sizes).state_dict().items() if not k.endswith(_COUNTERS)}
    state = {k: v.float() for k, v in load_tensors(folder / "weights.safetensors").items()}
    found = {k: v.shape for k, v in state.items()}
    if wanted != found:
        name = next(k for k in (*wanted, *found) if wanted.get(k) != found.get(k))
        has, asks = (str(tuple(v[name])) if name in v else "missing" for v in (found, wanted))
        weights = f"{folder / 'weights.safetensors'} has {short(name)} as {has}"
        raise ValueError(f"{weights}, its config.json asks for {asks}; write the folder again.")
    net = Classifier(**sizes)
    net.load_state_dict(state, strict=False)
    net.eval()
    given = Pace(precision="float32")  # what is measured does not depend on the machine's choice
    net.pace = choose(net, _timed(net, back=False), use="measure", given=given, sizes=(16, 256))
    net.pace.place(net)
    return net


def _timed(net: Classifier, *, back: bool) -> Callable[[Pace, int], Callable[[], object]]:
    """Calls of the classifier for the probe of its pace, with the way back or without."""

    def prepare(pace: Pace, size: int) -> Callable[[], object]:
        pace.place(net)
        shape = (size, *net.config["shape"])
        x = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)

        def call() -> None:
            with pace.autocast(torch.device("cpu")), torch.set_grad_enabled(back):
                out = net(x)
            if back:
                out.float().square().mean().backward()
                net.zero_grad(set_to_none=True)

        return call

    return prepare
