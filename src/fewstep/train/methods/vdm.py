r"""Variational diffusion: the bound on the likelihood, with a learned schedule gamma(u) = -log SNR.

$$ L = \tfrac12 \gamma'(u) |\epsilon - \hat\epsilon(z_\gamma, \gamma)|^2 + KL(q(z_1 | x) \| N(0, I))
   - \log p(x | z_0) $$

What lies between the ends changes the variance of L alone: so the ends learn by the bound and the inside by E[L^2]. Its
optimum has gamma' proportional to 1/sqrt(M2(gamma)), M2 = E|eps - eps_hat|^4, which `flattest` works out of draws.

References: Kingma, Salimans, Poole, Ho, 2021, eq. 11-19 and appendix, https://arxiv.org/abs/2107.00630 (their time runs
from data, 0, to noise, 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fewstep.process import Process
from fewstep.train.methods.base import Method, Setting
from fewstep.train.methods.heads import noise_of
from fewstep.train.objective import Objective, Stage
from fewstep.train.pairs import Draw, end
from fewstep.train.player import Player, Players, Reads

__all__ = [
    "Bound",
    "Monotone",
    "Variational",
    "ancestral",
    "diffusion",
    "finite",
    "flattest",
    "prior",
    "reconstruction",
]


class Monotone(nn.Module):
    """|w1| u + b1 + sum |w3| (2 sigmoid(|w2| 2 (u - 1/2) + b2) - 1) / n; or pinned to `low` and `high`.

    Pinned, w1 is 1 and b1 nothing, and the whole is moved and scaled to its ends, so that the steps, which are spread
    over u, weigh as much as the line: beside a line of size high - low they would need as many updates more.
    """

    def __init__(self, count: int = 256, low: float | None = None, high: float = 5.0) -> None:
        super().__init__()
        self.ends = None if low is None else (low, high)
        self.w2, self.b2 = nn.Parameter(torch.randn(count)), nn.Parameter(torch.zeros(count))
        self.w3 = nn.Parameter(0.1 * torch.randn(count))
        if low is None:
            self.w1, self.b1 = nn.Parameter(torch.tensor(18.3)), nn.Parameter(torch.tensor(-13.3))
            return
        self.w2.data = 6 + self.w2.data.abs()
        self.b2.data = -2 * self.w2.data * (torch.linspace(0, 1, count) - 0.5)

    def forward(self, u: Tensor) -> Tensor:
        """Gamma at shares u (B,)."""
        if self.ends is None:
            return self.w1.abs() * u + self.b1 + self._steps(u)
        zero, one = (v + self._steps(u.new_full((1,), v)) for v in (0.0, 1.0))
        return self.ends[0] + (self.ends[1] - self.ends[0]) * (u + self._steps(u) - zero) / (one - zero)

    def _steps(self, u: Tensor) -> Tensor:
        h = torch.sigmoid(2 * (u[:, None] - 0.5) * self.w2.abs() + self.b2)
        return linear(2 * (h - 0.5), self.w3.abs()[None])[:, 0] / len(self.w3)


def diffusion(rate: Tensor, off: Tensor) -> Tensor:
    """1/2 gamma'(u) |eps - eps_hat|^2 in nats, summed over a sample: (B,)."""
    return 0.5 * rate * (off**2).flatten(1).sum(1)


def finite(gamma_t: Tensor, gamma_s: Tensor, off: Tensor, steps: int) -> Tensor:
    """The same of T steps: T/2 expm1(gamma_t - gamma_s) |eps - eps_hat|^2."""
    return 0.5 * steps * torch.expm1(gamma_t - gamma_s) * (off**2).flatten(1).sum(1)


def prior(x0: Tensor, gamma_1: Tensor) -> Tensor:
    """KL(q(z_1 | x) || N(0, I)) in nats: (B,)."""
    v = torch.sigmoid(gamma_1)
    return 0.5 * ((1 - v) * x0**2 + v - v.log() - 1).flatten(1).sum(1)


def reconstruction(x: Tensor, levels: Tensor, z: Tensor, gamma_0: Tensor) -> Tensor:
    """-log p(x | z_0) in nats, x indices of `levels`; z is z_0 / alpha_0."""
    logits = -0.5 * torch.exp(-gamma_0) * (z[..., None] - levels) ** 2
    return -logits.log_softmax(-1).gather(-1, x[..., None])[..., 0].flatten(1).sum(1)


def ancestral(z: Tensor, eps_hat: Tensor, gamma_t: Tensor, gamma_s: Tensor, noise: Tensor) -> Tensor:
    """A step of the reverse chain from gamma_t to the smaller gamma_s."""
    c = -torch.expm1(gamma_s - gamma_t)
    keep = torch.sqrt(torch.sigmoid(-gamma_s) / torch.sigmoid(-gamma_t))
    mean = keep * (z - torch.sqrt(torch.sigmoid(gamma_t)) * c * eps_hat)
    return mean + torch.sqrt(torch.sigmoid(gamma_s) * c) * noise


def flattest(gammas: Tensor, fourth: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """(gamma, gamma') at shares u where gamma' is proportional to 1/sqrt(M2): M2 `fourth` at ascending `gammas`."""
    density = fourth.clamp(min=1e-12).sqrt()
    place = torch.cat([torch.zeros(1).to(gammas), torch.cumulative_trapezoid(density, gammas)])
    whole = place[-1]
    i = torch.searchsorted(place, u * whole).clamp(1, len(gammas) - 1)
    share = (u * whole - place[i - 1]) / (place[i] - place[i - 1])
    gamma = gammas[i - 1] + share * (gammas[i] - gammas[i - 1])
    return gamma, whole / (density[i - 1] + share * (density[i] - density[i - 1]))


@dataclass(frozen=True, kw_only=True)
class Bound(Objective):
    """The network by L, the schedule by L^2 over its mean squared."""

    process: Process

    players: ClassVar[tuple[str, ...]] = ("net", "schedule")

    def losses(self, at: Players, draw: Draw) -> Iterator[Mapping[str, Tensor]]:
        p, x0 = self.process, draw.batch.x0
        net, schedule = at["net"].at(draw.batch), at["schedule"].net
        u = draw.uniform("u").float().requires_grad_()
        gamma = schedule(u)
        (rate,) = torch.autograd.grad(gamma.sum(), u, create_graph=True)
        t = p.inverse_log_snr(-gamma.detach().double() / 2)
        eps = draw.normal("eps", x0)
        z = p.diffuse(x0, t, eps)
        off = (eps - noise_of(p, net, z, t)) if net.predicts != "noise" else eps - net.raw(z, t, t)
        loss = diffusion(rate.double(), off)
        size = (off.detach() ** 2).flatten(1).sum(1)
        found = diffusion(rate.double(), off.detach())
        slope = _slope(size, gamma.detach())
        moved = found + 0.5 * rate.double() * slope * (gamma - gamma.detach()).double()
        yield {"net": loss / x0[0].numel(), "schedule": (moved / found.mean().detach()) ** 2}


def _slope(size: Tensor, gamma: Tensor) -> Tensor:
    """The slope of the squared error over gamma, by the batch's neighbours."""
    order = gamma.argsort()
    x, y = gamma[order].double(), size[order]
    w = min(32, len(x) // 4) or 1
    there, behind = (torch.arange(len(x)) + w).clamp(max=len(x) - 1), (torch.arange(len(x)) - w).clamp(min=0)
    level = torch.cat([torch.zeros(1).double(), y.cumsum(0)])
    mean = (level[there + 1] - level[behind]) / (there + 1 - behind)
    slope = (mean[there] - mean[behind]) / (x[there] - x[behind]).clamp(min=1e-6)
    return torch.empty_like(slope).index_copy(0, order, slope)


@dataclass(frozen=True, kw_only=True)
class Variational(Method):
    """The bound with a schedule pinned to the process's log-SNR at both ends, whose inside is learned."""

    predicts: ClassVar[str | None] = "noise"

    def stages(self, on: Setting) -> list[Stage]:
        return [Stage(objective=Bound(process=on.process))]

    def others(self, on: Setting, net: nn.Module, reads: Reads) -> Mapping[str, Player]:  # noqa: ARG002
        p = on.process
        low, high = (-2 * float(p.log_snr(t)) for t in (max(p.t_min, end(p) + 1e-3), p.t_max))
        if not math.isfinite(high):
            raise ValueError(f"got {p}, whose log-SNR is infinite at t_max: start where alpha > 0")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return {"schedule": Player(Monotone(64, low, high))}
