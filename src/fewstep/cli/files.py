"""Result files that exist whole or not at all: written beside their final names and renamed together at the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

__all__ = ["Results"]


class Results:
    """A folder of results that appear together.

        with Results("out") as results:            # the folder is made and tried out here, before any long work
            results.write("run.json", lambda file: file.write(b"{}"))
        # only now does out/run.json exist

    Every file is written to a temporary in the same folder, flushed to the disk, and renamed when the block ends
    without an error. After an error nothing new remains: temporaries are removed, and so are the folders made here.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._pending: dict[Path, Path] = {}
        self._made: list[Path] = []

    def __enter__(self) -> Results:
        try:
            for parent in [*reversed(self.folder.parents), self.folder]:
                if not parent.exists():
                    parent.mkdir(exist_ok=True)
                    self._made.append(parent)
            trial = self._temporary("trial")
            trial.write_bytes(b"")
            trial.unlink()
        except OSError as error:
            self._clean()
            raise self._sentence(self.folder, error) from error
        return self

    def write(self, name: str, writer: Callable[[BinaryIO], object]) -> Path:
        """Writes one file through `writer(file)`; returns the path it will have when the block ends."""
        final, temporary = self.folder / name, self._temporary(name)
        self._pending[final] = temporary
        try:
            with temporary.open("wb") as file:
                writer(file)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._sentence(final, error) from error
        return final

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._clean()
            return
        final = self.folder
        try:
            for final in list(self._pending):
                self._pending[final].replace(final)
                del self._pending[final]
        except OSError as failure:
            self._clean()
            raise self._sentence(final, failure) from failure

    def _temporary(self, name: str) -> Path:
        return self.folder / f".{name}.{os.getpid()}.tmp"

    def _clean(self) -> None:
        with contextlib.suppress(OSError):
            for temporary in self._pending.values():
                temporary.unlink(missing_ok=True)
            for folder in reversed(self._made):
                folder.rmdir()

    @staticmethod
    def _sentence(path: Path, error: OSError) -> OSError:
        reason = error.strerror or str(error) or type(error).__name__
        return OSError(f"cannot write {path} ({reason}); nothing half-written was left; name another folder.")
