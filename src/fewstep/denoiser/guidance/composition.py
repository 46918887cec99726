r"""Compositions: AND, OR and NOT of conditions, of log probabilities and of denoisers.

Log probabilities l_i = log p(c_i | z), which are energies with their sign turned:

| function      | log p =                            | exact where                                               |
|---------------|------------------------------------|-----------------------------------------------------------|
| `conjunction` | sum_i w_i l_i                      | the conditions are independent given the state            |
| `disjunction` | log sum_i w_i exp l_i              | the conditions exclude each other                         |
| `negation`    | log(1 - exp l), or -w l            | always; the second is the published, unnormalised one     |

They are log probabilities again, so they nest, and `fewstep.ClassifierGuided` makes a denoiser of one; of
l_i(z) = log p(c_i | g(z)), g a generator, around the denoiser of N(0, 1) on VP, that is LACE.

Denoisers D_i of conditions c_i, D of none:

| class        | x0_hat =                                                       |                                     |
|--------------|----------------------------------------------------------------|-------------------------------------|
| `Composed`   | D + sum_i w_i (D_i - D)                                        | AND; a negative weight is NOT       |
| `AnyOf`      | sum_i pi_i D_i, pi = softmax_i(l_i)                            | OR                                  |
| `Complement` | D - w p / (1 - p) (D_1 - D), p = exp l_1                       | NOT                                 |

References: Liu, Li, Du, Torralba, Tenenbaum, Compositional visual generation with composable diffusion models, 2022,
https://arxiv.org/abs/2206.01714. Du, Li, Mordatch, Compositional visual generation with energy based models, 2020,
https://arxiv.org/abs/2004.06030. Du et al., Reduce, reuse, recycle, 2023, https://arxiv.org/abs/2302.11552. Nie,
Vahdat, Anandkumar, Controllable and compositional generation with latent-space energy-based models, 2021,
https://arxiv.org/abs/2110.10873. Koulischer et al., Dynamic negative guidance of diffusion models, 2024,
https://arxiv.org/abs/2410.14398. Armandpour et al., Re-imagine the negative prompt algorithm, 2023,
https://arxiv.org/abs/2304.04968.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.base import Denoiser, Denoises, Split
from fewstep.denoiser.guidance.gradient import LogProb, settle
from fewstep.denoiser.guidance.update import along_of
from fewstep.denoiser.watch import called
from fewstep.process.base import Time
from fewstep.process.operator import apply
from fewstep.words import Typed, finite

__all__ = ["AnyOf", "Complement", "Composed", "conjunction", "disjunction", "negation"]


@dataclass(frozen=True, eq=False)
class _Sum:
    parts: tuple[LogProb, ...]
    weights: tuple[float, ...]

    def __call__(self, z: Tensor, t: Time) -> Tensor:
        return torch.stack([w * part(z, t) for w, part in zip(self.weights, self.parts, strict=True)]).sum(0)


@dataclass(frozen=True, eq=False)
class _LogSum(_Sum):
    def __call__(self, z: Tensor, t: Time) -> Tensor:
        logs = torch.stack([part(z, t) for part in self.parts], -1)
        return (logs + torch.tensor(self.weights, dtype=logs.dtype, device=logs.device).log()).logsumexp(-1)


@dataclass(frozen=True, eq=False)
class _Not:
    part: LogProb
    weight: float | None

    def __call__(self, z: Tensor, t: Time) -> Tensor:
        log = self.part(z, t)
        return _log1mexp(log) if self.weight is None else -self.weight * log


def conjunction(*log_probs: LogProb, weights: Sequence[float] | None = None) -> LogProb:
    """AND: the sum of log probabilities (z, t) -> (batch,), weighted (1 each)."""
    return _Sum(log_probs, _weights(weights, log_probs))


def disjunction(*log_probs: LogProb, weights: Sequence[float] | None = None) -> LogProb:
    """OR: the log of the sum of probabilities, weighted (1 each; above 0)."""
    found = _weights(weights, log_probs)
    if any(w <= 0 for w in found):
        raise ValueError(f"got weights={tuple(found)} for a disjunction: give weights above 0")
    return _LogSum(log_probs, found)


def negation(log_prob: LogProb, weight: float | None = None) -> LogProb:
    """NOT: log(1 - p) of a normalised probability; with a weight, -weight log p of any (published, LACE's and Du's)."""
    if weight is not None and not weight > 0:
        raise ValueError(f"got weight={weight}: give one above 0, or None for the complement's probability")
    return _Not(log_prob, weight)


@dataclass(frozen=True, eq=False)
class Composed(Typed, Split):
    """AND and NOT of conditions: D + sum_i w_i (D_i - D).

    Exact at weights 1 where the conditions are independent given the state at every time; with one part it is
    `guide`. A part of negative weight is a negative prompt beside the unconditional denoiser.

    Args:
        unconditional: D.
        parts: the denoisers D_i.
        weights: w_i, one for each part.
        perpendicular: of the parts of negative weight only what is perpendicular to the sum of the others is
            taken, so that they cannot undo it (Perp-Neg).
        process: the process; None asks the denoisers.
    """

    unconditional: Denoises
    parts: tuple[Denoises, ...]
    weights: tuple[float, ...]
    _: KW_ONLY
    perpendicular: bool = False
    process: Any = None

    def __post_init__(self) -> None:
        weights = _weights(self.weights, self.parts)
        if self.perpendicular and not min(weights) < 0 < max(weights):
            raise ValueError(f"got perpendicular=True with weights={weights}: it wants one below 0 and one above")
        settle(self, "unconditional", "parts")
        vars(self).update(weights=weights)

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Tensor]:
        """The composed denoiser, or `base`, the unconditional model, and `guidance` in the process's coordinates."""
        if output not in ("x0", "base", "guidance"):
            return self.beside(output, t)
        base, *parts = (d.toward(t, "x0", to) for d in (self.unconditional, *self.parts))

        return self.split(output, base, lambda z: (d := base(z), self._shift(d, [part(z) for part in parts])))

    def _shift(self, base: Tensor, each: Sequence[Tensor]) -> Tensor:
        signed = {True: torch.zeros_like(base), False: torch.zeros_like(base)}
        for w, d in zip(self.weights, each, strict=True):
            signed[w > 0] = signed[w > 0] + w * (d - base)
        against = signed[False]
        if self.perpendicular:
            against = against - along_of(against, signed[True])
        return signed[True] + against


@dataclass(frozen=True, eq=False)
class AnyOf(Typed, Denoiser):
    """OR of conditions: the mean of their denoisers, each by how probable its condition is at this state.

    Exact where the conditions exclude each other and the probabilities are.

    Args:
        parts: the denoisers D_i.
        log_probs: l_i, (z, t) -> (batch,): log p(c_i | z), or log p(z, c_i), of an energy network or a classifier.
            Only their differences count, and no gradient is taken.
        process: the process; None asks the denoisers.
    """

    parts: tuple[Denoises, ...]
    log_probs: tuple[LogProb, ...]
    _: KW_ONLY
    process: Any = None

    def __post_init__(self) -> None:
        if len(self.parts) != len(self.log_probs) or not self.parts:
            raise ValueError(
                f"got {len(self.parts)} denoisers and {len(self.log_probs)} log probabilities: give one of each for "
                "every condition"
            )
        settle(self, "parts")
        vars(self).update(log_probs=tuple(self.log_probs))

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Tensor]:
        if output != "x0":
            return self.beside(output, t)
        parts = [part.toward(t, output, to) for part in self.parts]

        def composed(z: Tensor) -> Tensor:
            logs = torch.stack([called(log, z.clone(), t) for log in self.log_probs])
            nowhere = (logs == -torch.inf).all(0)  # where all are impossible they share equally
            share = logs.masked_fill(nowhere, 0.0).softmax(0)
            each = [part(z) for part in parts]
            return torch.stack([apply(w, d) for w, d in zip(share, each, strict=True)]).sum(0)

        return composed


@dataclass(frozen=True, eq=False)
class Complement(Typed, Denoiser):
    """NOT of a condition: D - scale p / (1 - p) (D_1 - D), which is exact at scale 1.

    The pull away from the condition dies where the state is sure not to have it, which a constant negative weight
    does not know. Where p rounds to 1 the factor is that of the nearest number below.

    Args:
        unconditional: D.
        conditional: D_1.
        log_prob: (z, t) -> (batch,): log p(c | z), normalised; no gradient is taken.
        scale: 1 is Bayes' rule, 0 the unconditional model.
        process: the process; None asks the denoisers.
    """

    unconditional: Denoises
    conditional: Denoises
    log_prob: LogProb
    scale: float = 1.0
    _: KW_ONLY
    process: Any = None

    def __post_init__(self) -> None:
        finite("scale", self.scale)
        settle(self, "unconditional", "conditional")

    @property
    def guidance(self) -> float:  # type: ignore[override]
        return float(self.scale)

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Tensor]:
        if output != "x0":
            return self.beside(output, t)
        unconditional, conditional = (d.toward(t, output, to) for d in (self.unconditional, self.conditional))

        def composed(z: Tensor) -> Tensor:
            log, base = called(self.log_prob, z.clone(), t), unconditional(z)
            odds = (log - _log1mexp(log)).exp().to(base)
            return base - apply(float(self.scale) * odds, conditional(z) - base)

        return composed


def _log1mexp(log: Tensor) -> Tensor:
    """log(1 - e^log), stable at both ends."""
    if bool((log > 0).any()):
        raise ValueError(f"got a log probability of {float(log.max()):g} to negate: give a normalised one, at most 0")
    low = log.clamp(max=-torch.finfo(log.dtype).eps)
    near = low > -0.693
    return torch.where(
        near, (-torch.expm1(torch.where(near, low, -1.0))).log(), torch.log1p(-torch.where(near, -1.0, low).exp())
    )


def _weights(weights: Sequence[float] | None, parts: Sequence[Any]) -> tuple[float, ...]:
    found = (1.0,) * len(parts) if weights is None else tuple(float(w) for w in weights)
    if len(found) != len(parts) or not parts:
        raise ValueError(f"got {len(parts)} parts and {len(found)} weights: give one for each, and at least one")
    finite("weight", *found)
    return found
