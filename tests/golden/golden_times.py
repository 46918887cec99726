"""Times of the golden entries: from sigmas and alphas to the process's own, without losing digits."""

from __future__ import annotations

import math
from typing import Any

import torch
from golden_case import Unknown
from torch import Tensor

from fewstep.process import VP, Process

__all__ = ["ddpm_table", "from_alphas", "known", "times", "vp_time"]


def times(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def known(value: Any, choices: dict[Any, Any], what: str) -> Any:
    if value not in choices:
        raise Unknown(f"{what} {value!r}")
    return choices[value]


def from_alphas(p: VP, squares: list[float]) -> Tensor:
    """Times of alpha^2, through the log of what is lost: sigma^2 = 1 - alpha^2 loses no more than the entry has."""
    return torch.tensor([vp_time(p, math.sqrt((1 - a) / a)) for a in squares], dtype=torch.float64)


def vp_time(p: Process, sigma: float) -> float:
    """The time of sigma/alpha."""
    return 0.0 if sigma == 0 else float(p.inverse_log_snr(-math.log(sigma)))


def ddpm_table() -> Tensor:
    """alphas_cumprod of beta from 1e-4 to 0.02 in 1000 steps."""
    return (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
