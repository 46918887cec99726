"""The 256 levels that numbers of any scale stand for, and how much of them fits into memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fewstep.files import physical_memory

__all__ = ["CHANNELS", "check_room", "levels"]

CHANNELS = (1, 3, 4)  # of a picture
AT_ONCE = 2**22  # numbers that are converted at once
LEAST = {8: 64, 16: 4096}  # what stays below, but for uint8, has fewer bits than 8 or 16, and is nearly black on them


def check_room(size: int, what: str) -> None:
    """Refuses what takes more than the memory of this machine, before any of it is taken."""
    if size > physical_memory():
        raise ValueError(
            f"{what} take {size / 2**30:,.1f} GiB in memory, where {physical_memory() / 2**30:,.1f} GiB are; give "
            "fewer or smaller pictures."
        )


def levels(values: np.ndarray, what: str, *, bits: int = 8) -> np.ndarray:
    """The levels 0 to 255 (uint8) of pictures, on one scale for all of them; a sentence where it cannot be told.

    uint8 is returned as it is, unless it is a mask of 0 and 1. Whole numbers up to 255 are levels, larger ones (or all,
    where a file says so) of 16 bits; bool is black and white; floats are in [0, 1] or, some negative, in [-1, 1].
    """
    kind, whole = values.dtype.kind, values.dtype.kind in "iu"
    if values.dtype == np.uint8 and bits == 8 and values.max() != 1:
        return values
    if kind == "b":
        return _by_parts(values, lambda x: x * np.uint8(255))
    low, high = values.min(), values.max()
    if whole and low >= 0 and (high == 0 or (LEAST[8] <= high <= 255 and bits == 8)):
        return values.astype(np.uint8)
    if whole and low >= 0 and LEAST[16] <= high < 2**16:
        return _by_parts(values, lambda x: (x.astype(np.uint32) + 128) // 257)
    if kind == "f" and low >= 0 and 0 < high <= 1:
        return _by_parts(values, lambda x: np.rint(x.astype(np.float64) * 255))
    if kind == "f" and -1 <= low < 0 and high <= 1 and max(-low, high) > 0.5:
        return _by_parts(values, lambda x: np.rint((x.astype(np.float64) + 1) * 127.5))
    far = kind == "f" and low >= 0 and LEAST[8] <= high <= 255
    if far and bool(_by_parts(values, lambda x: x == np.rint(x)).all()):
        return values.astype(np.uint8)
    raise ValueError(
        f"{what} are {values.dtype} from {low:g} to {high:g}, a scale that cannot be told; images are uint8 beyond 1, "
        "or whole numbers 0 to 255 or 16 bits full, bool, or floats that fill [0, 1] or [-1, 1]; rescale them."
    )


def _by_parts(values: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """function(values) as uint8, a part at a time, so that no second large array is made."""
    out = np.empty(values.shape, dtype=np.uint8)
    step = max(1, AT_ONCE * len(values) // max(1, values.size))
    for k in range(0, len(values), step):
        out[k : k + step] = function(values[k : k + step])
    return out
