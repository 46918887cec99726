r"""Exponential multistep around a Gaussian: what is interpolated is not the data prediction but the mean behind it.

If data were N(mu, std^2 I), the covariance of a state would be that of a wider process, and the ODE could be solved as
for a point mass at mu:

$$ \tilde\Sigma = \Sigma + std^2 M M^T, \qquad \tilde R' = (F + \tfrac12 G G^T \tilde\Sigma^{-1}) \tilde R, \qquad
   d(\tilde R^{-1} z) = d(\tilde R^{-1} M)\, \mu $$

Bayes' rule turns the data prediction D into that mean and back, frequency by frequency, with n = M^T Sigma^-1 M:

$$ \hat\mu = (1 + std^2 n)\, (D - std^2 M^T \tilde\Sigma^{-1} z), \qquad
   \Sigma^{-1} (z - M D) = \tilde\Sigma^{-1} (z - M \hat\mu) $$

so for any data the ODE is d(R~^-1 z) = d(R~^-1 M) mu^(z, t) exactly. std = 0 is the data form, std -> infinity a form
in the score. Far above the width of data's parts mu^ is D, which hardly moves there; far below it moves like the score,
which hardly moves there either.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.process.base import Process, Time, derivative, to_tensor
from fewstep.process.clock import Clock, clock
from fewstep.process.operator import Block, Coefficient, cholesky, inverse, matrix, transpose
from fewstep.process.quadrature import antiderivative, around, chebyshev, series_at
from fewstep.solver.base import LAST, Promise, Solver
from fewstep.solver.weights import Frame, pull, weights
from fewstep.tableau import Form, Writer
from fewstep.words import within

__all__ = ["GaussianSplit", "Widened", "logistic"]

_PANEL = 1.5  # log-SNR units that a polynomial of the angle spans, of this degree
_DEGREE = 32

Seen = tuple[float, Form, Form]  # where a call was made, its prediction, and the mean behind it


@dataclass(frozen=True, kw_only=True)
class GaussianSplit(Solver):
    r"""Exponential multistep in the mean of a Gaussian of known width, with a relaxed corrector; deterministic.

    $$ \hat z_s = \tilde R_s \tilde R_t^{-1} z_t + \sum_j B_j \hat\mu_j, \qquad
       B_j = \tilde R_s \int_t^s \ell_j(u)\, d(\tilde R^{-1} M), \qquad
       z_s = (1 - \theta) \hat z_s + \theta z^c_s $$

    l_j are the Lagrange polynomials of the last `points` means in a logistic clock u = 1/(1 + e^(-lambda/width)), which
    is finite at both singular ends. z^c is the same step with the mean found at the predicted state as one more node;
    the last row stays as predicted. One call a step; state kept: the last `points` predictions and the states they were
    made at.

    The corrector's weight is theta = 1/(1 + (relax/n)^3) with n steps: at few calls a full one is unstable under
    guidance. The last `ending` steps take std = 0, the data form, and fewer points: one in the last step, two in the
    one before. Images lie near surfaces; a Gaussian of finite width keeps the noise across them that the data form
    removes, and a last prediction is better than an extrapolation (`benchmarks/default_solver.py`).

    Order: `points`, one more with the corrector, and with its own start at most 2, or 3 with the corrector; at most 2
    with an ending, whose last step has to shrink with the others (that of `karras` into sigma = 0 does not); 1 with a
    `first`, before which no prediction is kept. A point mass leaves a residual of that order unless std = 0; without an
    ending data N(mu, std^2 I) is carried exactly, by steps of any size. std = 0, width = inf and no ending is
    `Multistep` in data form: with its corrector for relax = 0, without for relax = inf. The defaults were chosen on
    random mixtures, guided ones among them (`benchmarks/closed_forms.py`), and on the shipped model.

    References: the wider process is the EDM preconditioning (Karras et al. 2022, https://arxiv.org/abs/2206.00364) as
    an ODE; a linear part chosen for data is DPM-Solver-v3 (Zheng et al. 2023, https://arxiv.org/abs/2310.13268), a
    corrector that costs no call UniPC (Zhao et al. 2023, https://arxiv.org/abs/2302.04867). The combination is ours.

    Args:
        points: how many means the interpolant passes through (at least 1).
        std: width of the Gaussian, in data units (0 or more).
        width: of the logistic clock, in units of log-SNR; inf is log-SNR itself.
        relax: the number of steps at which the corrector has half its weight; 0 is the full one, inf none.
        ending: how many of the last steps are taken in the data form with falling order (0 or more).
        first: the log-SNR at which the first call is made (-inf: at the start); see `fewstep.solver.default`.
    """

    points: int = 3
    std: float = 0.5
    width: float = 1.75
    relax: float = 5.0
    ending: int = 2
    first: float = -math.inf

    def __post_init__(self) -> None:
        within(self, points="[1, inf]", std="[0, inf)", width="(0, inf]", relax="[0, inf]", ending="[0, inf]")
        within(self, first="[-inf, inf)")

    @property
    def promise(self) -> Promise:
        corrected = self.relax < math.inf
        order = min(self.points + corrected, 3 if corrected and not self.ending else 2)
        infinite_node = self.std and self.width == math.inf and (self.points > 1 or corrected)
        return Promise(
            1 if self.first > -math.inf else order,
            point_mass=() if self.std else None,
            ends=("alpha=0",) * (not infinite_node) + LAST * bool(self.std or self.ending),
        )

    @property
    def one_row(self) -> bool:
        """Not with a corrector, or a first call that is not at the start."""
        return self.relax == math.inf and self.first == -math.inf

    def write(self, w: Writer) -> None:
        n, wide = len(w.steps), Widened(w.process, self.std)
        step = functools.partial(self._step, w.process, wide.frame() if self.std else "data", logistic(self.width))
        theta = 0.0 if self.relax == math.inf else 1 / (1 + (self.relax / n) ** 3)
        z = ahead = w.start
        at = w.times[0]  # the time of the state z
        seen: list[Seen] = []
        for k, (t, s) in enumerate(w.steps):
            before, at = at, t if k else self._called(w.process, t, s)
            if at != before and not k:
                ahead = w.row(wide.carry(t, at) * z, at)
                z = wide.carry(at, t) * ahead  # the start as the first call has it, from which the corrector steps
            y = w.call(ahead, at)
            a, b = wide.mean(at) if self.std else (1.0, 0.0)
            trusted = (one for one in seen if w.process.log_snr(one[0]) >= self.first)
            seen = [(at, y, a * y - b * ahead), *trusted][: self.points + 1]
            share = theta if k else 1.0
            if share and at != before:
                again = step(before, at, z, seen, n - k + 1)
                z = w.row((1 - share) * ahead + share * again, at)
            else:
                z = ahead
            points = min(self.points, n - k) if n - k <= self.ending else self.points
            ahead = w.row(step(at, s, z, seen[:points], n - k), s)

    def _called(self, process: Process, t: float, s: float) -> float:
        """When the first call is made: at the log-SNR `first` where the step from t to s passes it, else at t."""
        passes = process.log_snr(t) < self.first < process.log_snr(s)
        return float(process.inverse_log_snr(self.first)) if passes else t

    def _step(
        self, p: Process, wide: Frame | str, u: Clock, t: float, s: float, z: Form, seen: list[Seen], left: int
    ) -> Form:
        """From t to s with the means behind the predictions, or near the end with the predictions themselves."""
        near = left <= self.ending
        carry, found = weights(p, "data" if near else wide, u, t, s, [at for at, _, _ in seen])
        return Form.total([(carry, z), *zip(found, (y if near else mean for _, y, mean in seen), strict=True)])


@functools.lru_cache(maxsize=8)
def logistic(width: float) -> Clock:
    """The clock 1/(1 + e^(-lambda/width)); log-SNR where the width is infinite."""
    if width == math.inf:
        return clock("log-snr")
    read = lambda lam: torch.sigmoid(torch.as_tensor(lam, dtype=torch.float64) / width)  # noqa: E731
    back = lambda p, u: p.inverse_log_snr(width * torch.logit(u))  # noqa: E731
    return Clock(lambda p, t: read(p.log_snr(t)), back, lambda p, lam: read(lam))


@dataclass(frozen=True)
class Widened:
    """A process whose noise is joined by a Gaussian of width `std` around the data: the tilde of the formulas."""

    process: Process
    std: float

    def Sigma(self, t: Time) -> Coefficient:
        m = self.process.M(t)
        return self.process.Sigma(t) + self.std**2 * (m * transpose(m))

    def mean(self, t: float) -> tuple[Coefficient, Coefficient]:
        """(a, b) with mu^ = a D - b z."""
        p = self.process
        back = transpose(p.M(t))
        n = back * inverse(p.Sigma(t)) * p.M(t)
        n = float(n.values) if isinstance(n, Block) else n
        a = 1.0 + self.std**2 * n
        return a, self.std**2 * (back * inverse(self.Sigma(t)) * a)

    def frame(self) -> Frame:
        """The form R~, M, whose weights `fewstep.solver.weights` integrates."""
        return Frame(functools.partial(_root, self), self.process.M, self.rate, -math.log(self.std))

    def carry(self, t: float, s: float) -> Coefficient:
        """R~_s R~_t^-1, which takes a state from t to s where data are N(0, std^2 I)."""
        return _root(self, s) * inverse(_root(self, t))

    def rate(self, t: Tensor) -> Coefficient:
        """R~ d(R~^-1 M) a unit of log-SNR."""
        return pull(self.process, t) * inverse(self.Sigma(t)) * self.process.M(t)

    def turn(self, t: Tensor) -> Tensor:
        """The rate at which R~ turns against its Cholesky factor L of blocks: (L^-1 (F + G G^T Sigma~^-1 / 2) L)_12."""
        p, lower = self.process, cholesky(self.Sigma(t))
        pull = p.F(t) + 0.5 * (p.GG(t) * inverse(self.Sigma(t)))
        return (inverse(lower) * pull * lower).values[..., 0, 1]


def _root(wide: Widened, t: Time) -> Coefficient:
    """R~: the root of Sigma~ on numbers and frequencies; on blocks its Cholesky factor, turned by an angle."""
    lower = cholesky(wide.Sigma(t))
    if not isinstance(lower, Block):
        return lower
    angle = _angle(wide, to_tensor(wide.process.log_snr(t)))
    c, s = angle.cos(), angle.sin()
    return lower * Block(matrix(c, s, -s, c))


def _angle(wide: Widened, lam: Tensor) -> Tensor:
    """The angle from log-SNR 0 (a constant one is free): its polynomial on the panel that lam lies on."""
    panel = (lam / _PANEL).floor()
    low, high = around(panel)
    return series_at(_angles(wide, low, max(high, 8))[(panel - low).long()], 2 * (lam / _PANEL - panel) - 1)


@functools.lru_cache(maxsize=8)
def _angles(wide: Widened, low: int, high: int) -> Tensor:
    """The Chebyshev series of the angle on panels of log-SNR, numbered from low to high."""
    with torch.inference_mode(False), torch.no_grad():  # kept between runs, differentiable ones too
        p, panels = wide.process, torch.arange(low, high, dtype=torch.float64)[:, None]
        tau = to_tensor(p.inverse_log_snr(_PANEL * (panels + (1 + chebyshev(_DEGREE)) / 2)))
        return antiderivative(_PANEL / 2 * wide.turn(tau) / derivative(p.log_snr, tau), -low)
