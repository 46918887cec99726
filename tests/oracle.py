"""Exact answers: what the probability-flow ODE does to a state when the data's law is known.

`Problem` bundles a process, a mixture, start states and the states they reach. Scalar processes in one dimension use
the quantile map (the ODE in 1-D keeps every state's quantile), Gaussian data a closed form, everything else a
high-order adaptive integration whose own accuracy is tested against the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from fewstep.denoiser import Gaussian, Mixture
from fewstep.process import PROCESSES, Blurring, Process
from fewstep.process.operator import Coefficient, apply, cholesky, inverse, transpose
from fewstep.tableau import Tableau
from fewstep.tableau.check import covariance, gaussian

LOW, HIGH = -2.5, 2.5  # the moderate log-SNR range of the order tests
STD = 0.7  # of the Gaussian data of the stochastic tests


def process(name: str) -> Process:
    """A process of that name, small where it has a size."""
    return Blurring(size=(2, 2), sigma_blur_max=1.0) if name == "blurring" else PROCESSES[name]()


def grid(process: Process, steps: int, low: float = LOW, high: float = HIGH) -> Tensor:
    """Times of a smooth, non-linear warp of log-SNR: neighbouring steps differ, the widest is twice the narrowest."""
    x = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    bend = (torch.sin(2 * math.pi * x + 0.7) - math.sin(0.7)) / 6 / math.pi
    return process.inverse_log_snr(low + (high - low) * (x + bend))  # type: ignore[return-value]


def denoiser(process: Process) -> Mixture:
    """A mixture of three unequal parts, smooth enough that 32 steps are in the asymptotic range."""
    shape = process.size if isinstance(process, Blurring) else (1,)
    pattern = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).reshape(shape) if shape != (1,) else 0.0
    means = torch.tensor([-1.0, 0.2, 1.1], dtype=torch.float64).reshape(3, *(1,) * len(shape)).expand(3, *shape) * (
        1 + 0.3 * torch.as_tensor(pattern)
    )
    stds = torch.tensor([0.5, 0.6, 0.4], dtype=torch.float64)
    return Mixture(process, means, stds, torch.tensor([0.3, 0.45, 0.25], dtype=torch.float64))


def starts(process: Process, t: float, count: int = 16) -> Tensor:
    """States drawn from the law at t."""
    g = torch.Generator().manual_seed(1)
    x0 = denoiser(process).sample(count, g)
    shape = (count, *process.state_shape(tuple(x0.shape[1:])))
    return process.diffuse(x0, t, torch.randn(shape, dtype=torch.float64, generator=g))


def quantile_map(mixture: Mixture, z: Tensor, t: float, s: float) -> Tensor:
    """Where the ODE takes 1-D states (batch, 1) of a scalar process: F_s^-1(F_t(z)), by bisection and Newton steps."""
    p = mixture.process
    weights, means, stds = mixture.log_weights.exp(), mixture.means[:, 0], mixture.stds

    def law(x: Tensor, u: float) -> tuple[Tensor, Tensor, Tensor]:
        """log F, log (1 - F) and log density."""
        scale = (p.alpha(u) ** 2 * stds**2 + p.sigma(u) ** 2).sqrt()  # type: ignore[attr-defined]
        d = torch.distributions.Normal(0.0, 1.0)
        q = (x - p.alpha(u) * means) / scale  # type: ignore[attr-defined]
        below = torch.logsumexp(weights.log() + torch.special.log_ndtr(q), -1)
        above = torch.logsumexp(weights.log() + torch.special.log_ndtr(-q), -1)
        return below, above, torch.logsumexp(weights.log() + d.log_prob(q) - scale.log(), -1)

    below, above, _ = law(z, t)
    lower = below < above  # solve in the smaller tail, where the logarithm has all its digits
    target = torch.where(lower, below, above)
    low, high = torch.full_like(z[:, 0], -1e4), torch.full_like(z[:, 0], 1e4)
    for _ in range(120):
        middle = (low + high) / 2
        b, a, _ = law(middle[:, None], s)
        right = torch.where(lower, b < target, a > target)  # the answer lies to the right
        low, high = torch.where(right, middle, low), torch.where(right, high, middle)
    return ((low + high) / 2)[:, None]


def gaussian_map(oracle: Gaussian, z: Tensor, t: float, s: float) -> Tensor:
    """The ODE on Gaussian data with M and R diagonal: z - mean grows like the marginal's standard deviation."""
    p = oracle.process
    mean, std = p.coordinates(oracle.means)[0], oracle.stds[0]
    spread = lambda u: apply(p.M(u) * p.M(u), std**2 * torch.ones_like(mean)) + apply(p.Sigma(u), torch.ones_like(mean))  # noqa: E731  # type: ignore[operator]
    return apply(p.M(s), mean) + (spread(s) / spread(t)).sqrt() * (z - apply(p.M(t), mean))


def integrate(oracle: Mixture, z: Tensor, t: float, s: float, rtol: float = 1e-12) -> Tensor:
    """dz/dt = M' D + R' R^-1 (z - M D) by DOP853, in log-SNR."""
    p, shape = oracle.process, z.shape

    def slope(lam: float, y: np.ndarray) -> np.ndarray:
        u = torch.tensor(float(p.inverse_log_snr(lam)), dtype=torch.float64)
        x = torch.from_numpy(y).reshape(shape)
        d = p.coordinates(oracle(x, float(u)))
        r = p.R_rate(u[None]) * inverse(p.R(u[None]))  # type: ignore[operator]
        rate = apply(p.M_rate(u[None]), d) + apply(r, x - apply(p.M(u[None]), d))
        speed = _log_snr_rate(p, float(u))
        return (rate / speed).flatten().numpy()

    found = solve_ivp(slope, [p.log_snr(t), p.log_snr(s)], z.flatten().numpy(), "DOP853", rtol=rtol, atol=1e-13)
    return torch.from_numpy(found.y[:, -1]).reshape(shape)


def _log_snr_rate(p: Process, t: float) -> float:
    u = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    return float(torch.autograd.grad(p.log_snr(u), u)[0])  # type: ignore[arg-type]


@dataclass(frozen=True)
class Problem:
    """Start states of a mixture on a process, and where the ODE takes them between two log-SNRs."""

    name: str

    @cached_property
    def process(self) -> Process:
        return process(self.name)

    @cached_property
    def denoiser(self) -> Mixture:
        return denoiser(self.process)

    @cached_property
    def ends(self) -> tuple[float, float]:
        return tuple(grid(self.process, 1).tolist())  # type: ignore[return-value]

    @cached_property
    def start(self) -> Tensor:
        return starts(self.process, self.ends[0])

    @cached_property
    def end(self) -> Tensor:
        move = quantile_map if self.process.kind == "scalar" else integrate
        return move(self.denoiser, self.start, *self.ends)

    def error(self, z: Tensor) -> float:
        """Root mean square over the samples, relative to the size of the exact answer."""
        return float((z - self.end).norm() / self.end.norm())


def numbers(table: Tableau) -> list[dict[tuple, Coefficient]]:
    """Every evaluated row and the last one, in given rows, outputs by order of the call, and noises alone."""
    table = table.eliminate()
    calls = {k: i for i, k in enumerate(k for k, row in enumerate(table.rows) if row.at is not None)}
    rows = [row for row in table.rows[1:] if row.at is not None] + [table.rows[-1]]
    return [{(s[0], calls[s[1]] if s[0] == "y" else s[1]): c for s, c in row.form} for row in rows]


def law_error(table: Tableau) -> float:
    """How far the law of the last row is from the exact one on Gaussian data: mean and covariance, no sampling."""
    p, t = table.process, table.rows[-1].t
    m, r, cs = gaussian(table, STD)[-1]
    mean = abs(_worst(m - p.M(t)))  # type: ignore[operator]
    exact = p.Sigma(t) + STD**2 * (p.M(t) * transpose(p.M(t)))  # type: ignore[operator]
    whole = inverse(cholesky(exact))
    spread = whole * (covariance(r, cs) - exact) * transpose(whole)  # type: ignore[operator]
    return max(mean, _worst(spread))


def _worst(c: object) -> float:
    values = getattr(c, "values", c)
    return float(torch.as_tensor(values).abs().max())
