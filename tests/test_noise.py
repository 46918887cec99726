"""Noise: known answers of the generator, the same bits in any batch, the exact law of the path, and the sources."""

from __future__ import annotations

import math
import zlib

import pytest
import torch
from torch import Tensor

from fewstep.noise import (
    BrownianPath,
    Noise,
    brownian as brownian_module,
    noise_source,
    philox,
)

scipy_stats = pytest.importorskip("scipy.stats")

F64, CPU = torch.float64, torch.device("cpu")

# The answers published with the generator (Random123, kat_vectors, philox4x32 with 10 rounds): counter, key, words.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def draw(n: int = 1_000_000) -> Tensor:
    return Noise(seed=3).normal("initial", 0, (4, n // 4), dtype=F64).flatten()


def path_of(*, batch: int = 2, size: int = 6, first: int = 0, dtype: torch.dtype = F64, **options: int) -> BrownianPath:
    return BrownianPath(Noise(seed=3, first=first), (batch, size), dtype, CPU, **options)


def gram(path: BrownianPath, intervals: list[tuple[float, float]]) -> Tensor:
    """Exact covariance of the increments: they are linear in independent standard normals."""
    rows = [path.coefficients(a, b) for a, b in intervals]
    keys = {key: i for i, key in enumerate(dict.fromkeys(key for row in rows for key in row))}
    matrix = torch.zeros(len(rows), len(keys), dtype=F64)
    for i, row in enumerate(rows):
        for key, c in row.items():
            matrix[i, keys[key]] = c
    return matrix @ matrix.T


def pairs(points: list[float]) -> list[tuple[float, float]]:
    return list(zip(points[:-1], points[1:], strict=True))


def requests(points: list[float]) -> list[tuple[float, float, str, int]]:
    return [(a, b, "path", i) for i, (a, b) in enumerate(pairs(points))]


def log_snr_grid(low: float, high: float, n: int) -> list[float]:
    return [1 / (1 + math.exp(-(low + (high - low) * i / n) / 2)) for i in range(n + 1)]


GRIDS = {
    "uniform": [i / 10 for i in range(11)],
    "dyadic": [i / 64 for i in range(65)],
    "many": [i / 300 for i in range(301)],
    "log-snr": log_snr_grid(-14, 28, 40),
    "one leaf": [0.0, 0.3, 0.3 + 1e-7, 0.3 + 3e-7, 0.3 + 3.0001e-7, 0.30001, 0.7, 1.0],
    "last leaf": [0.0, 1 - 1e-9, 1 - 1e-10, 1 - 4e-11, 1 - 1e-14, 1.0],
    "first leaf": [0.0, 1e-30, 1e-20, 1e-10, 1.5e-10, 0.5],
}


# --- the generator


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_known_answers(counter: str, key: str, answer: str) -> None:
    low, high = words(key)
    out = philox([torch.tensor([word]) for word in words(counter)], low | high << 32)
    assert [int(word) for word in out] == words(answer)


def test_philox_broadcasts() -> None:
    rows, columns = torch.arange(3)[:, None], torch.arange(5)[None]
    zero = torch.zeros(1, 1, dtype=torch.int64)
    whole = philox((columns, rows, zero, zero), 7)
    one = philox([torch.tensor([word]) for word in (4, 2, 0, 0)], 7)
    assert [int(word[2, 4]) for word in whole] == [int(word) for word in one]


def test_one_number_from_the_equation() -> None:
    """Element 0 and element n are the two Box-Muller normals of the first block's first two words."""
    seed, sample, k = 5 << 32 | 11, 17, 9
    c = [torch.tensor([word]) for word in (0, sample, zlib.crc32(b"mine"), k)]
    u, v, _, _ = (int(word) for word in philox(c, seed))
    r = math.sqrt(-2 * math.log((u + 0.5) / 2**32))
    x = Noise(seed, first=sample).normal("mine", k, (1, 12), dtype=F64)[0]
    assert float(x[0]) == pytest.approx(r * math.cos(2 * math.pi * v / 2**32), rel=1e-14)
    assert float(x[3]) == pytest.approx(r * math.sin(2 * math.pi * v / 2**32), rel=1e-14)


# --- the law of the normals


def test_normals_have_the_normal_law() -> None:
    x = draw()
    n = len(x)
    assert scipy_stats.kstest(x.numpy(), "norm").pvalue > 1e-3
    assert abs(float(x.mean())) < 4 / math.sqrt(n)
    assert abs(float(x.var()) - 1) < 4 * math.sqrt(2 / n)
    assert abs(float((x**3).mean())) < 4 * math.sqrt(15 / n)
    assert abs(float((x**4).mean()) - 3) < 4 * math.sqrt(96 / n)
    tail = int((x.abs() > 4).sum())
    assert abs(tail - 2 * n * scipy_stats.norm.sf(4)) < 4 * math.sqrt(2 * n * scipy_stats.norm.sf(4))
    assert 4.5 < float(x.abs().max()) < 6.77


def test_neighbours_are_uncorrelated() -> None:
    """Among elements (also the two normals of one Box-Muller pair), samples, streams, k and seeds."""
    n = 200_000
    x = Noise(seed=3).normal("initial", 0, (2, n), dtype=F64)
    others = {
        "next element": (x[0], x[0].roll(1)),
        "pair": (x[0, : n // 4], x[0, n // 4 : n // 2]),
        "pair, squared": (x[0, : n // 4] ** 2 - 1, x[0, n // 4 : n // 2] ** 2 - 1),
        "words": (x[0, : n // 4], x[0, n // 2 : 3 * n // 4]),
        "samples": (x[0], x[1]),
        "streams": (x[0], Noise(seed=3).normal("path", 0, (1, n), dtype=F64)[0]),
        "k": (x[0], Noise(seed=3).normal("initial", 1, (1, n), dtype=F64)[0]),
        "seeds": (x[0], Noise(seed=4).normal("initial", 0, (1, n), dtype=F64)[0]),
        "high word of the seed": (x[0], Noise(seed=3 + 2**32).normal("initial", 0, (1, n), dtype=F64)[0]),
    }
    for name, (a, b) in others.items():
        r = float(torch.corrcoef(torch.stack([a, b]))[0, 1])
        assert abs(r) < 4.5 / math.sqrt(len(a)), name


def test_initial_is_independent_of_path() -> None:
    shape = (64, 3000)
    source = noise_source(seed=3)
    eps = source.initial(shape, F64, CPU)
    for xi in source.intervals(requests(GRIDS["uniform"]), shape, F64, CPU):
        r = float((eps * xi).mean() / (eps.std() * xi.std()))
        assert abs(r) < 4.5 / math.sqrt(eps.numel())


# --- the same bits


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (7,), (1, 28, 28), (3, 5, 5)])
def test_same_bits_in_any_batch(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    whole = Noise(seed=3).normal("initial", 2, (64, *shape), dtype=dtype)
    steps = list(noise_source(seed=3).intervals(requests([0.0, 0.3, 0.31]), (64, *shape), dtype, CPU))
    for first in (0, 1, 17, 61):
        for batch in (1, 3):
            rows = slice(first, first + batch)
            part = Noise(seed=3, first=first).normal("initial", 2, (batch, *shape), dtype=dtype)
            assert torch.equal(part, whole[rows])
            source = noise_source(seed=3, first=first)
            for xi, all_xi in zip(
                source.intervals(requests([0.0, 0.3, 0.31]), (batch, *shape), dtype, CPU), steps, strict=True
            ):
                assert torch.equal(xi, all_xi[rows])
                assert xi.dtype == dtype


def test_same_bits_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state larger than a chunk, and one chunk of many rows, give the bits of any other cut."""
    from fewstep.noise import counter

    wide, tall = [Noise(seed=1).normal("initial", 0, shape, dtype=F64) for shape in ((2, 9001), (500, 37))]
    for size in (1, 7, 640):
        monkeypatch.setattr(counter, "_chunk", lambda _, size=size: 4 * size)
        assert torch.equal(Noise(seed=1).normal("initial", 0, (2, 9001), dtype=F64), wide)
        if size > 1:
            assert torch.equal(Noise(seed=1).normal("initial", 0, (500, 37), dtype=F64), tall)


def test_dtypes_are_casts_of_float64() -> None:
    x = Noise(seed=3).normal("initial", 0, (3, 50), dtype=F64)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(Noise(seed=3).normal("initial", 0, (3, 50), dtype=dtype), x.to(dtype))


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (2, 0, 3)])
def test_empty_states(shape: tuple[int, ...]) -> None:
    source = noise_source()
    assert source.initial(shape, F64, CPU).shape == shape
    assert next(source.intervals(requests([0.0, 1.0]), shape, F64, CPU)).shape == shape


def test_last_words_are_legal() -> None:
    top = Noise(seed=2**64 - 1, first=2**32 - 1)
    assert torch.isfinite(top.normal("initial", 2**32 - 1, (1, 9))).all()
    with pytest.raises(ValueError, match="last sample"):
        top.normal("initial", 0, (2, 9))


# --- the path


@pytest.mark.parametrize("name", GRIDS)
def test_increments_are_exactly_independent(name: str) -> None:
    """Their exact covariance matrix is the identity, asked for in order, backwards and in a mixed order."""
    points = sorted(GRIDS[name])
    for order in (1, -1, 7):
        path, intervals = path_of(), pairs(points)
        asked = intervals[::order] if abs(order) == 1 else [iv for i in range(order) for iv in intervals[i::order]]
        for a, b in asked:
            path.coefficients(a, b)
        covariance = gram(path, intervals)
        torch.testing.assert_close(covariance, torch.eye(len(intervals), dtype=F64), rtol=0, atol=1e-7)


def test_overlapping_increments_are_correlated_as_on_a_path() -> None:
    intervals = [(0.1, 0.4), (0.2, 0.5), (0.25, 0.3), (0.0, 1.0)]
    exact = [[max(min(b, d) - max(a, c), 0) / math.sqrt((b - a) * (d - c)) for c, d in intervals] for a, b in intervals]
    torch.testing.assert_close(gram(path_of(), intervals), torch.tensor(exact, dtype=F64), rtol=0, atol=1e-12)


def test_tensors_follow_the_coefficients() -> None:
    """Every term with its own normal: the variance of the tensor, not of the plan."""
    path = path_of(batch=100, size=2000)
    for a, b in pairs(GRIDS["one leaf"]):
        x = path.increment(a, b)
        assert abs(float(x.var()) - 1) < 5 * math.sqrt(2 / x.numel()), (a, b)
        assert abs(float(x.mean())) < 5 / math.sqrt(x.numel())
    a, b = 0.2, 0.6
    expected = torch.zeros(2, 6, dtype=F64)
    for (stream, k), c in path_of().coefficients(a, b).items():
        assert stream == brownian_module.stream_id("path")
        expected += c * Noise(seed=3).normal("path", k, (2, 6), dtype=F64)
    torch.testing.assert_close(path_of().increment(a, b), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize(("dtype", "atol"), [(F64, 1e-6), (torch.float32, 2e-6)])
def test_parts_add_up_to_the_whole(name: str, dtype: torch.dtype, atol: float) -> None:
    path, points = path_of(dtype=dtype), GRIDS[name]
    points = sorted(points)
    for a, b, c in zip(points[:-2], points[1:-1], points[2:], strict=True):
        parts = math.sqrt(b - a) * path.increment(a, b) + math.sqrt(c - b) * path.increment(b, c)
        torch.testing.assert_close(parts / math.sqrt(c - a), path.increment(a, c), rtol=0, atol=atol)
    total = sum(math.sqrt(b - a) * path.increment(a, b) for a, b in pairs(points))
    assert isinstance(total, Tensor)
    whole = math.sqrt(points[-1] - points[0]) * path.increment(points[0], points[-1])
    torch.testing.assert_close(total, whole, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("grid", [lambda n: log_snr_grid(-10, 24, n), lambda n: [i / n for i in range(n + 1)]])
def test_same_path_at_ten_and_twenty_steps(grid) -> None:
    coarse, fine = grid(10), grid(20)
    many, few = path_of(), path_of()
    xi = [many.increment(a, b) for a, b in pairs(fine)]
    for i, (a, c) in enumerate(pairs(coarse)):
        b = fine[2 * i + 1]
        parts = math.sqrt(b - a) * xi[2 * i] + math.sqrt(c - b) * xi[2 * i + 1]
        torch.testing.assert_close(few.increment(a, c), parts / math.sqrt(c - a), rtol=0, atol=1e-11)


def test_jumps_and_caches_change_no_bit() -> None:
    asked = [(0.1, 0.2), (0.2, 0.35), (0.8, 0.9), (0.1, 0.2), (0.0, 1.0), (0.15, 0.2), (0.2, 0.35), (0.3, 0.3001)]
    fresh = [path_of().increment(a, b) for a, b in asked]
    for cache in (0, 200, 1000, 2**28):
        path = path_of(cache=cache)
        for (a, b), xi in zip(asked, fresh, strict=True):
            assert torch.equal(path.increment(a, b), xi), (a, b, cache)


def test_points_of_one_leaf_keep_their_values() -> None:
    path = path_of()
    points = [0.3, 0.3 + 3e-7, 0.3 + 1e-7, 0.3 + 2e-7]
    first = [path.increment(0.0, p) for p in points]
    path.increment(0.6, 0.9)
    assert all(torch.equal(path.increment(0.0, p), xi) for p, xi in zip(points, first, strict=True))


def test_cache_is_one_chain_and_within_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    draw_normals = brownian_module.standard_normals

    def counting(noise, keys, *rest):
        made.append(len(keys))
        return draw_normals(noise, keys, *rest)

    monkeypatch.setattr(brownian_module, "standard_normals", counting)
    positions = [i / 20 for i in range(21)]
    totals = {}
    for cache in (0, 5 * 96, 2**28):
        made.clear()
        path = path_of(cache=cache)
        for a, b in pairs(positions):
            path.increment(a, b)
            assert sum(xi.untyped_storage().nbytes() for xi in path._cached.values()) <= cache
            assert len(path._cached) <= 20  # a chain down to a leaf near 0.05
        totals[cache] = sum(made)
    assert totals[2**28] < totals[5 * 96] < totals[0]
    assert totals[2**28] < 20 * 10


def test_streams_of_the_path_are_distinct() -> None:
    names = ["initial", "path", *(f"path/{n}" for n in range(1, 20_000))]
    assert len({brownian_module.stream_id(name) for name in names}) == len(names)


# --- bad inputs


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Noise(seed=-1), "seed is -1"),
        (lambda: Noise(seed=2**64), "seed is"),
        (lambda: Noise(seed=0.5), "seed is 0.5"),  # pyright: ignore[reportArgumentType]
        (lambda: Noise(first=2**32), "first is"),
        (lambda: Noise().normal("initial", -1, (1, 2)), "k is -1"),
        (lambda: Noise().normal("initial", 0, ()), "noise shape"),
        (lambda: Noise().normal("initial", 0, (2, -1)), "noise shape"),
        (lambda: Noise().normal("initial", 0, (2,), dtype=torch.int64), "noise dtype"),
        (lambda: path_of(dtype=torch.complex64), "noise dtype"),
        (lambda: path_of().increment(0.5, 0.5), "interval is"),
        (lambda: path_of().increment(0.6, 0.5), "interval is"),
        (lambda: path_of().increment(-0.1, 0.5), "interval is"),
        (lambda: path_of().increment(0.5, 1.1), "interval is"),
        (lambda: path_of().increment(math.nan, 0.5), "interval is"),
        (lambda: noise_source().intervals(requests([0.0, 0.7, 0.6]), (2, 3), F64, CPU), "interval is"),
        (lambda: noise_source(torch.Generator()).initial((), F64, CPU), "noise shape"),
        (lambda: noise_source(torch.zeros(3, 4).long()), "noise tensor"),
        (lambda: noise_source(torch.zeros(3)), "noise tensor"),
        (
            lambda: noise_source(torch.zeros(1, 2, 3)).intervals(requests([0.0, 0.5, 1.0]), (2, 3), F64, CPU),
            "2 or more",
        ),
        (
            lambda: noise_source(torch.zeros(2, 1, 3)).intervals(requests([0.0, 0.5, 1.0]), (2, 3), F64, CPU),
            "2 or more",
        ),
        (lambda: noise_source(7), "noise is a int"),
        (lambda: noise_source("gaussian"), "noise is a str"),
    ],
)
def test_bad_input_gets_a_sentence(call, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert str(error.value).count(";") >= 2
