r"""Denoising MCMC: a Markov chain on states and noise levels, and a short run down from wherever it is.

The chain's law is p(z, t) = p_t(z) p(t) over a finite set of times ("levels"). It alternates

$$ z \leftarrow z + \tfrac{\eta}{2} \Sigma_t s_t(z) + \sqrt\eta\, R_t \xi
     = z - \tfrac{\eta}{2} (z - M_t D) + \sqrt\eta\, R_t \xi, \qquad t \sim p(t \,|\, \Psi_t^{-1} z), $$

Langevin at the current level and a draw of the level with y = Psi^-1 z held fixed, where p(t | y) is proportional to
p(t) p_t(Psi_t y) |det Psi_t|. Near data the chain mixes between modes through the higher levels, and a run down from
its level is short.

p(t | y) comes from a classifier of the noise level, as in the paper; from the closed form, for `Mixture` and `Dataset`;
or from the model's own likelihood (`likelihood_levels`).

References: Kim, Ye, Denoising MCMC for accelerating diffusion-based generative models, 2022,
https://arxiv.org/abs/2209.14593. We differ in the step: it is scaled by Sigma_t, so that one eta serves all levels and
every linear process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.base import Denoises, leaves
from fewstep.denoiser.oracle import Dataset, Mixture
from fewstep.geometry.encode import AnySolver, between
from fewstep.grid import Grid
from fewstep.likelihood.closed_form import marginal_log_prob
from fewstep.likelihood.density import log_prob
from fewstep.likelihood.lift import data_time
from fewstep.loop import sample, tabulate
from fewstep.loop.drive import noises_of, predict
from fewstep.noise import Noise, PathSource
from fewstep.process import Process
from fewstep.process.bridge import Bridge
from fewstep.process.operator import apply, inverse, log_det
from fewstep.words import inside, typed, whole

__all__ = ["Chain", "denoising_mcmc", "likelihood_levels"]

Levels = Callable[[Tensor], Tensor]  # y = Psi^-1 z (batch, *state) -> log p(t | y) up to a constant (batch, levels)


@dataclass(frozen=True, kw_only=True, eq=False)
class Chain:
    """What `denoising_mcmc` found.

    - `samples`: (saved, chains, *shape), in data space.
    - `states`, `levels`: (saved, chains, *state) and (saved, chains): where each run down began (indices of `times`).
    - `history`: (chain steps, chains), the level after every step.
    - `times`: (levels,), the times of the levels.
    - `calls`: network calls of one chain, for the chain and for the runs down.
    """

    samples: Tensor
    states: Tensor
    levels: Tensor
    history: Tensor
    times: Tensor
    calls: tuple[int, int]

    @property
    def calls_a_sample(self) -> float:
        """Network calls a sample, the chain's own included."""
        return sum(self.calls) / len(self.samples)


@typed
def denoising_mcmc(
    denoiser: Denoises,
    process: Process,
    x: Tensor,
    *,
    levels: Tensor | int = 16,
    highest: float | None = None,
    level: Levels | None = None,
    weights: Tensor | None = None,
    greedy: bool = False,
    eta: float = 0.5,
    saved: int = 1,
    skip: int = 10,
    burn: int = 0,
    solver: AnySolver = None,
    grid: str | Tensor | Grid = "default",
    steps: int | None = None,
    nfe: int | None = None,
    seed: int = 0,
    first: int = 0,
) -> Chain:
    """Samples by a chain over states and noise levels, each followed by a run down to data.

    Args:
        denoiser: (z, t) -> x0_hat, called with (batch,) times in the chain.
        x: data (chains, *shape) the chains start from; they are noised to random levels first.
        levels: the times of the noise levels, decreasing, or how many (equal steps in log-SNR from `highest` to t_min).
        highest: the highest level's time when `levels` is a number; None is where the log-SNR is 0.
        level: y -> log p(t | y) up to a constant, (batch, levels): a classifier of the noise level that sees
            y = Psi^-1 z (z / alpha for scalar processes). None is the closed form, for a `Mixture` or a `Dataset`.
        weights: p(t) of the levels where `level` is None; None is uniform.
        greedy: take the likeliest level instead of drawing one (the chain then has another law).
        eta: the Langevin step, in (0, 2]; its law is exact as eta goes to 0.
        saved: runs down a chain.
        skip: chain steps before each.
        burn: chain steps before the first of these.
        solver, grid, steps, nfe: of a run down, from each level's time; see `tabulate`.
        seed: of everything drawn; chain i is number `first` + i.
        first: the number of the first chain.
    """
    inside("eta", eta, "(0, 2]")
    if burn != 0:
        burn = whole("burn", burn)
    if isinstance(process, Bridge):
        raise ValueError(f"got {type(process).__name__}, a bridge, whose chains would need one y each: use boomerang")
    saved, skip, noise = whole("saved", saved), whole("skip", skip), Noise(seed, first)
    times = _times(process, levels, highest)
    level = level or _closed_form(denoiser, process, times, weights)
    grids = [between(process, grid, high=t) for t in times.tolist()]
    tables = [tabulate(solver, process, grid=part, steps=steps, nfe=nfe, final="state") for part in grids]
    shape = (len(x), *process.state_shape(tuple(x.shape[1:])))
    draw = lambda stream, k: noise.normal(stream, k, shape, dtype=x.dtype, device=x.device)  # noqa: E731
    k = (_uniform(noise, 0, len(x), 1)[:, 0] * len(times)).long()
    z = process.diffuse(x, times[k], draw("chain-start", 0))
    history, found = [], []
    for i in range(burn + saved * skip):
        t = times[k]
        with torch.no_grad():
            d = predict(denoiser, process, z, t)
            z = z - eta / 2 * (z - apply(process.M(t), d)) + eta**0.5 * apply(process.R(t), draw("chain", i))
            y = apply(inverse(process.Psi(t)), z)
            logits = level(y).to("cpu", torch.float64)
        gumbel = 0.0 if greedy else -(-_uniform(noise, i + 1, len(x), len(times)).log()).log()
        k = (logits + gumbel).argmax(1)
        z = apply(process.Psi(times[k]), y)
        history.append(k)
        if i >= burn and (i - burn + 1) % skip == 0:
            found.append((_down(denoiser, process, tables, z, k, seed + 1 + len(found) * len(times), first), z, k))
    samples, states, places = map(torch.stack, zip(*found, strict=True))
    return Chain(samples=samples, states=states, levels=places, history=torch.stack(history), times=times,
                 calls=(len(history), saved * max(table.nfe for table in tables)))  # fmt: skip


@typed
def likelihood_levels(denoiser: Denoises, process: Process, times: Tensor, *, tolerance: float = 1e-3) -> Levels:
    """p(t | y) by the model's own `log_prob` at every level: exact, needs no classifier, and takes an ODE a level."""
    if process.kind == "block":
        name = type(process).__name__
        raise ValueError(f"got {name}, whose likelihood is a bound on positions alone: give a classifier")

    def density(z: Tensor, k: int) -> Tensor:
        return log_prob(denoiser, process, process.from_coordinates(z), t=float(times[k]), tolerance=tolerance).nats

    return _levels(process, times.tolist(), density)


def _levels(process: Process, times: list[float], density: Callable[[Tensor, int], Tensor]) -> Levels:
    """Log p(t | y) by the log density of z = Psi y at each level's number, and by how much Psi stretches."""

    def levels(y: Tensor) -> Tensor:
        shape = process.data_shape(tuple(y.shape[1:]))
        spreads = enumerate(map(process.Psi, times))
        return torch.stack([density(apply(psi, y), k) + log_det(psi, shape) for k, psi in spreads], 1)

    return levels


def _closed_form(denoiser: Any, process: Process, times: Tensor, weights: Tensor | None) -> Levels:
    """p(t | y) of a closed-form denoiser."""
    inside = list(leaves(denoiser))
    if len(inside) != 1 or not isinstance(closed := inside[0], Mixture | Dataset):
        raise ValueError(
            "got a network without level=: give a classifier of the noise level, or likelihood_levels(...), which asks "
            "the model itself"
        )
    prior = torch.zeros(len(times), dtype=torch.float64) if weights is None else weights.to(torch.float64).log()
    if len(prior) != len(times):
        raise ValueError(f"got {len(prior)} weights for {len(times)} levels: give one for each")

    p, t = prior.tolist(), times.tolist()
    levels = _levels(process, t, lambda z, k: p[k] + marginal_log_prob(closed, z, t[k]))
    return lambda y: levels(y.to(torch.float64))


def _times(process: Process, levels: Tensor | int, highest: float | None) -> Tensor:
    if isinstance(levels, Tensor):
        times = levels.to(torch.float64)
    else:
        top = float(process.inverse_log_snr(0.0)) if highest is None else highest
        high, low = (float(process.log_snr(t)) for t in (top, data_time(process)))
        count = whole("levels", levels)
        times = process.inverse_log_snr(torch.linspace(high, low, count + 1, dtype=torch.float64)[:-1])
    process.check_times(times)
    bad = times[(process.log_snr(times).isinf()) | (times <= process.t_min)]
    if len(bad):
        raise ValueError(
            f"got a level at t = {float(bad[0]):g}: give times above t_min where alpha and sigma are above 0"
        )
    return times


def _down(denoiser: Denoises, process: Process, tables: list, z: Tensor, k: Tensor, seed: int, first: int) -> Tensor:
    """Every chain's run from its level to data; chains at one level run together, each with its own noise."""
    ends: dict[int, Tensor] = {}
    for j in k.unique().tolist():
        which = (k == j).nonzero()[:, 0]
        source = PathSource(Noise(seed + j, first))
        drawn = [xi[which.to(xi.device)] for xi in noises_of(tables[j], source, tuple(z.shape), z.dtype, z.device)]
        noise = torch.stack(drawn) if drawn else None
        end = process.to_data(sample(denoiser, process, solver=tables[j], x=z[which.to(z.device)], noise=noise))
        ends |= dict(zip(which.tolist(), end, strict=True))
    return torch.stack([ends[i] for i in range(len(k))])


def _uniform(noise: Noise, k: int, count: int, width: int) -> Tensor:
    """Uniform numbers in (0, 1), (count, width)."""
    tiny = 2.0**-40
    return torch.special.ndtr(noise.normal("level", k, (count, width), dtype=torch.float64)).clamp(tiny, 1 - tiny)
