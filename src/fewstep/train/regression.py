r"""Regression: the objective of two thirds of all methods, by its fields.

$$ E\; w(t)\; d\big(g_\theta(z_t, t, s) - g^*\big) $$

(x0, eps) come from the coupling, (t, u, s) from the law, z_t = M_t x0 + R_t eps, g* from the target. The weight is that
of an error of x0; None is that of the network's own output, |q|^-2 where x0 = p z + q F, which is finite everywhere.

| weight      | of |x0_hat - x0|^2            | it is the squared error of            |
|-------------|-------------------------------|---------------------------------------|
| `uniform`   | 1                             | data                                  |
| `snr`       | e^{2 lambda}                  | noise                                 |
| `1+snr`     | 1 + e^{2 lambda}              | v on variance-preserving processes    |
| `truncated` | max(e^{2 lambda}, 1)          | the worse of data and noise           |
| `min-snr`   | min(e^{2 lambda}, 5)          | (Hang et al. 2023)                    |
| `edm`       | e^{2 lambda} + 1/sigma_data^2 | EDM's F                               |
| `root`      | the root of that              | between data and EDM's F              |
| `flow`      | (1 + e^lambda)^2              | the flow's velocity                   |
| `score`     | alpha^2 / sigma^4             | the score                             |
| `likelihood`| -lambda' e^{2 lambda}         | a bound on the likelihood, t uniform  |
| `soft`      | M M^T, a mode at a time       | what the corruption leaves of data (Daras et al. 2022) |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.process import Process
from fewstep.process.base import derivative
from fewstep.process.operator import apply
from fewstep.train.objective import Objective
from fewstep.train.pairs import Coupling, Draw, Independent, Law, Normal, Times
from fewstep.train.player import Players, Student, Watch
from fewstep.train.target import Point, Target
from fewstep.words import pick

__all__ = ["DISTANCES", "WEIGHTS", "Regression", "Truth", "error", "span", "weigh"]

WEIGHTS: dict[str, Callable[[Process, Tensor, float], Tensor]] = {
    "uniform": lambda p, t, sd: torch.ones_like(t),
    "snr": lambda p, t, sd: torch.exp(2 * p.log_snr(t)),
    "1+snr": lambda p, t, sd: 1 + torch.exp(2 * p.log_snr(t)),
    "truncated": lambda p, t, sd: torch.exp(2 * p.log_snr(t)).clamp(min=1),
    "min-snr": lambda p, t, sd: torch.exp(2 * p.log_snr(t)).clamp(max=5),
    "edm": lambda p, t, sd: torch.exp(2 * p.log_snr(t)) + sd**-2,
    "root": lambda p, t, sd: (torch.exp(2 * p.log_snr(t)) + sd**-2).sqrt(),
    "flow": lambda p, t, sd: (1 + torch.exp(p.log_snr(t))) ** 2,
    "score": lambda p, t, sd: p.alpha(t) ** 2 / p.sigma(t) ** 4,  # type: ignore[attr-defined] - scalar processes
    "likelihood": lambda p, t, sd: -derivative(p.log_snr, t) * torch.exp(2 * p.log_snr(t)),
}

SMALL = 1e-16  # beside a squared norm, whose root has no gradient at 0


def _huber(e: Tensor, c: float) -> Tensor:
    return ((e * e).flatten(1).sum(1) + c * c).sqrt() - c


def _adaptive(e: Tensor, c: float) -> Tensor:
    squared = (e * e).flatten(1).sum(1)
    return squared / (squared.detach() + c)


DISTANCES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "l2": lambda e, c: (e * e).flatten(1).mean(1),
    "l1": lambda e, c: e.abs().flatten(1).mean(1),
    "huber": _huber,  # sqrt(|e|^2 + c^2) - c, over the whole of a sample
    "norm": lambda e, c: ((e * e).flatten(1).sum(1) + SMALL).sqrt(),
    "adaptive": _adaptive,  # |e|^2 / sg(|e|^2 + c): near 1 whatever happens
}


@dataclass(frozen=True)
class Truth(Target):
    """The data themselves."""

    def __call__(self, at: Players, point: Point) -> Tensor:  # noqa: ARG002
        return point.x0


@dataclass(frozen=True, kw_only=True)
class Regression(Objective):
    """See the module's docstring.

    Args:
        process: what is learned on.
        coupling, law, target: the parts.
        weight: a name in `WEIGHTS`, or None.
        distance, scale: a name in `DISTANCES` and its c.
        guidance: the network is told w, uniform on this range.
        span: weighed by 1 over the time from t to u, in units of rho = sigma/alpha (improved consistency, ECT).
    """

    process: Process
    coupling: Coupling = field(default_factory=Independent)
    law: Law = field(default_factory=Normal)
    target: Target = field(default_factory=Truth)
    weight: str | None = None
    distance: str = "l2"
    scale: float = 0.0
    guidance: tuple[float, float] | None = None
    span: bool = False

    players: ClassVar[tuple[str, ...]] = ("net",)

    def __post_init__(self) -> None:
        if self.weight not in (None, "soft"):
            pick(WEIGHTS, self.weight, "weight")
        pick(DISTANCES, self.distance, "distance")

    def losses(self, at: Players, draw: Draw) -> Iterator[Mapping[str, Tensor]]:
        point = self.point(draw)
        with torch.no_grad():
            goal = self.target(at, point)
        yield {"net": self.loss(at["net"].at(point.batch), point, goal, at.watch)}

    def point(self, draw: Draw) -> Point:
        """Where the network is asked in a step."""
        times = self.times(draw)
        x0, eps = self.coupling(draw, lambda x: x.new_empty(len(x), *self.process.state_shape(tuple(x.shape[1:]))))
        batch = draw.batch.told(**self.coupling.conditions(draw))
        if self.guidance is not None:
            low, high = self.guidance
            batch = batch.told(w=low + (high - low) * draw.uniform("w").to(x0))
        z = self.process.diffuse(x0, times.t, eps)
        return Point(self.process, batch, z, times.t, times.u, times.s, times.last, x0, eps)

    def times(self, draw: Draw) -> Times:
        """Those of a step."""
        return self.law(self.process, draw)

    def loss(self, student: Student, point: Point, goal: Tensor, watch: Watch | None = None) -> Tensor:
        """The weighted distance of every sample (B,); `watch` is told the log-SNR and the squared error of x0."""
        own = error(student, point.z, point.t, point.s, goal, own=True)
        e = own if self.weight is None else apply(student.output(point.t), own)
        if watch is not None:
            off = apply(student.output(point.t), own.detach())
            watch(torch.as_tensor(self.process.log_snr(point.t)), (off * off).flatten(1).mean(1))
        e = apply(self.process.M(point.t), e) if self.weight == "soft" else e
        loss = DISTANCES[self.distance](e, self.scale)
        if self.weight not in (None, "soft"):
            loss = loss * weigh(self.weight, self.process, point.t, student.sigma_data)
        if self.span:
            loss = loss / span(self.process, point.t, point.u)
        return loss


def span(process: Process, t: Tensor, u: Tensor) -> Tensor:
    """How far u is from t, in rho = sigma/alpha."""
    rho, rho_u = (torch.exp(-torch.as_tensor(process.log_snr(v))) for v in (t, u))
    return rho - rho_u


def weigh(name: str, process: Process, t: Tensor, sigma_data: float = 0.5) -> Tensor:
    """The weight of a squared error of x0 at times t."""
    return WEIGHTS[name](process, t, sigma_data)


def error(student: Student, z: Tensor, t: Tensor, s: Tensor, goal: Tensor, *, own: bool = False) -> Tensor:
    """What the student returns less what it is to, in the process's coordinates; or `own`, of its raw output."""
    e = student.raw(z, t, s) - student.unread(z, t, goal)
    return e if own else apply(student.output(t), e)
