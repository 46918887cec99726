r"""Critically damped Langevin diffusion: data coupled to a velocity (Dockhorn et al. 2022, eq. 5).

$$ dx = \beta m^{-1} v\, dt, \qquad dv = -\beta x\, dt - \beta \Gamma m^{-1} v\, dt + \sqrt{2 \Gamma \beta}\, dw $$

with Gamma^2 = 4 m. A state is (batch, 2, *shape): position, then velocity. The velocity at time 0 is N(0, gamma m) and
is marginalised (hybrid score matching), so M is the first column of Psi(t, 0) and data is a position.

With tau = beta t and kappa = 2 / Gamma the drift solves to
Psi = e^{-kappa tau} [[1 + kappa tau, kappa^2 tau], [-tau, 1 - kappa tau]], the noise it gathers is a polynomial in
incomplete gamma functions, and R = chol(Sigma) Rot(theta) with theta' = beta m^-1 sqrt(det Sigma) / Sigma_xx: the
rotation that turns the Cholesky factor into the root gDDIM asks for (Zhang et al. 2022, eq. 17).

References: Dockhorn, Vahdat, Kreis, Score-based generative modeling with critically-damped Langevin diffusion, 2022,
https://arxiv.org/abs/2112.07068. Zhang, Tao, Chen, gDDIM, 2022, https://arxiv.org/abs/2206.05564.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from fewstep.process.base import Process, Time, like, to_tensor
from fewstep.process.operator import Block, Coefficient, _cholesky2, matrix
from fewstep.process.quadrature import antiderivative, chebyshev, series_at

__all__ = ["CLD"]

_DEGREE = 32  # degree of the angle's polynomial on each panel [2^k, 2^(k+1)] of sqrt(t); the first and last k
_LOWEST, _HIGHEST = -20, 4


@dataclass(frozen=True, kw_only=True)
class CLD(Process):
    """Critically damped Langevin diffusion with beta=4, Gamma=1 (so m=1/4) and gamma=0.04, the paper's setting.

    `offset` is added to both initial variances (the reference implementation adds 1e-6).
    """

    beta: float = 4.0
    Gamma: float = 1.0
    gamma: float = 0.04
    offset: float = 0.0
    t_max: float = 1.0
    t_min: float = 1e-3

    kind = "block"
    domain = (1e-5, math.inf)  # at t = 0 the position is noiseless and the velocity is not: R is singular
    default_grid = "logistic"

    @property
    def mass(self) -> float:
        """The mass m = Gamma^2 / 4: critical damping."""
        return self.Gamma**2 / 4

    def Psi(self, t: Time) -> Block:
        return Block(self._psi(to_tensor(t)))

    def M(self, t: Time) -> Block:
        return Block(self._psi(to_tensor(t))[..., :1])

    def Sigma(self, t: Time) -> Block:
        return Block(self._sigma(to_tensor(t)))

    def R(self, t: Time) -> Block:
        t = to_tensor(t)
        theta = self._theta(t)
        c, s = theta.cos(), theta.sin()
        return Block(_cholesky2(self._sigma(t)) @ matrix(c, s, -s, c))

    def F(self, t: Time) -> Block:
        one = torch.ones_like(to_tensor(t))
        return Block(self.beta * matrix(0 * one, one / self.mass, -one, -one * self.Gamma / self.mass))

    def GG(self, t: Time) -> Block:
        one = torch.ones_like(to_tensor(t))
        return Block(matrix(0 * one, 0 * one, 0 * one, 2 * self.Gamma * self.beta * one))

    def log_snr(self, t: Time) -> Time:
        return like(self._log_snr_and_rate(to_tensor(t))[0], t)

    def inverse_log_snr(self, lam: Time) -> Time:
        """By Newton's method in log t inside a shrinking bracket, to rounding: the log-SNR falls monotonically."""
        target = to_tensor(lam)
        places, values = _brackets(self)
        i = torch.searchsorted(values, -target).clamp(1, len(places) - 1)
        low, high = places[i - 1], places[i]
        share = (-target - values[i - 1]) / (values[i] - values[i - 1]).clamp(min=1e-300)
        middle = low + share.clamp(0.0, 1.0) * (high - low)
        for _ in range(100):
            value, rate = self._log_snr_and_rate(middle.exp())
            above = value > target
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
            step = middle - (value - target) / (rate * middle.exp())
            step = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
            moved, middle = (step - middle).abs(), step
            if not bool((moved > 4e-16 * middle.abs().clamp(min=1.0)).any()):
                break
        return like(middle.exp(), lam)

    def data_from_noise(self, t: Time) -> tuple[Coefficient, Coefficient]:
        """Through the velocity's score, the part a hybrid-score network learns; s = -R^-T eps."""
        p, q = self.data_from_score(t)
        return p, -1.0 * (q * Block(torch.linalg.inv(self.R(t).values).mT))

    def data_from_score(self, t: Time) -> tuple[Coefficient, Coefficient]:
        """x0 = (e_v^T Sigma^-1 z + s_v) / (e_v^T Sigma^-1 M): from the velocity component s_v alone."""
        precision = torch.linalg.inv(self._sigma(to_tensor(t)))[..., 1:, :]
        scale = 1 / (precision @ self.M(t).values)
        unit = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
        return Block(scale * precision), Block(scale * unit)

    def to_data(self, z: Tensor) -> Tensor:
        return z[:, 0]

    def state_shape(self, data_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (2, *data_shape)

    def data_shape(self, state_shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(state_shape[1:])

    def _psi(self, t: Tensor) -> Tensor:
        tau, k = self.beta * t, 2 / self.Gamma
        decay = (-k * tau).exp()
        return decay[..., None, None] * matrix(1 + k * tau, k * k * tau, -tau, 1 - k * tau)

    def _sigma(self, t: Tensor) -> Tensor:
        x = 4 / self.Gamma * self.beta * t  # 2 kappa tau
        p3, fall = cast(Tensor, _Gamma3.apply(x)), (-x).exp()
        p2 = p3 + x * x / 2 * fall  # P(n, x) = P(n + 1, x) + x^n e^-x / n!, a sum of positive terms
        p1 = p2 + x * fall
        xv = self.Gamma / 4 * x * x * fall
        noise = matrix(p3, xv, xv, self.Gamma**2 / 2 * (p1 - p2 + p3 / 2))
        psi = self._psi(t)
        start = torch.tensor([self.offset, self.gamma * self.mass + self.offset], dtype=torch.float64)
        return noise + (psi * start) @ psi.mT

    def _log_snr_and_rate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Log-SNR and its time derivative -1/2 |G^T Sigma^-1 M|^2 / (M^T Sigma^-1 M)."""
        m, s = self._psi(t)[..., 0], self._sigma(t)
        a, b, d = s[..., 0, 0], s[..., 0, 1], s[..., 1, 1]
        square = d * m[..., 0] ** 2 - 2 * b * m[..., 0] * m[..., 1] + a * m[..., 1] ** 2
        velocity = a * m[..., 1] - b * m[..., 0]
        return 0.5 * (square / _det(s)).log(), -self.Gamma * self.beta * velocity**2 / (_det(s) * square)

    def _theta(self, t: Tensor) -> Tensor:
        """The angle from t to t = 1 (a constant rotation is free): its polynomial on the panel that t lies on."""
        edges, series = _angle(self)
        w = t.sqrt()
        i = (torch.searchsorted(edges, w, right=True) - 1).clamp(0, len(edges) - 2)
        return series_at(series[i], 2 * (w - edges[i]) / (edges[i + 1] - edges[i]) - 1)

    def _angle_rate(self, w: Tensor) -> Tensor:
        """The rate of the angle in w = sqrt(t), in which it is smooth down to t = 0."""
        s = self._sigma(w * w)
        return self.beta / self.mass * _det(s).clamp(min=0).sqrt() / s[..., 0, 0] * 2 * w


@lru_cache(maxsize=8)
def _angle(process: CLD) -> tuple[Tensor, Tensor]:
    """Panels of sqrt(t), and on each the Chebyshev series of the angle from t = 1.

    The panels double, because that is the scale on which the rate changes.
    """
    with torch.inference_mode(False):  # kept between runs, differentiable ones too
        powers = 2.0 ** torch.arange(_LOWEST, _HIGHEST + 1, dtype=torch.float64)
        edges = torch.cat([torch.zeros(1, dtype=torch.float64), powers])
        half = edges.diff()[:, None] / 2
        rate = process._angle_rate(edges[:-1, None] + half * (1 + chebyshev(_DEGREE)))
        return edges, antiderivative(half * rate, 1 - _LOWEST)  # zero at t = 1


@lru_cache(maxsize=8)
def _brackets(process: CLD) -> tuple[Tensor, Tensor]:
    """Places in log t, and minus the log-SNR there, between which `inverse_log_snr` begins."""
    with torch.inference_mode(False):
        places = torch.linspace(math.log(1e-12), math.log(4 * process.t_max), 512, dtype=torch.float64)
        return places, -process._log_snr_and_rate(places.exp())[0].cummin(0).values


class _Gamma3(torch.autograd.Function):
    """P(3, x), the regularised lower incomplete gamma function, in forward differentiation too."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.special.gammainc(torch.full_like(x, 3.0), x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * _Gamma3._rate(*ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0] * _Gamma3._rate(*ctx.saved_tensors)

    @staticmethod
    def _rate(x: Tensor) -> Tensor:
        return x * x / 2 * (-x).exp()


def _det(s: Tensor) -> Tensor:
    return s[..., 0, 0] * s[..., 1, 1] - s[..., 0, 1] ** 2
