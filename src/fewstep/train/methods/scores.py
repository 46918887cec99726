r"""Distillation of the distribution: a generator of one call, a teacher's score and a fake score that follows it.

$$ \nabla_x = \frac{D_{fake}(z_t, t) - D_{real}(z_t, t)}{mean|x - D_{real}|}, \qquad x = G(z_T), \quad
   z_t = M_t x + R_t \epsilon $$

`dmd` gives x that gradient; `sid` differentiates through both scores

$$ (D_{real} - D_{fake})\,((D_{real} - x) - a\,(D_{real} - D_{fake})) / mean|x - D_{real}|. $$

The fake score is a denoiser of what the generator makes; it takes `updates` steps to one of the generator's: too few
let the mean drift. Times are even on EDM's grid: times even in log-SNR are mostly so low that a sample feels its own
mode alone, and modes are lost. No adversarial part. Time runs from noise to data.

References: Yin et al., Distribution matching distillation, 2023, https://arxiv.org/abs/2311.18828; Improved, 2024,
https://arxiv.org/abs/2405.14867; Zhou et al., Score identity distillation, 2024, https://arxiv.org/abs/2404.04057.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fewstep.process import Process
from fewstep.tableau import Tableau
from fewstep.train.methods.base import Method, Setting, table, times
from fewstep.train.methods.denoise import Denoise
from fewstep.train.objective import Objective, Stage
from fewstep.train.pairs import Draw, Uniform
from fewstep.train.player import Player, Players, Reads
from fewstep.train.regression import error, weigh
from fewstep.train.target import column

__all__ = ["Matching", "ScoreMatching", "identity", "matching", "pseudo"]


def matching(x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """The gradient for x, (D_fake - D_real) / mean |x - D_real| of each sample."""
    size = (x - real).abs().flatten(1).mean(1)
    return (fake - real) / column(size, x)


def pseudo(x: Tensor, gradient: Tensor) -> Tensor:
    """1/2 (x - sg(x - gradient))^2, whose gradient by x is that one; (B,)."""
    return 0.5 * ((x - (x - gradient).detach()) ** 2).flatten(1).mean(1)


def identity(x: Tensor, real: Tensor, fake: Tensor, a: float) -> Tensor:
    """The loss of score identity distillation, summed over a sample; (B,)."""
    size = (x - real).detach().abs().flatten(1).mean(1)
    return ((real - fake) * ((real - x) - a * (real - fake))).flatten(1).sum(1) / size


@dataclass(frozen=True, kw_only=True)
class Matching(Objective):
    """The fake score's updates, then the generator's. `a`: that of score identity; None: distribution matching."""

    process: Process
    begin: float
    updates: int
    a: float | None

    players: ClassVar[tuple[str, ...]] = ("net", "fake")

    def losses(self, at: Players, draw: Draw) -> Iterator[Mapping[str, Tensor]]:
        p, batch = self.process, draw.batch
        start = torch.full((len(batch.x0),), self.begin, dtype=torch.float64)
        law = Uniform(clock="karras", floor=0.02)

        def generated(name: str) -> Tensor:
            z = p.prior(draw.normal(f"start/{name}", batch.x0), start)
            return at["net"].at(batch)(z, start)

        def noised(x: Tensor, name: str) -> tuple[Tensor, Tensor]:
            t = law.times(p, draw.uniform(f"t/{name}"))
            return p.diffuse(x, t, draw.normal(f"eps/{name}", x)), t

        for k in range(self.updates):
            with torch.no_grad():
                x = generated(f"fake{k}")
            z, t = noised(x, f"fake{k}")
            fake = at["fake"].at(batch)
            weight = weigh("edm", p, t, fake.sigma_data)
            yield {"fake": (error(fake, z, t, t, x) ** 2).flatten(1).mean(1) * weight}
        x = generated("net")
        z, t = noised(x, "net")
        if self.a is not None:
            real, fake = at.teacher(batch)(z, t), at["fake"].at(batch)(z, t)
            yield {"net": identity(x, real, fake, self.a) / x[0].numel()}
            return
        with torch.no_grad():
            gradient = matching(x, at.teacher(batch)(z, t), at["fake"].at(batch)(z, t))
        yield {"net": pseudo(x, gradient)}


@dataclass(frozen=True, kw_only=True)
class ScoreMatching(Method):
    """A generator of one call, by a teacher's score and a fake score that follows it.

    Args:
        begin: sigma / alpha where the generator is asked, and a sample starts.
        updates: of the fake score to one of the generator.
        a: of score identity; None: distribution matching.
        start: the share of the budget in which both first learn the teacher's D, where they do not begin as it.
    """

    begin: float = 2.5
    updates: int = 5
    a: float | None = None
    start: float = 0.5

    needs: ClassVar[bool] = True
    follows: ClassVar[bool] = False
    blind: ClassVar[bool] = True
    process: ClassVar[str] = "edm"
    predicts: ClassVar[str | None] = "edm"

    def stages(self, on: Setting) -> list[Stage]:
        begin = float(on.process.inverse_log_snr(-math.log(self.begin)))
        objective = Matching(process=on.process, begin=begin, updates=self.updates, a=self.a)
        if on.started:
            return [Stage(objective=objective)]
        first = Stage(objective=Denoise().objective(on), share=self.start)
        return [first, Stage(objective=objective, share=1 - self.start, copies=("fake",))]

    def others(self, on: Setting, net: nn.Module, reads: Reads) -> Mapping[str, Player]:  # noqa: ARG002
        return {"fake": Player(copy.deepcopy(net), reads)}

    def tables(self, process: Process) -> dict[str, Tableau]:
        begin = float(process.inverse_log_snr(-math.log(self.begin)))
        return {"1": table("ddim", process, torch.tensor([begin, float(times(process, "default", 1)[-1])]))}
