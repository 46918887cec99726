"""The writer: what a solver holds while it writes a table, in the letters of its paper; and one around another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.process.base import Process, Time
from fewstep.process.operator import Coefficient
from fewstep.tableau.form import Form, Symbol
from fewstep.tableau.row import ONES, Author, NoiseInterval, Row, noise_head
from fewstep.tableau.tableau import Tableau

__all__ = ["Through", "Writer"]


class Writer:
    """Collects rows. `start` is z_0; `call` evaluates a row; `row` makes one; `noise` names an interval.

    A row is a form with a single symbol, so what `row` returns can be used at once in the next update.
    """

    def __init__(self, process: Process, grid: Tensor) -> None:
        self.process = process
        Writer.on(self, grid.tolist())
        self._rows: list[list[Any]] = [[self.times[0], None, Form({}), "start", None]]  # what a `Row` is made of
        self._noises: list[NoiseInterval] = []
        self._heads: dict[tuple[int, str], tuple[Coefficient, Coefficient]] = {}
        self.start = Form.of(("z", 0))
        self._ones: Form | None = None
        self._onward = dict(self.steps)

    def on(self, times: list[float]) -> None:
        """Takes these times, and the steps between them, for those of the grid."""
        self.times, self.grid = times, torch.tensor(times, dtype=torch.float64)
        self.steps = list(zip(times[:-1], times[1:], strict=True))

    @property
    def last(self) -> Form:
        """The row made last, or the start."""
        return Form.of(("z", len(self._rows) - 1))

    def given(self, label: str) -> Form:
        """A constant row handed in beside the start."""
        self._rows.append([self.times[0], None, Form({}), label, None])
        return Form.of(("z", len(self._rows) - 1))

    def ones(self) -> Form:
        """A constant row of ones, for affine terms; the loop makes it."""
        self._ones = self._ones or self.given(ONES)
        return self._ones

    def row(self, form: Form, t: Time) -> Form:
        """Makes a state at time t."""
        self._rows.append([t, None, form, None, None])
        return Form.of(("z", len(self._rows) - 1))

    def call(self, z: Form, at: Time, *, to: Time | None = None) -> Form:
        """Evaluates a state at time `at`; returns the data prediction D.

        `to` is the time that the call leads to: of a stage the end of its step; where it is not said, the first time of
        the grid after the state's own, or at the end of the grid that time itself.
        """
        k = _index(z)
        row = self._rows[k]
        row[1], row[4] = at, self._after(row[0]) if to is None else to
        return Form.of(("y", k, "x0"))

    def eps(self, z: Form) -> Form:
        """The noise prediction eps = R^-1 (z - M D) of an evaluated row."""
        k = _index(z)
        at = self._rows[k][1]
        assert at is not None
        self._heads[k, "noise"] = noise_head(self.process, at)
        return Form.of(("y", k, "noise"))

    def head(self, z: Form, label: str) -> Form:
        """Another output of the call at an evaluated row, by the name the denoiser returns it under."""
        return Form.of(("y", _index(z), label))

    def noise(self, t: Time, s: Time) -> Form:
        """The standard normal of the path between two times."""
        return self._xi(NoiseInterval(t, s))

    def fresh_noise(self, t: float, s: float, stream: str) -> Form:
        """A standard normal that is no part of the path (noise that is added and taken away again)."""
        index = sum(n.stream == stream for n in self._noises)
        return self._xi(NoiseInterval(t, s, stream, index))

    def root(self, variance: Form, xi: Form) -> Form:
        """sqrt(a predicted variance) * noise."""
        (_, j, label), (_, index) = _symbol(variance), _symbol(xi)
        return Form.of(("root", j, label, index))

    def table(self, solver: Author | None) -> Tableau:
        rows = tuple(Row(*row) for row in self._rows)
        return Tableau(rows, tuple(self._noises), self.process, self.grid, solver, heads=self._heads)

    def _after(self, t: float) -> float:
        found = self._onward.get(t)
        return found if found is not None else next((s for s in self.times if s < t), t)

    def _xi(self, interval: NoiseInterval) -> Form:
        self._noises.append(interval)
        return Form.of(("xi", len(self._noises) - 1))


class Through(Writer):
    """Does all that it is asked by asking another writer, `w`; its start, its times and its steps are its own.

    A solver around a solver hands one on: it overrides `row`, `call` or `eps`, and goes on with `super()`.
    """

    def __init__(self, w: Writer) -> None:
        self.w, self.process = w, w.process
        self.start, self.times, self.steps, self.grid = w.start, w.times, w.steps, w.grid

    def between(self, start: Form, times: list[float]) -> Through:
        """Itself, from another start on other times."""
        self.start = start
        Writer.on(self, times)
        return self

    def on(self, times: list[float]) -> None:
        """The same in the writer behind, for those of its times that were the ones here."""
        outer, before = self.w.times, self.times
        Writer.on(self, times)
        k = outer.index(before[0]) if before[0] in outer else len(outer)
        if outer[k : k + len(before)] == before:
            self.w.on([*outer[:k], *times, *outer[k + len(before) :]])

    @property
    def last(self) -> Form:
        return self.w.last


def _asks(name: str) -> Callable[..., Any]:
    return lambda self, *args, **options: getattr(self.w, name)(*args, **options)


for _name in ("given", "ones", "row", "call", "eps", "head", "noise", "fresh_noise", "root", "table"):
    setattr(Through, _name, _asks(_name))


def _symbol(form: Form) -> Symbol:
    (symbol,) = form.terms
    return symbol


def _index(form: Form) -> int:
    kind, index = _symbol(form)
    assert kind == "z"
    return index
