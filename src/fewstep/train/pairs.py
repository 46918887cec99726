"""What a step of training is made of: its batch and numbers, couplings of data and noise, laws of the times."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.files import extra, load_tensors
from fewstep.grid.spacing import finite_range
from fewstep.noise import Noise
from fewstep.process import Process
from fewstep.words import Typed

__all__ = [
    "Adjacent",
    "Batch",
    "Coupling",
    "Draw",
    "Dyadic",
    "Independent",
    "Law",
    "LogitNormal",
    "Normal",
    "Paired",
    "Recorded",
    "Start",
    "Steps",
    "Times",
    "Transport",
    "TwoDraws",
    "Uniform",
    "normal_times",
]


@dataclass(frozen=True)
class Batch:
    """Clean data and what goes along with them.

    Attributes:
        x0: (B, *shape) float64, in data space.
        conditions: what the network is told beside state and times, by its own names: class_labels, w.
    """

    x0: Tensor
    conditions: Mapping[str, Tensor] = field(default_factory=dict)

    def told(self, **conditions: Tensor) -> Batch:
        """The same data with further conditions, or others."""
        return replace(self, conditions={**self.conditions, **conditions})


@dataclass(frozen=True)
class Draw:
    """Step k: its batch, and every random number by name, a function of (seed, k, name, sample).

    Attributes:
        batch: the data.
        k: the number of the step, from 0, over all stages.
        share: of the stage that is over, in [0, 1).
        seed: of the run.
        first, whole: of a batch that several processes share, where this part begins and how many samples there are.
    """

    batch: Batch
    k: int
    share: float = 0.0
    seed: int = 0
    first: int = 0
    whole: int = 0

    def normal(self, name: str, like: Tensor) -> Tensor:
        """Standard normals like a tensor (B, ...)."""
        noise, stream = Noise(self.seed, self.first), f"train/{name}"
        return noise.normal(stream, self.k, like.shape, dtype=like.dtype, device=like.device)

    def uniform(self, name: str) -> Tensor:
        """Numbers in (0, 1), one a sample, stratified over the batch in a random order: (B,) float64."""
        part = len(self.batch.x0)
        count = self.whole or part
        rng = np.random.default_rng([self.seed, self.k, *name.encode()])
        return torch.from_numpy((rng.permutation(count) + rng.random()) / count)[self.first : self.first + part]


class Coupling(Typed, ABC):
    """Which noise goes with which data."""

    @abstractmethod
    def __call__(self, draw: Draw, shape: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """(x0, eps); `shape` gives a tensor like the state of data."""

    def conditions(self, draw: Draw) -> Mapping[str, Tensor]:  # noqa: ARG002
        """What the network is told of the pairs, where they are not of the batch's data."""
        return {}


@dataclass(frozen=True)
class Independent(Coupling):
    """Any with any."""

    def __call__(self, draw: Draw, shape: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        return draw.batch.x0, draw.normal("eps", shape(draw.batch.x0))


@dataclass(frozen=True)
class Transport(Coupling):
    """The pairing within the batch of the least squared distance.

    References: Tong et al., Improving and generalizing flow-based generative models with minibatch optimal transport,
    2023, https://arxiv.org/abs/2302.00482; Pooladian et al., 2023, https://arxiv.org/abs/2304.14772.
    """

    def __call__(self, draw: Draw, shape: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        x0, eps = Independent()(draw, shape)
        assign = extra("scipy.optimize", "bench", "minibatch optimal transport").linear_sum_assignment
        cost = torch.cdist(x0.flatten(1), eps.flatten(1)) ** 2
        return x0, eps[torch.from_numpy(assign(cost.numpy(force=True))[1]).to(eps.device)]


@dataclass(frozen=True)
class Paired(Coupling):
    """Data with another end y, which the network is told: that of the batch, or a degradation of its data.

    Args:
        degrade: (x0, the draw) -> y; None: the batch has y.
        residual: what is learned is x0 - y.
    """

    degrade: Callable[[Tensor, Draw], Tensor] | None = None
    residual: bool = True

    def __call__(self, draw: Draw, shape: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        x0, eps = Independent()(draw, shape)
        return (x0 - self.conditions(draw)["y"] if self.residual else x0), eps

    def conditions(self, draw: Draw) -> dict[str, Tensor]:
        given = draw.batch.conditions.get("y") if self.degrade is None else self.degrade(draw.batch.x0, draw)
        if given is None:
            raise ValueError("got data without another end y: give degrade=, as downscale4, or pairs (x, y)")
        return {"y": given}


@dataclass(frozen=True)
class Recorded(Coupling):
    """The pairs (noise, end) of a file: a row of it for every sample of the batch."""

    path: Path

    @cached_property
    def pairs(self) -> dict[str, Tensor]:
        return load_tensors(self.path)

    @property
    def digest(self) -> str:
        """Of the file's numbers, as the checkpoint knows them."""
        whole = b"".join(self.pairs[name].contiguous().numpy().tobytes() for name in ("eps", "x0"))
        return hashlib.sha256(whole).hexdigest()

    def __call__(self, draw: Draw, shape: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        rows = self._rows(draw)
        return self.pairs["x0"][rows].to(draw.batch.x0), self.pairs["eps"][rows].to(draw.batch.x0)

    def conditions(self, draw: Draw) -> dict[str, Tensor]:
        rows = self._rows(draw)
        return {name: v[rows] for name, v in self.pairs.items() if name == "class_labels"}

    def _rows(self, draw: Draw) -> Tensor:
        return (draw.uniform("row") * len(self.pairs["eps"])).long()


@dataclass(frozen=True)
class Times:
    """Where the network is asked (t), a time on the way (u), the destination (s), and whether that is the last."""

    t: Tensor
    u: Tensor
    s: Tensor
    last: Tensor = field(default_factory=lambda: torch.tensor(False))


class Law(Typed, ABC):
    """How the times of a batch are drawn, from noise to data."""

    @abstractmethod
    def __call__(self, process: Process, draw: Draw) -> Times: ...


class One(Law):
    """A law of t alone; the destination is t itself, that of a plain denoiser."""

    def __call__(self, process: Process, draw: Draw) -> Times:
        t = self.times(process, draw.uniform("t"))
        return Times(t, t, t)

    @abstractmethod
    def times(self, process: Process, u: Tensor) -> Tensor:
        """The times of shares u in (0, 1) of the law."""


@dataclass(frozen=True)
class Normal(One):
    """Log-SNR normal, within the process's range: Karras et al. 2022 draw ln sigma ~ N(-1.2, 1.2^2)."""

    mean: float = 1.2
    std: float = 1.2

    def times(self, process: Process, u: Tensor) -> Tensor:
        return normal_times(process, u, self.mean, self.std)


@dataclass(frozen=True)
class Uniform(One):
    """Time uniform, or the log-SNR, or (sigma / alpha)^(1/7), as on EDM's grid ("karras")."""

    clock: str = "t"
    floor: float = 0.0  # the share of the range that is left out at either end, but in time

    def times(self, process: Process, u: Tensor) -> Tensor:
        if self.clock == "t":
            return process.t_max + (process.t_min - process.t_max) * u
        low, high = finite_range(process)
        u = self.floor + (1 - 2 * self.floor) * u
        if self.clock == "karras":
            first, last = math.exp(-low / 7), math.exp(-high / 7)
            return torch.as_tensor(process.inverse_log_snr(-7 * torch.log(first + (last - first) * u)))
        return torch.as_tensor(process.inverse_log_snr(low + (high - low) * u))


@dataclass(frozen=True)
class LogitNormal(One):
    """t = t_min + (t_max - t_min) sigmoid(n), n ~ N(mean, std^2)."""

    mean: float = -0.4
    std: float = 1.0

    def times(self, process: Process, u: Tensor) -> Tensor:
        n = self.mean + self.std * torch.special.ndtri(u)
        return process.t_min + (process.t_max - process.t_min) * torch.sigmoid(n)


@dataclass(frozen=True)
class Start(Law):
    """From the start to the end at once."""

    def __call__(self, process: Process, draw: Draw) -> Times:
        t = torch.full_like(draw.uniform("t"), process.t_max)
        return Times(t, t, torch.full_like(t, end(process)), torch.ones_like(t, dtype=torch.bool))


@dataclass(frozen=True)
class Steps(Law):
    """A step of a grid: t and s its ends, u a point between. `grid` has the points between at odd places."""

    grid: tuple[float, ...]

    def __call__(self, process: Process, draw: Draw) -> Times:
        grid = torch.tensor(self.grid, dtype=torch.float64)
        i = 2 * (draw.uniform("t") * ((len(grid) - 1) // 2)).long()
        return Times(grid[i], grid[i + 1], grid[i + 2], i + 3 == len(grid))


@dataclass(frozen=True)
class Adjacent(Law):
    """Times t and u of a grid, `reach` intervals apart or u its end, s; with the chances of its intervals, or alike."""

    grid: tuple[float, ...]
    chances: tuple[float, ...] = ()
    reach: int = 1

    def __call__(self, process: Process, draw: Draw) -> Times:
        grid, share = torch.tensor(self.grid, dtype=torch.float64), draw.uniform("t")
        if self.chances:
            whole = torch.tensor(self.chances, dtype=torch.float64).cumsum(0)
            i = torch.searchsorted(whole / whole[-1], share).clamp(max=len(grid) - 2)
        else:
            i = (share * (len(grid) - 1)).long()
        j = (i + self.reach).clamp(max=len(grid) - 1)
        return Times(grid[i], grid[j], grid[-1].expand(len(i)), j + 1 == len(grid))


@dataclass(frozen=True)
class TwoDraws(Law):
    """Two draws of a law, the noisier one first; for a share of the batch both are the first."""

    law: One = field(default_factory=LogitNormal)
    same: float = 0.0
    to_end: float = 0.0  # the share whose destination is the process's end

    def __call__(self, process: Process, draw: Draw) -> Times:
        a, b = (self.law.times(process, draw.uniform(name)) for name in ("t", "s"))
        t, s = torch.maximum(a, b), torch.minimum(a, b)
        share = draw.uniform("same")
        s = torch.where(share > 1 - self.to_end, end(process), s)
        return Times(t, s, torch.where(share < self.same, t, s))


@dataclass(frozen=True)
class Dyadic(Law):
    """Jumps over 1, 2, 4, ... steps of a grid of 2^k, between multiples of their length; `base`: share of single steps.

    A single step has u = s: there is nothing on the way.
    """

    grid: tuple[float, ...]
    base: float = 0.75

    def __call__(self, process: Process, draw: Draw) -> Times:
        grid = torch.tensor(self.grid, dtype=torch.float64)
        levels = (len(grid) - 1).bit_length() - 1
        share = ((draw.uniform("level") - self.base) / (1 - self.base)).clamp(max=1 - 1e-9)
        length = 2 ** torch.where(share < 0, 0, 1 + (share * levels).long())
        i = (draw.uniform("t") * ((len(grid) - 1) // length)).long() * length
        middle = torch.where(length > 1, length // 2, 1)
        return Times(grid[i], grid[i + middle], grid[i + length], i + length + 1 == len(grid))


def end(process: Process) -> float:
    """Where a run ends: at sigma = 0 where the process has such a time."""
    return process.t_min if process.t_zero is None else process.t_zero


def normal_times(process: Process, u: Tensor, mean: float, std: float) -> Tensor:
    """The times of shares u in (0, 1) of a normal in log-SNR, truncated to the process's range."""
    low, high = (float(process.log_snr(t)) for t in (process.t_max, process.t_min))
    q = [0.5 * (1 + math.erf((v - mean) / std / math.sqrt(2))) for v in (low, high)]
    lam = mean + std * torch.special.ndtri(q[0] + (q[1] - q[0]) * u)
    return torch.as_tensor(process.inverse_log_snr(lam.clamp(low, high)))
