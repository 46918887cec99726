"""Labels as people have them, as class numbers from 0 with a name each."""

from __future__ import annotations

import numpy as np

__all__ = ["MOST_CLASSES", "classes"]

MOST_CLASSES = 100_000


def classes(
    given: np.ndarray, count: int, what: str, names: tuple[str, ...] | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The class of each picture, (N,) int64, and one name a class.

    Args:
        given: whole numbers of any dtype, (N,) or (N, 1), or one-hot (N, K).
        count: the number of pictures, N.
        what: what they are, to begin a sentence with.
        names: of the numbers from 0 on; None: the classes are the numbers that occur, in order, named by themselves.
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
        if given.shape[1] > MOST_CLASSES or not bool(
            (((given == 0) | (given == 1)).all(1) & (given.sum(1) == 1)).all()
        ):
            _refuse(
                f"{what} has shape {given.shape} and rows that are not one 1 among zeros", "give one class a picture"
            )
        values, index = np.arange(given.shape[1]), given.argmax(1)
    else:
        values, index = np.unique(given.ravel(), return_inverse=True)
    if values[0] < 0:
        _refuse(f"{what} has a label {float(values[0]):g}", "renumber them")
    if names is not None:
        if values[-1] >= len(names):
            _refuse(
                f"{what} goes up to {float(values[-1]):g} beside {len(names)} class_names", "name each class, or none"
            )
        return values.astype(np.int64)[index], names
    if len(values) > MOST_CLASSES:
        _refuse(f"{what} holds {len(values):,} different numbers", f"give at most {MOST_CLASSES:,} classes")
    return index.astype(np.int64), tuple(str(int(v)) for v in values)


def _refuse(wrong: str, do: str) -> None:
    raise ValueError(
        f"{wrong}; labels count from 0, one whole number a picture, (N,) or (N, 1), or one-hot (N, K); {do}."
    )
