"""Mutations that know their format: JSON, safetensors, npz and npy, PNG, JPEG, plain bytes, and files in a folder.

Each takes a `random.Random`, so that a case is a function of its number. What a format has of lengths and checksums is
made right again most of the time: a reader must look behind them.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["NAMES", "Special", "file", "folder", "json_text", "json_value", "tensors_of", "safetensors", "write"]

# Words that mean something to one reader or another, put where another word stood.
NAMES = (
    "vp", "flow", "cld", "blurring", "discrete", "masking", "heat", "edm", "DDIM", "DDPM", "Restart", "UniPC", "LCM",
    "Multistep", "Fitted", "Solver", "SSCS", "noise", "x0", "v", "data", "score", "start", "ones", "path", "z", "y",
    "xi", "root", "base", "guidance", "derivative", "sn", "npr", "index", "sigma", "DownBlock2D", "AttnDownBlock2D",
    "UNet2DModel", "DiTTransformer2DModel", "../../etc/passwd", "/etc/passwd", "os.system", "__class__", "F64", "BF16",
)  # fmt: skip
ODD = (
    None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, 10**9, 10**30, -(10**9), 0.5, -0.5, 1e-300, 1e300, 1e15,
    float("nan"), float("inf"), -float("inf"), "", "nan", "inf", "1", " ", "\u202e\u00e9\u4e2d", "\ud800", "a\nb\0c",
    [], {}, [[]], [None], {"": None}, [1, 2], ["a"], {"class": "DDIM"}, {"name": "vp"}, [1e308] * 4,
)  # fmt: skip


@dataclass(frozen=True)
class Special:
    """What is no regular file: a "link" to `target`, a "fifo" or a "folder"."""

    kind: str
    target: str = ""


def write(files: dict[str, bytes | Special], at: Path) -> None:
    """Writes files into a new folder."""
    at.mkdir()
    for name, content in files.items():
        path = at / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content.kind == "link":
            path.symlink_to(content.target)
        elif content.kind == "folder":
            path.mkdir()
        else:
            import os

            os.mkfifo(path)


# ------------------------------------------------------------------------------------------------------------- JSON


def json_value(rng: random.Random, value: Any) -> Any:
    """One to three changes somewhere in a JSON value."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return deepcopy(rng.choice(ODD))
        deep = max(places, key=lambda p: p[2])[2]
        level = rng.randint(0, deep)  # every depth alike: rows outnumber the rest
        holder, key, _ = rng.choice([p for p in places if p[2] == level] or places)
        _change(rng, holder, key, places)
    return value


def _places(value: Any, depth: int = 0) -> Any:
    if depth > 40:
        return
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key, depth
        yield from _places(value[key], depth + 1)


def _change(rng: random.Random, holder: Any, key: Any, places: list[Any]) -> None:
    try:
        old = holder[key]
    except (KeyError, IndexError):
        return
    how = rng.randrange(14)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, list):
        holder.insert(rng.randint(0, len(holder)), json.loads(json.dumps(old)))
    elif how == 1:
        holder[rng.choice(NAMES)] = old
    elif how == 2:
        holder[key] = [old]
    elif how == 3:
        holder[key] = {"class": old} if rng.random() < 0.5 else {str(key): old}
    elif how == 4:
        nest: Any = old
        for _ in range(rng.choice((5, 70, 300))):
            nest = [nest] if rng.random() < 0.5 else {"a": nest}
        holder[key] = nest
    elif how == 5:
        holder[key] = rng.choice(("x" * 100_000, "\u00e9" * 3000, "a" * 300))
    elif how == 6 and isinstance(old, int | float) and not isinstance(old, bool):
        holder[key] = rng.choice((old + 1, old - 1, -old, old * 1000, old * 10**9, old / 3, str(old), float(old)))
    elif how == 7 and isinstance(old, str):
        holder[key] = rng.choice((old.upper(), old + "x", old[:-1], old * 2, rng.choice(NAMES)))
    elif how == 8 and isinstance(old, list):
        holder[key] = rng.choice((old[:-1], old[::-1], old * 2, old[1:], old * 50 if len(old) < 50 else old))
    elif how in (9, 10):
        other, at, _ = rng.choice(places)
        try:
            holder[key] = json.loads(json.dumps(other[at]))
        except (KeyError, IndexError, ValueError, RecursionError):
            holder[key] = rng.choice(NAMES)
    elif how == 11:
        holder[key] = rng.choice(NAMES)
    else:
        holder[key] = deepcopy(rng.choice(ODD))


def json_text(rng: random.Random, raw: bytes) -> bytes:
    """A JSON file: its value changed, or its text."""
    how = rng.random()
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return plain(rng, raw)
    if how < 0.85:
        return json.dumps(json_value(rng, value)).encode("utf-8", "surrogatepass")
    if how < 0.9:
        return plain(rng, raw)
    deep = rng.choice((100, 5_000, 200_000))
    return rng.choice((
        b"[" * deep, b'{"a":' * deep + b"1" + b"}" * deep, b"\xef\xbb\xbf" + raw, raw + b"}", raw[: len(raw) // 2],
        raw.replace(b"{", b'{"format": 0, ', 1), b"null", b"[]", b'"a"', b"1e999", b"", raw.decode().encode("utf-16"),
        b'{"a": ' + b"9" * 6000 + b"}", raw + b" " * 200_000, b"\xff\xfe\x00",
    ))  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ bytes


def plain(rng: random.Random, raw: bytes) -> bytes:
    """Bytes flipped, cut, repeated, zeroed, swapped."""
    data, n = bytearray(raw), len(raw)
    if not n:
        return bytes(rng.randrange(256) for _ in range(rng.choice((0, 1, 8, 100))))
    a, b = sorted((rng.randrange(n), rng.randrange(n)))
    how = rng.randrange(9)
    if how == 0:
        for _ in range(rng.choice((1, 1, 3, 20))):
            data[rng.randrange(n)] ^= 1 << rng.randrange(8)
    elif how == 1:
        del data[a:]
    elif how == 2:
        data += bytes(rng.randrange(256) for _ in range(rng.choice((1, 9, 500))))
    elif how == 3:
        data[a : a + rng.choice((1, 8, 64))] = bytes(min(64, n - a))
    elif how == 4:
        data[a:b] = b""
    elif how == 5:
        data[a:b] = data[a:b][::-1]
    elif how == 6:
        data[a:a] = data[a:b]
    elif how == 7:
        data[a : a + 8] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**32 - 1, 2**63 - 1, n)))
    else:
        data[:8] = rng.choice((b"\x80\x04\x95\x00", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\x1f\x8b\x08"))
    return bytes(data)


# ------------------------------------------------------------------------------------------------------ safetensors


def tensors_of(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a safetensors file."""
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def safetensors(header: dict[str, Any], data: bytes) -> bytes:
    """A safetensors file of a header and data."""
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
         "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8}  # fmt: skip


def tensors(rng: random.Random, raw: bytes) -> bytes:
    """A safetensors file: a tensor dropped, added, renamed, reshaped, of other numbers; or its header, or its bytes."""
    try:
        header, data = tensors_of(raw)
    except (ValueError, struct.error):
        return plain(rng, raw)
    about = header.get("__metadata__")
    parts = {k: (v["dtype"], v["shape"], data[slice(*v["data_offsets"])]) for k, v in header.items() if k[0] != "_"}
    how = rng.random()
    if how < 0.12:
        return plain(rng, raw)
    if how < 0.25:
        try:
            return safetensors(json_value(rng, header), data)
        except (ValueError, TypeError):
            return raw[:40]
    if about and how < 0.45:
        key = rng.choice(list(about))
        about = dict(about)
        if (text := about[key]).startswith("{"):
            about[key] = json_text(rng, text.encode()).decode("utf-8", "replace")
        else:
            about[key] = rng.choice(("", "x", "-1", "1e9", "nan", text * 2, text[:-1], "9" * 5000, *NAMES))
        if rng.random() < 0.15:
            del about[key]
    else:
        for _ in range(rng.choice((1, 1, 2))):
            _tensor(rng, parts)
    return build(parts, about)


def build(parts: dict[str, tuple[str, list[int], bytes]], about: dict[str, str] | None) -> bytes:
    """A consistent safetensors file of (dtype, shape, bytes)."""
    header: dict[str, Any] = {} if about is None else {"__metadata__": about}
    chunks, at = [], 0
    for name, (dtype, shape, chunk) in parts.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(chunk)]}
        chunks.append(chunk)
        at += len(chunk)
    return safetensors(header, b"".join(chunks))


def _tensor(rng: random.Random, parts: dict[str, tuple[str, list[int], bytes]]) -> None:
    name = rng.choice(list(parts)) if parts else ""
    dtype, shape, chunk = parts.get(name, ("F32", [0], b""))
    size, how = SIZES.get(dtype, 1), rng.randrange(11)
    if how == 0:
        parts.pop(name, None)
    elif how == 1:
        parts[rng.choice((*NAMES, name + "x", "a" * 2000, "\u4e2d"))] = (dtype, shape, chunk)
    elif how == 2:
        parts[rng.choice((name + ".x", name.upper(), "said", "step"))] = parts.pop(name, (dtype, shape, chunk))
    elif how == 3:
        parts[name] = (dtype, [len(chunk) // size], chunk)
    elif how == 4:
        parts[name] = (dtype, [1, *shape, 1], chunk)
    elif how == 5:
        other = rng.choice([d for d in SIZES if len(chunk) % SIZES[d] == 0] or [dtype])
        parts[name] = (other, [len(chunk) // SIZES[other]], chunk)
    elif how == 6:
        parts[name] = (dtype, [0, *shape[1:]] if shape else [0], b"")
    elif how == 7:
        parts[name] = (dtype, [2 * shape[0], *shape[1:]], chunk * 2) if shape else (dtype, [2], chunk * 2)
    elif how == 8 and shape and shape[0] > 1:
        parts[name] = (dtype, [shape[0] - 1, *shape[1:]], chunk[: len(chunk) // shape[0] * (shape[0] - 1)])
    elif dtype in ("F64", "F32") and chunk:
        letter = "<f8" if dtype == "F64" else "<f4"
        values = np.frombuffer(chunk, dtype=letter).copy()
        places = rng.sample(range(len(values)), min(len(values), rng.choice((1, 3))))
        values[places] = rng.choice((np.nan, np.inf, -np.inf, 0.0, -1.0, 1e30, 1e-30, 1.0))
        if how == 10:
            values = values[::-1] if rng.random() < 0.5 else -values
        parts[name] = (dtype, shape, values.astype(letter).tobytes())
    else:
        parts[name] = (dtype, shape, plain(rng, chunk)[: len(chunk)].ljust(len(chunk), b"\0"))


# ----------------------------------------------------------------------------------------------------------- pictures


def png(rng: random.Random, raw: bytes) -> bytes:
    """A PNG: chunks dropped, doubled, changed, with right CRCs most of the time."""
    if rng.random() < 0.3 or raw[:8] != b"\x89PNG\r\n\x1a\n":
        return plain(rng, raw)
    chunks, at = [], 8
    while at + 12 <= len(raw):
        (length,) = struct.unpack(">I", raw[at : at + 4])
        chunks.append((raw[at + 4 : at + 8], raw[at + 8 : at + 8 + length]))
        at += 12 + length
    i, how = rng.randrange(len(chunks)), rng.randrange(8)
    kind, body = chunks[i]
    if how == 0:
        del chunks[i]
    elif how == 1:
        chunks.insert(i, chunks[i])
    elif how == 2:
        chunks[i] = (kind, plain(rng, body))
    elif how in (3, 4):
        w, h, *rest = struct.unpack(">IIBBBBB", chunks[0][1][:13].ljust(13, b"\0"))
        w, h = rng.choice(((w, 2**31 - 1), (40_000, 40_000), (0, h), (1, 1), (h, w), (2**20, 1), (w, h), (3000, 3000)))
        rest[0], rest[1] = rng.choice((1, 2, 4, 8, 16, 3)), rng.choice((0, 2, 3, 4, 6, 1))
        chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", w, h, *rest))
        if rng.random() < 0.5:
            pixels = zlib.compress(bytes(min(2**24, (w * 8 + 1) * min(h, 4000))))
            chunks[1:] = [(b"IDAT", pixels), (b"IEND", b"")]
    elif how == 5:
        text = rng.choice((b"Title\0" + b"a" * 100_000, b"k\0\0" + zlib.compress(b"a" * 2**26)))
        chunks.insert(1, (rng.choice((b"tEXt", b"zTXt", b"iCCP", b"eXIf", b"tRNS", b"PLTE", b"gAMA")), text))
    elif how == 6:
        chunks.insert(
            1, (b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([rng.randrange(10)]) + b"\0\0")
        )
    else:
        rng.shuffle(chunks)
    wrong = 1 if rng.random() < 0.1 else 0
    return raw[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ wrong)
        for kind, body in chunks
    )


def jpeg(rng: random.Random, raw: bytes) -> bytes:
    """A JPEG: its size, a marker's segment, or bytes changed."""
    at = raw.find(b"\xff\xc0")
    if at > 0 and rng.random() < 0.3:
        h, w = rng.choice(((65535, 65535), (0, 8), (1, 1), (9, 7), (30_000, 30_000)))
        return raw[: at + 5] + struct.pack(">HH", h, w) + raw[at + 9 :]
    if rng.random() < 0.3:
        body = b"Exif\0\0" + plain(rng, b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")
        return raw[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + raw[2:]
    return plain(rng, raw)


# --------------------------------------------------------------------------------------------------------- npz, npy


def npz(rng: random.Random, raw: bytes) -> bytes:
    """An npz: a member dropped, renamed, with another header or other bytes, a bomb; or the zip's own bytes."""
    if rng.random() < 0.25:
        return plain(rng, raw)
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as found:
            members = [(name, found.read(name)) for name in found.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError):
        return plain(rng, raw)
    i, how = rng.randrange(len(members)), rng.randrange(8)
    name, body = members[i]
    if how == 0:
        del members[i]
    elif how == 1:
        members[i] = (rng.choice(("../x.npy", "/x.npy", "x", "x_train.npy", "y_train.npy", "x" * 300)), body)
    elif how == 2:
        members[i] = (name, plain(rng, body))
    elif how in (3, 4):
        members[i] = (name, npy(rng, body))
    elif how == 5:
        members.append((rng.choice(("extra.npy", "a.txt", name)), plain(rng, body)))
    elif how == 6:
        members[i] = (name, _npy(rng.choice((
            np.zeros((0, 4, 4), np.uint8), np.zeros(3), np.array(["a", "b"]), np.zeros((4, 8, 8, 3), np.uint8),
            np.zeros((3, 8, 8), np.float32), np.full(6, np.nan), np.array(3), np.zeros((6, 1), np.int64),
            np.arange(6) * 10**12, -np.ones(6, np.int64), np.zeros((2, 2, 2, 2, 2), np.uint8), np.zeros(6, bool),
            np.zeros(6, np.complex64), np.array([2**63 + 1] * 6, np.uint64), np.zeros(6, "M8[s]"), np.zeros(6, "V3"),
            np.zeros((6, 8, 8), np.uint16), np.arange(6.0) + 0.5, np.zeros((6, 0, 8), np.uint8),
            np.zeros((6, 8, 8, 5), np.uint8), np.full((6, 8, 8), np.inf, np.float32),
        ))))  # fmt: skip
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as made:
        for name, body in members:
            made.writestr(name, body)
    return out.getvalue()


def npy(rng: random.Random, raw: bytes) -> bytes:
    """An npy: another header before the same bytes."""
    at = raw.find(b"\n") + 1
    header = raw[10:at].decode("latin1")
    shapes = ("(0,)", "()", "(6, 8, 8)", "(1000000, 28, 28)", "(2, 8, 8)", "(3, 2, 8, 8)", "(-1,)", "(99999999999,)",
              "(6, 64)", "('a',)", "(6, 8, 8, 1)", "(60000, 1000, 1000)")  # fmt: skip
    types = ("'|u1'", "'<f4'", "'|O'", "'<i8'", "'|S8'", "'<U2'", "'>i2'", "'|b1'", "[('a', '<i4')]", "'x'", "'<m8[s]'")
    which = rng.randrange(4)
    if which == 0:
        header = header[: header.find("(")] + rng.choice(shapes) + header[header.find(")") + 1 :]
    elif which == 1:
        start = header.find("'descr': ") + 9
        header = header[:start] + rng.choice(types) + header[header.find(", 'fortran") :]
    elif which == 2:
        header = header.replace("False", rng.choice(("True", "1", "None", "__import__('os').system('x')")))
    else:
        header = rng.choice(("{}", "", "[]", header * 2, "{'descr': '|u1'}", "(" * 5000, "a" * 60_000))
    header = header.rstrip("\n ") + "\n"
    return raw[:8] + struct.pack("<H", min(len(header), 65535)) + header.encode("latin1", "replace") + raw[at:]


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


# ------------------------------------------------------------------------------------------------------------- files

BY_SUFFIX: dict[str, Callable[[random.Random, bytes], bytes]] = {
    ".json": json_text, ".safetensors": tensors, ".part": tensors, ".npz": npz, ".png": png, ".jpg": jpeg,
}  # fmt: skip


def file(rng: random.Random, name: str, raw: bytes) -> bytes:
    """One file, by what its name says it is."""
    return BY_SUFFIX.get(Path(name).suffix, plain)(rng, raw)


def folder(rng: random.Random, files: dict[str, bytes | Special]) -> dict[str, bytes | Special]:
    """One to two files changed; or one missing, doubled, swapped, no regular file, empty, a pickle."""
    files = dict(files)
    names = [n for n, content in files.items() if isinstance(content, bytes)]
    name = rng.choice(names)
    if rng.random() < 0.8:
        for n in {name, rng.choice(names)} if rng.random() < 0.2 else {name}:
            files[n] = file(rng, n, files[n])
        return files
    how = rng.randrange(9)
    if how == 0:
        del files[name]
    elif how == 1:
        files[name + rng.choice((".bak", "x", ".py"))] = files[name]
    elif how == 2 and len(names) > 1:
        other = rng.choice(names)
        files[name], files[other] = files[other], files[name]
    elif how == 3:
        files[name] = Special("link", rng.choice(("/etc/passwd", "nowhere", "/dev/zero", ".", Path(name).name)))
    elif how == 4:
        files[name] = Special("fifo")
    elif how == 5:
        files[name] = Special("folder")
    elif how == 6:
        files[name] = b""
    elif how == 7:
        files[str(Path(name).with_suffix(rng.choice((".bin", ".pt", ".pkl", ".py"))))] = b"\x80\x04\x95" + bytes(20)
        del files[name]
    else:
        files[name] = files[name] * 2
    return files
