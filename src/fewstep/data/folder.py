"""Pictures of a folder: every file is a picture or a note, and what is neither, or hidden, or broken, is named."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.data.levels import check_room, levels
from fewstep.files import extra

__all__ = ["pictures_in", "read_folder", "read_picture"]

# What Pillow opens without running or asking another program.
FORMATS = ("PNG", "JPEG", "MPO", "GIF", "WEBP", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "PCX", "ICO",
           "SGI", "QOI")  # fmt: skip
# Hidden files of these are pictures.
CALLED = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".avif"}
NOTES = {".txt", ".caption", ".md", ".rst", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml",
         ".html", ".log", ".py", ".ipynb", ".sha256", ".md5"}  # fmt: skip
JUNK = {"thumbs.db", "desktop.ini"}
APPLE_DOUBLE = b"\x00\x05\x16\x07"  # what macOS writes as ._name beside a file
MOST_PICTURES = 5_000_000
MOST_PIXELS = 2**26  # of one picture
DEEPEST = 32
ORIENTATION, TURNED = 274, (5, 6, 7, 8)  # the EXIF tag, and the values that swap the sides
GREY, COLOUR, DEEP, FLOAT = "grey", "colour", "16-bit", "float"
KINDS = {"1": GREY, "L": GREY, "LA": GREY, "La": GREY, "I": DEEP, "F": FLOAT}


class Refused(ValueError):
    """A sentence of this file, beside the errors of Pillow."""


def read_folder(folder: Path) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """The pictures (uint8), labels from 0 and names of a folder; ValueErrors name the file or folder."""
    library = extra("PIL.Image", "diffusers", "reading pictures")
    groups, files = _files(folder)
    if len(files) > MOST_PICTURES:
        raise ValueError(f"{folder} holds {len(files):,} pictures; at most {MOST_PICTURES:,} are read; give fewer.")
    kinds = _kinds(files, library)
    numbers: np.ndarray | None = None
    for k, file in enumerate(files):
        array = _pixels(file, kinds, library)
        if numbers is None:
            check_room(len(files) * array.nbytes, f"the {len(files):,} pictures of {folder}")
            numbers = np.empty((len(files), *array.shape), dtype=array.dtype)
        if array.shape != numbers.shape[1:]:
            _other_size(file, array.shape, files[0], numbers.shape[1:])
        numbers[k] = array
    assert numbers is not None
    images = levels(numbers, f"the pictures of {folder}", bits=16 if kinds == {DEEP} else 8)
    if not groups:
        return images, None, ()
    labels = np.array([k for k, (_, own) in enumerate(groups) for _ in own], dtype=np.int64)
    return images, labels, tuple(group.name for group, _ in groups)


def pictures_in(folder: Path) -> list[Path]:
    """The files of pictures in a folder or the folders of its classes, unread."""
    return _files(folder)[1]


def read_picture(file: Path) -> np.ndarray:
    """One picture, uint8 (H, W) or (H, W, 3); a ValueError names the file."""
    library = extra("PIL.Image", "diffusers", "reading pictures")
    kinds = _kinds([file], library)
    return levels(_pixels(file, kinds, library), f"the picture {file}", bits=16 if kinds == {DEEP} else 8)


def _files(folder: Path) -> tuple[list[tuple[Path, list[Path]]], list[Path]]:
    """The class folders with their pictures, and all pictures."""
    top, below = _listed(folder)
    groups = []
    for group in below:
        hidden = group.name.startswith(".") or group.name == "__MACOSX"
        own, deeper = _listed(group, hidden)
        deep = next((p for inner in deeper for p in _below(inner, hidden)), None)
        if hidden and (own or deep):
            raise ValueError(f"{group} is hidden and holds pictures; classes have other names; rename or remove it.")
        if deep is not None:
            raise ValueError(
                f"{deep} lies deeper than one folder; pictures lie in {folder} or in one sub-folder of it a class; "
                f"move them up, or name {group} where its folders are the classes."
            )
        if not group.name.isprintable():
            raise ValueError(f"{group} has a name that cannot be printed, which a class needs; rename it.")
        if not hidden:
            groups.append((group, own))
    labelled = any(own for _, own in groups)
    empty = next((group for group, own in groups if not own), None)
    if labelled and top:
        raise ValueError(
            f"{top[0]} lies beside folders of pictures; pictures lie in one folder, or each in the folder of its "
            "class; move it into one, or out."
        )
    if labelled and empty:
        raise ValueError(
            f"{empty} holds no pictures beside folders that do; each class has some; add some or remove it."
        )
    if not labelled and not top:
        raise ValueError(
            f"{folder} holds no pictures; PNG, JPEG, WebP, TIFF and others are read, from it or from one sub-folder "
            "per label; name another folder."
        )
    return (groups, [p for _, own in groups for p in own]) if labelled else ([], top)


def _listed(folder: Path, hidden: bool = False) -> tuple[list[Path], list[Path]]:
    """The pictures in a folder and its sub-folders, in order; of a hidden one what is called like a picture."""
    try:
        entries = sorted(folder.iterdir())
        folders = [p for p in entries if p.is_dir()]
        files = [p for p in sorted({*entries} - {*folders}) if not _is_note(p, hidden)]
    except OSError as error:
        raise ValueError(f"{folder} cannot be listed ({error}); a folder of pictures is needed; mend it.") from error
    for path in files:
        if not path.is_file():
            raise ValueError(f"{path} is no regular file; pictures are files or links to files; remove it.")
    return files, folders


def _is_note(path: Path, hidden: bool) -> bool:
    """Whether a file says by its name that it is no picture; what nothing is known of is opened as one."""
    name, suffix = path.name.lower(), path.suffix.lower()
    if name.startswith("._") and path.is_file():
        with path.open("rb") as file:
            return file.read(4) == APPLE_DOUBLE or suffix not in CALLED
    if hidden or name.startswith("."):
        return suffix not in CALLED
    return suffix in NOTES or name in JUNK


def _below(folder: Path, hidden: bool, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Pictures in a folder and anywhere below it; a link to a folder above is not followed."""
    here = os.path.realpath(folder)
    if here in above:
        return
    if len(above) > DEEPEST:
        raise ValueError(f"{folder} lies {DEEPEST} folders deep; pictures lie in one or two; move them up.")
    files, folders = _listed(folder, hidden)
    yield from files
    for inner in folders:
        yield from _below(inner, hidden, (*above, here))


def _kinds(files: Sequence[Path], library: Any) -> set[str]:
    """What the pictures are, by their headers alone; of one size and, but for grey and colour, of one kind."""
    kinds: dict[str, Path] = {}
    first: tuple[int, int] = (0, 0)
    for file in files:
        with _opened(file, library) as picture:
            mode, size = picture.mode, picture.size
            if math.prod(size) > MOST_PIXELS:
                raise Refused(
                    f"{file} has {math.prod(size):,} pixels; at most {MOST_PIXELS:,} are read; make it smaller."
                )
            if picture.format != "MPO" and getattr(picture, "is_animated", False):
                raise Refused(f"{file} holds {picture.n_frames} pictures; one is read; save each in a file of its own.")
            if picture.format == "TIFF" and picture.tag_v2.get(ORIENTATION) in TURNED and picture.tile[0][0] == "raw":
                raise Refused(
                    f"{file} is an uncompressed TIFF turned by its orientation {picture.tag_v2[ORIENTATION]}, which "
                    "Pillow scrambles; upright or compressed ones are read; save it so."
                )
        first = size if file is files[0] else first
        if sorted(size) != sorted(first):  # a turned one has its sides swapped
            _other_size(file, size[::-1], files[0], first[::-1])
        kinds.setdefault(DEEP if mode.startswith("I;16") else KINDS.get(mode, COLOUR), file)
    if len(kinds) > 1 and set(kinds) != {GREY, COLOUR}:
        each = ", ".join(f"{file} is {kind}" for kind, file in kinds.items())
        raise ValueError(f"{each}; all pictures have one depth; convert them to one.")
    return set(kinds)


def _pixels(file: Path, kinds: set[str], library: Any) -> np.ndarray:
    """The numbers of one picture, upright: uint8 (H, W) or (H, W, 3), or those of a deep one."""
    turned = extra("PIL.ImageOps", "diffusers", "reading pictures").exif_transpose
    with _opened(file, library) as opened:
        opened.load()
        picture = turned(opened)
        if picture.has_transparency_data:
            if kinds - {GREY, COLOUR} or picture.convert("RGBA").getchannel("A").getextrema()[0] < 255:
                raise Refused(
                    f"{file} has transparent pixels; only opaque pictures are read; lay it on a colour, with Pillow's "
                    "Image.alpha_composite."
                )
            picture = picture.convert("RGBA" if KINDS.get(picture.mode) != GREY else "LA")
        if kinds <= {GREY, COLOUR}:
            if KINDS.get(picture.mode) == GREY:
                picture = picture.convert("L")
            picture = picture if kinds == {GREY} else picture.convert("RGB")
        array = np.array(picture)
        return array.astype(np.int32) if kinds == {DEEP} else array


@contextmanager
def _opened(file: Path, library: Any) -> Iterator[Any]:
    """The open picture; whatever Pillow raises becomes a sentence."""
    library.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", library.DecompressionBombWarning)
            with library.open(file, formats=[f for f in FORMATS if f in library.OPEN]) as picture:
                yield picture
    except Refused:
        raise
    except Exception as error:  # decoders raise what they come upon
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{file} is not a readable picture ({reason}); remove or replace it.") from error


def _other_size(file: Path, size: Sequence[int], first: Path, its: Sequence[int]) -> None:
    raise ValueError(
        f"{file} has shape {tuple(size)}, {first.name} has {tuple(its)}; all pictures must have one size; resize them "
        "first."
    )
