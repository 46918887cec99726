r"""A denoiser with a destination: g(z, t, s), the average of D along the ODE from t to s.

$$ g = (S_s - S_t)^{-1} \int_t^s D\, dS, \quad S = R^{-1} M, \qquad
   z_s = R_s R_t^{-1} z + (M_s - R_s R_t^{-1} M_t)\, g $$

Time runs from noise to data: s is nearer to the data than t. s = t is the plain denoiser, s at the data the consistency
function, s the next point of a grid the progressive student; a network that is told s has them all. One DDIM row, and
so one table, samples every one of them exactly: what such a network learns is the row's prediction.

A network of one time stands for the destination that it was trained for. A network of two is called as net(x, t, s),
both in its time convention (`fewstep.denoiser.TIMES`), s no nearer to the data than the process's `t_min`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.base import Denoiser
from fewstep.denoiser.network import TIMES, as_state
from fewstep.process.base import Process, Time, to_tensor
from fewstep.process.operator import Coefficient, apply, inverse
from fewstep.process.predict import preconditioning

__all__ = ["Student"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Student(Denoiser):
    """A network read as x0 = p z + q F(c_in z, t[, s]); see the module's docstring.

    Args:
        net: called as net(x, t), or net(x, t, s) with `two_times`; conditions are bound by `functools.partial`.
        process, predicts, sigma_data: as in `fewstep.wrap`.
        time: a name in `TIMES`, or a function of times.
        two_times: whether the network is told the destination.
        grid: the times that it was trained on, where it is asked for no destination: the next of them is meant.
        dtype: of the network; None: that of the state.
    """

    net: Callable[..., Any]
    process: Process
    predicts: str = "data"
    time: str | Callable[[Tensor], Tensor] = "t"
    sigma_data: float = 0.5
    two_times: bool = False
    grid: tuple[float, ...] = ()
    dtype: torch.dtype | None = None
    weights: str | None = None
    heads = ()  # type: ignore[assignment]

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Tensor]:
        """The average on the way from t to `to`, or the network's raw output."""
        if output not in ("x0", self.predicts):
            return self.beside(output, t)
        to = self._next(t) if to is None else to
        if output == "x0":
            return lambda z: self.read(z, t, self.raw(z, t, to))
        return lambda z: self.raw(z, t, to)

    def __call__(self, z: Tensor, t: Time, to: Time | None = None) -> Tensor:
        """The average on the way from t to `to` for states z, in data space."""
        return self.at(t, to=to)(z)

    def raw(self, z: Tensor, t: Time, to: Time) -> Tensor:
        """The network's output F, in the dtype of the state."""
        dtype = self.dtype or z.dtype
        x = apply(preconditioning(self.predicts, self.process, t, self.sigma_data)[0], z).to(dtype)
        times = [self._label(v, z, dtype) for v in ((t, to) if self.two_times else (t,))]
        out = self.net(x, *times)
        out = out[0] if isinstance(out, tuple) else getattr(out, "sample", out)
        return as_state(out, z)

    def read(self, z: Tensor, t: Time, raw: Tensor) -> Tensor:
        """x0 = p z + q F, in data space."""
        _, p, q = preconditioning(self.predicts, self.process, t, self.sigma_data)
        return self.process.from_coordinates(apply(p, z) + apply(q, raw))

    def unread(self, z: Tensor, t: Time, x0: Tensor) -> Tensor:
        """The F that is read as x0."""
        _, p, q = preconditioning(self.predicts, self.process, t, self.sigma_data)
        return apply(inverse(q), self.process.coordinates(x0) - apply(p, z))

    def output(self, t: Time) -> Coefficient:
        """Q, by which an error of F is one of x0."""
        return preconditioning(self.predicts, self.process, t, self.sigma_data)[2]

    def _label(self, t: Time, z: Tensor, dtype: torch.dtype) -> Tensor:
        times = to_tensor(t).expand(len(z)) if not isinstance(t, Tensor) or t.ndim == 0 else t
        if callable(self.time):
            label = self.time(times)
        else:
            label = TIMES[self.time](self.process, times.clamp(min=max(self.process.t_min, 1e-6)))
        return label.to(z.device, torch.float64 if dtype == torch.float64 else torch.float32)

    def _next(self, t: Time) -> Time:
        """The next time of the grid behind t, or t."""
        if not self.grid or not self.two_times:
            return t
        times = to_tensor(t)
        grid = torch.tensor(self.grid, dtype=torch.float64)
        after = (grid[None] < times.reshape(-1, 1) - 1e-12).to(torch.int8).argmax(1)
        found = grid[after]
        return found if times.ndim else float(found)
