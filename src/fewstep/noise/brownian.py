"""One Brownian path for each sample, the same for every grid: refined by bisection from counter-based normals.

The noise of a step is the increment of a path W over an interval of positions in [0, 1] (the caller maps its times
there, e.g. by sigmoid(log_snr / 2)), so that runs of one seed with 10 and with 20 steps follow the same path. Symbols:
`a < b` and `p` positions, `xi` a standard normal, `key = (stream id, k)` what fixes it, `form` the coefficients of W(p)
on the xi.

Reference: Moerters, Peres, "Brownian Motion", Cambridge 2010, chapter 1 (Levy's construction).
"""

from __future__ import annotations

import math
from bisect import bisect, insort
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.noise.counter import Noise, check_state, group_size, standard_normals, stream_id

__all__ = ["BrownianPath", "check_interval"]

_APART = 2**8  # nodes between a leaf and the nearer end
_DEEPEST = 31  # so that a node's number fits its word


def check_interval(a: float, b: float) -> None:
    """Refuses what is no interval of [0, 1]."""
    if not 0.0 <= a < b <= 1.0:
        raise ValueError(
            f"interval is ({a!r}, {b!r}); positions must satisfy 0 <= a < b <= 1; "
            "map the times to [0, 1] and sort the pair."
        )


class BrownianPath:
    r"""One Brownian path W for each sample on positions [0, 1], fixed by (seed, sample): Levy's construction.

        W(p) = p xi_0 + sum_n sqrt(|n|)/2 hat_n(p) xi_n    nodes n = [m, m + 1] 2^-level that hold p, down to its leaf

    with one standard normal xi a node (k = 2^level + m), hat_n = 1 at the middle of the node and 0 at its ends. W is
    linear in the xi with float64 coefficients, and so is an increment:

        (W(b) - W(a)) / sqrt(b - a) = sum_n c_n xi_n,      sum_n c_n^2 = 1,

    which is formed from the difference of coefficients, never of values: no cancellation however short the interval.

    A node is a leaf when 2^8 nodes of its size lie between it and the nearer end of [0, 1] (level 9 in the middle), or
    at level 31: steps of a log-SNR crowd near the ends, so leaves shrink towards them as steps do. That is three leaves
    a step for 1000 steps uniform in log-SNR over 16 e-folds; each level more costs one normal an interval. A point
    inside a leaf is drawn from the bridge between its neighbours asked for before, with a normal of its own (stream
    "path", for the n-th further point in the leaf "path/n"; k = leaf), so the law is exact on any grid. Points alone in
    their leaf do not depend on what else is asked, so every grid sees the same path; among several in one leaf all but
    the first depend on the order of asking. The path remembers: asked again, the answer is the same.

    The object keeps the coefficients of every position it has met (some twenty numbers each) and the normals xi of the
    last query's b, where the next query usually starts, as far as `cache` bytes go; the rest is made again when needed,
    with the same bits.

    Args:
        noise: seed and first sample.
        shape: (batch, ...).
        dtype: of the increments; sums run in float32 or wider.
        device: where they are made.
        cache: bytes of normals kept between queries; 0 is legal and only slower.

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
        cache: int = 2**28,
    ) -> None:
        check_state(shape, dtype)
        self._noise, self._shape, self._dtype, self._device = noise, tuple(shape), dtype, torch.device(device)
        self._work = torch.promote_types(dtype, torch.float32)
        size = math.prod(shape)
        self._keep = cache // max(size * self._work.itemsize, 1)
        self._group = group_size(size, self._device)
        self._forms: dict[float, dict[tuple[int, int], float]] = {}
        self._leaves: dict[int, list[float]] = {}
        self._cached: dict[tuple[int, int], Tensor] = {}

    def coefficients(self, a: float, b: float) -> dict[tuple[int, int], float]:
        """The c_n of (W(b) - W(a)) / sqrt(b - a) by key (stream id, k), coarse to fine; zeros are left out."""
        check_interval(a, b)
        form_a, form_b = self._form(float(a)), self._form(float(b))
        scale = 1 / math.sqrt(b - a)
        c = {key: (form_b.get(key, 0.0) - form_a.get(key, 0.0)) * scale for key in {**form_b, **form_a}}
        return {key: value for key, value in c.items() if value != 0.0}

    def increment(self, a: float, b: float) -> Tensor:
        """(W(b) - W(a)) / sqrt(b - a) for 0 <= a < b <= 1: standard normal, of shape (batch, ...)."""
        coefficients = self.coefficients(a, b)
        keys = list(coefficients)
        keep = set(list(self._form(float(b)))[: self._keep])
        self._cached = {key: xi for key, xi in self._cached.items() if key in keep or key in coefficients}
        out = torch.zeros(self._shape, dtype=self._work, device=self._device)
        for i in range(0, len(keys), self._group):
            group = keys[i : i + self._group]
            missing = [key for key in group if key not in self._cached]
            made = standard_normals(self._noise, missing, self._shape, self._work, self._device) if missing else ()
            new = dict(zip(missing, made, strict=True))
            for key in group:
                xi = new[key] if key in new else self._cached[key]
                out.add_(xi, alpha=coefficients[key])
                if key in new and key in keep:
                    self._cached[key] = xi.clone() if len(missing) > 1 else xi  # a view would keep its group alive
        self._cached = {key: xi for key, xi in self._cached.items() if key in keep}
        return out.to(self._dtype)

    def _form(self, p: float) -> dict[tuple[int, int], float]:
        """Coefficients of W(p) on the normals, by key, coarse to fine."""
        if p in self._forms:
            return self._forms[p]
        path = stream_id("path")
        form, level, m, low, high = {(path, 0): p}, 0, 0, 0.0, 1.0
        while low < p < high:
            if level == _DEEPEST or min(m, 2**level - 1 - m) >= _APART:
                form = self._bridge(p, 2**level + m, low, high)
                break
            half = (high - low) / 2
            form[path, 2**level + m] = math.sqrt(half / 2) * (1 - abs(p - low - half) / half)
            right = p >= low + half
            level, m = level + 1, 2 * m + right
            low, high = (low + half, high) if right else (low, high - half)
        self._forms[p] = form
        return form

    def _bridge(self, p: float, leaf: int, low: float, high: float) -> dict[tuple[int, int], float]:
        """W(p) given its neighbours l < p < r in the leaf: mean linear, variance (p - l) (r - p) / (r - l)."""
        points = self._leaves.setdefault(leaf, [low, high])
        i = bisect(points, p)
        left, right = points[i - 1], points[i]
        form_l, form_r, w = self._form(left), self._form(right), (p - left) / (right - left)
        form = {key: (1 - w) * form_l.get(key, 0.0) + w * form_r.get(key, 0.0) for key in {**form_l, **form_r}}
        n = len(points) - 2
        form[stream_id(f"path/{n}" if n else "path"), leaf] = math.sqrt(w * (right - p))
        insort(points, p)
        return form
