"""The verdicts on a driver, which chooses its steps while it runs: what it ends in, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fewstep.check.cell import Judge, Rounded
from fewstep.check.exact import STD, grid, runnable, shift, singular_ends, starts
from fewstep.check.report import Verdict
from fewstep.denoiser import Counted, Gaussian
from fewstep.loop import sample, solve
from fewstep.process import Discrete, Process
from fewstep.process.bridge import boots
from fewstep.process.operator import apply, cholesky, inverse, transpose
from fewstep.solver.driver.base import ENDS, Driver, Outcome

__all__ = ["DRIVER_VERDICTS", "DriverCell", "driver_verdicts"]

STEPS, FINE = 16, 256  # of the grid of a driver that is given its times, and where its law is judged
SAMPLES = (0, 3)  # whose realised tables are run again
SIGMAS = 5.0  # standard errors a sampled moment may be off


@dataclass(frozen=True)
class DriverCell(Judge):
    """A driver on a process, by name."""

    solver: Driver
    process: Process
    name: str
    only: tuple[str, ...] = ()

    @cached_property
    def times(self) -> Tensor:
        """Its grid, or the two ends of it."""
        return grid(self.process, 1 if self.solver.own_times else STEPS)

    @cached_property
    def outcome(self) -> Outcome:
        """Some of the problem's start states taken to the end."""
        return self.solve(x=self.start)

    @cached_property
    def start(self) -> Tensor:
        """Fewer start states where each one has noise of its own to make."""
        return self.problem.start[:4] if self.solver.stochastic else self.problem.start

    @cached_property
    def quick(self) -> Driver:
        """With looser tolerances where noise is added, which is slow to make: for what holds at any tolerance."""
        return (self.finer(30.0) or self.solver) if self.solver.stochastic else self.solver

    @cached_property
    def rough(self) -> Outcome:
        """The same start states, at those tolerances."""
        return self.solve(self.quick, x=self.start) if self.solver.stochastic else self.outcome

    def solve(self, driver: Driver | None = None, denoiser: Any = None, **options: Any) -> Outcome:
        """A run in float64 on the standard stretch."""
        options = {"grid": self.times, "seed": 5, "dtype": torch.float64, **options}
        return solve(denoiser or self.problem.denoiser, self.process, solver=driver or self.solver, **options)

    def draw(self, count: int, *, first: int = 0, grid: Tensor | None = None) -> Outcome:
        """Samples from `first` on, of 64 that start from the law at the grid's first time."""
        times = self.times if grid is None else grid
        x = starts(self.process, float(times[0]), 64)[first : first + count]
        return self.solve(self.quick, x=x, first=first, grid=times)

    def finer(self, factor: float) -> Driver | None:
        """The driver with tighter tolerances; None where it has none."""
        names = {f.name for f in fields(self.solver)} & {"rtol", "atol"}  # type: ignore[arg-type]
        tight: dict[str, Any] = {n: getattr(self.solver, n) * factor for n in names}
        return replace(self.solver, **tight) if names else None  # type: ignore[type-var]


def driver_verdicts(cell: DriverCell) -> Iterator[Verdict]:
    """All verdicts of a cell; one whose process the driver does not cover has a single one, its reason."""
    return cell.verdicts(DRIVER_VERDICTS, lambda: cell.solver.check(cell.process, cell.times))


def finite(cell: DriverCell) -> Verdict:
    """Every sample reaches the end."""
    found = cell.outcome
    good = found.ok and bool(found.state.isfinite().all())
    return cell.judge("finite", good, str(found), float(found.calls.double().mean()))


def calls(cell: DriverCell) -> Verdict:
    """The calls of each sample add up to the evaluations counted, and the rounds to the batched calls."""
    counted = Counted(cell.problem.denoiser)
    found = cell.solve(cell.quick, counted, x=cell.start)
    declared, rounds = int(found.calls.sum()), found.rounds
    good = declared == counted.evaluations and rounds == counted.calls
    sentence = f"evaluations said and counted, in {rounds} rounds of {counted.calls} counted"
    return cell.judge("calls", good, sentence, counted.evaluations, declared)


def outcome(cell: DriverCell) -> Verdict:
    """Too few calls, and a tolerance below rounding, end in a sentence instead of a hang or a wrong sample."""
    ends = []
    impossible = cell.finer(1e-30)
    tight = impossible.limited(300) if impossible is not None else None
    for driver in (cell.solver.limited(3), tight) if cell.solver.own_times else ():
        if driver is None:
            continue
        found = cell.solve(driver, x=cell.start[:2])
        if found.ok or any(status not in ENDS for status in found.status) or len(found.sentence(0)) < 20:
            return cell.judge("outcome", False, f"a run that cannot end says {found.status[0]!r}")
        ends.append(found.status[0])
    if not ends:
        return cell.skip("outcome", "it is given its times and has no tolerance, so every run ends")
    return cell.judge("outcome", True, f"runs that cannot end say {' and '.join(map(repr, ends))}")


def repeat(cell: DriverCell) -> Verdict:
    """The same bits from the same seed."""
    return cell.repeats(cell.draw(3).state, cell.draw(3).state)


def batch(cell: DriverCell) -> Verdict:
    """A sample takes the same steps to the same state alone, among three and among many."""
    many, first = (8, 3) if cell.solver.stochastic else (64, 7)
    whole = cell.draw(many)
    off = 0.0
    for n in (1, 3):
        part = cell.draw(n, first=first)
        same = whole.calls[first : first + n]
        if not torch.equal(part.calls, same):
            sentence = f"a sample among {n} takes {part.calls.tolist()} calls, among {many} {same.tolist()}"
            return cell.judge("batch", False, sentence)
        off = max(off, float((part.state - whole.state[first : first + n]).abs().max()))
    sentence = f"a sample alone or among 3 differs by so much from itself among {many}"
    return cell.judge("batch", off < 1e-9, sentence, off, 0)


def dtype(cell: DriverCell) -> Verdict:
    """float32 states come where the same steps take float64 ones; a bfloat16 network ends in float32 states too.

    What rounding does is at most 1e-4, or a tenth of the error that the tolerance leaves where the steps are that long.
    """
    x = cell.start.float()
    single = cell.solve(cell.quick, x=x)
    # a tolerance below bfloat16's rounding cannot be met
    loose = cell.quick if cell.solver.stochastic else cell.finer(1e3) or cell.solver
    loose = loose.limited(200) if loose.own_times else loose
    half = cell.solve(loose, Rounded(cell.problem.denoiser), x=x)
    good = single.ok and single.state.dtype == half.state.dtype == torch.float32
    bound = 1e-4 if cell.solver.stochastic else max(1e-4, cell.problem.error(single.state) / 10)
    exact = torch.cat([_again(cell, single, x.double(), i) for i in SAMPLES])
    off = float((single.state[list(SAMPLES)].double() - exact).norm() / exact.norm())
    sentence = f"rounding moves float32 states by {off:.0e} (at most {bound:.0e}), {single}; bfloat16: {half.status[0]}"
    return cell.judge("dtype", good and off < bound, sentence, off, bound)


def replay(cell: DriverCell) -> Verdict:
    """The table that a sample realised gives its state again."""
    found = cell.rough
    off = max(float((_again(cell, found, cell.start, i) - found.state[i]).abs().max()) for i in SAMPLES)
    return cell.judge("replay", off < 1e-9, "the realised table of a sample gives its state again", off, 0)


def tolerance(cell: DriverCell) -> Verdict:
    """A tolerance a hundred times tighter brings the samples nearer to the exact answer.

    Tighter than the default, or than a hundredth of it where the first step is all that decides at the default.
    """
    if cell.solver.stochastic:
        return cell.skip("tolerance", "it adds noise: its law is judged, not its states")
    if cell.finer(1.0) is None:
        return cell.skip("tolerance", "it has no tolerance")
    if isinstance(cell.process, Discrete) and getattr(cell.solver, "clock", "") == "t":
        why = "its rate in t jumps at every step of the table, which no estimate between them sees"
        return cell.skip("tolerance", why)
    at = lambda share: cell.problem.error(cell.solve(cell.finer(share), x=cell.start).state)  # noqa: E731
    few, many, which = cell.problem.error(cell.outcome.state), at(1e-2), "the default"
    if many > max(few / 5, 1e-9):
        few, many, which = many, at(1e-4), "a hundredth of it"
    sentence = f"error {few:.1e} at {which}, and {many:.1e} at a tolerance a hundred times tighter"
    return cell.judge("tolerance", many < max(few / 5, 1e-9), sentence, many, few / 5)


def marginals(cell: DriverCell) -> Verdict:
    """The law of Gaussian data at the end, coordinate by coordinate, within the error of sampling and of the tolerance.

    Two samples of many coordinates, which share their steps, stand for many samples. So that the law and not the
    default is judged, the tolerance is a hundredth (a tenth with noise, whose steps are short), or the grid is fine.
    """
    p, count, shape = cell.process, 1024, (512, *cell.problem.mixture.means.shape[1:])
    times = cell.times if cell.solver.own_times else grid(p, FINE)
    start, end = float(times[0]), float(times[-1])
    g = torch.Generator().manual_seed(2)
    denoiser = Gaussian(p, torch.zeros(shape, dtype=torch.float64), STD)
    noise = lambda: torch.randn((2, *p.state_shape(shape)), dtype=torch.float64, generator=g)  # noqa: E731
    driver = cell.finer(0.1 if cell.solver.stochastic else 1e-2)
    x = p.diffuse(denoiser.sample(2, g), start, noise()) + shift(p, start)
    found = cell.solve(driver, runnable(denoiser), x=x, grid=times)
    law = cholesky(p.Sigma(end) + STD**2 * (p.M(end) * transpose(p.M(end))))
    white = apply(inverse(law), found.state - shift(p, end))
    white = white.movedim(1, 0).flatten(1) if p.kind == "block" else white.flatten(0, 1).flatten(1).mT
    off = float((white @ white.mT / white.shape[1] - torch.eye(len(white), dtype=torch.float64)).abs().max())
    bound = SIGMAS * math.sqrt(2 / count) + 0.05
    sentence = "whitened second moments differ by so much from the exact ones"
    return cell.judge("marginals", found.ok and off < bound, sentence, off, bound)


def ends(cell: DriverCell) -> Verdict:
    """Singular ends that are declared are reached; the others are refused."""
    singular, s = singular_ends(cell.process), cell.solver
    if not singular:
        return cell.skip("ends", "the process has no end at which alpha or sigma is zero")
    tried = []
    for end, times in singular.items():
        g = torch.linspace(times[0], times[1], len(cell.times), dtype=torch.float64)
        try:
            found = cell.draw(2, grid=g)
        except ValueError as error:
            reached = times[0] <= cell.process.t_max  # a run refuses times that the process does not have
            if end in s.ends and reached:
                return cell.judge("ends", False, f"it declares {end}, and refuses it: {error}")
            tried.append(f"{end} is refused" if reached else f"{end} is beyond t_max, and refused")
            continue
        boot = boots(cell.process, times[0])
        if end not in s.ends and not boot:
            return cell.judge("ends", False, f"it does not declare {end}, and takes it")
        if not found.ok:
            return cell.judge("ends", False, f"{end}: {found}")
        tried.append("the pinned end is left" if boot else f"{end} is reached")
    return cell.judge("ends", True, ", ".join(tried))


def error(cell: DriverCell) -> Verdict:
    """The error at its default tolerance: reported, and held only to being one."""
    if cell.solver.stochastic:
        return cell.skip("error-10", "it adds noise: its law is judged, not its states")
    found, calls = cell.problem.error(cell.outcome.state), float(cell.outcome.calls.double().mean())
    sentence = f"error at its default tolerance, with {calls:.0f} calls a sample: states on a mixture"
    return cell.judge("error-10", math.isfinite(found), sentence, found)


def order(cell: DriverCell) -> Verdict:
    """A driver has no number of steps to vary."""
    reason = "it chooses its steps" if cell.solver.own_times else "it sizes its noise while it runs"
    return cell.skip("order", f"{reason}: its tolerance, outcome and law are judged instead")


DRIVER_VERDICTS: dict[str, Callable[[DriverCell], Verdict]] = {
    "finite": finite, "calls": calls, "outcome": outcome, "repeat": repeat, "batch": batch, "dtype": dtype,
    "replay": replay, "order": order, "tolerance": tolerance, "marginals": marginals, "ends": ends, "error-10": error,
}  # fmt: skip


def _again(cell: DriverCell, found: Outcome, x: Tensor, i: int) -> Tensor:
    """Where the table that sample i of a run realised takes its start state, on the same noise."""
    same: Any = {"noise": found.noise(i)} if found.noises is not None else {"seed": 5, "first": i}
    return sample(cell.problem.denoiser, cell.process, solver=found.table(i), x=x[i : i + 1], **same)
