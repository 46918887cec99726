r"""The reverse-time SDE taken step by step, and Langevin steps at a fixed time; on every linear process.

$$ dz = [F z - G G^T s]\, dt + G\, d\bar w, \qquad s = \nabla \log p_t(z) = -R^{-T} \epsilon $$

Euler-Maruyama freezes all of it over a step; reverse diffusion undoes the forward transition Psi, Q of the step; the
symmetric splitting (SSCS) solves exactly what is linear once the stationary score is split off. Langevin steps leave
the law of the state at a time alone; they are preconditioned by Sigma, so that one step size serves every time:

$$ z \leftarrow z - \tfrac{a}{2} R \epsilon + \sqrt{a}\, R\, \xi $$

References: Song et al., Score-based generative modeling through SDEs, 2021, https://arxiv.org/abs/2011.13456. Song,
Ermon, Generative modeling by estimating gradients of the data distribution, 2019, https://arxiv.org/abs/1907.05600.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from fewstep.process.base import Process
from fewstep.process.langevin import CLD
from fewstep.process.operator import Block, Coefficient, cholesky, inverse, is_zero, transpose
from fewstep.solver.base import Promise, Solver
from fewstep.solver.sde.ancestral import added_noise, posterior
from fewstep.tableau.form import Form
from fewstep.tableau.writer import Writer

__all__ = [
    "PREDICTORS",
    "SSCS",
    "AnnealedLangevin",
    "EulerMaruyama",
    "PredictorCorrector",
    "ReverseDiffusion",
    "langevin",
]


class ReverseSDE(Solver):
    """What the samplers of this module share: noise, a point mass carried up to a residual, no singular end."""

    claimed: ClassVar[int] = 1  # the weak order

    @property
    def promise(self) -> Promise:
        return Promise(self.claimed, stochastic=True, point_mass=(), ends=())


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(ReverseSDE):
    r"""Euler-Maruyama on the reverse SDE.

    $$ z_s = z_t - (t - s) [F_t z_t + G_t G_t^T R_t^{-T} \epsilon_t] + \sqrt{t - s}\, G_t\, \xi $$

    Stochastic, one call a step, weak order 1 and strong order 1 (the noise is additive); a point mass is carried up to
    a residual. Refuses a start at alpha = 0, where the drift is infinite, and an end at sigma = 0, where the score is.
    The last step adds no noise.

    References: Song et al. 2021, section 4.1 and appendix E, https://arxiv.org/abs/2011.13456; on CLD the baseline of
    Dockhorn et al. 2022, https://arxiv.org/abs/2112.07068.
    """

    def write(self, w: Writer) -> None:
        z = w.start
        for t, s in w.steps:
            w.call(z, t)
            mean, covariance = _euler_maruyama(w.process, t, s)
            z = w.row(_moved(w, z, mean, covariance, t, s), s)


@dataclass(frozen=True, kw_only=True)
class ReverseDiffusion(ReverseSDE):
    r"""The reverse-diffusion sampler: the forward transition z_t = Psi z_s + Q^{1/2} xi of the step, undone.

    $$ z_s = (2 - \Psi) z_t - Q R_t^{-T} \epsilon_t + Q^{1/2} \xi, \qquad Q = \Sigma_t - \Psi \Sigma_s \Psi^T $$

    Stochastic, one call a step, weak order 1; a point mass is carried up to a residual. The last step adds no noise.
    Psi and Q are the process's own, so that no second discretisation comes in (the reference uses
    sqrt(1 - beta_i) and beta_i, which on a tabulated VP process are the same).

    References: Song et al. 2021, appendix E, https://arxiv.org/abs/2011.13456.
    """

    def write(self, w: Writer) -> None:
        z = w.start
        for t, s in w.steps:
            w.call(z, t)
            mean, covariance = _reverse_diffusion(w.process, t, s)
            z = w.row(_moved(w, z, mean, covariance, t, s), s)


@dataclass(frozen=True, kw_only=True)
class AnnealedLangevin(ReverseSDE):
    r"""NCSN's annealed Langevin dynamics: `inner` Langevin steps at each time, from noise to data.

    $$ z \leftarrow z - \tfrac{a}{2} R_t \epsilon + \sqrt{a}\, R_t\, \xi $$

    Stochastic, `inner` calls a step. On VE it is the paper's, whose step a_i = eps sigma_i^2 / sigma_L^2 makes
    `step` = eps / sigma_L^2 = 0.2 with its eps = 2e-5 and sigma_L = 0.01; elsewhere the transition carries the state
    between times. No order: the law it tends to, in `inner`, is biased by `step`. The noise is no part of the path.

    References: Song, Ermon 2019, Algorithm 1, https://arxiv.org/abs/1907.05600.

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
        _check_langevin(self.inner, self.step)

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
    r"""A predictor step, then `inner` Langevin steps at the new time, of a fixed size: the annealed corrector.

    $$ z \leftarrow z - \tfrac{a}{2} R_s \epsilon + \sqrt{a}\, R_s\, \xi, \qquad a = 4 \cdot \mathrm{snr}^2 $$

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
        if self.predictor not in PREDICTORS:
            raise ValueError(f"got predictor={self.predictor!r}: choose one of {', '.join(PREDICTORS)}")
        _check_langevin(self.inner, 4 * self.snr**2)

    def calls(self, steps: int, *, to_zero: bool) -> int:
        return steps * (1 + self.inner) - self.inner * to_zero

    def write(self, w: Writer) -> None:
        z = w.start
        for t, s in w.steps:
            w.call(z, t)
            mean, covariance = PREDICTORS[self.predictor](w.process, t, s)
            z = w.row(_moved(w, z, mean, covariance, t, s), s)
            for _ in range(self.inner * (not is_zero(w.process.Sigma(s)))):
                z = w.row(langevin(w, z, s, 4 * self.snr**2, noisy=True), s)


@dataclass(frozen=True, kw_only=True)
class SSCS(ReverseSDE):
    r"""Symmetric splitting for CLD: half a step of what is linear, a score step, half a step of what is linear.

    With the stationary covariance Sigma_inf the reverse SDE is an Ornstein-Uhlenbeck process, solved exactly, and
    dz = G G^T (s + Sigma_inf^-1 z) d tau, solved by an Euler step with the score at the middle time. The linear
    part is the forward process with the velocity turned round: transition P Psi P with P = diag(1, -1), and the noise
    Sigma_inf - Psi Sigma_inf Psi^T that goes with it.

    Stochastic, one call a step, weak order 1, CLD only. A point mass is carried up to a residual.

    References: Dockhorn, Vahdat, Kreis, Score-based generative modeling with critically-damped Langevin diffusion,
    2022, section 3.3, https://arxiv.org/abs/2112.07068.
    """

    kinds: ClassVar[tuple[str, ...]] = ("block",)
    reason: ClassVar[str] = "it splits a velocity from a position"

    def write(self, w: Writer) -> None:
        p = w.process
        assert isinstance(p, CLD)
        z = w.start
        stationary, turn = _diagonal(1.0, p.mass), _diagonal(1.0, -1.0)

        def half(z: Form, t: float, s: float) -> Form:
            psi = turn * p.transition(t, s) * turn
            return psi * z + cholesky(stationary - psi * stationary * transpose(psi)) * w.noise(t, s)

        for t, s in w.steps:
            middle = (t + s) / 2
            z = w.row(half(z, t, middle), middle)
            w.call(z, middle)
            push = (t - s) * p.GG(middle)
            score = inverse(stationary) * z - transpose(inverse(p.R(middle))) * w.eps(z)
            z = w.row(half(z + push * score, middle, s), s)


def _moved(
    w: Writer, z: Form, mean: tuple[Coefficient, Coefficient], covariance: Coefficient, t: float, s: float
) -> Form:
    """mean[0] z + mean[1] eps, with noise but in the last step."""
    form = mean[0] * z + mean[1] * w.eps(z)
    return form if s == w.times[-1] or is_zero(covariance) else form + cholesky(covariance) * w.noise(t, s)


def langevin(w: Writer, z: Form, t: float, a: float, *, noisy: bool) -> Form:
    """A Langevin step of size a at time t, preconditioned by Sigma_t."""
    w.call(z, t)
    r = w.process.R(t)
    form = z - 0.5 * a * r * w.eps(z)
    return form + math.sqrt(a) * r * w.fresh_noise(t, t, "langevin") if noisy else form


def _euler_maruyama(p: Process, t: float, s: float) -> tuple[tuple[Coefficient, Coefficient], Coefficient]:
    h, gg = t - s, p.GG(t)
    return (1.0 - h * p.F(t), -h * (gg * transpose(inverse(p.R(t))))), h * gg


def _reverse_diffusion(p: Process, t: float, s: float) -> tuple[tuple[Coefficient, Coefficient], Coefficient]:
    q = added_noise(p, t, s)
    return (2.0 - p.transition(t, s), -1.0 * (q * transpose(inverse(p.R(t))))), q


def _ancestral(p: Process, t: float, s: float) -> tuple[tuple[Coefficient, Coefficient], Coefficient]:
    gain, covariance = posterior(p, t, s)
    carry = p.transition(s, t)
    return (carry, (gain - carry) * p.R(t)), covariance


# Name -> (process, t, s) -> ((a, b), C): one step a z + b eps + chol(C) xi.
PREDICTORS = {
    "euler-maruyama": _euler_maruyama,
    "reverse-diffusion": _reverse_diffusion,
    "ddpm": _ancestral,
}


def _check_langevin(inner: int, step: float) -> None:
    if inner < 1 or not 0 < step < 4:
        raise ValueError(f"got inner={inner} Langevin steps of size {step:g}: give at least 1, of a size in (0, 4)")


def _diagonal(a: float, b: float) -> Block:
    return Block(torch.diag(torch.tensor([a, b], dtype=torch.float64)))
