"""What a case may do: five seconds, one GiB, its own folder, no code. Whoever oversteps is named, whatever it returns.

A worker process installs the audit hook and the limits once; `Guard.watch` judges one case. Reads are allowed in the
case's folder and in what Python and this library are made of; writes in the case's folder alone.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["SECONDS", "Guard", "Refused"]

SECONDS = 5.0  # of the processor, so that a busy machine changes nothing
BYTES = 2**30
ROOM = 6 * 2**30  # of addresses beyond what the worker has; an allocation that fails there is told from a refusal
PLAIN = (ValueError, OSError, ModuleNotFoundError)  # what the command line prints as one sentence
NEVER = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.startfile",
         "socket.__new__", "socket.connect", "socket.bind", "pickle.find_class", "pty.spawn",
         "ctypes.dlopen", "code.__new__")  # fmt: skip
WRITES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.link", "os.symlink",
          "os.truncate", "os.utime", "shutil.rmtree", "shutil.move")  # fmt: skip
OURS = tuple({str(made) for p in (
    sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"),
    Path(__file__).parents[2], "/proc", "/sys", "/dev/null", "/dev/urandom", "/usr", "/lib", "/etc",
) for made in (Path(p), Path(p).resolve())})  # fmt: skip


class TooLong(BaseException):
    """The time of a case is over; no `except Exception` stops it."""


class Refused(Exception):
    """A case that was refused with a sentence before it was used."""


class Guard:
    """Watches the cases of one worker process; `folder` is where they may write."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder.resolve())
        self.cache = os.path.realpath(os.environ.get("FEWSTEP_CACHE", self.folder))  # the library's own
        self.watching, self.broken = False, ""
        sys.addaudithook(self._audit)
        signal.signal(signal.SIGPROF, self._over)
        with open("/proc/self/statm") as file:  # noqa: PTH123 - Linux's own
            held = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (held + ROOM, resource.getrlimit(resource.RLIMIT_AS)[1]))

    def watch(self, run: Callable[[], None]) -> tuple[str, str]:
        """(verdict, what was said): "used" and "refused" are well; all others are faults."""
        before, start = _held(), time.process_time()
        self.watching, self.broken = True, ""
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        error: BaseException | None = None
        try:
            run()
        except (KeyboardInterrupt, SystemExit) as stop:
            error = stop
        except BaseException as raised:  # noqa: BLE001 - every one is judged
            error = raised
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self.watching = False
        return self._verdict(error, before, time.process_time() - start)

    def _verdict(self, error: BaseException | None, before: int, seconds: float) -> tuple[str, str]:
        said = "" if error is None else _last(error)
        if self.broken:
            return "ran or reached out", self.broken
        if isinstance(error, TooLong) or seconds > SECONDS:
            return "too long", f"{seconds:.1f} s; {said}"
        if (peak := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) > BYTES or _starved(error):
            return "too large", f"{peak / 2**30:.1f} GiB; {said}"
        if error is None:
            return "used", ""
        if isinstance(error, Refused):
            cause = error.__cause__
            if isinstance(cause, PLAIN) and not isinstance(cause, UnicodeError) and len(str(cause)) < 4000:
                return "refused", _last(cause)
            long = f"a sentence of {len(str(cause))} letters: " if isinstance(cause, PLAIN) else ""
            return "traceback", long + _trace(cause)
        return "crashed in use", _trace(error)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.watching or self.broken:
            return
        if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            self._opened(os.fsdecode(args[0]), args[1], args[2])
        elif event == "exec":
            name = getattr(args[0], "co_filename", "")
            if not name.startswith(("<", *OURS)):
                self.broken = f"ran {name}"
        elif event in NEVER and not _importing(event, args):
            self.broken = f"{event} {args!r:.200}"
        elif event in WRITES and isinstance(args[0], str | bytes | os.PathLike):
            where = os.path.realpath(os.path.dirname(os.fsdecode(args[0]) or "."))
            if not self._within(where):
                self.broken = f"{event} of {args[0]!r}"

    def _within(self, path: str) -> bool:
        """Whether a path lies where a case may write."""
        return any(path == place or path.startswith(place + os.sep) for place in (self.folder, self.cache))

    def _opened(self, name: str, mode: str | None, flags: int) -> None:
        path, writes = os.path.realpath(name), bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
        if self._within(path):
            return
        if writes and path != "/dev/null":
            self.broken = f"wrote {name}"
        elif not path.startswith(OURS):
            self.broken = f"read {name}, which is {path}"

    def _over(self, number: int, frame: Any) -> None:
        raise TooLong


def _importing(event: str, args: tuple[Any, ...]) -> bool:
    """A library of an extension module that is loaded late."""
    return event == "ctypes.dlopen" and (args[0] is None or str(args[0]).startswith(OURS))


def _held() -> int:
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _starved(error: BaseException | None) -> bool:
    """Whether an allocation failed, be it that a sentence was made of it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or "allocate memory" in str(error) or "Cannot allocate" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _last(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _trace(error: BaseException | None) -> str:
    """The error and the last of our own lines that it came from."""
    if error is None:
        return "nothing"
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/src/fewstep/" in f.filename]
    at = (ours or frames)[-1] if frames else None
    where = f"{Path(at.filename).name}:{at.lineno} {at.name}" if at else "nowhere"
    return f"{_last(error)} at {where}"
