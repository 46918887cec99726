"""A golden entry placed on our processes: what to run, and how well it must agree."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from golden_store import Entry
from torch import Tensor

from fewstep.loop import sample
from fewstep.process import Process, ScalarProcess
from fewstep.process.scalar import EDM, VP
from fewstep.solver import Driver, Solver
from fewstep.tableau import Tableau

__all__ = [
    "EXACT",
    "Case",
    "FittedVP",
    "LinearTable",
    "NotYet",
    "RootVE",
    "Unknown",
    "amplified",
    "cut_last",
    "difference",
    "run",
]

EXACT = 1e-9


class NotYet(Exception):  # noqa: N818
    """The entry's family is not built yet: the argument is a label of NOT_YET."""


class Unknown(Exception):  # noqa: N818
    """The entry is none that these tests know."""


@dataclass(frozen=True)
class Case:
    """Runs `solver` over `grid` from `start`; `more` are further (grid, solver) runs that go on from its result.

    `cut` leaves the last row out: the grid then ends in an artificial time that only the solver's end rules see.
    `fault` is a label of FAULTS; `crude` is the solver with the reference's quadrature in place of ours.
    """

    family: str
    process: Process
    solver: Solver | Driver
    grid: Tensor
    start: Tensor
    noise: Tensor | None = None
    final: str = "state"
    scale: float = 1.0
    cut: bool = False
    fault: str | None = None
    crude: Solver | None = None
    more: tuple[tuple[Tensor, Solver], ...] = field(default=())

    def faulty(self, label: str, crude: Solver | None = None) -> Case:
        return replace(self, fault=label, crude=crude)


def run(entry: Entry, case: Case) -> Tensor:
    """Our result for an entry, (8, width) as it is stored; what several entries share is run once."""
    if case.noise is not None or case.more or isinstance(case.solver, Driver):
        return _run(entry, case)
    how = case.solver, case.process, tuple(case.grid.tolist()), case.final, case.scale, case.cut
    key = (*how, entry.d, case.start.numpy().tobytes())
    if key not in _MADE:
        _MADE[key] = _run(entry, case)
    return _MADE[key]


_MADE: dict[tuple, Tensor] = {}


def _run(entry: Entry, case: Case) -> Tensor:
    denoiser = entry.store.mixture(case.process, entry.d)
    noise, used = case.noise, 0
    if isinstance(case.solver, Driver):
        z = sample(denoiser, case.process, solver=case.solver, grid=case.grid, x=case.start, final=case.final)
    else:
        table = _table(case.solver, case.process, tuple(case.grid.tolist()))
        table = cut_last(table) if case.cut else table
        z = sample(denoiser, case.process, solver=table, x=case.start, noise=noise, final=case.final)
        used = len(table.noises)
    for grid, solver in case.more:
        table = solver.tabulate(case.process, grid)
        z = sample(denoiser, case.process, solver=table, x=z, noise=None if noise is None else noise[used:])
        used += len(table.noises)
    if case.process.kind == "block":  # (batch, 2, d) -> (batch, d, 2) -> (batch, 2 d)
        z = z.transpose(1, 2).reshape(len(z), -1)
    return case.scale * z


@lru_cache(maxsize=1024)
def _table(solver: Solver, process: Process, grid: tuple[float, ...]) -> Tableau:
    return solver.tabulate(process, torch.tensor(grid, dtype=torch.float64))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def amplified(entry: Entry, case: Case) -> float:
    """How far the result moves when the start moves by a few units of rounding: some runs multiply it by thousands."""
    sign = 1 - 2 * (torch.arange(case.start.numel()).reshape(case.start.shape) % 3 == 0).double()
    moved = replace(case, start=case.start * (1 + 8 * torch.finfo(torch.float64).eps * sign))
    return difference(run(entry, moved), run(entry, case))


def cut_last(table: Tableau) -> Tableau:
    """Without its last row; rows read earlier rows only, so the others stay what they were."""
    last = len(table.rows) - 1
    return replace(
        table,
        rows=table.rows[:-1],
        grid=table.grid[:-1],
        solver=None,
        heads={k: v for k, v in table.heads.items() if k[0] < last},
    )


@dataclass(frozen=True, kw_only=True)
class FittedVP(VP):
    """VP whose beta may start below 0: what EDM's ablation fits to a range of sigma."""

    def __post_init__(self) -> None:
        ScalarProcess.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class RootVE(EDM):
    """Sigma = sqrt(t): the time in which EDM's ablation steps its VE schedule."""

    def _sigma(self, t: Tensor) -> Tensor:
        return t.sqrt()

    def _inverse_log_snr(self, lam: Tensor) -> Tensor:
        return (-2 * lam).exp()


@dataclass(frozen=True, kw_only=True)
class LinearTable(ScalarProcess):
    """Alpha^2 itself linear in the integer index between the entries of a table: th_deis's DiscreteVPSDE."""

    alphas_cumprod: tuple[float, ...]
    t_max: float = 999.0
    t_min: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "_table", torch.tensor(self.alphas_cumprod, dtype=torch.float64))

    @property
    def domain(self) -> tuple[float, float]:
        return (0.0, math.inf)

    def _square(self, t: Tensor) -> Tensor:
        a: Tensor = self._table  # type: ignore[attr-defined]
        i = t.detach().floor().clamp(0, len(a) - 2).long()
        return a[i] + (t - i) * (a[i + 1] - a[i])

    def _alpha(self, t: Tensor) -> Tensor:
        return self._square(t).sqrt()

    def _sigma(self, t: Tensor) -> Tensor:
        return (1 - self._square(t)).sqrt()

    def _inverse_log_snr(self, lam: Tensor) -> Tensor:
        a: Tensor = self._table  # type: ignore[attr-defined]
        square = torch.sigmoid(2 * lam)
        i = (torch.searchsorted(-a, -square, right=True) - 1).clamp(0, len(a) - 2)
        return i + (square - a[i]) / (a[i + 1] - a[i])
