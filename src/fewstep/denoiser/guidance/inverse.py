r"""Linear inverse problems: denoisers that know an observation y = A x0 + sigma_y n of the data.

| method  | x0_hat =                                                        | exact for         |
|---------|-----------------------------------------------------------------|-------------------|
| `dps`   | D + w q grad_z log N(y; A D, sigma_y^2), C left out             | C = 0             |
|         | or D - w q grad_z norm(y - A D), normalised                     |                   |
| `pigdm` | D + w q grad_z log N(y; A D, A C A^T + sigma_y^2), C held fixed | N(mu, s^2) data   |
| `DDNM`  | D + C A^T (A C A^T + sigma_y^2)^-1 (y - A D): no gradient       | N(mu, s^2) data   |

with C as in `fewstep.denoiser.guidance.observation`. Without noise on a scalar process `DDNM` is D + A^+ (y - A D),
the published range-null decomposition. Replacement of what was seen, in the state itself, is an edit between rows:
`fewstep.Replacement`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

from torch import Tensor

from fewstep.denoiser.base import Denoises, Split
from fewstep.denoiser.guidance.classifier import ClassifierGuided
from fewstep.denoiser.guidance.gradient import process_of, settle
from fewstep.denoiser.guidance.observation import Observation, spread, spread_by
from fewstep.process.base import Process, Time
from fewstep.words import Typed, typed, within

__all__ = ["DDNM", "dps", "pigdm"]


@typed
def dps(
    denoiser: Denoises,
    observation: Observation,
    scale: float = 1.0,
    *,
    normalised: bool = False,
    interval: tuple[float, float] | None = None,
    process: Process | None = None,
) -> ClassifierGuided:
    """Diffusion posterior sampling: the likelihood of y at x0_hat, differentiated through the denoiser.

    Args:
        denoiser: (z, t) -> x0_hat, differentiable.
        observation: with noise above 0, by whose variance the residual is divided, unless normalised.
        scale: w, 1 in the paper's derivation. It overshoots where w C is more than twice the noise's variance.
        normalised: the gradient of -norm(y - A D), as the paper's experiments have it, whatever the noise is. It is
            a step in the state there, of size 2 zeta' after each of the solver's: run it with
            `fewstep.ReverseMean(step=...)`.
        interval: where there is guidance, as in `ClassifierGuided`.
        process: the process; None asks the denoiser.

    References: Chung, Kim, Mccann, Klasky, Ye, Diffusion posterior sampling for general noisy inverse problems, 2022,
    https://arxiv.org/abs/2209.14687.
    """
    if observation.noise == 0 and not normalised:
        raise ValueError(
            "got an observation without noise for dps, which divides by it: give its noise or normalised=True, or use "
            "pigdm"
        )
    log_prob = _Distance(observation) if normalised else _Likelihood(observation)
    process = process_of(denoiser, process=process)
    return ClassifierGuided(denoiser, log_prob, scale, on="x0_hat", interval=interval, process=process)


@typed
def pigdm(
    denoiser: Denoises,
    observation: Observation,
    scale: float = 1.0,
    *,
    std: float = 1.0,
    interval: tuple[float, float] | None = None,
    process: Process | None = None,
) -> ClassifierGuided:
    """Pseudoinverse-guided diffusion: as `dps`, with the spread that x0 has given the state; noise may be 0.

    Args:
        denoiser, observation, interval, process: as in `dps`.
        scale: w, 1 is Bayes' rule for Gaussian data.
        std: s, the standard deviation of the data, above 0; the paper's choice is 1.

    References: Song, Vahdat, Mardani, Kautz, Pseudoinverse-guided diffusion models for inverse problems, 2023,
    https://openreview.net/forum?id=9_gsMA8MRKQ.
    """
    process = process_of(denoiser, process=process)
    log_prob = _Likelihood(observation, process, std)
    return ClassifierGuided(denoiser, log_prob, scale, on="x0_hat", interval=interval, process=process)


@dataclass(frozen=True, eq=False)
class DDNM(Typed, Split):
    """Denoising diffusion null-space model: x0_hat with what was seen put in, and the rest moved with it.

    Args:
        denoiser: (z, t) -> x0_hat.
        observation: what was seen; with noise it is trusted as far as the data's spread given the state outweighs it.
        std: s, the standard deviation of the data, above 0. Without noise it cancels on scalar processes and CLD.
        process: the process; None asks the denoiser.

    References: Wang, Yu, Zhang, Zero-shot image restoration using denoising diffusion null-space model, 2022,
    https://arxiv.org/abs/2212.00490, whose scaling for noise (DDNM+) is another one.
    """

    denoiser: Denoises
    observation: Observation
    _: KW_ONLY
    std: float = 1.0
    process: Any = None

    def __post_init__(self) -> None:
        within(self, std="(0, inf)")
        settle(self, "denoiser")

    # no derivative, as observations are transposed by autograd
    heads = ("base", "guidance")  # type: ignore[assignment]

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Tensor]:
        """The denoiser given the observation, or `base` and `guidance`, its parts, in the process's coordinates."""
        if output not in ("x0", "base", "guidance"):
            return self.beside(output, t)
        base = self.denoiser.toward(t, "x0", to)
        return self.split(output, base, lambda z: (d := base(z), self._shift(d, t)))

    def _shift(self, d: Tensor, t: Time) -> Tensor:
        c = spread(self.process, t, self.std)
        v = self.observation.solve(self.observation.residual(d), c, self.process, d)
        return spread_by(self.process, c, self.observation.transpose(v, d))


@dataclass(frozen=True, eq=False)
class _Likelihood:
    """log N(y; A x0_hat, A C A^T + sigma_y^2) up to a constant, C = 0 without a standard deviation."""

    observation: Observation
    process: Process | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        if self.std is not None:
            within(self, std="(0, inf)")

    def __call__(self, d: Tensor, t: Time) -> Tensor:
        r = self.observation.residual(d)
        if self.process is None or self.std is None:
            return -r.square().flatten(1).sum(1) / (2 * self.observation.noise**2)
        v = self.observation.solve(r, spread(self.process, t, self.std), self.process, d)
        half = 0.5 * (r.detach() * v).flatten(1).sum(1)
        return half - (r * v).flatten(1).sum(1)  # of the gradient A^T v


@dataclass(frozen=True, eq=False)
class _Distance:
    """-norm(y - A x0_hat)."""

    observation: Observation

    def __call__(self, d: Tensor, t: Time) -> Tensor:  # noqa: ARG002
        return -self.observation.residual(d).flatten(1).norm(dim=1)
