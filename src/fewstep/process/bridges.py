r"""The bridges of the literature: m, n and R of z = m x0 + n y + R eps, and the inverse of the log-SNR.

| bridge        | m                        | n             | R^2                | q = e^(-2 lambda), inverted     |
|---------------|--------------------------|---------------|--------------------|---------------------------------|
| `I2SB`        | 1 - t/S                  | t/S           | t (1 - t/S)        | 1/t = 1/q + 1/S                 |
| `DDBMVE`      | 1 - t^2/T^2              | t^2/T^2       | t^2 (1 - t^2/T^2)  | 1/t^2 = 1/q + 1/T^2             |
| `DDBMVP`      | a (1 - r/r_T)            | a r/(a_T r_T) | a^2 r (1 - r/r_T)  | 1/r = 1/q + 1/r_T               |
| `IRSDE`       | e^-t                     | 1 - m         | v(t)               | e^(2t) = 1 + q/s^2              |
| `GOUB`        | e^-t v(T-t)/v(T)         | 1 - m         | v(t) v(T-t)/v(T)   | e^(2t) = 1 + (1 - E)/(E + k)    |
| `UniDB`       | e^-t (c+v(T-t))/(c+v(T)) | 1 - m         | see there          | see there                       |
| `InDI`        | 1 - t                    | t             | (s t)^2 or s^2 t   | a quadratic                     |
| `ResShift`    | 1 - t                    | t             | kappa^2 t          | a quadratic                     |
| `Interpolant` | 1 - t or b cos(pi t/2)   | t or b sin    | s^2 t (1 - t)      | 1/t = s^2/q + 1, or bisection   |

with a = e^(-B/2), r = e^B - 1, B = beta_min t + beta_d t^2/2; v(t) = s^2 (1 - e^(-2t)), E = e^(-2T),
k = s^2 (1 - E)/q, b^2 = 1 - R^2; s the noise. Time falls from y to data, t = 0.

References: Liu et al., I2SB, 2023, https://arxiv.org/abs/2302.05872; Zhou et al., DDBM, 2023,
https://arxiv.org/abs/2309.16948; Luo et al., IR-SDE, 2023, https://arxiv.org/abs/2301.11699; Yue et al., GOUB, 2024,
https://arxiv.org/abs/2312.10299; Zhu et al., UniDB, 2025, https://arxiv.org/abs/2502.05749; Delbracio, Milanfar, InDI,
2023, https://arxiv.org/abs/2303.11435; Yue et al., ResShift, 2023, https://arxiv.org/abs/2307.12348; Albergo, Boffi,
Vanden-Eijnden, Stochastic interpolants, 2023, https://arxiv.org/abs/2303.08797.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.process.bridge import Bridge
from fewstep.words import among

__all__ = ["DDBMVE", "DDBMVP", "GOUB", "I2SB", "IRSDE", "InDI", "Interpolant", "ResShift", "UniDB"]

LONG = -math.log(0.005)  # the length of IR-SDE's and GOUB's time, to m = 0.005


@dataclass(frozen=True, kw_only=True)
class I2SB(Bridge):
    """Brownian bridge; time is the variance of the Brownian motion that was pinned, S in all.

    The default S is that of the published schedule: 1000 steps, beta_max 0.3.
    """

    variance: float = 0.1410272507825739
    positive: ClassVar[tuple[str, ...]] = ("variance",)

    @property
    def end(self) -> float:
        return self.variance

    def _alpha(self, t: Tensor) -> Tensor:
        return (self.variance - t) / self.variance

    def _n(self, t: Tensor) -> Tensor:
        return t / self.variance

    def _sigma(self, t: Tensor) -> Tensor:
        return (t * (self.variance - t) / self.variance).sqrt()

    def _log_snr(self, t: Tensor) -> Tensor:
        return (torch.log((self.variance - t) / self.variance) - t.log()) / 2

    def _inverse_log_snr(self, lam: Tensor) -> Tensor:
        return 1 / (torch.exp(2 * lam) + 1 / self.variance)


@dataclass(frozen=True, kw_only=True)
class DDBMVE(Bridge):
    """The bridge of VE: sigma = t up to sigma_max = T, as DDBM's default."""

    sigma_max: float = 80.0
    positive: ClassVar[tuple[str, ...]] = ("sigma_max",)

    @property
    def end(self) -> float:
        return self.sigma_max

    def _alpha(self, t: Tensor) -> Tensor:
        return (1 - t / self.sigma_max) * (1 + t / self.sigma_max)

    def _n(self, t: Tensor) -> Tensor:
        return (t / self.sigma_max) ** 2

    def _sigma(self, t: Tensor) -> Tensor:
        return t * self._alpha(t).sqrt()

    def _log_snr(self, t: Tensor) -> Tensor:
        return self._alpha(t).log() / 2 - t.log()

    def _inverse_log_snr(self, lam: Tensor) -> Tensor:
        return (torch.exp(2 * lam) + self.sigma_max**-2).rsqrt()


@dataclass(frozen=True, kw_only=True)
class DDBMVP(Bridge):
    """The bridge of VP on [0, 1], with DDBM's beta = beta_min + beta_d t."""

    beta_min: float = 0.1
    beta_d: float = 2.0
    positive: ClassVar[tuple[str, ...]] = ("beta_min", "beta_d")

    @property
    def end(self) -> float:
        return 1.0

    def _parts(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, r = e^B - 1, 1 - r/r_T)."""
        b, whole = t * (self.beta_min + t * self.beta_d / 2), self._whole
        left = (1 - t) * (self.beta_min + (1 + t) * self.beta_d / 2)  # B_T - B
        return b, torch.expm1(b), b.exp() * torch.expm1(left) / math.expm1(whole)

    @property
    def _whole(self) -> float:
        return self.beta_min + self.beta_d / 2

    def _alpha(self, t: Tensor) -> Tensor:
        b, _, left = self._parts(t)
        return (-b / 2).exp() * left

    def _n(self, t: Tensor) -> Tensor:
        b, r, _ = self._parts(t)
        return ((self._whole - b) / 2).exp() * r / math.expm1(self._whole)

    def _sigma(self, t: Tensor) -> Tensor:
        b, r, left = self._parts(t)
        return (-b / 2).exp() * (r * left).sqrt()

    def _log_snr(self, t: Tensor) -> Tensor:
        _, r, left = self._parts(t)
        return (left.log() - r.log()) / 2

    def _inverse_log_snr(self, lam: Tensor) -> Tensor:
        r = 1 / (torch.exp(2 * lam) + 1 / math.expm1(self._whole))
        b = torch.log1p(r)
        return (2 * b / ((self.beta_min**2 + 2 * self.beta_d * b).sqrt() + self.beta_min)).clamp(max=1.0)


@dataclass(frozen=True, kw_only=True)
class IRSDE(Bridge):
    """A mean-reverting SDE towards y; time is the integral of theta, `noise` the deviation that it comes to.

    Not pinned: runs start at y + noise xi, which leaves out m_T (x0 - y), m_T = 0.005. The default noise is the
    published max_sigma = 50 levels of pictures in [0, 1].
    """

    noise: float = 50 / 255
    t_max: float = LONG
    positive: ClassVar[tuple[str, ...]] = ("noise",)

    @property
    def end(self) -> float:
        return math.inf

    @property
    def pinned(self) -> bool:
        return False

    def _alpha(self, t: Tensor) -> Tensor:
        return (-t).exp()

    def _n(self, t: Tensor) -> Tensor:
        return -torch.expm1(-t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.noise * (-torch.expm1(-2 * t)).sqrt()

    def _log_snr(self, t: Tensor) -> Tensor:
        return -t - self._sigma(t).log()

    def _inverse_log_snr(self, lam: Tensor) -> Tensor:
        return torch.log1p(torch.exp(-2 * lam) / self.noise**2) / 2


@dataclass(frozen=True, kw_only=True)
class GOUB(Bridge):
    """IR-SDE's process pinned at y at time `length`: the generalised Ornstein-Uhlenbeck bridge."""

    noise: float = 30 / 255
    length: float = LONG
    positive: ClassVar[tuple[str, ...]] = ("noise", "length")

    @property
    def end(self) -> float:
        return self.length

    def _left(self, t: Tensor) -> Tensor:
        """v(T - t)/v(T)."""
        return torch.expm1(2 * (t - self.length)) / math.expm1(-2 * self.length)

    def _v(self, t: Tensor) -> Tensor:
        return -(self.noise**2) * torch.expm1(-2 * t)

    def _alpha(self, t: Tensor) -> Tensor:
        return (-t).exp() * self._left(t)

    def _n(self, t: Tensor) -> Tensor:
        return torch.expm1(-t) * (1 + torch.exp(t - 2 * self.length)) / math.expm1(-2 * self.length)

    def _sigma(self, t: Tensor) -> Tensor:
        return (self._v(t) * self._left(t)).sqrt()

    def _log_snr(self, t: Tensor) -> Tensor:
        return (self._left(t).log() - self._v(t).log()) / 2 - t

    def _inverse_log_snr(self, lam: Tensor) -> Tensor:
        rest = -math.expm1(-2 * self.length)
        return torch.log1p(rest / (math.exp(-2 * self.length) + self.noise**2 * rest * torch.exp(2 * lam))) / 2


@dataclass(frozen=True, kw_only=True)
class UniDB(GOUB):
    r"""GOUB's pin as a penalty on the distance to y: c is the inverse of its weight (`gamma_inv`), 0 for GOUB.

    variance="published" is the released code's R, that of c = 0, with m and n of c: pinned, but with m_T > 0.
    variance="exact" is what the controlled SDE has, R^2 = v(t) (c + v(T-t))/(c + v(T)): it is not pinned.
    """

    gamma_inv: float = 1e-7
    variance: str = "published"
    positive: ClassVar[tuple[str, ...]] = ("noise", "length", "gamma_inv")

    def __post_init__(self) -> None:
        among(self, variance=("published", "exact"))
        super().__post_init__()

    @property
    def pinned(self) -> bool:
        return self.variance == "published"

    def _soft(self, t: Tensor) -> Tensor:
        """(c + v(T - t))/(c + v(T))."""
        whole = -(self.noise**2) * math.expm1(-2 * self.length)
        return (self.gamma_inv + whole * self._left(t)) / (self.gamma_inv + whole)

    def _alpha(self, t: Tensor) -> Tensor:
        return (-t).exp() * self._soft(t)

    def _n(self, t: Tensor) -> Tensor:
        return 1 - self._alpha(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return (self._v(t) * (self._left(t) if self.pinned else self._soft(t))).sqrt()

    def _log_snr(self, t: Tensor) -> Tensor:
        if not self.pinned:
            return (self._soft(t).log() - self._v(t).log()) / 2 - t
        lam = self._soft(t).log() - (self._left(t) * self._v(t)).log() / 2 - t
        return torch.where(t == self.end, -math.inf, lam)

    def _inverse_log_snr(self, lam: Tensor) -> Tensor:
        if self.pinned:
            return bisected(self._log_snr, lam, 0.0, self._lowest)
        whole = self.gamma_inv - self.noise**2 * math.expm1(-2 * self.length)
        below = self.noise**2 * (whole * torch.exp(2 * lam) + math.exp(-2 * self.length))
        return torch.log1p(whole / below) / 2

    @property
    def _lowest(self) -> float:
        """The time at which the published log-SNR is least."""
        return self.length + math.log1p(-min(self.gamma_inv / self.noise**2, 0.5)) / 2


class Straight(Bridge):
    """From y to data along a line, z = (1 - t) x0 + t y + R eps, with noise at y: not pinned."""

    @property
    def pinned(self) -> bool:
        return False

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def _n(self, t: Tensor) -> Tensor:
        return 1.0 * t


@dataclass(frozen=True, kw_only=True)
class InDI(Straight):
    """Inversion by direct iteration with noise: R = noise t ("constant") or noise sqrt(t) ("brownian").

    Not pinned: runs start at y + noise xi. Without noise it is `Flow`, started from x=y.
    """

    noise: float = 0.05
    kind_of_noise: str = "constant"
    positive: ClassVar[tuple[str, ...]] = ("noise",)

    def __post_init__(self) -> None:
        among(self, kind_of_noise=("constant", "brownian"))
        super().__post_init__()

    @property
    def end(self) -> float:
        return 1.0

    def _sigma(self, t: Tensor) -> Tensor:
        return self.noise * (t if self.kind_of_noise == "constant" else t.sqrt())

    def _log_snr(self, t: Tensor) -> Tensor:
        return torch.log1p(-t) - self._sigma(t).log()

    def _inverse_log_snr(self, lam: Tensor) -> Tensor:
        if self.kind_of_noise == "constant":
            return 1 / (1 + self.noise * lam.exp())
        return _share(self.noise, lam)


@dataclass(frozen=True, kw_only=True)
class ResShift(Straight):
    """The residual y - x0 is shifted in: time is eta. Not pinned: runs start at y + kappa sqrt(eta_T) xi.

    Its published chain is `DDPM(carry="noise")`.
    """

    kappa: float = 2.0
    t_max: float = 0.99
    positive: ClassVar[tuple[str, ...]] = ("kappa",)

    @property
    def end(self) -> float:
        return self.t_max

    def _sigma(self, t: Tensor) -> Tensor:
        return self.kappa * t.sqrt()

    def _log_snr(self, t: Tensor) -> Tensor:
        return torch.log1p(-t) - t.log() / 2 - math.log(self.kappa)

    def _inverse_log_snr(self, lam: Tensor) -> Tensor:
        return _share(self.kappa, lam)


@dataclass(frozen=True, kw_only=True)
class Interpolant(Bridge):
    """A stochastic interpolant between paired ends, linear or trigonometric, with Brownian gamma: R^2 = s^2 t (1 - t).

    Time is 0 at data, whichever end that is in the paper. Its other gammas vanish so fast at y that the log-SNR stays
    finite or rises again there, and no law of u is known from which a run given y could start.
    """

    noise: float = 1.0
    path: str = "linear"
    positive: ClassVar[tuple[str, ...]] = ("noise",)

    def __post_init__(self) -> None:
        among(self, path=("linear", "trig"))
        if self.path == "trig" and not self.noise < 2:
            raise ValueError(f"got noise={self.noise} for path=trig, where m^2 + n^2 + R^2 = 1: give one below 2")
        super().__post_init__()

    @property
    def end(self) -> float:
        return 1.0

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - t if self.path == "linear" else self._rest(t) * torch.sin(math.pi / 2 * (1 - t))

    def _n(self, t: Tensor) -> Tensor:
        return 1.0 * t if self.path == "linear" else self._rest(t) * torch.sin(math.pi / 2 * t)

    def _rest(self, t: Tensor) -> Tensor:
        return (1 - self.noise**2 * t * (1 - t)).sqrt()

    def _sigma(self, t: Tensor) -> Tensor:
        return self.noise * (t * (1 - t)).sqrt()

    def _log_snr(self, t: Tensor) -> Tensor:
        if self.path == "linear":
            return (torch.log1p(-t) - t.log()) / 2 - math.log(self.noise)
        lam = self._alpha(t).log() - self._sigma(t).log()
        return torch.where(t == 1, -math.inf, lam)

    def _inverse_log_snr(self, lam: Tensor) -> Tensor:
        if self.path == "linear":
            return torch.sigmoid(-2 * (lam + math.log(self.noise)))
        return bisected(self._log_snr, lam, 0.0, 1.0)


def _share(noise: float, lam: Tensor) -> Tensor:
    """The t with noise^2 t = q (1 - t)^2, by the root that does not cancel."""
    p = noise**2 * torch.exp(2 * lam)
    return 2 / (2 + p + (p * (4 + p)).sqrt())


def bisected(falling: Callable[[Tensor], Tensor], value: Tensor, low: float, high: float) -> Tensor:
    """Where a falling function of [low, high] has a value, to rounding; the nearer end beyond its range."""
    below, above = torch.full_like(value, low), torch.full_like(value, high)
    for _ in range(80):
        middle = (below + above) / 2
        right = falling(middle) > value
        below, above = torch.where(right, middle, below), torch.where(right, above, middle)
    return torch.where(value == -math.inf, high, torch.where(value == math.inf, low, (below + above) / 2))
