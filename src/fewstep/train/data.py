"""Images to train on: an npz file or a folder of pictures."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewstep.files import extra

__all__ = ["Images", "read_images"]

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif"}


@dataclass(frozen=True, kw_only=True)
class Images:
    """A data set in memory.

    Attributes:
        images: (N, H, W) or (N, H, W, C) uint8.
        labels: (N,) int64 from 0, or None.
        names: one name per label; empty without labels.
        source: the name of the file or folder, without its path.
    """

    images: np.ndarray
    labels: np.ndarray | None
    names: tuple[str, ...]
    source: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        h, w = self.images.shape[1:3]
        return (1 if self.images.ndim == 3 else self.images.shape[3], h, w)

    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of images and labels."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images).data)
        if self.labels is not None:
            digest.update(self.labels.astype(np.int64).tobytes())
        return digest.hexdigest()[:16]


def read_images(path: str | Path) -> Images:
    """Reads an npz file or a folder of pictures.

    An npz file: `x_train` and `y_train` where it has them, else its first uint8 array of images (N, H, W) or
    (N, H, W, C) and its first whole-number array (N,) as labels; `class_names` names the labels.
    A folder: pictures in it, or in its sub-folders, whose names are then the labels, in alphabetical order.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise ValueError(f"there is no data at {path}; an npz file or a folder of pictures is needed; check the name.")
    return _npz(path)


def _npz(path: Path) -> Images:
    try:
        with np.load(path, allow_pickle=False) as f:
            arrays = {name: f[name] for name in f.files}
    except Exception as error:  # zip, npy header and pickle refusals come in many classes
        raise ValueError(
            f"{path} is not a readable npz file ({error}); an npz of plain arrays or a folder of pictures is needed; "
            "write it with numpy.savez_compressed."
        ) from error
    found = [n for n, a in arrays.items() if a.dtype == np.uint8 and a.ndim in (3, 4)]
    key = "x_train" if "x_train" in found else next(iter(found), None)
    if key is None:
        shapes = ", ".join(f"{n} {a.dtype} {a.shape}" for n, a in arrays.items()) or "nothing"
        raise ValueError(
            f"{path} holds {shapes}; images are a uint8 array (N, H, W) or (N, H, W, C), as x_train or the first such "
            "array; write one."
        )
    images = arrays[key]
    fitting = [n for n, a in arrays.items() if a.shape == (len(images),) and a.dtype.kind in "iu"]
    label_key = "y_train" if "y_train" in fitting else next(iter(fitting), None)
    names: tuple[str, ...] = ()
    labels = None
    if label_key is not None:
        labels = arrays[label_key].astype(np.int64)
        if labels.min() < 0:
            raise ValueError(f"{path} has a label {labels.min()} in {label_key}; labels count from 0; renumber them.")
        given = arrays.get("class_names", np.array([], dtype=str))
        names = tuple(
            str(given[i]) if i < len(given) else str(i) for i in range(max(len(given), int(labels.max()) + 1))
        )
    return Images(images=_checked(images, path), labels=labels, names=names, source=path.name)


def _folder(path: Path) -> Images:
    opened = extra("PIL.Image", "diffusers", "reading pictures")
    groups = sorted(p for p in path.iterdir() if p.is_dir() and any(q.suffix.lower() in PICTURES for q in p.iterdir()))
    files = [(i, p) for i, g in enumerate(groups) for p in sorted(g.iterdir()) if p.suffix.lower() in PICTURES]
    labelled = bool(files)
    files = files or [(0, p) for p in sorted(path.iterdir()) if p.suffix.lower() in PICTURES]
    if not files:
        raise ValueError(
            f"{path} holds no pictures; {', '.join(sorted(PICTURES))} are read, from it or from one sub-folder per "
            "label; name another folder."
        )
    arrays: list[np.ndarray] = []
    for _, file in files:
        try:
            with opened.open(file) as picture:
                array = np.asarray(picture if picture.mode in ("L", "RGB") else picture.convert("RGB"))
        except OSError as error:
            raise ValueError(f"{file} is not a readable picture ({error}); remove or replace it.") from error
        if arrays and array.shape != arrays[0].shape:
            raise ValueError(
                f"{file} has shape {array.shape}, {files[0][1].name} has {arrays[0].shape}; all pictures must have one "
                "size and one number of channels; resize them first."
            )
        arrays.append(array)
    return Images(
        images=_checked(np.stack(arrays), path),
        labels=np.array([i for i, _ in files], dtype=np.int64) if labelled else None,
        names=tuple(g.name for g in groups) if labelled else (),
        source=path.resolve().name,
    )


def _checked(images: np.ndarray, path: Path) -> np.ndarray:
    if len(images) < 1 or min(images.shape[1:]) < 1 or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
        raise ValueError(
            f"{path} holds images of shape {images.shape}; (N, H, W) or (N, H, W, C) with C of 1, 3 or 4 and N >= 1 is "
            "needed; rearrange the array."
        )
    return images
