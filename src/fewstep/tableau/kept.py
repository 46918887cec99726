"""Tables that were written lately: the same solver, process and times give the same table, so it is kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch

from fewstep.process.operator import Operator
from fewstep.tableau.tableau import Tableau

__all__ = ["forget", "kept", "said"]

_NUMBERS = 2**22  # that are kept in all: 32 MiB
_PARTS = 64  # whose repr is remembered
_TABLES: OrderedDict[Hashable, tuple[Tableau, int]] = OrderedDict()
_held = 0  # numbers of theirs
_SAID: OrderedDict[int, tuple[Any, str]] = OrderedDict()  # by identity, which is theirs as they are held
_LOCK = threading.Lock()


def kept(key: Hashable, make: Callable[[], Tableau]) -> Tableau:
    """The table of a key, which says all that it depends on; made where it is not among the latest ones."""
    try:
        with _LOCK:
            if (found := _TABLES.get(key)) is not None:
                _TABLES.move_to_end(key)
                return _apart(found[0])
    except TypeError:  # an option that has no hash, as a list
        return make()
    table = make()
    global _held
    with _LOCK:
        _held += _size(table) - _TABLES.pop(key, (table, 0))[1]
        _TABLES[key] = table, _size(table)
        while _held > _NUMBERS:
            _held -= _TABLES.popitem(last=False)[1][1]
    return _apart(table)


def forget() -> None:
    """Keeps nothing of what was written before."""
    global _held
    with _LOCK:
        _TABLES.clear()
        _held = 0


def said(part: Any) -> str:
    """The repr of something frozen, remembered: that of a process of a thousand numbers takes as long as a run."""
    held, text = _SAID.get(id(part), (None, ""))
    if held is not part:
        text = repr(part)
        with _LOCK:
            _SAID[id(part)] = part, text
            while len(_SAID) > _PARTS:
                _SAID.popitem(last=False)
    return text


def _apart(table: Tableau) -> Tableau:
    """The table with a grid and heads of its own, as people write into what they are handed; with the same notes."""
    with torch.inference_mode(False):
        own = {"grid": table.grid.clone(), "heads": dict(table.heads)}
    found = object.__new__(Tableau)
    vars(found).update(vars(table) | own)
    return found


def _size(table: Tableau) -> int:
    """How many numbers a table holds, its terms counted a few times for what they weigh beside their number."""
    if "size" not in table.notes:
        coefficients = [c for row in table.rows for c in row.form.terms.values()]
        coefficients += [c for pair in table.heads.values() for c in pair]
        larger = (c.values.numel() for c in coefficients if type(c) is not float and isinstance(c, Operator))
        table.notes["size"] = 16 * len(coefficients) + sum(larger)
    return table.notes["size"]
