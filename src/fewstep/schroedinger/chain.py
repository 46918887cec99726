r"""Chains of learned drifts as tables, and what mean matching learns them from.

$$ x_{k+1} = x_k + w_k\, b(x_k, t_k) + \sqrt{v_k}\, \xi_k $$

`b` is the head "drift" of a denoiser. Times are the share of the way that is left, from 1 to 0 in both directions, on
the process `Flow`, which gives them and nothing else. In diffusion Schroedinger bridges w = 1 and v = 2 gamma_k, and
with F(x) = x + b the other direction's mean at x_{k+1} is regressed on

$$ x_{k+1} + F_k(x_k) - F_k(x_{k+1}). $$

Published code is late by one step: it trains the other direction at x_{k+1} with the time that is left behind it,
T - tau_k, tau_k = sum_{j <= k} gamma_j, and walks it from x_N with gamma_N, not 0, and so on. Here a step is told the
interval that it crosses, the same for both directions.

References: De Bortoli et al., Diffusion Schrodinger bridge, 2021, algorithm 1 and proposition 3,
https://arxiv.org/abs/2106.01357.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.files import save_tensors
from fewstep.loop import sample
from fewstep.nets import MLP
from fewstep.noise import Noise
from fewstep.process import Flow
from fewstep.process.base import Time, to_tensor
from fewstep.saved import read_made
from fewstep.schroedinger import fbsde
from fewstep.tableau import Tableau
from fewstep.tableau.writer import Writer
from fewstep.words import pick

__all__ = ["Drift", "NoiseChain", "Pair", "Step", "gammas", "load", "table"]

Step = Callable[[Tensor, int], Tensor]  # the mean of the next state, of the state and the number of the step
DIRECTIONS = ("backward", "forward")


def gammas(steps: int, low: float, high: float) -> Tensor:
    """Half the variances of the steps: a line from `low` to `high`, and its mirror."""
    half = torch.linspace(low, high, (steps + 1) // 2, dtype=torch.float64)
    return torch.cat([half, half[: steps // 2].flip(0)])


@dataclass(frozen=True, eq=False)
class Drift(Denoiser):
    """A drift b(x, t) as the head "drift"; it knows no data: its x0 is the state."""

    call: Callable[[Tensor, Time], Tensor]

    heads = ("drift",)  # type: ignore[assignment]

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Tensor]:  # noqa: ARG002
        return (lambda z: self.call(z, t)) if output == "drift" else (lambda z: z)


def table(weights: Sequence[float], variances: Sequence[float], *, noisy_end: bool = False) -> Tableau:
    """The chain of steps x + w b + sqrt(v) xi; the last step adds no noise unless `noisy_end`."""
    n = len(weights)
    w = Writer(Flow(), torch.arange(n, -1, -1, dtype=torch.float64) / n)
    z = w.start
    for k, (t, s) in enumerate(w.steps):
        w.call(z, t)
        form = z + float(weights[k]) * w.head(z, "drift")
        if k + 1 < n or noisy_end:
            form = form + math.sqrt(float(variances[k])) * w.fresh_noise(t, s, "walk")
        z = w.row(form, s)
    return w.table(None)


@dataclass(frozen=True)
class NoiseChain:
    """The noise of a chain: half the variance of each step, from the data on."""

    gammas: tuple[float, ...]

    def path(self, step: Step, x: Tensor, noise: Callable[[int], Tensor]) -> Tensor:
        """The states (N + 1, batch, *shape) of a walk from x."""
        states = [x]
        for k, gamma in enumerate(self.gammas):
            states.append(step(states[-1], k) + math.sqrt(2 * gamma) * noise(k))
        return torch.stack(states)

    @staticmethod
    def targets(step: Step, path: Tensor) -> Tensor:
        """What the other direction's drift is regressed on at path[1:]: F_k(x_k) - F_k(x_{k+1})."""
        return torch.stack([step(x, k) - step(y, k) for k, (x, y) in enumerate(zip(path[:-1], path[1:], strict=True))])

    def published_times(self) -> Tensor:
        """The times at which published code trains the other direction at path[1:]: T - tau_k."""
        tau = torch.tensor(self.gammas, dtype=torch.float64).cumsum(0)
        return tau[-1] - tau

    @property
    def turned(self) -> NoiseChain:
        """The same chain from its other end."""
        return NoiseChain(self.gammas[::-1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """The two drifts that were learned, "backward" from the far end to the data and "forward" from the data.

    Args:
        nets: by direction, called as net(x, t), t the share of the way that is left.
        weights, variances: of the forward steps, from the data on.
        beta: where the drifts are -beta/2 x + beta^(1/2) Z and beta/2 x + beta^(1/2) Z^, the networks' (SB-FBSDE).
    """

    nets: dict[str, Any]
    weights: tuple[float, ...]
    variances: tuple[float, ...]
    beta: float | None = None

    def drift(self, direction: str) -> Drift:
        """The denoiser of a direction."""
        beta, turn = self.beta or 0.0, -1 if direction == "forward" else 1
        gain = math.sqrt(beta) if self.beta else 1.0
        return Drift(lambda z, t: turn * beta / 2 * z + gain * self.out(direction, z, to_tensor(t).expand(len(z))))

    def out(self, direction: str, x: Tensor, left: Tensor) -> Tensor:
        """What the network of a direction returns where shares (batch,) of its way are left."""
        return pick(self.nets, direction, "direction")(x.float(), left.float()).to(x.dtype)

    def bound(self, x: Tensor, *, seed: int = 0) -> Tensor:
        """A bound from below on log p of data x (batch, *shape), by one walk each; of SB-FBSDE alone (batch,)."""
        if self.beta is None:
            raise ValueError("got a bridge of matching, which knows no likelihood: give one of fbsde")
        size, n, noise = x[0].numel(), len(self.variances), Noise(seed)
        g, loss, h = torch.tensor(math.sqrt(self.beta)), x.new_zeros(len(x)), self.weights[0]
        forward, backward = (lambda y, u, way=way: self.out(way, y, u) for way in ("forward", "backward"))
        for k in range(n):
            u = x.new_full((len(x),), k / n)
            z = lambda y, v: forward(y, 1 - v)  # noqa: E731
            loss = loss + h * (fbsde.joint(z, backward, x, u, g).detach() + self.beta / 2 * size)
            normal = noise.normal("bound", k, tuple(x.shape), dtype=x.dtype)
            with torch.no_grad():
                x = fbsde.moved(x, -self.beta / 2 * x, z(x, u), float(g), h, normal)
        return -loss - (x**2).flatten(1).sum(1) / 2 - size / 2 * math.log(2 * math.pi)

    def table(self, direction: str = "backward", *, noisy_end: bool = False) -> Tableau:
        """The table of a direction."""
        turn = -1 if direction == "backward" else 1
        return table(self.weights[::turn], self.variances[::turn], noisy_end=noisy_end)

    def draw(self, x: Tensor, direction: str = "backward", *, seed: int = 0, noisy_end: bool = False) -> Tensor:
        """The ends of walks from x."""
        made = self.table(direction, noisy_end=noisy_end)
        return sample(self.drift(direction), made.process, solver=made, x=x, seed=seed, progress=False)

    def save(self, path: str | Path, **facts: Any) -> Path:
        """Writes both networks and the steps as safetensors."""
        tensors = {f"{way}/{name}": v for way, net in self.nets.items() for name, v in net.state_dict().items()}
        about = {"nets": {way: net.config for way, net in self.nets.items()}, "weights": self.weights,
                 "variances": self.variances, "beta": self.beta, **facts}  # fmt: skip
        save_tensors(Path(path), tensors, {"fewstep": json.dumps(about)}, sealed=True)
        return Path(path)


def load(path: str | Path) -> Pair:
    """The pair of a file that `Pair.save` wrote, or of a run's folder."""

    def made(about: Any, tensors: dict[str, Tensor]) -> Pair:
        nets = {}
        for way, config in about["nets"].items():
            nets[way] = MLP(**config).requires_grad_(False)
            nets[way].load_state_dict({k.partition("/")[2]: v for k, v in tensors.items() if k.startswith(f"{way}/")})
        steps = {name: tuple(about[name]) for name in ("weights", "variances")}
        return Pair(nets=nets, **steps, beta=about["beta"])

    return read_made(path, "bridge", "Pair.save", made)
