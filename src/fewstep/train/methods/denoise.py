r"""Denoising: the expectation of the data, by regression on them.

$$ E\; w(\lambda_t)\; |\hat x_0(z_t, t) - x_0|^2 $$

Every prediction is this loss with another weight (`fewstep.train.regression`): DDPM's is noise, flow matching's is flow
on `Flow`, denoising score matching's is score. Where there is a teacher the target is its D, which is the same
expectation without the variance of one draw. Time runs from noise (t_max) to data; in Liu et al. and Lipman et al. from
noise (0) to data (1).

References: Vincent 2011; Ho, Jain, Abbeel 2020, https://arxiv.org/abs/2006.11239; Karras et al. 2022,
https://arxiv.org/abs/2206.00364; Lipman et al. 2022, https://arxiv.org/abs/2210.02747; Liu et al. 2022,
https://arxiv.org/abs/2209.03003; Tong et al. 2023 (minibatch transport), https://arxiv.org/abs/2302.00482.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewstep.train.methods.base import COUPLINGS, Method, Setting
from fewstep.train.objective import Stage
from fewstep.train.pairs import LogitNormal, Normal, One, Uniform
from fewstep.train.player import Players
from fewstep.train.regression import Regression, Truth
from fewstep.train.target import Point, Target
from fewstep.words import pick

__all__ = ["LAWS", "Denoise", "Flow", "Score", "Taught"]

LAWS: dict[str, One] = {
    "normal": Normal(),
    "uniform": Uniform(),
    "log-snr": Uniform(clock="log-snr"),
    "logit-normal": LogitNormal(),
}


@dataclass(frozen=True)
class Taught(Target):
    """The teacher's D at the same state and time."""

    def __call__(self, at: Players, point: Point) -> Tensor:
        return at.teacher(point.batch)(point.z, point.t)


@dataclass(frozen=True, kw_only=True)
class Denoise(Method):
    """Regression on the data, or on a teacher's D: any weight, law and prediction."""

    weight: str | None = None
    law: str = "normal"
    coupling: str = "independent"

    def stages(self, on: Setting) -> list[Stage]:
        return [Stage(objective=self.objective(on))]

    def objective(self, on: Setting) -> Regression:
        """That of its only stage."""
        return Regression(
            process=on.process,
            coupling=pick(COUPLINGS, self.coupling, "coupling")(),
            law=pick(LAWS, self.law, "law"),
            target=Taught() if on.taught else Truth(),
            weight=self.weight,
        )


@dataclass(frozen=True, kw_only=True)
class Score(Denoise):
    """Denoising score matching, times uniform, weighed as a bound on the likelihood."""

    weight: str | None = "likelihood"
    law: str = "uniform"


@dataclass(frozen=True, kw_only=True)
class Flow(Denoise):
    """Flow matching, times uniform: the velocity eps - x0 on straight paths."""

    law: str = "uniform"

    process: ClassVar[str] = "flow"
    predicts: ClassVar[str | None] = "flow"
