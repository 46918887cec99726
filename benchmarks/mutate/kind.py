"""What a kind of input is: whole inputs of a reader, their mutations made consistent, and the use that is made of them.

`whole` makes the inputs once; `use` reads one case's folder inside `reading()`, where any plain error is a refusal, and
then does with it what a user does, where none is.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mutators
from guard import Refused

__all__ = ["Files", "Kind", "reading", "running"]

Files = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One reader: its whole inputs, what makes a mutated one consistent, and its use; `weight` is its share."""

    weight: float
    makes: Callable[[], Sequence[Callable[[Path], Any]]]
    use: Callable[[Path], None]
    mutate: Callable[[random.Random, Files], Files] = mutators.folder
    seal: Callable[[Files], None] | None = None

    def whole(self) -> list[Files]:
        """The files of each whole input, by name."""
        found = []
        for make in self.makes():
            with tempfile.TemporaryDirectory() as folder:
                at = Path(folder) / "whole"
                at.mkdir()
                make(at)
                self.use(at)  # whole inputs run; what is imported late is there from now on
                found.append(_files(Path(folder), make))
        return found

    def mutated(self, rng: random.Random, files: Files) -> Files:
        """The files of one case; their checksums are right in most."""
        files = self.mutate(rng, files)
        if self.seal is not None and rng.random() < 0.85:
            with suppress(Exception):  # what cannot be sealed is left as it is
                self.seal(files)
        return files


def _files(folder: Path, make: Callable[[Path], Any]) -> Files:
    at = folder / "again"  # its use may have changed it
    at.mkdir()
    make(at)
    return {p.relative_to(at).as_posix(): p.read_bytes() for p in sorted(at.rglob("*")) if p.is_file()}


@contextmanager
def reading() -> Iterator[None]:
    """What goes wrong here is a refusal."""
    try:
        yield
    except Exception as error:
        raise Refused from error


@contextmanager
def running() -> Iterator[None]:
    """Wrong numbers in a whole input may end in values that are not finite, which is said; nothing else may."""
    try:
        yield
    except ValueError as error:
        if "finite" not in str(error):
            raise
