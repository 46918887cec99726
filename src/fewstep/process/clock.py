r"""Clocks: monotone functions u(t) in which a solver interpolates, steps or places its grid.

- `t`: the process's own time;
- `log-snr`: lambda, the natural clock;
- `rho`: e^-lambda, which is sigma/alpha for a scalar process (EDM's sigma, DEIS's rho).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.process.base import Process, Time, across, derivative, like, once, to_tensor
from fewstep.words import one_of

__all__ = ["CLOCKS", "Clock", "clock", "falling", "place", "places"]

BEYOND = 4.0  # in log-SNR: how far above t_max a time may lie


@dataclass(frozen=True, eq=False)
class Clock:
    """`of(process, t)` reads the clock, `time(process, u)` reads it backwards, `of_log_snr(process, lam)` converts."""

    of: Callable[[Process, Tensor], Tensor]
    time: Callable[[Process, Tensor], Tensor]
    of_log_snr: Callable[[Process, Tensor], Tensor]

    def at(self, process: Process, t: Time) -> Time:
        """What the clock reads at a time: a float for a float."""
        return once(process, (self, "at"), lambda t: like(torch.as_tensor(self.of(process, to_tensor(t))), t), t)

    def rate(self, process: Process, t: Time) -> Time:
        """du/dt, exact to rounding."""
        rate = lambda t: like(derivative(lambda x: self.of(process, x), to_tensor(t)), t)  # noqa: E731
        return once(process, (self, "rate"), rate, t)

    def between(self, process: Process, t: Time, s: Time, share: float) -> Time:
        """The time a share of the way from t to s."""

        def place(t: Time, s: Time) -> Time:
            start, end = self.at(process, t), self.at(process, s)
            return like(torch.as_tensor(self.time(process, to_tensor(start + share * (end - start)))), t)

        return across(process, (self, "between", share), place, t, s)


CLOCKS = {
    "t": Clock(lambda p, t: t, lambda p, u: u, lambda p, lam: p.inverse_log_snr(lam)),
    "log-snr": Clock(lambda p, t: p.log_snr(t), lambda p, u: p.inverse_log_snr(u), lambda p, lam: lam),
    "rho": Clock(
        lambda p, t: torch.exp(-torch.as_tensor(p.log_snr(t))),
        lambda p, u: p.inverse_log_snr(-u.log()),
        lambda p, lam: torch.exp(-lam),
    ),
}


def clock(name: str) -> Clock:
    """The clock of that name, or a ValueError."""
    one_of("clock", name, CLOCKS)
    return CLOCKS[name]


def place(process: Process, t: float) -> float:
    """Where a time lies on the Brownian path: a sigmoid of the process's clock for it, the log-SNR."""
    return _sigmoid(float(process.path_clock(t)))


def places(process: Process, times: Iterable[float]) -> dict[float, float]:
    """The same for many times at once, which takes the time of one."""
    known = sorted(set(times))
    lam = process.path_clock(torch.tensor(known, dtype=torch.float64))
    return dict(zip(known, map(_sigmoid, torch.as_tensor(lam).tolist()), strict=True))


def _sigmoid(lam: float) -> float:
    return 1 / (1 + math.exp(min(-lam / 2, 700.0)))


def falling(given: Tensor, process: Process) -> Tensor:
    """The times of a grid, as they are given, or a ValueError where they are none of the process or do not fall."""
    times = given.detach().cpu()
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"got a grid of shape {tuple(times.shape)}: give a 1-D tensor of at least two times")
    times = times.to(torch.float64)
    values = times.tolist()
    for where, t in enumerate(values):
        if not math.isfinite(t):
            raise ValueError(f"got a grid whose entry {where} is {t}: every time must be finite")
    for where, (t, s) in enumerate(pairwise(values)):
        if not s < t:
            raise ValueError(
                f"got a grid that {'repeats' if t == s else 'rises'} at entry {where + 1} ({t:g}, then {s:g}): times "
                "must fall from noise to data"
            )
    process.check_times(times)
    if float(process.log_snr(values[0])) < float(process.log_snr(process.t_max)) - BEYOND:
        raise ValueError(
            f"got time {values[0]:g} for {process}, whose times end at {process.t_max:g}, beyond all noise that "
            "a network has seen: give times of the process, as (index + 1) / N, not a network's indices"
        )
    return times
