r"""What a student was made for: the tables that it brings, and which others are right for it.

A denoiser's D(z, t) is a mean of the data, which every solver may read. A network that was made for few calls returns
something else, and only rows that read that are right:

| `rows`  | the network returns                                | right is                                             |
|---------|----------------------------------------------------|------------------------------------------------------|
| `any`   | D(z, t)                                            | every table                                          |
| `jumps` | g(z, t, s), the average of D on the way from t to s | z_s = R_s R_t^-1 z + (M_s - R_s R_t^-1 M_t) g, a row |
|         |                                                    | of DDIM; with s at the data those of `ends` too      |
| `ends`  | f(z, t), where the ODE ends                        | z_s = M_s f + R_s xi, a row of LCM                   |
| `own`   | g for the times of its own tables                  | these tables                                         |

So is, for each, a table that was fitted to its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from fewstep.process.base import Process
from fewstep.process.operator import inverse, magnitude, transpose
from fewstep.tableau.form import Form
from fewstep.tableau.row import Row
from fewstep.tableau.tableau import Tableau
from fewstep.words import among

__all__ = ["ROWS", "MadeFor"]

NEAR = 1e-9  # of two weights that differ by rounding
ROWS = {
    "any": "for any solver",
    "jumps": "for jumps that hold one prediction, as ddim's, on any grid in any number of calls",
    "ends": "for jumps to the data, noised again, as lcm's, on any grid in any number of calls",
    "own": "for its own table",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class MadeFor:
    """What a network was made for; see the module's docstring.

    Attributes:
        tables: its own, by a name that says the calls.
        rows: which others are right for it, a key of `ROWS`.
        grid: the name of the grid on which it runs in other numbers of calls.
    """

    tables: Mapping[str, Tableau]
    rows: str = "own"
    grid: str = "default"

    def __post_init__(self) -> None:
        among(self, rows=ROWS)
        if not self.tables:
            raise ValueError("got no table that a student was made for: give it one")

    def __str__(self) -> str:
        calls = [str(n) for n in sorted(self.by_calls)]
        count = f"{' or '.join(calls)} network call{'s' * (calls != ['1'])}"
        return f"a student made {ROWS[self.rows]}{f' of {count}' if self.rows == 'own' else ''}"

    @property
    def by_calls(self) -> dict[int, Tableau]:
        """Its own tables by their network calls."""
        return {table.nfe: table for table in self.tables.values()}

    @property
    def solver(self) -> Any:
        """What wrote its tables."""
        return next(iter(self.tables.values())).solver

    @property
    def instead(self) -> str:
        """What to do where a choice cannot be right."""
        calls = sorted(self.by_calls)
        most = {"jumps": "choose ddim", "ends": "choose lcm", "any": "choose another"}
        own = f"leave solver, grid and end out, and give steps={' or '.join(map(str, calls))} or none"
        return own if self.rows == "own" else f"{most[self.rows]}, or leave the solver out"

    def of(self, calls: int | None, final: str = "zero") -> Tableau | None:
        """Its own table of so many calls, or of the most; None where it has none that ends so."""
        own = self.by_calls
        found = own.get(max(own) if calls is None else calls)
        return found if found is not None and (final == "zero" or found.final == final) else None

    def on(self, process: Process) -> MadeFor:
        """The same on another scalar process: its tables at the times of the same log-SNR."""
        moved = {name: _moved(table, process) for name, table in self.tables.items()}
        return self if all(moved[name] is table for name, table in self.tables.items()) else replace(self, tables=moved)

    def fits(self, table: Tableau, weights: str | None = None) -> bool:
        """Whether a table is right for the network, whose weights these are."""
        fitted = weights is not None and (table.card or {}).get("weights") == weights
        if self.rows == "any" or fitted or any(_same(table, own) for own in self.tables.values()):
            return True
        if self.rows == "own" or table.output != "x0":
            return False
        led = self.rows == "jumps"
        made = [row for row in table.rows if row.given is None]
        return all(_ends(table, row, led=led) or (led and _jump(table, row)) for row in made)


def _written(table: Tableau, row: Row) -> Form:
    """A row in states, predictions and noises alone."""
    swap = {("y", j, name): Form.total([(p, Form.of(("z", j))), (q, Form.of(("y", j, table.output)))])
            for (j, name), (p, q) in table.heads.items()}  # fmt: skip
    return Form.total((c, swap.get(symbol) or Form.of(symbol)) for symbol, c in row.form)


def _called(table: Tableau, form: Form) -> tuple[int, Row] | None:
    """The one call that a row reads, made at its state's own time."""
    read = {symbol[1:] for symbol, _ in form if symbol[0] == "y"}
    if len(read) != 1 or (found := next(iter(read)))[1] != table.output:
        return None
    at = table.rows[found[0]]
    return (found[0], at) if at.at == at.t else None


def _jump(table: Tableau, row: Row) -> bool:
    """Whether a row is the jump of the call that it reads."""
    p, form = table.process, _written(table, row)
    if (called := _called(table, form)) is None or called[1].to != row.t:
        return False
    j, at = called
    c = p.R(row.t) * inverse(p.R(at.t))
    jump = c * Form.of(("z", j)) + (p.M(row.t) - c * p.M(at.t)) * Form.of(("y", j, table.output))
    return _near(form, jump) and float(p.log_snr(row.t)) > float(p.log_snr(at.t))


def _ends(table: Tableau, row: Row, *, led: bool) -> bool:
    """Whether a row is where its call says the ODE ends, noised; `led`: the call is told that it leads there."""
    p, form = table.process, _written(table, row)
    if (called := _called(table, form)) is None or not float(p.log_snr(row.t)) > float(p.log_snr(called[1].t)):
        return False
    j, at = called
    if led and (at.to is None or float(p.log_snr(at.to)) < float(p.log_snr(p.t_min))):
        return False
    rest = form - p.M(row.t) * Form.of(("y", j, table.output))
    noise = {symbol: c for symbol, c in rest if symbol[0] == "xi"}
    variance = sum((c * transpose(c) for c in noise.values()), 0.0)
    plain = all(magnitude(c) <= NEAR for symbol, c in rest if symbol not in noise)
    return plain and magnitude(variance - p.Sigma(row.t)) <= NEAR * (1 + magnitude(p.Sigma(row.t)))


def _same(table: Tableau, own: Tableau) -> bool:
    """Whether two tables are one, up to rounding."""
    if table.process != own.process or len(table.rows) != len(own.rows) or table.output != own.output:
        return False
    times = [torch.tensor([(row.t, row.t if row.at is None else row.at) for row in t.rows]) for t in (table, own)]
    pairs = zip(table.rows, own.rows, strict=True)
    return torch.allclose(*times, rtol=NEAR, atol=NEAR) and all(
        (a.at is None) == (b.at is None) and _near(_written(table, a), _written(own, b)) for a, b in pairs
    )


def _near(a: Form, b: Form) -> bool:
    return all(magnitude(c) <= NEAR for _, c in a - b)


def _moved(table: Tableau, process: Process) -> Tableau:
    """The solver's table at the times of another process with the same log-SNR, within its range."""
    if table.process == process:
        return table
    ends = process.t_min if process.t_zero is None else process.t_zero
    low, high = (float(process.log_snr(t)) for t in (process.t_max, ends))
    lam = torch.as_tensor(table.process.log_snr(table.grid), dtype=torch.float64).clamp(low, high)
    times = torch.as_tensor(process.inverse_log_snr(lam), dtype=torch.float64)
    return table.solver.tabulate(process, torch.where(lam == high, ends, torch.where(lam == low, process.t_max, times)))
