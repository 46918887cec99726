r"""DDPM and DDIM on every linear process: one step to z_s from the data prediction and what remains of the noise.

$$ z_s = M_s D + A\,\epsilon + C\,\xi, \qquad A A^T + C C^T = \Sigma_s, \qquad \epsilon = R_t^{-1}(z_t - M_t D) $$

DDPM takes the Gaussian q(z_s | z_t, x0 = D): with the gain K = Sigma_s Psi^T Sigma_t^-1 (Psi carries s to t),
A = K R_t and C C^T = Sigma_s - K Sigma_t K^T. DDIM takes C scaled by eta and A = R_s (1 - R_s^-1 C C^T R_s^-T)^(1/2).
"""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.process.base import Process
from fewstep.process.operator import Coefficient, cholesky, inverse, is_zero, root, transpose
from fewstep.solver.base import Promise, Solver
from fewstep.tableau.writer import Writer
from fewstep.words import among

__all__ = ["DDIM", "DDPM"]


@dataclass(frozen=True, kw_only=True)
class DDPM(Solver):
    r"""DDPM, ancestral sampling: stochastic, each step draws from the reverse Gaussian at the predicted data.

    Stochastic, one call a step, no state kept, weak order 1. `variance="posterior"` is the variance of
    q(z_s | z_t, x0); `"beta"` is that of q(z_t | z_s), the upper choice of section 3.2, which carries a point mass
    only up to a residual. No noise is added in a step to sigma = 0, as in Algorithm 2.
    Equals `DDIM(eta=1)` on scalar and diagonal processes.

    References: Ho, Jain, Abbeel, Denoising diffusion probabilistic models, 2020, eq. 6-7 and 11, Algorithm 2 and
    section 3.2, https://arxiv.org/abs/2006.11239.
    """

    variance: str = "posterior"

    def __post_init__(self) -> None:
        among(self, variance=("posterior", "beta"))

    @property
    def promise(self) -> Promise:
        return Promise(1, stochastic=True, point_mass=None if self.variance == "posterior" else ())

    def write(self, w: Writer) -> None:
        z, p = w.start, w.process
        for t, s in w.steps:
            d = w.call(z, t)
            gain, covariance = posterior(p, t, s)
            if self.variance == "beta" and not is_zero(p.Sigma(s)):
                covariance = added_noise(p, t, s)
            form = gain * z + (p.M(s) - gain * p.M(t)) * d
            if not is_zero(covariance):
                form = form + cholesky(covariance) * w.noise(t, s)
            z = w.row(form, s)


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
        if not 0 <= self.eta <= 1:
            raise ValueError(f"got eta={self.eta}: give a number in [0, 1]")

    @property
    def promise(self) -> Promise:
        return Promise(1, stochastic=self.eta > 0)

    def write(self, w: Writer) -> None:
        z, p = w.start, w.process
        for t, s in w.steps:
            d = w.call(z, t)
            r, noisy = p.R(s), self.eta > 0 and not is_zero(p.Sigma(s))
            a: Coefficient = r
            if noisy:
                _, covariance = posterior(p, t, s)
                covariance = self.eta**2 * covariance
                r_inv = inverse(r)
                a = r * root(1.0 - r_inv * covariance * transpose(r_inv))
            keep = a * inverse(p.R(t))
            form = keep * z + (p.M(s) - keep * p.M(t)) * d
            if noisy:
                form = form + cholesky(covariance) * w.noise(t, s)
            z = w.row(form, s)


def posterior(process: Process, t: float, s: float) -> tuple[Coefficient, Coefficient]:
    """Gain K and covariance of q(z_s | z_t, x0), a Gaussian with mean M_s x0 + K (z_t - M_t x0)."""
    sigma_t, sigma_s = process.Sigma(t), process.Sigma(s)
    gain = sigma_s * transpose(process.transition(t, s)) * inverse(sigma_t)
    return gain, sigma_s - gain * sigma_t * transpose(gain)


def added_noise(process: Process, t: float, s: float) -> Coefficient:
    """The covariance of q(z_t | z_s): Sigma_t - Psi Sigma_s Psi^T."""
    psi = process.transition(t, s)
    return process.Sigma(t) - psi * process.Sigma(s) * transpose(psi)
