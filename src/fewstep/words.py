"""Sentences for the door: look a name up, and say the nearest ones when it is not there."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

__all__ = ["pick", "whole"]

T = TypeVar("T")


def pick(registry: Mapping[str, T], name: str, what: str) -> T:
    """registry[name], or a ValueError that suggests the nearest names."""
    if name in registry:
        return registry[name]
    near = get_close_matches(str(name), registry, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(registry)}"
    raise ValueError(f"got {what} {name!r}, which is not known: {hint}")


def whole(label: str, value: Any) -> int:
    """The value as an int of at least 1, or a ValueError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(f"got {label}={value!r}: give a whole number of at least 1")
    return number
