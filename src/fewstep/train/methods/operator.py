r"""Operator distillation (DSNO): the states of M times of the teacher's run, from its noise, in one pass.

$$ E \sum_i w(s_i)\, |\hat z_i - z_{s_i}|^2, \qquad \hat z_i = R_i R_T^{-1} z_T + (M_i - R_i R_T^{-1} M_T)\, g_i $$

g_1, ..., g_M are the outputs of one network at (z_T, T), the first that of the end, and M_i, R_i the process at s_i;
the weight is clamp(alpha/sigma, 1, 1e4) over its mean. A perceptron mixes its M hidden states by the lowest frequencies
along them (`fewstep.nets.Temporal`), as published. Time runs from noise to data, as published.

References: Zheng et al., Fast sampling of diffusion models via operator learning, 2022, eq. 9 and section 4,
https://arxiv.org/abs/2211.13449.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.loop import tabulate
from fewstep.process import Process
from fewstep.train.methods.base import Setting
from fewstep.train.methods.recorded import Knowledge
from fewstep.train.objective import Objective, Stage
from fewstep.train.pairs import Draw, Recorded
from fewstep.train.player import Players, Student
from fewstep.train.target import jump

__all__ = ["Operator", "OperatorLoss", "passed", "weights"]


def weights(process: Process, s: Tensor) -> Tensor:
    """clamp(alpha / sigma, 1, 1e4) of the states at times s."""
    return torch.exp(process.log_snr(s)).clamp(1.0, 1e4)


def passed(process: Process, student: Student, z: Tensor, times: Tensor) -> Tensor:
    """The states (B, M, *state) at M times, the last one first, of the noises z in one pass."""
    t = torch.full((len(z),), process.t_max, dtype=torch.float64)
    outputs = student.outputs(z, t)
    return torch.stack([jump(process, z, t, s.expand(len(z)), student.read(z, t, raw))
                        for s, raw in zip(times, outputs, strict=True)], 1)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OperatorLoss(Objective):
    """The weighted squared errors of all states of a pass."""

    process: Process
    coupling: Recorded
    times: tuple[float, ...]

    def losses(self, at: Players, draw: Draw) -> Iterator[Mapping[str, Tensor]]:
        p, s = self.process, torch.tensor(self.times, dtype=torch.float64)
        goal, eps = self.coupling(draw, torch.empty_like)
        z = p.prior(eps, torch.full((len(eps),), p.t_max, dtype=torch.float64))
        found = passed(p, at["net"].at(draw.batch.told(**self.coupling.conditions(draw))), z, s)
        w = weights(p, s.clamp(min=p.t_min))
        yield {"net": ((found - goal) ** 2).flatten(2).mean(2) @ (w / w.mean())}


@dataclass(frozen=True, kw_only=True)
class Operator(Knowledge):
    """M = 4 states of a run in one pass; the end is sampled in one call.

    Args:
        pairs, calls, solver: as in `Knowledge`; a fourth of the calls lies between two states.
    """

    calls: int = 64
    solver: str = "dpmpp-2m"

    outputs: ClassVar[int] = 4
    modes: ClassVar[int] = 2

    def one(self, on: Setting, k: int) -> Stage:
        rows = [self.calls * i // self.outputs for i in range(1, self.outputs)]
        grid = tabulate(self.solver, on.process, steps=self.calls).grid
        times = (float(grid[-1]), *(float(grid[i]) for i in reversed(rows)))
        objective = OperatorLoss(
            process=on.process, coupling=Recorded(on.folder / f"pairs-{k}.safetensors"), times=times
        )
        return Stage(objective=objective, pairs=self.pairs, calls=self.calls, solver=self.solver, along=tuple(rows))
