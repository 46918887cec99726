"""PNDM's code and diffusers' PNDM scheduler: their process between indices, and what they do beside our solver."""

from __future__ import annotations

import math
from dataclasses import dataclass

from golden_case import LinearTable
from torch import Tensor

from fewstep.process import Process
from fewstep.solver import PNDM, Promise, Solver
from fewstep.solver.ode.pndm import ADAMS, transfer
from fewstep.tableau import Form
from fewstep.tableau.writer import Writer

__all__ = ["FloorTable", "Overlapping", "StepwisePNDM"]


def _average(weights: tuple[float, ...], nodes: list[Form]) -> Form:
    return Form.total(zip(weights, nodes, strict=True))


@dataclass(frozen=True, kw_only=True)
class FloorTable(LinearTable):
    """Alpha^2 is that of the integer index below, `ahead` further on; index -1 is the first."""

    ahead: int = 0
    t_min: float = -1.0

    @property
    def domain(self) -> tuple[float, float]:
        return (-math.inf, math.inf)

    def _square(self, t: Tensor) -> Tensor:
        a: Tensor = self._table  # type: ignore[attr-defined]
        return a[(t.detach().floor().long() + self.ahead).clamp(0, len(a) - 1)] + 0 * t


@dataclass(frozen=True, kw_only=True)
class StepwisePNDM(PNDM):
    """FON: the classical method on dx/dt, with the DDIM map over one index in place of the derivative.

    Its stages take the derivative at the beginning of the step, whatever stage the noise was predicted at. A node is
    the increment itself, so the average of nodes times the length of the step is the step.
    """

    def write(self, w: Writer) -> None:
        z, nodes = w.start, []
        for k, (t, s) in enumerate(w.steps):
            nodes = [self._increment(w, z, z, t, t), *nodes[:3]]
            total = _average(ADAMS[3], nodes) if k > 2 else self._runge_kutta(w, z, nodes[0], t, s)
            z = w.row(z + (t - s) * total, s)

    def _runge_kutta(self, w: Writer, z: Form, d_1: Form, t: float, s: float) -> Form:
        found = [d_1]
        for at in ((t + s) / 2, (t + s) / 2, s):
            found.append(self._increment(w, z, w.row(z + (t - at) * found[-1], at), t, at))
        return _average((1 / 6, 1 / 3, 1 / 3, 1 / 6), found)

    @staticmethod
    def _increment(w: Writer, z: Form, stage: Form, t: float, at: float) -> Form:
        w.call(stage, at)
        return transfer(w.process, z, w.eps(stage), t, t - 1) - z


@dataclass(frozen=True, kw_only=True)
class Overlapping(Solver):
    """PNDM's scheduler over `times` that are not `step` apart: it calls at them, and moves by `step` from each.

    The start is moved from one step above the second time. Half an odd step is rounded down, twice.
    """

    times: tuple[float, ...]
    step: int
    runge_kutta: bool

    kinds = ("scalar",)

    @property
    def promise(self) -> Promise:
        return Promise(0)

    def write(self, w: Writer) -> None:
        p, half, z, nodes, begin = w.process, self.step // 2, w.start, [], 0
        if self.runge_kutta:
            for k in range(0, 12, 4):
                t, found, stage = self.times[k], [], z
                for i, at in enumerate(self.times[k : k + 4]):
                    w.call(stage, at)
                    found.append(w.eps(stage))
                    to = at - (0 if i % 2 else half)
                    e = _average((1 / 6, 1 / 3, 1 / 3, 1 / 6), found) if i == 3 else found[-1]
                    stage = w.row(self._move(p, z, e, t, to), to)
                z, nodes, begin = stage, [found[0], *nodes], 12
        else:
            first, second = self.times[:2]
            w.call(z, first)
            nodes = [w.eps(z)]
            stage = w.row(self._move(p, z, nodes[0], first, first - self.step), first - self.step)
            w.call(stage, second)
            e = _average((1 / 2, 1 / 2), [w.eps(stage), nodes[0]])
            z, begin = w.row(self._move(p, z, e, second + self.step, second), second), 2
        for t in self.times[begin:]:
            w.call(z, t)
            nodes = [w.eps(z), *nodes[:3]]
            z = w.row(self._move(p, z, _average(ADAMS[len(nodes) - 1], nodes), t, t - self.step), t - self.step)

    @staticmethod
    def _move(p: Process, z: Form, e: Form, t: float, s: float) -> Form:
        return transfer(p, z, e, t, s)
