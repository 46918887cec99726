r"""The optimal reverse variance: Analytic-DPM from a measured statistic, SN-DPM and NPR-DPM from a variance head.

A step z_s = M_s D + A R_t^-1 (z_t - M_t D) + C xi predicts the data where x0 itself belongs. What it misses is
J (x0 - D) with J = M_s - A R_t^-1 M_t, so the Gaussian nearest to the true reverse step has the covariance

$$ C C^T + J\,\Gamma\,J^T, \qquad \Gamma = E\,\mathrm{Var}(x_0 | z_t) $$

Scalar: Gamma = (sigma_t/alpha_t)^2 (1 - E||eps||^2/d), and A = R_s, C = 0 is DDIM's step, A = K R_t DDPM's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from fewstep.process.base import Process
from fewstep.process.operator import Block, Coefficient, Diagonal, inverse, is_zero, transpose
from fewstep.solver.base import LAST, Promise, Solver
from fewstep.solver.sde.ancestral import implicit, posterior, with_noise
from fewstep.solver.statistics import Statistics
from fewstep.tableau.writer import Writer
from fewstep.words import among, within

__all__ = ["Analytic", "LearnedVariance", "gain_and_covariance"]

_PIXEL = 2 / 255 * math.sqrt(math.pi / 2)  # the standard deviation whose mean absolute value is one of 255 steps
_ALLOWED = {"eta": "[0, 1]", "clip_last": "[0, inf]", "clip_pixel": "(0, inf]"}


@dataclass(frozen=True, kw_only=True)
class Analytic(Solver):
    r"""Analytic-DPM: DDPM (eta = 1) or DDIM (eta = 0) with the optimal variance, from a statistic of the network.

    z_s = M_s D + A R_t^-1 (z_t - M_t D) + (C C^T + J Gamma J^T)^(1/2) xi. One call a step, no state kept, weak order 1.
    Without statistics Gamma is 0, the lower bound: `ddpm` (the posterior variance) or `ddim`. The upper bounds are
    Gamma <= (sigma_t/alpha_t)^2 (scalar) and, for data within `half_range` of its middle, Gamma <= half_range^2.
    On blurring Gamma is per frequency, on CLD it acts through J on position and velocity alike. Where we differ: Gamma
    is kept from rising as the noise falls (see `Statistics`), and D is not clipped.

    References: Bao, Li, Zhu, Zhang, Analytic-DPM, 2022, Theorem 1 and section 3.1, https://arxiv.org/abs/2201.06503;
    the authors' code for the clipping, https://github.com/baofff/Analytic-DPM.

    Args:
        eta: share of DDPM's noise in C, in [0, 1].
        statistics: measured `Statistics` with eps2, or the name of their file.
        corrected: Gamma from the error of the prediction instead of its square, right for an imperfect mean too (Bao et
            al. 2022b, https://arxiv.org/abs/2206.07309).
        half_range: half the width of the data's range; 1 for images in [-1, 1].
        clip_last: in how many of the last steps the noise is clipped; the paper takes 1.
        clip_pixel: to which mean absolute value, in steps of 1/255 of data in [-1, 1]; the paper takes 1 or 2.
    """

    eta: float = 1.0
    statistics: Statistics | str | Path | None = None
    half_range: float = math.inf
    corrected: bool = False
    clip_last: int = 0
    clip_pixel: float = 2.0

    def __post_init__(self) -> None:
        within(self, **_ALLOWED, half_range="(0, inf]")
        reads = ("error2" if self.corrected else "eps2",)
        vars(self).update(statistics=Statistics.given(self.statistics, reads))

    @property
    def promise(self) -> Promise:
        if self.statistics is not None:
            return Promise(1, stochastic=True, point_mass=(), ends=LAST)
        return Promise(1, stochastic=self.eta > 0, point_mass=() if self.clip_last else None)

    def write(self, w: Writer) -> None:
        z, p = w.start, w.process
        clipped = _last_noisy(w, self.clip_last)
        for k, (t, s) in enumerate(w.steps):
            keep, covariance = gain_and_covariance(p, t, s, self.eta)
            if isinstance(self.statistics, Statistics) and not is_zero(p.Sigma(s)):
                missed = p.M(s) - keep * p.M(t)
                gamma = self.statistics.data_variance(p, t, half_range=self.half_range, corrected=self.corrected)
                covariance = covariance + missed * gamma * transpose(missed)
            if k in clipped:
                covariance = at_most(covariance, (self.clip_pixel * _PIXEL) ** 2)
            form = keep * z + (p.M(s) - keep * p.M(t)) * w.call(z, t)
            z = w.row(with_noise(w, form, covariance, t, s), s)


@dataclass(frozen=True, kw_only=True)
class LearnedVariance(Solver):
    r"""SN-DPM and NPR-DPM: the variance of every coordinate of the noise from a second output of the network.

    z_s = M_s D + A R_t^-1 (z_t - M_t D) + C xi_1 + J M_t^-1 R_t sqrt(v) xi_2, with v the head
    - `sn` (squared noise): h - eps_theta^2, where h is trained on E[eps^2 | z];
    - `npr` (noise prediction residual): g, trained on E[(eps - eps_theta)^2 | z], right for an imperfect mean too.
    The two normals together have the published variance C^2 + c v, with c = (J M_t^-1 R_t)^2; the second is no part of
    the path. One call a step, weak order 1; where v = 0 this is DDPM (eta = 1) or DDIM (eta = 0). The head is that of
    `fewstep.denoiser.variance_head`; clipped last steps leave it out, as a table cannot clip what a network returns.

    References: Bao et al., Estimating the optimal covariance with imperfect mean in diffusion probabilistic models,
    2022, https://arxiv.org/abs/2206.07309.

    Args:
        head: "sn" or "npr".
        eta: share of DDPM's noise in C, in [0, 1].
        clip_last, clip_pixel: as in `Analytic`.
    """

    head: str = "npr"
    eta: float = 1.0
    clip_last: int = 0
    clip_pixel: float = 2.0

    kinds = ("scalar", "diagonal")
    reason = "its network has one variance for every coordinate of the noise"

    def __post_init__(self) -> None:
        within(self, **_ALLOWED)
        among(self, head=("sn", "npr"))

    @property
    def promise(self) -> Promise:
        return Promise(1, stochastic=True, point_mass=() if self.clip_last else None, heads=(self.head,), ends=LAST)

    def write(self, w: Writer) -> None:
        z, p = w.start, w.process
        clipped = _last_noisy(w, self.clip_last)
        for k, (t, s) in enumerate(w.steps):
            keep, covariance = gain_and_covariance(p, t, s, self.eta)
            if k in clipped:
                covariance = at_most(covariance, (self.clip_pixel * _PIXEL) ** 2)
            missed = p.M(s) - keep * p.M(t)
            form = with_noise(w, keep * z + missed * w.call(z, t), covariance, t, s)
            if not is_zero(p.Sigma(s)) and k not in clipped:
                xi = w.fresh_noise(t, s, "variance")
                form = form + (missed * inverse(p.M(t)) * p.R(t)) * w.root(w.head(z, self.head), xi)
            z = w.row(form, s)


def gain_and_covariance(p: Process, t: float, s: float, eta: float) -> tuple[Coefficient, Coefficient]:
    """A R_t^-1 and C C^T of the step from t to s: DDPM's at eta = 1, else those of `DDIM(eta)`."""
    return posterior(p, t, s) if eta == 1 else implicit(p, t, s, eta)


def at_most(covariance: Coefficient, bound: float) -> Coefficient:
    """A covariance no entry of whose diagonal is above the bound (a block is scaled as a whole)."""
    if isinstance(covariance, Diagonal):
        return Diagonal(covariance.values.clamp(max=bound), covariance.rank)
    if isinstance(covariance, Block):
        top = float(covariance.values.diagonal(dim1=-2, dim2=-1).max())
        return covariance * min(1.0, bound / top) if top > 0 else covariance
    return min(covariance, bound)


def _last_noisy(w: Writer, count: int) -> set[int]:
    """The last `count` of the steps that add noise: those that do not end at sigma = 0."""
    noisy = [k for k, (_, s) in enumerate(w.steps) if not is_zero(w.process.Sigma(s))]
    return set(noisy[-count:]) if count else set()
