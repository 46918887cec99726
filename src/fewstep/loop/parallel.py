r"""Parallel in time: any table by Picard iteration over a sliding window, many network calls at once.

A table is linear but for its calls. So each round calls the network at every row of the window, at the states the last
sweep made, and then sweeps: it walks the rows with each call replaced by what is known of it,

$$ D_j(z) \approx D_j(z^{old}_j) + c_j \big(e(z) - e(z^{old}_j)\big), \qquad
   e = (M^T \Sigma^{-1} M)^{-1} M^T \Sigma^{-1} z $$

The whole linear part is thus exact in each sweep, and the iteration has the exact run as its only fixed point, whatever
c is. e is the estimate of x0 that uses no prior, and c in [0, 1] the share of a change in it that the network follows:
the secant of the last two calls of the row, per sample, and to begin with the share for data of a given deviation.
With c = 0 this is Picard iteration on data predictions, with c the diagonal of a quasi-Newton method.

Rows before a sample's front are final: their state did not move by more than the tolerance since they were called. The
front's own state is made of final rows alone, so that each round gains a row at least, and the result is the
sequential one after at most as many rounds as it has calls. Each sample has its own front.

References: Shih et al., Parallel sampling of diffusion models (ParaDiGMS), 2023, https://arxiv.org/abs/2305.16317, for
the window and the tolerance; Tang et al., Accelerating parallel sampling of diffusion models, 2024,
https://arxiv.org/abs/2402.09970, for the triangular system. Where we differ: their iteration adds up
the drifts of the state, here the table's own coefficients carry it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fewstep.denoiser.base import Denoises, as_denoiser, of_samples
from fewstep.denoiser.watch import watching
from fewstep.loop.drive import noises_of, outputs
from fewstep.loop.plan import Plan
from fewstep.loop.walk import walk
from fewstep.noise import NoiseSource
from fewstep.process.operator import apply, transpose, wide
from fewstep.process.predict import statistic
from fewstep.solver.driver.base import Outcome
from fewstep.tableau import Symbol, Tableau
from fewstep.words import Typed, whole, within

__all__ = ["Parallel", "Round", "picard"]


@dataclass(frozen=True)
class Round:
    """What a round of calls did: its number, the calls of all samples so far, the final rows of the slowest one."""

    number: int
    calls: int
    final: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class Parallel(Typed):
    """How a table is run in parallel.

    Args:
        window: rows that are called in one round; None is the whole run. Memory is about four states a row and sample.
        tolerance: how far a row's state may move after its call and count as final, relative to its size (RMS). 0 is
            the sequential result.
        chunk: states in one call of the network.
        data_std: the data's deviation, from which c starts.
        report: called after each round with a `Round`.
    """

    window: int | None = 64
    tolerance: float = 1e-3
    chunk: int = 256
    data_std: float = 0.5
    report: Callable[[Round], object] | None = None

    def __post_init__(self) -> None:
        if self.window is not None:
            whole("window", self.window)
        whole("chunk", self.chunk)
        within(self, tolerance="[0, 1)", data_std="[0, inf)")

    def within(self, room: int, start: Tensor) -> Parallel:
        """The same with a window whose states take at most half of so many bytes."""
        most = room // (8 * start.numel() * start.element_size())
        return replace(self, window=max(1, most if self.window is None else min(self.window, most)))

    @staticmethod
    def of(value: Parallel | bool | int) -> Parallel:
        """True is the default, a number a window."""
        if isinstance(value, Parallel):
            return value
        return Parallel() if value is True else Parallel(window=value)


@watching()
def picard(
    table: Tableau,
    denoiser: Denoises,
    start: Tensor,
    source: NoiseSource,
    how: Parallel,
    *,
    given: Mapping[str, Tensor] | None = None,
    tell: Callable[[float], object] = lambda _: None,
) -> Outcome:
    """Runs a table in parallel; `Outcome.rounds` counts the rounds, `calls` the network calls of each sample.

    `tell` hears the share of the rows that are final for the slowest sample.
    """
    if table.output != "x0":
        raise ValueError(f"got a table in terms of {table.output!r} to run in parallel: give the one in x0")
    rows = Rows(table, denoiser, start, how)
    noise = noises_of(table, source, tuple(start.shape), start.dtype, start.device)
    sweep, rounds = Sweep(rows, start, noise, given), 0
    while True:
        sweep.run()
        rows.advance()
        sweep.keep_up()
        if rows.done:
            break
        rows.call()
        rounds += 1
        tell(int(rows.front.min()) / len(rows.index))
        if how.report is not None:
            how.report(Round(rounds, int(rows.calls.sum()), int(rows.front.min()), len(rows.index)))
    return Outcome.over(table.grid, sweep.run(), rows.calls, rounds, lambda _: table)


@dataclass
class Known:
    """What is known of a row: its state in the last sweep, and the last call: where, what came, how it changes."""

    state: Tensor
    called: Tensor | None = None
    heads: dict[str, Tensor] = field(default_factory=dict)
    share: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    ever: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))


class Rows:
    """The rows that are called: their fronts, their models of the network."""

    def __init__(self, table: Tableau, denoiser: Denoises, start: Tensor, how: Parallel) -> None:
        self.table, self.denoiser, self.process, self.how = table, as_denoiser(denoiser), table.process, how
        self.index = [k for k, row in enumerate(table.rows) if row.at is not None]
        self.at = torch.tensor([table.rows[k].at for k in self.index], dtype=torch.float64)
        led = self.denoiser.destination
        self.to = torch.tensor(table.destinations if led else self.at.tolist(), dtype=torch.float64)  # or not read
        self.raw = sorted({s[2] for s in table.last_use() if s[0] == "y" and (s[1], s[2]) not in table.heads} - {"x0"})
        self.window = min(how.window or len(self.index), len(self.index))
        self.batch = len(start)
        self.front, self.calls = torch.zeros(self.batch, dtype=torch.int64), torch.zeros(self.batch, dtype=torch.int64)
        self.known: dict[int, Known] = {}
        self._latest: dict[str, Tensor] = {}
        self._device = start.device
        self._estimates = [self._estimate(float(t)) for t in self.at]

    @property
    def done(self) -> bool:
        """Whether every call of every sample is final."""
        return int(self.front.min()) >= len(self.index)

    @property
    def reach(self) -> int:
        """How many calls a sweep goes through: the first alone, then two windows beyond the foremost front."""
        if not bool(self.calls.any()):
            return 1
        return min(int(self.front.max()) + 2 * self.window, len(self.index))

    def model(self, j: int, z: Tensor) -> dict[str, Tensor]:
        """What call j is taken to return at z, in data space; notes z."""
        known = self.known.get(j)
        if known is None:
            known = self.known[j] = Known(z)
        known.state = z
        if known.called is None:  # never called: what the row before returned; of the first call nothing is read yet
            if not self._latest:
                blank = z.new_zeros(len(z), *self.process.data_shape(tuple(z.shape[1:])))
                return dict.fromkeys(("x0", *self.raw), blank)
            return self._latest
        heads = dict(known.heads)
        moved = self._estimates[j](z - known.called)
        heads["x0"] = heads["x0"] + self.process.from_coordinates(wide(known.share, moved) * moved)
        if not bool(known.ever.all()):
            last = self._latest or heads
            heads = {h: torch.where(wide(known.ever, v) > 0, v, last[h]) for h, v in heads.items()}
        self._latest = heads
        return heads

    def advance(self) -> None:
        """Moves every sample's front over the rows whose state has come to rest."""
        while bool((ahead := self.front < len(self.index)).any()):
            moved = torch.zeros(self.batch, dtype=torch.bool)
            for j in self.front[ahead].unique().tolist():
                moved |= ahead & (self.front == j) & self._rests(j)
            if not bool(moved.any()):
                return
            self.front += moved

    def call(self) -> None:
        """Calls the network at the window of every sample, at the states of the last sweep."""
        pairs: list[tuple[int, Tensor]] = []
        for j in range(int(self.front.min()), self.reach):
            mask = (self.front <= j) & (j < self.front + self.window)
            if j in self.known and bool(mask.any()):
                pairs.append((j, mask.nonzero().flatten()))
        for chunk in _chunks(pairs, self.how.chunk):
            z = torch.cat([self.known[j].state[i.to(self._device)] for j, i in chunk])
            t, to = (torch.cat([x[j].expand(len(i)) for j, i in chunk]) for x in (self.at, self.to))
            samples = torch.cat([i for _, i in chunk])
            self.calls.index_add_(0, samples, torch.ones_like(samples))
            heads = self._outputs(z, t, samples, to)
            split = {h: v.split([len(i) for _, i in chunk]) for h, v in heads.items()}
            for n, (j, i) in enumerate(chunk):
                self._note(j, i, {h: v[n] for h, v in split.items()})

    def _rests(self, j: int) -> Tensor:
        """Whether the state of call j is, to the tolerance, the one it was called at."""
        known = self.known.get(j)
        if known is None or known.called is None:
            return torch.zeros(self.batch, dtype=torch.bool)
        moved = (known.state - known.called).flatten(1).square().mean(1)
        size = known.state.flatten(1).square().mean(1)
        return ~(moved > self.how.tolerance**2 * size).cpu() & known.ever  # what is not finite does not move either

    def _outputs(self, z: Tensor, t: Tensor, samples: Tensor, to: Tensor) -> dict[str, Tensor]:
        denoiser = of_samples(self.denoiser, samples, self.batch)
        heads = outputs(denoiser, self.process, z, t, to)
        for h in set(self.raw) - set(heads):
            if (offered := denoiser.head(h, t, to)) is None:
                raise ValueError(f"the table reads output {h!r}, which the denoiser does not return")
            heads[h] = offered(z)
        return {h: heads[h] for h in ("x0", *self.raw)}

    def _note(self, j: int, i: Tensor, heads: dict[str, Tensor]) -> None:
        """Keeps what a call returned for some samples, and the share of its change that the network followed."""
        known, rows = self.known[j], i.to(self._device)
        z = known.state[rows]
        if known.called is None:
            known.called = known.state.clone()
            known.heads = {h: v.new_zeros(self.batch, *v.shape[1:]) for h, v in heads.items()}
            known.share = torch.full((self.batch,), self._share(j), dtype=torch.float64)
            known.ever = torch.zeros(self.batch, dtype=torch.bool)
        step = self._estimates[j](z - known.called[rows]).flatten(1).double()
        change = self.process.coordinates(heads["x0"] - known.heads["x0"][rows]).flatten(1).double()
        size = step.square().sum(1)
        secant = ((step * change).sum(1) / size).cpu().clamp(0, 1)
        use = known.ever[i] & (size > 0).cpu() & secant.isfinite()
        known.share[i] = torch.where(use, secant, known.share[i])
        known.ever[i] = True
        known.called[rows] = z
        for h, v in heads.items():
            known.heads[h][rows] = v

    def _estimate(self, t: float) -> Callable[[Tensor], Tensor]:
        """E at a time: the estimate of x0, in its coordinates, that uses no prior; 0 where there is no signal."""
        blind = self.process.log_snr(t) in (-math.inf, math.inf)
        gain = 0.0 * transpose(self.process.M(t)) if blind else statistic(self.process, t)
        return lambda z: apply(gain, z)

    def _share(self, j: int) -> float:
        """C for Gaussian data of the given deviation."""
        n = self.how.data_std**2 * math.exp(2 * min(float(self.process.log_snr(float(self.at[j]))), 300.0))
        return n / (1 + n)


class Sweep:
    """Walks the rows with the network replaced by its models, from the slowest front on."""

    def __init__(self, rows: Rows, start: Tensor, noise: Iterator[Tensor], given: Mapping[str, Tensor] | None) -> None:
        plan = Plan.of(rows.table, lambda z, _: z, like=start, reuse=False)  # of calls that are replaced below
        called = {k: j for j, k in enumerate(rows.index)}
        model = lambda j: lambda z: rows.model(j, z)  # noqa: E731
        steps = [s._replace(call=model(called[s.row])) if s.row in called else s for s in plan.instructions]
        self.plan, self.rows, self.start, self.given = replace(plan, instructions=tuple(steps)), rows, start, given
        self._noise, self._drawn, self._kept = noise, 0, []
        self._first, self._live, self._latest = 0, {}, rows._latest

    def run(self) -> Tensor:
        """From the slowest front as far as rows are wanted; returns the last state."""
        rows = self.rows
        stop = len(self.plan.instructions) if rows.reach == len(rows.index) else rows.index[rows.reach - 1] + 1
        rows._latest = self._latest
        return self._walk(stop, dict(self._live))

    def keep_up(self) -> None:
        """Walks the rows that are final for every sample for the last time, and lets go of them."""
        rows, front = self.rows, int(self.rows.front.min())
        stop = rows.index[front] if front < len(rows.index) else self._first
        if stop <= self._first:
            return
        rows._latest = self._latest
        self._walk(stop, self._live)
        drawn = max(s.draw for s in self.plan.instructions[:stop])
        del self._kept[: drawn - self._drawn]
        self._drawn, self._first, self._latest = drawn, stop, rows._latest
        rows.known = {j: known for j, known in rows.known.items() if j >= front}  # the others are walked no more

    def _walk(self, stop: int, live: dict[Symbol, Tensor]) -> Tensor:
        steps = self.plan.instructions[self._first : stop]
        wanted = max((s.draw for s in steps), default=self._drawn) - self._drawn
        while len(self._kept) < wanted:
            self._kept.append(next(self._noise))
        plan = replace(self.plan, instructions=steps)
        return walk(plan, self.start, self._kept, given=self.given, live=live, drawn=self._drawn)


def _chunks(pairs: list[tuple[int, Tensor]], size: int) -> Iterator[list[tuple[int, Tensor]]]:
    """Pairs of a row and samples, cut into lists of at most `size` samples."""
    chunk, room = [], size
    for j, samples in pairs:
        while len(samples):
            take, samples = samples[:room], samples[room:]
            chunk.append((j, take))
            room -= len(take)
            if not room:
                yield chunk
                chunk, room = [], size
    if chunk:
        yield chunk
