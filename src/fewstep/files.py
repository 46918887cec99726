"""Files that are whole or absent: atomic writes, safetensors and JSON with one-sentence errors.

A file is written beside its final name, flushed to the disk and renamed over it, so a kill, a full disk or an error
leaves either the old file or the new one; `Results` does so for several files at once. Any number of threads, processes
and machines may write the same file: each has a part of its own, and readers see a whole file of one of them. Weights
are read from safetensors only; a pickle is never opened.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, BinaryIO

from torch import Tensor

from fewstep.parts import alone, beside, create, keep, sweep
from fewstep.seal import is_sealed, with_metadata
from fewstep.signals import uninterrupted

__all__ = [
    "WEIGHTS", "Results", "atomic", "check_depth", "extra", "json_text", "kept_tensors", "load_tensors",
    "physical_memory", "read_json", "read_record", "save_tensors", "sha256", "tensor_shapes", "whole_folder",
    "write_json", "write_text"
]  # fmt: skip

WEIGHTS = "diffusion_pytorch_model.safetensors"  # of a network in a model folder
PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
DEPTH = 64  # levels of lists and objects in a JSON file that is read


def extra(module: str, extra_name: str, purpose: str) -> ModuleType:
    """Imports an optional `module`, or says which extra of fewstep brings it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        name = (error.name or module).partition(".")[0]
        sentence = f"{purpose} needs {name}, which is not installed; run pip install 'fewstep[{extra_name}]'"
        sentence += f" (in a checkout: pip install -c constraints.txt '.[{extra_name}]')."
        raise ModuleNotFoundError(sentence, name=name) from error


def physical_memory() -> int:
    """Bytes of memory that this machine has; 64 GiB where it does not say."""
    with suppress(AttributeError, ValueError, OSError):  # AttributeError: Windows
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 2**36


class Results:
    """A folder whose files appear together, or not at all.

        with Results("out") as results:            # the folder is made and tried out here, before any long work
            results.write("samples", lambda file: file.write(b"1"))
            results.record("run.json", {"seed": 0})
        # only now do out/samples and out/run.json exist

    Every file is written beside its final name and flushed to the disk; all are renamed when the block ends without an
    error, and renamed back when one of them cannot be. After an error nothing new remains, folders made here included,
    and what was there before is there again. An OSError of a write comes out with one sentence as its text.

    A kill between two renames leaves files of two sets, but no record: the old one goes first, the new one comes last,
    and holds the checksums by which `read_record` knows the set. What a killed run left, the next one here sweeps away.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._key = secrets.token_hex(4)
        self._parts: dict[Path, Path] = {}  # final name -> what is written now
        self._record: Path | None = None
        self._made: list[Path] = []

    def __enter__(self) -> Results:
        try:
            for parent in [*reversed(self.folder.parents), self.folder]:
                if not parent.exists():
                    parent.mkdir(exist_ok=True)
                    self._made.append(parent)
            sweep(self.folder)
            trial = self._beside("trial", "part")
            try:
                create(trial)
            finally:
                trial.unlink(missing_ok=True)
        except OSError as error:
            self._clean()
            raise _cannot_write(self.folder, error) from error
        except BaseException:
            self._clean()
            raise
        return self

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """Gives a path to write to; its content will be the file `name`."""
        final, part = self.folder / name, self._beside(name, "part")
        try:
            if final not in self._parts:
                self._parts[final] = part
                create(part)
            yield part
            with part.open("rb+") as f:
                os.fsync(f.fileno())
        except OSError as error:
            raise _cannot_write(final, error) from error

    def write(self, name: str, writer: Callable[[BinaryIO], object]) -> Path:
        """Writes one file through `writer(file)`; returns the path it will have when the block ends."""
        with self.file(name) as part, part.open("wb") as f:
            writer(f)
        return self.folder / name

    def record(self, name: str, value: Mapping[str, Any]) -> Path:
        """Writes `value` as JSON, with the SHA-256 of every file written so far under "files"; it appears last."""
        self._record = self.folder / name
        sums = {final.name: sha256(part) for final, part in self._parts.items()}
        return self.write(name, lambda file: file.write(json_text({**value, "files": sums}).encode() + b"\n"))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._clean()
            return
        try:
            with alone(self.folder), uninterrupted():
                self._rename()
        except BaseException:
            self._clean()
            raise

    def _rename(self) -> None:
        """Gives all files their names, the record's last."""
        final, parts = self.folder, self._parts
        old = {final: self._beside(final.name, "old") for final in parts if len(parts) > 1}
        try:
            for final, kept in old.items():
                if final.exists():
                    keep(final, kept)
            if self._record in old:
                self._record.unlink(missing_ok=True)
            for final in sorted(parts, key=lambda path: path == self._record):
                os.replace(parts[final], final)
        except BaseException as failure:
            with suppress(OSError):
                for path, kept in old.items():
                    if kept.exists() and not (path.exists() and parts[path].exists()):
                        kept.replace(path)
                    elif not parts[path].exists():
                        path.unlink(missing_ok=True)
            if isinstance(failure, OSError):
                raise _cannot_write(final, failure) from failure
            raise
        finally:
            with suppress(OSError):
                for kept in old.values():
                    kept.unlink(missing_ok=True)

    def _beside(self, name: str, kind: str) -> Path:
        return beside(self.folder / name, self._key, kind)

    def _clean(self) -> None:
        with uninterrupted(), suppress(OSError):
            for part in self._parts.values():
                part.unlink(missing_ok=True)
            for folder in reversed(self._made):
                folder.rmdir()


def read_record(path: str | Path) -> dict[str, Any]:
    """The record that `Results.record` wrote; a ValueError where a file is no longer what it says: a mixed set."""
    path = Path(path)
    found = read_json(path, "a folder of results")
    files = found.get("files", {})
    if not isinstance(files, dict):
        raise ValueError(
            f"{path} holds a {type(files).__name__} as files, not checksums by name; run the command again."
        )
    for name, digest in files.items():
        file = path.with_name(Path(name).name or "?")
        if not file.is_file() or sha256(file) != digest:
            raise ValueError(
                f"{file} is not the file that {path.name} beside it records; a run was killed there, or the file was "
                "changed; run the command again."
            )
    return found


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Gives a new folder to write to, which takes the place of `folder` when the block ends without an error.

    Killed between the two renames, the old one is put back by the next run that writes there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent)
    key = secrets.token_hex(4)
    part, old = (beside(folder, key, kind) for kind in ("part", "old"))
    try:
        part.mkdir()
        yield part
        with alone(folder.parent), uninterrupted():
            if folder.exists():
                folder.rename(old)
            part.rename(folder)
    except OSError as error:
        if error.errno is None:  # a sentence already
            raise
        raise _cannot_write(folder, error) from error
    finally:
        with uninterrupted():
            shutil.rmtree(part, ignore_errors=True)
            if old.exists() and not folder.exists():
                old.rename(folder)
            shutil.rmtree(old, ignore_errors=True)


def _cannot_write(path: Path, error: OSError) -> OSError:
    reason = error.strerror or str(error) or type(error).__name__
    return OSError(f"cannot write {path} ({reason}); nothing half-written was left; make room or name another folder.")


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Gives a path to write to in the folder of `path`; renames it to `path` when the block ends without an error.

    The folder is made when missing. An OSError (no space, no permission) comes out with one sentence as its text.
    """
    path = Path(path)
    with Results(path.parent) as results, results.file(path.name) as part:
        yield part


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def json_text(value: Any) -> str:
    """`value` as indented JSON; numbers that JSON does not have are the words "inf", "-inf" and "nan"."""
    return json.dumps(_plain(value), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as `json_text`, atomically."""
    write_text(path, json_text(value) + "\n")


def read_json(path: str | Path, belongs_to: str, *, limit: int = 16 * 2**20) -> dict[str, Any]:
    """The object in the JSON file `path`; `belongs_to` ("a model folder") says in an error what the file is part of.

    Refused before it fills memory or the stack: what is no regular file, more than `limit` bytes, more than 64 levels.
    """
    path = Path(path)
    if not path.is_file():
        wrong = "no regular file" if path.exists() else "missing"
        raise ValueError(f"{path} is {wrong}; {belongs_to} holds a file {path.name}; name a whole folder.")
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
        if len(raw) > limit:
            raise ValueError(f"it is larger than {limit / 2**20:g} MiB")
        value = json.loads(raw.decode("utf-8"))
        check_depth(value)
    except (ValueError, OSError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path} cannot be read as JSON ({reason}); fetch or write the folder again.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not a JSON object; fetch or write the folder again.")
    return value


def check_depth(value: Any) -> None:
    """Refuses lists and objects within each other beyond `DEPTH`, level by level: the stack stays flat."""
    level = [value]
    for _ in range(DEPTH + 1):
        level = [
            entry for v in level if isinstance(v, dict | list) for entry in (v.values() if isinstance(v, dict) else v)
        ]
        if not level:
            return
    raise RecursionError


def save_tensors(
    path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, *, sealed: bool = False
) -> None:
    """Writes `tensors` as safetensors, atomically; the same tensors give the same bytes.

    With `sealed` the header holds the checksum of the file (`fewstep.seal`).
    """
    save = extra("safetensors.torch", "diffusers", "writing weights").save
    data = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    parts = with_metadata(data, metadata or {}, sealed=sealed) if metadata or sealed else [data]
    with atomic(path) as part, part.open("wb") as file:
        file.writelines(parts)


def load_tensors(path: str | Path, *, digest: str | None = None, sealed: bool = False) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Refuses with one sentence: a missing file (and names a pickled one lying in its place), what is no regular file, a
    truncated or corrupt one, one that is not what its own checksum says, with `sealed` one that has none, and, when
    `digest` is given, one whose SHA-256 differs from it.
    """
    path = Path(path)
    with _tensors(path, sealed=sealed) as f:
        # copied out of the mapped file, where they lie anywhere: a matrix product may round by that
        tensors = {name: f.get_tensor(name).clone() for name in f.keys()}  # noqa: SIM118 - not a mapping
    if digest is not None and sha256(path) != digest:
        raise ValueError(
            f"{path} is corrupt: its SHA-256 is {sha256(path)[:12]}..., the folder says {digest[:12]}...; "
            "fetch or write the folder again."
        )
    return tensors


def tensor_shapes(path: str | Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The dtype (safetensors' name, as "F32") and shape of every tensor of a safetensors file, by its header alone."""
    with _tensors(Path(path)) as f:
        parts = {name: f.get_slice(name) for name in f.keys()}  # noqa: SIM118 - not a mapping
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}


@contextmanager
def _tensors(path: Path, *, sealed: bool = False) -> Iterator[Any]:
    """An open safetensors file; whatever is wrong with it is a ValueError of one sentence."""
    safe_open = extra("safetensors", "diffusers", "reading weights").safe_open
    if path.suffix in PICKLED:
        raise ValueError(
            f"{path} is a pickled file, which can run code when opened; only .safetensors is read; convert it."
        )
    if not path.is_file():
        pickled = sorted(p.name for p in path.parent.glob("*") if p.suffix in PICKLED)
        if pickled:
            raise ValueError(
                f"{path} is missing and the pickled {pickled[0]} beside it is never opened, since it can run code; "
                "only .safetensors is read; convert it."
            )
        wrong = "no regular file" if path.exists() else "missing"
        raise ValueError(
            f"{path} is {wrong}; weights are read from a safetensors file of that name; name a whole folder."
        )
    try:
        if not is_sealed(path) and sealed:
            raise ValueError("it has no checksum")
        with safe_open(path, "pt") as f:
            yield f
    except Exception as error:  # safetensors raises its own class, a bare Exception
        raise ValueError(
            f"{path} is truncated or corrupt ({str(error)[:300]}); only a whole safetensors file is read; fetch or "
            "write it again."
        ) from error


def kept_tensors(path: Path) -> dict[str, Tensor]:
    """What a run kept in a sealed file to go on from; nothing, and a word on stderr, where it is not as saved."""
    try:
        return load_tensors(path, sealed=True) if path.exists() else {}
    except ValueError as error:
        print(f"made anew, since it cannot be taken up: {error}", file=sys.stderr)
        return {}


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
