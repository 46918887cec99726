r"""The variational bound (ELBO) of ancestral tables: a reverse chain of Gaussians against the process's own.

$$ -\log p(x) \le \underbrace{KL(q(z_T | x) \| N(0, \Sigma_T))}_{L_T}
   + \sum_{t \to s} \underbrace{E\, KL(q(z_s | z_t, x) \| p(z_s | z_t))}_{L_t}
   + \underbrace{E[-\log p(x | z_0)]}_{L_0} $$

q(z_s | z_t, x) = N(M_s x + K (z_t - M_t x), C_q) is the process's (`ancestral.posterior`); a row of the table,
z_s = A z_t + B D + C xi, says p(z_s | z_t) = N(A z_t + B D, C C^T). So every Markov table with noise in
its rows has a bound, on every linear process:

$$ L_t = \tfrac12 \Big[ |C^{-1} \Delta|^2 + \operatorname{tr}((C C^T)^{-1} C_q) - n
         - \log\det C_q + \log\det C C^T \Big], \qquad
   \Delta = (K - A) z_t + (M_s - K M_t) x - B D. $$

z_0 is the chain's last noisy state (a last row into sigma = 0 is left out: L_0 stands for it) and p(x | z_0) is a
Gaussian around D(z_0) with the covariance (M^T Sigma^-1 M)^-1 that z_0 leaves open, or, with `bin`, the probability
which that Gaussian (std e^-lambda) gives to a level, the first and last level open outwards.

References: Sohl-Dickstein et al., Deep unsupervised learning using nonequilibrium thermodynamics, 2015,
https://arxiv.org/abs/1503.03585; Ho, Jain, Abbeel, Denoising diffusion probabilistic models, 2020, eq. 5 for the three
terms and eq. 13 for the levels, https://arxiv.org/abs/2006.11239. We differ in the decoder's variance: DDPM takes
beta_1, which is sigma^2 where we have sigma^2 / alpha^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewstep.denoiser.base import Denoises, same_process
from fewstep.denoiser.oracle import _matched
from fewstep.grid import Grid
from fewstep.likelihood.bits import BIN, bits_per_dim, checked
from fewstep.likelihood.lift import gaussian_start
from fewstep.loop.drive import predict
from fewstep.loop.tabulate import right_for, tabulate
from fewstep.noise import Noise
from fewstep.process import Process
from fewstep.process.operator import Coefficient, apply, cholesky, inverse, is_zero, log_det, trace, transpose
from fewstep.solver import Solver
from fewstep.solver.sde.ancestral import posterior
from fewstep.tableau import Tableau
from fewstep.words import typed, whole

__all__ = ["Bound", "elbo"]

Term = Callable[[Tensor, Tensor, Tensor], Tensor]  # (z_t, x, D), the last two in coordinates -> nats (batch,)
Kernel = tuple[Coefficient, Coefficient, Coefficient]  # (A, B, C C^T) of p(z_s | z_t) = N(A z_t + B D, C C^T)


@dataclass(frozen=True, kw_only=True, eq=False)
class Bound:
    """What `elbo` found, in nats and float64: `nats` = -(prior + steps.sum(1) + data), a lower bound of log p.

    - `prior`: L_T (batch,); `steps`: L_t (batch, steps), noise first; `data`: L_0 (batch,).
    - `error`: (batch,) standard error of `nats` over the draws of z_t; nan where there is one alone.
    - `times`: the times (steps + 1,) of the chain's states; `dim`: the data's dimension; `calls`: network calls.
    - `bin`: the levels' distance, None where `nats` bounds a density.
    """

    prior: Tensor
    steps: Tensor
    data: Tensor
    error: Tensor
    times: list[float]
    dim: int
    calls: int
    bin: float | None

    @property
    def nats(self) -> Tensor:
        """The lower bound of log p(x), (batch,)."""
        return -(self.prior + self.steps.sum(1) + self.data)

    def bits_per_dim(self, *, bin: float | None = None) -> Tensor:
        """An upper bound on the bits per dimension; `bin` is for densities of dequantised data (default 2/255)."""
        if self.bin is None:
            return bits_per_dim(self.nats, self.dim, bin=BIN if bin is None else bin)
        if bin is not None:
            raise ValueError(f"got bin={bin} for a bound on levels, which has its own ({self.bin:g}): leave it out")
        return -self.nats / (self.dim * math.log(2))


@typed
def elbo(
    denoiser: Denoises,
    process: Process,
    x: Tensor,
    *,
    solver: str | Solver | Callable[[], Solver] | Tableau | Path = "ddpm",
    grid: str | Tensor | Grid = "default",
    steps: int | None = None,
    nfe: int | None = None,
    draws: int = 1,
    bin: float | None = None,
    ends: tuple[float, float] = (-1.0, 1.0),
    seed: int = 0,
    first: int = 0,
) -> Bound:
    """The variational bound on log p(x) of an ancestral sampler: the three terms, in nats.

    Args:
        x: data (batch, *shape).
        solver: any whose table is a Markov chain with noise in each row: ddpm, ddpm-beta, ddim with eta > 0, ... With
            eta < 1 the bound holds and is loose: q has more noise than the rows, at any number of steps.
        grid, steps, nfe: see `tabulate`; the decoder's call at the last state comes on top.
        draws: how many z_t are drawn for every term and sample.
        bin: the distance between two levels of discrete data, for the bound on their probability; None bounds the
            density of continuous (or dequantised) data.
        ends: the first and last level, used with `bin`.
        seed: of the draws; sample i is number `first` + i.
        first: the number of the batch's first sample.
    """
    bin = None if bin is None else checked(bin)
    same_process(denoiser, process)
    right_for(denoiser, process, "a likelihood")
    gaussian_start(process)
    table = tabulate(solver, process, grid=grid, steps=steps, nfe=nfe, final="state")
    kernels, times, noise = _kernels(table), [row.t for row in table.rows], Noise(seed, first)
    if float(process.log_snr(times[-1])) == math.inf:
        kernels, times = kernels[:-1], times[:-1]
    for k, (_, _, covariance) in enumerate(kernels):
        if is_zero(covariance):
            raise ValueError(
                f"row {k + 1} (t = {times[k + 1]:g}) adds no noise, so the bound is infinite: use ddpm or another "
                "stochastic solver, or log_prob for the ODE"
            )
    x = x.to(torch.float64)
    c, draws = process.coordinates(x), whole("draws", draws)
    shape = (len(x), *process.state_shape(tuple(x.shape[1:])))
    found = torch.zeros(draws, len(x), len(times), dtype=torch.float64, device=x.device)
    for k, t in enumerate(times):
        last = k == len(kernels)
        term = _decoder(process, t, x, bin, ends) if last else _step(process, kernels[k], t, times[k + 1], c)
        for i in range(draws):
            eps = noise.normal("elbo", i * len(times) + k, shape, dtype=torch.float64, device=x.device)
            z = process.diffuse(x, t, eps)
            with torch.no_grad():
                found[i, :, k] = term(z, c, predict(denoiser, process, z, t))
    b, _ = _matched(process, process.diffuse(x, times[0], x.new_zeros(shape)), times[0])
    mean, total = found.mean(0), found.sum(2)
    error = total.std(0) / draws**0.5 if draws > 1 else total.new_full((len(x),), math.nan)
    prior, dim = 0.5 * (b * c).flatten(1).sum(1), math.prod(x.shape[1:])
    return Bound(prior=prior, steps=mean[:, :-1], data=mean[:, -1], error=error, times=times, dim=dim,
                 calls=draws * len(times), bin=bin)  # fmt: skip


def _kernels(table: Tableau) -> list[Kernel]:
    """The Gaussian of every row given the row before, or the reason why there is none."""
    found: list[Kernel] = []
    drawn: set[int] = set()
    for k, row in enumerate(table.rows[1:], start=1):
        a: Coefficient = 0.0
        b: Coefficient = 0.0
        covariance: Coefficient = 0.0
        for symbol, weight in row.form:
            kind, j = symbol[0], symbol[1]
            fresh = kind == "xi" and j not in drawn
            known = kind == "z" or (kind == "y" and (symbol[2] == "x0" or (j, symbol[2]) in table.heads))
            if table.output != "x0" or not (fresh or (known and j == k - 1)) or row.t == table.rows[k - 1].t:
                name = type(table.solver).__name__ if table.solver is not None else "this table"
                raise ValueError(
                    f"got {name}, whose row {k} (t = {row.t:g}) is no Gaussian given the row before and its prediction "
                    "of x0: a bound wants such a Markov chain, as ddpm or ddim with eta > 0 write it"
                )
            if kind == "xi":
                covariance = covariance + weight * transpose(weight)
                drawn.add(j)
            elif kind == "z":
                a = a + weight
            elif symbol[2] == "x0":
                b = b + weight
            else:
                p, q = table.heads[j, symbol[2]]
                a, b = a + weight * p, b + weight * q
        found.append((a, b, covariance))
    return found


def _step(process: Process, kernel: Kernel, t: float, s: float, x: Tensor) -> Term:
    """L_t of the row from t to s, of data like x."""
    (a, b, covariance), data_shape = kernel, tuple(x.shape[1:])
    gain, wanted = posterior(process, t, s)
    keep, jump, whiten = gain - a, process.M(s) - gain * process.M(t), inverse(cholesky(covariance))
    spread = float(log_det(covariance, data_shape)) - float(log_det(wanted, data_shape))
    ratio = float(trace(inverse(covariance) * wanted, data_shape)) + spread

    def term(z: Tensor, c: Tensor, d: Tensor) -> Tensor:
        miss = apply(whiten, apply(keep, z) + apply(jump, c) - apply(b, d)).flatten(1)
        return 0.5 * (miss.square().sum(1) + ratio - miss.shape[1])

    return term


def _decoder(process: Process, t: float, x: Tensor, bin: float | None, ends: tuple[float, float]) -> Term:
    """L_0 = -log p(x | z_0)."""

    def density(z: Tensor, c: Tensor, d: Tensor) -> Tensor:
        n = _matched(process, z, t)[1].expand_as(c)
        return 0.5 * (n * (c - d).square() + math.log(math.tau) - n.log()).flatten(1).sum(1)

    if bin is None:
        return density
    std = math.exp(-float(process.log_snr(t)))

    def levels(z: Tensor, c: Tensor, d: Tensor) -> Tensor:  # noqa: ARG001
        mean = process.from_coordinates(d)
        low = torch.where(x <= ends[0] + bin / 2, -math.inf, (x - bin / 2 - mean) / std)
        high = torch.where(x >= ends[1] - bin / 2, math.inf, (x + bin / 2 - mean) / std)
        flip = low > -high  # in the smaller tail, where differences keep their digits
        low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
        above, below = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
        return -(above + torch.log(-torch.expm1(below - above))).flatten(1).sum(1)

    return levels
