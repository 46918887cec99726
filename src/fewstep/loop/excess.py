r"""Whether a table of few calls widens what it samples: known from the table alone, before the network is called.

On data N(0, s^2 I) the prediction is linear in the state, so every row is a linear function of independent normals,
and the deviation of the last one is a number. A stage or an extrapolation that reaches far
beyond where it was measured leaves the region of stability there: Heun's method in two calls ends 150 times as wide as
the data. Whatever the data are, at the first, longest steps their prediction is near to linear, so they fare alike.
"""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.grid import GRIDS, Grid, as_grid, to_zero
from fewstep.process import Process
from fewstep.process.base import Memory, recalling
from fewstep.process.operator import Coefficient, Operator, cholesky, inverse, transpose, unstacked
from fewstep.process.predict import VARIANCES
from fewstep.solver import DEFAULT_SOLVERS, SOLVERS, Solver, names
from fewstep.tableau import Tableau
from fewstep.tableau.form import Symbol
from fewstep.words import warn

__all__ = ["excess", "warn_of_excess"]

FEW = 16  # calls: longer tables are not asked
LIMIT = 4.0  # times as wide as exact, above which it is said
HOLDS = 2.0  # times as wide, up to which a solver is advised
MOST = 16  # intervals that are tried to say from how many calls a solver holds
STDS = (0.25, 1.0)  # of the data: its parts and the whole of it; what widens the one may cancel for the other

Value = Any  # float | np.ndarray

_SAID: set[tuple[str, type, int]] = set()  # the solvers, kinds of process and calls that were warned of


def excess(table: Tableau) -> float:
    """How many times as wide as it should be a table makes Gaussian data, in root mean square; nan where unknown.

    Remembered with the table.
    """
    if "excess" not in table.notes:
        found, quiet = math.nan, np.errstate(all="ignore")
        with suppress(ValueError, ArithmeticError), torch.inference_mode(False), torch.no_grad(), quiet:
            at = _Times(table)  # it may read what a network alone knows, or have a singular covariance
            found = max(_Width(at, std).found() for std in STDS)
        table.notes["excess"] = found
    return table.notes["excess"]


class _Times:
    """M and Sigma where a table is called, and at its start and end."""

    def __init__(self, table: Tableau) -> None:
        self.table, p = table, table.process
        called = [k for k, row in enumerate(table.rows) if row.at is not None]
        if table.output != "x0" or any(row.given not in (None, "start") for row in table.rows):
            raise ValueError("the table reads what a network alone knows, or a row that is given")
        times = [*(table.rows[k].at for k in called), table.rows[0].t, table.rows[-1].t]
        self.place = {k: i for i, k in enumerate(called)}
        if p.kind == "scalar":  # at single times, which a table's memory holds
            memory = table.notes.get("memory")
            with recalling(memory if memory and memory.process is p else Memory(p, times)):
                self.mean, self.sigma = ([f(x) for x in times] for f in (p.M, p.Sigma))
        else:
            self.mean, self.sigma = (unstacked(f(torch.tensor(times, dtype=torch.float64))) for f in (p.M, p.Sigma))


class _Width:
    """The rows of a table on data N(0, s^2 I).

    A row is a map of independent normals, the start's and the noises'. With S = Sigma + s^2 M M^T it begins as S^1/2
    eps, and a prediction is D = K z, K = s^2 M^T S^-1. A value is a number where both the process's are and there is
    one normal; else an array of the normals and the entries of a basis, or for blocks of a state's and the normals.
    """

    def __init__(self, at: _Times, std: float) -> None:
        self.at, self.table, p = at, at.table, at.table.process
        self.block, self.rank = p.kind == "block", len(getattr(p, "size", ())) if p.kind == "diagonal" else 0
        spread = [sigma + std**2 * (m * transpose(m)) for m, sigma in zip(at.mean, at.sigma, strict=True)]
        self.gain = [_number(std**2 * (transpose(m) * inverse(s))) for m, s in zip(at.mean, spread, strict=True)]
        self.start, self.exact = _number(cholesky(spread[-2])), _number(spread[-1])
        self.made: list[Value] = []
        self.values: dict[Symbol, Value] = {}

    def found(self) -> float:
        """The excess."""
        for row in self.table.rows:
            if row.given:
                self.made.append(self._of_normal(0, self.start))
                continue
            terms = [self._times(c, self._value(symbol)) for symbol, c in row.form]
            self.made.append(sum(terms[1:], terms[0]))
        exact = np.trace(self.exact) if self.block else np.sum(self.exact)
        return float(np.sqrt(np.square(self.made[-1]).sum() / exact))

    def _value(self, symbol: Symbol) -> Value:
        """There is nothing to guide to: the head `base` is D and `guidance` zero."""
        kind, j = symbol[0], symbol[1]
        if kind == "z":
            return self.made[j]
        if symbol not in self.values:
            self.values[symbol] = self._noise(symbol) if kind in ("xi", "root") else self._output(j, symbol[2])
        return self.values[symbol]

    def _noise(self, symbol: Symbol) -> Value:
        if symbol[0] == "xi":
            return self._of_normal(1 + symbol[1], np.eye(2) if self.block else np.ones((1,) * self.rank))
        if symbol[2] not in VARIANCES or self.block:
            raise ValueError("the table reads a variance that the network alone knows")
        i = self.at.place[symbol[1]]  # K M is the share of the variance that is the data's
        return self._of_normal(1 + symbol[3], np.sqrt(self.gain[i] * _number(self.at.mean[i])))

    def _output(self, j: int, head: str) -> Value:
        z, gain = self.made[j], self.gain[self.at.place[j]]
        d = gain @ z if self.block else gain * z
        if head in ("x0", "base"):
            return d
        if head == "guidance":
            return 0.0 * d
        if head == "derivative":  # -1/2 K G G^T Sigma^-1 (z - M D)
            p, at = self.table.process, self.table.rows[j].at
            pull, rest = p.GG(at) * inverse(p.Sigma(at)), z - self._times(p.M(at), d)
            return -0.5 * (gain @ self._times(pull, rest) if self.block else gain * self._times(pull, rest))
        if (j, head) not in self.table.heads:
            raise ValueError(f"the table reads output {head!r}, which the network alone knows")
        a, b = self.table.heads[j, head]
        return self._times(a, z) + self._times(b, d)

    def _times(self, c: Coefficient, v: Value) -> Value:
        return c * v if isinstance(c, float) else _number(c) @ v if self.block else _number(c) * v

    def _of_normal(self, index: int, c: Value) -> Value:
        """A multiple of one of the normals."""
        count = 1 + len(self.table.noises)
        if not self.block:
            if count == 1 and isinstance(c, float):
                return c
            made = np.zeros((count, *np.shape(c)))
            made[index] = c
            return made
        made = np.zeros((2, 2 * count))
        made[:, 2 * index : 2 * index + 2] = c
        return made


def _number(c: Coefficient) -> Value:
    return c.values.numpy() if isinstance(c, Operator) else c


def warn_of_excess(table: Tableau) -> None:
    """Warns that a table of so few calls widens what it samples, and says from how many it does not.

    Once for a solver, a process and a number of calls: what holds in one place says nothing of another.
    """
    if table.nfe > FEW or not (found := excess(table)) > LIMIT:
        return
    name, process = _name(table.solver) if table.solver is not None else "a table", table.process
    said = name, type(process), table.nfe
    if said in _SAID:
        return
    times = _times(table)
    enough = _enough(table, times)
    other = next((s for s in (DEFAULT_SOLVERS[process.kind], "ddim") if _holds(s, process, times, table.nfe)), None)
    advice = [f"at least {enough}, from which it holds"] if enough else []
    advice += [f"{other}, which holds at {table.nfe}"] if other else []
    warn(
        f"got {name} with {table.nfe} calls on {type(process).__name__}, which ends {found:.3g} times as wide as the "
        f"data: give {', or '.join(advice) or 'other times'}"
    )
    _SAID.add(said)


def _enough(table: Tableau, times: Grid) -> int | None:
    """The fewest calls from which the table's solver holds on such times: at two counts in a row."""
    if table.solver is None:
        return None
    first = None
    for n in range(len(table.grid), MOST):
        try:
            longer = table.solver.tabulate(table.process, as_grid(times, table.process, n))
        except ValueError:  # a fitted one, which is of one count; a file's, which the rows need not be of
            return None
        holds = excess(longer) <= HOLDS
        if holds and first is not None:
            return first
        first = longer.nfe if holds else None
    return None


def _holds(name: str, process: Process, times: Grid, calls: int) -> bool:
    """Whether a solver of one call a step holds at so many calls."""
    with suppress(ValueError):
        return excess(SOLVERS[name]().tabulate(process, as_grid(times, process, calls))) <= HOLDS
    return False


def _times(table: Tableau) -> Grid:
    """The named grid that the table's times are, or else one that interpolates them."""
    for make in GRIDS.values():
        for grid in (make, to_zero(make), to_zero(make, append=False)):
            with suppress(ValueError):
                if torch.equal(as_grid(grid, table.process, len(table.grid) - 1), table.grid):
                    return grid
    return partial(_between, table.grid)


def _between(times: Tensor, process: Process, steps: int) -> Tensor:
    """More times between given ones: linear in log-SNR over the index; singular ends stay as they are."""
    lam = process.log_snr(times)
    inner = lam.isfinite().nonzero().flatten().tolist()
    first, last = inner[0], inner[-1] + 1
    at = np.linspace(0, last - first - 1, steps + 1 - first - (len(times) - last))
    found = process.inverse_log_snr(torch.from_numpy(np.interp(at, np.arange(last - first), lam[first:last].numpy())))
    found[0], found[-1] = times[first], times[last - 1]
    return torch.cat([times[:first], found, times[last:]])


def _name(solver: Solver) -> str:
    """A solver's names in the registry, or its class's."""
    made = next((name for name, make in SOLVERS.items() if make() == solver), type(solver).__name__)
    first, *others = names(made)
    return f"{first} ({', '.join(others)})" if others else first
