"""Ctrl-C and SIGTERM: one and the same to a command, and held back where files get their names."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

__all__ = ["terminable", "uninterrupted"]


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt in the block, as Ctrl-C does, with its number."""

    def terminate(number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt(number)

    with _handled(terminate, signal.SIGTERM):
        yield


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds Ctrl-C and SIGTERM back until the block has ended."""
    came: list[int] = []
    try:
        with _handled(lambda number, _frame: came.append(number), signal.SIGINT, signal.SIGTERM):
            yield
    finally:
        if came:
            signal.raise_signal(came[0])


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], object], *numbers: signal.Signals) -> Iterator[None]:
    """Another handler of some signals; outside the main thread, which alone is interrupted, nothing happens."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: found for number in numbers if (found := signal.getsignal(number)) is not None}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, found in before.items():
            signal.signal(number, found)
