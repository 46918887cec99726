r"""A learned field on a manifold: the score at noise s, or a flow's velocity at time t; samples and likelihoods of it.

$$ score: \; b_s = P_x F(x, u) / \sigma_s, \quad \frac{dx}{d\log s} = -\tfrac s2 b_s, \qquad
   flow: \; \frac{dx}{dt} = -P_x F(x, t) $$

with sigma_s^2 = (1 - e^{-gap s})/gap, the size of a score's inverse. Time runs from the uniform law (s = `horizon`,
t = 1) to the data. Along either ODE log p falls by the divergence, and at the start the law is uniform.

References: De Bortoli et al. 2022, https://arxiv.org/abs/2202.02763; Chen, Lipman, Flow matching on general geometries,
2023, https://arxiv.org/abs/2302.03660.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.files import save_tensors
from fewstep.manifold.base import Manifold, column
from fewstep.manifold.rotations import Rotations
from fewstep.manifold.sphere import Sphere
from fewstep.manifold.torus import Torus
from fewstep.manifold.walk import flow, langevin, step
from fewstep.nets import Waves
from fewstep.noise import Noise
from fewstep.saved import read_made
from fewstep.words import Typed, inside, pick, whole

__all__ = ["KINDS", "Field", "load"]

KINDS = ("score", "flow")


@dataclass(frozen=True, kw_only=True, eq=False)
class Field(Typed):
    """A network on a manifold; see the module's docstring.

    Args:
        manifold, net: what it is on; called as net(features, u), u in [0, 1] from the data to the uniform law.
        kind: "score" or "flow".
        low: the least noise s of a score.
    """

    manifold: Manifold
    net: Any
    kind: str = "score"
    low: float = 3e-4

    def __post_init__(self) -> None:
        pick(dict.fromkeys(KINDS), self.kind, "kind of field")
        inside("low", self.low, f"(0, {self.manifold.horizon:.3g})")

    @property
    def ends(self) -> tuple[float, float]:
        """The clock of its ODE at the data and at the uniform law: log s, or t."""
        return (0.0, 1.0) if self.kind == "flow" else (math.log(self.low), math.log(self.manifold.horizon))

    def spread(self, s: Tensor) -> Tensor:
        """Sigma_s."""
        return (-torch.expm1(-self.manifold.gap * s) / self.manifold.gap).sqrt()

    def raw(self, x: Tensor, clock: Tensor) -> Tensor:
        """P_x F at points and clocks (batch,)."""
        low, high = self.ends
        out = self.net(self.manifold.features(x).float(), ((clock - low) / (high - low)).float())
        return self.manifold.project(x, out.to(x.dtype).reshape(x.shape))

    def score(self, x: Tensor, s: Tensor) -> Tensor:
        """The gradient of log p_s at points."""
        return self.raw(x, s.log()) / column(self.spread(s), x)

    def velocity(self, x: Tensor, clock: Tensor) -> Tensor:
        """dx/d clock of the ODE that carries the data's law to the uniform one."""
        if self.kind == "flow":
            return -self.raw(x, clock)
        s = clock.exp()
        return -column(s / 2, x) * self.score(x, s)

    def draw(self, count: int, *, steps: int = 100, seed: int = 0, how: str = "walk", corrector: float = 0.0) -> Tensor:
        """Points (count, *shape), float64.

        Args:
            steps: of the run.
            seed: sample i is a function of (seed, i).
            how: "walk", the reverse of Brownian motion by geodesic steps, or "ode", a flow's only way.
            corrector: the size, in s, of a Langevin step after each step of a walk.
        """
        whole("count", count)
        whole("steps", steps)
        inside("corrector", corrector, "[0, inf)")
        pick(dict.fromkeys(("walk", "ode")), how, "way to draw")
        noise, m, walks = Noise(seed), self.manifold, how == "walk" and self.kind == "score"
        if corrector and not walks:
            raise ValueError(f"got corrector={corrector} where no walk is: leave it out, or draw a score by a walk")
        normal = lambda k: noise.normal("manifold", k, (count, *m.shape), dtype=torch.float64)  # noqa: E731
        x, (low, high) = m.uniform(normal(0)), self.ends
        times = torch.linspace(high, low, steps + 1, dtype=torch.float64)
        with torch.no_grad():
            if not walks:
                return flow(m, x, self.velocity, times)[0]
            for k, (t, u) in enumerate(zip(times[:-1].exp(), times[1:].exp(), strict=True), 1):
                last = k == steps
                x = step(m, x, self.score(x, t.expand(count)), float(t - u), None if last else normal(2 * k - 1))
                if corrector and not last:
                    x = langevin(m, x, self.score(x, u.expand(count)), corrector * float(u), normal(2 * k))
        return x

    def log_prob(self, x: Tensor, *, steps: int = 40) -> Tensor:
        """The logarithm of the density at points (batch, *shape), by the manifold's volume (batch,)."""
        x, (low, high) = self.manifold.points(x), self.ends
        times = torch.linspace(low, high, whole("steps", steps) + 1, dtype=torch.float64)
        with torch.no_grad():
            return flow(self.manifold, x, self.velocity, times, spread=True)[1] - math.log(self.manifold.volume)

    def save(self, path: str | Path, **facts: Any) -> Path:
        """Writes the field as safetensors."""
        about = {"manifold": {"name": type(self.manifold).__name__, **asdict(self.manifold)},  # type: ignore[call-overload]
                 "net": self.net.config, "kind": self.kind, "low": self.low, **facts}  # fmt: skip
        save_tensors(Path(path), self.net.state_dict(), {"fewstep": json.dumps(about)}, sealed=True)
        return Path(path)


def load(path: str | Path) -> Field:
    """The field of a file that `Field.save` wrote, or of a run's folder."""

    def made(about: Any, tensors: dict[str, Tensor]) -> Field:
        known = {"Sphere": Sphere, "Torus": Torus, "Rotations": Rotations}
        name, options = about["manifold"].pop("name"), about["manifold"]
        net = Waves(**about["net"])
        net.load_state_dict(tensors)
        return Field(manifold=known[name](**options), net=net.eval(), kind=about["kind"], low=about["low"])

    return read_made(path, "field", "Field.save", made)
