"""Tables from files: what their JSON may hold, and what holds of every table that is saved or loaded, so that it runs.

`Tableau.validate` asks of any table that its rows read what is made. A file comes from anywhere: here its values get
their types, and its times, noises, heads, given rows, shapes and card are held against the process. Numbers may be
wrong, as long as they are numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.files import check_depth
from fewstep.process.base import Process
from fewstep.process.clock import falling, place
from fewstep.process.operator import Block, Coefficient, Diagonal, magnitude, values_of
from fewstep.process.predict import PREDICTIONS, VARIANCES
from fewstep.tableau.form import Form, Symbol
from fewstep.tableau.row import HEADS, LARGEST, ONES, NoiseInterval, Row, Table, name
from fewstep.words import bounded, short

__all__ = ["check_rule", "check_sound", "entries", "heads_of", "noise_of", "row_of", "take", "text"]

_SYMBOLS = {"z": (int,), "y": (int, str), "xi": (int,), "root": (int, str, int)}
_LETTERS = 200  # of a word


def number(value: Any, what: str) -> float:
    """A JSON number that is finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise ValueError(f"{what} is {short(value)}, where a finite number belongs")
    return float(value)


def text(value: Any, what: str) -> str:
    """A JSON text that is a word."""
    if not isinstance(value, str) or not 0 < len(value) <= _LETTERS or not value.isprintable():
        raise ValueError(f"{what} is {short(value)}, where a word belongs")
    return value


def entries(value: Any, what: str, count: int | None = None) -> list[Any]:
    """A JSON list, of `count` entries."""
    if not isinstance(value, list) or (count is not None and len(value) != count):
        raise ValueError(f"{what} is {short(value)}, where a list{f' of {count}' if count else ''} belongs")
    return value


def fields(value: Any, what: str, names: tuple[str, ...]) -> list[Any]:
    """The values of a JSON object that has these keys and no others."""
    if not isinstance(value, dict) or set(value) != set(names):
        raise ValueError(f"{what} is {short(value)}, where an object of {', '.join(names)} belongs")
    return [value[key] for key in names]


def symbol_of(value: Any, what: str) -> Symbol:
    """A symbol of a form, as `fewstep.tableau.form` has them."""
    kind, *rest = entries(value, what) or [None]
    types = _SYMBOLS.get(kind) if isinstance(kind, str) else None
    if types is None or [type(v) for v in rest] != list(types):
        raise ValueError(f"{what} is {short(value)}, which is no symbol: {', '.join(_SYMBOLS)} are known")
    return (kind, *(text(v, what) if isinstance(v, str) else v for v in rest))


def form_of(value: Any, numbers: Tensor, what: str) -> Form:
    """A form: pairs of a symbol and where its weight lies; no symbol twice."""
    pairs = [entries(pair, f"a term of {what}", 2) for pair in entries(value, f"the form of {what}")]
    terms = {symbol_of(s, f"a term of {what}"): take(numbers, at, what) for s, at in pairs}
    if len(terms) != len(pairs):
        raise ValueError(f"{what} has a term twice")
    return Form(terms)


def row_of(k: int, value: Any, numbers: Tensor) -> Row:
    """A row of the table."""
    what = f"row {k}"
    to = value.pop("to", None) if isinstance(value, dict) else None  # older files do not have it
    t, at, given, form = fields(value, what, ("t", "at", "given", "form"))
    return Row(
        number(t, f"the time of {what}"),
        None if at is None else number(at, f"the network's time of {what}"),
        form_of(form, numbers, what),
        None if given is None else text(given, f"what is given as {what}"),
        None if to is None else number(to, f"the time that {what} leads to"),
    )


def noise_of(k: int, value: Any) -> NoiseInterval:
    """A noise of the table."""
    t, s, stream, index = fields(value, f"noise {k}", ("t", "s", "stream", "index"))
    if type(index) is not int or not 0 <= index < 2**31:
        raise ValueError(f"the index of noise {k} is {short(index)}, where a whole number below 2^31 belongs")
    return NoiseInterval(
        number(t, f"a time of noise {k}"), number(s, f"a time of noise {k}"), text(stream, f"the stream of noise {k}"),
        index,
    )  # fmt: skip


def heads_of(value: Any, numbers: Tensor) -> dict[tuple[int, str], tuple[Coefficient, Coefficient]]:
    """The derived heads of the table."""
    heads = {}
    for k, head in enumerate(entries(value, "heads")):
        key, p, q = entries(head, f"head {k}", 3)
        j, label = entries(key, f"the key of head {k}", 2)
        if type(j) is not int or not isinstance(label, str):
            raise ValueError(f"the key of head {k} is {short(key)}, where the number of a row and a word belong")
        heads[j, label] = (take(numbers, p, f"head {k}"), take(numbers, q, f"head {k}"))
    return heads


def take(numbers: Tensor, at: Any, what: str) -> Coefficient:
    """The weight at [offset, shape], or [offset, shape, rank] of a diagonal."""
    start, shape, *rank = entries(at, f"a weight of {what}") + [None] * (2 - len(at))
    sizes = [] if shape is None else entries(shape, f"a shape of {what}")
    plain = all(type(v) is int and 0 <= v <= len(numbers) for v in (start, *sizes, *rank))
    if not plain or len(rank) > 1 or start + math.prod(sizes) > len(numbers) or (rank and rank[0] != len(sizes)):
        raise ValueError(f"a weight of {what} lies at {short(at)}, outside the {len(numbers)} numbers of the file")
    if shape is None:
        return float(numbers[start])
    values = numbers[start : start + math.prod(sizes)].reshape(sizes)
    if rank:
        return Diagonal(values, rank[0])
    return values if len(sizes) == 1 else Block(values)


def check_rule(calls: int, process: Process) -> None:
    """Refuses a rule that takes too long to write again, or too much room."""
    bounded("network calls of a rule", calls)
    bounded("frequencies times network calls of a rule", calls * math.prod(getattr(process, "size", ())))


def check_sound(table: Table) -> None:
    """What a table must be beside `Tableau.validate` to be saved, loaded, explained and run on its process.

    Raises:
        ValueError: naming the row, the noise or the head at fault.
    """
    process = table.process
    falling(table.grid, process)
    bounded("rows of a table", len(table.rows))
    bounded("terms of a table", sum(len(row.form.terms) for row in table.rows))
    bounded("noises of a table", len(table.noises))
    times = [t for row in table.rows for t in (row.t, row.at, row.to) if t is not None]
    times += [t for noise in table.noises for t in (noise.t, noise.s)]
    process.check_times(torch.tensor(times, dtype=torch.float64))
    for k, noise in enumerate(table.noises):  # those of other streams are drawn by number
        if noise.stream == "path" and not 0 <= place(process, noise.t) < place(process, noise.s) <= 1:
            raise ValueError(f"noise {k} is of [{noise.t:g}, {noise.s:g}], which is no interval of the path")
    pixels = next((tuple(c.values.shape) for row in table.rows for _, c in row.form if isinstance(c, Diagonal)), None)
    if table.output != "x0" and table.output not in PREDICTIONS:
        raise ValueError(f"it reads {short(table.output)}, and networks predict x0, {', '.join(PREDICTIONS)}")
    for (j, head), pair in table.heads.items():
        if head != "noise" or not (0 <= j < len(table.rows) and table.rows[j].at is not None):
            raise ValueError(f"it derives {short(head)} of row {short(j)}: only noise of an evaluated row is derived")
        for symbol, c in zip((("z", j), ("y", j, table.output)), pair, strict=True):
            _check_weight(table, pixels, f"the noise of row {j}", symbol, c)
    known = {table.output, *HEADS}
    for k, row in enumerate(table.rows):
        if row.given not in ((None, ONES) if k else ("start",)):
            raise ValueError(f"row {k} is given as {row.given!r}: a file's tables are given a start and {ONES}")
        if row.given == ONES and row.at is not None:
            raise ValueError(f"row {k} is {ONES} and evaluated: only states are")
        for symbol, c in row.form:
            if symbol[0] in ("y", "root") and symbol[2] not in known and (symbol[1], symbol[2]) not in table.heads:
                raise ValueError(f"row {k} reads {name(symbol)[:99]}, which no denoiser of this library returns")
            _check_weight(table, pixels, f"row {k}", symbol, c)
    _check_card(table.card)


def _check_weight(table: Table, pixels: Any, where: str, symbol: Symbol, c: Coefficient) -> None:
    """A weight has the form that the process's coefficients have: a number, one a frequency, or a small block."""
    process, shape = table.process, tuple(getattr(values_of(c), "shape", ()))
    if process.kind == "block":
        wanted = ((Block, (2, 1)),) if _is_data(table, symbol) else ((float, ()), (Block, (2, 2)))
        good = symbol[0] != "root" and (symbol[0] != "y" or symbol[2] not in VARIANCES)  # it has one per frequency
    else:
        wanted = ((float, ()), (Diagonal, getattr(process, "size", pixels)))
        good = True
    if not (good and (type(c), shape) in wanted and magnitude(c) <= LARGEST):
        what = f"a {type(c).__name__.lower()} of shape {shape}" if shape else f"{c!r:.60}"
        raise ValueError(f"{where} weighs {name(symbol)} with {what}, which is no coefficient of {process}")


def _is_data(table: Table, symbol: Symbol) -> bool:
    """Whether a symbol has the shape of data, and not of a state, where the two differ."""
    if symbol[0] not in ("y", "root") or (symbol[1], symbol[2]) in table.heads:
        return False
    return not (symbol[2] == table.output and symbol[2] in ("noise", "score"))


def _check_card(card: Mapping[str, Any] | None) -> None:
    """A card is an object; what is read of it has its type."""
    if card is None:
        return
    if not isinstance(card, Mapping):
        raise ValueError(f"its card is {short(card)}, where an object belongs")
    check_depth(card)
    if "guidance" in card:
        number(card["guidance"], "the guidance of its card")
    if card.get("weights") is not None:
        text(card["weights"], "the weights of its card")
