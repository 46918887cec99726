r"""Scalar processes z = alpha_t x0 + sigma_t eps: VP, sub-VP, cosine, VE, EDM, flow, and any alphas_cumprod table.

Each class gives three formulas: alpha, sigma, and the inverse of lambda = log(alpha / sigma). They are written so that
nothing is a difference of nearly equal numbers: 1 - alpha^2 is `-expm1(2 log alpha)`, and for a variance-preserving
process `-2 log alpha = softplus(-2 lambda)`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fewstep.process.base import Process, Time, derivative, like, to_tensor
from fewstep.process.operator import Coefficient, inverse

__all__ = ["EDM", "VE", "VP", "Cosine", "Discrete", "Flow", "ScalarProcess", "SubVP"]


class ScalarProcess(Process):
    """A process z = alpha x0 + sigma eps. To write one, give alpha, sigma and the inverse of the log-SNR."""

    kind = "scalar"
    default_grid = "logistic"

    @abstractmethod
    def _alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _sigma(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _inverse_log_snr(self, lam: Tensor) -> Tensor: ...

    def _log_snr(self, t: Tensor) -> Tensor:
        return self._alpha(t).log() - self._sigma(t).log()

    def alpha(self, t: Time) -> Time:
        return like(self._alpha(to_tensor(t)), t)

    def sigma(self, t: Time) -> Time:
        return like(self._sigma(to_tensor(t)), t)

    def log_snr(self, t: Time) -> Time:
        return like(self._log_snr(to_tensor(t)), t)

    def inverse_log_snr(self, lam: Time) -> Time:
        return like(self._inverse_log_snr(to_tensor(lam)), lam)

    def M(self, t: Time) -> Coefficient:
        return self.alpha(t)

    def Psi(self, t: Time) -> Coefficient:
        return self.alpha(t)

    def R(self, t: Time) -> Coefficient:
        return self.sigma(t)

    def F(self, t: Time) -> Coefficient:
        """The rate d log alpha / dt."""
        u = to_tensor(t)
        return like(derivative(self._alpha, u) / self._alpha(u), t)

    def GG(self, t: Time) -> Coefficient:
        """g^2 = d sigma^2/dt - 2 F sigma^2 (Kingma et al. 2021, appendix D, https://arxiv.org/abs/2107.00630)."""
        s = self.sigma(t)
        return 2 * s * (self.R_rate(t) - self.F(t) * s)

    def M_rate(self, t: Time) -> Coefficient:
        return like(derivative(self._alpha, to_tensor(t)), t)

    def R_rate(self, t: Time) -> Coefficient:
        return like(derivative(self._sigma, to_tensor(t)), t)

    def data_from_noise(self, t: Time) -> tuple[Coefficient, Coefficient]:
        """x0 = (z - sigma eps) / alpha."""
        a = inverse(self.alpha(t))
        return a, -self.sigma(t) * a

    def data_from_score(self, t: Time) -> tuple[Coefficient, Coefficient]:
        """x0 = (z + sigma^2 s) / alpha."""
        a = inverse(self.alpha(t))
        return a, self.sigma(t) ** 2 * a


@dataclass(frozen=True, kw_only=True)
class VP(ScalarProcess):
    r"""Variance-preserving with linear beta.

    log alpha = -t^2 (beta_max - beta_min)/4 - t beta_min/2 and sigma^2 = 1 - alpha^2.
    References: Song et al. 2021, score-based modeling through SDEs, eq. 32-33, https://arxiv.org/abs/2011.13456.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_max: float = 1.0
    t_min: float = 1e-3

    domain = (0.0, math.inf)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta_min <= self.beta_max or self.beta_max == 0:
            raise ValueError(f"got beta_min={self.beta_min}, beta_max={self.beta_max}: give 0 <= beta_min <= beta_max")

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -t * (t * (self.beta_max - self.beta_min) / 4 + self.beta_min / 2)

    def _alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha(t).exp()

    def _sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()

    def _log_snr(self, t: Tensor) -> Tensor:
        return self._log_alpha(t) - self._sigma(t).log()

    def _inverse_log_snr(self, lam: Tensor) -> Tensor:
        return self._time(softplus(-2 * lam))

    def _time(self, loss: Tensor) -> Tensor:
        """The time at which -2 log alpha is `loss`, by the root that does not cancel."""
        return 2 * loss / ((self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * loss).sqrt() + self.beta_min)


@dataclass(frozen=True, kw_only=True)
class SubVP(VP):
    r"""Sub-VP: alpha as VP, sigma = 1 - alpha^2.

    References: Song et al. 2021, eq. 29 (third case), https://arxiv.org/abs/2011.13456.
    """

    default_grid: ClassVar[str] = "uniform"

    def _sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(2 * self._log_alpha(t))

    def _inverse_log_snr(self, lam: Tensor) -> Tensor:
        return self._time(2 * torch.asinh((-lam).exp() / 2))  # 1/alpha - alpha = e^-lam


@dataclass(frozen=True, kw_only=True)
class Cosine(ScalarProcess):
    r"""Cosine schedule: alpha = cos(pi/2 (t+s)/(1+s)) / cos(pi/2 s/(1+s)).

    `t_max` stays below 1, where alpha is zero, as DPM-Solver's continuous form of this schedule does; t_max=1 is legal
    for networks that do not predict noise.
    References: Nichol, Dhariwal 2021, eq. 17, https://arxiv.org/abs/2102.09672.
    """

    offset: float = 0.008
    t_max: float = 0.9946
    t_min: float = 1e-3

    def _angle(self, t: Time) -> Time:
        return math.pi / 2 * (t + self.offset) / (1 + self.offset)

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * (1 - t) / (1 + self.offset)) / math.cos(self._angle(0.0))

    def _sigma(self, t: Tensor) -> Tensor:
        a, b = self._angle(t), self._angle(0.0)  # cos^2 b - cos^2 a = sin(a - b) sin(a + b)
        return (torch.sin(a - b) * torch.sin(a + b)).sqrt() / math.cos(b)

    def _inverse_log_snr(self, lam: Tensor) -> Tensor:
        c = math.cos(self._angle(0.0))  # sin of the angle from t = 1, and its cosine without cancellation
        alpha, sigma = torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt()
        angle = torch.atan2(c * alpha, (1 - c * c + (c * sigma) ** 2).sqrt())
        return (1 - angle * 2 * (1 + self.offset) / math.pi).clamp(min=0.0)


@dataclass(frozen=True, kw_only=True)
class VE(ScalarProcess):
    r"""Variance-exploding: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t.

    References: Song et al. 2021, eq. 30-31, https://arxiv.org/abs/2011.13456.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_max: float = 1.0
    t_min: float = 0.0

    domain = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"got sigma_min={self.sigma_min}, sigma_max={self.sigma_max}: give 0 < sigma_min < sigma_max"
            )

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (t * math.log(self.sigma_max / self.sigma_min)).exp()

    def _inverse_log_snr(self, lam: Tensor) -> Tensor:
        return (-lam - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True, kw_only=True)
class EDM(ScalarProcess):
    r"""EDM: alpha = 1, sigma = t, from sigma_max to sigma_min.

    References: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022, table 1,
    https://arxiv.org/abs/2206.00364.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    domain = (0.0, math.inf)

    @property
    def t_max(self) -> float:
        return self.sigma_max

    @property
    def t_min(self) -> float:
        return self.sigma_min

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return 1.0 * t

    def _inverse_log_snr(self, lam: Tensor) -> Tensor:
        return (-lam).exp()


@dataclass(frozen=True, kw_only=True)
class Flow(ScalarProcess):
    r"""Flow matching / rectified flow: z = (1 - t) x0 + t eps, t from 1 to 0.

    Both ends are singular and legal: alpha = 0 at t = 1, sigma = 0 at t = 0.
    References: Liu et al. 2022, https://arxiv.org/abs/2209.03003; Lipman et al. 2022, https://arxiv.org/abs/2210.02747.
    """

    t_max: float = 1.0
    t_min: float = 0.0
    default_grid: ClassVar[str] = "uniform"

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def _sigma(self, t: Tensor) -> Tensor:
        return 1.0 * t

    def _log_snr(self, t: Tensor) -> Tensor:
        return torch.log1p(-t) - t.log()

    def _inverse_log_snr(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)


@dataclass(frozen=True, kw_only=True)
class Discrete(ScalarProcess):
    r"""Variance-preserving process through a table of alphas_cumprod, continuous in between.

    Index i of N lies at t = (i + 1)/N and log alpha is linear between knots, as in DPM-Solver's code; we add t = 0,
    clean data. An exact zero at the end (zero terminal SNR) makes alpha itself linear there.
    The default table is DDPM's: beta from 1e-4 to 0.02 in 1000 steps.
    References: Lu et al. 2022, https://github.com/LuChengTHU/dpm-solver; Ho et al. 2020, https://arxiv.org/abs/2006.11239.
    """

    alphas_cumprod: tuple[float, ...] | None = field(default=None, repr=False)
    t_max: float = 1.0
    t_min: float = math.nan  # stands for 1/N, index 0

    def __post_init__(self) -> None:
        table = self.alphas_cumprod
        if table is None:
            table = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
        a = torch.as_tensor(table, dtype=torch.float64)
        if a.ndim != 1 or len(a) < 1 or not (a[0] < 1 and a[-1] >= 0 and bool((a[1:] < a[:-1]).all())):
            raise ValueError(
                f"got alphas_cumprod with {a.numel()} entries that do not fall strictly within (1, 0]: give the table "
                "of cumulative products, index 0 nearest to data"
            )
        knots = torch.cat([torch.zeros(1, dtype=torch.float64), 0.5 * a.log()])
        if self.alphas_cumprod is not None:
            object.__setattr__(self, "alphas_cumprod", tuple(a.tolist()))
        if math.isnan(self.t_min):
            object.__setattr__(self, "t_min", 1 / len(a))
        object.__setattr__(self, "_log_alphas", knots)  # at t = 0, 1/N, ..., 1
        super().__post_init__()

    @property
    def _knots(self) -> Tensor:
        return self.__dict__["_log_alphas"]

    @property
    def count(self) -> int:
        """N, the number of indices."""
        return len(self._knots) - 1

    def _parts(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(l, w): alpha = e^l (1 - w), where w is zero but in the last interval of a table that ends in zero."""
        knots = self._knots
        i = (t.detach() * self.count).floor().clamp(0, self.count - 1).long()
        place, left, right = t * self.count - i, knots[i], knots[i + 1]
        inside = right.isfinite()
        line = left + place * torch.where(inside, right - left, 0.0)
        return line, torch.where(inside, 0.0, place.clamp(max=1.0))

    def _alpha(self, t: Tensor) -> Tensor:
        line, w = self._parts(t)
        return line.exp() * (1 - w)

    def _sigma(self, t: Tensor) -> Tensor:
        line, w = self._parts(t)
        return (w * (2 - w) - torch.expm1(2 * line) * (1 - w) ** 2).sqrt()

    def _log_snr(self, t: Tensor) -> Tensor:
        line, w = self._parts(t)
        return line + torch.log1p(-w) - (w * (2 - w) - torch.expm1(2 * line) * (1 - w) ** 2).log() / 2

    def _inverse_log_snr(self, lam: Tensor) -> Tensor:
        knots = self._knots
        n = self.count
        log_alpha = -0.5 * softplus(-2 * lam)
        i = (torch.searchsorted(-knots, -log_alpha, right=True) - 1).clamp(0, n - 1)
        left, right = knots[i], knots[i + 1]
        linear = (log_alpha - left) / (right - left)
        return (i + torch.where(right.isfinite(), linear, -torch.expm1(log_alpha - left))) / n
