r"""Trains a denoiser: mean squared error on the velocity, log-SNR drawn from a normal.

$$ L = E || v_\theta(z_t, t) - (\alpha_t \epsilon - \sigma_t x_0) ||^2, \qquad
   \log(\alpha_t/\sigma_t) \sim N(m, s^2) $$

On any process and for any prediction the target is the F that x0 = p z + q F asks for (`fewstep.process.predict`): on
blurring the velocity of every frequency, on CLD that of the state's statistic. The normal is truncated to the process's
range and stratified over the batch (Kingma et al. 2021, appendix I.1). With data of standard deviation `sigma_data`
this is EDM's loss and noise distribution (Karras et al. 2022, eq. 8 and table 1) written for a variance-preserving
process.

How it is trained is `fewstep.train.trainer`'s; pictures keep the random numbers that they have always been trained by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.data import Images
from fewstep.nets.worded import vocabulary_of
from fewstep.pace import Pace, choose
from fewstep.process import Process
from fewstep.process.operator import apply, inverse
from fewstep.process.predict import preconditioning
from fewstep.train.company import together
from fewstep.train.objective import Objective, Stage
from fewstep.train.pairs import Batch, Draw, Normal, Uniform
from fewstep.train.player import EMA, Player, Players
from fewstep.train.trainer import BUDGET, Stopped, TrainConfig, Trainer as Base, read_header

__all__ = ["BUDGET", "Setup", "Stopped", "TrainConfig", "Trainer", "check_sides", "network_config", "read_header"]


@dataclass(frozen=True)
class Pictures(Objective):
    """The error of the network's own output, on the batches of a `Trainer`."""

    trainer: Trainer

    def losses(self, at: Players, draw: Draw) -> Iterator[Mapping[str, Tensor]]:  # noqa: ARG002
        yield {"net": self.trainer.loss(draw.k)}


class Trainer(Base):
    """The trainer of a network on pictures.

    Args:
        net: the network.
        process: any process.
        images: (N, H, W) or (N, H, W, C) uint8.
        labels: (N,) integers from 0, or None.
        config: the run.
        checkpoint: the file to save to and load from.
        call: (x, t, classes) -> the network's output, shaped like x (`fewstep.process.predict.view` of the state); t
            float64 (B,), classes (B,) with 0 for no label.
        predicts: what the network learns to return, a name of `fewstep.wrap`.
        setup: what else the run depends on (network, process, data), saved in the checkpoint.
        device: where the network lives.
        pace: precision, memory format and threads; what it leaves open is that of the checkpoint, or else measured.
    """

    def __init__(
        self,
        net: nn.Module,
        process: Process,
        images: np.ndarray,
        labels: np.ndarray | None,
        config: TrainConfig,
        checkpoint: Path,
        call: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        *,
        predicts: str = "v",
        setup: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        pace: Pace | None = None,
    ) -> None:
        self.net, self.process = net.to(device), process
        self.images, self.labels, self.call, self.predicts = images, labels, call, predicts
        super().__init__(
            Players({"net": Player(self.net)}), [Stage(objective=Pictures(self))], _numbered, config, checkpoint,
            setup=setup, device=device, pace=pace,
        )  # fmt: skip

    @property
    def average(self) -> nn.Module:
        """The network of averaged weights."""
        return self.players["net"].averages[EMA]

    def chosen(self) -> Pace:
        """Measured, where it is not given."""
        gpu = "bfloat16" if self.device.type != "cuda" or torch.cuda.is_bf16_supported() else "float32"
        return choose(self.net, self._timed, use="train", given=self._given, device=self.device,
                      sizes=(1, 4, 32), gpu=gpu)  # fmt: skip

    def _timed(self, pace: Pace, size: int) -> Callable[[], object]:
        """The network's part of a step, for the probe; of a single image without the way back, which is slow enough."""
        pace.place(self.net)
        x, t, labels, target = self._examples(0)
        x, t, labels, target = x[:size], t[:size], None if labels is None else labels[:size], target[:size]

        def call() -> None:
            with torch.set_grad_enabled(size > 1):
                loss = self._error(x, t, labels, target, pace)
            if size > 1:
                loss.backward()
                self.net.zero_grad(set_to_none=True)

        return call

    def batch(self, k: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Step k's clean images in [-1, 1], times, labels and noise: a function of (seed, k) alone."""
        c, n = self.config, len(self.images)
        per_epoch = n // c.batch
        order = np.random.default_rng([c.seed, 1, k // per_epoch]).permutation(n)
        rows = order[(k % per_epoch) * c.batch :][: c.batch]
        rng = np.random.default_rng([c.seed, 2, k])
        x0 = torch.from_numpy(self.images[rows].astype(np.float32) / 127.5 - 1)
        x0 = x0[:, None] if x0.ndim == 3 else x0.movedim(-1, 1)
        t = self._times((torch.arange(c.batch, dtype=torch.float64) + float(rng.random())) / c.batch)
        labels = None
        if self.labels is not None:
            labels = torch.from_numpy(self.labels[rows].astype(np.int64) + 1)
            labels[torch.from_numpy(rng.random(c.batch) < c.drop_label)] = 0  # class 0 is "no label"
        shape = (len(x0), *self.process.state_shape(tuple(x0.shape[1:])))
        eps = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
        return x0, t, labels, eps

    def _times(self, u: Tensor) -> Tensor:
        """The times of shares u in (0, 1) of the law, from noise to data."""
        c = self.config
        law = Uniform() if c.law == "uniform" else Normal(c.log_snr_mean, c.log_snr_std)
        return law.times(self.process, u)

    def loss(self, k: int) -> Tensor:
        """The mean squared error of step k, with gradients."""
        return self._error(*self._examples(k), self.pace)

    def _examples(self, k: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """What the network is called with in step k, and what it is to return."""
        x0, t, labels, eps = self.batch(k)
        rank, world = together()
        part = self.config.batch // world
        own = slice(rank * part, rank * part + part)
        x0, t, eps, labels = *(v[own] for v in (x0, t, eps)), None if labels is None else labels[own]
        x0, eps, labels = x0.to(self.device), eps.to(self.device), None if labels is None else labels.to(self.device)
        z = self.process.diffuse(x0, t, eps)
        c_in, p, q = preconditioning(self.predicts, self.process, t)
        return apply(c_in, z), t, labels, apply(inverse(q), self.process.coordinates(x0) - apply(p, z))

    def _error(self, x: Tensor, t: Tensor, labels: Tensor | None, target: Tensor, pace: Pace) -> Tensor:
        with pace.autocast(self.device):
            out = self.call(x, t, labels)
        return ((out.float() - target) ** 2).mean()


def _numbered(k: int, share: float) -> Draw:
    """A step of which the trainer draws everything itself."""
    return Draw(Batch(torch.empty(0)), k, share)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a run depends on beside `TrainConfig`; saved in the checkpoint and refused when it differs."""

    process: str = "vp"
    predicts: str | None = None  # None: as `TRAINABLE` says
    channels: tuple[int, ...] = (64, 128)
    layers: int = 1
    patch: int = 2
    words: bool = False  # the labels' names are read as words (`fewstep.nets.WordedUNet`)


def network_config(setup: Setup, data: Images) -> dict[str, Any]:
    """The diffusers config of the UNet for these images: no attention, one halving between resolutions."""
    c, h, w = data.shape
    n = len(setup.channels)
    common = {
        "sample_size": [h // setup.patch, w // setup.patch] if h != w else h // setup.patch,
        "in_channels": c * setup.patch**2,
        "out_channels": c * setup.patch**2,
        "layers_per_block": setup.layers,
        "block_out_channels": list(setup.channels),
        "norm_num_groups": math.gcd(16, *setup.channels),
    }
    if setup.words:
        return {"_class_name": "WordedUNet", "vocabulary": vocabulary_of(data.names), **common}
    return {
        "_class_name": "UNet2DModel",
        **common,
        "down_block_types": ["DownBlock2D"] * n,
        "up_block_types": ["UpBlock2D"] * n,
        "num_class_embeds": len(data.names) + 1 if data.labels is not None else None,
        "add_attention": False,
    }


def check_sides(setup: Setup, shape: tuple[int, int, int]) -> None:
    """Refuses sides that a UNet does not halve to whole numbers, or halves to nothing."""
    factor = setup.patch * 2 ** (len(setup.channels) - 1)
    _, h, w = shape
    if h % factor or w % factor:
        raise ValueError(
            f"images of {h}x{w} came for patch {setup.patch} and {len(setup.channels)} resolutions; both sides must be "
            f"divisible by {factor}; use fewer channels entries, a smaller patch, or padded images."
        )
    if (h, w) == (factor, factor) and setup.channels[-1] == math.gcd(16, *setup.channels):
        raise ValueError(
            f"images of {h}x{w} came for patch {setup.patch} and channels {setup.channels}; the last resolution is one "
            "pixel with one channel in each group that is normalised, which leaves nothing; use fewer channels entries."
        )
