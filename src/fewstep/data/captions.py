"""The words beside pictures: texts of an npz file, or in a folder captions.json or one NAME.txt a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fewstep.data.folder import pictures_in
from fewstep.data.npz import read_texts
from fewstep.files import read_json

__all__ = ["LONGEST_TEXT", "texts_beside", "told_apart"]

LONGEST_TEXT = 10_000  # letters of a text


def texts_beside(path: Path, split: str) -> list[str] | None:
    """One text a picture, in the order of `read_images`; None where there are none."""
    if path.is_file():
        return read_texts(path, split)
    pictures = pictures_in(path)
    if (path / "captions.json").is_file():
        told = read_json(path / "captions.json", "a folder of pictures with words")
        names = [picture.relative_to(path).as_posix() for picture in pictures]
        wrong = next((name for name in names if not isinstance(told.get(name), str)), None)
        if wrong is not None:
            raise ValueError(f"{path / 'captions.json'} has no text for {wrong}; it holds one a picture, by its file's "
                             "name; add it.")  # fmt: skip
        return [told[name] for name in names]
    files = [picture.with_suffix(".txt") for picture in pictures]
    missing = [file for file in files if not file.is_file()]
    if len(missing) == len(files):
        return None
    if missing:
        raise ValueError(f"there is no {missing[0]}, and others have theirs; each picture has a text; write it.")
    return [_text(file) for file in files]


def told_apart(texts: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The number of each text, (N,) int64, and the different texts in order."""
    names, labels = np.unique(np.array([" ".join(text.split()) for text in texts], dtype=object), return_inverse=True)
    return labels.astype(np.int64), tuple(names.tolist())


def _text(file: Path) -> str:
    try:
        with file.open(encoding="utf-8") as opened:
            return opened.read(LONGEST_TEXT)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a readable text ({error}); texts are UTF-8; write it anew.") from error
