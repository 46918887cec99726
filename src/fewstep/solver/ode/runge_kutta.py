r"""Explicit Runge-Kutta in a chosen form and clock, and EDM's Heun with churn.

The probability-flow ODE can be stepped in three variables, each in any clock u(t):

    state   dz/du           = (M' D + R' eps) / u'
    noise   d(Psi^-1 z)/du  = Psi^-1 (R' - F R) eps / u'      (u = rho, scalar: dx/dsigma = eps, EDM and DEIS rhoRK)
    data    d(R^-1 z)/du    = R^-1 (M' - R' R^-1 M) D / u'

A step is z_i = P_i [P_t^-1 z_t + du sum_j a_ij k_j] with P = 1, Psi or R. The state form cannot be evaluated at
sigma = 0 and the noise form has no prediction there, so the last step into sigma = 0 is an Euler step (as EDM's).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from fewstep.process.base import Process, Time
from fewstep.process.bridge import Bridge, boots
from fewstep.process.clock import Clock, clock
from fewstep.process.operator import Coefficient, cholesky, inverse
from fewstep.solver.base import BOTH, LAST, Promise, Solver
from fewstep.solver.sde.ancestral import added_noise
from fewstep.tableau import Form, Tableau, Writer
from fewstep.words import among, within

__all__ = ["EDMHeun", "METHODS", "Method", "RungeKutta", "frame"]


@dataclass(frozen=True)
class Method:
    """A Butcher tableau: lower-triangular `a` by rows (the first stage has none), `b`, and its order."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int

    @property
    def c(self) -> tuple[float, ...]:
        return tuple(sum(row) for row in self.a)

    def calls(self, steps: int, *, to_zero: bool) -> int:
        """Network calls: one a stage, and one in all for a last step to sigma = 0."""
        stages = len(self.b)
        return steps * stages - (stages - 1) * to_zero


METHODS: dict[str, Method] = {
    "euler": Method(((),), (1.0,), 1),
    "midpoint": Method(((), (1 / 2,)), (0.0, 1.0), 2),
    "heun": Method(((), (1.0,)), (1 / 2, 1 / 2), 2),
    "ralston": Method(((), (2 / 3,)), (1 / 4, 3 / 4), 2),
    "heun3": Method(((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4), 3),
    "kutta3": Method(((), (1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6), 3),
    "ralston3": Method(((), (1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9), 3),
    "ssp3": Method(((), (1.0,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3), 3),
    "van-der-houwen3": Method(((), (8 / 15,), (1 / 4, 5 / 12)), (1 / 4, 0.0, 3 / 4), 3),
    "rk4": Method(((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4),
    "dormand-prince5": Method(
        (
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        5,
    ),
}


@dataclass(frozen=True, kw_only=True)
class RungeKutta(Solver):
    """Explicit Runge-Kutta on the probability-flow ODE, deterministic; calls a step = stages, no state kept.

    `form="noise", clock="rho"` makes Euler equal to DDIM, Heun equal to EDM's and the rest DEIS rhoRK, and carries a
    point mass exactly on scalar processes; the other forms do so in the limit. On a grid that starts at alpha = 0, as a
    flow's, where rho is infinite, it is the state form in t; and on a pinned bridge, where R' is infinite at y, Euler's
    step of the state in t is that of the noise form in rho, which has no R'.

    References: Zhang, Chen, Fast sampling of diffusion models with exponential integrator (DEIS), 2023,
    https://arxiv.org/abs/2204.13902.
    """

    method: str = "heun"
    form: str = "noise"
    clock: str = "rho"

    def __post_init__(self) -> None:
        among(self, method=METHODS, form=("state", "noise", "data"))
        clock(self.clock)

    @property
    def promise(self) -> Promise:
        infinite_end = self.clock == "log-snr" or self.form == "data" or (self.form, self.clock) == ("noise", "t")
        return Promise(
            METHODS[self.method].order,
            point_mass=("scalar",) if (self.form, self.clock) == ("noise", "rho") else (),
            ends=("alpha=0",) + LAST * (not infinite_end),
        )

    def calls(self, steps: int, *, to_zero: bool) -> int:
        return METHODS[self.method].calls(steps, to_zero=to_zero)

    def tabulate(self, process: Process, grid: Tensor) -> Tableau:
        euler = (self.method, self.form, self.clock) == ("euler", "state", "t")
        if euler and isinstance(process, Bridge) and process.pinned:
            return RungeKutta(method="euler").tabulate(process, grid)
        regular = (self.form != "noise" and self.clock == "t") or not _only_noise(process, grid)
        return super().tabulate(process, grid) if regular else in_time(self, process, grid)

    def write(self, w: Writer) -> None:
        z = w.start
        for t, s in w.steps:
            z = step(w, METHODS[self.method], self.form, clock(self.clock), z, t, s)


@dataclass(frozen=True, kw_only=True)
class EDMHeun(Solver):
    r"""EDM's sampler: Heun's Runge-Kutta method in sigma/alpha, with optional noise before each step (churn).

    Before a step noise is added up to a level (1 + gamma) times higher, gamma = min(churn / n, sqrt(2) - 1) where
    rho = sigma/alpha is in [churn_min, churn_max], with standard deviation `noise` times the exact one. Two calls a
    step, one in a last step to sigma = 0. The level is raised by the process's own transition, so churn works on every
    linear process. Where we differ: it never leaves the times on which the process is defined; without churn, on a grid
    that starts at alpha = 0, it is Heun on z in t.

    References: Karras et al., Elucidating the design space of diffusion-based generative models, 2022, Algorithms 1
    and 2, https://arxiv.org/abs/2206.00364.
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    noise: float = 1.0
    method: str = "heun"

    def __post_init__(self) -> None:
        within(self, churn="[0, inf]", noise="[0, inf]")
        among(self, method=METHODS)

    @property
    def promise(self) -> Promise:
        """The method's order, churned or not (then weakly): noise of the transition keeps the law, the rest is the ODE.

        0 where `noise` is not 1: it samples a law of slightly larger variance on purpose (Karras et al., section 4).
        """
        churned = self.churn > 0
        order, exact = (0, ()) if churned and self.noise != 1 else (METHODS[self.method].order, ("scalar",))
        return Promise(order, stochastic=churned, point_mass=exact, ends=LAST if churned else BOTH)

    @property
    def one_row(self) -> bool:
        """Churn is a row of its own."""
        return super().one_row and not self.churn

    def calls(self, steps: int, *, to_zero: bool) -> int:
        return METHODS[self.method].calls(steps, to_zero=to_zero)

    def tabulate(self, process: Process, grid: Tensor) -> Tableau:
        regular = self.churn > 0 or not _only_noise(process, grid)
        return super().tabulate(process, grid) if regular else in_time(self, process, grid)

    def write(self, w: Writer) -> None:
        z, p, rho = w.start, w.process, clock("rho")
        for t, s in w.steps:
            level = math.exp(-float(p.log_snr(t)))
            gamma = min(self.churn / len(w.steps), math.sqrt(2) - 1)
            if gamma > 0 and self.churn_min <= level <= self.churn_max:
                up = min(float(p.inverse_log_snr(-math.log(level * (1 + gamma)))), p.domain[1])
                noise = self.noise * cholesky(added_noise(p, up, t)) * w.fresh_noise(up, t, "churn")
                z, t = w.row(p.transition(up, t) * z + noise, up), up
            z = step(w, METHODS[self.method], "noise", rho, z, t, s)


def _only_noise(process: Process, grid: Tensor) -> bool:
    """Whether a grid starts at alpha = 0, and not with the boot of a bridge."""
    start = float(grid[0])
    return len(grid) > 1 and float(process.log_snr(start)) == -math.inf and not boots(process, start)


def in_time(solver: RungeKutta | EDMHeun, process: Process, grid: Tensor) -> Tableau:
    """The method on z itself in the process's time, where the variable it is for is infinite and the ODE is regular."""
    return RungeKutta(method=solver.method, form="state", clock="t").tabulate(process, grid)


def step(w: Writer, method: Method, form: str, u: Clock, z: Form, t: Time, s: Time) -> Form:
    """One Runge-Kutta step from t to s; an Euler step where s is at sigma = 0."""
    return stages(w, method, form, u, z, t, s)[0]


def stages(w: Writer, method: Method, form: str, u: Clock, z: Form, t: Time, s: Time) -> tuple[Form, list[Form]]:
    """A step's new state and its slopes; t and s are floats or, for rows made at once, one time a sample."""
    p, (start, end) = w.process, (u.at(w.process, x) for x in (t, s))
    if not isinstance(s, Tensor) and w.process.log_snr(s) == math.inf:
        method = METHODS["euler"]
    slopes: list[Form] = []
    ahead, base = z, inverse(frame(p, form, t))
    for a, c in zip((*method.a, method.b), (*method.c, 1.0), strict=True):
        at = t if c == 0 else s if c == 1 else u.between(p, t, s, c)
        if slopes:
            front = frame(p, form, at)
            parts = [(front * (weight * (end - start)), k) for weight, k in zip(a, slopes, strict=True)]
            ahead = w.row(Form.total([(front * base, z), *parts]), at)
        if len(slopes) < len(method.b):
            slopes.append(slope(w, form, u, ahead, at, s))
    return ahead, slopes


def frame(process: Process, form: str, t: Time) -> Coefficient:
    """P of a form."""
    return 1.0 if form == "state" else process.Psi(t) if form == "noise" else process.R(t)


def slope(w: Writer, form: str, u: Clock, z: Form, t: Time, s: Time | None = None) -> Form:
    """k, the derivative of the chosen variable with respect to the clock, at t in a step to s."""
    p, d = w.process, w.call(z, t, to=s)
    rate = inverse(u.rate(p, t))
    if form == "noise":
        return rate * (inverse(p.Psi(t)) * (p.R_rate(t) - p.F(t) * p.R(t))) * w.eps(z)
    r_inv = inverse(p.R(t))
    turn = p.R_rate(t) * r_inv
    gain = p.M_rate(t) - turn * p.M(t)
    if form == "data":
        return rate * (r_inv * gain) * d
    return rate * turn * z + rate * gain * d
