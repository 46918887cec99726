"""The quadrature of th_deis and gDDIM, in these tests only: sums over equal pieces of a step in t or rho.

With `left` or `middle` our multistep solver reproduces those references' numbers. With `limit` it is what their sums
tend to as the pieces shrink, by a quadrature that shares nothing with ours, so that ours must agree with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fewstep.process import Process
from fewstep.process.clock import clock
from fewstep.process.operator import Block, Coefficient, cholesky, inverse, transpose
from fewstep.solver import FinalEuler, Multistep
from fewstep.tableau import Form, Writer

__all__ = ["Sums"]

_X, _W = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(16))
_ONE = torch.ones(1, dtype=torch.float64)
RULES = {  # places in a piece and their shares
    "left": (0 * _ONE, _ONE),
    "middle": (0.5 * _ONE, _ONE),
    "limit": ((_X + 1) / 2, _W / 2),
}
_DEGREE = 48


@dataclass(frozen=True, kw_only=True)
class Sums(Multistep):
    """Multistep in noise form with sums over `count` pieces of every step; `limit` also cuts at whole numbers.

    `side` says which slope a node on a whole t takes (the kinks of a table): +1 that of larger t, -1 that of smaller,
    0 what rounding makes of it. `off` moves the weights of a step to s by this share times (t_min / s)^2 + 1/1000.
    `ended`: the last step is Euler's on the reverse SDE's drift.
    """

    form: str = "noise"
    rule: str = "left"
    count: int = 10000
    side: int = 0
    off: float = 0.0
    ended: bool = False

    def write(self, w: Writer) -> None:
        if self.ended:
            FinalEuler(solver=replace(self, ended=False)).write(w)
        else:
            super().write(w)

    def _step(self, process: Process, t: float, s: float, z: Form, nodes: list[tuple[float, Form]]) -> Form:
        u, density = _density(process, self.clock, t, s, self.rule, self.count, self.side, self.root)
        places = [float(clock(self.clock).of(process, torch.tensor(x, dtype=torch.float64))) for x, _ in nodes]
        form = (process.Psi(s) * inverse(process.Psi(t))) * z
        scale = 1 + self.off * ((process.t_min / s) ** 2 + 1e-3) if self.off else 1.0
        for j, (place, (_, y)) in enumerate(zip(places, nodes, strict=True)):
            lagrange = torch.ones_like(u)
            for i, other in enumerate(places):
                lagrange = lagrange * (u - other) / (place - other) if i != j else lagrange
            total = scale * torch.tensordot(lagrange, density, 1)
            form = form + (float(total) if total.ndim == 0 else Block(total)) * y
        return form


@lru_cache(maxsize=512)
def _density(
    process: Process, name: str, t: float, s: float, rule: str, count: int, side: int, root: str
) -> tuple[Tensor, Tensor]:
    """The clock at the nodes, and Psi_s d(Psi^-1 R) times the share of each."""
    u = clock(name)
    low, high = (float(u.of(process, torch.tensor(x, dtype=torch.float64))) for x in (t, s))
    x, w = RULES[rule]
    if rule == "limit":
        whole = torch.arange(math.ceil(min(low, high)), math.ceil(max(low, high)), dtype=torch.float64)
        edges = torch.cat([torch.linspace(min(low, high), max(low, high), count + 1, dtype=torch.float64), whole])
        edges = edges.sort().values if high > low else edges.sort(descending=True).values
        places = (edges[:-1, None] + edges.diff()[:, None] * x).flatten()
        share = (edges.diff()[:, None] * w).flatten()
    else:
        places = low + (high - low) * ((torch.arange(count, dtype=torch.float64)[:, None] + x) / count).flatten()
        share = (high - low) / count * w.repeat(count)
    if name == "rho":  # d(Psi^-1 R) = d rho
        return places, process.Psi(s) * share  # type: ignore[operator]
    if process.kind == "block":
        return places, share[:, None, None] * _interpolated(process, t, s, places, root)
    on_kink = (places - places.round()).abs() < 1e-9 * places.abs()
    return places, share * _rate(process, s, torch.where(on_kink, places + side * 1e-8, places))  # type: ignore[operator]


def _rate(process: Process, s: float, at: Tensor, root: str = "R") -> Coefficient:
    """Psi_s d(Psi^-1 R)/dt: from R's derivative where there is one, else 1/2 Psi_s Psi^-1 G G^T R^-T (or L^-T)."""
    if process.kind == "block":
        r = process.R(at) if root == "R" else cholesky(process.Sigma(at))
        rate: Coefficient = 0.5 * (process.GG(at) * transpose(inverse(r)))
    else:
        rate = process.R_rate(at) - process.F(at) * process.R(at)  # type: ignore[attr-defined,operator]
    return process.Psi(s) * inverse(process.Psi(at)) * rate


def _interpolated(process: Process, t: float, s: float, places: Tensor, root: str) -> Tensor:
    """The rate of 2x2 matrices by a polynomial in log t: thousands of roots a step would take minutes."""
    angle = math.pi * (torch.arange(_DEGREE, dtype=torch.float64) + 0.5) / _DEGREE
    middle, half = (math.log(t) + math.log(s)) / 2, (math.log(t) - math.log(s)) / 2
    known = _rate(process, s, (middle + half * angle.cos()).exp(), root).values  # type: ignore[union-attr]
    k = torch.arange(_DEGREE, dtype=torch.float64)
    series = torch.tensordot((k[:, None] * angle).cos() * (2 / _DEGREE), known, 1)
    series[0] /= 2
    where = ((places.log() - middle) / half).clamp(-1, 1).arccos()
    return torch.tensordot((k * where[:, None]).cos(), series, 1)
