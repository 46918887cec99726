"""What a table is made of: its rows and noises, what made them, and how a symbol is printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from fewstep.process.base import Process
from fewstep.process.operator import Coefficient, inverse
from fewstep.tableau.form import Form, Symbol

__all__ = ["HEADS", "LARGEST", "ONES", "Author", "NoiseInterval", "Row", "Table", "name", "noise_head"]

ONES = "ones"  # the given row that the loop makes itself: a constant, for affine terms
HEADS = ("base", "guidance", "derivative", "sn", "npr")  # further outputs that tables of this library read
LARGEST = 3e38  # a weight that float32 holds


@dataclass(frozen=True)
class Row:
    """One state: made at time `t` (where exactness is checked), evaluated at time `at` (the network's), or not (None).

    `given` names a row that is handed in (the start, a corrupted image) instead of made from its form. `to` is the time
    that the call leads to, which denoisers with a destination read (`fewstep.denoiser.base`); None is not known.
    """

    t: float
    at: float | None
    form: Form
    given: str | None = None
    to: float | None = None


@dataclass(frozen=True)
class NoiseInterval:
    """Where a standard normal belongs: the path between two times (stream "path"), or draw `index` of a stream."""

    t: float
    s: float
    stream: str = "path"
    index: int = 0


class Author(Protocol):
    """What wrote a table: a solver, of which no more is known here."""

    def config(self) -> dict[str, Any]: ...
    def calls(self, steps: int, *, to_zero: bool) -> int: ...
    def tabulate(self, process: Process, grid: Tensor) -> Any: ...


@dataclass(frozen=True, eq=False)
class Table:
    """What a `Tableau` holds; it says what each field is."""

    rows: tuple[Row, ...]
    noises: tuple[NoiseInterval, ...]
    process: Process
    grid: Tensor
    solver: Any = None  # an `Author`
    output: str = "x0"
    heads: Mapping[tuple[int, str], tuple[Coefficient, Coefficient]] = field(default_factory=dict)
    card: Mapping[str, Any] | None = None
    notes: dict[str, Any] = field(default_factory=dict, init=False, repr=False)  # what runs work out of it, once


def noise_head(process: Process, at: float) -> tuple[Coefficient, Coefficient]:
    """(P, Q) of eps = R^-1 (z - M D)."""
    r = inverse(process.R(at))
    return r, -1.0 * (r * process.M(at))


def name(symbol: Symbol) -> str:
    """A symbol as `explain` prints it: z3, x0[3], noise[3], xi2."""
    if symbol[0] == "z":
        return f"z{symbol[1]}"
    if symbol[0] == "y":
        return f"{symbol[2]}[{symbol[1]}]"
    return f"xi{symbol[1]}" if symbol[0] == "xi" else f"sqrt({symbol[2]}[{symbol[1]}]) xi{symbol[3]}"
