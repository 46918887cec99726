r"""Minimal curvature: flow matching with noise that an encoder chose, so that paths cross less.

$$ z_T = \mu(x_0) + e^{l(x_0)/2} n, \qquad E |v(z_t, t) - (z_T - x_0)|^2 + \beta\, KL / d, \qquad
   KL = \tfrac12 \sum (\mu^2 + e^l - l - 1) $$

Sampling starts from N(0, I), which the encoder's outputs must have as their law: too small a beta gives a low loss and
wrong samples. Over all data they are narrower than N(0, I) at any beta, so here a batch of them is moved and scaled to
mean 0 and deviation 1 of every number. Time runs from noise (1) to data (0), as published.

References: Lee, Kim, Ye, Minimizing trajectory curvature of ODE-based generative models, 2023, eq. 9,
https://arxiv.org/abs/2301.12003.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fewstep.nets import MLP
from fewstep.process import Process
from fewstep.train.methods.base import Method, Setting
from fewstep.train.objective import Objective, Stage
from fewstep.train.pairs import Draw, Uniform
from fewstep.train.player import Player, Players, Reads

__all__ = ["Curvature", "Encoded", "divergence", "encoded", "loss", "standard"]


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL of N(mean, e^log_variance) from N(0, I), over how many they are: (B,)."""
    return (mean**2 + log_variance.exp() - log_variance - 1).flatten(1).sum(1) / (2 * mean[0].numel())


def encoded(mean: Tensor, log_variance: Tensor, normal: Tensor) -> Tensor:
    """The noise that goes with the data."""
    return mean + (0.5 * log_variance).exp() * normal


def standard(eps: Tensor) -> Tensor:
    """A batch moved and scaled to mean 0 and deviation 1 of every number; one alone as it is."""
    return (eps - eps.mean(0)) / eps.std(0, correction=0) if len(eps) > 1 else eps


def loss(off: Tensor, mean: Tensor, log_variance: Tensor, beta: float) -> Tensor:
    """The mean squared error of the velocity and beta times the divergence: (B,)."""
    return (off**2).flatten(1).mean(1) + beta * divergence(mean, log_variance)


@dataclass(frozen=True, kw_only=True)
class Encoded(Objective):
    """Flow matching and the divergence; both players step on their sum."""

    process: Process
    beta: float

    players: ClassVar[tuple[str, ...]] = ("net", "encoder")

    def losses(self, at: Players, draw: Draw) -> Iterator[Mapping[str, Tensor]]:
        x0, net = draw.batch.x0, at["net"].at(draw.batch)
        t = Uniform().times(self.process, draw.uniform("t"))
        mean, log_variance = (part.to(x0) for part in at["encoder"].net(x0.float(), torch.zeros(len(x0))))
        eps = standard(encoded(mean, log_variance, draw.normal("eps", x0)))
        z = self.process.diffuse(x0, t, eps)
        both = loss(net.raw(z, t, t) - (eps - x0), mean, log_variance, self.beta)
        yield {"net": both, "encoder": both}


@dataclass(frozen=True, kw_only=True)
class Curvature(Method):
    """Flow matching with noise that an encoder chose; beta is 5 to 20 as published."""

    beta: float = 5.0

    process: ClassVar[str] = "flow"
    predicts: ClassVar[str | None] = "flow"

    def stages(self, on: Setting) -> list[Stage]:
        return [Stage(objective=Encoded(process=on.process, beta=self.beta))]

    def others(self, on: Setting, net: nn.Module, reads: Reads) -> Mapping[str, Player]:  # noqa: ARG002
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return {"encoder": Player(MLP(on.size, 64, 2, outputs=2))}
