r"""Clocks: monotone functions u(t) in which a solver interpolates, steps or places its grid.

- `t`: the process's own time;
- `log-snr`: lambda, the natural clock;
- `rho`: e^-lambda, which is sigma/alpha for a scalar process (EDM's sigma, DEIS's rho).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.process.base import Process, Time, across, derivative, like, once, to_tensor

__all__ = ["CLOCKS", "Clock", "clock", "place", "places"]


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
    "log-snr": Clock(
        lambda p, t: p.log_snr(t),
        lambda p, u: p.inverse_log_snr(u),
        lambda p, lam: lam,
    ),
    "rho": Clock(
        lambda p, t: torch.exp(-torch.as_tensor(p.log_snr(t))),
        lambda p, u: p.inverse_log_snr(-u.log()),
        lambda p, lam: torch.exp(-lam),
    ),
}


def clock(name: str) -> Clock:
    """The clock of that name, or a ValueError."""
    if name not in CLOCKS:
        raise ValueError(f"got clock {name!r}: choose one of {', '.join(CLOCKS)}")
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
