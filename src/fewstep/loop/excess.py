r"""Whether a table of few calls widens what it samples: known from the table alone, before the network is called.

On data N(0, s^2 I) the prediction is linear in the state, so every row is a linear function of independent normals
(`tableau.check.stacked`), and the deviation of the last one is a number. A stage or an extrapolation that reaches far
beyond where it was measured leaves the region of stability there: Heun's method in two calls ends 150 times as wide as
the data. Whatever the data are, at the first, longest steps their prediction is near to linear, so they fare alike.
"""

from __future__ import annotations

import math
import warnings
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.grid import GRIDS, Grid, as_grid, to_zero
from fewstep.process import Process
from fewstep.process.operator import trace, transpose
from fewstep.solver import DEFAULT_SOLVERS, SOLVERS, Solver
from fewstep.tableau import Tableau
from fewstep.tableau.check import covariance, stacked

__all__ = ["excess", "warn_of_excess"]

FEW = 16  # calls: longer tables are not asked
LIMIT = 4.0  # times as wide as exact, above which it is said
HOLDS = 2.0  # times as wide, up to which a solver is advised
MOST = 16  # intervals that are tried to say from how many calls a solver holds
STDS = (0.25, 1.0)  # of the data: its parts and the whole of it; what widens the one may cancel for the other

_FOUND: dict[int, tuple[Any, float]] = {}  # by the identity of rows, which are held so that it stays theirs
_SAID: set[tuple[str, type, int]] = set()  # the solvers, kinds of process and calls that were warned of


def excess(table: Tableau) -> float:
    """How many times as wide as it should be a table makes Gaussian data, in root mean square; nan where unknown.

    Remembered by the table's rows, which a table that is kept shares with every run.
    """
    rows, found = _FOUND.get(id(table.rows), (None, 0.0))
    if rows is not table.rows:
        found = _excess(table)
        _FOUND[id(table.rows)] = table.rows, found
        for old in list(_FOUND)[: max(0, len(_FOUND) - 256)]:
            _FOUND.pop(old, None)
    return found


def _excess(table: Tableau) -> float:
    if table.output != "x0":
        return math.nan
    p, t = table.process, table.rows[-1].t
    shape, found = getattr(p, "size", (1,)), 0.0
    try:
        for std in STDS:
            _, r, c = stacked(table, std)[-1]
            exact = p.Sigma(t) + std**2 * (p.M(t) * transpose(p.M(t)))
            found = max(found, float(trace(covariance(r, c), shape)) / float(trace(exact, shape)))
    except (ValueError, ArithmeticError):  # it reads what a network alone knows, or a singular covariance
        return math.nan
    return math.sqrt(found)


def warn_of_excess(table: Tableau, *, stacklevel: int = 3) -> None:
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
    warnings.warn(
        f"got {name} with {table.nfe} calls on {type(process).__name__}, which ends {found:.3g} times as wide as the "
        f"data: give {', or '.join(advice) or 'other times'}",
        stacklevel=stacklevel + 1,
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
    first, *others = [name for name, make in SOLVERS.items() if make() == solver] or [type(solver).__name__]
    return f"{first} ({', '.join(others)})" if others else first
