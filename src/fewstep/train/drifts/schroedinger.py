r"""Schroedinger bridges: two networks that carry one law to another and back, fitted to each other in turns.

| method  | a network is fitted to walks of the other by                                                         |
|---------|------------------------------------------------------------------------------------------------------|
| `dsb`   | mean matching, at every step of the walk (`fewstep.schroedinger.chain`)                              |
| `dsbm`  | bridge matching: (z_goal - z_t)/u where z_t lies on a Brownian bridge between a walk's ends          |
| `fbsde` | likelihood (`fewstep.schroedinger.fbsde`), after score matching with Z = 0; or both networks at once |

u is the share of the way that is left. The first walk of `dsb` is the reference's, Brownian, or Langevin's towards the
far law as published; the first ends of `dsbm` are independent. Every round is a stage for each direction, and walks are
those of the other network's average. Times run from 1 to 0 in both directions.

References: De Bortoli et al., 2021, https://arxiv.org/abs/2106.01357; Shi et al., 2023,
https://arxiv.org/abs/2303.16852; Chen, Liu, Theodorou, 2021, https://arxiv.org/abs/2110.11291.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.nets import MLP
from fewstep.process import VP
from fewstep.schroedinger import fbsde
from fewstep.schroedinger.chain import NoiseChain, Pair
from fewstep.train.methods.base import Method, Setting
from fewstep.train.objective import Objective, Stage
from fewstep.train.pairs import Draw
from fewstep.train.player import EMA, Player, Players, Reads
from fewstep.words import Typed, among

__all__ = ["Alternating", "BridgeMatching", "Far", "MeanMatching", "TwoEquations"]

NETS = {"backward": "net", "forward": "forward"}  # players by direction
OTHER = {"backward": "forward", "forward": "backward"}
Called = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Far(Typed):
    """The law at the far end: standard normals, or the points of a file."""

    end: str = "normal"

    @cached_property
    def points(self) -> Tensor | None:
        if self.end == "normal":
            return None
        from fewstep.train.source import floats  # which stands on methods

        if (found := floats(self.end)) is None:
            raise ValueError(
                f"got end={self.end!r}, which holds no points: give an npy file of floats (N, D), or an npz file of x"
            )
        return torch.from_numpy(found[0]).double()

    def __call__(self, draw: Draw) -> Tensor:
        x0 = draw.batch.x0
        if self.points is None:
            return draw.normal("far", x0)
        return self.points[(draw.uniform("far") * len(self.points)).long()]

    @property
    def moments(self) -> tuple[Tensor | float, Tensor | float]:
        """Mean and variance."""
        return (0.0, 1.0) if self.points is None else (self.points.mean(0), self.points.var())


@dataclass(frozen=True, kw_only=True)
class Turn(Objective):
    """A half round: the network of `direction` learns from walks the other way."""

    direction: str
    steps: int
    far: Far

    @property
    def players(self) -> tuple[str, ...]:  # type: ignore[override]
        return (NETS[self.direction],)

    def own(self, at: Players) -> Called:
        """The network that learns."""
        return called(at[NETS[self.direction]].net)

    def walker(self, at: Players) -> Called:
        """The average of the other."""
        return called(at[NETS[OTHER[self.direction]]].averages[EMA])

    def start(self, draw: Draw) -> Tensor:
        """Where walks begin."""
        return draw.batch.x0 if self.direction == "backward" else self.far(draw)

    def left(self, like: Tensor) -> Tensor:
        """The share that is left for `direction` at the states 1 to N of a walk: (N batch,)."""
        return (torch.arange(1, self.steps + 1, dtype=like.dtype) / self.steps).repeat_interleave(len(like))

    def shares(self, x: Tensor, k: int) -> Tensor:
        """The share that is left for the walker at its state k."""
        return torch.full((len(x),), 1 - k / self.steps, dtype=x.dtype)


@dataclass(frozen=True, kw_only=True)
class MeanMatching(Turn):
    """DSB; `first` names the reference of walks that no network makes: "brownian", "langevin" or ""."""

    chain: NoiseChain
    first: str = ""

    def losses(self, at: Players, draw: Draw) -> Iterator[Mapping[str, Tensor]]:
        chain = self.chain if self.direction == "backward" else self.chain.turned
        x, walker, gammas = self.start(draw), self.walker(at), chain.gammas
        mean, variance = self.far.moments if self.first == "langevin" else (0.0, math.inf)

        def step(x: Tensor, k: int) -> Tensor:
            if self.first:
                return x - gammas[k] * (x - mean) / variance
            return x + 2 * gammas[k] * walker(x, self.shares(x, k))

        with torch.no_grad():
            path = chain.path(step, x, lambda k: draw.normal(f"walk{k}", x))
            goal = chain.targets(step, path) / (2 * torch.tensor(gammas, dtype=x.dtype).reshape(-1, *(1,) * x.ndim))
        states = path[1:].flatten(0, 1)
        off = self.own(at)(states, self.left(x)) - goal.flatten(0, 1)
        yield {self.players[0]: (off**2).flatten(1).mean(1)}


@dataclass(frozen=True, kw_only=True)
class BridgeMatching(Turn):
    """DSBM, u |b - (z_goal - z_t)/u|^2 at `times` times of every pair; `first`: of independent ends."""

    variance: float
    times: int = 8
    first: bool = False

    def losses(self, at: Players, draw: Draw) -> Iterator[Mapping[str, Tensor]]:
        goal, walker = self.start(draw), self.walker(at)
        far = draw.batch.x0 if self.direction == "forward" else self.far(draw)
        with torch.no_grad():
            if not self.first:
                far = goal
                for k in range(self.steps):
                    noise = math.sqrt(self.variance / self.steps) * draw.normal(f"walk{k}", far)
                    far = far + walker(far, self.shares(far, k)) / self.steps + noise
        found = []
        for k in range(self.times):
            u = draw.uniform(f"u{k}").clamp(1e-3, 1 - 1e-3).reshape(-1, *(1,) * (far.ndim - 1))
            z = u * far + (1 - u) * goal + (self.variance * u * (1 - u)).sqrt() * draw.normal(f"bridge{k}", far)
            off = u.sqrt() * self.own(at)(z, u.flatten()) - (goal - z) / u.sqrt()
            found.append((off**2).flatten(1).mean(1))
        yield {self.players[0]: torch.stack(found).mean(0)}


@dataclass(frozen=True, kw_only=True)
class TwoEquations(Turn):
    """SB-FBSDE; `first`: score matching, of the reference's own states; `joint`: both networks at once."""

    process: VP
    first: bool = False
    joint: bool = False

    @property
    def players(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("net", "forward") if self.joint else super().players

    def losses(self, at: Players, draw: Draw) -> Iterator[Mapping[str, Tensor]]:
        p, x, own, h = self.process, self.start(draw), self.own(at), self.process.t_max / self.steps
        if self.first:
            t = p.t_max * draw.uniform("t").clamp(min=1e-3)
            eps = draw.normal("eps", x)
            z, g = p.diffuse(x, t, eps), torch.as_tensor(p.GG(t)).sqrt()
            scale = (torch.as_tensor(p.sigma(t)) / g).reshape(-1, *(1,) * (x.ndim - 1))
            yield {"net": ((scale * own(z, t / p.t_max) + eps) ** 2).flatten(1).mean(1)}
            return
        walker = called(at["forward"].net) if self.joint else self.walker(at)
        sign, states, outs = (1.0 if self.direction == "backward" else -1.0), [], []
        with torch.set_grad_enabled(self.joint):
            for k in range(self.steps):
                share = self.shares(x, k)
                z, g = walker(x, share), math.sqrt(p.beta_min)
                states, outs = [*states, x], [*outs, z]
                x = fbsde.moved(x, -sign * p.beta_min / 2 * x, z, g, h, draw.normal(f"walk{k}", x))
        at_x, n = torch.cat(states), len(x)
        u = (torch.arange(self.steps, dtype=x.dtype) / self.steps).repeat_interleave(n)  # of the way that was walked
        g = torch.tensor(p.beta_min, dtype=x.dtype).sqrt()
        probe = None if x[0].numel() <= 4 else draw.normal("probe", x).sign().repeat(self.steps, *(1,) * (x.ndim - 1))
        if self.joint:
            forward = lambda y, v: walker(y, 1 - v)  # noqa: E731
            rates = fbsde.joint(forward, own, at_x, u, g, probe)
            loss = p.t_max * rates.reshape(self.steps, n).mean(0) + (x**2).flatten(1).sum(1) / 2
            yield {"net": loss, "forward": loss}
            return
        rates = fbsde.alternate(own, at_x, u, torch.cat(outs), g, probe)
        yield {self.players[0]: p.t_max * rates.reshape(self.steps, n).mean(0)}


def called(net: Any) -> Called:
    """The network on states of any dtype."""
    return lambda x, u: net(x.float(), u.float()).to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class Alternating(Method):
    """A Schroedinger bridge between the data and a far law.

    Args:
        kind: "dsb", "dsbm" or "fbsde".
        end: the far law: "normal", or a file of points, npy, npz, or FILE.npz:NAME.
        steps: of a walk.
        rounds: a backward and a forward stage each.
        variance: of the Brownian reference, over the whole way.
        reference: of dsb's first walk, "brownian" or "langevin".
        beta: of fbsde's reference, VP with this constant beta over a time of 1.
        joint: fbsde's last half is of both networks at once.
    """

    kind: str = "dsb"
    end: str = "normal"
    steps: int = 20
    rounds: int = 3
    variance: float = 1.0
    reference: str = "brownian"
    beta: float = 1.0
    joint: bool = False

    denoises: ClassVar[bool] = False

    def __post_init__(self) -> None:
        among(self, kind=("dsb", "dsbm", "fbsde"), reference=("brownian", "langevin"))
        if self.steps < 2 or self.rounds < 1 or not all(0 < v < math.inf for v in (self.variance, self.beta)):
            raise ValueError(
                f"got steps={self.steps}, rounds={self.rounds}, variance={self.variance}, beta={self.beta}: give at "
                "least 2 steps and 1 round, and finite numbers above 0"
            )
        if self.kind == "fbsde" and self.end != "normal":
            raise ValueError(f"got end={self.end!r} for fbsde, whose far law is a normal with a density: leave it out")

    def read(self, data: np.ndarray) -> np.ndarray:
        far = Far(self.end).points
        if far is not None and tuple(far.shape[1:]) != data.shape[1:]:
            raise ValueError(
                f"got points of shape {tuple(far.shape[1:])} at the far end of data of {data.shape[1:]}: "
                "give both alike"
            )
        return data

    def stages(self, on: Setting) -> list[Stage]:  # noqa: ARG002
        turns = [(way, k == 0 and way == "backward") for k in range(self.rounds) for way in OTHER]
        found: list[Objective] = [self._turn(way, first) for way, first in turns]
        if self.joint and self.kind == "fbsde":
            found = [*found[:2], TwoEquations(direction="backward", steps=self.steps, far=Far(self.end),
                                            process=self.process_of(), joint=True)]  # fmt: skip
        return [Stage(objective=objective) for objective in found]

    def _turn(self, way: str, first: bool) -> Turn:
        common: dict[str, Any] = {"direction": way, "steps": self.steps, "far": Far(self.end)}
        if self.kind == "dsb":
            chain = NoiseChain((self.variance / 2 / self.steps,) * self.steps)
            return MeanMatching(**common, chain=chain, first=self.reference if first else "")
        if self.kind == "dsbm":
            return BridgeMatching(**common, variance=self.variance, first=first)
        return TwoEquations(**common, process=self.process_of(), first=first)

    def process_of(self) -> VP:
        """The reference of fbsde."""
        return VP(beta_min=self.beta, beta_max=self.beta)

    def others(self, on: Setting, net: nn.Module, reads: Reads) -> Mapping[str, Player]:  # noqa: ARG002
        """The forward network begins at zero, where a half round has not come to it."""
        if not isinstance(net, MLP):
            raise ValueError(
                f"got a {type(net).__name__} as net of a bridge, which has two, perceptrons that one file holds: leave "
                "it out, or give a fewstep.nets.MLP"
            )
        forward = copy.deepcopy(net)
        nn.init.zeros_(forward.leave.weight)
        nn.init.zeros_(forward.leave.bias)
        return {"forward": Player(forward)}

    def file(self, players: Players) -> str | None:  # noqa: ARG002
        return "bridge.safetensors"

    def export(self, path: Path, players: Players, size: int, facts: Mapping[str, Any]) -> None:  # noqa: ARG002
        nets = {way: players[name].averages[EMA] for way, name in NETS.items()}
        part = 1 / self.steps
        same = (self.variance * part if self.kind != "fbsde" else self.beta * part,) * self.steps
        weights = same if self.kind == "dsb" else (part,) * self.steps
        reference = self.beta if self.kind == "fbsde" else None
        Pair(nets=nets, weights=weights, variances=same, beta=reference).save(path, **facts)
