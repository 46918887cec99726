"""What lies beside a file while it is written: part names, who may write, and what killed writers left.

A part carries machine, process and a random key, and is opened exclusively, so that no two writers ever share one.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["alone", "beside", "create", "keep", "sweep"]


def sweep(folder: Path) -> None:
    """Deletes what killed runs left in a folder: of dead processes of this machine, and what is a day old of others.

    Known by name alone: `.NAME.MACHINE.PROCESS.RANDOM.part`, or `.old`. An old folder whose successor never came is put
    back.
    """
    with suppress(OSError):
        left = [(entry, found) for entry in os.scandir(folder) if (found := _PART.fullmatch(entry.name))]
        left = [(Path(entry), found["name"], found["kind"]) for entry, found in left if _is_left(entry, found)]
        if not left:
            return
        with alone(folder):
            for path, name, kind in left:
                with suppress(OSError):
                    if not path.is_dir() or path.is_symlink():
                        path.unlink()
                    elif kind == "old" and not (folder / name).exists():
                        path.rename(folder / name)
                    else:
                        shutil.rmtree(path)


def _machine() -> str:
    """This machine's name, and which of its process numberings this is: containers count for themselves.

    Of a long name its beginning, which many machines of a cluster share, and its checksum, which they do not.
    """
    node = platform.node()
    try:
        space = f"{os.stat('/proc/self/ns/pid').st_ino:x}"
    except OSError:
        space = "0"
    return re.sub(r"[^A-Za-z0-9]+", "-", node)[:16] + f"-{zlib.crc32(node.encode()):08x}-{space}"


_MACHINE = _machine()
_PART = re.compile(r"\.(?P<name>.+)\.(?P<machine>[A-Za-z0-9-]+)\.(?P<process>\d{1,9})\.[0-9a-f]{8}\.(?P<kind>part|old)")
_OLD = 24 * 3600.0  # seconds after which a part of another machine's process is left over


def beside(path: Path, key: str, kind: str) -> Path:
    """The name of a writer's part of a file, or of the old file that it keeps for a while; `key` is random."""
    return path.with_name(f".{path.name}.{_MACHINE}.{os.getpid()}.{key}.{kind}")


def _is_left(entry: os.DirEntry[str], found: re.Match[str]) -> bool:
    if found["machine"] == _MACHINE and os.name == "posix":
        return not _is_alive(int(found["process"]))
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > _OLD


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except ProcessLookupError:
        return False
    except OSError:  # another user's, or a system without /proc
        return True
    return state[:1] not in (["Z"], ["X"])  # dead, and not yet waited for


def create(part: Path) -> None:
    """An empty new file: never one that another writer, or another's link, has put there."""
    part.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def keep(path: Path, under: Path) -> None:
    """Gives a file a second name, so that it can be put back; a copy where the file system has no links."""
    under.unlink(missing_ok=True)
    try:
        os.link(path, under)
    except OSError:
        shutil.copy2(path, under)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Renames in a folder, one writer's at a time where the system can lock one; they are on the disk at the end."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # a system that opens no folders
        yield
        return
    try:
        _lock(descriptor)
        yield
        with suppress(OSError):  # some file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Waits a while for other writers, not for ever: somebody else may hold the folder for reasons of his own."""
    try:
        import fcntl
    except ImportError:
        return
    for _ in range(500):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:  # a file system without locks
            return
        else:
            return
