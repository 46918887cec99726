r"""Predictor-corrector with the data-dependent Langevin step of score_sde: a driver, because the step is a norm ratio.

$$ z \leftarrow z + \eta\, s(z, t) + \sqrt{2 \eta}\, \xi, \qquad \eta = 2 \Big( r \frac{\|\xi\|}{\|s\|} \Big)^2,
   \qquad s = -\Sigma_t^{-1} (z - M_t D) $$

The annealed corrector takes a fixed share of the level instead, r^2 Sigma_t for eta / 2, and is a table but in name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from fewstep.process.base import Memory, Process
from fewstep.process.operator import Coefficient, inverse, is_zero, transpose
from fewstep.solver.base import Promise, Solver
from fewstep.solver.driver.base import Driver, Live, Outcome, Run
from fewstep.solver.sde.euler import EulerMaruyama
from fewstep.solver.sde.langevin import langevin
from fewstep.solver.weights import together
from fewstep.tableau import Form, Tableau, Through, Writer
from fewstep.words import among, whole, within

__all__ = ["LangevinCorrected"]

# The score and the noise of a Langevin step -> its size eta.
Size = Callable[[Form, Form], Coefficient]


@dataclass(frozen=True, kw_only=True)
class LangevinCorrected(Driver):
    r"""Predictor-corrector: after each step of any one-step solver, Langevin steps at the time it came to.

    Stochastic, the predictor's calls and `corrector_steps` more a step, none at sigma = 0. Weak order 1 at most: the
    Langevin steps leave the law of their time alone only in the limit of a small r.
    Where we differ from the authors' code: the norms are each sample's own, not the mean over the batch; the factor
    alpha_i = 1 - beta_i on VP is left at its limit 1; and the corrector follows its predictor as in the paper.

    References: Song et al. 2021, Algorithms 2-5 and appendix G, https://arxiv.org/abs/2011.13456;
    https://github.com/yang-song/score_sde_pytorch.

    Args:
        predictor: a solver that steps without a history.
        corrector: "langevin" (eta from the norms) or "annealed" (r^2 Sigma_t in its place).
        snr: r.
        corrector_steps: Langevin steps after each predictor step.
    """

    predictor: Solver = EulerMaruyama()
    corrector: str = "langevin"
    snr: float = 0.16
    corrector_steps: int = 1

    own_times = False

    def __post_init__(self) -> None:
        among(self, corrector=("langevin", "annealed"))
        within(self, snr="(0, 1)")
        whole("corrector_steps", self.corrector_steps)

    @property
    def promise(self) -> Promise:
        return Promise(1, stochastic=True, ends=self.predictor.ends)

    def calls(self, steps: int, *, to_zero: bool) -> int:
        return self.predictor.calls(steps, to_zero=to_zero) + self.corrector_steps * (steps - to_zero)

    def check(self, process: Process, grid: Tensor) -> None:
        super().check(process, grid)
        if process.kind not in self.predictor.kinds:
            raise ValueError(f"got {type(process).__name__} for the predictor {type(self.predictor).__name__}, which "
                             f"covers {', '.join(self.predictor.kinds)} processes: choose another")  # fmt: skip
        if self.predictor.heads or not self._steps_alone(process, grid):
            raise ValueError(
                f"got the predictor {type(self.predictor).__name__}, which remembers earlier steps or reads more than "
                "the data prediction: give one that steps from its state alone, as fs.DDPM()"
            )

    def drive(self, run: Run) -> Outcome:
        """Runs the grid; the sizes that the norms gave are kept, one a sample, for the tables."""
        w = run.sizes(self._table(run.process, run.grid, lambda _: 1.0))
        found: list[Tensor] = []

        def size(score: Form, xi: Form) -> Tensor:
            ratio = _norm(w.value(xi)) / _norm(w.value(score))
            found.append(2 * (self.snr * ratio) ** 2)
            return found[-1]

        self._write(w, size)
        grid, process = run.grid, run.process
        tables = lambda i: self._table(process, grid, lambda k: float(found[k][i]))  # noqa: E731
        return Outcome.over(grid, w.value(w.latest), run.calls, run.rounds, tables)

    def _table(self, process: Process, grid: Tensor, sizes: Callable[[int], float]) -> Tableau:
        """The table of a run whose k-th Langevin step had a given size."""
        w, count = Writer(process, grid), iter(range(len(grid) * self.corrector_steps))
        self._write(w, lambda _score, _xi: sizes(next(count)))
        return replace(w.table(self.predictor), solver=None)

    def _write(self, w: Writer, size: Size) -> None:
        z = w.start
        for t, s in w.steps:
            z = self._ahead(w, z, t, s)
            if not is_zero(w.process.Sigma(s)):
                for _ in range(self.corrector_steps):
                    z = self._langevin(w, z, s, size)
            if isinstance(w, Live):
                w.latest = z
                w.forget()

    def _ahead(self, w: Writer, z: Form, t: float, s: float) -> Form:
        """The predictor's step from t to s."""
        one = Through(w)
        one.start, one.steps = z, [(t, s)]
        self.predictor.write(one)
        return one.last

    def _steps_alone(self, process: Process, grid: Tensor) -> bool:
        """Whether the predictor's table is that of its steps, one by one."""

        def written() -> Writer:
            w = Writer(process, grid)
            z = w.start
            for t, s in w.steps:
                z = self._ahead(w, z, t, s)
            return w

        alone = together(Memory(process, grid.tolist()), written).table(self.predictor)
        return alone.rows == self.predictor.tabulate(process, grid).rows

    def _langevin(self, w: Writer, z: Form, t: float, size: Size) -> Form:
        if self.corrector == "annealed":
            return w.row(langevin(w, z, t, 4 * self.snr**2, noisy=True), t)
        p, d = w.process, w.call(z, t, to=t)
        r = inverse(p.R(t))
        score = (-1.0 * transpose(r) * r) * (z - p.M(t) * d)
        xi = w.fresh_noise(t, t, "langevin")
        eta = size(score, xi)
        return w.row(z + eta * score + (2 * eta) ** 0.5 * xi, t)


def _norm(x: Tensor) -> Tensor:
    """The Euclidean norm of each sample, in float64 on the CPU."""
    return x.flatten(1).double().square().sum(1).sqrt().cpu()
