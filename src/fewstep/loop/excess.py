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
from fewstep.process.base import Memory, recalling, to_tensor
from fewstep.process.operator import Block, Coefficient, Diagonal, cholesky, inverse, root, trace, transpose, unstacked
from fewstep.process.predict import VARIANCES
from fewstep.solver import DEFAULT_SOLVERS, SOLVERS, Solver, names
from fewstep.tableau import Form, Symbol, Tableau
from fewstep.words import warn

__all__ = ["excess", "warn_of_excess"]

FEW = 16  # calls: longer tables are not asked
LIMIT = 4.0  # times as wide as exact, above which it is said
HOLDS = 2.0  # times as wide, up to which a solver is advised
MOST = 16  # intervals that are tried to say from how many calls a solver holds
STDS = (0.25, 1.0)  # of the data: its parts and the whole of it; what widens the one may cancel for the other

_SAID: set[tuple[str, type, int]] = set()  # the solvers, kinds of process and calls that were warned of


def excess(table: Tableau) -> float:
    """How many times as wide as it should be a table makes Gaussian data, in root mean square; nan where unknown.

    Remembered with the table.
    """
    if "excess" not in table.notes:
        found = math.nan
        with suppress(ValueError, ArithmeticError), torch.inference_mode(False), torch.no_grad():
            mean, sigma = _laws(table)  # it may read what a network alone knows, or have a singular covariance
            found = max(_Width(table, mean, sigma, std).found() for std in STDS)
        table.notes["excess"] = found
    return table.notes["excess"]


def _laws(table: Tableau) -> list[dict[Any, Coefficient]]:
    """M and Sigma at the times of the calls, of the start and of the end."""
    if table.output != "x0" or any(row.given not in (None, "start") for row in table.rows):
        raise ValueError("the table reads what a network alone knows, or a row that is given")
    p, called = table.process, [row.at for row in table.rows if row.at is not None]
    times = list(dict.fromkeys([*called, table.rows[0].t, table.rows[-1].t]))
    if p.kind != "scalar":
        return [dict(zip(times, unstacked(f(to_tensor(times))), strict=True)) for f in (p.M, p.Sigma)]
    memory = table.notes.get("memory")  # which holds single times
    with recalling(memory if memory and memory.process is p else Memory(p, times)):
        return [{t: f(t) for t in times} for f in (p.M, p.Sigma)]


class _Width:
    """The rows of a table on data N(0, s^2 I), as forms in independent normals: that of the start and the noises.

    With S = Sigma + s^2 M M^T the start is S^1/2 eps, and a prediction is D = K z, K = s^2 M^T S^-1.
    """

    def __init__(self, table: Tableau, mean: dict[Any, Coefficient], sigma: dict[Any, Coefficient], std: float) -> None:
        self.table, self.mean, self.sigma = table, mean, sigma
        self.spread = {t: sigma[t] + std**2 * (m * transpose(m)) for t, m in mean.items()}
        self.gain = {t: std**2 * (transpose(m) * inverse(self.spread[t])) for t, m in mean.items()}
        self.values: dict[Symbol, Form] = {}

    def found(self) -> float:
        """The excess."""
        rows = self.table.rows
        exact, start = self.spread[rows[-1].t], cholesky(self.spread[rows[0].t])
        for k, row in enumerate(rows):
            made = Form({("start",): start}) if row.given else Form.total((c, self._value(s)) for s, c in row.form)
            self.values["z", k] = made
        size = tuple(exact.values.shape) if isinstance(exact, Diagonal) else ()
        wide = sum(trace(c * transpose(c), size) for _, c in self.values["z", len(rows) - 1])
        return math.sqrt(float(wide) / float(trace(exact, size)))

    def _value(self, symbol: Symbol) -> Form:
        if symbol not in self.values:
            self.values[symbol] = self._output(*symbol[1:]) if symbol[0] == "y" else self._noise(symbol)
        return self.values[symbol]

    def _noise(self, symbol: Symbol) -> Form:
        block = self.table.process.kind == "block"
        if symbol[0] == "xi":
            return Form({symbol: Block(torch.eye(2, dtype=torch.float64)) if block else 1.0})
        _, j, head, index = symbol
        if head not in VARIANCES or block:
            raise ValueError("the table reads a variance that the network alone knows")
        at = self.table.rows[j].at  # K M is the share of the variance that is the data's
        return Form({("xi", index): root(self.gain[at] * self.mean[at])})

    def _output(self, j: int, head: str) -> Form:
        """There is nothing to guide to: the head `base` is D and `guidance` zero."""
        p, at, z = self.table.process, self.table.rows[j].at, self.values["z", j]
        d = self.gain[at] * z
        if head in ("x0", "base"):
            return d
        if head == "guidance":
            return Form({})
        if head == "derivative":
            return -0.5 * self.gain[at] * p.GG(at) * inverse(self.sigma[at]) * (z - self.mean[at] * d)
        if (j, head) not in self.table.heads:
            raise ValueError(f"the table reads output {head!r}, which the network alone knows")
        a, b = self.table.heads[j, head]
        return a * z + b * d


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
