r"""Bridges: from a picture that is given, y, to the picture x0 that it came from; and the same without a bridge.

$$ u' = u_t - m_t y = m_t (x_0 - y) + R_t \epsilon, \qquad D(u, y, t) = y + c_{skip} u' + c_{out} F(c_{in} u', y, t) $$

Given y, a bridge's u is an ordinary scalar process, so training is denoising of the residual x0 - y: EDM's regression
with the residual's deviation for sigma_data, and y beside the state. All kinds are this loss at other times. `kind=vp`
(or another process) is the conditional model that one compares with: data from noise, y beside the state.

y comes along with the data (`x` and `y` of an npz file), or is made of them in every step (`degrade=downscale4`).
Times are drawn in the log-SNR, normal about where the residual is as large as its noise, and for a share of the batch
at the start itself, on which samples of one call depend.

References: Liu et al. 2023, https://arxiv.org/abs/2302.05872; Delbracio, Milanfar 2023,
https://arxiv.org/abs/2303.11435; Luo et al. 2023, https://arxiv.org/abs/2301.11699; Zhou et al. 2023,
https://arxiv.org/abs/2309.16948 (their preconditioning is of z; here it is of u - m y).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.data.degrade import degradation
from fewstep.process import ALL_PROCESSES, Process
from fewstep.process.bridge import Bridge
from fewstep.train.methods.base import Method, Setting
from fewstep.train.objective import Stage
from fewstep.train.pairs import Draw, One, Paired, normal_times
from fewstep.train.regression import Regression
from fewstep.words import pick, within

__all__ = ["Restoration", "Spread"]


@dataclass(frozen=True)
class Spread(One):
    """Log-SNR normal; a share of the times is the first."""

    mean: float
    std: float
    start: float

    def times(self, process: Process, u: Tensor) -> Tensor:
        share = ((u - self.start) / (1 - self.start)).clamp(1e-6, 1 - 1e-6)
        return torch.where(u < self.start, process.t_max, normal_times(process, share, self.mean, self.std))


@dataclass(frozen=True, kw_only=True)
class Restoration(Method):
    """The residual x0 - y on any bridge, y made of the data (`degrade`) or given with them; or a conditional process.

    Args:
        kind: a bridge of `fewstep list --filter bridges`, or a process for the conditional model.
        degrade: what makes y of x0 (`fewstep.data.degrade`); empty: y is in the data.
        std: of the log-SNR.
        start: the share of times at the start.
        weight: a name in `WEIGHTS`, or None for that of the network's output.
    """

    kind: str = "i2sb"
    degrade: str = ""
    std: float = 1.5
    start: float = 0.05
    weight: str | None = None

    given: ClassVar[bool] = True

    def __post_init__(self) -> None:
        pick(ALL_PROCESSES, self.kind, "kind")
        within(self, std="(0, inf)", start="[0, 1)")
        if self.degrade:
            degradation(self.degrade)

    @property
    def process(self) -> str:  # type: ignore[override]
        return self.kind

    @property
    def residual(self) -> bool:
        """Whether x0 - y is learned."""
        return issubclass(ALL_PROCESSES[self.kind], Bridge)

    @property
    def predicts(self) -> str | None:  # type: ignore[override]
        return "residual" if self.residual else None

    @property
    def coupling(self) -> Paired:
        """Of data and y."""
        return Paired(degradation(self.degrade) if self.degrade else None, self.residual)

    def deviation(self, draw: Draw) -> float:
        """Of what is learned."""
        found = float(self.coupling(draw, torch.zeros_like)[0].square().mean().sqrt())
        if not 0 < found < math.inf:
            raise ValueError(f"got data that differ from y by {found:g}: there is nothing to restore; give other pairs")
        return found

    def stages(self, on: Setting) -> list[Stage]:
        law = Spread(-math.log(on.deviation), self.std, self.start)
        return [Stage(objective=Regression(process=on.process, coupling=self.coupling, law=law, weight=self.weight))]
