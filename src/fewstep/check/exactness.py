r"""What a table does to data it must carry exactly: the checks behind a solver's promises.

Point mass. For data that is one point x0 the answers are known, D = x0, so every row is a sum

$$ z_k = m_k x_0 + r_k \epsilon + \sum_l c_{k,l} \xi_l $$

and an exact sampler keeps m = M, r r^T + sum_l c_l c_l^T = Sigma at every row's own time (r = R when no noise is
added). The same propagation runs on Gaussian data N(x0, std^2), where D is linear in the state: then r stands for a
draw of the start, and mean and covariance of every row are known without sampling.

Moments. Where the prediction is a polynomial of a clock, y = ((u - u_k)/h)^p, the step of a solver in data form

$$ z = R \int d(R^{-1} M)\, y = R \Big( [R^{-1} M\, y] - \int R^{-1} M\, dy \Big) $$

is known by quadrature (Psi and R in place of R and M in noise form). Rows that interpolate through enough predictions
reproduce it to rounding; the moment test sees the weights the point mass is blind to (those of D_i - D_j).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fewstep.process.base import Memory, Process, recalling
from fewstep.process.clock import clock as clock_of
from fewstep.process.operator import Coefficient, cholesky, inverse, magnitude, root, transpose, weighted_sum
from fewstep.process.predict import VARIANCES
from fewstep.process.quadrature import gauss
from fewstep.tableau.form import Form, Symbol

if TYPE_CHECKING:
    from fewstep.tableau.row import Row
from fewstep.tableau.tableau import Tableau

__all__ = [
    "Moved", "check_moments", "check_point_mass", "gaussian", "moment_defect", "point_mass", "remembering", "stacked"
]  # fmt: skip

Moved = tuple[Coefficient, Coefficient, dict[int, Coefficient]]

_X0, _EPS, _XIS = ("x0",), ("eps",), ("xis",)
_X, _W = gauss(20)
_PANELS = 6


def point_mass(table: Tableau) -> list[Moved]:
    """(m, r, {l: c_l}) of every row for data that is one point: z = m x0 + r eps + sum c_l xi_l."""
    return gaussian(table, 0.0)


def gaussian(table: Tableau, std: float) -> list[Moved]:
    """(m, r, {l: c_l}) of every row for data N(x0, std^2 I): z = m x0 + r eps + sum c_l xi_l.

    The start is M x0 + r eps with r r^T = std^2 M M^T + Sigma; at std = 0, r = R.
    """
    forms = _forms(table, std, lambda i: Form.of(("xi", i)))
    noises = [{s[1]: c for s, c in form if s[0] == "xi"} for form in forms]
    return [(form.terms.get(_X0, 0.0), form.terms.get(_EPS, 0.0), xi) for form, xi in zip(forms, noises, strict=True)]


def stacked(table: Tableau, std: float) -> list[tuple[Coefficient, Coefficient, Coefficient]]:
    """The same with all c_l of a row in one coefficient, whose first axis is l: fast for long stochastic tables."""
    eye = torch.eye(len(table.noises), dtype=torch.float64)
    forms = _forms(table, std, lambda i: eye[i] * Form.of(_XIS))
    return [tuple(form.terms.get(symbol, 0.0) for symbol in (_X0, _EPS, _XIS)) for form in forms]


def _forms(table: Tableau, std: float, noise: Callable[[int], Form]) -> list[Form]:
    """Every row as a form in x0, eps and what `noise` makes of xi_l."""
    p, t = table.process, table.rows[0].t
    spread = p.Sigma(t) + std**2 * (p.M(t) * transpose(p.M(t))) if std else None
    start = p.M(t) * Form.of(_X0) + (cholesky(spread) if spread is not None else p.R(t)) * Form.of(_EPS)
    made: list[Form] = []
    values: dict[Symbol, Form] = {}
    for k, row in enumerate(table.rows):
        if row.given not in (None, "start"):
            raise ValueError(
                f"row {k} is given as {row.given!r}: only tables that start from noise alone can be propagated"
            )
        form = start if row.given else Form({})
        for symbol, c in row.form:
            if symbol not in values:
                values[symbol] = _value(table, symbol, made, std, noise)
            form = form + c * values[symbol]
        made.append(form)
    return made


def remembering(table: Tableau) -> AbstractContextManager[None]:
    """A block in which the table's process works out what it is asked at once for the times of all rows."""
    times = sorted({t for row in table.rows for t in (row.t, row.at) if t is not None}, reverse=True)
    return recalling(Memory(table.process, times))


def check_point_mass(table: Tableau, *, tolerance: float = 1e-10) -> None:
    """Raises a ValueError naming the row and time at which a point mass is not carried exactly (relative to 1)."""
    p, deterministic = table.process, not table.noises
    with remembering(table):
        for k, (row, (m, r, cs)) in enumerate(zip(table.rows, point_mass(table), strict=True)):
            _compare(k, row, "mean", m, p.M(row.t), tolerance)
            _compare(k, row, "covariance", covariance(r, cs), p.Sigma(row.t), tolerance)
            if deterministic:
                _compare(k, row, "noise", r, p.R(row.t), tolerance)


def covariance(r: Coefficient, cs: dict[int, Coefficient] | Coefficient) -> Coefficient:
    """The covariance r r^T + sum c_l c_l^T, of single c_l or of stacked ones."""
    total = r * transpose(r)
    if not isinstance(cs, dict):
        square = cs * transpose(cs)
        if isinstance(square, torch.Tensor):
            return total + float(square.sum())
        return total + (square if isinstance(square, float) else replace(square, values=square.values.sum(0)))
    for c in cs.values():
        total = total + c * transpose(c)
    return total


def moment_defect(table: Tableau, degree: int, *, form: str, clock: str) -> list[float]:
    """By how much every row misses a prediction ((u - u_k)/h)^degree, relative to its size over the same stretch.

    u_k and h are the clock at the time the row is made, and the distance to the state it is made from. The states it
    reads are taken at their exact values, so that every row is judged alone; given rows have no defect.
    """
    u, p = clock_of(clock), table.process
    read = lambda t: float(u.of(p, torch.tensor(t, dtype=torch.float64)))  # noqa: E731
    found = [0.0] * len(table.rows)
    for k, row in enumerate(table.rows):
        base = next((table.rows[s[1]].t for s, _ in row.form if s[0] == "z"), None)
        if row.given is not None or base is None or base == row.t:
            continue
        here = read(row.t)
        h = here - read(base)
        y = lambda v: ((v - here) / h) ** degree  # noqa: B023, E731
        slope = lambda v: degree * ((v - here) / h) ** max(degree - 1, 0) / h  # noqa: B023, E731
        exact = {}
        for s, _ in (*row.form, (("z", k), 1.0)):
            if s[0] == "z":
                t = table.rows[s[1]].t
                exact[s[1]] = _integral(p, form, (y, slope), clock, base, t)
        made: Coefficient = 0.0
        head = "x0" if form == "data" else "noise"
        for s, c in row.form:
            if s[0] == "z":
                made = made + c * exact[s[1]]
            elif s[0] == "y" and s[2] == head:
                made = made + c * y(read(_evaluated(table.rows[s[1]])))
            else:
                raise ValueError(
                    f"row {k} reads {s}, which is no prediction in {form} form: check moments in its own form"
                )
        whole = _integral(p, form, (lambda _: 1.0, lambda _: 0.0), clock, base, row.t)
        found[k] = magnitude(made - exact[k]) / magnitude(whole)
    return found


def check_moments(table: Tableau, *, tolerance: float = 1e-9) -> None:
    """Holds every row to the degree its solver declares for as many predictions as the row reads."""
    moments = table.solver.moments if table.solver is not None else None
    if moments is None:
        return
    for degree in range(max(moments.degrees) + 1):
        defects = moment_defect(table, degree, form=moments.form, clock=moments.clock)
        for k, (row, defect) in enumerate(zip(table.rows, defects, strict=True)):
            reads = sum(s[0] == "y" for s, _ in row.form)
            if reads and degree <= moments.degrees[min(reads, len(moments.degrees)) - 1] and not defect <= tolerance:
                raise ValueError(
                    f"row {k} (t = {row.t:g}) misses a prediction of degree {degree} by {defect:.2e}, where {reads} "
                    f"predictions promise {tolerance:g}: check the weights of its differences"
                )


def _value(table: Tableau, symbol: Symbol, made: list[Form], std: float, noise: Callable[[int], Form]) -> Form:
    """What a symbol is for Gaussian data: D = (x0 + std^2 M^T Sigma^-1 z) / (1 + std^2 n), n = M^T Sigma^-1 M.

    There is nothing to guide to: the head `base` is D and `guidance` zero.
    """
    kind = symbol[0]
    if kind == "z":
        return made[symbol[1]]
    if kind == "xi":
        return noise(symbol[1])
    p, j, t = table.process, symbol[1], _evaluated(table.rows[symbol[1]])
    m = p.M(t)
    matched: Coefficient = transpose(m) * inverse(p.Sigma(t)) if std else 0.0
    n = matched * m if std else 0.0
    shrink = inverse(1.0 + std**2 * n)
    if kind == "root" and symbol[2] in VARIANCES:
        return root(std**2 * n * shrink) * noise(symbol[3])
    if kind != "y" or table.output != "x0":
        own = f"the table reads {symbol}, whose value on one point is the network's own"
        raise ValueError(f"{own}: check the table in x0")
    d = shrink * Form.of(_X0) + (std**2 * (shrink * matched)) * made[j] if std else Form.of(_X0)
    if symbol[2] in ("x0", "base"):
        return d
    if symbol[2] == "guidance" or (symbol[2] == "derivative" and not std):
        return 0.0 * d
    if symbol[2] == "derivative":  # -1/2 Var(x0 | z) M^T Sigma^-1 G G^T Sigma^-1 (z - M D), zero on one point
        pull = matched * p.GG(t) * inverse(p.Sigma(t))
        return (-0.5 * std**2 * shrink * pull) * (made[j] - m * d)
    if (j, symbol[2]) not in table.heads:
        raise ValueError(f"the table reads output {symbol[2]!r}, whose value on one point is the network's own")
    a, b = table.heads[j, symbol[2]]
    return a * made[j] + b * d


def _evaluated(row: Row) -> float:
    assert row.at is not None
    return row.at


def _compare(k: int, row: Row, what: str, found: Coefficient, wanted: Coefficient, tolerance: float) -> None:
    off = magnitude(found - wanted)
    if not off <= tolerance * max(1.0, magnitude(wanted)):
        raise ValueError(
            f"row {k} (t = {row.t:g}) carries a point mass to a {what} that is off by {off:.2e}, where {tolerance:g} "
            "is allowed: check which time each coefficient of this row belongs to"
        )


def _integral(
    process: Process, form: str, y: tuple[Callable, Callable], clock: str, start: float, end: float
) -> Coefficient:
    """P_end times the integral of d(P^-1 Q) y from start to end, by parts (no derivative of the process is needed)."""
    if start == end:
        return 0.0
    front, back = (process.R, process.M) if form == "data" else (process.Psi, process.R)
    ratio = lambda t: inverse(front(t)) * back(t)  # noqa: E731
    u = clock_of(clock)
    low, high = (float(u.of(process, torch.tensor(t, dtype=torch.float64))) for t in (start, end))
    value, slope = y
    total = ratio(end) * value(high) - ratio(start) * value(low)
    if any(slope(v) for v in (low, (low + high) / 2, high)):
        width = (high - low) / _PANELS
        v = low + width * (torch.arange(_PANELS)[:, None] + (_X + 1) / 2).flatten()
        weight = (_W * width / 2).repeat(_PANELS) * slope(v)
        total = total - weighted_sum(weight, ratio(u.time(process, v)))
    return front(end) * total
