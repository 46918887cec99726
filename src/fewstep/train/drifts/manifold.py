r"""Scores and flows on manifolds: regression of a tangent field at points that diffused, or on geodesics.

| method             | loss, in the metric at x                                                                        |
|--------------------|-------------------------------------------------------------------------------------------------|
| `riemannian-score` | E sigma_s^2 |b(x, s) - grad log K_s(x0, x)|^2, x from the heat kernel at x0, log s uniform      |
|  loss=implicit     | E sigma_s^2 (|b|^2 + 2 div b), which is the same but for a constant, and asks for no kernel     |
| `riemannian-flow`  | E |v(x, t) - log_x(x0)/t|^2, x = exp_x0(t log_x0(x_T)), x_T uniform, t uniform                  |

The weight sigma_s^2 = (1 - e^{-gap s})/gap makes the first a bound on the likelihood where s is small. Time runs from
the uniform law to the data; in Chen and Lipman from noise (0) to data (1).

References: De Bortoli et al., Riemannian score-based generative modelling, 2022, table 2,
https://arxiv.org/abs/2202.02763; Chen, Lipman, Flow matching on general geometries, 2023, eq. 12,
https://arxiv.org/abs/2302.03660.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.manifold import MANIFOLDS, Field, Manifold, Sphere, divergence
from fewstep.manifold.base import column
from fewstep.nets import Waves
from fewstep.train.methods.base import Method, Setting
from fewstep.train.objective import Objective, Stage
from fewstep.train.pairs import Draw
from fewstep.train.player import EMA, Players
from fewstep.words import among, inside, pick

__all__ = ["OnGeodesics", "OnManifold", "RiemannianFlow", "RiemannianScore"]


@dataclass(frozen=True, kw_only=True)
class OnManifold(Objective):
    """The loss of a score; `loss` is "denoising" or "implicit"."""

    manifold: Manifold
    low: float
    loss: str = "denoising"

    def losses(self, at: Players, draw: Draw) -> Iterator[Mapping[str, Tensor]]:
        m, x0 = self.manifold, draw.batch.x0
        field = Field(manifold=m, net=at["net"].net, low=self.low)
        low, high = field.ends
        s = (low + (high - low) * draw.uniform("s")).exp()
        x = m.diffuse(x0, s, draw.normal("eps", x0))
        weight = field.spread(s) ** 2
        if self.loss == "implicit":
            probe = draw.normal("probe", x0).sign() if x0[0].numel() > 9 else None
            b, div = divergence(m, field.score, x, s, probe=probe, graph=True)
            yield {"net": weight * (m.inner(b, b) + 2 * div)}
            return
        off = field.score(x, s) - m.score(x, x0, s)
        yield {"net": weight * m.inner(off, off)}


@dataclass(frozen=True, kw_only=True)
class OnGeodesics(Objective):
    """The loss of a flow."""

    manifold: Manifold

    def losses(self, at: Players, draw: Draw) -> Iterator[Mapping[str, Tensor]]:
        m, x0, t = self.manifold, draw.batch.x0, draw.uniform("t")
        way = m.log(x0, m.uniform(draw.normal("eps", x0)))
        x = m.exp(x0, column(t, x0) * way)
        off = Field(manifold=m, net=at["net"].net, kind="flow").raw(x, t) - m.log(x, x0) / column(t, x0)
        yield {"net": m.inner(off, off)}


@dataclass(frozen=True, kw_only=True)
class Fields(Method):
    """A field on a manifold, of points that lie on it.

    Args:
        manifold: "sphere" (unit vectors of any dimension), "torus" (angles) or "rotations" (3x3 matrices).
        degrees: the data are latitudes and longitudes.
    """

    manifold: str = "sphere"
    degrees: bool = False

    denoises: ClassVar[bool] = False
    lr: ClassVar[float] = 8e-3
    width: ClassVar[int] = 128
    depth: ClassVar[int] = 4
    length: ClassVar[int] = 5000
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        pick(MANIFOLDS, self.manifold, "manifold")
        if self.degrees and self.manifold != "sphere":
            raise ValueError(
                f"got degrees=True on {self.manifold}: latitudes and longitudes are of a sphere; leave it out"
            )

    def on(self, size: int) -> Manifold:
        """The manifold of points of so many numbers."""
        return MANIFOLDS[self.manifold](size)

    def read(self, data: np.ndarray) -> np.ndarray:
        data = vectors(data) if self.degrees else data
        manifold = self.on(math.prod(data.shape[1:]))
        Field(manifold=manifold, net=None, kind=self.kind, **self.options())
        try:
            return manifold.points(data).numpy()
        except ValueError as error:
            hint = ", or degrees=True for latitudes and longitudes" if manifold == Sphere(1) else ""
            raise ValueError(f"{error}{hint}") from None

    def network(self, size: int, width: int, depth: int) -> nn.Module:
        manifold = self.on(size)
        return Waves(manifold.features(torch.zeros(1, *manifold.shape)).shape[1], size, width, depth)

    def file(self, players: Players) -> str | None:
        return "field.safetensors" if isinstance(players["net"].net, Waves) else None

    def export(self, path: Path, players: Players, size: int, facts: Mapping[str, Any]) -> None:
        net = players["net"].averages[EMA]
        Field(manifold=self.on(size), net=net, kind=self.kind, **self.options()).save(path, **facts)

    def options(self) -> dict[str, float]:
        """Of the field."""
        return {}


@dataclass(frozen=True, kw_only=True)
class RiemannianScore(Fields):
    """The score of points on a manifold, at every noise of Brownian motion.

    Args:
        low: the least noise s, the square of a distance that data are blurred by.
        loss: "denoising" or "implicit".
    """

    low: float = 3e-4
    loss: str = "denoising"

    kind: ClassVar[str] = "score"

    def __post_init__(self) -> None:
        super().__post_init__()
        among(self, loss=("denoising", "implicit"))
        inside("low", self.low, "(0, 1)")

    def stages(self, on: Setting) -> list[Stage]:
        return [Stage(objective=OnManifold(manifold=self.on(on.size), low=self.low, loss=self.loss))]

    def options(self) -> dict[str, float]:
        return {"low": self.low}


@dataclass(frozen=True, kw_only=True)
class RiemannianFlow(Fields):
    """The velocity from uniform points to data on a manifold, along geodesics."""

    kind: ClassVar[str] = "flow"

    def stages(self, on: Setting) -> list[Stage]:
        return [Stage(objective=OnGeodesics(manifold=self.on(on.size)))]


def vectors(degrees: np.ndarray) -> np.ndarray:
    """Unit vectors (N, 3) of latitudes and longitudes (N, 2)."""
    if degrees.ndim != 2 or degrees.shape[1] != 2 or np.abs(degrees).max() > 360 or np.abs(degrees[:, 0]).max() > 90:
        raise ValueError(
            f"got data of shape {degrees.shape} as degrees: give (N, 2), a latitude in [-90, 90] and a longitude"
        )
    latitude, longitude = np.radians(degrees.astype(np.float64)).T
    flat = np.cos(latitude)
    return np.stack([flat * np.cos(longitude), flat * np.sin(longitude), np.sin(latitude)], 1)
