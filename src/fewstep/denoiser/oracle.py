r"""Closed-form denoisers: what a perfect network would return, on every linear process.

With the matched filter b = M^T Sigma^-1 z and n = M^T Sigma^-1 M (the squared signal-to-noise ratio: a number, or one
for every frequency), data distributed as a mixture of N(mu_k, s_k^2) has

$$ D(z, t) = \sum_k \pi_k(z) \Big[ \mu_k + \frac{s_k^2}{1 + s_k^2 n} (b - n \mu_k) \Big], \qquad
   \log \pi_k = \log w_k - \tfrac12 \sum \log(1 + s_k^2 n)
                - \tfrac12 \sum \frac{n}{1 + s_k^2 n} (b/n - \mu_k)^2 + c $$

(sums over coordinates), which is Bayes' rule after the matrix inversion lemma. A finite data set is s = 0. All of it
is computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fewstep.denoiser.base import Denoiser
from fewstep.denoiser.guided import Guided
from fewstep.denoiser.watch import kept
from fewstep.process.base import Process, Time
from fewstep.process.operator import Block, Coefficient, Diagonal, apply, inverse, transpose
from fewstep.process.predict import VARIANCES
from fewstep.words import Typed, typed

__all__ = ["Dataset", "Gaussian", "Mixture"]

_NUMBERS, _TIMES = 2**8, 2**12  # the most numbers in the means of a mixture that remembers, and of times remembered


class _Filter(NamedTuple):
    """What the posterior at a time is made of, whatever the state; tensors broadcast to (batch, K, *shape)."""

    matched: Coefficient  # M^T Sigma^-1
    n: Tensor
    positive: Tensor | None  # where n is; None: everywhere
    mu: Tensor
    weight: Tensor  # n / (1 + s^2 n)
    gain: Tensor  # s^2 n / (1 + s^2 n)
    spread: Tensor  # s^2 / (1 + s^2 n)
    keep: Tensor  # -log(1 + s^2 n)
    shares: Tensor  # log w, (K,)

    def posterior(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and means of the components given z, broadcastable to (batch, K, *shape)."""
        b = apply(self.matched, z.to(torch.float64))[:, None]
        if self.positive is None:
            estimate = b / self.n
        else:
            estimate = torch.where(self.positive, b / torch.where(self.positive, self.n, 1.0), 0.0)
        energy = (self.weight * (estimate - self.mu) ** 2 - self.keep).expand(len(z), *self.mu.shape)
        pi = (self.shares - 0.5 * energy.reshape(*energy.shape[:2], -1).sum(-1)).softmax(1)
        return _trailing(pi, self.mu.ndim + 1), self.mu + self.gain * (estimate - self.mu)


class _Filters(NamedTuple):
    """Those of a mixture, by time and shape, and the numbers they were made of: written into, they tell it."""

    numbers: tuple[Tensor, ...]
    told: list[int]
    at: dict[Any, _Filter]


_FILTERS: WeakKeyDictionary[Mixture, _Filters] = WeakKeyDictionary()


class Mixture(Denoiser):
    """The exact denoiser of a Gaussian mixture.

    Args:
        process: any linear process.
        means: (K, *shape) in data space.
        stds: (K,) or (K, *shape): standard deviations, in the process's coordinates when given per coordinate.
        weights: (K,), positive; normalised here. None: equal.
    """

    @typed
    def __init__(self, process: Process, means: Tensor, stds: Tensor | float, weights: Tensor | None = None) -> None:
        means = torch.as_tensor(means, dtype=torch.float64)
        if means.ndim == 0:
            raise ValueError("got one number as means: give a tensor (K, *shape), or (K,) for the same mean everywhere")
        stds = torch.as_tensor(stds, dtype=torch.float64)
        stds = stds.expand(len(means)) if stds.ndim == 0 else stds
        weights = torch.ones(len(means)) if weights is None else torch.as_tensor(weights)
        lengths = {len(means), len(stds), len(weights)}
        if len(lengths) > 1 or bool((weights <= 0).any()) or bool((stds < 0).any()):
            raise ValueError(
                f"got {len(means)} means, {len(stds)} stds and {len(weights)} weights: give one of each for every "
                "component, stds of at least 0 and weights above 0"
            )
        self.process, self.means, self.stds = process, means, stds
        self.log_weights = (weights.to(torch.float64) / weights.sum()).log()

    @property
    def heads(self) -> tuple[str, ...]:
        """What a perfect network would return beside x0, in the process's coordinates.

        - `sn`, `npr`: Var(eps | z) = n Var(x0 | z), n = M^T Sigma^-1 M, of every coordinate of the state.
        - `derivative`: dD/dt along the probability-flow ODE.
        - `base`, `guidance`: D of the Gaussian with the mixture's mean and variance, and the rest of D.
        """
        return ("derivative", "base", "guidance", *(VARIANCES if self.process.kind != "block" else ()))

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Tensor]:  # noqa: ARG002 - it has none
        """E[x0 | z] in data space, (batch, *shape), or a head."""
        if output == "x0":
            return lambda z: self._mean(z, t)
        if output in VARIANCES and output in self.heads:
            return self._variance_at(t)
        if output not in ("base", "guidance"):
            return self.beside(output, t)
        weights = _trailing(self.log_weights.exp(), self.means.ndim)
        mean = (weights * self.means).sum(0)
        spread = float((weights * (self.means - mean) ** 2).sum(0).mean())
        base = Gaussian(self.process, mean, math.sqrt(spread + float(self.stds.square().mean())))
        guided = Guided(base=base, shift=lambda z, t: self._mean(z, t) - base(z, t), process=self.process)
        return guided.at(t, output)

    def _mean(self, z: Tensor, t: Time) -> Tensor:
        at = self._filter(z, t)
        if at is None:
            return _clean(self.process, z, t)
        pi, found = at.posterior(z)
        return self.process.from_coordinates((pi * found).sum(1)).to(z.dtype)

    def _variance_at(self, t: Time) -> Callable[[Tensor], Tensor]:
        def variance(z: Tensor) -> Tensor:
            at = self._filter(z, t)
            if at is None:
                return torch.zeros_like(z)
            pi, found = at.posterior(z)
            mean = (pi * found).sum(1, keepdim=True)
            return (at.n[:, 0] * (pi * (at.spread + (found - mean) ** 2)).sum(1)).to(z.dtype)

        return variance

    def _filter(self, z: Tensor, t: Time) -> _Filter | None:
        """The filter at a time for states like z, None where there is no noise; small mixtures remember theirs."""
        numbers = (self.means, self.stds, self.log_weights)
        if (
            type(t) is not float
            or self.means.numel() > _NUMBERS
            or torch.compiler.is_compiling()
            or any(v.is_inference() or v.requires_grad for v in numbers)
        ):
            return self._made(z, t)
        told = [v._version for v in numbers]
        held = _FILTERS.get(self)
        if held is None or held.told != told or any(a is not b for a, b in zip(held.numbers, numbers, strict=True)):
            held = _FILTERS[self] = _Filters(numbers, told, {})
        key = (t, z.shape[1:], z.device)
        if (found := held.at.get(key)) is None:
            with torch.inference_mode(False):
                found = self._made(torch.zeros((1, *z.shape[1:]), dtype=torch.float64, device=z.device), t)
            if found is not None and len(held.at) < _TIMES:
                everywhere = found.positive is not None and bool(found.positive.all())
                held.at[key] = found = found._replace(positive=None if everywhere else found.positive)
        return found

    def _made(self, z: Tensor, t: Time) -> _Filter | None:
        if _is_clean(self.process, t):
            return None
        matched, whole = _matching(self.process, t)
        b = apply(matched, z.to(torch.float64))
        mu, std = (v.to(z.device) for v in self._components(tuple(b.shape[1:])))
        n = _values(whole, b)[:, None]
        keep = 1 / (1 + std**2 * n)
        shares = self.log_weights.to(z.device)
        return _Filter(matched, n, n > 0, mu, n * keep, std**2 * n * keep, std**2 * keep, keep.log(), shares)

    def _components(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Means (K, *shape) and stds (K, 1... or *shape) in the process's coordinates."""
        own = max(self.means.shape, self.stds.shape, key=len)[1:]
        if len(own) > len(shape) or any(a not in (1, b) for a, b in zip(own, shape, strict=False)):
            raise _other_shape(shape, tuple(own))
        means = _trailing(self.means, len(shape) + 1).expand(len(self.means), *shape)
        return self.process.coordinates(means), _trailing(self.stds, len(shape) + 1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws of the data (count, *shape), in data space."""
        mu, std = self._components(tuple(self.means.shape[1:]))
        k = torch.multinomial(self.log_weights.exp(), count, replacement=True, generator=generator)
        noise = torch.randn(count, *mu.shape[1:], dtype=torch.float64, generator=generator)
        return self.process.from_coordinates(mu[k] + std.expand_as(mu)[k] * noise)


class Gaussian(Mixture):
    """The exact denoiser of N(mean, std^2): a mixture of one.

    `mean` is (*shape) or one number for every coordinate; `std` a number or (*shape) in the process's coordinates.
    """

    @typed
    def __init__(self, process: Process, mean: Tensor | float, std: Tensor | float) -> None:
        super().__init__(process, *(torch.as_tensor(v, dtype=torch.float64)[None] for v in (mean, std)))


@dataclass(frozen=True, eq=False)
class Dataset(Typed, Denoiser):
    """The exact denoiser of a finite data set: the softmax-weighted mean of its items (N, *shape), of any dtype.

    They are read `chunk` at a time in float64, in a streaming softmax. `scale` and `shift` map stored items to data:
    data = scale * item + shift (uint8 images: 2/255 and -1).
    """

    process: Process
    items: Tensor
    chunk: int = 2048
    scale: float = 1.0
    shift: float = 0.0
    needs_grad: bool = False  # type: ignore[override]

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Tensor]:  # noqa: ARG002 - it has none
        return (lambda z: self._mean(z, t)) if output == "x0" else self.beside(output, t)

    def _mean(self, z: Tensor, t: Time) -> Tensor:
        if _is_clean(self.process, t):
            return _clean(self.process, z, t)
        b, n = _matched(self.process, z.to(torch.float64), t)
        shape = b.shape[1:]
        if shape != self.items.shape[1:]:
            raise _other_shape(tuple(shape), tuple(self.items.shape[1:]))
        b, n = b.reshape(len(b), -1), n.expand(len(n), *shape).reshape(len(n), -1)
        top = torch.full((len(z), 1), -torch.inf, dtype=torch.float64, device=z.device)
        total, mean = torch.zeros_like(top), torch.zeros_like(b)
        for start in range(0, len(self.items), self.chunk):
            x = self.items[start : start + self.chunk].to(z.device, torch.float64) * self.scale + self.shift
            x = self.process.coordinates(x).reshape(len(x), -1)
            logits = b @ x.T - 0.5 * (n @ (x * x).T)
            above = torch.maximum(top, logits.max(1, keepdim=True).values)
            weight, shrink = (logits - above).exp(), (top - above).exp()
            total = total * shrink + weight.sum(1, keepdim=True)
            mean, top = mean * shrink + weight @ x, above
        return self.process.from_coordinates((mean / total).reshape(-1, *shape)).to(z.dtype)


def _other_shape(got: tuple[int, ...], own: tuple[int, ...]) -> ValueError:
    return ValueError(
        f"got a state for data of shape {got} and a denoiser of data of shape {own}: give it one for its own"
    )


def _is_clean(process: Process, t: Time) -> bool:
    return not (isinstance(t, Tensor) and t.ndim) and float(process.log_snr(float(t))) == float("inf")


def _clean(process: Process, z: Tensor, t: Time) -> Tensor:
    """x0 where there is no noise (sigma = 0): M^-1 z, in memory of its own."""
    return kept(process.to_data(apply(inverse(process.M(float(t))), z)))


def _matched(process: Process, z: Tensor, t: Time) -> tuple[Tensor, Tensor]:
    """The pair b (batch, *shape) in the process's coordinates and n, broadcastable to it, (batch or 1, ...)."""
    matched, n = _matching(process, t)
    b = apply(matched, z)
    return b, _values(n, b)


def _matching(process: Process, t: Time) -> tuple[Coefficient, Coefficient]:
    """The matched filter M^T Sigma^-1, and n = M^T Sigma^-1 M."""
    m = process.M(t)
    matched = transpose(m) * inverse(process.Sigma(t))
    if process.kind == "scalar":  # a pinned end tells nothing, where 0 * inf would be no number
        blind = process.log_snr(t) == -math.inf
        matched = torch.where(blind, 0.0, matched) if isinstance(blind, Tensor) else 0.0 if blind else matched
    return matched, matched * m


def _values(c: Coefficient, like: Tensor) -> Tensor:
    """A coefficient on data as a tensor (batch or 1, ...) of as many axes as `like`."""
    if isinstance(c, Diagonal):
        v = c.values if c.values.ndim > c.rank else c.values[None]
        return v.reshape(len(v), *(1,) * (like.ndim - 1 - c.rank), *v.shape[1:]).to(like)
    v = c.values[..., 0, 0] if isinstance(c, Block) else torch.as_tensor(c, dtype=like.dtype)
    return _trailing(v.reshape(-1), like.ndim).to(like)


def _trailing(v: Tensor, ndim: int) -> Tensor:
    return v.reshape(v.shape + (1,) * (ndim - v.ndim))
