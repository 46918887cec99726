"""Safetensors files that hold their own checksum: SHA-256 of every byte, its own digits taken as zeros."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

__all__ = ["HEADER", "is_sealed", "with_metadata"]

HEADER = 16 * 2**20  # bytes of a header that is read; 100,000 tensors need about as many
_KEY = "fewstep_sha256"
_MARK, _BLANK = f'"{_KEY}":"'.encode(), b"0" * 64


def with_metadata(data: bytes, metadata: Mapping[str, str], *, sealed: bool) -> list[bytes | memoryview]:
    """The bytes of a safetensors file, with metadata in its header; with `sealed` also the checksum.

    The entries are sorted: the library writes them in a random order.
    """
    length = 8 + int.from_bytes(data[:8], "little")
    about = dict(sorted(metadata.items())) | ({_KEY: _BLANK.decode()} if sealed else {})
    text = json.dumps({"__metadata__": about, **json.loads(data[8:length])}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head, body = len(text).to_bytes(8, "little") + text, memoryview(data)[length:]
    if sealed:
        found = hashlib.sha256(head)
        found.update(body)
        head = head.replace(_MARK + _BLANK, _MARK + found.hexdigest().encode(), 1)
    return [head, body]


def is_sealed(path: Path) -> bool:
    """Whether a safetensors file holds its checksum; a ValueError where that is another one's."""
    if not path.is_file():
        raise ValueError("it is no regular file")  # a pipe would wait for ever
    with path.open("rb") as file:
        size = file.read(8)
        length = int.from_bytes(size, "little")
        if length > HEADER:
            raise ValueError(f"its header says it has {length} bytes; at most {HEADER} are read")
        before, mark, after = file.read(length).partition(_MARK)
        found = hashlib.sha256(size + before + mark + _BLANK + after[len(_BLANK) :])
        if mark and hashlib.file_digest(file, lambda: found).hexdigest().encode() != after[: len(_BLANK)]:
            raise ValueError("its bytes are not those that were saved")
    return bool(mark)
