r"""Exact answers: what the probability-flow ODE does to a state, and to a law, when the data's law is known.

A `Problem` is a process, a Gaussian mixture, start states, and the states the ODE takes them to between two log-SNRs.
In one dimension the ODE keeps every state's quantile, so the answer is F_s^-1(F_t(z)); on other processes it is
Gauss collocation, which is exact to rounding and shares no formula with the solvers. Laws need no states at all: on
Gaussian data every row of a table is a linear function of independent normals (`fewstep.check.exactness.stacked`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from fewstep.check.exactness import covariance, remembering, stacked
from fewstep.denoiser import Bridged, Mixture
from fewstep.denoiser.base import Around, Denoiser
from fewstep.denoiser.bridged import End
from fewstep.process import ALL_PROCESSES, Process
from fewstep.process.base import Time, derivative
from fewstep.process.bridge import Bridge
from fewstep.process.operator import Coefficient, apply, cholesky, inverse, magnitude, transpose
from fewstep.process.quadrature import gauss, lagrange
from fewstep.tableau import Tableau

__all__ = ["STD", "Problem", "grid", "integrate", "law_errors", "mixture", "problem", "quantile_map", "runnable",
           "shift", "singular_ends", "small", "starts"]  # fmt: skip

LOW, HIGH = -2.5, 2.5  # the moderate log-SNR range, in which errors of every order are far above rounding
STD = 0.7  # of the Gaussian data
Y = 0.6  # every entry of the other end, on bridges
_NODES, _PANEL = 10, 0.25  # Gauss nodes on every 0.25 units of log-SNR


def small(name: str) -> Process:
    """The process of a registry name, on 2 x 2 images with little blur where it has a size; for data of unit size."""
    make: Any = ALL_PROCESSES[name]
    options = {"size": (2, 2), "sigma_blur_max": 1.0, "variance": 1.0}
    numbers = (f.name for f in fields(make) if not isinstance(f.default, str))
    return make(**{name: options[name] for name in numbers if name in options})


def span(process: Process) -> tuple[float, float]:
    """The log-SNRs between which solvers are judged: the moderate range, as far as the process covers it."""
    low, high = (float(process.log_snr(t)) for t in (process.t_max, process.t_min))
    return max(LOW, low), min(HIGH, high)


def singular_ends(process: Process) -> dict[str, tuple[float, float]]:
    """Where alpha or sigma is 0: the first and last time of a run from or to there, over the moderate range."""
    low, high = process.domain
    first, last = (float(process.inverse_log_snr(lam)) for lam in span(process))
    ends = {"alpha=0": (high, last)} if math.isfinite(high) and process.log_snr(high) == -math.inf else {}
    return ends | ({"sigma=0": (first, low)} if math.isfinite(low) and process.log_snr(low) == math.inf else {})


def grid(process: Process, steps: int, low: float | None = None, high: float | None = None) -> Tensor:
    """Times of a smooth, non-linear warp of log-SNR: neighbouring steps differ, the widest is twice the narrowest.

    Grids of n and 2 n steps share their times.
    """
    ends = span(process)
    low, high = ends[0] if low is None else low, ends[1] if high is None else high
    x = torch.arange(steps + 1, dtype=torch.float64) / steps
    bend = (torch.sin(2 * math.pi * x + 0.7) - math.sin(0.7)) / 6 / math.pi
    return process.inverse_log_snr(low + (high - low) * (x + bend))


def mixture(process: Process) -> Mixture:
    """A mixture of three unequal parts, smooth enough that 32 steps are in the asymptotic range."""
    shape = tuple(getattr(process, "size", (1,)))
    pattern = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).reshape(shape) if shape != (1,) else 0.0
    means = torch.tensor([-1.0, 0.2, 1.1], dtype=torch.float64).reshape(3, *(1,) * len(shape)).expand(3, *shape)
    means = means * (1 + 0.3 * torch.as_tensor(pattern))
    stds = torch.tensor([0.5, 0.6, 0.4], dtype=torch.float64)
    return Mixture(process, means, stds, torch.tensor([0.3, 0.45, 0.25], dtype=torch.float64))


def starts(process: Process, t: float, count: int = 16) -> Tensor:
    """States drawn from the law at t."""
    g = torch.Generator().manual_seed(1)
    x0 = mixture(process).sample(count, g)
    shape = (count, *process.state_shape(tuple(x0.shape[1:])))
    return process.diffuse(x0, t, torch.randn(shape, dtype=torch.float64, generator=g)) + shift(process, t)


class _OfZ(Around):
    """A closed form of u as one of z = u + n Y, as a network on a bridge is."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Any]:
        call, away = self.denoiser.toward(t, output, to), shift(self.process, t)
        return lambda z: call(z - (away.reshape(-1, *(1,) * (z.ndim - 1)) if isinstance(away, Tensor) else away))


def shift(process: Process, t: Time) -> Time:
    """What y adds to a state: n Y on bridges."""
    return process.n(t) * Y if isinstance(process, Bridge) else 0.0


def runnable(oracle: Mixture) -> Denoiser:
    """A closed form as a run takes it: on bridges with the other end."""
    p = oracle.process
    if not isinstance(p, Bridge):
        return oracle
    return Bridged(_OfZ(oracle), End(torch.full((1, *oracle.means.shape[1:]), Y, dtype=torch.float64)), p)


@dataclass(frozen=True)
class Problem:
    """Start states of a mixture on a process, and where the ODE takes them between two log-SNRs."""

    process: Process

    @cached_property
    def mixture(self) -> Mixture:
        return mixture(self.process)

    @cached_property
    def denoiser(self) -> Denoiser:
        """What solvers call."""
        return runnable(self.mixture)

    @cached_property
    def ends(self) -> tuple[float, float]:
        start, end = grid(self.process, 1).tolist()
        return start, end

    @cached_property
    def start(self) -> Tensor:
        return starts(self.process, self.ends[0])

    @cached_property
    def end(self) -> Tensor:
        move = quantile_map if self.process.kind == "scalar" else integrate
        away, there = (shift(self.process, t) for t in self.ends)
        return move(self.mixture, self.start - away, *self.ends) + there

    def error(self, z: Tensor) -> float:
        """Root mean square over the samples, relative to the size of the exact answer."""
        return float((z - self.end).norm() / self.end.norm())


@lru_cache(maxsize=64)
def problem(process: Process) -> Problem:
    """The problem of a process, solved once."""
    return Problem(process)


def quantile_map(oracle: Mixture, z: Tensor, t: float, s: float) -> Tensor:
    """Where the ODE takes 1-D states (batch, 1) of a scalar process: F_s^-1(F_t(z)), by bisection."""
    p: Any = oracle.process
    weights, means, stds = oracle.log_weights, oracle.means[:, 0], oracle.stds

    def law(x: Tensor, u: float) -> tuple[Tensor, Tensor]:
        """Both tails in logarithms: F and 1 - F."""
        q = (x - p.alpha(u) * means) / (p.alpha(u) ** 2 * stds**2 + p.sigma(u) ** 2).sqrt()
        below, above = (torch.logsumexp(weights + torch.special.log_ndtr(v), -1) for v in (q, -q))
        return below, above

    below, above = law(z, t)
    lower = below < above  # solve in the smaller tail, where the logarithm has all its digits
    target = torch.where(lower, below, above)
    low, high = torch.full_like(z[:, 0], -1e4), torch.full_like(z[:, 0], 1e4)
    for _ in range(120):
        middle = (low + high) / 2
        b, a = law(middle[:, None], s)
        right = torch.where(lower, b < target, a > target)  # the answer lies to the right
        low, high = torch.where(right, middle, low), torch.where(right, high, middle)
    return ((low + high) / 2)[:, None]


def integrate(oracle: Mixture, z: Tensor, t: float, s: float) -> Tensor:
    """dz/dt = M' D + R' R^-1 (z - M D) by Gauss collocation in log-SNR, all nodes of a panel at once."""
    p = oracle.process
    low, high = float(p.log_snr(t)), float(p.log_snr(s))
    panels = max(1, math.ceil(abs(high - low) / _PANEL))
    nodes, inner, outer = _collocation(_NODES)
    h = (high - low) / panels
    for k in range(panels):
        u = p.inverse_log_snr(low + h * (k + nodes))
        r = inverse(p.R(u))
        turn = p.F(u) + 0.5 * (p.GG(u) * transpose(r) * r)  # R' R^-1
        pull = p.M_rate(u) - turn * p.M(u)
        speed = derivative(p.log_snr, u).repeat_interleave(len(z)).reshape(-1, *(1,) * (z.ndim - 1))
        x = z.repeat(_NODES, *(1,) * (z.ndim - 1))  # node by node, the batch inside
        pull, turn, u = (_each(c, len(z)) for c in (pull, turn, u))
        for _ in range(100):
            slope = (apply(pull, p.coordinates(oracle(x, u))) + apply(turn, x)) / speed
            slope = slope.reshape(_NODES, *z.shape)
            moved = (z + h * torch.tensordot(inner, slope, 1)).reshape(x.shape)
            off, x = float((moved - x).abs().max()), moved
            if off < 1e-15 * max(1.0, float(x.abs().max())):
                break
        z = z + h * torch.tensordot(outer, slope, 1)
    return z


def _each(c: Coefficient, count: int) -> Coefficient:
    """A coefficient with one entry a time, each entry `count` times."""
    if isinstance(c, Tensor):
        return c.repeat_interleave(count)
    return replace(c, values=c.values.repeat_interleave(count, 0))


@lru_cache(maxsize=4)
def _collocation(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gauss nodes on [0, 1], the integrals of their Lagrange polynomials up to each node, and up to 1."""
    x, weights = gauss(n)
    nodes = (x + 1) / 2
    basis = lagrange(nodes, nodes[:, None] * nodes)  # at the Gauss points of [0, node_i], by i
    return nodes, nodes[:, None] * torch.einsum("iqj,q->ij", basis, weights) / 2, weights / 2


def law_errors(table: Tableau, std: float = STD) -> dict[float, float]:
    """By time of the grid, how far the law of the last row made there is from the exact one on Gaussian data.

    Mean and covariance, without sampling.
    """
    p, rows = table.process, {row.t: k for k, row in enumerate(table.rows)}
    found: dict[float, float] = {}
    with remembering(table):
        laws = stacked(table, std)
        for t in filter(rows.__contains__, table.grid.tolist()):
            m, r, cs = laws[rows[t]]
            exact = p.Sigma(t) + std**2 * (p.M(t) * transpose(p.M(t)))
            whole = inverse(cholesky(exact))
            spread = whole * (covariance(r, cs) - exact) * transpose(whole)
            found[t] = max(magnitude(m - p.M(t)), magnitude(spread))
    return found
