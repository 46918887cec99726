r"""Restart sampling: at a low noise level go back up by fresh noise, and come down the ODE again, several times.

$$ z_{up} = \Psi z_{low} + (\Sigma_{up} - \Psi \Sigma_{low} \Psi^T)^{1/2} \xi, \qquad
   z_{low} = \text{ODE steps from } up \text{ to } low $$
"""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.process.clock import clock
from fewstep.process.operator import cholesky
from fewstep.solver.base import LAST, Promise, Solver
from fewstep.solver.ode.runge_kutta import METHODS, step
from fewstep.solver.sde.ancestral import added_noise
from fewstep.tableau.writer import Writer
from fewstep.words import among

__all__ = ["Restart"]


@dataclass(frozen=True, kw_only=True)
class Restart(Solver):
    r"""Restart: EDM's Heun down the grid, and in each interval `repeats` times up by noise and down again.

    An interval (low, high, repeats) names two places of the grid as fractions of its steps, counted from noise:
    (0.8, 0.6, 2) of 10 steps goes from row 8 back up to row 6, twice, and comes down over row 7. No interval starts at
    sigma = 0. Weak order that of the method; the calls are the method's, of the n steps and all that are taken again.
    The noise that goes up is drawn from a stream of its own, not the path. Where we differ: the paper gives levels
    t_min, t_max and new times between them.

    References: Xu, Deng, Cheng, Tian, Liu, Jaakkola, Restart sampling for improving generative processes, 2023,
    https://arxiv.org/abs/2306.14878; https://github.com/Newbeeer/diffusion_restart_sampling.
    """

    intervals: tuple[tuple[float, float, int], ...] = ((0.8, 0.6, 2),)
    method: str = "heun"

    def __post_init__(self) -> None:
        vars(self).update(intervals=tuple(map(tuple, self.intervals)))
        for low, high, repeats in self.intervals:
            if not 0 <= high < low <= 1 or repeats < 0 or repeats != int(repeats):
                raise ValueError(f"got the interval {low, high, repeats}: give 0 <= high < low <= 1, whole repeats")
        among(self, method=METHODS)

    @property
    def promise(self) -> Promise:
        again = any(repeats for *_, repeats in self.intervals)
        return Promise(METHODS[self.method].order, stochastic=again, point_mass=("scalar",), ends=LAST)

    def calls(self, steps: int, *, to_zero: bool) -> int:
        again = sum((low - high) * repeats for low, high, repeats in self._rows(steps, to_zero=to_zero))
        return METHODS[self.method].calls(steps, to_zero=to_zero) + again * len(METHODS[self.method].b)

    def write(self, w: Writer) -> None:
        z, p, method = w.start, w.process, METHODS[self.method]
        rows = self._rows(len(w.steps), to_zero=p.log_snr(w.times[-1]) == float("inf"))
        down = lambda z, k: step(w, method, "noise", clock("rho"), z, *w.steps[k])  # noqa: E731
        for k in range(len(w.steps)):
            z = down(z, k)
            for low, high, repeats in rows:
                for _ in range(repeats * (low == k + 1)):
                    up, at = w.times[high], w.times[low]
                    noise = cholesky(added_noise(p, up, at)) * w.fresh_noise(up, at, "restart")
                    z = w.row(p.transition(up, at) * z + noise, up)
                    for j in range(high, low):
                        z = down(z, j)

    def _rows(self, steps: int, *, to_zero: bool) -> list[tuple[int, int, int]]:
        """The intervals as rows of the grid: at least one step each, and none that starts at sigma = 0."""
        found = []
        for low, high, repeats in self.intervals:
            bottom = min(max(round(low * steps), 1), steps - to_zero)
            found.append((bottom, min(round(high * steps), bottom - 1), repeats))
        return [row for row in found if row[0] > 0]
