r"""The trainer: clock, budget, checkpoints, stop and resume, for the losses that an objective yields.

    for losses in objective.losses(players, draw):
        gradients of each player's own parameters, of its own loss; then all of them step

Everything random in step k is a function of (seed, k, name, sample), and all that training changes is in the
checkpoint, which is renamed into place: a run that was killed and goes on ends in the same weights as one that was not,
bit for bit on the same machine and number of threads. The learning rate follows the share of the stage that is over:
where `hours` is the tighter limit it follows the clock, and two runs differ in the last bits.

Where several processes train together, each takes its part of every batch (`fewstep.train.company`).
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from fewstep.files import extra, load_tensors, save_tensors
from fewstep.pace import Pace, hardware
from fewstep.seal import is_sealed
from fewstep.train.company import mean, same, shared, together
from fewstep.train.objective import Stage
from fewstep.train.pairs import Draw
from fewstep.train.player import EMA, Players

__all__ = ["BUDGET", "Stopped", "TrainConfig", "Trainer", "read_header"]

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

    def check(self, samples: int) -> None:
        """Refuses what cannot work on so many samples, in one sentence."""
        if self.law not in ("normal", "uniform"):
            raise ValueError(f"law came as {self.law!r}; times are drawn 'normal' or 'uniform'; choose one.")
        checks = {
            "images": (self.images >= 1, "a whole number of at least 1"),
            "hours": (0 < self.hours < math.inf, "a number above 0; 1e6 leaves the end to images"),
            "batch": (1 <= self.batch <= samples, f"1 to {samples}, the number of samples"),
            "lr": (0 < self.lr < math.inf, "a number above 0"),
            "warmup": (self.warmup >= 0, "a whole number of at least 0"),
            "ema": (0 <= self.ema < 1, "in [0, 1)"),
            "drop_label": (0 <= self.drop_label <= 1, "in [0, 1]"),
            "seed": (0 <= self.seed < 2**63, "a whole number from 0 to 2^63 - 1"),
        }
        for name, (good, allowed) in checks.items():
            if not good:
                raise ValueError(f"{name} came as {getattr(self, name)}; allowed is {allowed}; change it.")
        if self.batch % (world := together()[1]):
            raise ValueError(f"got batch={self.batch} for {world} processes: give a multiple of {world}")


class Trainer:
    """Owns players, stages and counters; `run` goes on from wherever the checkpoint stands.

    Args:
        players: who is trained, and who is imitated.
        stages: what is done, one after the other.
        draws: (k, share of the stage) -> the numbers of step k.
        config: the run.
        checkpoint: the file to save to and load from.
        setup: what else the run depends on, saved in the checkpoint.
        device: where the networks live.
        pace: precision, memory format and threads; what it leaves open is that of the checkpoint, or else chosen.
        begins: called when a stage begins, with it and its number, before its first step.
    """

    def __init__(
        self,
        players: Players,
        stages: Sequence[Stage],
        draws: Callable[[int, float], Draw],
        config: TrainConfig,
        checkpoint: Path,
        *,
        setup: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        pace: Pace | None = None,
        begins: Callable[[Stage, int], None] | None = None,
    ) -> None:
        self.players, self.stages, self.draws, self.config, self.checkpoint = players, stages, draws, config, checkpoint
        self.setup, self.device, self.begins = dict(setup or {}), torch.device(device), begins
        self.step, self.seconds, self.hardware = 0, 0.0, hardware(device)
        self.notes: dict[str, Any] = {}  # of stages that are over: what their pairs were
        self.stage, self.since = -1, (0, 0.0)  # its number; the step and the share of the budget where it began
        self._given, self._pace = pace or Pace(), Pace()  # the second is empty until it is chosen
        whole = sum(stage.share for stage in stages)
        self._ends = [sum(stage.share for stage in stages[: k + 1]) / whole for k in range(len(stages))]

    @property
    def pace(self) -> Pace:
        """How the networks run: chosen when first needed, and kept in the checkpoint, for the bits depend on it."""
        if self._pace == Pace():
            self.pace = same(self.chosen())
        return self._pace

    @pace.setter
    def pace(self, pace: Pace) -> None:
        self._pace = pace
        for player in self.players.values():
            for net in (player.net, *player.averages.values()):
                pace.place(net)

    def chosen(self) -> Pace:
        """What is given, and the plainest for the rest."""
        return self._given.over(Pace(precision="float32", memory_format="contiguous", threads=torch.get_num_threads()))

    def progress(self) -> float:
        """The share of the budget that is spent, in [0, 1]."""
        images = self.step * self.config.batch / self.config.images
        return min(1.0, max(images, self.seconds / (3600 * self.config.hours)))

    def _enter(self) -> tuple[Stage, float]:
        """The stage of this step, and how much of it is over; a later one begins here."""
        share = self.progress()
        due = next((k for k, end in enumerate(self._ends) if share < end - 1e-12), len(self._ends) - 1)
        while self.stage < due:
            self.stage += 1
            self.since = self.step, share if self.stage else 0.0
            if self.stages[self.stage].promotes:
                self.players.promote()
            for name in (*self.stages[self.stage].copies, "net") if self.stage else ():
                self.players[name].become(self.players["net"].averages[EMA])
            if self.begins is not None:
                self.begins(self.stages[self.stage], self.stage)
        first, end = self.since[1], self._ends[self.stage]
        return self.stages[self.stage], share if len(self.stages) == 1 else max(0.0, (share - first) / (end - first))

    def train_step(self) -> float:
        """One step; the loss of the first player."""
        stage, share = self._enter()
        warm = min(1.0, (self.step - self.since[0] + 1) * self.config.batch / max(1, self.config.warmup))
        lr = self.config.lr * stage.lr * warm * (1 - share)
        draw = self.draws(self.step, share)
        seen: list[Tensor] = []
        for losses in stage.objective.losses(self.players, draw):
            means = {name: loss.mean() for name, loss in losses.items()}
            seen += [value.detach() for value in means.values()]
            *others, last = means
            found = {name: self.players[name].gradients(means[name], again=True) for name in others}
            found[last] = self.players[last].gradients(means[last], again=False)
            for name, gradients in found.items():
                self.players[name].step(mean(gradients), lr)
        self.step += 1
        done = self.step - self.since[0]
        decay = min(self.config.ema if stage.ema is None else stage.ema, (1 + done) / (10 + done))
        for name in stage.objective.players:
            more = stage.objective.decays(draw) if name == "net" else {}
            self.players[name].follow({EMA: decay, **more})
        values = [float(value) for value in seen]
        return next((value for value in values if not math.isfinite(value)), values[0] if values else 0.0)

    def run(self, report: Callable[[Self, float], None], save_every: float = 120.0) -> None:
        """Trains until the budget is spent; `report(trainer, loss)` once a step, a checkpoint every `save_every` s.

        Ctrl-C and SIGTERM end the step that is under way, save, and raise `Stopped`; a second Ctrl-C stops at once.
        """
        last = saved = time.monotonic()
        with _stop_requests() as stop, self.pace.threaded():
            while self.progress() < 1:
                value, now = self.train_step(), time.monotonic()
                spent, stops, value = shared(now - last, float(bool(stop)), value)
                self.seconds, last = self.seconds + spent, now
                if not math.isfinite(value):
                    raise ValueError(
                        f"the loss of step {self.step} is {value}; the checkpoint of an earlier step is kept; "
                        "start again with a smaller lr."
                    )
                if stops or now - saved > save_every:
                    self.save()
                    saved = now
                if stops:
                    raise Stopped(stop[0] if stop else signal.SIGTERM)
                report(self, value)
        self.save()

    def save(self) -> None:
        """Writes the checkpoint beside its final name, then renames: a kill leaves the old one whole."""
        tensors: dict[str, Tensor] = {}
        for name, player in self.players.items():
            tensors |= player.tensors("" if name == "net" else f"{name}/")
        header = {"step": self.step, "seconds": self.seconds, "config": asdict(self.config)}
        header |= {"setup": self.setup, "hardware": self.hardware, "pace": asdict(self.pace), "format": 2}
        header |= {"stage": self.stage, "since": self.since, "became": self.players.became, "notes": self.notes}
        header["updates"] = {name: player.updates for name, player in self.players.items()}
        if together()[0] == 0:
            save_tensors(self.checkpoint, tensors, {"fewstep": json.dumps(header, allow_nan=False)}, sealed=True)

    def load(self) -> None:
        """Goes on from the checkpoint: weights, averages, both moments of every player, stage, step and seconds.

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
        if header.get("became"):
            self.players.promote()
        threads = min(header["pace"]["threads"] or torch.get_num_threads(), os.cpu_count() or 1)
        self.pace = self._given.over(Pace(**header["pace"] | {"threads": threads}))
        tensors, updates = load_tensors(self.checkpoint), header.get("updates", {})
        for name, player in self.players.items():
            try:
                player.restore(tensors, "" if name == "net" else f"{name}/", updates.get(name, header["step"]))
            except ValueError as error:
                raise ValueError(
                    f"{self.checkpoint} {error}; it belongs to another network; give the same options or another "
                    "output folder."
                ) from error
        self.step, self.seconds, self.notes = header["step"], header["seconds"], header.get("notes", {})
        self.stage, self.since = header.get("stage", 0 if self.step else -1), tuple(header.get("since", (0, 0.0)))
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
