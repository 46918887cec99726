"""The quadrature of th_deis, in these tests only: sums over equal pieces of a step in t or rho.

With it our multistep solver reproduces that reference's numbers; without it, it is nearer to the truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fewstep.process import Process
from fewstep.process.clock import clock
from fewstep.process.operator import Coefficient, inverse
from fewstep.solver import Multistep
from fewstep.tableau import Form

__all__ = ["Sums"]


@dataclass(frozen=True, kw_only=True)
class Sums(Multistep):
    """Multistep in noise form with sums over `count` pieces: `at` = 0 takes the left end of each, 1/2 the middle."""

    form: str = "noise"
    count: int = 10000
    at: float = 0.0

    def _step(self, process: Process, t: float, s: float, z: Form, nodes: list[tuple[float, Form]]) -> Form:
        u, density = _density(process, self.clock, t, s, self.count, self.at)
        places = [float(clock(self.clock).of(process, torch.tensor(x, dtype=torch.float64))) for x, _ in nodes]
        form = (process.Psi(s) * inverse(process.Psi(t))) * z  # type: ignore[operator]
        for j, (place, (_, y)) in enumerate(zip(places, nodes, strict=True)):
            lagrange = torch.ones_like(u)
            for i, other in enumerate(places):
                lagrange = lagrange * (u - other) / (place - other) if i != j else lagrange
            form = form + float(lagrange @ density) * y
        return form


@lru_cache(maxsize=4096)
def _density(process: Process, name: str, t: float, s: float, count: int, at: float) -> tuple[Tensor, Tensor]:
    """The clock at the nodes, and Psi_s d(Psi^-1 R) over each piece."""
    u = clock(name)
    low, high = (float(u.of(process, torch.tensor(x, dtype=torch.float64))) for x in (t, s))
    places = low + (high - low) * (torch.arange(count, dtype=torch.float64) + at) / count
    if name == "rho":  # d(Psi^-1 R) = d rho
        return places, torch.full_like(places, process.Psi(s) * (high - low) / count)  # type: ignore[operator]
    rate: Coefficient = process.R_rate(places) - process.F(places) * process.R(places)  # type: ignore[operator]
    return places, process.Psi(s) * inverse(process.Psi(places)) * rate * ((s - t) / count)  # type: ignore[operator]
