r"""The binomial chain for bits, diffusion models' first forward process beside the Gaussian one.

$$ q(x_k | x_{k-1}) = B\big(x_k;\ (1 - \beta_k)\, x_{k-1} + \tfrac12 \beta_k\big), \qquad
   q(x_k = 1 | x_0) = a_k x_0 + \tfrac12 (1 - a_k), \quad a_k = \prod_{i \le k} (1 - \beta_i) $$

with probability beta a bit is thrown anew, so that all are fair coins in the end. A denoiser returns the probability
that each bit of the data is 1, and a step back mixes the two posteriors by it:

$$ p(x_{k-1} | x_k) = \sum_{x_0} q(x_{k-1} | x_k, x_0)\, p(x_0 | x_k) $$

k counts from 1 (next to the data) to n; bits are 0 and 1 in tensors of floats.

References: Sohl-Dickstein et al., Deep unsupervised learning using nonequilibrium thermodynamics, 2015, section 2.4.1
and appendix B.2, https://arxiv.org/abs/1503.03585. They learn the flip of each step; ours asks for x_0, which all steps
share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewstep.noise.source import Noise

__all__ = ["Binomial"]

Guess = Callable[[Tensor, int], Tensor]  # (x_k, k) -> the probability that each bit of x_0 is 1


@dataclass(frozen=True)
class Binomial:
    """A chain of n steps; see the module's docstring.

    Args:
        betas: chances in (0, 1] that a bit is thrown anew, of steps 1 to n.
    """

    betas: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.betas or not all(0 < beta <= 1 for beta in self.betas):
            raise ValueError(f"got betas={self.betas}: give at least one number in (0, 1]")

    @classmethod
    def even(cls, steps: int) -> Binomial:
        """1/n of the memory is lost in every step, as published: beta_k = 1/(n - k + 1)."""
        return cls(tuple(1 / (steps - k) for k in range(steps)))

    @cached_property
    def kept(self) -> Sequence[float]:
        """a_0 = 1, a_1, ..., a_n."""
        found = [1.0]
        for beta in self.betas:
            found.append(found[-1] * (1 - beta))
        return found

    def chance(self, x0: Tensor, k: int) -> Tensor:
        """q(x_k = 1 | x_0); of a probability of x_0 that of its mixture."""
        return self.kept[k] * x0 + (1 - self.kept[k]) / 2

    def diffuse(self, x0: Tensor, k: int, u: Tensor) -> Tensor:
        """x_k of data, from uniform numbers u of its shape."""
        return (u < self.chance(x0, k)).to(x0.dtype)

    def back(self, x: Tensor, k: int, guess: Tensor) -> Tensor:
        """p(x_{k-1} = 1 | x_k), where x_0 is 1 with the probability `guess`."""
        beta = self.betas[k - 1]
        likely = beta / 2 + (1 - beta) * x  # of x_k, where x_{k-1} is 1; of 0 it is 1 - that

        def posterior(x0: float) -> Tensor:
            prior = self.chance(torch.full_like(x, x0), k - 1)
            return prior * likely / (prior * likely + (1 - prior) * (1 - likely))

        return torch.where(guess > 0, guess * posterior(1.0), 0.0) + torch.where(
            guess < 1, (1 - guess) * posterior(0.0), 0.0
        )

    def sample(self, guess: Guess, shape: Sequence[int], *, seed: int = 0) -> Tensor:
        """Bits (batch, *shape) from fair coins, in n calls; sample k's numbers are of (seed, k)."""
        n = len(self.betas)

        def uniform(k: int) -> Tensor:
            return torch.special.ndtr(
                Noise(seed).normal("binomial", k, tuple(shape), dtype=torch.float64, device="cpu")
            )

        x = (uniform(n) < self.chance(torch.full(tuple(shape), 0.5, dtype=torch.float64), n)).double()
        for k in range(n, 0, -1):
            x = (uniform(k - 1) < self.back(x, k, guess(x, k))).double()
        return x

    def step_bits(self, x: Tensor, k: int, x0: Tensor, guess: Tensor) -> Tensor:
        """KL(q(x_{k-1} | x_k, x_0) || p(x_{k-1} | x_k)) of every bit, in bits; of k = 1 -log2 p(x_0 | x_1)."""
        q, p = self.back(x, k, x0), self.back(x, k, guess)
        each = [torch.xlogy(a, a) - torch.xlogy(a, b) for a, b in ((q, p), (1 - q, 1 - p))]  # 0 log 0/0 = 0
        return (each[0] + each[1]) / math.log(2)
