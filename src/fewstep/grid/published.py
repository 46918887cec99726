r"""Grids that were optimised for a model and printed as numbers.

A table lists sigma/alpha at the ends of its steps. For another number of steps it is interpolated linearly in
log(sigma/alpha) over the index, as its authors do; for another process it is stretched linearly in log(sigma/alpha) to
the process's own range, which on the process it was made for changes nothing but rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.grid.spacing import exact_ends, finite_range
from fewstep.process.base import Process
from fewstep.words import pick

__all__ = ["AYS", "ays"]

AYS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "deepfloyd-if": (160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030, 0.006),
    "svd": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def ays(process: Process, steps: int, *, table: str = "sd15") -> Tensor:
    """Align your steps: optimised for "sd15" (default), "sdxl", "svd" or "deepfloyd-if", interpolated for other counts.

    References: Sabour, Fidler, Kreis, Align your steps: optimizing sampling schedules in diffusion models, 2024, table
    3 (appendix B.3), https://arxiv.org/abs/2404.14507.
    """
    lam = -torch.tensor(pick(AYS, table, "table"), dtype=torch.float64).log()
    place = torch.linspace(0, len(lam) - 1, steps + 1, dtype=torch.float64)
    left = place.floor().clamp(max=len(lam) - 2).long()
    lam = lam[left] + (place - left) * (lam[left + 1] - lam[left])
    low, high = finite_range(process)
    lam = low + (high - low) * (lam - lam[0]) / (lam[-1] - lam[0])
    return exact_ends(process, process.inverse_log_snr(lam))
