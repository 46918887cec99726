r"""Adaptive steps: each sample of a batch chooses its own, by the difference of two formulas on the same calls.

$$ E = \Big\| \frac{z_{high} - z_{low}}{\delta} \Big\|_{rms}, \qquad h \leftarrow h \cdot
   \mathrm{limit}\big(\theta\, E_n^{-b_1} E_{n-1}^{-b_2} E_{n-2}^{-b_3}\big) $$

A step is taken where E is at most 1 and tried again, shorter, where it is not. The tolerance is
delta = atol + rtol max(|z|, |z_high|), or max(atol, rtol max(|z_low|, |z_low before|)). What is left to do is
each method's own: its two formulas, its clock, its first step. The norm runs over one sample, so a batch mate changes
nothing; `norm="batch"` and `norm="largest"` step all samples together, as the reference codes do.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.process.clock import clock
from fewstep.solver.base import Promise, Solver
from fewstep.solver.driver.base import Driver, Live, Outcome, Run
from fewstep.tableau.form import Form
from fewstep.words import among, whole, within

__all__ = ["Adaptive", "Control"]

_SMALLEST = 1e-14  # of the clock's reading: a shorter step does not change the time
_LARGEST = 1e150  # of an error, whose square is still finite


@dataclass(frozen=True)
class Control:
    r"""How the next step follows from the errors: h' = h limit(theta E^-b).

    `powers` are b for this error and the two accepted before. The limit clips to [low, high], and to 1 after a
    rejected step where `wait` is set; `smooth` takes 1 + atan(x - 1) instead, and accepts where that is at least 0.81.
    """

    powers: tuple[float, float, float]
    safety: float = 0.9
    low: float = 0.0
    high: float = math.inf
    wait: bool = False
    smooth: bool = False

    def decide(self, error: Tensor, memory: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        """Which samples accept, and the factor on their step; `memory` (n, 3) of inverse errors is kept up to date."""
        inverse = 1 / (error + (1e-8 if self.smooth else 0.0))
        memory[:] = torch.where(memory.isnan().any(1, keepdim=True), inverse[:, None], memory)
        memory[:, 0] = inverse
        factor = self.safety * self.power(memory)
        if self.smooth:
            factor = 1 + torch.atan(factor - 1)
            accept = factor >= 0.81
        else:
            accept, factor = error <= 1, factor.clamp(self.low, self.high)
            factor = torch.where(held & accept & self.wait, factor.clamp(max=1.0), factor)
        memory[:, 1:] = torch.where(accept[:, None], memory[:, :2], memory[:, 1:])
        lost = ~error.isfinite()
        memory[lost] = torch.nan
        return accept & ~lost, torch.where(lost, 0.2, factor)

    def power(self, memory: Tensor) -> Tensor:
        """E^-b."""
        return (memory ** torch.tensor(self.powers, dtype=torch.float64)).prod(1)


@dataclass(frozen=True, kw_only=True)
class Adaptive(Driver):
    """The loop over tried steps that all adaptive drivers share.

    - `cost`: network calls a tried step takes, besides one at its start where that is not known;
    - `opening`: those that choosing the first step takes;
    - `steps_in`: the clock in which a step is long or short.

    Args:
        rtol, atol: the tolerance, relative and absolute.
        norm: "sample" (each sample for itself), or all together by the "batch" or by its "largest" error.
        max_calls: a sample stops before it takes more network calls.
        last: where sigma = 0 ends the grid, sigma/alpha from which one step of the data prediction goes there.
    """

    rtol: float
    atol: float
    norm: str = "sample"
    max_calls: int = 10_000
    last: float = 1e-3

    cost: ClassVar[int] = 1
    opening: ClassVar[int] = 0
    steps_in: ClassVar[str] = "t"

    def __post_init__(self) -> None:
        if not (self.rtol >= 0 and self.atol >= 0 and 0 < self.rtol + self.atol < math.inf):
            raise ValueError(f"got rtol={self.rtol} and atol={self.atol}: give numbers of at least 0, one above it")
        among(self, norm=("sample", "batch", "largest"))
        within(self, last="(0, 1)")
        whole("max_calls", self.max_calls)

    @property
    @abstractmethod
    def solver(self) -> Solver:
        """The solver that writes the same steps as a table."""

    @property
    @abstractmethod
    def control(self) -> Control:
        """How the next step follows from the error."""

    @abstractmethod
    def attempt(self, w: Live, t: Tensor, s: Tensor) -> tuple[Form, Form]:
        """The row of a step from t to s, and the formula it is compared with."""

    def tolerance(self, z: Tensor, before: Tensor, high: Tensor, low: Tensor) -> Tensor:
        """Delta, what the difference is measured by: max(atol, rtol max(|z_low|, |z_low before|))."""
        return (self.rtol * torch.maximum(low.abs(), before.abs())).clamp(min=self.atol)

    @abstractmethod
    def first(self, run: Run, end: float) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """The first step (batch,) in the clock, and the outputs already called for."""

    @property
    def promise(self) -> Promise:
        ends = (*(end for end in self.solver.ends if end != "sigma=0"), "sigma=0")
        return Promise(self.solver.order, stochastic=self.solver.stochastic, ends=ends)

    def limited(self, calls: int) -> Adaptive:
        return replace(self, max_calls=calls)

    def drive(self, run: Run) -> Outcome:
        p, (start, end) = run.process, run.grid[[0, -1]].tolist()
        to_zero = p.log_snr(end) == math.inf  # steps of its own reach to where sigma is small
        near = min(start, float(p.inverse_log_snr(-math.log(self.last)))) if to_zero else end
        walk = Walk(self, run, near)
        while len(walk.active):
            walk.step()
        if near != end:
            walk.finish(near, end)
        return walk.outcome()

    def norms(self, difference: Tensor) -> Tensor:
        """The error of each sample (n,), in float64 on the CPU."""
        error = difference.flatten(1).double().square().mean(1).sqrt().cpu()
        if self.norm == "sample":
            return error
        together = error.square().mean().sqrt() if self.norm == "batch" else error.max()
        return together.expand(len(error))


class Walk:
    """The samples under way: where each is, how long its next step is, what it has done."""

    def __init__(self, driver: Adaptive, run: Run, near: float) -> None:
        n = len(run.start)
        self.driver, self.run, self.near = driver, run, near
        self.clock, p = clock(driver.steps_in), run.process
        start = float(run.grid[0])
        self.goal = float(self.clock.of(p, torch.tensor(near, dtype=torch.float64)))
        self.z, self.before = run.start, run.start
        self.t = torch.full((n,), start, dtype=torch.float64)
        self.here = self.clock.of(p, self.t).clone()  # a copy: the clock "t" returns the times themselves
        self.memory = torch.full((n, 3), torch.nan, dtype=torch.float64)
        self.held = torch.zeros(n, dtype=torch.bool)
        self.accepted, self.rejected = torch.zeros(2, n, dtype=torch.int64)
        self.status = ["reached the end"] * n
        self.times = [[start] for _ in range(n)]
        self.active = torch.arange(n if near != start else 0)
        if driver.opening > driver.max_calls:
            self._stop(self.active, "too many calls")
        self.h, known = driver.first(run, near) if len(self.active) else (torch.zeros(n), None)
        self.d, self.known = known if known is not None else (None, torch.zeros(n, dtype=torch.bool))

    def step(self) -> None:
        """Every active sample tries one step of its own; those that end leave."""
        d = self.driver
        cost = d.cost + (~self.known[self.active]).long()
        self._stop(self.active[self.run.calls[self.active] + cost > d.max_calls], "too many calls")
        if not len(i := self.active):
            return
        t, room = self.t[i], (self.goal - self.here[i]).abs()
        h = torch.minimum(self.h[i], room)
        last = self.h[i] >= room * (1 - 1e-12)
        place = torch.where(last, self.goal, self.here[i] + math.copysign(1.0, self.goal - float(self.here[i[0]])) * h)
        s = torch.where(last, self.near, self.clock.time(self.run.process, place))
        w = self.run.live(i, self.z[i], None if self.d is None else (self.d[i], self.known[i]))
        forms = d.attempt(w, t, s)
        high, low = (w.value(form) for form in forms)
        off = torch.maximum((high - low).abs(), torch.finfo(high.dtype).eps * high.abs())  # no less than rounding
        ratio = off.double() / d.tolerance(*(v.double() for v in (self.z[i], self.before[i], high, low)))
        finite = (high - low).flatten(1).isfinite().all(1).reshape(-1, *(1,) * (high.ndim - 1))
        error, memory = d.norms(torch.where(finite, ratio.clamp(max=_LARGEST), torch.nan)), self.memory[i]
        accept, factor = d.control.decide(error, memory, self.held[i])
        self.memory[i] = memory
        self.h[i] = (self.h[i] if d.control.smooth else h) * factor
        self._move(i, accept, high, low, s, place)
        self._remember(i, accept, w, forms[0])
        small = ~accept & (self.h[i] < _SMALLEST * torch.maximum(self.here[i].abs(), torch.tensor(abs(self.goal))))
        self._stop(i[small & error.isfinite()], "step too small")
        self._stop(i[small & ~error.isfinite()], "not finite")
        self._leave(i[accept & last])

    def finish(self, near: float, end: float) -> None:
        """One step of the solver's own from `near` to sigma = 0, for all that came there."""
        able = [k for k, status in enumerate(self.status) if status == "reached the end"]
        i = torch.tensor([k for k in able if self.run.calls[k] < self.driver.max_calls], dtype=torch.int64)
        self._stop(torch.tensor([k for k in able if k not in i.tolist()], dtype=torch.int64), "too many calls")
        if len(i):
            w = self.run.live(i, self.z[i], None if self.d is None else (self.d[i], self.known[i]))
            w.times, w.steps = [near, end], [(near, end)]
            self.driver.solver.write(w)
            self._move(i, torch.ones(len(i), dtype=torch.bool), w.value(w.latest), None,
                       torch.full((len(i),), end, dtype=torch.float64), self.here[i])  # fmt: skip

    def outcome(self) -> Outcome:
        """What the samples ended in."""
        finite = self.z.flatten(1).isfinite().all(1)
        status = tuple("not finite" if not good else name for name, good in zip(self.status, finite, strict=True))
        solver, process, times = self.driver.solver, self.run.process, self.times

        def table(sample: int) -> Any:
            if len(times[sample]) < 2:
                raise ValueError(f"sample {sample} took no step: it has no table")
            made = solver.tabulate(process, torch.tensor(times[sample], dtype=torch.float64))
            return replace(made, rows=tuple(replace(row, to=row.at) for row in made.rows))  # as the network was told

        return Outcome(
            state=self.z, times=self.t, status=status, calls=self.run.calls, accepted=self.accepted,
            rejected=self.rejected, rounds=self.run.rounds, tables=table,
            noises=self.run.noise if self.driver.stochastic else None,
        )  # fmt: skip

    def _move(self, i: Tensor, accept: Tensor, high: Tensor, low: Tensor | None, s: Tensor, place: Tensor) -> None:
        yes, self.z = i[accept], self.z.index_copy(0, i[accept].to(self.z.device), high[accept.to(high.device)])
        if low is not None:
            self.before = self.before.index_copy(0, yes.to(low.device), low[accept.to(low.device)])
        self.t[yes], self.here[yes] = s[accept], place[accept]
        self.held[i] = ~accept
        self.accepted[yes] += 1
        self.rejected[i[~accept]] += 1
        for k, time in zip(yes.tolist(), s[accept].tolist(), strict=True):
            self.times[k].append(time)

    def _remember(self, i: Tensor, accept: Tensor, w: Live, high: Form) -> None:
        """The outputs at the states where samples now stand: a rejected step's start, or an end that was called."""
        here, ahead = w.output(w.start), w.output(high)
        assert here is not None
        if self.d is None:
            self.d = here.new_zeros(len(self.known), *here.shape[1:])
        mask = accept.to(here.device).reshape(-1, *(1,) * (here.ndim - 1))
        self.d = self.d.index_copy(0, i.to(here.device), here if ahead is None else torch.where(mask, ahead, here))
        self.known[i] = ~accept | (ahead is not None)
        lost = ~here.flatten(1).isfinite().all(1).cpu()
        self._stop(i[lost], "not finite")

    def _stop(self, samples: Tensor, status: str) -> None:
        for k in samples.tolist():
            self.status[k] = status
        self._leave(samples)

    def _leave(self, samples: Tensor) -> None:
        self.active = self.active[~torch.isin(self.active, samples)]
