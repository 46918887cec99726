r"""Exponential Runge-Kutta: singlestep DPM-Solver, DPM-Solver++ and RES, on every linear process.

$$ d(P^{-1} z) = d(P^{-1} Q)\, y, \qquad
   z_{s_i} = P_{s_i} P_t^{-1} z_t + \sum_j B_{ij} y_j, \qquad s_i = t + r_i h $$

Data form: P = R, Q = M, y = D (DPM-Solver++, RES). Noise form: P = Psi, Q = R, y = eps (DPM-Solver). A step from t to
s looks at y_0 at t, y_1 at r_1 and y_2 at r_2 of the way in a clock u, by default the log-SNR, where the papers' phi
functions are these integrals. Each row replaces y by a polynomial through some of them: with B = P_s int d(P^-1 Q) the
step of a constant prediction (`first_order`) and l_j(u) the Lagrange polynomials (`weights`),

    order 1   z_s  <- y_0
    order 2   z_r1 <- y_0,    z_s <- y_0 + (y_1 - y_0)/(2 r_1)   ("midpoint")   or the line y_0, y_1   ("heun")
    order 3   z_r1 <- y_0,    z_r2 <- the line y_0, y_1,
              z_s  <- the line y_0, y_2   ("midpoint", of order 3 because r_2 = 2/3)   or the parabola   ("heun")
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from fewstep.process.base import Time
from fewstep.process.clock import clock
from fewstep.solver.base import BOTH, LAST, Moments, Promise, Solver
from fewstep.solver.weights import first_order, weights
from fewstep.tableau import Form, Writer
from fewstep.words import among

__all__ = ["NODES", "Singlestep", "singlestep"]

NODES = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}  # r_1, r_2 of each order


@dataclass(frozen=True, kw_only=True)
class Singlestep(Solver):
    r"""DPM-Solver-1/2/3 (noise form), DPM-Solver++ 2S/3S and RES 2S (data form): no history, `points` calls a step.

    Order `points`, deterministic, one call in a step to sigma = 0. With `stages="grid"` the calls lie on the grid's own
    times: n intervals are n calls, taken as steps of `points` calls and fewer at the end (3, 3, .., 2, 1 where 3
    divides n, else 3, .., 3 and the rest), which is DPM-Solver-fast; its last step of order 1 limits the order to 2.

    points = 1 is DDIM. In noise form points = 2 is k-diffusion's dpm_2; in data form it is 2S with "midpoint" and RES
    2S, whose weights meet all order conditions, with "heun". Where we differ: the integrals are those of every linear
    process.

    References: DPM-Solver-2 (Algorithm 1), -3 and -fast: Lu et al. 2022a, https://arxiv.org/abs/2206.00927;
    DPM-Solver++ (2S): Lu et al. 2022b, https://arxiv.org/abs/2211.01095;
    3S, "midpoint" and "heun" (there dpmsolver and taylor): https://github.com/LuChengTHU/dpm-solver; RES: Zhang,
    Song, Chen, Improved order analysis and design of exponential integrator for diffusion models sampling, 2023,
    https://arxiv.org/abs/2308.02157; dpm_2: https://github.com/crowsonkb/k-diffusion.

    Args:
        points: calls a step and order, 1, 2 or 3.
        form: "data" or "noise".
        type: "midpoint" (the published weights) or "heun" (the full polynomial).
        clock: where the nodes are even and the polynomial lives: "log-snr", "t" or "rho".
        stages: "inside" every interval of the grid, at the fixed nodes, or on the "grid".
        orders: with stages="grid", the calls of each step; their sum is the number of intervals.
        inner: the second stage of order 3: "linear", or "midpoint" weights as diffusers takes.
    """

    points: int = 2
    form: str = "data"
    type: str = "midpoint"
    clock: str = "log-snr"
    stages: str = "inside"
    orders: tuple[int, ...] | None = None
    inner: str = "linear"

    def __post_init__(self) -> None:
        among(self, points=(1, 2, 3), form=("data", "noise"), type=("midpoint", "heun"))
        among(self, stages=("inside", "grid"), inner=("linear", "midpoint"))
        clock(self.clock)
        if self.orders is not None:
            object.__setattr__(self, "orders", tuple(self.orders))
            if self.stages != "grid" or not self.orders or not set(self.orders) <= set(NODES):
                raise ValueError(f"got orders={self.orders}: give numbers from 1 to 3, with stages='grid'")

    @property
    def promise(self) -> Promise:
        """Halved weights miss degree 1 (where r_1 is 1/2 they read one prediction).

        At alpha = 0 only time itself has nodes, only a data prediction says anything, and no quadrature reaches.
        """
        order = min(self.points, 2) if self.stages == "grid" else self.points
        line = self.type == "heun" or (self.stages == "inside" and self.points == 3)
        plain = self.points == 1 or (self.points == 2 and self.type == "midpoint" and self.clock == "t")
        return Promise(
            order if self.orders is None else min(self.orders),
            moments=Moments(self.form, self.clock, (0, int(line and self.inner == "linear"), 2)),
            ends=BOTH if self.form == "data" and plain else LAST,
        )

    def calls(self, steps: int, *, to_zero: bool) -> int:
        return steps if self.stages == "grid" else steps * self.points - (self.points - 1) * to_zero

    def write(self, w: Writer) -> None:
        z = w.start
        for times in self._steps(w):
            z = w.row(singlestep(w, z, times, self.form, self.type, self.clock, self.inner), times[-1])

    def _steps(self, w: Writer) -> list[list[float]]:
        """For every step the times of its calls and its end."""
        to_zero = w.process.log_snr(w.times[-1]) == math.inf
        if self.stages == "inside":
            last = len(w.steps) - 1
            orders = [1 if k == last and to_zero else self.points for k in range(len(w.steps))]
            return [inside(w, t, s, order, self.clock) for (t, s), order in zip(w.steps, orders, strict=True)]
        ends = accumulate(self._plan(len(w.steps), to_zero=to_zero), initial=0)
        return [w.times[a : b + 1] for a, b in pairwise(ends)]

    def _plan(self, steps: int, *, to_zero: bool) -> list[int]:
        """How many calls each step has: `points` each, the rest at the end; one in a step to sigma = 0."""
        plan = list(self.orders or ())
        if sum(plan) != steps and plan:
            raise ValueError(f"got orders={self.orders} on {steps} intervals: give orders that sum to {steps}")
        if not plan:
            plan = [self.points] * (steps // self.points) + [steps % self.points] * bool(steps % self.points)
            if self.points == 3 and steps % 3 == 0:
                plan[-1:] = [2, 1]
        if to_zero and plan[-1] > 1:
            plan[-1:] = [plan[-1] - 1, 1]
        return plan


def inside(w: Writer, t: Time, s: Time, order: int, name: str) -> list[Time]:
    """The times of the calls of a step from t to s, at the fixed nodes of the clock, and s."""
    return [t, *(clock(name).between(w.process, t, s, r) for r in NODES[order]), s]


def singlestep(
    w: Writer, z: Form, times: list[Time], form: str, type: str, name: str = "log-snr", inner: str = "linear"
) -> Form:
    """The state that one step leads to, from times[0] to times[-1], no row of its own yet.

    It has a call at every time but the last; z may have been called already.
    """
    t, u, nodes, ahead = times[0], clock(name), [], z
    for k, (at, to) in enumerate(zip(times[:-1], times[1:], strict=True)):
        y = w.call(ahead, at, to=times[-1])
        nodes.append((at, y if form == "data" else w.eps(ahead)))
        half, used = False, nodes
        if k == 1:
            half = type == "midpoint" if len(times) == 3 else inner == "midpoint"
        elif k == 2 and type == "midpoint":
            used = [nodes[0], nodes[2]]
        carry, whole = first_order(w.process, form, t, to)
        if len(used) == 1:
            found = [whole]
        elif half:
            start, middle, end = (u.at(w.process, x) for x in (t, at, to))
            share = (end - start) / (middle - start) / 2  # 1/(2 r_1)
            near = abs(share - 1) < 1e-9  # the midpoint: y_0 drops out
            share = torch.where(near, 1.0, share) if isinstance(share, Tensor) else 1.0 if near else share
            found = [(1 - share) * whole, share * whole]
        else:
            found = weights(w.process, form, u, t, to, [x for x, _ in used])[1]
        parts = ((b, y) for (_, y), b in zip(used, found, strict=True))
        ahead = Form.total([(carry, z), *parts])
        ahead = ahead if k == len(times) - 2 else w.row(ahead, to)
    return ahead
