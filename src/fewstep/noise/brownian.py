r"""One Brownian path for each sample: increments over parts of [0, 1], split where a run looks at the path.

The noise of a step is the increment of a path W over an interval of positions in [0, 1] (the caller maps its times
there, e.g. by sigmoid(log_snr / 2)), so that runs of one seed with 10 and with 20 steps follow the same path. Symbols:
`a < p < b` positions, `D` the increment of a part [a, b], `xi` a standard normal.

Reference: Moerters, Peres, "Brownian Motion", Cambridge 2010, chapter 1 (Levy's construction).
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.noise.counter import Noise, as_tensor, blocks, check_state, room

__all__ = ["BrownianPath", "check_interval", "coarse_to_fine"]

# At log-SNR -1.9 and 3.1, at no round number: a time that rounding puts on either side of a knot gets other normals.
KNOTS = tuple(1 / (1 + math.exp(-lam / 2)) for lam in (2.5 * math.sqrt(5) - 7.5, 2.5 * math.sqrt(5) - 2.5))

_APART = 2**8  # cells between a last one and the nearer end
_DEEPEST = 31  # halvings of a cell
_KEPT = 2**25  # bytes of arrays that a thread keeps for the next run


def check_interval(a: float, b: float) -> None:
    """Refuses what is no interval of [0, 1]."""
    if not 0.0 <= a < b <= 1.0:
        raise ValueError(
            f"interval is ({a!r}, {b!r}); positions must satisfy 0 <= a < b <= 1; "
            "map the times to [0, 1] and sort the pair."
        )


def coarse_to_fine(n: int) -> list[int]:
    """The numbers 1 ... n - 1: those of n / 2 doubled, then the odd ones; where n is odd, middle after middle."""
    if n % 2 == 0 and n:
        return [2 * i for i in coarse_to_fine(n // 2)] + list(range(1, n, 2))
    order, spans = [], [(0, n)]
    for i, j in spans:
        if j - i > 1:
            order.append(middle := (i + j) // 2)
            spans += [(i, middle), (middle, j)]
    return order


class _Spare(threading.local):
    """Arrays of the states last worked on, for the next ones: new memory costs more than what is written into it."""

    def __init__(self) -> None:
        self.kind: tuple[tuple[int, ...], type[np.floating]] | None = None
        self.arrays: list[NDArray[Any]] = []

    def take(self, shape: tuple[int, ...], dtype: type[np.floating]) -> NDArray[Any]:
        """Room for a state."""
        if self.kind != (shape, dtype):
            self.kind, self.arrays = (shape, dtype), []
        return self.arrays.pop() if self.arrays else room(shape, dtype)

    def keep(self, shape: tuple[int, ...], dtype: type[np.floating], arrays: list[NDArray[Any]]) -> None:
        """Takes back what `take` gave, where it is of the kind last asked for, as far as `_KEPT` bytes go."""
        if self.kind == (shape, dtype):
            self.arrays += arrays
            del self.arrays[_KEPT // max(arrays[0].nbytes, 1) :]


SPARE = _Spare()


class _Part:
    """A part [a, b] of the path, the two parts it was split into at `at`, and its increment where that is at hand."""

    __slots__ = ("a", "at", "b", "cell", "children", "increment", "leaf", "node", "parent")

    def __init__(self, a: float, b: float, leaf: int, node: int, parent: _Part | None, *, cell: bool) -> None:
        self.a, self.b, self.leaf, self.node, self.parent, self.cell = a, b, leaf, node, parent, cell
        self.at, self.children = 0.0, cast("tuple[_Part, ...]", ())
        self.increment: NDArray[np.floating] | None = None

    def split(self, p: float, *, cell: bool) -> None:
        """Splits a whole part."""
        self.at, node = p, 2 * self.node
        self.children = (
            _Part(self.a, p, self.leaf, node, self, cell=cell),
            _Part(p, self.b, self.leaf, node + 1, self, cell=cell),
        )

    @property
    def left_smaller(self) -> bool:
        """Whether the left one of the two parts is the shorter."""
        return self.at - self.a <= self.b - self.at

    @property
    def coarse(self) -> bool:
        """Whether a cell is to be halved before a point in it is looked at."""
        return self.cell and _APART * (self.b - self.a) > min(self.a, 1 - self.b) and self.node < 2**_DEEPEST


class BrownianPath:
    r"""One Brownian path W for each sample on positions [0, 1], fixed by (seed, sample).

    [0, 1] is cut at the two `KNOTS` into three leaves, whose increments are independent.
    A part with the increment D is split into a left one of length l and a right one of length r:

        D_l = l / (l + r) D + sqrt(l r / (l + r)) xi,        D_r = r / (l + r) D - sqrt(l r / (l + r)) xi,

    which is the law of a path that ends in D: one normal an interval. The longer one is D less the shorter, which is
    no difference of near numbers. xi is number `node` of the stream "path/leaf", where a leaf is node 1 and the parts
    of node m are 2 m and 2 m + 1; a leaf's own increment is number 0.

    **Points known before the run** (`points`) are split at in the order in which they are given, and the ends of the
    first and the last leaf are theirs. A run of n points takes as many normals and one for each knot within. Where a
    coarser run's points come first, and before them the coarser one's of that, all see the same path; `coarse_to_fine`
    gives a grid in this order, so a grid and every second time of it do. Two runs whose grids do not lie in one another
    so share the increments between knots.

    **Without them** a leaf is a cell, and a cell is halved until 2^8 of its size lie between it and the nearer end of
    [0, 1] (or 31 times), before it is split at a point in it. Points alone in their cell do not depend on what else is
    asked, so all runs see the same path; among several in one, all but the first depend on the order of asking.

    The path remembers where it was split: asked again, the answer is the same. It holds the increments of parts to the
    right of the last interval that it met on the way there, one for each time that a part was split in two: about the
    logarithm of the points in a leaf. All else is made again when needed, with the same bits.

    Args:
        noise: seed and first sample.
        shape: (batch, ...).
        dtype: of the increments; sums run in float32, or in float64 for that.
        device: where they are wanted.
        points: positions that will be asked for, or None.

    Example:
        >>> path = BrownianPath(Noise(seed=3), (2, 5), torch.float64, "cpu")
        >>> halves = path.increment(0.25, 0.5) + path.increment(0.5, 0.75)
        >>> torch.allclose(halves * 0.5**0.5, path.increment(0.25, 0.75))
        True
    """

    def __init__(
        self,
        noise: Noise,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        points: Sequence[float] | None = None,
    ) -> None:
        check_state(shape, dtype)
        self._noise, self._shape, self._dtype, self._device = noise, tuple(shape), dtype, device
        self._work = np.float64 if dtype == torch.float64 else np.float32
        low, high = (min(points), max(points)) if points else (0.0, 1.0)
        inner = [k for k, knot in enumerate(KNOTS) if low < knot < high]
        bounds, first = [low, *(KNOTS[k] for k in inner), high], bisect_right(KNOTS, low)
        ends = zip(bounds[:-1], bounds[1:], strict=True)
        self._leaves = [_Part(a, b, first + k, 1, None, cell=points is None) for k, (a, b) in enumerate(ends)]
        self._starts = bounds[:-1]
        self._fixed: set[float] = set()
        self._held: list[_Part] = []
        for p in points or ():
            self.split(p)

    def split(self, p: float) -> None:
        """Fixes the path at a position, if it is not yet."""
        if p in self._fixed:
            return
        self._fixed.add(p)
        part = self._leaf(p)
        while part.a < p < part.b:
            if not part.children:
                part.split((part.a + part.b) / 2 if part.coarse else p, cell=part.coarse)
            if p == part.at:
                return
            part = part.children[p > part.at]

    def increment(self, a: float, b: float) -> Tensor:
        """(W(b) - W(a)) / sqrt(b - a) for 0 <= a < b <= 1: standard normal, of shape (batch, ...)."""
        check_interval(a, b)
        self.split(a)
        self.split(b)
        parts, p = [], a
        while p < b:
            part = self._leaf(p)
            while part.a < p or part.b > b:
                part = part.children[p >= part.at]
            parts.append(self._take(part))
            p = part.b
        for x in parts[1:]:
            parts[0] += x
        made = np.multiply(parts[0], self._work(1 / math.sqrt(b - a)), out=room(self._shape, self._work))
        for part in self._held:
            if part.b <= a and part.increment is not None:
                parts.append(part.increment)
                part.increment = None
        SPARE.keep(self._shape, self._work, parts)
        self._held = [part for part in self._held if part.increment is not None]
        return as_tensor(made, self._shape, self._dtype, self._device)

    def _leaf(self, p: float) -> _Part:
        return self._leaves[max(bisect_right(self._starts, p) - 1, 0)]

    def _take(self, part: _Part) -> NDArray[np.floating]:
        """The increment of a part, handed over: it may be written into."""
        way = [part]
        while way[-1].increment is None and way[-1].parent is not None:
            way.append(way[-1].parent)
        top = way.pop()
        d = self._own(top) if top.increment is None else top.increment
        top.increment = None
        for down in reversed(way):
            parent = down.parent
            assert parent is not None
            (left, right), x = parent.children, self._split(parent, d)
            left.increment, right.increment = (x, d) if parent.left_smaller else (d, x)
            self._held.append(right if down is left else left)
            d = x if down.increment is x else d
            down.increment = None
        return d

    def _own(self, leaf: _Part) -> NDArray[np.floating]:
        """The increment of a leaf."""
        d = SPARE.take(self._shape, self._work)
        for _ in blocks(self._noise, f"path/{leaf.leaf}", 0, d, math.sqrt(leaf.b - leaf.a), fill=True):
            pass
        return d

    def _split(self, part: _Part, d: NDArray[np.floating]) -> NDArray[np.floating]:
        """The increment of the smaller part; d, that of the whole, becomes that of the rest."""
        lengths = part.at - part.a, part.b - part.at
        share = min(lengths) / sum(lengths)
        x, weight = SPARE.take(self._shape, self._work), self._work(share)
        scale, towards = math.sqrt(share * max(lengths)), np.add if part.left_smaller else np.subtract
        for where, xi in blocks(self._noise, f"path/{part.leaf}", part.node, x, scale):
            here, whole = x[where], d[where]
            np.multiply(whole, weight, here)
            towards(here, xi, here)
            whole -= here
        return x
