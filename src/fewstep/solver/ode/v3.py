r"""DPM-Solver-v3 (Zheng et al. 2023), on scalar processes: the ODE in the parametrisation its statistics say is best.

With the statistics l, s, b of the network as functions of lambda, and integrals from lambda_s (the step's start),

    L = int l,  S = int s,  B = int e^-S b,        f = (sigma eps - l x)/alpha = (1 - l) x/alpha - D
    g = e^-S f - B                                                                                (eq. 8)
    x_t/alpha_t = e^-L_t [ x_s/alpha_s - int e^(L+S) B - sum_k g_s^(k) int e^(L+S) (lambda - lambda_s)^k/k! ]  (eq. 14)

g^(k) are derivatives estimated from the last predictions: all from one polynomial (eq. 13), or the k-th from the
nearest k + 1 alone ("pseudo", eq. 16). l = 1, s = b = 0 makes g = -D: the data form of DPM-Solver++.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.process.operator import Coefficient, Diagonal
from fewstep.process.quadrature import collocation
from fewstep.solver.base import Moments, Promise, Solver
from fewstep.solver.statistics import Statistics
from fewstep.solver.weights import first_order
from fewstep.tableau import Form, Writer
from fewstep.words import among, within

__all__ = ["DPMSolverV3"]

Node = tuple[float, Form]  # log-SNR and f
_WIDEST = 0.25  # log-SNR units a Gauss panel spans
_TRIVIAL = Statistics(log_snr=torch.tensor([-1.0, 1.0]), l=torch.ones(2), s=torch.zeros(2), b=torch.zeros(2))


@dataclass(frozen=True, kw_only=True)
class DPMSolverV3(Solver):
    r"""DPM-Solver-v3, multistep with corrector: one call a step, deterministic.

    Without statistics l = 1, s = b = 0 ("degenerated" in the authors' code): exponential multistep in data form, whose
    predictor is DPM-Solver++ with exact weights (`Multistep`). With those of `fewstep stats`, all three per pixel.
    State kept: the last `points` predictions and the states they were made at.

    Order: 2 (1 for points = 1 without `corrector_pseudo`). At an infinite log-SNR, which only the run without
    statistics accepts, a step uses one point. The correction of a state leaves f as it was predicted (line 13 of
    Algorithm 2), and the last state is not corrected. Where we differ: a time between two nodes of the statistics is a
    node too, where the code snaps it to one.

    References: Zheng et al., DPM-Solver-v3, 2023, eq. 8 and 13-16, Algorithms 1 and 2 and appendix C.1.2,
    https://arxiv.org/abs/2310.13268; the authors' code, https://github.com/thu-ml/DPM-Solver-v3.

    Args:
        points: order of the predictor, 1 to 3 in the paper; any number of at least 1 works.
        statistics: measured `Statistics` with l, s, b, or the name of their file.
        corrector: correct each state with the prediction made at it, from as many points as the predictor had.
        predictor_pseudo: estimate the predictor's derivatives by eq. 16 (the paper's choice at 5 calls).
        corrector_pseudo: one more point for the corrector, by eq. 16.
        correct_up_to: correct states at times up to this one alone (0.5, for large guidance, is the half-corrector).
        final_ramp: fewer points at the end, one in the last step.
        rule: "gauss" integrates the interpolated statistics to rounding; "trapezoid" is the paper's and the code's.
    """

    points: int = 3
    statistics: Statistics | str | Path | None = None
    corrector: bool = True
    predictor_pseudo: bool = False
    corrector_pseudo: bool = False
    correct_up_to: float = math.inf
    final_ramp: bool = True
    rule: str = "gauss"

    kinds = ("scalar",)
    reason = "its statistics are measured in one log-SNR"

    def __post_init__(self) -> None:
        within(self, points="[1, inf]")
        among(self, rule=_RULES)
        vars(self).update(statistics=Statistics.given(self.statistics, ("l", "s", "b")))

    @property
    def promise(self) -> Promise:
        top = self.points + (self.corrector and self.corrector_pseudo)
        if self.statistics is not None:
            return Promise(min(top, 2), point_mass=(), ends=())
        pseudo = self.predictor_pseudo or (self.corrector and self.corrector_pseudo)
        degrees = tuple(min(k, 1) if pseudo else k for k in range(top))
        return Promise(min(top, 2), moments=Moments("data", "log-snr", degrees))

    def write(self, w: Writer) -> None:
        p, n = w.process, len(w.steps)
        given = self.statistics if isinstance(self.statistics, Statistics) else _TRIVIAL
        found = Integrals(given, [float(p.log_snr(t)) for t in w.times], self.rule)
        z = ahead = w.start
        nodes: list[Node] = []
        points = 0
        for k, (t, s) in enumerate(w.steps):
            lam = float(p.log_snr(t))
            d = w.call(ahead, t)
            f = (1.0 - found.l(lam)) * (1 / p.M(t)) * ahead - d if found.linear else -d
            count = points + self.corrector_pseudo
            if self.corrector and count > 1 and k and math.isfinite(nodes[0][0]) and t <= self.correct_up_to:
                base, *older = nodes
                chosen = [base, (lam, f), *older][:count]
                z = w.row(self._step(w, found, w.times[k - 1], t, z, chosen, pseudo=self.corrector_pseudo), t)
            else:
                z = ahead
            nodes = [(lam, f), *[m for m in nodes if math.isfinite(m[0])][: self.points - 1]]
            points = min(k + 1, self.points, n - k if self.final_ramp else self.points)
            ahead = w.row(self._step(w, found, t, s, z, nodes[:points], pseudo=self.predictor_pseudo), s)

    def _step(
        self, w: Writer, found: Integrals, s: float, t: float, z: Form, nodes: list[Node], *, pseudo: bool
    ) -> Form:
        """From s to t, in the paper's letters; the first node lies at s, where g = f."""
        p = w.process
        low, high = nodes[0][0], float(p.log_snr(t))
        if not (math.isfinite(low) and math.isfinite(high)):
            carry, whole = first_order(p, "data", s, t)
            return carry * z - whole * nodes[0][1]
        shrink, bias, moments = found.step(low, high, len(nodes))
        form = (p.M(t) * shrink * (1 / p.M(s))) * z
        derivatives = _derivatives([lam - low for lam, _ in nodes], pseudo=pseudo)
        for j, (lam, f) in enumerate(nodes):
            scale, offset = found.scaled(low, lam)
            weight = sum((float(derivatives[k, j]) * moments[k] for k in range(1, len(nodes))), moments[0] * (j == 0))
            form = form - (p.M(t) * shrink * weight * scale) * f
            bias = bias - weight * offset
        return form if found.unbiased else form - (p.M(t) * shrink * bias) * w.ones()


class Integrals:
    """The statistics integrated over lambda, at their own nodes and those of a run."""

    def __init__(self, statistics: Statistics, run: list[float], rule: str) -> None:
        self.statistics = statistics
        self._indices: dict[float, int] = {}
        lam = torch.tensor([x for x in run if math.isfinite(x)], dtype=torch.float64)
        if len(lam) == 0:
            lam = torch.zeros(1, dtype=torch.float64)
        low, high = float(lam.min()), float(lam.max())
        inside = statistics.log_snr[(statistics.log_snr > low) & (statistics.log_snr < high)]
        nodes = torch.cat([lam, inside]).unique()
        if rule == "gauss":
            parts = [torch.linspace(0, 1, 1 + math.ceil(h / _WIDEST), dtype=torch.float64)[:-1] for h in nodes.diff()]
            cells = zip(nodes[:-1], nodes.diff(), parts, strict=True)
            nodes = torch.cat([*(a + h * part for a, h, part in cells), nodes[-1:]])
        c, self._weights, inner = _RULES[rule]()
        self.nodes, h = nodes, nodes.diff()
        self._x = nodes[:-1, None] + h[:, None] * c  # (intervals, points)
        l, s, b = (statistics.at(name, self._x) for name in ("l", "s", "b"))  # noqa: E741
        self._rank = l.ndim - 2
        self._h = h.reshape(-1, *(1,) * (l.ndim - 1))
        self.L, L = self._primitive(l, inner)
        self.S, S = self._primitive(s, inner)
        self.B, self._B = self._primitive((-S).exp() * b, inner)
        self._LS = L + S
        self.linear, self.unbiased = bool((l != 1).any()), not bool((b != 0).any())

    def _primitive(self, y: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
        """The integral of y at the nodes, and at the points within each interval."""
        steps = self._sum(self._h * y)
        at_nodes = torch.cat([torch.zeros_like(steps[:1]), steps.cumsum(0)])
        return at_nodes, at_nodes[:-1, None] + self._h * torch.einsum("pq,iq...->ip...", inner, y)

    def _sum(self, y: Tensor) -> Tensor:
        """Over the points of each interval, by the rule's weights."""
        return torch.einsum("q,iq...->i...", self._weights, y)

    def _index(self, lam: float) -> int:
        if lam not in self._indices:
            self._indices[lam] = int((self.nodes - lam).abs().argmin())
        return self._indices[lam]

    def _coefficient(self, value: Tensor) -> Coefficient:
        return Diagonal(value, self._rank) if self._rank else float(value)

    def l(self, lam: float) -> Coefficient:  # noqa: E743 - the paper's letter
        """The linear part at a log-SNR."""
        if not (self.linear and math.isfinite(lam)):
            return 1.0
        return self._coefficient(self.statistics.at("l", torch.tensor(lam, dtype=torch.float64)))

    def step(self, low: float, high: float, count: int) -> tuple[Coefficient, Coefficient, list[Coefficient]]:
        """e^-L_t, int e^(L+S) B and the moments int e^(L+S) (lambda - low)^k/k! for k < count."""
        i, j = self._index(low), self._index(high)
        kernel = self._h[i:j] * (self._LS[i:j] - self.L[i] - self.S[i]).exp()
        x = (self._x[i:j] - low).reshape(*self._x[i:j].shape, *(1,) * self._rank)
        B = self.S[i].exp() * (self._B[i:j] - self.B[i])
        moments = [self._coefficient(self._sum(kernel * x**k).sum(0) / math.factorial(k)) for k in range(count)]
        shrink = self._coefficient((self.L[i] - self.L[j]).exp())
        return shrink, self._coefficient(self._sum(kernel * B).sum(0)), moments

    def scaled(self, low: float, lam: float) -> tuple[Coefficient, Coefficient]:
        """e^-S and B at lam, from low: g = e^-S f - B."""
        i, j = self._index(low), self._index(lam)
        if i == j and not self._rank:
            return 1.0, 0.0
        scale, B = (self.S[i] - self.S[j]).exp(), self.S[i].exp() * (self.B[j] - self.B[i])
        return self._coefficient(scale), self._coefficient(B)


def _derivatives(delta: list[float], *, pseudo: bool) -> np.ndarray:
    """(n, n): row k makes the k-th derivative at delta[0] = 0 of the values at delta."""
    n = len(delta)
    if not pseudo:  # k! times the coefficients of the interpolating polynomial
        found = np.linalg.inv(np.vander(delta, increasing=True))
        return found * np.array([[math.factorial(k)] for k in range(n)])
    found = np.zeros((n, n))
    for k in range(n):  # k! times the divided difference of the first k + 1
        for j in range(k + 1):
            found[k, j] = math.factorial(k) / math.prod(delta[j] - delta[i] for i in range(k + 1) if i != j)
    return found


# Points and weights on [0, 1], and the weights of the integrals from 0 to every point; made when they are asked for.
_RULES: dict[str, Callable[[], tuple[Tensor, Tensor, Tensor]]] = {
    "gauss": lambda: collocation(4),
    "trapezoid": lambda: (torch.tensor([0.0, 1.0]).double(), torch.tensor([0.5, 0.5]).double(),
                          torch.tensor([[0.0, 0.0], [0.5, 0.5]]).double()),
}  # fmt: skip
