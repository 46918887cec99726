r"""Trains a denoiser: mean squared error on the velocity, log-SNR drawn from a normal.

$$ L = E || v_\theta(z_t, t) - (\alpha_t \epsilon - \sigma_t x_0) ||^2, \qquad
   \log(\alpha_t/\sigma_t) \sim N(m, s^2) $$

On any process and for any prediction the target is the F that x0 = p z + q F asks for (`fewstep.process.predict`): on
blurring the velocity of every frequency, on CLD that of the state's statistic. The normal is truncated to the process's
range and stratified over the batch (Kingma et al. 2021, appendix I.1). With data of standard deviation `sigma_data`
this is EDM's loss and noise distribution (Karras et al. 2022, eq. 8 and table 1) written for a variance-preserving
process.

Everything random in step k is a function of (seed, k), so a run that was killed and resumed ends in the same weights
as one that was not, bit for bit on the same machine and number of threads. The learning rate follows the share of the
budget that is spent: where `hours` is the tighter limit it follows the clock, and two runs differ in the last bits.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.files import extra, load_tensors, save_tensors
from fewstep.pace import Pace, choose, hardware
from fewstep.process import Process
from fewstep.process.operator import apply, inverse
from fewstep.process.predict import preconditioning
from fewstep.seal import is_sealed

__all__ = ["Stopped", "TrainConfig", "Trainer", "read_header"]

BUDGET = ("images", "hours")  # may change when a run goes on; everything else in TrainConfig may not

BEFORE = {"precision": "bfloat16", "memory_format": "contiguous"}  # of checkpoints that do not say it


class Stopped(KeyboardInterrupt):
    """The run was asked to stop by a signal (Ctrl-C, SIGTERM: its number) and has saved its checkpoint."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a training run is; saved in every checkpoint, and refused when it differs on resume (but for the budget).

    `images` and `hours` both end the run, whichever comes first, and the learning rate falls linearly to zero there.
    """

    images: int = 2_000_000
    hours: float = 24.0
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 20_000  # images over which the learning rate rises from zero
    ema: float = 0.999  # decay of the averaged weights, per step
    drop_label: float = 0.1  # share of labels replaced by the null class
    law: str = "normal"  # of the times: log-SNR normal with this mean and deviation, or time "uniform"
    log_snr_mean: float = 0.7
    log_snr_std: float = 1.5
    seed: int = 0


class Trainer:
    """Owns network, EMA, optimiser and counters; `run` goes on from wherever the checkpoint stands.

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
        net: torch.nn.Module,
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
        self.net, self.process, self.config, self.checkpoint = net.to(device), process, config, checkpoint
        self.images, self.labels, self.call, self.predicts = images, labels, call, predicts
        self.setup, self.device = dict(setup or {}), torch.device(device)
        self.ema = [p.detach().clone() for p in net.parameters()]
        self.optimiser = torch.optim.AdamW(net.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0)
        self.step, self.seconds, self.hardware = 0, 0.0, hardware(device)
        self._given, self._pace = pace or Pace(), Pace()  # the second is empty until it is chosen

    @property
    def pace(self) -> Pace:
        """How the network runs: chosen when first needed, and kept in the checkpoint, for the bits depend on it."""
        if self._pace == Pace():
            gpu = "bfloat16" if self.device.type != "cuda" or torch.cuda.is_bf16_supported() else "float32"
            self.pace = choose(self.net, self._timed, use="train", given=self._given, device=self.device,
                               sizes=(1, 4, 32), gpu=gpu)  # fmt: skip
        return self._pace

    @pace.setter
    def pace(self, pace: Pace) -> None:
        self._pace = pace
        pace.place(self.net)
        pairs = zip(self.net.parameters(), self.ema, strict=True)
        self.ema = [torch.empty_like(p).copy_(average) for p, average in pairs]

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
                self.optimiser.zero_grad(set_to_none=True)

        return call

    def progress(self) -> float:
        """The share of the budget that is spent, in [0, 1]."""
        images = self.step * self.config.batch / self.config.images
        return min(1.0, max(images, self.seconds / (3600 * self.config.hours)))

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
        c, p = self.config, self.process
        if c.law == "uniform":
            return p.t_max + (p.t_min - p.t_max) * u
        low, high = (float(p.log_snr(t)) for t in (p.t_max, p.t_min))
        q = [0.5 * (1 + math.erf((v - c.log_snr_mean) / c.log_snr_std / math.sqrt(2))) for v in (low, high)]
        lam = c.log_snr_mean + c.log_snr_std * torch.special.ndtri(q[0] + (q[1] - q[0]) * u)
        return torch.as_tensor(p.inverse_log_snr(lam.clamp(low, high)))

    def loss(self, k: int) -> Tensor:
        """The mean squared error of step k, with gradients."""
        return self._error(*self._examples(k), self.pace)

    def _examples(self, k: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """What the network is called with in step k, and what it is to return."""
        x0, t, labels, eps = self.batch(k)
        x0, eps, labels = x0.to(self.device), eps.to(self.device), None if labels is None else labels.to(self.device)
        z = self.process.diffuse(x0, t, eps)
        c_in, p, q = preconditioning(self.predicts, self.process, t)
        return apply(c_in, z), t, labels, apply(inverse(q), self.process.coordinates(x0) - apply(p, z))

    def _error(self, x: Tensor, t: Tensor, labels: Tensor | None, target: Tensor, pace: Pace) -> Tensor:
        with pace.autocast(self.device):
            out = self.call(x, t, labels)
        return ((out.float() - target) ** 2).mean()

    def run(self, report: Callable[[Trainer, float], None], save_every: float = 120.0) -> None:
        """Trains until the budget is spent; `report(trainer, loss)` once a step, a checkpoint every `save_every` s.

        Ctrl-C and SIGTERM end the step that is under way, save, and raise `Stopped`; a second Ctrl-C stops at once.
        """
        parameters = list(self.net.parameters())
        last = saved = time.monotonic()
        with _stop_requests() as stop, self.pace.threaded():
            while self.progress() < 1:
                warm = min(1.0, (self.step + 1) * self.config.batch / max(1, self.config.warmup))
                for group in self.optimiser.param_groups:
                    group["lr"] = self.config.lr * warm * (1 - self.progress())
                loss = self.loss(self.step)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                self.optimiser.step()
                self.optimiser.zero_grad(set_to_none=True)
                self.step += 1
                decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
                torch._foreach_lerp_(self.ema, [p.detach() for p in parameters], 1 - decay)  # type: ignore[reportPrivateImportUsage]
                value, now = float(loss.detach()), time.monotonic()
                self.seconds, last = self.seconds + now - last, now
                if not math.isfinite(value):
                    raise ValueError(
                        f"the loss of step {self.step} is {value}; the checkpoint of an earlier step is kept; "
                        "start again with a smaller lr."
                    )
                if stop or now - saved > save_every:
                    self.save()
                    saved = now
                if stop:
                    raise Stopped(stop[0])
                report(self, value)
        self.save()

    def save(self) -> None:
        """Writes the checkpoint beside its final name, then renames: a kill leaves the old one whole."""
        tensors: dict[str, Tensor] = {}
        for (name, p), ema in zip(self.net.named_parameters(), self.ema, strict=True):
            state = self.optimiser.state.get(p) or {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            tensors |= {f"net.{name}": p, f"ema.{name}": ema}
            tensors |= {f"m.{name}": state["exp_avg"], f"v.{name}": state["exp_avg_sq"]}
        header = {"step": self.step, "seconds": self.seconds, "config": asdict(self.config)}
        header |= {"setup": self.setup, "hardware": self.hardware, "pace": asdict(self.pace), "format": 2}
        save_tensors(self.checkpoint, tensors, {"fewstep": json.dumps(header, allow_nan=False)}, sealed=True)

    def load(self) -> None:
        """Goes on from the checkpoint: weights, EMA, both Adam moments, step and seconds.

        Refuses a checkpoint of another run: other options (the budget apart), network, process or data.
        """
        header = read_header(self.checkpoint)
        theirs = {k: v for k, v in header["config"].items() if k not in BUDGET} | header.get("setup", {})
        ours = {k: v for k, v in asdict(self.config).items() if k not in BUDGET}
        ours |= json.loads(json.dumps({k: v for k, v in self.setup.items() if k in theirs}))
        theirs |= header["pace"]
        ours |= {k: v for k, v in asdict(self._given).items() if v is not None and k != "threads"}
        for name in ours:
            if theirs.get(name, ours[name]) != ours[name]:
                raise ValueError(
                    f"{self.checkpoint} was made with {name} = {theirs[name]}, this run asks for {ours[name]}; a run "
                    "goes on only as it began; give the same options or another output folder."
                )
        threads = min(header["pace"]["threads"] or torch.get_num_threads(), os.cpu_count() or 1)
        self.pace = self._given.over(Pace(**header["pace"] | {"threads": threads}))
        tensors = load_tensors(self.checkpoint)
        for (name, p), ema in zip(self.net.named_parameters(), self.ema, strict=True):
            parts = [tensors.get(f"{part}.{name}") for part in ("net", "ema", "m", "v")]
            if any(t is None or (t.shape, t.dtype) != (p.shape, p.dtype) for t in parts):
                raise ValueError(
                    f"{self.checkpoint} has no {name} of shape {tuple(p.shape)}; it belongs to another network; "
                    "give the same options or another output folder."
                )
            net, average, m, v = (torch.empty_like(p).copy_(t) for t in parts if t is not None)
            p.data.copy_(net)
            ema.copy_(average)
            if header["step"]:
                self.optimiser.state[p] = {"step": torch.tensor(float(header["step"])), "exp_avg": m, "exp_avg_sq": v}
        self.step, self.seconds = header["step"], header["seconds"]
        before = header.get("hardware") or self.hardware
        self.hardware = before if self.hardware in before else f"{before}; then {self.hardware}"


def read_header(checkpoint: Path) -> dict[str, Any]:
    """Step, seconds, config, setup and pace of a checkpoint, or one sentence about why it is none.

    "sealed" says whether it holds its own checksum, as all do from format 2 on.
    """
    safe_open = extra("safetensors", "diffusers", "reading a checkpoint").safe_open
    try:
        sealed = is_sealed(checkpoint)
        with safe_open(checkpoint, "pt") as f:
            header = {"setup": {}} | json.loads(f.metadata()["fewstep"])
        if header.pop("format", 1) != 1 and not sealed:
            raise ValueError("its checksum is missing")
        step, seconds = header["step"], header["seconds"]
        if type(step) is not int or step < 0 or not 0 <= float(seconds) < math.inf:
            raise ValueError(f"its step is {step!r} and its seconds are {seconds!r}")
        if not (isinstance(header["config"], dict) and isinstance(header["setup"], dict)):
            raise ValueError("its options are no options")
        pace = asdict(Pace(**header.get("pace", BEFORE)))
        return header | {"pace": pace, "sealed": sealed}
    except Exception as error:  # safetensors raises its own class, a bare Exception
        raise ValueError(
            f"{checkpoint} is not a whole training checkpoint ({str(error)[:300]}); a run goes on only from one of its "
            "own; delete it or name another output folder."
        ) from error


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list while the block runs; the second SIGINT gets its usual meaning."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: object) -> None:  # noqa: ARG001
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
