r"""A solver fitted to one model: a published one, written out, and what was learned on top of it.

Every deterministic table in data or noise form can be written from its start and its data predictions alone,

$$ z_k = c_k z_0 + \sum_{j<k} B_{kj} D_j, \qquad D_j = D(z_j, t_j), \qquad k = 1..n. $$

For data that is one point D = x0 and z_0 = M_0 x0 + R_0 eps, so a row is exact when c_k = R_k R_0^-1 and its weights
sum to G_k = M_k - R_k R_0^-1 M_0, on every linear process. Hence the free numbers

$$ c_k + \phi_k R_0^{-1}, \qquad B_{kj} + \theta_{kj} G_k, \qquad \tau(t_j) + \delta_j, $$

of which rows with sum_j theta_kj = 0 and phi_k = 0 stay exact whatever they are; delta moves the time a network is told
(not the one a state is made at) in flow time tau = 1/(1 + e^lambda), which is finite at both singular ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.process.base import Process, to_tensor
from fewstep.process.operator import Block, Coefficient, Diagonal, inverse, is_zero, values_of
from fewstep.solver.base import Promise, Solver
from fewstep.tableau import Form, Tableau, Writer
from fewstep.tableau.row import name

__all__ = ["Fitted", "Numbers", "flow_time", "moved", "numbers", "time_of", "write"]

_STEP = 1e-6  # of flow time, for its derivative


class Numbers(NamedTuple):
    """The numbers of a table written out, float64; `...` is nothing, the frequencies, or the block of a coefficient.

    Attributes:
        t: (n,), when rows 1..n are made.
        at: (n,), the times of the n calls, the first at the start.
        c: (n, ...), the weight of the start.
        B: (n, n, ...), the weight of call j in row k + 1, zero for j > k.
        G: (n, ...), what the weights of a row sum to where it carries one point exactly.
    """

    t: Tensor
    at: Tensor
    c: Tensor
    B: Tensor
    G: Tensor


@dataclass(frozen=True, kw_only=True)
class Fitted(Solver):
    """A solver with numbers that were fitted to a model by `fewstep.fit`; deterministic, one call after another.

    Order 0: it is made for n calls on one grid and has no limit. Exact on a point mass where its start is and the
    numbers say so (see the module docstring).

    References: Shaul et al., Bespoke non-stationary solvers, 2024, https://arxiv.org/abs/2403.01329; Oganov et al.,
    GAS, 2025, https://arxiv.org/abs/2510.17699, where the numbers are the coefficients themselves.

    Args:
        start: the solver that was fitted.
        theta: n rows; row k holds theta_kj for j < k.
        phi, delta: phi_k and delta_j, n numbers each.
    """

    start: Solver
    theta: tuple[tuple[float, ...], ...]
    phi: tuple[float, ...]
    delta: tuple[float, ...]

    def __post_init__(self) -> None:
        vars(self).update(theta=tuple(map(tuple, self.theta)), phi=tuple(self.phi), delta=tuple(self.delta))
        n = len(self.theta)
        if not n == len(self.phi) == len(self.delta) or any(len(r) != k + 1 for k, r in enumerate(self.theta)):
            raise ValueError(f"got {n} rows of theta, {len(self.phi)} phi, {len(self.delta)} delta: give n, row k of k")

    @property
    def promise(self) -> Promise:
        exact = not any(self.phi) and all(abs(sum(row)) < 1e-12 * (1 + max(map(abs, row))) for row in self.theta)
        return Promise(0, point_mass=self.start.point_mass if exact else (), ends=self.start.ends)

    def calls(self, steps: int, *, to_zero: bool) -> int:
        return self.start.calls(steps, to_zero=to_zero)

    def write(self, w: Writer) -> None:
        plain, n = numbers(self.start.tabulate(w.process, w.grid)), len(self.theta)
        if len(plain.t) != n:
            raise ValueError(f"got a grid of {len(plain.t)} calls for a solver fitted for {n}: use its own grid")
        theta = torch.zeros(n, n, dtype=torch.float64)
        for k, row in enumerate(self.theta):
            theta[k, : k + 1] = torch.tensor(row, dtype=torch.float64)
        phi, delta = (torch.tensor(v, dtype=torch.float64) for v in (self.phi, self.delta))
        write(w, moved(plain, w.process, w.grid, theta, phi, delta))


def numbers(table: Tableau) -> Numbers:
    """A table written out; a ValueError for one that reads noise, further outputs, or other given rows."""
    rows, process = table.eliminate().rows, table.process
    kept = [k for k, row in enumerate(rows) if row.at is not None]
    place = {k: j for j, k in enumerate(kept)}
    for symbol, _ in (term for row in rows for term in row.form):
        if symbol != ("z", 0) and not (symbol[0] == "y" and symbol[2] == "x0"):
            raise ValueError(
                f"got {_label(table)}, whose table reads {name(symbol)}: only tables made of the start and of data or "
                "noise predictions are fitted; start from another solver, as multistep-3"
            )
    if kept[:1] != [0] or rows[-1].at is not None:
        raise ValueError(f"got {_label(table)}, whose first call is not at the start: start from another solver")
    made, n = [*kept[1:], len(rows) - 1], len(kept)
    carry, gain = 0.0 * process.R(rows[0].t), 0.0 * process.M(rows[0].t)
    c = [_values(carry + rows[k].form.terms.get(("z", 0), 0.0)) for k in made]
    B = [[gain] * n for _ in made]
    for i, k in enumerate(made):
        for symbol, weight in rows[k].form:
            if symbol[0] == "y":
                B[i][place[symbol[1]]] = gain + weight
    back = inverse(process.R(rows[0].t)) * process.M(rows[0].t)
    G = [_values(process.M(rows[k].t) - process.R(rows[k].t) * back) for k in made]
    t, at = to_tensor([rows[k].t for k in made]), to_tensor([rows[k].at for k in kept])
    every = torch.stack([torch.stack([_values(b) for b in row]) for row in B])
    return Numbers(t, at, torch.stack(c), every, torch.stack(G))


def moved(plain: Numbers, process: Process, grid: Tensor, theta: Tensor, phi: Tensor, delta: Tensor) -> Numbers:
    """The numbers with the free ones added (theta (n, n), phi (n,), delta (n,)); differentiable in all of them."""
    root = _values(inverse(process.R(float(grid[0]))))
    of = lambda free, x: free.reshape(free.shape + (1,) * (x.ndim - free.ndim)) * x  # noqa: E731
    return plain._replace(
        at=_shifted(process, plain.at, delta, grid),
        c=plain.c + of(phi, root.expand_as(plain.c)),
        B=plain.B + of(theta, plain.G[:, None].expand_as(plain.B)),
    )


def write(w: Writer, plain: Numbers) -> None:
    """Writes the rows; numbers that require a gradient stay tensors, their times too."""
    fixed, z, calls = not plain.c.requires_grad, w.start, []
    for k in range(len(plain.t)):
        calls.append(w.call(z, float(plain.at[k]) if fixed else plain.at[k]))
        terms = {("z", 0): plain.c[k]} | {next(iter(d.terms)): plain.B[k, j] for j, d in enumerate(calls)}
        form = Form({symbol: _coefficient(v, w.process) for symbol, v in terms.items()})
        if fixed:
            form = Form({symbol: v for symbol, v in form if not is_zero(v)})
        z = w.row(form, float(plain.t[k].detach()))


def flow_time(process: Process, t: Tensor) -> Tensor:
    """Returns tau = 1/(1 + e^lambda), from 1 (noise) to 0 (data)."""
    return torch.sigmoid(-torch.as_tensor(process.log_snr(t), dtype=torch.float64))


def time_of(process: Process, tau: Tensor) -> Tensor:
    """The process's time at a flow time."""
    return process.inverse_log_snr(-torch.logit(tau))


def _shifted(process: Process, at: Tensor, delta: Tensor, grid: Tensor) -> Tensor:
    """Times moved by delta in flow time, kept between the ends of the grid; delta = 0 leaves them as they are.

    The gradient, dt'/d delta = T'(tau + delta) and dt'/dt = T'(tau + delta)/T'(tau), is by central differences: not
    every process differentiates its inverse log-SNR.
    """
    with torch.no_grad():
        high, low = flow_time(process, grid[[0, -1]])
        tau = flow_time(process, at)
        there = (tau + delta).clamp(low, high)
        rate, rate_there = (_rate(process, v, low, high) for v in (tau, there))
        found = at + torch.where(there == tau, 0.0, time_of(process, there) - time_of(process, tau))
        found = found.clamp(grid[-1], grid[0])
        free = (tau + delta >= low) & (tau + delta <= high)
    if not (at.requires_grad or delta.requires_grad):
        return found
    slope = torch.where(free, rate_there, 0.0)
    return found + slope * (delta - delta.detach()) + slope / rate * (at - at.detach())


def _rate(process: Process, tau: Tensor, low: Tensor, high: Tensor) -> Tensor:
    after, before = (tau + _STEP).clamp(max=high), (tau - _STEP).clamp(min=low)
    return (time_of(process, after) - time_of(process, before)) / (after - before)


def _values(c: Coefficient) -> Tensor:
    return to_tensor(values_of(c))


def _coefficient(values: Tensor, process: Process) -> Coefficient:
    if process.kind == "diagonal":
        return Diagonal(values, values.ndim)
    if process.kind == "block":
        return Block(values)
    return values if values.requires_grad else float(values)


def _label(table: Tableau) -> str:
    return type(table.solver).__name__ if table.solver is not None else "a table"
