r"""Runs in the plane: a mixture of Gaussians, whose denoiser, density and ODE are known exactly.

States of all scalar processes are drawn in the same coordinates, in which data of variance 1 fill the same disk at
every time,

$$ y = \frac{z}{\sqrt{\alpha^2 + \sigma^2}}, \qquad a = \frac{\alpha}{\sqrt{\alpha^2 + \sigma^2}} = \cos\phi, \qquad
   b = \frac{\sigma}{\sqrt{\alpha^2 + \sigma^2}} = \sin\phi, $$

so that they share one probability-flow ODE, along which phi falls from pi/2 (noise) to 0 (data), and one density:

$$ -\frac{dy}{d\phi} = \frac{D - a y}{b}, \qquad D = E[x_0 \mid y], \qquad
   p(y) = \sum_k w_k N(y;\; a \mu_k,\; a^2 s^2 + b^2). $$
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.denoiser import Mixture
from fewstep.grid import GRIDS
from fewstep.loop import sample
from fewstep.loop.tabulate import informed, tabulate
from fewstep.noise import noise_source
from fewstep.page.choice import DEFAULT, bounded
from fewstep.process import PROCESSES, ScalarProcess
from fewstep.solver import DEFAULT_SOLVERS, TABLES
from fewstep.words import Typed, pick

__all__ = ["MIXTURES", "SCALAR", "Plane", "Shape", "Walk"]

STEPS = 200  # Runge-Kutta steps of the paths that stand for the exact ones
NEAR = 1e-3  # the phi where they end when the run ends at sigma = 0
SCALAR = {name: make for name, make in PROCESSES.items() if issubclass(make, ScalarProcess)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Shape:
    """A mixture in the plane: means (K, 2), one standard deviation, weights (K,) that sum to 1."""

    means: Tensor
    std: float
    weights: Tensor

    @staticmethod
    def of(means: Tensor, std: float, weights: Tensor | None = None) -> Shape:
        """The mixture moved and scaled to mean 0 and variance 1 a coordinate."""
        weights = torch.ones(len(means)) if weights is None else weights
        weights = (weights / weights.sum()).double()
        means = means.double() - weights @ means.double()
        scale = math.sqrt(float(weights @ means.square().sum(1)) / 2 + std**2)
        return Shape(means=means / scale, std=std / scale, weights=weights)

    def density(self, y: Tensor, phi: float) -> Tensor:
        """p(y) for y (..., 2)."""
        return self._joint(y, phi).logsumexp(-1).exp() / (2 * math.pi)

    def denoised(self, y: Tensor, phi: float) -> Tensor:
        """D for y (..., 2)."""
        a, var = math.cos(phi), (math.cos(phi) * self.std) ** 2 + math.sin(phi) ** 2
        share = self._joint(y, phi).softmax(-1)
        return share @ self.means * (1 - (a * self.std) ** 2 / var) + a * self.std**2 / var * y

    def velocity(self, y: Tensor, phi: float) -> Tensor:
        """-dy/dphi for y (..., 2): where the ODE goes, towards the data."""
        return (self.denoised(y, phi) - math.cos(phi) * y) / math.sin(phi)

    def flow(self, y: Tensor, start: float, end: float) -> Tensor:
        """The ODE's paths (steps + 1, n, 2) from y (n, 2) at phi = start down to end, by the classic Runge-Kutta."""
        paths, h = [y], (start - max(end, NEAR)) / STEPS
        for k in range(STEPS):
            y, phi = paths[-1], start - k * h
            one = self.velocity(y, phi)
            two = self.velocity(y + h / 2 * one, phi - h / 2)
            three = self.velocity(y + h / 2 * two, phi - h / 2)
            four = self.velocity(y + h * three, phi - h)
            paths.append(y + h / 6 * (one + 2 * two + 2 * three + four))
        return torch.stack(paths)

    def _joint(self, y: Tensor, phi: float) -> Tensor:
        """Log w_k - |y - a mu_k|^2 / 2v - log v, (..., K)."""
        var = (math.cos(phi) * self.std) ** 2 + math.sin(phi) ** 2
        away = (y[..., None, :] - math.cos(phi) * self.means).square().sum(-1)
        return self.weights.log() - away / (2 * var) - math.log(var)


def _ring() -> Shape:
    angle = torch.arange(8) * (math.pi / 4)
    return Shape.of(torch.stack([angle.cos(), angle.sin()], 1), 0.1)


def _spiral() -> Shape:
    angle = 2 * math.pi * torch.linspace(0.15, 2.2, 40).sqrt()
    return Shape.of(angle[:, None] * torch.stack([angle.cos(), angle.sin()], 1), 0.35)


def _unequal() -> Shape:
    return Shape.of(torch.tensor([[-1.0, 0.4], [1.2, 0.6], [0.2, -1.2]]), 0.18, torch.tensor([6.0, 3.0, 1.0]))


MIXTURES: dict[str, Callable[[], Shape]] = {"ring of eight": _ring, "spiral": _spiral, "three unequal": _unequal}


@dataclass(frozen=True, kw_only=True, eq=False)
class Walk:
    """A run in the plane."""

    shape: Shape  # the mixture
    angles: list[float]  # phi of every network call and of the end
    points: Tensor  # (calls + 1, n, 2), the states there
    exact: Tensor | None  # the ODE's paths from the same starts (steps + 1, n, 2), or None for a solver that adds noise
    calls: int  # network calls
    distance: float | None  # root mean square distance of the samples to the ends of the exact paths

    def __str__(self) -> str:
        if self.distance is None:
            return f"{self.calls} network calls; the solver adds noise, so there is no exact path to compare with."
        return f"{self.calls} network calls, {self.distance:.2g} from the ends of the exact paths (root mean square)."


@dataclass(frozen=True, kw_only=True)
class Plane(Typed):
    """What is chosen for a run in the plane: names in `MIXTURES`, `SCALAR`, `fewstep.TABLES` and `fewstep.GRIDS`."""

    mixture: str = "ring of eight"
    process: str = "vp"
    solver: str = DEFAULT
    grid: str = DEFAULT
    steps: int = 8
    seed: int = 0
    num: int = 200

    def __post_init__(self) -> None:
        bounded(self)

    def walk(self) -> Walk:
        """Runs it; a ValueError for a choice that makes no sense."""
        process = pick(SCALAR, self.process, "process")()
        shape = pick(MIXTURES, self.mixture, "mixture")()
        solver = pick(TABLES, DEFAULT_SOLVERS["scalar"] if self.solver == DEFAULT else self.solver, "solver")()
        pick(GRIDS, self.grid, "grid")
        denoiser = Mixture(process, shape.means, shape.std, shape.weights)
        solver = informed(solver, denoiser, (2,))
        table = tabulate(solver, process, grid=self.grid, steps=self.steps)
        noise = noise_source(None, self.seed, 0).initial((self.num, 2), torch.float64, "cpu")
        states = [process.prior(noise, table.rows[0].t)]  # of every row: some solvers' calls make no x0_hat
        last = sample(denoiser, process, solver=table, x=states[0], seed=self.seed, progress=False,
                         after=lambda _, t, z: states.append(z) or z)  # fmt: skip
        passed = [(row.at, z) for row, z in zip(table.rows, states, strict=True) if row.at is not None]
        levels = [
            (float(process.alpha(t)), float(process.sigma(t)), z) for t, z in [*passed, (float(table.grid[-1]), last)]
        ]
        points = torch.stack([z / math.hypot(a, s) for a, s, z in levels])
        angles = [math.atan2(s, a) for a, s, _ in levels]
        exact = None if table.noises else shape.flow(points[0], angles[0], angles[-1])
        distance = None if exact is None else float((points[-1] - exact[-1]).square().sum(1).mean().sqrt())
        return Walk(shape=shape, angles=angles, points=points, exact=exact, calls=table.nfe, distance=distance)
