"""Pictures and labels of an npz file: found by name or shape, bounded before they are unpacked, nothing unpickled."""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from fewstep.data.levels import CHANNELS, check_room, levels

__all__ = ["classes", "read_npz", "read_texts"]

MOST_MEMBERS = 1000
MOST_CLASSES = 100_000
HEADER = 10_240  # bytes of an array's header that are read; numpy's own limit is 10,000
SMALL, PACKED = 2**28, 200  # what unpacks to more bytes than SMALL from less than their 200th part is a bomb

# Names that people use, in small letters, without the split and what is no letter or digit.
PICTURES = ("x", "images", "image", "imgs", "img", "pictures", "pixels", "data", "samples", "inputs", "features",
            "arr0")  # fmt: skip
LABELS = ("y", "labels", "label", "targets", "target", "classes", "class", "classids", "categories", "arr1")
NAMES = ("classnames", "labelnames", "targetnames")
TEXTS = ("captions", "caption", "texts", "text", "prompts", "prompt", "words", "names", "name")
NUMBERING = ("id", "ids", "index", "indices", "idx")
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation", "eval", "dev"), "another")


@dataclass(frozen=True, kw_only=True)
class Member:
    """An array in the file that has not been read."""

    key: str  # its name in the file
    word: str  # its name without the split, in small letters
    split: str  # "train", "test", "another", or "" where the name tells none
    shape: tuple[int, ...]
    dtype: np.dtype
    size: int  # bytes of its numbers

    def __str__(self) -> str:
        return f"{self.key} {self.dtype} {self.shape}"

    @property
    def pictures(self) -> bool:
        """Whether it may be pictures."""
        return self.dtype.kind in "uifb" and len(self.shape) in (3, 4) and self.word not in LABELS


def read_npz(path: Path, split: str) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """The pictures (uint8), labels from 0 and names of a file; ValueErrors name the file and the array."""
    members = _members(path)
    other = {"train": ("test", "another"), "test": ("train", "another", "")}[split]
    named = [m for m in members if m.split not in other]
    alone = split == "train" and not any(m.pictures or m.word in PICTURES for m in named)  # a file of one split
    images = _pictures(path, members if alone else named)
    what = f"{path}: {images.key}"
    order = _axes(images.shape, what)
    labels = _labels(path, [m for m in members if m.split in ("", images.split or "train")], images)
    names = next((m for m in members if m.word in NAMES or (m.word == "classes" and m.dtype.kind in "US")), None)
    wanted = [m for m in (images, labels, names if labels else None) if m is not None]
    check_room(sum(m.size for m in wanted) + math.prod(images.shape), what)
    arrays = _arrays(path, wanted)
    pictures = levels(arrays[images.key].transpose(order), f"{what}: its numbers")
    if labels is None:
        return pictures, None, ()
    given = None if names is None else _texts(arrays[names.key], f"{path}: {names.key}")
    return pictures, *classes(arrays[labels.key], len(pictures), f"{path}: {labels.key}", given)


def read_texts(path: Path, split: str) -> list[str] | None:
    """The texts (N,) beside the pictures of a file, by usual names; None where there are none."""
    members = _members(path)
    held = [m for m in members if m.word in TEXTS and m.dtype.kind in "US" and len(m.shape) == 1]
    held = [m for m in held if m.split == split] or [m for m in held if not m.split]
    for word in TEXTS:
        for member in held:
            if member.word == word:
                check_room(member.size, f"{path}: {member.key}")
                given = _arrays(path, [member])[member.key].tolist()
                return [w.decode("utf-8", "replace") if isinstance(w, bytes) else w for w in given]
    return None


def _members(path: Path) -> list[Member]:
    """What the file holds, by the headers alone."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            if len(infos) > MOST_MEMBERS:
                raise ValueError(f"it holds {len(infos)} arrays; at most {MOST_MEMBERS} are read")
            if len({info.filename for info in infos}) < len(infos):
                raise ValueError("it holds two arrays of one name")
            return [_member(archive, info, path.stat().st_size) for info in infos]
    except Exception as error:  # zip and npy headers fail in many classes
        _unreadable(path, error)


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file_size: int) -> Member:
    key = info.filename.removesuffix(".npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{key} is packed as numpy never packs")
    with archive.open(info) as f:
        head = io.BytesIO(f.read(HEADER))
    version = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(head)
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or (size + head.tell() != info.file_size and not dtype.hasobject):
        raise ValueError(f"{key} says shape {shape} of {dtype} and has {info.file_size:,} bytes")
    if size > SMALL and size > PACKED * min(info.compress_size, file_size):
        raise ValueError(f"{key} unpacks from {info.compress_size:,} bytes to {size:,}, which no picture does")
    parts = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=^[xyXY])(?=train|test|val)", "_", key).lower()
    words = re.findall("[a-z0-9]+", parts)
    word = "".join(w for w in words if w not in SPLITS)
    split = next((SPLITS[w] for w in words if w in SPLITS), "")
    return Member(key=key, word=word, split=split, shape=shape, dtype=dtype, size=size)


def _pictures(path: Path, members: Sequence[Member]) -> Member:
    """The one array that is meant as pictures."""
    exact = [m for m in members if m.word in PICTURES and m.key in ("x_train", "x_test")]
    likely = [m for m in exact or members if m.pictures]
    for some in (
        [m for m in likely if m.word in PICTURES and m.split],
        [m for m in likely if m.word in PICTURES],
        [m for m in likely if m.split],
        likely,
        [m for m in likely if m.dtype == np.uint8],
    ):
        if len(some) == 1:
            return some[0]
    if any(m.dtype.hasobject for m in exact or members) and not likely:
        _unreadable(path, "it holds pickled objects, which are never loaded")
    held = ", ".join(map(str, likely or members)) or "no arrays"
    choice = "more than one of which may be the pictures; name the one x_train" if likely else "write one"
    raise ValueError(
        f"{path} holds {held}; images are a uint8 array (N, H, W), (N, H, W, C) or (N, C, H, W), as x_train or by "
        f"another usual name, or numbers of another dtype; {choice}."
    )


def _labels(path: Path, members: Iterable[Member], images: Member) -> Member | None:
    """The one array that is meant as the labels of the pictures, or None where there is none."""
    rest = [m for m in members if m is not images]
    named = [m for m in rest if m.word in LABELS or m.word.endswith(("label", "labels", "target", "targets"))]
    named = [m for m in named if m.word != "classes" or m.dtype.kind not in "US"]
    guessed = [m for m in rest if m.shape == images.shape[:1] and m.dtype.kind in "iu" and m.word not in NUMBERING]
    for some in (
        [m for m in named if m.word == "y" and m.split == images.split],
        [m for m in named if m.split == images.split],
        named,
        [] if named else guessed,
    ):
        if len(some) == 1:
            return some[0]
    if not named and not guessed:
        return None
    held = ", ".join(map(str, named or guessed))
    raise ValueError(
        f"{path} holds {held}, each of which may be the labels; one array is, whole numbers (N,); name it y_train."
    )


def _axes(shape: tuple[int, ...], what: str) -> tuple[int, ...]:
    """The order of axes that makes pictures (N, H, W) or (N, H, W, C); channels may come first."""
    good = min(shape) > 0
    if len(shape) == 4:
        _, a, b, c = shape
        first = a in CHANNELS and (c not in CHANNELS or (b == c and a != b))
        good = good and (first or c in CHANNELS)
        if good and first:
            return (0, 2, 3, 1)
    if not good:
        raise ValueError(
            f"{what} holds images of shape {shape}; (N, H, W), (N, H, W, C) or (N, C, H, W) with C of 1, 3 or 4 and "
            "N >= 1 is needed; rearrange the array."
        )
    return tuple(range(len(shape)))


def _arrays(path: Path, members: Iterable[Member]) -> dict[str, np.ndarray]:
    """The numbers of these members."""
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {}
            for m in members:
                with archive.open(f"{m.key}.npy") as f:
                    arrays[m.key] = np.lib.format.read_array(f, allow_pickle=False)
                    f.read(1)  # the end, where the checksum is looked at
            return arrays
    except Exception as error:  # zlib, zip and npy refusals come in many classes
        _unreadable(path, error)


def _texts(given: np.ndarray, what: str) -> tuple[str, ...]:
    """Names of classes: different ones, one a number."""
    names = tuple(w.decode("utf-8", "replace") if isinstance(w, bytes) else str(w) for w in given.ravel().tolist())
    if given.dtype.kind not in "US" or given.ndim != 1 or len(set(names)) < len(names) or len(names) > MOST_CLASSES:
        raise ValueError(
            f"{what} is {given.dtype} of shape {given.shape}; names of classes are different words (K,), the first for "
            "label 0; write them so, or leave them out."
        )
    return names


def _unreadable(path: Path, reason: object) -> NoReturn:
    why = " ".join(str(reason).split())[:200] or type(reason).__name__
    raise ValueError(
        f"{path} is not a readable npz file ({why}); an npz of plain arrays or a folder of pictures is needed; "
        "write it with numpy.savez_compressed."
    ) from (reason if isinstance(reason, BaseException) else None)


def classes(
    given: np.ndarray, count: int, what: str, names: tuple[str, ...] | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The class of each of N pictures, (N,) int64, and one name a class; `what` begins a sentence.

    Given are whole numbers of any dtype, (N,) or (N, 1), or one-hot (N, K), and the names of the numbers from 0 on;
    without names the classes are the numbers that occur, in order, named by themselves.
    """
    if given.dtype.kind not in "biuf":
        _refuse(f"{what} holds {given.dtype}, no numbers", "number the classes from 0 and give class_names")
    one_hot = given.ndim == 2 and given.size != count and len(given) == count
    if not one_hot and (given.size != count or max(given.shape, default=0) != count):
        _refuse(f"{what} has shape {given.shape} for {count} pictures", "give one a picture")
    if given.dtype.kind == "f" and not bool((given == np.floor(given)).all() and np.isfinite(given).all()):
        wrong = given[~(np.isfinite(given) & (given == np.floor(given)))]
        _refuse(f"{what} holds {wrong[0]:g}", "round or number them")
    if one_hot:
        ones = ((given == 0) | (given == 1)).all(1) & (given.sum(1) == 1)
        if given.shape[1] > MOST_CLASSES or not bool(ones.all()):
            wrong = f"{what} has shape {given.shape} and rows that are not one 1 among zeros"
            _refuse(wrong, "give one class a picture")
        values, index = np.arange(given.shape[1]), given.argmax(1)
    else:
        values, index = np.unique(given.ravel(), return_inverse=True)
    if values[0] < 0:
        _refuse(f"{what} has a label {float(values[0]):g}", "renumber them")
    if names is not None:
        if values[-1] >= len(names):
            wrong = f"{what} goes up to {float(values[-1]):g} beside {len(names)} class_names"
            _refuse(wrong, "name each class, or none")
        return values.astype(np.int64)[index], names
    if len(values) > MOST_CLASSES:
        _refuse(f"{what} holds {len(values):,} different numbers", f"give at most {MOST_CLASSES:,} classes")
    return index.astype(np.int64), tuple(str(int(v)) for v in values)


def _refuse(wrong: str, do: str) -> None:
    raise ValueError(
        f"{wrong}; labels count from 0, one whole number a picture, (N,) or (N, 1), or one-hot (N, K); {do}."
    )
