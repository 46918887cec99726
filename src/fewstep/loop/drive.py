"""How a driver runs: rows made at once, at a time of each sample's own, on whichever samples are still under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.base import as_denoiser, of_samples
from fewstep.denoiser.network import NetworkError, as_state
from fewstep.denoiser.watch import watching
from fewstep.noise import BrownianPath, Noise, NoiseSource, PathSource
from fewstep.noise.source import Request
from fewstep.process import Process
from fewstep.process.base import Time
from fewstep.process.bridge import boots
from fewstep.process.clock import place, places
from fewstep.process.operator import apply
from fewstep.solver.driver.base import Driver, Live, Outcome
from fewstep.tableau import Form, Symbol, Tableau
from fewstep.tableau.row import NoiseInterval, noise_head

MANY = 64  # calls, as many as a driver may take

__all__ = ["along", "drive", "noises_of", "outputs", "predict"]


@watching()
def drive(
    driver: Driver,
    denoiser: Any,
    process: Process,
    start: Tensor,
    grid: Tensor,
    source: NoiseSource,
    tell: Callable[[float], object] = lambda _: None,
) -> Outcome:
    """Runs a driver from a start state over a grid (or between its ends).

    `tell` hears which share of the Brownian path the slowest sample has gone, which runs as the log-SNR does.
    """
    boot = boots(process, float(grid[0]))
    if boot:
        start, grid = _booted(denoiser, process, start, grid, source)
    driver.check(process, grid)
    first, last = (place(process, float(t)) for t in (grid[0], grid[-1]))

    def gone(t: Time) -> None:
        tell((place(process, float(torch.as_tensor(t).max())) - first) / (last - first))

    outcome = driver.drive(Driving(denoiser, process, grid, start, source, gone))
    return replace(outcome, calls=outcome.calls + 1, rounds=outcome.rounds + 1) if boot else outcome


def _booted(denoiser: Any, process: Any, start: Tensor, grid: Tensor, source: NoiseSource) -> tuple[Tensor, Tensor]:
    """The state after the boot of a bridge, and the grid from there: the tables of an outcome begin with it."""
    t = float(process.inverse_log_snr(process.boot(MANY))) if len(grid) == 2 else float(grid[1])
    (noise,) = source.intervals([(0.0, 1.0, "boot", 0)], tuple(start.shape), start.dtype, start.device)
    u = process.M(t) * predict(denoiser, process, start, float(grid[0])) + process.R(t) * noise
    return u, torch.cat([grid.new_tensor([t]), grid[1 if len(grid) == 2 else 2 :]])


def noises_of(
    table: Tableau, source: NoiseSource, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Iterator[Tensor]:
    """The standard normals of a table's intervals, in order."""
    if not table.noises and isinstance(source, PathSource):
        return iter(())
    noises = table.noises
    if isinstance(source, Asked):  # of a run that has looked at the path at these very places
        at = {t: place(table.process, t) for n in noises for t in (n.t, n.s)}
    else:
        at = _places_of(table)
    requests = [(at[n.t], at[n.s], n.stream, n.index) for n in noises]
    return along(table, source).intervals(requests, shape, dtype, device)


def along(table: Tableau, source: NoiseSource) -> NoiseSource:
    """The source, on the places of the table's grid where it takes its noise from the path."""
    if not isinstance(source, PathSource) or not any(n.stream == "path" for n in table.noises):
        return source
    at = _places_of(table)
    return source.along(sorted(at[t] for t in table.grid.tolist()))


def _places_of(table: Tableau) -> dict[float, float]:
    """Where the times of a table's grid and noises lie, worked out once."""
    times = {*table.grid.tolist(), *(t for n in table.noises for t in (n.t, n.s))}
    if not times <= table.notes.get("places", {}).keys():
        table.notes["places"] = places(table.process, times)
    return table.notes["places"]


def predict(denoiser: Any, process: Process, z: Tensor, t: Time, to: Time | None = None) -> Tensor:
    """The data prediction in the process's coordinates."""
    return process.coordinates(outputs(denoiser, process, z, t, to)["x0"])


def outputs(
    denoiser: Any, process: Process, z: Tensor, t: Time, to: Time | None = None, *, differentiable: bool = False
) -> dict[str, Tensor]:
    """What the denoiser returns: x0 in data space and the state's dtype, and further heads; or a ValueError."""
    where = f"t = {t:g}" if isinstance(t, float) else f"times from {float(t.min()):g} to {float(t.max()):g}"
    try:
        denoiser = as_denoiser(denoiser)
        with torch.enable_grad() if denoiser.needs_grad else nullcontext():
            out = denoiser.toward(t, "x0", to)(z)
        heads = dict(out) if isinstance(out, Mapping) else {"x0": out}
        heads = {name: as_state(v, z) if isinstance(v, Tensor) else v for name, v in heads.items()}
    except NetworkError as error:
        raise ValueError(f"at {where}: {error}") from error.__cause__
    out = heads.get("x0")
    wanted = (len(z), *process.data_shape(tuple(z.shape[1:])))
    if not isinstance(out, Tensor) or tuple(out.shape) != wanted:
        got = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise ValueError(f"at {where}: the denoiser returned {got}: it must return a tensor of shape {wanted}")
    return heads if differentiable else {name: value.detach() for name, value in heads.items()}


@dataclass
class Driving:
    """A run under way: counts calls, hands out writers and noise."""

    denoiser: Any
    process: Process
    grid: Tensor
    start: Tensor
    source: NoiseSource
    gone: Callable[[Time], object]

    def __post_init__(self) -> None:
        self.calls, self.rounds = torch.zeros(len(self.start), dtype=torch.int64), 0
        self._paths: dict[int, tuple[Asked, BrownianPath]] = {}

    def live(self, index: Tensor, z: Tensor, known: tuple[Tensor, Tensor] | None = None) -> LiveRows:
        """A writer for some samples; see `fewstep.solver.driver.base.Run`."""
        w = LiveRows(self, index, z, lambda n: self._draw(index, n))
        w.known = known
        return w

    def sizes(self, table: Tableau) -> LiveRows:
        """A writer for all samples over the whole grid, with the noise of a table's intervals in order."""
        z = self.start
        noises = noises_of(table, self.source, tuple(z.shape), z.dtype, z.device)
        w = LiveRows(self, torch.arange(len(z)), z, lambda _: next(noises))
        w.led = True
        return w

    def noise(self, sample: int) -> NoiseSource:
        """A sample's noise, asked in the same order as in this run."""
        return self._path(sample)[0]

    def predict(self, index: Tensor, z: Tensor, t: Time, to: Time | None) -> Tensor:
        """The data prediction of some samples, counted."""
        self.calls[index] += 1
        self.rounds += 1
        self.gone(t)
        whole = len(index) == len(self.start)
        denoiser = self.denoiser if whole else of_samples(self.denoiser, index, len(self.start))
        return predict(denoiser, self.process, z, t, to)

    def _draw(self, index: Tensor, interval: NoiseInterval) -> Tensor:
        t, s = interval.t, interval.s
        assert isinstance(t, Tensor)
        assert isinstance(s, Tensor)
        drawn = []
        for i, *ends in zip(index.tolist(), t.tolist(), s.tolist(), strict=True):
            (asked, path), (a, b) = self._path(i), (place(self.process, end) for end in ends)
            asked.asked.append((a, b))
            drawn.append(path.increment(a, b))
        return torch.cat(drawn).to(self.start.device)

    def _path(self, sample: int) -> tuple[Asked, BrownianPath]:
        """One sample's Brownian path, and its source for a replay."""
        if not isinstance(self.source, PathSource):
            raise ValueError(
                f"got a {type(self.source).__name__} as noise for a driver, whose samples draw at times of their own: "
                "give a seed or a Noise"
            )
        if sample not in self._paths:
            noise, z = self.source.noise, self.start
            own = Noise(noise.seed, noise.first + sample)
            self._paths[sample] = Asked(own), BrownianPath(own, (1, *z.shape[1:]), z.dtype, z.device)
        return self._paths[sample]


@dataclass(frozen=True)
class Asked(PathSource):
    """The noise of a driver's sample: the intervals it tried are asked for first, then a table's.

    Points of the path that are close together depend on the order of asking.
    """

    asked: list[tuple[float, float]] = field(default_factory=list)

    def along(self, grid: Sequence[float]) -> Asked:
        """Itself: its path was looked at in the run, wherever a grid lies."""
        return self

    def intervals(
        self, requests: Sequence[Request], shape: Sequence[int], dtype: torch.dtype, device: torch.device | str
    ) -> Iterator[Tensor]:
        """Increments of the sample's path as it was refined in the run."""
        path = BrownianPath(self.noise, shape, dtype, device)
        for p in (p for interval in self.asked for p in interval):
            path.split(p)
        return (path.increment(a, b) for a, b, _, _ in requests)


class LiveRows(Live):
    """The writer of a driver: `row` and `call` work at once, on the samples `index`.

    Steps that a driver tries lead nowhere yet: without `led` a denoiser with a destination is asked as the plain one.
    """

    known: tuple[Tensor, Tensor] | None = None
    led = False

    def __init__(self, run: Driving, index: Tensor, z: Tensor, draw: Callable[[NoiseInterval], Tensor]) -> None:
        super().__init__(run.process, run.grid)
        self._run, self._index, self._draw = run, index, draw
        self._values: dict[Symbol, Tensor] = {("z", 0): z}
        self._at: dict[int, Time] = {}
        self.latest = self.start

    def row(self, form: Form, t: Time) -> Form:
        self._values["z", len(self._rows)] = self.value(form)
        self.latest = super().row(form, t)
        return self.latest

    def call(self, z: Form, at: Time, *, to: Time | None = None) -> Form:
        ((_, k),) = z.terms
        if k not in self._at:
            self._at[k] = at
            to = (self._after(self._rows[k][0]) if to is None else to) if self.led else None
            self._values["y", k, "x0"] = self._predict(k, self._values["z", k], at, to)
        return Form.of(("y", k, "x0"))

    def eps(self, z: Form) -> Form:
        ((_, k),) = z.terms
        p, q = noise_head(self.process, self._at[k])
        self._values["y", k, "noise"] = self.value(p * z + q * Form.of(("y", k, "x0")))
        return Form.of(("y", k, "noise"))

    def value(self, form: Form) -> Tensor:
        (first, *rest) = ((self._values[symbol], c) for symbol, c in form)
        total = apply(first[1], first[0])
        for x, c in rest:
            total = total.add(x, alpha=c) if isinstance(c, float) else total + apply(c, x)
        return total

    def output(self, z: Form) -> Tensor | None:
        ((_, k),) = z.terms
        return self._values.get(("y", k, "x0"))

    def outputs(self, form: str) -> list[Form]:
        return [Form.of(("y", k, "x0" if form == "data" else "noise")) for k in sorted(self._at)]

    def forget(self) -> None:
        """Lets go of all rows but the latest, which later rows may read."""
        ((_, k),) = self.latest.terms
        self._values = {("z", k): self._values["z", k]}

    def _predict(self, k: int, z: Tensor, at: Time, to: Time | None) -> Tensor:
        """The network on the samples whose output at the start row is not known already."""
        if k or self.known is None:
            return self._run.predict(self._index, z, at, to)
        d, have = self.known
        ask = (~have).nonzero().flatten()
        if len(ask):
            t = at[ask] if isinstance(at, Tensor) else at
            rows = ask.to(z.device)
            d = d.index_copy(0, rows, self._run.predict(self._index[ask], z[rows], t, to))
        return d

    def _xi(self, interval: NoiseInterval) -> Form:
        form = super()._xi(interval)
        self._values["xi", len(self._noises) - 1] = self._draw(interval)
        return form
