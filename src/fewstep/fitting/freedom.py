r"""What is free in a fit, as one vector, and the tables it says.

The vector holds, in this order, psi (the grid), theta, phi and delta (`fewstep.solver.fitted`). The grid's steps in
flow time are a softmax of (psi, 0), each psi held within 3 of the start's, so that every psi is a grid; the published
solver is tabulated on it in float64, and its numbers depend on psi through differences of `tabulate`, which no solver
or process has to know about.

| mode    | free                                                   | kept                                   |
|---------|--------------------------------------------------------|----------------------------------------|
| `exact` | psi, delta, theta with sum_j theta_kj = 0              | one data point is carried exactly      |
| `free`  | psi, delta, theta, phi                                 | nothing                                |
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from fewstep.process.base import Process
from fewstep.solver import Fitted, Solver
from fewstep.solver.fitted import Numbers, flow_time, moved, numbers, time_of, write
from fewstep.tableau import Tableau
from fewstep.tableau.writer import Writer
from fewstep.words import among

__all__ = ["MODES", "Freedom"]

MODES = ("exact", "free")
_STEP = 1e-6  # of psi, for the differences
_REACH = 3.0  # how far a step's logarithm may go from the start's: a grid never closes up


@dataclass(frozen=True, kw_only=True, eq=False)
class Freedom:
    """The free numbers around one solver on one grid."""

    solver: Solver  # the published solver that is fitted; deterministic
    process: Process  # the process
    grid: Tensor  # its grid, (m + 1,)
    mode: str  # "exact" or "free"

    def __post_init__(self) -> None:
        among(self, mode=MODES)
        if self.mode == "exact" and self.process.kind not in self.solver.point_mass:
            raise ValueError(
                f"got mode='exact' for {type(self.solver).__name__}, which does not carry one point exactly on "
                f"{type(self.process).__name__}: fit it with mode='free', or start from multistep-3"
            )

    @cached_property
    def plain(self) -> Numbers:
        """The start's own numbers."""
        return numbers(self.solver.tabulate(self.process, self.grid))

    @property
    def calls(self) -> int:
        """n, the network calls."""
        return len(self.plain.t)

    @cached_property
    def sizes(self) -> tuple[int, int, int, int]:
        """How many numbers psi, theta, phi and delta have."""
        n, free = self.calls, self.mode == "free"
        return len(self.grid) - 2, n * (n + 1) // 2 if free else n * (n - 1) // 2, n if free else 0, n

    @cached_property
    def origin(self) -> Tensor:
        """The vector of the published solver."""
        steps = -flow_time(self.process, self.grid).diff()
        psi = (steps[:-1] / steps[-1]).log()
        return torch.cat([psi, torch.zeros(sum(self.sizes[1:]), dtype=torch.float64)])

    def grid_of(self, psi: Tensor) -> Tensor:
        """The times of a psi; the ends stay."""
        high, low = flow_time(self.process, self.grid[[0, -1]])
        first = self.origin[: len(psi)]
        near = first + _REACH * torch.tanh((psi - first) / _REACH)
        steps = torch.cat([near, psi.new_zeros(1)]).softmax(0)
        inner = time_of(self.process, high - (high - low) * steps.cumsum(0)[:-1])
        return torch.cat([self.grid[:1], inner, self.grid[-1:]])

    def fitted(self, vector: Tensor) -> Tableau:
        """The table of a vector, as a solver on a grid; what is saved and run."""
        psi, theta, phi, delta = self._split(vector.detach())
        solver = Fitted(
            start=self.solver,
            theta=tuple(tuple(row[: k + 1].tolist()) for k, row in enumerate(theta)),
            phi=tuple(phi.tolist()),
            delta=tuple(delta.tolist()),
        )
        return solver.tabulate(self.process, self.grid_of(psi))

    def table(self, vector: Tensor) -> Tableau:
        """The same table with tensors for numbers, differentiable in the vector."""
        psi, theta, phi, delta = self._split(vector)
        flat = _Tabulated.apply(psi, self)
        parts = zip(flat.split([x.numel() for x in self.plain]), self.plain, strict=True)
        plain = Numbers(*(part.reshape(x.shape) for part, x in parts))
        w = Writer(self.process, self.grid_of(psi.detach()))
        write(w, moved(plain, self.process, w.grid, theta, phi, delta))
        return w.table(self.solver)

    def _split(self, vector: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Psi (m - 1,), theta (n, n), phi (n,), delta (n,)."""
        psi, weights, phi, delta = vector.split(self.sizes)
        n, free = self.calls, self.mode == "free"
        row, column = torch.tril_indices(n, n, 0 if free else -1)
        theta = vector.new_zeros(n, n).index_put((row, column), weights)
        if not free:
            theta = theta - torch.diag(theta.sum(1))
        return psi, theta, phi if free else vector.new_zeros(n), delta

    def flat(self, psi: Tensor) -> Tensor:
        """The published solver's numbers on the grid of psi, in one vector."""
        return torch.cat([x.flatten() for x in numbers(self.solver.tabulate(self.process, self.grid_of(psi)))])


class _Tabulated(torch.autograd.Function):
    """Psi -> the published solver's numbers, with their derivative by differences."""

    @staticmethod
    def forward(ctx: Any, psi: Tensor, freedom: Freedom) -> Tensor:
        found, ctx.slope = _tangent(freedom, tuple(psi.tolist()))
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # type: ignore[override]
        return grads[0] @ ctx.slope, None


@lru_cache(maxsize=1)
def _tangent(freedom: Freedom, psi: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """The published solver's numbers and their derivative in psi, (numbers, m - 1)."""
    here = torch.tensor(psi, dtype=torch.float64)
    found, steps = freedom.flat(here), _STEP * torch.eye(len(psi), dtype=torch.float64)
    columns = [(freedom.flat(here + h) - found) / _STEP for h in steps]
    return found, torch.stack(columns, 1) if columns else found.new_zeros(len(found), 0)
