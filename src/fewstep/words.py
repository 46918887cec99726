"""Sentences for the door: look a name up, and say the nearest ones when it is not there."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

__all__ = ["pick"]

T = TypeVar("T")


def pick(registry: Mapping[str, T], name: str, what: str) -> T:
    """registry[name], or a ValueError that suggests the nearest names."""
    if name in registry:
        return registry[name]
    near = get_close_matches(str(name), registry, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(registry)}"
    raise ValueError(f"got {what} {name!r}, which is not known: {hint}")
