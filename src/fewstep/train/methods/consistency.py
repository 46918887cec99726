r"""Consistency: f(z_t, t) and f(z_u, u) of neighbours t > u on one trajectory are the same end of the ODE.

$$ E\; w\; d\big(f_\theta(z_t, t),\; f_{avg}(\tilde z_u, u)\big) $$

| method                 | z_u comes of             | f at u is             | times, distance                          |
|------------------------|--------------------------|-----------------------|------------------------------------------|
| `consistency`          | Heun's step of a teacher | an average, mu 0.95   | a Karras grid of N, l2                   |
| `consistency-training` | the same noise           | an average, mu(k)     | N(k) from 2 to 150                       |
| `improved-consistency` | the same noise           | the network itself    | N(k) doubles, log-normal; Huber, over t-u|
| `easy-consistency`     | the same noise           | the network itself    | u = r(t, stage), log-normal; norm        |

f is the network's x0 where the destination is the data; at the end of the grid it is the state itself. `predicts`
"consistency" are EDM's scalings with that boundary built in; any other prediction has it by that rule. Times are
written in sigma there and run from noise to data as here; published N count boundaries, one more than intervals.

References: Song, Dhariwal, Chen, Sutskever, 2023, https://arxiv.org/abs/2303.01469; Song, Dhariwal, Improved
techniques, 2023, https://arxiv.org/abs/2310.14189; Geng et al., Easy consistency tuning, 2024, https://arxiv.org/abs/2406.14548.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.grid import GRIDS
from fewstep.process import Process
from fewstep.process.operator import apply, inverse
from fewstep.tableau import Tableau
from fewstep.train.methods.base import Method, Setting, table, times
from fewstep.train.methods.denoise import Denoise
from fewstep.train.objective import Stage
from fewstep.train.pairs import Adjacent, Draw, Normal, Times, end
from fewstep.train.player import Denoises, Players
from fewstep.train.regression import Regression
from fewstep.train.target import Point, Target, column, heun

__all__ = ["Consistency", "ConsistencyTraining", "Consistent", "EasyConsistency", "ImprovedConsistency"]

KARRAS = {"s0": 10, "s1": 1280, "mean": -1.1, "std": 2.0}  # of ln sigma


@dataclass(frozen=True)
class Consistent(Target):
    """f at the neighbour, of an average of the network or of itself; z_u by the teacher, or by the same noise.

    `reach`: how many Heun steps of the teacher lead there, even in Karras's scale, sigma^(1/7).
    """

    taught: bool = True
    carrier: str | None = "target"
    reach: int = 1

    def __call__(self, at: Players, point: Point) -> Tensor:
        p = point
        same = p.process.diffuse(p.x0, p.u, p.eps)
        z = self.led(at.teacher(p.batch), p) if self.taught else same
        f = at["net"].at(p.batch, self.carrier)(z, p.u, p.s)
        return torch.where(column(p.last, f), p.process.from_coordinates(apply(inverse(p.process.M(p.u)), z)), f)

    def led(self, teacher: Denoises, point: Point) -> Tensor:
        """The state at u that the teacher leads to."""
        p, z, t = point.process, point.z, point.t
        far, near = (torch.exp(-p.log_snr(v) / 7) for v in (point.t, point.u))
        for k in range(1, self.reach):
            u = torch.as_tensor(p.inverse_log_snr(-7 * (far + k / self.reach * (near - far)).log()))
            z, t = heun(p, teacher, z, t, u), u
        return heun(p, teacher, z, t, point.u)


@dataclass(frozen=True)
class Imitated(Target):
    """The teacher's D, which varies less than the data."""

    def __call__(self, at: Players, point: Point) -> Tensor:
        return at.teacher(point.batch)(point.z, point.t)


@dataclass(frozen=True, kw_only=True)
class Discretised(Regression):
    """Neighbours on a Karras grid whose number of points follows the training: `count` of (k, K) by name."""

    count: str
    mu0: float = 0.0
    even: float = 1.0

    averages: ClassVar[tuple[str, ...]] = ("target",)

    def times(self, draw: Draw) -> Times:
        points = COUNTS[self.count](int(draw.share * 2**20), 2**20)
        return _neighbours(self.process, points, self.even)(self.process, draw)

    def decays(self, draw: Draw) -> Mapping[str, float]:
        return {"target": ct_decay(COUNTS[self.count](int(draw.share * 2**20), 2**20), self.mu0)} if self.mu0 else {}


@dataclass(frozen=True, kw_only=True)
class Distilled(Regression):
    """Neighbours of a fixed grid, an average of constant decay."""

    mu: float = 0.95

    def decays(self, draw: Draw) -> Mapping[str, float]:  # noqa: ARG002
        return {"target": self.mu}


@dataclass(frozen=True, kw_only=True)
class Easy(Regression):
    """t log-normal, u = r(t) of the stage, which is nearer to t from stage to stage."""

    doublings: int = 6
    even: float = 0.0

    def times(self, draw: Draw) -> Times:
        t = evened(self.process, draw, Normal(-KARRAS["mean"], KARRAS["std"])(self.process, draw).t, self.even)
        rho = torch.exp(-self.process.log_snr(t))
        rho_u = easy_r(rho, int(draw.share * self.doublings))
        u = torch.where(rho_u > 0, self.process.inverse_log_snr(-rho_u.clamp(min=1e-9).log()), end(self.process))
        return Times(t, u, torch.full_like(t, end(self.process)), rho_u <= 0)


@lru_cache(maxsize=1)
def _neighbours(process: Process, points: int, even: float, reach: int = 1) -> Adjacent:
    """The law of a grid of so many points, a share `even` of it alike: the same for many steps in a row."""
    grid = GRIDS["karras"](process, points - 1)
    normal = interval_chances(torch.exp(-process.log_snr(grid)).flip(0)).flip(0)
    return Adjacent(tuple(grid.tolist()), tuple((even / len(normal) + (1 - even) * normal).tolist()), reach)


def evened(process: Process, draw: Draw, t: Tensor, even: float) -> Tensor:
    """Times, a share of which are drawn anew, alike over Karras's grid: a normal law all but leaves out the start."""
    grid = GRIDS["karras"](process, 256)
    return torch.where(draw.uniform("even") < even, grid[(draw.uniform("place") * 256).long()], t)


def ct_count(k: int, total: int, s0: int = 2, s1: int = 150) -> int:
    """N(k): ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 boundaries."""
    return math.ceil(math.sqrt(k / total * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1


def ct_decay(count: int, mu0: float, s0: int = 2) -> float:
    """mu(k) = exp(s0 ln mu0 / (N - 1)), N the boundaries."""
    return math.exp(s0 * math.log(mu0) / (count - 1))


def doubling(total: int, s0: int = 10, s1: int = 1280) -> int:
    """K', the steps for which N stays: floor(K / (log2 floor(s1/s0) + 1))."""
    return math.floor(total / (math.log2(s1 // s0) + 1))


def ict_count(k: int, total: int, s0: int = 10, s1: int = 1280) -> int:
    """N(k) = min(s0 2^floor(k/K'), s1) + 1 boundaries."""
    return min(s0 * 2 ** (k // doubling(total, s0, s1)), s1) + 1


def interval_chances(sigmas: Tensor) -> Tensor:
    """The chances of the intervals of ascending sigmas: the mass of ln sigma ~ N(-1.1, 2^2) in each."""
    place = torch.erf((sigmas.log() - KARRAS["mean"]) / (math.sqrt(2) * KARRAS["std"]))
    return place.diff() / (place[-1] - place[0])


def easy_r(t: Tensor, stage: int, q: float = 2.0, k: float = 8.0, b: float = 1.0) -> Tensor:
    """r(t) = max(0, t (1 - (1 + k sigmoid(-b t)) / q^(stage + 1))), in sigma."""
    return (t * (1 - (1 + k * torch.sigmoid(-b * t)) / q ** (stage + 1))).clamp(min=0)


COUNTS = {"ct": ct_count, "ict": ict_count}


@dataclass(frozen=True, kw_only=True)
class Consistency(Method):
    """Consistency distillation: a teacher's Heun step, an average network at its end.

    Args:
        points: N, the boundaries of the grid.
        reach: how many of its intervals the neighbours are apart, one Heun step of the teacher each; published is 1, by
            which an end passes through the network twice as often on its way to the start as by 2, erring each time.
        mu: the decay of the average at u.
        start: the share of the budget in which the network first learns the teacher's D, where it does not begin as it.
        middle: sigma / alpha where the second of two calls is.
        weight: in `WEIGHTS`; published is "uniform", by which the small sigmas, where modes part, are learned last.
        even: the share of steps drawn alike over the grid; the others are log-normal, which leaves out few that matter.
    """

    points: int = 18
    reach: int = 2
    mu: float = 0.9
    start: float = 0.1
    middle: float = 0.8
    weight: str | None = "root"
    even: float = 0.3

    needs: ClassVar[bool] = True
    averages: ClassVar[tuple[str, ...]] = ("target",)
    process: ClassVar[str] = "edm"
    predicts: ClassVar[str | None] = "edm"
    rows: ClassVar[str] = "ends"
    lr: ClassVar[float] = 8e-3

    def stages(self, on: Setting) -> list[Stage]:
        first = Denoise().objective(on)
        first = replace(first, target=Imitated()) if on.taught else first
        begins = [] if on.started or not self.start else [Stage(objective=first, share=self.start)]
        stage = Stage(objective=self.objective(on), share=1 - self.start if begins else 1.0)
        return [*begins, stage]

    def objective(self, on: Setting) -> Regression:
        """That of the last stage."""
        law, target = _neighbours(on.process, self.points, self.even, self.reach), Consistent(reach=self.reach)
        return Distilled(process=on.process, law=law, target=target, weight=self.weight, mu=self.mu)

    def tables(self, process: Process) -> dict[str, Tableau]:
        ends, middle = times(process, "default", 1), float(process.inverse_log_snr(-math.log(self.middle)))
        two = torch.tensor([ends[0], middle, ends[-1]], dtype=torch.float64)
        return {"1": table("lcm", process, ends), "2": table("lcm", process, two)}


@dataclass(frozen=True, kw_only=True)
class ConsistencyTraining(Consistency):
    """Consistency training: the same noise in place of a teacher; N(k) and mu(k) as published."""

    start: float = 0.0

    needs: ClassVar[bool] = False

    def objective(self, on: Setting) -> Regression:
        return Discretised(process=on.process, target=Consistent(taught=False), weight=self.weight, count="ct",
                           mu0=self.mu, even=self.even)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ImprovedConsistency(Consistency):
    """Improved consistency training: no average, N doubles, log-normal times, Huber over t - u."""

    start: float = 0.0

    needs: ClassVar[bool] = False
    averages: ClassVar[tuple[str, ...]] = ()
    optimiser: ClassVar[str] = "radam"

    def objective(self, on: Setting) -> Regression:
        return Discretised(process=on.process, target=Consistent(taught=False, carrier=None), weight="uniform",
                           distance="huber", scale=0.00054 * math.sqrt(on.size), span=True, count="ict",
                           even=self.even)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EasyConsistency(ImprovedConsistency):
    """Easy consistency tuning: a denoiser goes on, u nearing t in six stages; norm over t - u.

    Published are eight, in runs so long that the last, whose targets vary most, are learned.
    """

    start: float = 0.1

    def objective(self, on: Setting) -> Regression:
        return Easy(process=on.process, target=Consistent(taught=False, carrier=None), weight="uniform",
                    distance="norm", span=True, even=self.even)  # fmt: skip
