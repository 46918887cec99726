r"""A last step of its own: Euler on the drift of the reverse SDE, without its noise.

$$ z_s = z_t + (s - t) \big( F_t z_t - G_t G_t^T\, \mathrm{score} \big), \qquad \mathrm{score} = -R_t^{-T} \epsilon $$

This is how score-based samplers remove the noise that is left at the end of the grid. In the last step the whole of
G G^T is taken, and not the half of it that the probability-flow ODE has: the step aims at the mean of what is below.

References: Song et al., Score-based generative modeling through SDEs, 2021, https://arxiv.org/abs/2011.13456; Zhang,
Tao, Chen, gDDIM, 2022, https://arxiv.org/abs/2206.05564, code https://github.com/qsh-zh/gDDIM.
"""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.process.operator import inverse, transpose
from fewstep.solver.base import LAST, Promise, Solver
from fewstep.solver.ode.exponential import Multistep
from fewstep.tableau.through import Through
from fewstep.tableau.writer import Writer

__all__ = ["FinalEuler"]


@dataclass(frozen=True, kw_only=True)
class FinalEuler(Solver):
    """Any solver, with an Euler step on the reverse SDE's drift in the last interval of the grid, without noise.

    Order at most 1; one call in the last step, the solver's in the others. Stochastic when the solver is. A point mass
    is not carried exactly: the last step takes the variance of the ODE's step away twice.

    References: the last step of gDDIM's samplers (`noise_removal`), https://github.com/qsh-zh/gDDIM, from t_min to 0.

    Args:
        solver: what takes the steps before the last.
    """

    solver: Solver = Multistep(points=3, form="noise", clock="t")

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", self.solver.kinds)
        object.__setattr__(self, "reason", self.solver.reason)

    @property
    def promise(self) -> Promise:
        return Promise(min(self.solver.order, 1), stochastic=self.solver.stochastic, point_mass=(), ends=LAST)

    def calls(self, steps: int, *, to_zero: bool) -> int:  # noqa: ARG002
        return self.solver.calls(steps - 1, to_zero=False) + 1

    def write(self, w: Writer) -> None:
        p, (t, s) = w.process, w.steps[-1]
        self.solver.write(Through(w).between(w.start, w.times[:-1]))
        z = w.last
        w.call(z, t)
        drift = p.F(t) * z + (p.GG(t) * transpose(inverse(p.R(t)))) * w.eps(z)
        w.row(z + (s - t) * drift, s)
