r"""Linear forms: what a row is made of while a solver writes it.

A form is a sparse sum of coefficients times symbols. The symbols are

    ("z", k)             the state of row k
    ("y", j, head)       output `head` of the call at row j
    ("xi", l)            the standard normal of noise l
    ("root", j, head, l) sqrt(output `head` of row j) times noise l: a variance the network predicts

Forms add, subtract, and take a coefficient on the left, so a published update is traced by writing it down.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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

    def __add__(self, other: Form) -> Form:
        terms = dict(self.terms)
        for symbol, c in other.terms.items():
            terms[symbol] = terms[symbol] + c if symbol in terms else c
        return Form(terms)._without_zeros()

    def __sub__(self, other: Form) -> Form:
        return self + -1.0 * other

    def __neg__(self) -> Form:
        return -1.0 * self

    def __rmul__(self, c: Coefficient) -> Form:
        return Form({symbol: c * d for symbol, d in self.terms.items()})._without_zeros()

    def __iter__(self) -> Iterator[tuple[Symbol, Coefficient]]:
        return iter(self.terms.items())

    def _without_zeros(self) -> Form:
        return Form({symbol: c for symbol, c in self.terms.items() if not is_zero(c)})
