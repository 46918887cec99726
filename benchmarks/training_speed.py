"""The trainer beside a plain loop by hand: the shipped architecture, one thread, the same batches and precision.

    python benchmarks/training_speed.py             # 12 steps of 32 each, in turn: a minute

Each pair of steps is run one right behind the other, in alternating order; the ratio is that of the medians of process
seconds, hand over ours: 1 is as fast, .9 is asked. Both draw data, noise and times, take the squared error of v, clip,
step AdamW and average the weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

import fewstep as fs
from fewstep.data import Images
from fewstep.denoiser import TIMES
from fewstep.model import build_network, call_network
from fewstep.pace import Pace
from fewstep.train.loop import TrainConfig, Trainer
from fewstep.train.run import Setup, network_config


def by_hand(net: nn.Module, data: torch.Tensor, labels: torch.Tensor, batch: int, pace: Pace) -> Callable[[], object]:
    """One step of a loop as anybody would write it."""
    process, average = fs.VP(), copy.deepcopy(net).requires_grad_(False)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        rows = torch.randint(len(data), (batch,), generator=generator)
        x0, y = data[rows].float()[:, None] / 127.5 - 1, labels[rows] + 1
        t = 0.001 + 0.999 * torch.rand(batch, generator=generator)
        alpha, sigma = (v.float().reshape(-1, 1, 1, 1) for v in (process.alpha(t), process.sigma(t)))
        eps = torch.randn(x0.shape, generator=generator)
        x = nn.functional.pixel_unshuffle(alpha * x0 + sigma * eps, 2)
        with pace.autocast(torch.device("cpu")):
            out = net(x, 1000 * t - 1, class_labels=y).sample
        v = nn.functional.pixel_shuffle(out, 2).float()
        ((v - (alpha * eps - sigma * x0)) ** 2).mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in net.parameters()], 1e-3)

    return step


def compare(steps: int, batch: int, precision: str) -> dict[str, float]:
    """Process seconds of a step of each, and their ratio."""
    rng = np.random.default_rng(0)
    pictures, classes = rng.integers(0, 256, (256, 28, 28)).astype(np.uint8), np.arange(256) % 10
    images = Images(images=pictures, labels=classes, names=tuple(map(str, range(10))), source="noise")
    pace = Pace(precision=precision, memory_format="contiguous", threads=1)
    torch.manual_seed(0)
    net, process = build_network(network_config(Setup(), images)), fs.VP()
    hand = by_hand(copy.deepcopy(net), torch.from_numpy(pictures), torch.from_numpy(classes), batch, pace)
    config = TrainConfig(images=10**9, batch=batch, warmup=0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            net, process, pictures, classes, config, Path(folder) / "c.safetensors",
            lambda z, t, y: call_network(net, z, TIMES["index"](process, t), y, 2, process), pace=pace,
        )  # fmt: skip
        seconds: dict[str, list[float]] = {"ours": [], "by hand": []}
        both: list[tuple[str, Callable[[], object]]] = [("ours", trainer.train_step), ("by hand", hand)]
        for k in range(steps + 1):
            for name, step in both if k % 2 else both[::-1]:
                began = time.process_time()
                step()
                seconds[name].append(time.process_time() - began)
    found = {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first warms up
    return {**found, "ratio": found["by hand"] / found["ours"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="of each (default: 12)")
    parser.add_argument("--batch", type=int, default=32, help="pictures a step (default: 32)")
    parser.add_argument("--precision", default="float32", help="float32 or bfloat16 (default: float32)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(compare(given.steps, given.batch, given.precision)))
