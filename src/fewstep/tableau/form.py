r"""Linear forms: what a row is made of while a solver writes it.

A form is a sparse sum of coefficients times symbols. The symbols are

    ("z", k)             the state of row k
    ("y", j, head)       output `head` of the call at row j
    ("xi", l)            the standard normal of noise l
    ("root", j, head, l) sqrt(output `head` of row j) times noise l: a variance the network predicts

Forms add, subtract, and take a coefficient on the left, so a published update is traced by writing it down.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fewstep.process.operator import Coefficient, is_zero

__all__ = ["Form", "Symbol"]

Symbol = tuple[Any, ...]


@dataclass(frozen=True)
class Form:
    """A sum of coefficient * symbol; terms whose coefficient is exactly zero are left out."""

    terms: Mapping[Symbol, Coefficient]

    @staticmethod
    def of(symbol: Symbol) -> Form:
        return Form({symbol: 1.0})

    @staticmethod
    def total(parts: Iterable[tuple[Coefficient, Form]]) -> Form:
        """The sum of coefficient * form."""
        terms: dict[Symbol, Coefficient] = {}
        for c, form in parts:
            for symbol, d in form.terms.items():
                terms[symbol] = terms[symbol] + c * d if symbol in terms else c * d
        return Form(_without_zeros(terms))

    def __add__(self, other: Form) -> Form:
        terms = dict(self.terms)
        for symbol, c in other.terms.items():
            terms[symbol] = terms[symbol] + c if symbol in terms else c
        return Form(terms if len(terms) == len(self.terms) + len(other.terms) else _without_zeros(terms))

    def __sub__(self, other: Form) -> Form:
        return self + -1.0 * other

    def __neg__(self) -> Form:
        return -1.0 * self

    def __rmul__(self, c: Coefficient) -> Form:
        terms = {}
        for symbol, d in self.terms.items():
            e = c * d
            if e != 0.0 if type(e) is float else not is_zero(e):
                terms[symbol] = e
        return Form(terms)

    def __iter__(self) -> Iterator[tuple[Symbol, Coefficient]]:
        return iter(self.terms.items())


def _without_zeros(terms: dict[Symbol, Coefficient]) -> dict[Symbol, Coefficient]:
    """The terms, without those that are exactly zero (most often none, and then it is the same dictionary)."""
    for c in terms.values():
        if c == 0.0 if type(c) is float else is_zero(c):
            return {symbol: c for symbol, c in terms.items() if not is_zero(c)}
    return terms
