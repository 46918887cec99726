r"""The table: a sampler with process, solver and grid fixed, as numbers.

$$ z_k = \sum_{i<k} A_{k,i} z_i + \sum_{j<k,h} B_{k,j,h}\, y_{j,h} + \sum_l C_{k,l}\, \xi_l
       + \sum_{j<k,h,l} V_{k,j,h,l} \sqrt{y_{j,h}}\, \xi_l $$

Rows are states in the order they are made; the last one is the result. `y_{j,h}` is output ("head") h of the network
call at row j. Head `x0` is the data prediction D_j; head `noise` is eps_j = R^-1 (z_j - M D_j), computed from it; any
other head is one the denoiser returns by that name. `xi_l` is the standard normal of a named interval of the path.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewstep.process.operator import Block, Coefficient, Diagonal, magnitude
from fewstep.process.predict import conversion
from fewstep.tableau.file import load, save
from fewstep.tableau.form import Form, Symbol
from fewstep.tableau.row import LARGEST, Table, name

__all__ = ["Tableau"]


@dataclass(frozen=True, eq=False)
class Tableau(Table):
    """Rows, the noises they use, the process they live on and the grid they were written for.

    `output` is what a call returns into: "x0", or after `in_terms_of` a network's own prediction. `heads` maps a
    derived head (j, name) to the pair (P, Q) with y = P z_j + Q output_j. `card` says what a fitted table was fitted to
    and how well, ready for JSON (see `fewstep.fit`). `solver` is what wrote it.
    """

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made of: without the notes, which it takes for itself."""
        return {**vars(self), "notes": {}}

    def __post_init__(self) -> None:
        self.validate()

    def __eq__(self, other: object) -> bool:
        """Equal numbers, row by row: the same rows, noises, process, grid and output."""
        if not isinstance(other, Tableau):
            return NotImplemented
        mine, theirs = (
            (t.process, t.noises, t.output, t.grid.tolist(), [(r.t, r.at, r.given, r.to) for r in t.rows])
            for t in (self, other)
        )
        if mine != theirs:
            return False
        return all(a.form == b.form for a, b in zip(self.rows, other.rows, strict=True))

    @property
    def nfe(self) -> int:
        """Network calls: the rows that are evaluated."""
        return sum(row.at is not None for row in self.rows)

    @property
    def destinations(self) -> list[float]:
        """Where the calls lead, in order; refused where a row does not say, as in files of before."""
        for k, row in enumerate(self.rows):
            if row.at is not None and row.to is None:
                raise ValueError(
                    f"row {k} of the table does not say where its call leads, which the denoiser reads: write it anew"
                )
        return [row.to for row in self.rows if row.to is not None]

    @property
    def final(self) -> str:
        """Where it ends: "zero", at sigma = 0, or "state", where noise is left."""
        return "zero" if float(self.process.log_snr(float(self.grid[-1]))) == math.inf else "state"

    @property
    def given(self) -> tuple[str, ...]:
        """The names of the rows handed in, "start" first."""
        return tuple(row.given for row in self.rows if row.given is not None)

    def column(self, kind: str) -> dict[tuple[Any, ...], Coefficient]:
        """The sparse entries of one letter: A by (k, i), B by (k, j, head), C by (k, l), V by (k, j, head, l)."""
        tag = {"A": "z", "B": "y", "C": "xi", "V": "root"}[kind]
        return {(k, *s[1:]): c for k, row in enumerate(self.rows) for s, c in row.form if s[0] == tag}

    def last_use(self) -> dict[Symbol, int]:
        """For every state and output the last row that reads it: after that row it is freed.

        A state is also read by its own call, and by the heads derived from it.
        """
        last: dict[Symbol, int] = {}
        for k, row in enumerate(self.rows):
            for symbol, _ in row.form:
                read = [("y", *symbol[1:3]), ("xi", symbol[3])] if symbol[0] == "root" else [symbol]
                last |= dict.fromkeys(read, k)
        last["z", len(self.rows) - 1] = len(self.rows)
        return last

    def eliminate(self) -> Tableau:
        """The same sampler with every state written from given rows, data predictions and noises alone.

        Two tables are the same sampler exactly when their eliminated forms agree. Derived heads are written out too.
        """
        made: list[Form] = []
        for k, row in enumerate(self.rows):
            if row.given is not None:
                made.append(Form.of(("z", k)))
                continue
            made.append(Form.total((c, self._eliminated(symbol, made)) for symbol, c in row.form))
        rows = tuple(
            replace(row, form=row.form if row.given else form) for row, form in zip(self.rows, made, strict=True)
        )
        return replace(self, rows=rows, heads={})

    def _eliminated(self, symbol: Symbol, made: list[Form]) -> Form:
        if symbol[0] == "z":
            return made[symbol[1]]
        if symbol[0] == "y" and (symbol[1], symbol[2]) in self.heads:
            p, q = self.heads[symbol[1], symbol[2]]
            return p * made[symbol[1]] + q * Form.of(("y", symbol[1], self.output))
        return Form.of(symbol)

    def in_terms_of(self, prediction: str) -> Tableau:
        """The same sampler reading a network's raw output (`noise`, `v`, `flow`, ...), without conversion passes.

        Every D_j becomes p_j z_j + q_j F_j, with p and q from `fewstep.denoiser.PREDICTIONS`.
        """
        if self.output != "x0":
            raise ValueError(f"got a table that already reads {self.output!r}: rewrite the original one")
        swap: dict[Symbol, Form] = {}
        exact = prediction == "noise" and self.process.kind != "block"  # a block's noise is read through its velocity
        heads, rows = dict(self.heads), []
        for j, row in enumerate(self.rows):
            form = Form.total((c, swap.get(symbol) or Form.of(symbol)) for symbol, c in row.form)
            rows.append(replace(row, form=form))
            if row.at is None:
                continue
            p, q = conversion(prediction, self.process, row.at)
            state, raw = Form.of(("z", j)), Form.of(("y", j, prediction))
            swap["y", j, "x0"] = p * state + q * raw
            if (j, "noise") in heads:
                a, b = heads.pop((j, "noise"))
                swap["y", j, "noise"] = raw if exact else (a + b * p) * state + (b * q) * raw
        return replace(self, rows=tuple(rows), heads=heads, output=prediction)

    def validate(self) -> None:
        """Shape, causality, finite coefficients; a ValueError names the row."""
        if not self.rows or self.rows[0].given != "start":
            raise ValueError("got a table whose first row is not the start: row 0 must be given as 'start'")
        for k, row in enumerate(self.rows):
            if row.given is not None and row.form.terms:
                raise ValueError(f"row {k} is given as {row.given!r} and made from other rows: choose one")
            if row.given is None and not row.form.terms:
                raise ValueError(f"row {k} (t = {row.t:g}) is empty: every row that is not given needs a term")
            for symbol, c in row.form:
                if fault := self._fault(k, symbol, c):
                    raise ValueError(f"row {k} (t = {row.t:g}) {fault}")

    def _fault(self, k: int, symbol: Symbol, c: Coefficient) -> str:
        """What is wrong with a term of row k, if anything is."""
        kind, index = symbol[0], symbol[1]
        if not (abs(c) if type(c) is float else magnitude(c)) <= LARGEST:
            return f"has a weight that is not finite on {name(symbol)}: this end is singular for it"
        if kind in ("z", "y", "root") and not 0 <= index < k:
            return f"reads {name(symbol)}, which is not made yet: rows read earlier rows only"
        if kind in ("y", "root") and self.rows[index].at is None:
            return f"reads {name(symbol)}, but row {index} is not evaluated"
        if kind in ("xi", "root") and not 0 <= symbol[-1] < len(self.noises):
            return f"reads noise {symbol[-1]}, of which the table has {len(self.noises)}"
        return ""

    def explain(self) -> str:
        """A readable printout: rows, their times and log-SNRs, which are evaluated, and the weights of each."""
        process = self.process
        stochastic = f", {len(self.noises)} noises" if self.noises else ""
        lines = [
            f"{_label(self)} on {type(process).__name__}: {len(self.grid) - 1} steps, {self.nfe} network calls, "
            f"{len(self.rows)} rows{stochastic}",
            f"{'row':>4} {'time':>10} {'log-SNR':>8}  call  made of",
        ]
        for k, row in enumerate(self.rows):
            call = "" if row.at is None else "yes" if row.at == row.t else f"{row.at:g}"
            made = row.given or "  ".join(f"{_weight(c)} {name(symbol)}" for symbol, c in row.form)
            lines.append(f"{k:>4} {row.t:>10.6g} {float(process.log_snr(row.t)):>8.3f}  {call:<4}  {made}")
        if any(isinstance(c, Diagonal) for row in self.rows for _, c in row.form):
            what = "frequency" if process.kind == "diagonal" else "pixel"
            lines.append(f"weights are per {what}: the first and the last one are shown")
        lines += [f"  xi{i}: standard normal of {n.stream} [{n.t:g}, {n.s:g}]" for i, n in enumerate(self.noises[:3])]
        if len(self.noises) > 3:
            lines.append(f"  ... and so on to xi{len(self.noises) - 1}")
        if self.card is not None:
            lines.append(f"fitted: {json.dumps(self.card)}")
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Writes the table as safetensors with a JSON header (a few kB)."""
        save(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> Tableau:
        """Reads a table that can be explained, saved again and run; anything else is refused.

        Raises:
            ValueError: one sentence, naming what is wrong with the file.
            OSError: where there is none.
        """
        return load(Path(path), Tableau)


def _label(table: Tableau) -> str:
    if table.solver is None:
        return "table"
    return _spelt(table.solver.config())


def _spelt(config: dict[str, Any]) -> str:
    """A solver's config as it is called, solvers inside it too; lists of numbers are in the rows."""
    options = {k: v for k, v in config.items() if k != "class" and not isinstance(v, list | tuple)}
    said = {k: _spelt(v) if isinstance(v, dict) and "class" in v else repr(v) for k, v in options.items()}
    return f"{config['class']}({', '.join(f'{k}={v}' for k, v in said.items())})"


def _weight(c: Coefficient) -> str:
    if isinstance(c, Diagonal):
        flat = c.values.flatten()
        return f"{flat[0]:+.5g}..{flat[-1]:+.5g}"
    if isinstance(c, Block):
        return "[" + "; ".join(" ".join(f"{x:+.4g}" for x in line) for line in c.values.tolist()) + "]"
    return f"{float(c):+.6g}"
