"""Pictures in memory, with labels where there are any, and the one door to both kinds of data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewstep.data.levels import CHANNELS

__all__ = ["KNOWN_DATA", "Images", "read_images"]

# Licence and attribution of data sets that are recognised by the fingerprint of their images and labels.
KNOWN_DATA = {
    "1f243a60b4b748a4": "Fashion-MNIST, Copyright (c) 2017 Zalando SE, https://tech.zalando.com, MIT licence "
    "(Xiao, Rasul and Vollgraf 2017, https://arxiv.org/abs/1708.07747)"
}


@dataclass(frozen=True, kw_only=True)
class Images:
    """A data set in memory."""

    images: np.ndarray  # (N, H, W) or (N, H, W, C) uint8, C of 1, 3 or 4
    labels: np.ndarray | None  # (N,) whole numbers from 0, each below the number of names, or None
    names: tuple[str, ...]  # one name per label; empty without labels
    source: str  # the name of the file or folder, without its path

    def __post_init__(self) -> None:
        shape, dtype = np.shape(self.images), getattr(self.images, "dtype", type(self.images).__name__)
        good = dtype == np.uint8 and len(shape) in (3, 4) and min(shape) > 0
        if not good or (len(shape) == 4 and shape[3] not in CHANNELS):
            raise ValueError(
                f"images came as {dtype} of shape {shape}; a uint8 array (N, H, W) or (N, H, W, C) with C of 1, 3 or 4 "
                "and N >= 1 is needed; arrange the array so."
            )
        labels, names = self.labels, self.names
        if labels is None and names:
            raise ValueError(f"labels came as None beside {len(names)} names; give both or neither.")
        if labels is not None and (
            labels.shape != shape[:1]
            or labels.dtype.kind not in "iu"
            or not 0 <= labels.min() <= labels.max() < len(names)
        ):
            raise ValueError(
                f"labels of shape {labels.shape} came for {shape[0]} images and {len(names)} names; one whole "
                "number an image is needed, from 0 and below the number of names; renumber them."
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        h, w = self.images.shape[1:3]
        return (1 if self.images.ndim == 3 else self.images.shape[3], h, w)

    def check_shape(self, shape: tuple[int, ...], where: object) -> None:
        """Refuses pictures, told from `where`, of another shape than a model's."""
        if self.shape != shape:
            raise ValueError(f"got pictures of shape {self.shape} in {where} for a model of {shape}: give its own data")

    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of images and labels."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images).data)
        if self.labels is not None:
            digest.update(self.labels.astype(np.int64).tobytes())
        return digest.hexdigest()[:16]


def read_images(path: str | Path, *, split: str = "train", words: bool = False) -> Images:
    """Reads an npz file or a folder of pictures; what cannot be read as it is meant is refused by its name.

    An npz file: pictures and labels by their names, `x_train` and `y_train` or others that people use (`x`, `images`,
    `data`; `y`, `labels`, `targets`), or the only arrays that can be meant. Pictures are (N, H, W), (N, H, W, C) or
    (N, C, H, W): levels 0 to 255 of any dtype, 16 bits, bool, or floats in [0, 1] or [-1, 1]; all become uint8. Labels
    are one whole number a picture, (N,) or (N, 1), or one-hot (N, K). `class_names` names the numbers from 0 on;
    without it the classes are the numbers that occur, in order, and their names are these numbers.

    A folder: pictures in it, or in one sub-folder a class, whose names are then the labels, in alphabetical order.
    Every file but notes (text, tables, JSON) is a picture: grey, coloured, of a palette, of 1, 8 or 16 bits or floats,
    turned as its EXIF data say. Grey ones among coloured ones become coloured. Transparent pixels, animations and what
    Pillow cannot open are refused.

    Args:
        path: an npz file or a folder.
        split: "train", or "test" for the `x_test` and `y_test` of an npz file.
        words: the labels are the texts beside the pictures: `captions`, or by another usual name, one a picture in an
            npz file; in a folder captions.json (an object of texts by file names) or NAME.txt beside each NAME.png.
            Without such texts the names of the classes are taken.
    """
    from fewstep.data.captions import texts_beside, told_apart
    from fewstep.data.folder import read_folder
    from fewstep.data.npz import read_npz

    path = Path(path).expanduser()
    if split not in ("train", "test"):
        raise ValueError(f"split came as {split!r}; 'train' and 'test' are read; choose one.")
    if path.is_dir():
        if split == "test":
            raise ValueError(f"{path} is a folder, of which no split is known; name the folder of the test pictures.")
        images, labels, names = read_folder(path)
    elif path.is_file():
        images, labels, names = read_npz(path, split)
    else:
        wrong = f"{path} is no regular file" if path.exists() else f"there is no data at {path}"
        raise ValueError(f"{wrong}; an npz file or a folder of pictures is needed; check the name.")
    texts = texts_beside(path, split) if words else None
    if texts is not None:
        if len(texts) != len(images):
            raise ValueError(f"{path} has {len(texts)} texts for {len(images)} pictures; give one a picture.")
        labels, names = told_apart(texts)
    if words and labels is None:
        raise ValueError(
            f"{path} has no words beside its pictures; give captions (N,), captions.json, or NAME.txt beside each "
            "NAME.png, or leave words out."
        )
    return Images(images=images, labels=labels, names=names, source=path.resolve().name)
