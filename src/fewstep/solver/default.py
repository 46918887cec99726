r"""The default: one rule that says, of what is known of a model, how `GaussianSplit` runs on it.

Time runs from noise to data, lambda is the log-SNR log(alpha/sigma), n the number of network calls.

**What a network cannot know.** One that returns F makes the prediction D = p z + q F; an error delta of F is q delta in
D. For noise q = -sigma/alpha = -e^-lambda: at lambda = -5 an error of a fiftieth is three deviations of pictures. For
v, data and flow |q| stays near 1. Steps of first order in small pieces hide it, since a step's share of D's error is
alpha_s (e^-lambda_t - e^-lambda_s) delta, which is h sigma_s delta for small h. Whatever reads differences of early
predictions, or takes a long first step, does not; and where the error is an error in the noise's size, the state after
the way from lambda_0 to lambda has it multiplied by e^(lambda - lambda_0): 4 % at lambda = -5 are a quarter at -3.

**What is known there without one.** A state tells the parts of data apart where e = Lambda e^(2 lambda) is about 1,
with Lambda the largest eigenvalue of data's covariance. Before, data might as well be Gaussian, and then the state is
carried in closed form (`GaussianSplit.first`). Set right by the first prediction, made at its end, a direction that was
carried blindly has the scale 1 + e/(1 + e) where sqrt(1 + e) is right: 1 % off at e = 0.2, 6 % at 1, 20 % at 3.

**The rule.** In units where data has deviation 0.5, or 1 for networks below 256 numbers (a known `std` moves every
log-SNR by -log(std/unit)):

- An exact denoiser, or a function of which nothing is known: three points around the Gaussian, corrector and ending of
  `GaussianSplit`, equal steps of the process's own grid. Up to 4 calls, and in 32 dimensions or more, the first call is
  made at lambda_1 = -max(2, log(d)/2 - 0.6) - n/13. Guided, steps are centred 0.75 lower, with one point up to 4 calls
  and two up to 10.
- A network (`fewstep.wrap`, a loaded model): two points in the data form, since a third extrapolates its errors, and
  from 3 calls on the last call at lambda = 2.2, or where noise is not what it predicts by 0.03 a call later from 10 on:
  what the state holds below is noise that the network's own errors have made of it, and the last prediction takes that
  out. Above 784 numbers, where networks are better, it moves later by log(d/784)/2, but not beyond the grid without it.
- A network that predicts noise is first called where its error, measured (`error`) or 0.037 sqrt(784/d) (0.037 below
  784 numbers), is 0.3 in data, but not after -1.5; where the process starts within 1 of that (half of it below 256
  numbers), at the start.
  With 3 and 4 calls, which one before -1.1 - n/10 is not worth, it is made between that and -1.2, and the last one of 3
  at 1.2. Steps are centred
  at 1 - n/4, from 6 calls on at -0.5. Guidance at scale w makes of an error delta one of sqrt(w^2 + (w - 1)^2) delta.
- Below 256 numbers, of which a state tells nothing for long, any network's steps are centred at 0, from 7 calls on at
  0.25. With n calls the first is made at -0.35 (n + 1), from 5 calls on at -2.1, and where noise is not what it
  predicts earlier by 1/40 a call from 8 on; not before that of an error that is known. The last is made at
  0.3 + 0.3 n, from 6 calls on at 1.6 + 0.05 n.

On bridges it is `Multistep` with two points and one in the last step (DBIM of order 2), on the grid `bridge`: the first
call leads to -1 (`Bridge.boot`), the last one is made at 4.5 (1 - 7/(3 n)), and steps between are equal in log-SNR.

Samples of a network that tells its data's range end within it, on scalar processes (`fewstep.loop.ends`).

The constants are those of the least Frechet distance and RMS over the problems `CHOOSE` of `benchmarks/problems`;
`benchmarks/judge_default.py` judges the rule on others.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.grid import GRIDS, Grid
from fewstep.grid.spacing import logistic
from fewstep.process.base import Process
from fewstep.process.bridge import Bridge
from fewstep.solver.base import Promise, Solver
from fewstep.solver.ode.exponential import Multistep
from fewstep.solver.ode.gaussian_split import GaussianSplit
from fewstep.tableau.writer import Writer
from fewstep.words import within

__all__ = ["Default"]

_UNIT, _SMALL_UNIT = 0.5, 1.0  # the deviation of data that the constants are for; of networks' with few numbers


@dataclass(frozen=True, kw_only=True)
class Default(Solver):
    """`GaussianSplit` as the rule of `fewstep.solver.default` sets it; one call a step, deterministic.

    `fewstep.sample` fills in what the denoiser and the shape say. Order 1 on a grid that is given, 2 where the first
    call is at the start. On its own grid the first step of a network that predicts noise does not shrink with their
    number, which leaves a distance to the ODE of .001 to .002 on mixtures.

    Args:
        predicts: what the network returns, by the names of `fewstep.wrap`; "" for an exact denoiser.
        guidance: the guidance scale; 1 and less is none.
        size: how many numbers a sample has.
        std: the deviation of the data; 0 where it is not known.
        error: the deviation of the network's error in units of its output, as `fewstep stats` measures it; 0 where it
            is not known.
    """

    predicts: str = ""
    guidance: float = 1.0
    size: int = 784
    std: float = 0.0
    error: float = 0.0

    def __post_init__(self) -> None:
        within(self, size="[1, inf]", std="[0, inf)", error="[0, inf)")

    promise = Promise(1, point_mass=(), ends=GaussianSplit().ends)  # type: ignore[assignment]

    @property
    def guided(self) -> bool:
        return self.guidance > 1.0

    @property
    def small(self) -> bool:
        """Whether samples have so few numbers that a state tells nothing of them for long."""
        return self.size < 256

    @property
    def noisy(self) -> bool:
        """Whether a network's error grows towards noise."""
        return self.predicts in ("noise", "score")

    def grid(self, name: str) -> Grid:
        return functools.partial(_grid, self) if name == "default" else super().grid(name)

    # the rule says of each process and number of calls how many there are
    one_row = False  # type: ignore[assignment]

    def write(self, w: Writer) -> None:
        w.on(self._from_the_first_call(w.process, w.times))
        self.at(w.process, len(w.steps)).write(w)

    def _from_the_first_call(self, process: Process, times: list[float]) -> list[float]:
        """The times with those before the first call, but the start, spread out from it to the next one."""
        first = self.first(process, len(times) - 1)
        lam = [float(process.log_snr(t)) for t in times]
        early = sum(one <= first for one in lam[1:-1])
        if not early or lam[0] > lam[-1]:  # times that rise, of `fewstep.encode`, stay as they are
            return times
        until = min(lam[early + 1], max(first + 1.0, 2.2 + self._shift))
        spread = torch.linspace(first, until, early + 2, dtype=torch.float64)[1:-1]
        return [times[0], *process.inverse_log_snr(spread).tolist(), *times[early + 1 :]]

    def at(self, process: Process, calls: int) -> Solver:
        """The solver that the rule names for so many calls."""
        if isinstance(process, Bridge):
            return Multistep(points=2, final_ramp="last")
        if self.predicts:
            return GaussianSplit(points=2, std=0.0, relax=math.inf, first=self.first(process, calls))
        std = self.std or _UNIT
        if self.guided:
            return GaussianSplit(points=1 + (calls > 4) + (calls > 10), std=std, relax=8.0)
        return GaussianSplit(std=std, first=self.first(process, calls))

    def first(self, process: Process, calls: int) -> float:
        """The log-SNR of the first call; -inf where it is made at the start."""
        if isinstance(process, Bridge):
            return -math.inf
        late = 0.0  # by how much the first of 3 or 4 calls is made later
        if self.noisy and (self.error or not self.small):
            error = self.error or 0.037 * min(1.0, math.sqrt(784 / self.size))
            both = math.hypot(self.guidance, self.guidance - 1) if self.guided else 1.0
            at = math.log(error * both / 0.3)
            first = min(at, -1.5)
            if calls in (3, 4):
                late = min(max(at, -1.1 - calls / 10), -1.2) - first
            first = max(first, self._informed(calls) - late) if self.small else first
        elif self.predicts:
            first = self._informed(calls) if self.small else -math.inf
        elif self.guided or (calls > 4 and self.size < 32):
            return -math.inf
        else:
            first = -max(2.0, 0.5 * math.log(self.size) - 0.6) - calls / 13
        first += self._shift
        least = 0.5 if self.small else 1.0
        worth = process.kind != "diagonal" and float(process.log_snr(process.t_max)) < first - least
        return first + late if worth else -math.inf

    def _informed(self, calls: int) -> float:
        """The log-SNR from which on a state of few numbers tells more than calls there are worth."""
        return -min(2.1, 0.35 * (calls + 1)) - (0.0 if self.noisy else max(0, calls - 8) / 40)

    @property
    def _shift(self) -> float:
        """What the data's deviation adds to every log-SNR."""
        return -math.log(self.std / (_SMALL_UNIT if self.predicts and self.small else _UNIT)) if self.std else 0.0

    def last(self, calls: int) -> float:
        """The log-SNR of a network's last call; inf where it is that of the grid."""
        if self.small or (self.noisy and calls == 3):
            return self._shift + min(0.3 + 0.3 * calls, 1.6 + 0.05 * calls)
        later = 0.0 if self.noisy else 0.03 * max(0, calls - 10)
        return self._shift + 2.2 + later if calls > 2 else math.inf

    def center(self, calls: int) -> float:
        """The log-SNR where steps are densest."""
        if self.noisy and not self.small:
            return self._shift + max(-0.5, 1 - calls / 4)
        if self.predicts:
            return self._shift + (0.0 if self.small and calls < 7 else 0.25)
        return self._shift + (-0.5 if self.guided else 0.25)


def _grid(solver: Default, process: Process, steps: int) -> Tensor:
    """The default grid of a solver: the process's own, cut at the first and the last call, or moved."""
    tuned = process.kind == "scalar" and (solver.predicts or solver.guided)
    if isinstance(process, Bridge) or (process.default_grid != "logistic" and not tuned):
        return GRIDS["default"](process, steps)
    place = functools.partial(logistic, process, steps, center=solver.center(steps), first=solver.first(process, steps))
    if not solver.predicts or process.kind != "scalar":
        return place()
    last = solver.last(steps)
    if solver.size > 784 and last < math.inf:
        least = 2.2 + solver._shift
        last = min(last + 0.5 * math.log(solver.size / 784), max(least, float(process.log_snr(place()[-2]))))
    return place(last=last)
