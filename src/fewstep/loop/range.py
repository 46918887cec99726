"""Whether samples leave the range that their data is known to have: one reduction at the end of a run.

Samples of the default are set into it on scalar processes. The range is convex and holds all data, so that none moves
away from any data.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from fewstep.denoiser.base import fingerprint, range_of
from fewstep.process import Process
from fewstep.process.base import ScalarProcess
from fewstep.solver import Default
from fewstep.words import warn

__all__ = ["Beyond", "beyond", "in_range", "limit_of"]

FACTOR = 1.5  # times the range, from which on it is said
FAR, MANY = 2.0, 1e-3  # a warning is due from so many times the range on, or for such a share of entries
CLEAN = 3.0  # the log-SNR from which on a state is as good as data
RARE = 5.0  # deviations of the noise that is left, beyond which one entry in two million lies

_SAID: set[str | None] = set()  # the networks that were warned of


class Beyond(NamedTuple):
    """How many samples, with how many entries, are larger than `limit`, and the largest size."""

    limit: float
    samples: int
    entries: int
    largest: float


def beyond(data: Tensor, within: float) -> Beyond | None:
    """What of samples (batch, *shape) is larger than `FACTOR` times a range; None where nothing is."""
    limit = FACTOR * within
    if limit == math.inf or not data.numel():
        return None
    low, high = data.aminmax()
    largest = max(-float(low), float(high))
    if not largest > limit:
        return None
    out = (data.abs() > limit).flatten(1)
    return Beyond(limit, int(out.any(1).sum()), int(out.sum()), largest)


def in_range(denoiser: Any, process: Process, z: Tensor, t: float, *, solver: Any, final: str = "state") -> Tensor:
    """The end z of a run at time t, warned of, once a network, where many or far entries leave the range it tells.

    What the default solver made comes back within alpha range + 5 sigma where process has these, and as data within the
    range; any other as it is.
    """
    within, bounded = range_of(denoiser), isinstance(solver, Default)
    if within == math.inf or (final == "state" and float(process.log_snr(t)) < CLEAN):
        return z
    data = process.to_data(z) if final == "state" else z
    found, network = beyond(data.detach(), within), fingerprint(denoiser)
    if found and network not in _SAID and (found.largest > FAR * within or found.entries > MANY * data.numel()):
        _SAID.add(network)
        warn(
            f"got {found.samples} of {len(data)} samples that leave the data's range of {within:g}, by {found.entries} "
            f"of {data.numel()} entries beyond {found.limit:g} and up to {found.largest:.3g}"
            f"{' (they are set into it)' if bounded else ''}: bound predictions with fs.Thresholded, give more calls, "
            "or measure the network with `fewstep stats`"
        )
    if not bounded:
        return z
    limit = within if final == "denoise" else limit_of(process, t, within, solver)
    return z if limit == math.inf else z.clamp(-limit, limit)


def limit_of(process: Process, t: float, within: float, solver: Any) -> float:
    """The largest size that entries of a state have at the end t of a run of the default; inf for other solvers."""
    if not isinstance(solver, Default) or not isinstance(process, ScalarProcess) or float(process.log_snr(t)) < CLEAN:
        return math.inf
    return float(process.alpha(t)) * within + RARE * float(process.sigma(t))
