r"""DDPM and DDIM on every linear process: one step to z_s from the data prediction and what remains of the noise.

$$ z_s = M_s D + A\,\epsilon + C\,\xi, \qquad A A^T + C C^T = \Sigma_s, \qquad \epsilon = R_t^{-1}(z_t - M_t D) $$

DDPM takes the Gaussian q(z_s | z_t, x0 = D): with the gain K = Sigma_s Psi^T Sigma_t^-1 (Psi carries s to t),
A = K R_t and C C^T = Sigma_s - K Sigma_t K^T. That is of the process's own chain; of one whose noise is never shrunk
and only added to, z_t = z_s + (M_t - M_s) x0 + noise, Psi is 1 and K = Sigma_s Sigma_t^-1. DDIM takes C scaled by eta
and A = R_s (1 - R_s^-1 C C^T R_s^-T)^(1/2).

Steps of any order go down the ODE past the next time, and back up by the process itself,

$$ z_d = \text{one ODE step from } t \text{ to } d < s, \qquad
   z_s = \Psi_s \Psi_d^{-1} z_d + (\Sigma_s - \Psi \Sigma_d \Psi^T)^{1/2} \xi $$

Both halves keep the law, so the weak order is that of the ODE step. How far down: with rho = sigma/alpha,

    "variance"   rho_d^2 = rho_s^2 (1 - eta^2 (1 - rho_s^2 / rho_t^2))      k-diffusion's sigma_down
    "flow"       tau_d = tau_s (1 - eta (1 - tau_s / tau_t)), tau = rho/(1 + rho)      rectified flow's own time

On numbers, Euler's step with "variance" is DDIM(eta): the noise it draws is that of the ancestral posterior.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from fewstep.process.base import Process, Time, across, like, to_tensor
from fewstep.process.operator import Coefficient, Diagonal, cholesky, inverse, is_zero, root, transpose
from fewstep.solver.base import ALL_KINDS, BOTH, LAST, Promise, Solver
from fewstep.solver.ode.singlestep import inside, singlestep
from fewstep.tableau import Form, Writer
from fewstep.words import among, within

__all__ = ["DDIM", "DDPM", "LCM", "Ancestral"]


@dataclass(frozen=True, kw_only=True)
class DDPM(Solver):
    r"""DDPM, ancestral sampling: stochastic, each step draws from the reverse Gaussian at the predicted data.

    One call a step, no state kept, weak order 1. `variance="posterior"` is the variance of q(z_s | z_t, x0); `"beta"`
    is that of q(z_t | z_s), the upper choice of section 3.2, which carries a point mass only up to a residual. No noise
    is added in a step to sigma = 0, as in Algorithm 2. Equals `DDIM(eta=1)` on scalar and diagonal processes.

    `carry="drift"` is q of the process. `"noise"` has Psi = 1 and shows where the signal is no part of the chain:
    ResShift's posterior, InDI's step with Brownian noise, and with "beta" the momentum sampler of soft diffusion. Where
    the noise grows on the way to data (the far half of a pinned bridge) there is none to add, and the step is DDIM's.

    References: Ho, Jain, Abbeel, Denoising diffusion probabilistic models, 2020, eq. 6-7 and 11, Algorithm 2 and
    section 3.2, https://arxiv.org/abs/2006.11239. Yue, Wang, Loy, ResShift, 2023, eq. 7,
    https://arxiv.org/abs/2307.12348. Daras et al., Soft diffusion, 2022, Algorithm 2, https://arxiv.org/abs/2209.05442.
    """

    variance: str = "posterior"
    carry: str = "drift"

    def __post_init__(self) -> None:
        among(self, variance=("posterior", "beta"), carry=("drift", "noise"))
        if self.carry == "noise":
            why = "on blocks noise that is added to is not one chain: Sigma turns"
            vars(self).update(kinds=ALL_KINDS[:2], reason=why)

    @property
    def promise(self) -> Promise:
        return Promise(1, stochastic=True, point_mass=None if self.variance == "posterior" else ())

    def write(self, w: Writer) -> None:
        z, p = w.start, w.process
        for t, s in w.steps:
            d, (gain, covariance) = w.call(z, t), (posterior if self.carry == "drift" else accumulated)(p, t, s)
            if self.variance == "beta" and not is_zero(covariance):
                covariance = added_noise(p, t, s) if self.carry == "drift" else p.Sigma(t) - p.Sigma(s)
            z = w.row(with_noise(w, gain * z + (p.M(s) - gain * p.M(t)) * d, covariance, t, s), s)


@dataclass(frozen=True, kw_only=True)
class DDIM(Solver):
    r"""DDIM, denoising diffusion implicit model: eta = 0 is deterministic, eta = 1 is ancestral sampling.

    One call a step, no state kept. Order 1 (eta = 0), weak order 1 otherwise; exact on a point mass for every eta.
    On CLD and blurring, eta = 0 is deterministic gDDIM in one step. eta is in [0, 1].

    References: Song, Meng, Ermon, Denoising diffusion implicit models, 2021, eq. 12 and 16,
    https://arxiv.org/abs/2010.02502. Zhang, Tao, Chen, gDDIM, 2022, eq. 18, https://arxiv.org/abs/2206.05564.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        within(self, eta="[0, 1]")

    @property
    def promise(self) -> Promise:
        return Promise(1, stochastic=self.eta > 0)

    def write(self, w: Writer) -> None:
        z, p = w.start, w.process
        for t, s in w.steps:
            d, (keep, covariance) = w.call(z, t), implicit(p, t, s, self.eta)
            z = w.row(with_noise(w, keep * z + (p.M(s) - keep * p.M(t)) * d, covariance, t, s), s)


@dataclass(frozen=True, kw_only=True)
class Ancestral(Solver):
    r"""Euler ancestral, dpm_2 ancestral and DPM-Solver++(2S) ancestral: stochastic, `points` calls a step.

    The step down is that of `Singlestep`: points = 1 is Euler (DDIM), points = 2 is dpm_2 in noise form and 2S in data
    form, both with their stage half-way in log-SNR. One call in a step to sigma = 0. Weak order `points`; eta = 0 is
    `Singlestep`. `down="flow"` is the rectified-flow variant, on other processes at the same noise-to-signal ratios.
    eta is in [0, 1]. Where we differ: any linear process; the level is never below the times it is defined on.

    References: get_ancestral_step, sample_euler_ancestral, sample_dpm_2_ancestral, sample_dpmpp_2s_ancestral of
    https://github.com/crowsonkb/k-diffusion; the flow variants (RF) of https://github.com/comfyanonymous/ComfyUI.
    """

    points: int = 1
    form: str = "data"
    eta: float = 1.0
    down: str = "variance"

    def __post_init__(self) -> None:
        among(self, points=(1, 2, 3), form=("data", "noise"), down=("variance", "flow"))
        within(self, eta="[0, 1]")

    @property
    def promise(self) -> Promise:
        plain = self.points == 1 and self.form == "data"
        return Promise(self.points, stochastic=self.eta > 0, ends=BOTH if plain else LAST)

    def calls(self, steps: int, *, to_zero: bool) -> int:
        return steps * self.points - (self.points - 1) * to_zero

    def write(self, w: Writer) -> None:
        z, p = w.start, w.process
        for t, s in w.steps:
            d = self._lower(p, t, s)
            points = self.points if p.log_snr(d) < math.inf else 1
            z = singlestep(w, z, inside(w, t, d, points, "log-snr"), self.form, "midpoint")
            covariance = added_noise(p, s, d)
            if d < s and not is_zero(covariance):
                z, d = p.transition(s, d) * z + cholesky(covariance) * w.noise(t, s), s
            z = w.row(z, d)

    def _lower(self, process: Process, t: float, s: float) -> float:
        """The time d to step down to."""
        if self.eta == 0 or process.log_snr(s) == math.inf:
            return s
        lowest = process.domain[0]
        return max(across(process, (self, "lower"), functools.partial(self._place, process), t, s), lowest)

    def _place(self, process: Process, t: Time, s: Time) -> Time:
        """The time of the level below s from which the fresh noise leads back to s."""
        high, low = (to_tensor(process.log_snr(u)) for u in (t, s))
        if self.down == "variance":
            share = 1 + self.eta**2 * torch.expm1(-2 * (low - high))  # rho_d^2 / rho_s^2
            lam = low - 0.5 * share.clamp(min=0.0).log()
        else:
            tau_t, tau_s = torch.sigmoid(-high), torch.sigmoid(-low)
            tau = tau_s * (1 - self.eta * (1 - tau_s / tau_t))
            lam = torch.log1p(-tau) - tau.log()
        return like(torch.as_tensor(process.inverse_log_snr(lam)), t)


@dataclass(frozen=True, kw_only=True)
class LCM(Solver):
    r"""Multistep consistency sampling: jump to the data prediction, and noise it again to the next time.

        z_s = M_s D + noise R_s xi

    One call a step. It is made for consistency models, whose prediction is where the ODE ends: then every z_s has its
    law. A denoiser's prediction is a mean, so with one the data's variance is lost and no order is claimed (0). The
    last step adds nothing where sigma = 0. noise = delta / sigma is inverse heat dissipation's sampler, noise = 0 cold
    diffusion's first algorithm.

    References: Song, Dhariwal, Chen, Sutskever, Consistency models, 2023,
    https://arxiv.org/abs/2303.01469; Luo et al., Latent consistency models, 2023, https://arxiv.org/abs/2310.04378;
    Rissanen et al. 2022, algorithm 2, https://arxiv.org/abs/2206.13397.
    """

    noise: float = 1.0

    def __post_init__(self) -> None:
        within(self, noise="[0, inf)")

    @property
    def promise(self) -> Promise:
        return Promise(0, stochastic=self.noise > 0)

    def write(self, w: Writer) -> None:
        z, p = w.start, w.process
        for t, s in w.steps:
            form = p.M(s) * w.call(z, t, to=w.times[-1])
            still = is_zero(p.Sigma(s)) or self.noise == 0
            z = w.row(form if still else form + self.noise * p.R(s) * w.noise(t, s), s)


def posterior(process: Process, t: float, s: float) -> tuple[Coefficient, Coefficient]:
    """Gain K and covariance of q(z_s | z_t, x0), a Gaussian with mean M_s x0 + K (z_t - M_t x0)."""
    sigma_t, sigma_s = process.Sigma(t), process.Sigma(s)
    gain = sigma_s * transpose(process.transition(t, s)) * inverse(sigma_t)
    return gain, sigma_s - gain * sigma_t * transpose(gain)


def accumulated(process: Process, t: float, s: float) -> tuple[Coefficient, Coefficient]:
    """The same where Psi is 1; the ODE's step where R grows from t to s."""
    ratio = process.R(s) * inverse(process.R(t))
    least = ratio.of(ratio.values.clamp(max=1.0)) if isinstance(ratio, Diagonal) else min(ratio, 1.0)
    gain = ratio * least
    return gain, process.Sigma(s) * (1.0 - least * least)


def implicit(process: Process, t: float, s: float, eta: float) -> tuple[Coefficient, Coefficient]:
    """A R_t^-1 and C C^T of DDIM(eta)'s step from t to s."""
    r = process.R(s)
    if eta == 0 or is_zero(process.Sigma(s)):
        return r * inverse(process.R(t)), 0.0
    covariance, r_inv = eta**2 * posterior(process, t, s)[1], inverse(r)
    return r * root(1.0 - r_inv * covariance * transpose(r_inv)) * inverse(process.R(t)), covariance


def with_noise(w: Writer, form: Form, covariance: Coefficient, t: float, s: float) -> Form:
    """A form with noise of a covariance, on the path between t and s; itself where there is none."""
    return form if is_zero(covariance) else form + cholesky(covariance) * w.noise(t, s)


def added_noise(process: Process, t: float, s: float) -> Coefficient:
    """The covariance of q(z_t | z_s): Sigma_t - Psi Sigma_s Psi^T."""
    psi = process.transition(t, s)
    return process.Sigma(t) - psi * process.Sigma(s) * transpose(psi)
