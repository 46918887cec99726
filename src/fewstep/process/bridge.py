r"""Bridges: processes between data x0 and another end y that is given with each sample, as a corrupted picture.

$$ z_t = m_t x_0 + n_t y + R_t \epsilon, \qquad u = z_t - n_t y = m_t x_0 + R_t \epsilon $$

So u is an ordinary scalar process, alpha = m and sigma = R, and all that is known of those holds of it: a `Bridge` is
one more function, n. F = m'/m and g^2 = 2 R (R' - F R) come out as Doob's drift and the noise of the process that was
pinned. Solvers, tables and paths walk u; people see z (`fewstep.bridged`). Given y, predictions depend on u/R and the
log-SNR alone: bridges of equal log-SNR are one sampler in two coordinates.

**A pinned end** (m = R = 0 at `end`) is y itself, and a grid may start there: its first row is the boot, one call at
the end and fresh noise,

$$ u_1 = m_1 D(y, T) + R_1 \xi $$

and any solver goes on from u_1. The law it starts from is off by about e^(2 lambda_1) Var(x0 | y); `boot` says where
u_1 lies. A bridge that is not pinned starts at (m + n) y + R xi, as if y were the data of what is left of it.

**Without noise** (InDI at noise 0, I2SB's `ot_ode`, a paired flow) y is the noise: `Flow`, sampled from x=y.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewstep.process.base import Process, Time, like, once, to_tensor
from fewstep.process.operator import apply
from fewstep.process.scalar import ScalarProcess

__all__ = ["Bridge", "boots"]


@dataclass(frozen=True, kw_only=True)
class Bridge(ScalarProcess):
    """A scalar process of u, and n. To write one, give alpha (m), sigma (R), n, log-SNR, its inverse, and `end`."""

    t_max: float = math.nan  # stands for the end
    t_min: float = 0.0
    default_grid: ClassVar[str] = "bridge"
    positive: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name in self.positive:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"got {name}={getattr(self, name)} for {type(self).__name__}: give a finite number above 0"
                    + ("; a bridge without noise is fewstep.Flow, started from x=y" if name == "noise" else "")
                )
        if math.isnan(self.t_max):
            object.__setattr__(self, "t_max", float(self.end))
        super().__post_init__()

    @property
    @abstractmethod
    def end(self) -> float:
        """The time of y, where n is largest."""

    @property
    def pinned(self) -> bool:
        """Whether the state at `end` is y alone."""
        return True

    @abstractmethod
    def _n(self, t: Tensor) -> Tensor: ...

    def n(self, t: Time) -> Time:
        """The weight of y."""
        return once(self, "n", lambda t: like(self._n(to_tensor(t)), t), t)

    def boot(self, steps: int) -> float:
        """The log-SNR to which the first call of so many leads; chosen with `benchmarks/bridges.py`.

        For data of a deviation near 0.5 given y; the law of u there is off by about e^(2 lambda) Var(x0 | y).
        """
        if steps <= 3:
            return 0.6 if steps < 3 else 0.0
        return -1.0 - min(max(0.0, steps - 10) / 15, 2.0)

    def diffuse(self, x0: Tensor, t: Time, eps: Tensor, y: Tensor | None = None) -> Tensor:
        """z_t for data, noise and y; u_t without y."""
        return self.seen(super().diffuse(x0, t, eps), t, y)

    def prior(self, eps: Tensor, t: Time | None = None, y: Tensor | None = None) -> Tensor:
        """The start with y in the place of data, (m + n) y + R eps, at t_max or a time; without y R eps."""
        t = self.t_max if t is None else t
        return super().prior(eps, t) if y is None else self.diffuse(y.to(eps).expand_as(eps), t, eps, y)

    def seen(self, u: Tensor, t: Time, y: Tensor | None) -> Tensor:
        """Z = u + n y."""
        return u if y is None else u + apply(self.n(t), y.to(u))

    @property
    def domain(self) -> tuple[float, float]:
        return (0.0, self.end)


def boots(process: Process, t: float) -> bool:
    """Whether a grid that starts at t begins with the boot row: at the pinned end of a bridge."""
    return isinstance(process, Bridge) and process.pinned and t == process.end
