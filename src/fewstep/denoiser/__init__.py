"""Denoisers: anything that takes (z, t) to x0_hat. Networks, closed-form oracles, counters."""

from __future__ import annotations

from fewstep.denoiser.network import TIMES, Counted, NetworkError, Wrapped, wrap
from fewstep.denoiser.oracle import Dataset, Gaussian, Mixture
from fewstep.denoiser.predict import PREDICTIONS, conversion

__all__ = [
    "PREDICTIONS",
    "TIMES",
    "Counted",
    "Dataset",
    "Gaussian",
    "Mixture",
    "NetworkError",
    "Wrapped",
    "conversion",
    "wrap",
]
