r"""Networks of two times: shortcuts, mean flows, trajectories, and consistency in continuous time.

| method       | the target of g(z_t, t, s)                                    | its own part               |
|--------------|---------------------------------------------------------------|----------------------------|
| `shortcut`   | its own two half jumps t -> u -> s; one step: D               | jumps over powers of 2     |
| `mean-flow`  | D + (S_s - S_t) dg/dS_t (`averaged`)                          | a tangent along the ODE    |
| `trajectory` | the teacher to u, then itself to s; both brought to the data  | any t > u > s              |
| `continuous` | `averaged` with s at the data, warmed up and normalised       | TrigFlow's F (is -F of EDM)|

Where there is a teacher its D is the target and gives the tangent: at small budgets that decides. Time runs from noise
to data; mean flow's and TrigFlow's do as here, shortcut's runs from 0 to 1 that way.

References: Frans et al., 2024, https://arxiv.org/abs/2410.12557; Geng et al., Mean flows, 2025,
https://arxiv.org/abs/2505.13447; Geng et al., Improved mean flows, 2025, https://arxiv.org/abs/2512.02012; Kim et al.,
Consistency trajectory models, 2023, https://arxiv.org/abs/2310.02279; Lu, Song, 2024, https://arxiv.org/abs/2410.11081.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fewstep.grid import GRIDS
from fewstep.nets.small import Features
from fewstep.process import Process
from fewstep.process.base import derivative
from fewstep.tableau import Tableau
from fewstep.train.methods.base import Method, Setting, table, times
from fewstep.train.methods.consistency import Consistency, evened
from fewstep.train.objective import Objective, Stage
from fewstep.train.pairs import Draw, Dyadic, Independent, LogitNormal, Normal, TwoDraws, Uniform
from fewstep.train.player import Player, Players, Reads
from fewstep.train.regression import Regression, error, weigh
from fewstep.train.target import Jumps, Point, Target, averaged, column, heun, jump, push, shortened

__all__ = [
    "Averaged",
    "adaptive",
    "Continuous",
    "Halves",
    "MeanFlow",
    "Shortcut",
    "Trajectory",
    "estimate",
    "normalised",
    "tangent",
]


def data(at: Players, point: Point, *, taught: bool) -> Tensor:
    """The teacher's D, or the data."""
    return at.teacher(point.batch)(point.z, point.t) if taught else point.x0


@dataclass(frozen=True)
class Halves(Target):
    """Two half jumps of the network itself, or of its average; D where a jump is one step."""

    taught: bool = False
    carrier: str | None = None

    def __call__(self, at: Players, point: Point) -> Tensor:
        p, student = point, at["net"].at(point.batch, self.carrier)
        single = p.u <= p.s
        middle = torch.where(single, (p.t + p.s) / 2, p.u)
        g = shortened(p.process, student, p.z, p.t, middle, p.s)
        return torch.where(column(single, g), data(at, p, taught=self.taught), g)


@dataclass(frozen=True)
class Averaged(Target):
    """The differential form; `own`: the tangent is along the network's own g(z, t, t), as in improved mean flows."""

    taught: bool = False
    own: bool = False

    def __call__(self, at: Players, point: Point) -> Tensor:
        p, student = point, at["net"].at(point.batch)
        x0 = data(at, p, taught=self.taught)
        along = student(p.z, p.t, p.t) if self.own else x0
        g, rate = push(p.process, student, p.z, p.t, p.s, along)
        return averaged(p.process, g, rate, p.t, p.s, x0, along)


class TwoTimes(Method):
    """A method whose student jumps from anywhere to anywhere."""

    destination: ClassVar[bool] = True
    process: ClassVar[str] = "flow"
    predicts: ClassVar[str | None] = "flow"
    rows: ClassVar[str] = "jumps"
    spacing: ClassVar[str] = "uniform"
    lr: ClassVar[float] = 8e-3

    def tables(self, process: Process) -> dict[str, Tableau]:
        return {str(n): table("ddim", process, times(process, self.spacing, n)) for n in (1, 2, 4)}


@dataclass(frozen=True, kw_only=True)
class Shortcut(TwoTimes):
    """Shortcut models: a share `base` of single steps of 1/`steps`, the rest its own two half jumps."""

    steps: int = 128
    base: float = 0.75

    def stages(self, on: Setting) -> list[Stage]:
        law = Dyadic(tuple(times(on.process, "uniform", self.steps).tolist()), self.base)
        return [Stage(objective=Regression(process=on.process, law=law, target=Halves(taught=on.taught)))]


@dataclass(frozen=True, kw_only=True)
class MeanFlow(TwoTimes):
    """Mean flows: the average velocity by its differential form.

    Args:
        same: the share of s = t, which a teacher makes needless.
        own: the tangent along the network's own velocity, as improved mean flows have it.
        to_end: the share of jumps to the data, with a teacher.
    """

    same: float = 0.75
    own: bool = False
    to_end: float = 0.25

    def stages(self, on: Setting) -> list[Stage]:
        same = 0.0 if on.taught else self.same
        law = TwoDraws(Uniform() if on.taught else LogitNormal(), same, self.to_end if on.taught else 0.0)
        target = Averaged(taught=on.taught, own=self.own and not on.taught)
        distance = ("l2", 0.0) if on.taught else ("adaptive", 0.01)
        return [Stage(objective=Regression(process=on.process, law=law, target=target, distance=distance[0],
                                           scale=distance[1]))]  # fmt: skip


def estimate(process: Process, student: Jumps, average: Jumps, z: Tensor, t: Tensor, s: Tensor, last: Tensor) -> Tensor:
    """The jump t -> s, then the average's jump s -> data: where trajectories are compared."""
    return jump(process, z := jump(process, z, t, s, student(z, t, s)), s, last, average(z, s, last))


@dataclass(frozen=True, kw_only=True)
class Trajectories(Objective):
    """Consistency trajectory: the student to s against the teacher to u and the student, sg, to s, both at the data."""

    process: Process
    mu: float = 0.95
    points: int = 18

    def losses(self, at: Players, draw: Draw) -> Iterator[Mapping[str, Tensor]]:
        p, net = self.process, at["net"].at(draw.batch)
        x0, eps = Independent()(draw, torch.zeros_like)
        grid = GRIDS["karras"](p, self.points - 1)
        i = (draw.uniform("t") * (self.points - 1)).long()
        j = i + 1 + (draw.uniform("s") * (self.points - 1 - i)).long()
        t, u, s = grid[i], grid[i + 1], grid[j]  # one step of the teacher is right over one interval alone
        s = torch.where(draw.uniform("end") < 0.5, p.t_min, s)
        z, last = p.diffuse(x0, t, eps), torch.full_like(t, p.t_min)
        average = at["net"].at(draw.batch, "target")
        with torch.no_grad():
            there = heun(p, at.teacher(draw.batch), z, t, u)
            goal, d = estimate(p, net, average, there, u, s, last), at.teacher(draw.batch)(z, t)
        made = estimate(p, net, average, z, t, s, last)
        plain = error(net, z, t, t, d)
        score = (plain**2).flatten(1).mean(1) * weigh("edm", p, t, net.sigma_data)
        yield {"net": ((made - goal) ** 2).flatten(1).mean(1) / net.sigma_data**2 + 0.1 * score}

    def decays(self, draw: Draw) -> Mapping[str, float]:  # noqa: ARG002
        return {"target": self.mu}


@dataclass(frozen=True, kw_only=True)
class Trajectory(TwoTimes):
    """Consistency trajectory models, without the adversarial part that published figures have.

    Args:
        mu: the decay of the average by which both are brought to the data.
        points: the boundaries of Karras's grid, over an interval of which the teacher makes one step.
    """

    mu: float = 0.95
    points: int = 18

    needs: ClassVar[bool] = True
    averages: ClassVar[tuple[str, ...]] = ("target",)
    process: ClassVar[str] = "edm"
    predicts: ClassVar[str | None] = "edm"
    spacing: ClassVar[str] = "default"
    lr: ClassVar[float] = 2e-3

    def stages(self, on: Setting) -> list[Stage]:
        return [Stage(objective=Trajectories(process=on.process, mu=self.mu, points=self.points))]


def tangent(x: Tensor, phi: Tensor, f: Tensor, f_rate: Tensor, x_rate: Tensor, sd: float, r: float = 1.0) -> Tensor:
    r"""cos(phi) df/dphi of f = cos x - sin sd F, its second part warmed up by r; f_rate is cos sin dF/dphi.

    $$ -\cos^2 (sd\, F - dx/d\phi) - r (\cos \sin x + sd \cos \sin dF/d\phi) $$
    """
    c, s = column(phi.cos(), x), column(phi.sin(), x)
    return -(c**2) * (sd * f - x_rate) - r * (c * s * x + sd * f_rate)


def adaptive(off: Tensor, prior: Tensor, log_weight: Tensor) -> Tensor:
    """e^w / D |off|^2 times a prior weight, less w: at its least e^w is one over the mean loss at that time."""
    return log_weight.exp() * prior * (off**2).flatten(1).mean(1) - log_weight


def normalised(g: Tensor, c: float = 0.1, *, rms: bool = False) -> Tensor:
    """G / (|g| + c) over a sample, as published; `rms`: |g| over the root of its numbers, the same for every size."""
    size = g.flatten(1).norm(dim=1) / (g[0].numel() ** 0.5 if rms else 1.0)
    return g / column(size + c, g)


class LogWeight(nn.Module):
    """The logarithm of a weight by a time (B,), a perceptron of its features; 0 where it begins."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        features = Features(2)
        self.layers = nn.Sequential(features, nn.Linear(features.count, width), nn.SiLU(), nn.Linear(width, 1))
        nn.init.zeros_(self.layers[3].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.layers[3].bias)  # type: ignore[arg-type]

    def forward(self, t: Tensor) -> Tensor:
        return self.layers(t)[:, 0]


@dataclass(frozen=True, kw_only=True)
class ContinuousLoss(Objective):
    """F + g, g the normalised tangent at phi = atan(sigma / (alpha sd)), weighed by e^w / (sd tan phi), w learned."""

    process: Process
    taught: bool
    even: float = 0.3  # the share of times drawn alike over Karras's grid
    warm: float = 0.4  # the share over which r rises to 1

    players: ClassVar[tuple[str, ...]] = ("net", "weight")

    def losses(self, at: Players, draw: Draw) -> Iterator[Mapping[str, Tensor]]:
        p, net = self.process, at["net"].at(draw.batch)
        sd, t = net.sigma_data, evened(p, draw, Normal(1.0, 1.4).times(p, draw.uniform("t")), self.even)
        x0, eps = Independent()(draw, torch.zeros_like)
        z = p.diffuse(x0, t, eps)

        def angle(t: Tensor) -> Tensor:
            return torch.atan(torch.exp(-p.log_snr(t)) / sd)

        with torch.no_grad():
            d = at.teacher(draw.batch)(z, t) if self.taught else x0
            phi = angle(t)
            raw, rate = push(p, lambda z, t, s: net.raw(z, t, s), z, t, t, d)
            c, s = column(phi.cos(), z), column(phi.sin(), z)
            x = c * z / column(p.alpha(t), z)  # type: ignore[attr-defined] - scalar processes
            speed = column(1 / derivative(angle, t), z)
            g = tangent(x, phi, -raw, -c * s * rate * speed, (c * x - d) / s, sd, min(1.0, draw.share / self.warm))
            goal = raw - normalised(g, rms=True)
        off = net.raw(z, t, t) - goal
        loss = adaptive(off, 1 / (sd * phi.tan()), at["weight"].net((-p.log_snr(t) / 4).float()).to(off))
        yield {"net": loss, "weight": loss}


@dataclass(frozen=True, kw_only=True)
class Continuous(Consistency):
    """Consistency in continuous time (TrigFlow's, on any scalar process); with a teacher along its velocity."""

    start: float = 0.3

    needs: ClassVar[bool] = False
    averages: ClassVar[tuple[str, ...]] = ()
    lr: ClassVar[float] = 2e-3

    def others(self, on: Setting, net: nn.Module, reads: Reads) -> Mapping[str, Player]:  # noqa: ARG002
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return {"weight": Player(LogWeight())}

    def objective(self, on: Setting) -> Objective:  # type: ignore[override]
        return ContinuousLoss(process=on.process, taught=on.taught, even=self.even)
