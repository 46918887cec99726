"""Tables that were written lately: the same solver, process and times give the same table, so it is kept."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch

from fewstep.process.operator import Block, Diagonal
from fewstep.tableau.tableau import Tableau

__all__ = ["forget", "kept"]

_NUMBERS = 2**22  # that are kept in all: 32 MiB
_TABLES: OrderedDict[Hashable, tuple[Tableau, int]] = OrderedDict()
_LOCK = threading.Lock()


def kept(key: Hashable, make: Callable[[], Tableau]) -> Tableau:
    """The table of a key, which says all that it depends on; made where it is not among the latest ones."""
    try:
        with _LOCK:
            if key in _TABLES:
                _TABLES.move_to_end(key)
                return _apart(_TABLES[key][0])
    except TypeError:  # an option that has no hash, as a list
        return make()
    table = make()
    with _LOCK:
        _TABLES[key] = table, _size(table)
        _TABLES.move_to_end(key)
        while _TABLES and sum(size for _, size in _TABLES.values()) > _NUMBERS:
            _TABLES.popitem(last=False)
    return _apart(table)


def forget() -> None:
    """Keeps nothing of what was written before."""
    with _LOCK:
        _TABLES.clear()


def _apart(table: Tableau) -> Tableau:
    """The table with a grid and heads of its own, as people write into what they are handed."""
    found = copy.copy(table)
    with torch.inference_mode(False):
        object.__setattr__(found, "grid", table.grid.clone())
    object.__setattr__(found, "heads", dict(table.heads))
    return found


def _size(table: Tableau) -> int:
    """How many numbers a table holds, its terms counted a few times for what they weigh beside their number."""
    coefficients = [c for row in table.rows for _, c in row.form] + [c for pair in table.heads.values() for c in pair]
    return sum(16 + (c.values.numel() if isinstance(c, Diagonal | Block) else 0) for c in coefficients)
