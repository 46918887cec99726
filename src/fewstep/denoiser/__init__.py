"""Denoisers: anything that takes (z, t) to x0_hat. Networks, closed-form oracles, counters."""

from __future__ import annotations

from fewstep.denoiser.base import Counted, Denoiser, as_denoiser
from fewstep.denoiser.bridged import Bridged, bridged
from fewstep.denoiser.compiled import compiled
from fewstep.denoiser.guided import Differentiated, Guided, guide
from fewstep.denoiser.heads import VarianceHead, variance_head
from fewstep.denoiser.network import TIMES, NetworkError, Wrapped, wrap
from fewstep.denoiser.oracle import Dataset, Gaussian, Mixture
from fewstep.denoiser.retimed import Retimed, retime
from fewstep.process.predict import PREDICTIONS, conversion, statistic, view

__all__ = [
    "PREDICTIONS", "TIMES", "Bridged", "Counted", "Dataset", "Denoiser", "Differentiated", "Gaussian", "Guided",
    "Mixture", "NetworkError", "Retimed", "VarianceHead", "Wrapped", "as_denoiser", "bridged", "compiled", "conversion",
    "guide", "retime", "statistic", "variance_head", "view", "wrap"
]  # fmt: skip
