"""A writer through which a solver writes into the rows of another writer."""

from __future__ import annotations

from fewstep.process.base import Time
from fewstep.tableau.form import Form
from fewstep.tableau.row import Author
from fewstep.tableau.tableau import Tableau
from fewstep.tableau.writer import Writer

__all__ = ["Through"]


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

    def given(self, label: str) -> Form:
        return self.w.given(label)

    def ones(self) -> Form:
        return self.w.ones()

    def row(self, form: Form, t: Time) -> Form:
        return self.w.row(form, t)

    def call(self, z: Form, at: Time, *, to: Time | None = None) -> Form:
        return self.w.call(z, at, to=to)

    def eps(self, z: Form) -> Form:
        return self.w.eps(z)

    def head(self, z: Form, label: str) -> Form:
        return self.w.head(z, label)

    def noise(self, t: Time, s: Time) -> Form:
        return self.w.noise(t, s)

    def fresh_noise(self, t: float, s: float, stream: str) -> Form:
        return self.w.fresh_noise(t, s, stream)

    def root(self, variance: Form, xi: Form) -> Form:
        return self.w.root(variance, xi)

    def table(self, solver: Author) -> Tableau:
        return self.w.table(solver)
