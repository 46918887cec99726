r"""Langevin steps at a fixed time: by themselves, from noise to data, and after each step of a predictor.

They leave the law of the state at a time alone; preconditioned by Sigma, one step size serves every time:

$$ z \leftarrow z - \tfrac{a}{2} R \epsilon + \sqrt{a}\, R\, \xi $$
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fewstep.process.operator import is_zero
from fewstep.solver.sde.euler import PREDICTORS, ReverseSDE, predicted
from fewstep.tableau import Form, Writer
from fewstep.words import among, whole, within

__all__ = ["AnnealedLangevin", "PredictorCorrector", "langevin"]


@dataclass(frozen=True, kw_only=True)
class AnnealedLangevin(ReverseSDE):
    r"""NCSN's annealed Langevin dynamics: `inner` Langevin steps at each time, from noise to data.

    Stochastic, `inner` calls a step. On VE it is the paper's, whose step a_i = eps sigma_i^2 / sigma_L^2 makes
    `step` = eps / sigma_L^2 = 0.2 with its eps = 2e-5 and sigma_L = 0.01; elsewhere the transition carries the state
    between times. No order: the law it tends to, in `inner`, is biased by `step`. The noise is no part of the path.

    References: Song, Ermon, Generative modeling by estimating gradients of the data distribution, 2019, Algorithm 1,
    https://arxiv.org/abs/1907.05600.

    Args:
        inner: Langevin steps at each time (the paper takes 100).
        step: a, above 0 and below 4, where a Langevin step stops being stable.
        denoise: end in the mean of the last step, without its noise.
    """

    claimed: ClassVar[int] = 0

    inner: int = 5
    step: float = 0.2
    denoise: bool = True

    def __post_init__(self) -> None:
        whole("inner", self.inner)
        within(self, step="(0, 4)")

    def calls(self, steps: int, *, to_zero: bool) -> int:  # noqa: ARG002
        return steps * self.inner

    def write(self, w: Writer) -> None:
        z = w.start
        for k, (t, s) in enumerate(w.steps):
            for i in range(self.inner):
                last = k == len(w.steps) - 1 and i == self.inner - 1
                form = langevin(w, z, t, self.step, noisy=not (last and self.denoise))
                z = w.row(w.process.transition(s, t) * form, s) if i == self.inner - 1 else w.row(form, t)


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(ReverseSDE):
    r"""A predictor step, then `inner` Langevin steps at the new time, of size a = 4 snr^2: the annealed corrector.

    Stochastic, 1 + `inner` calls a step. score_sde's annealed Langevin corrector takes 2 alpha (snr std)^2 for a / 2,
    which is this with alpha = 1. Weak order 1 where snr is small against the steps; as the size is fixed, none is
    claimed. No corrector at sigma = 0. The data-dependent size is a driver (`predictor-corrector`).

    References: Song et al. 2021, section 4.2, Algorithms 2 and 3 and appendix G, https://arxiv.org/abs/2011.13456.

    Args:
        predictor: "euler-maruyama", "reverse-diffusion" or "ddpm".
        inner: Langevin steps after each predictor step.
        snr: above 0 and below 1.
    """

    claimed: ClassVar[int] = 0

    predictor: str = "euler-maruyama"
    inner: int = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        among(self, predictor=PREDICTORS)
        whole("inner", self.inner)
        within(self, snr="(0, 1)")

    def calls(self, steps: int, *, to_zero: bool) -> int:
        return steps * (1 + self.inner) - self.inner * to_zero

    def write(self, w: Writer) -> None:
        z = w.start
        for t, s in w.steps:
            z = predicted(w, z, self.predictor, t, s)
            for _ in range(self.inner * (not is_zero(w.process.Sigma(s)))):
                z = w.row(langevin(w, z, s, 4 * self.snr**2, noisy=True), s)


def langevin(w: Writer, z: Form, t: float, a: float, *, noisy: bool) -> Form:
    """A Langevin step of size a at time t, preconditioned by Sigma_t."""
    w.call(z, t, to=t)
    r = w.process.R(t)
    form = z - 0.5 * a * r * w.eps(z)
    return form + math.sqrt(a) * r * w.fresh_noise(t, t, "langevin") if noisy else form
