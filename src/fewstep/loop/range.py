"""Whether samples leave the range that their data is known to have: one reduction at the end of a run."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

from torch import Tensor

from fewstep.denoiser.network import fingerprint, told
from fewstep.process import Process

__all__ = ["Beyond", "beyond", "warn_of_range"]

FACTOR = 1.5  # times the range, from which on it is said
FAR, MANY = 2.0, 1e-3  # a warning is due from so many times the range on, or for such a share of entries
CLEAN = 3.0  # the log-SNR from which on a state is as good as data

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


def warn_of_range(denoiser: Any, process: Process, z: Tensor, t: float, *, final: str = "state") -> None:
    """Warns of samples that end far or in many places outside their data's range, where it is told; once a network."""
    within, network = told(denoiser, "within", float) or math.inf, fingerprint(denoiser)
    if within == math.inf or network in _SAID or (final == "state" and float(process.log_snr(t)) < CLEAN):
        return
    data = (process.to_data(z) if final == "state" else z).detach()
    found = beyond(data, within)
    if found is None or (found.largest <= FAR * within and found.entries <= MANY * data.numel()):
        return
    _SAID.add(network)
    warnings.warn(
        f"got {found.samples} of {len(data)} samples that leave the data's range of {within:g}, by {found.entries} of "
        f"{data.numel()} entries beyond {found.limit:g} and up to {found.largest:.3g}: bound predictions with "
        "fs.Thresholded, give more calls, or measure the network with `fewstep stats`",
        stacklevel=4,
    )
