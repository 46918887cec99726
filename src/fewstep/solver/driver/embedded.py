r"""The adaptive drivers by name: Dormand-Prince 5(4), DPM-Solver 12 and 23, and Gotta Go Fast's stochastic Heun."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.process.clock import clock
from fewstep.process.operator import inverse
from fewstep.solver.base import Solver
from fewstep.solver.driver.adaptive import Adaptive, Control
from fewstep.solver.driver.base import Live, Run
from fewstep.solver.ode.runge_kutta import METHODS, RungeKutta, frame, slope, stages
from fewstep.solver.ode.singlestep import Singlestep, inside, singlestep
from fewstep.solver.sde.euler import StochasticHeun, improved_euler
from fewstep.solver.weights import first_order
from fewstep.tableau.form import Form
from fewstep.words import among, within

__all__ = ["DEFECT", "DPMAdaptive", "GottaGoFast", "RK45"]

_METHOD = METHODS["dormand-prince5"]
# b of order 5 minus b of order 4, the last for the slope at the new state
DEFECT = (-71 / 57600, 0.0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)


@dataclass(frozen=True, kw_only=True)
class RK45(Adaptive):
    r"""Dormand-Prince 5(4) on the probability-flow ODE, adaptive: each sample has its own steps.

    $$ \delta = \mathrm{atol} + \mathrm{rtol} \max(|z|, |z_{new}|), \qquad
       h \leftarrow h\, \mathrm{clip}(0.9 E^{-1/5}, 0.2, 10) $$

    Deterministic, order 5, six calls a tried step (the last one is the first of the next), two to begin with. The first
    step is Hairer's rule, with which norm="batch" reproduces scipy's RK45 and so score_sde's ODE sampler. Where we
    differ: the norm is each sample's own.

    References: Dormand, Prince, A family of embedded Runge-Kutta formulae, 1980,
    https://doi.org/10.1016/0771-050X(80)90013-3; Hairer, Norsett, Wanner, Solving ordinary differential equations I,
    section II.4; Song et al. 2021, https://arxiv.org/abs/2011.13456 for its use.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    form: str = "state"
    clock: str = "t"

    cost = 6
    opening = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.solver  # refuses an unknown form or clock

    @property
    def solver(self) -> Solver:
        return RungeKutta(method="dormand-prince5", form=self.form, clock=self.clock)

    control = Control((0.2, 0.0, 0.0), low=0.2, high=10.0, wait=True)  # type: ignore[assignment]

    @property
    def steps_in(self) -> str:  # type: ignore[override]
        return self.clock

    def attempt(self, w: Live, t: Tensor, s: Tensor) -> tuple[Form, Form]:
        u = clock(self.clock)
        high, slopes = stages(w, _METHOD, self.form, u, w.start, t, s)
        slopes.append(slope(w, self.form, u, high, s))
        step = u.of(w.process, s) - u.of(w.process, t)
        low = high
        for weight, k in zip(DEFECT, slopes, strict=True):
            low = low - (frame(w.process, self.form, s) * (weight * step)) * k
        return high, low

    def tolerance(self, z: Tensor, before: Tensor, high: Tensor, low: Tensor) -> Tensor:  # noqa: ARG002
        return self.atol + self.rtol * torch.maximum(z.abs(), high.abs())

    def first(self, run: Run, end: float) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Hairer's rule: a small Euler step shows how fast the slope changes."""
        u, p, n, size = clock(self.clock), run.process, len(run.start), functools.partial(frame, run.process, self.form)
        t, every = torch.full((n,), float(run.grid[0]), dtype=torch.float64), torch.arange(n)
        here = u.of(p, t)
        room = (u.of(p, torch.tensor(end, dtype=torch.float64)) - here)[0]
        scale = self.atol + self.rtol * run.start.double().abs()
        w = run.live(every, run.start)
        k = slope(w, self.form, u, w.start, t)
        f0 = w.value(size(t) * k).double()
        d0, d1 = self.norms(run.start.double() / scale), self.norms(f0 / scale)
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1).clamp(max=float(room.abs()))
        h0 = h0.nan_to_num(nan=1e-6)  # the slope is not finite: a small step, so that the next call has a time
        s = u.time(p, here + room.sign() * h0)
        ahead = w.row(size(s) * inverse(size(t)) * w.start + (size(s) * (room.sign() * h0)) * k, s)
        f1 = w.value(size(s) * slope(w, self.form, u, ahead, s)).double()
        d2 = self.norms((f1 - f0) / scale) / h0
        flat = (d1 <= 1e-15) & (d2 <= 1e-15)
        h1 = torch.where(flat, (h0 * 1e-3).clamp(min=1e-6), (0.01 / torch.maximum(d1, d2)) ** 0.2)
        h = torch.minimum(100 * h0, h1).clamp(max=float(room.abs()))
        known = w.output(w.start)
        assert known is not None
        return torch.where(h.isfinite(), h, 1e-6), (known, torch.ones(n, dtype=torch.bool))


@dataclass(frozen=True, kw_only=True)
class DPMAdaptive(Adaptive):
    r"""DPM-Solver-12 (points=2) and -23 (points=3), adaptive in log-SNR: each sample has its own steps.

    $$ \delta = \max(\mathrm{atol}, \mathrm{rtol} \max(|z_{low}|, |z_{low}^{before}|)), \qquad
       h \leftarrow \theta h E^{-1/q} $$

    The higher formula is `Singlestep(points=q)`, the lower one DPM-Solver-1, or -2 with r_1 = 1/3, on the same calls.
    Deterministic, order q, q calls a tried step (a rejected one keeps its first). `pid` = (P, I, D) takes k-diffusion's
    controller, a limited product of powers of the last three errors. Where we differ: the paper's code takes the
    largest error of the batch (norm="largest") and k-diffusion the norm of the whole batch (norm="batch").

    References: Lu et al. 2022a, appendix C and Algorithms 1 and 2, https://arxiv.org/abs/2206.00927;
    https://github.com/LuChengTHU/dpm-solver; https://github.com/crowsonkb/k-diffusion for the controller.

    Args:
        points: 2 for DPM-Solver-12, 3 for -23.
        form: "noise" (DPM-Solver) or "data" (DPM-Solver++).
        first_step: in log-SNR.
        theta: safety factor.
        pid: None, or the coefficients (P, I, D).
    """

    rtol: float = 0.05
    atol: float = 0.0078
    points: int = 3
    form: str = "noise"
    first_step: float = 0.05
    theta: float = 0.9
    pid: tuple[float, float, float] | None = None

    steps_in = "log-snr"

    def __post_init__(self) -> None:
        super().__post_init__()
        among(self, points=(2, 3))
        within(self, first_step="(0, inf]", theta="(0, 1]")
        _ = self.solver

    @property
    def solver(self) -> Solver:
        return Singlestep(points=self.points, form=self.form)

    @property
    def control(self) -> Control:
        if self.pid is None:
            return Control((1 / self.points, 0.0, 0.0), safety=self.theta)
        p, i, d = (x / self.points for x in self.pid)
        return Control((p + i + d, -(p + 2 * d), d), safety=1.0, smooth=True)

    @property
    def cost(self) -> int:  # type: ignore[override]
        return self.points - 1

    def attempt(self, w: Live, t: Tensor, s: Tensor) -> tuple[Form, Form]:
        high = w.row(singlestep(w, w.start, inside(w, t, s, self.points, "log-snr"), self.form, "midpoint"), s)
        y = w.outputs(self.form)
        carry, whole = first_order(w.process, self.form, t, s)
        low = carry * w.start + whole * y[0]
        if self.points == 3:
            low = low + (1.5 * whole) * (y[1] - y[0])  # 1/(2 r_1) with r_1 = 1/3
        return high, low

    def first(self, run: Run, end: float) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:  # noqa: ARG002
        return torch.full((len(run.start),), self.first_step, dtype=torch.float64), None


@dataclass(frozen=True, kw_only=True)
class GottaGoFast(Adaptive):
    r"""Gotta Go Fast: adaptive steps of the reverse SDE, Euler-Maruyama against improved Euler, each sample alone.

    $$ \delta = \max(\mathrm{atol}, \mathrm{rtol} \max(|z + K_1|, |z^{before} + K_1^{before}|)), \qquad
       h \leftarrow \theta h E^{-r} $$

    Stochastic, two calls a tried step (one after a rejected one); the step is `StochasticHeun`'s. Where we differ: the
    noise is the increment of the sample's Brownian path, so a step that is rejected and tried again shorter stays
    on the same path, where the authors draw anew and so prefer small noise.

    References: Jolicoeur-Martineau et al. 2021, Algorithm 1, https://arxiv.org/abs/2105.14080;
    https://github.com/AlexiaJM/score_sde_fast_sampling.

    Args:
        first_step: in t, as a share of the time range.
        theta, r: safety factor and exponent.
    """

    rtol: float = 0.02
    atol: float = 0.0078
    first_step: float = 0.01
    theta: float = 0.9
    r: float = 0.9

    solver = StochasticHeun()  # type: ignore[assignment]

    @property
    def control(self) -> Control:
        return Control((self.r, 0.0, 0.0), safety=self.theta)

    def attempt(self, w: Live, t: Tensor, s: Tensor) -> tuple[Form, Form]:
        return improved_euler(w, w.start, t, s)

    def first(self, run: Run, end: float) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        step = self.first_step * (float(run.grid[0]) - end)
        return torch.full((len(run.start),), step, dtype=torch.float64), None
