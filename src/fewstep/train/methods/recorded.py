r"""Methods on recorded pairs (noise, end) of a teacher: knowledge distillation, operators and reflow.

| method      | asked at      | target       | what it makes                                                  |
|-------------|---------------|--------------|----------------------------------------------------------------|
| `knowledge` | the start     | the end      | one call; as good as its pairs, and the network's floor        |
| `operator`  | the start     | M states     | a run's states in one pass, of which the end is sampled (DSNO) |
| `reflow`    | any t between | the end      | a straighter flow: pairs anew in every round, then one call    |

The outputs g_1, ..., g_M of an operator at (z_T, T), the first that of the end, are the states

$$ \hat z_i = R_i R_T^{-1} z_T + (M_i - R_i R_T^{-1} M_T)\, g_i, \qquad E \sum_i w(s_i)\, |\hat z_i - z_{s_i}|^2 $$

with the weight clamp(alpha/sigma, 1, 1e4) over its mean; a perceptron mixes its M hidden states by the lowest
frequencies along them (`fewstep.nets.Temporal`), as published.

z_t = M_t x0 + R_t eps between the two of a pair; at the start the state is the noise alone. Straightness of a path of
N Euler steps is mean_k |N (z_k - z_{k+1}) - (z_0 - z_N)|^2, summed over a sample. Time runs from noise to data; in Liu
et al. from 0 to 1 that way.

References: Luhman, Luhman, Knowledge distillation in iterative generative models, 2021,
https://arxiv.org/abs/2101.02388; Zheng et al., Fast sampling of diffusion models via operator learning, 2022, eq. 9,
https://arxiv.org/abs/2211.13449; Liu, Gong, Liu, Flow straight and fast, 2022, https://arxiv.org/abs/2209.03003.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.loop import tabulate
from fewstep.process import Process
from fewstep.tableau import Tableau
from fewstep.train.methods.base import Method, Setting, table, times
from fewstep.train.methods.denoise import Flow
from fewstep.train.objective import Objective, Stage
from fewstep.train.pairs import Draw, Recorded, Start, Uniform
from fewstep.train.player import Players, Student
from fewstep.train.regression import Regression
from fewstep.train.target import Point, jump

__all__ = ["FromNoise", "Knowledge", "Operator", "OperatorLoss", "Reflow", "passed", "straightness", "weights"]


@dataclass(frozen=True, kw_only=True)
class FromNoise(Regression):
    """Regression where a run starts: the state is the noise alone."""

    def point(self, draw: Draw) -> Point:
        point = super().point(draw)
        return replace(point, z=self.process.prior(point.eps, point.t))


def straightness(path: Tensor) -> Tensor:
    """Of states (N + 1, batch, *shape) along equal steps: the mean over steps and batch, summed over a sample."""
    n = len(path) - 1
    off = n * (path[:-1] - path[1:]) - (path[0] - path[-1])
    return (off**2).flatten(2).sum(2).mean()


@dataclass(frozen=True, kw_only=True)
class Knowledge(Method):
    """The ends of a teacher's runs, from their noises, in one call.

    Args:
        pairs: how many are recorded.
        calls, solver: of the teacher, for each.
        distance: "l1" as published for CIFAR-10, "l2" for other sets.
    """

    pairs: int = 30_000
    calls: int = 40
    solver: str = "heun"
    distance: str = "l2"

    needs: ClassVar[bool] = True
    blind: ClassVar[bool] = True

    def stages(self, on: Setting) -> list[Stage]:
        return [self.one(on, 0)]

    def one(self, on: Setting, k: int) -> Stage:
        """The stage number k that makes one call."""
        objective = FromNoise(process=on.process, coupling=Recorded(on.folder / f"pairs-{k}.safetensors"), law=Start(),
                              weight="uniform", distance=self.distance)  # fmt: skip
        return Stage(objective=objective, pairs=self.pairs, calls=self.calls, solver=self.solver)

    def tables(self, process: Process) -> dict[str, Tableau]:
        return {"1": table("ddim", process, times(process, "default", 1))}


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


@dataclass(frozen=True, kw_only=True)
class Reflow(Method):
    """Rectified flow again on the ends of its own runs, and then one call of it.

    Args:
        rounds: of it; `distil`: the share of the last stage, of one call; 0 leaves it out.
        pairs, calls, solver: as in `Knowledge`; published rounds take 1e6 pairs and more.
    """

    rounds: int = 1
    pairs: int = 20_000
    calls: int = 50
    solver: str = "ddim"
    distil: float = 0.5

    process: ClassVar[str] = "flow"
    predicts: ClassVar[str | None] = "flow"
    blind: ClassVar[bool] = True

    def stages(self, on: Setting) -> list[Stage]:
        found = [] if on.taught else [Stage(objective=Flow().objective(on))]
        for _ in range(self.rounds):
            file = Recorded(on.folder / f"pairs-{len(found)}.safetensors")
            objective = Regression(process=on.process, coupling=file, law=Uniform())
            found.append(Stage(objective=objective, promotes=bool(found), pairs=self.pairs, calls=self.calls,
                               solver=self.solver))  # fmt: skip
        if self.distil:
            last = Knowledge(pairs=self.pairs, calls=self.calls, solver=self.solver).one(on, len(found))
            found.append(replace(last, share=self.distil, promotes=True))
        return found

    @property
    def rows(self) -> str:  # type: ignore[override] - a flow until it is distilled
        return "own" if self.distil else "any"

    def tables(self, process: Process) -> dict[str, Tableau]:
        return {"1": table("ddim", process, times(process, "uniform", 1))}
