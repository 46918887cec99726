"""The exact answers of `fewstep.check.exact` by registry name, and an independent integration to test them against."""

from __future__ import annotations

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from fewstep.check.exact import (
    Problem as _Problem,
    grid as grid,
    law_errors,
    mixture as denoiser,
    problem as _problem,
    quantile_map as quantile_map,
    small as process,
    starts as starts,
)
from fewstep.denoiser import Gaussian, Mixture
from fewstep.process import Process
from fewstep.process.base import derivative
from fewstep.process.operator import Coefficient, apply, inverse
from fewstep.solver import ALIASES, TABLES
from fewstep.tableau import Tableau

__all__ = [
    "DISTINCT",
    "Problem",
    "denoiser",
    "gaussian_map",
    "grid",
    "integrate",
    "law_error",
    "numbers",
    "process",
    "quantile_map",
    "starts",
]


def law_error(table: Tableau) -> float:
    """How far the law of the last row is from the exact one on Gaussian data."""
    return next(reversed(law_errors(table).values()))


# A name for each solver of the registry: what has several names is tried under the first.
DISTINCT = [name for name in TABLES if name not in ALIASES]


def Problem(name: str) -> _Problem:
    """The problem of a process by name, solved once."""
    return _problem(process(name))


def integrate(oracle: Mixture, z: Tensor, t: float, s: float, rtol: float = 1e-12) -> Tensor:
    """dz/dt = M' D + R' R^-1 (z - M D) by DOP853, in log-SNR."""
    p, shape = oracle.process, z.shape

    def slope(lam: float, y: np.ndarray) -> np.ndarray:
        u = torch.tensor(float(p.inverse_log_snr(lam)), dtype=torch.float64)
        x = torch.from_numpy(y).reshape(shape)
        d = p.coordinates(oracle(x, float(u)))
        r = p.R_rate(u[None]) * inverse(p.R(u[None]))
        rate = apply(p.M_rate(u[None]), d) + apply(r, x - apply(p.M(u[None]), d))
        return (rate / log_snr_rate(p, float(u))).flatten().numpy()

    found = solve_ivp(slope, [p.log_snr(t), p.log_snr(s)], z.flatten().numpy(), "DOP853", rtol=rtol, atol=1e-13)
    return torch.from_numpy(found.y[:, -1]).reshape(shape)


def log_snr_rate(p: Process, t: float) -> float:
    return float(derivative(p.log_snr, torch.tensor([t], dtype=torch.float64)))


def numbers(table: Tableau) -> list[dict[tuple, Coefficient]]:
    """Every evaluated row and the last one, in given rows, outputs by order of the call, and noises alone."""
    table = table.eliminate()
    calls = {k: i for i, k in enumerate(k for k, row in enumerate(table.rows) if row.at is not None)}
    rows = [row for row in table.rows[1:] if row.at is not None] + [table.rows[-1]]
    return [{(s[0], calls[s[1]] if s[0] == "y" else s[1]): c for s, c in row.form} for row in rows]


def gaussian_map(oracle: Gaussian, z: Tensor, t: float, s: float) -> Tensor:
    """The ODE on Gaussian data with M and R diagonal: z - mean grows like the marginal's standard deviation."""
    p = oracle.process
    mean, std = p.coordinates(oracle.means)[0], oracle.stds[0]

    def spread(u: float) -> Tensor:
        m = p.M(u)
        return apply(m * m, std**2 * torch.ones_like(mean)) + apply(p.Sigma(u), torch.ones_like(mean))

    return apply(p.M(s), mean) + (spread(s) / spread(t)).sqrt() * (z - apply(p.M(t), mean))
