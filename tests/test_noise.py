"""Noise: the bits of the stream, the same ones in any batch, the exact law of the path, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.noise import STREAM, BrownianPath, Noise, brownian as brownian_module, counter, noise_source

scipy_stats = pytest.importorskip("scipy.stats")

F64, CPU = torch.float64, torch.device("cpu")


def draw(n: int = 1_000_000) -> Tensor:
    return Noise(seed=3).normal("initial", 0, (4, n // 4), dtype=F64).flatten()


def path_of(
    *,
    batch: int = 2,
    size: int = 6,
    first: int = 0,
    dtype: torch.dtype = F64,
    points: Sequence[float] | None = None,
) -> BrownianPath:
    return BrownianPath(Noise(seed=3, first=first), (batch, size), dtype, CPU, points=points)


@pytest.fixture
def exactly(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], int]:
    """Normals that are not random: number k of a stream is a unit vector, so an increment is the row of its weights."""
    numbers: dict[tuple[str, int], int] = {}

    def unit(_, stream: str, k: int, like: Any, scale: float, *, fill: bool = False) -> Iterator[Any]:
        xi = like if fill else np.empty_like(like)
        xi[:] = 0
        xi[:, numbers.setdefault((stream, k), len(numbers))] = scale
        yield (slice(None), slice(None)), xi

    monkeypatch.setattr(brownian_module, "blocks", unit)
    return numbers


def weights(path: BrownianPath, intervals: list[tuple[float, float]]) -> Tensor:
    return torch.cat([path.increment(a, b) for a, b in intervals])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What the path draws, in order."""
    names: list[tuple[str, int]] = []
    draw_blocks = brownian_module.blocks

    def counting(noise, stream, k, *rest, **options):
        names.append((stream, k))
        return draw_blocks(noise, stream, k, *rest, **options)

    monkeypatch.setattr(brownian_module, "blocks", counting)
    return names


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


# --- the stream


def test_the_bits_of_the_stream() -> None:
    """Known numbers: if they change, `STREAM` does, for records of the old numbers are then of other samples."""
    known = {
        ("initial", 0, 3, 0): [
            "0x1.021f760000000p-1",
            "0x1.4e2ac00000000p-2",
            "-0x1.b1812e0000000p-1",
            "-0x1.8b7dbe0000000p+0",
        ],
        ("path/1", 5, 2**64 - 1, 17): [
            "0x1.007efc0000000p-2",
            "-0x1.c4234c0000000p+0",
            "0x1.09f6700000000p+0",
            "0x1.10c6660000000p-3",
        ],
    }
    assert STREAM == 2
    for (stream, k, seed, first), numbers in known.items():
        x = Noise(seed, first).normal(stream, k, (1, len(numbers)))[0]
        assert x.tolist() == [float.fromhex(number) for number in numbers]
    step = list(noise_source(seed=3).intervals(requests([0.1, 0.3, 0.6]), (1, 2), torch.float32, CPU))[1][0]
    assert step.tolist() == [float.fromhex(number) for number in ["0x1.11df820000000p-2", "0x1.db71f40000000p-3"]]


@pytest.mark.parametrize("size", [12, 13, 1, 2 * counter.BLOCK + 10])
def test_numbers_from_the_equation(size: int) -> None:
    """Numbers j and j + m of a block of 2 m are the two of Box and Muller's equation."""
    seed, sample, k, n = 5 << 32 | 11, 17, 9, -(-size // 2)
    bits = counter.PCG64DXSM(counter._Key(seed, "mine", k))
    words = bits.advance(sample * n).random_raw(n)
    x = Noise(seed, first=sample).normal("mine", k, (1, size), dtype=F64)[0]
    for start in range(0, n, counter.BLOCK):
        halves = np.ascontiguousarray(words[start : start + counter.BLOCK]).view("<u4").astype(np.uint64)
        m = len(halves) // 2
        for j in {0, m // 3, m - 1}:
            u = 1 - int(halves[j]) % 2**31 / 2**31
            theta, radius = math.tau * float(halves[m + j]) / 2**32, math.sqrt(-2 * math.log(u))
            assert float(x[2 * start + j]) == pytest.approx(radius * math.cos(theta), rel=1e-6, abs=3e-6)
            if 2 * start + m + j < size:
                assert float(x[2 * start + m + j]) == pytest.approx(radius * math.sin(theta), rel=1e-6, abs=3e-6)


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
    assert 4.5 < float(x.abs().max()) < 6.56


def test_the_farthest_normals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest u, the one nearest to 1, and the angles at the ends of the circle give finite normals."""

    class Words:
        def random_raw(self, n: int) -> Any:
            return np.array([0x7FFFFFFF, 0x80000000, 0, 0x80000000], np.uint32).view(np.uint64)

    out = np.empty((1, 2, 2), np.float32)
    counter._box_muller(Words(), out, 1.0)  # pyright: ignore[reportArgumentType]
    assert np.isfinite(out).all()
    assert 6.5 < float(np.abs(out[:, :, 0]).max()) < 6.56
    assert float(np.abs(out[:, :, 1]).max()) < 1e-4


def test_neighbours_are_uncorrelated() -> None:
    """Among elements (also the two normals of one Box-Muller pair), samples, streams, k and seeds."""
    n = 200_000
    x = Noise(seed=3).normal("initial", 0, (2, n), dtype=F64)
    blocks = x[0, : n // (2 * counter.BLOCK) * 2 * counter.BLOCK].view(-1, 2 * counter.BLOCK)
    others = {
        "next element": (x[0], x[0].roll(1)),
        "pair": (first := blocks[:, : counter.BLOCK].flatten(), second := blocks[:, counter.BLOCK :].flatten()),
        "pair, squared": (first**2 - 1, second**2 - 1),
        "blocks": (blocks[0], blocks[1]),
        "samples": (x[0], x[1]),
        "streams": (x[0], Noise(seed=3).normal("path/1", 0, (1, n), dtype=F64)[0]),
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


def test_same_bits_in_any_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many samples at once give the bits of few at once."""
    tall = Noise(seed=1).normal("initial", 0, (500, 37), dtype=F64)
    for size in (19, 40, 640):
        monkeypatch.setattr(counter, "BLOCK", size)
        assert torch.equal(Noise(seed=1).normal("initial", 0, (500, 37), dtype=F64), tall)


@pytest.mark.parametrize("size", [3, 40_001])
def test_same_bits_where_numbers_lie_elsewhere_in_memory(size: int) -> None:
    """No kernel has another last bit at the end of a row, or for an odd place in memory."""
    whole = Noise(seed=1).normal("initial", 0, (50, size))
    for first in range(0, 50, 7):
        assert torch.equal(Noise(1, first).normal("initial", 0, (1, size))[0], whole[first])


def test_same_bits_in_any_thread() -> None:
    asked = pairs(GRIDS["uniform"])
    run = lambda: torch.stack(list(noise_source(seed=3).intervals(requests(GRIDS["uniform"]), (3, 40), F64, CPU)))  # noqa: E731
    alone = run()
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(made, alone) for made in pool.map(lambda _: run(), range(16)))
    with torch.inference_mode():
        assert torch.equal(run(), alone)
    assert len(asked) == len(alone)


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


def halved(n: int, grid: Callable[[int], list[float]]) -> list[float]:
    """A grid's points from coarse to fine, as a run knows them."""
    points = grid(n)
    return [points[0], points[n], *(points[i] for i in brownian_module.coarse_to_fine(n))]


def test_coarse_to_fine() -> None:
    """Every number once, and those of a coarser grid before the others."""
    for n in (*range(8), 50, 96, 600):
        order = brownian_module.coarse_to_fine(n)
        assert sorted(order) == list(range(1, n))
        if n % 2 == 0 and n:
            assert order[: n // 2 - 1] == [2 * i for i in brownian_module.coarse_to_fine(n // 2)]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", GRIDS)
def test_increments_are_exactly_independent(exactly, name: str, known: bool) -> None:
    """Their exact covariance matrix is the identity, asked for in order, backwards and in a mixed order."""
    points = sorted(GRIDS[name])
    intervals = pairs(points)
    for order in (1, -1, 7):
        exactly.clear()
        path = path_of(batch=1, size=3000, points=points[::order] if known and abs(order) == 1 else None)
        asked = intervals[::order] if abs(order) == 1 else [iv for i in range(order) for iv in intervals[i::order]]
        made = weights(path, asked)
        torch.testing.assert_close(made @ made.T, torch.eye(len(intervals), dtype=F64), rtol=0, atol=1e-7)


@pytest.mark.parametrize("points", [None, [0.0, 1.0, 0.5, 0.3]])
def test_overlapping_increments_are_correlated_as_on_a_path(exactly, points) -> None:
    intervals = [(0.1, 0.4), (0.2, 0.5), (0.25, 0.3), (0.0, 1.0), (0.3, 0.97)]
    exact = [[max(min(b, d) - max(a, c), 0) / math.sqrt((b - a) * (d - c)) for c, d in intervals] for a, b in intervals]
    made = weights(path_of(batch=1, size=400, points=points), intervals)
    torch.testing.assert_close(made @ made.T, torch.tensor(exact, dtype=F64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("known", [True, False])
def test_tensors_have_the_law(known: bool) -> None:
    """Every term with its own normal: the law of the tensors, not of the plan, and no correlation between them."""
    points = GRIDS["one leaf"] if known else None
    path, made = path_of(batch=100, size=2000, points=points, dtype=torch.float32), []
    for a, b in pairs(GRIDS["one leaf"]):
        made.append(path.increment(a, b).double().flatten())
        assert scipy_stats.kstest(made[-1][:50_000].numpy(), "norm").pvalue > 1e-4, (a, b)
        n, tail = len(made[-1]), int((made[-1].abs() > 3).sum())
        assert abs(tail - 2 * n * scipy_stats.norm.sf(3)) < 4.5 * math.sqrt(2 * n * scipy_stats.norm.sf(3)), (a, b)
        assert abs(float(made[-1].var()) - 1) < 5 * math.sqrt(2 / n), (a, b)
        assert abs(float(made[-1].mean())) < 5 / math.sqrt(n)
    correlation = torch.corrcoef(torch.stack(made)) - torch.eye(len(made))
    assert float(correlation.abs().max()) < 5 / math.sqrt(n)


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
@pytest.mark.parametrize("counts", [(10, 20), (3, 12), (25, 50)])
@pytest.mark.parametrize("how", ["known before", "unknown", "of a source"])
def test_same_path_at_ten_and_twenty_steps(grid, counts: tuple[int, int], how: str) -> None:
    few, many = counts
    made = {}
    for n in counts:
        if how == "of a source":
            made[n] = list(noise_source(seed=3).intervals(requests(grid(n)), (2, 6), F64, CPU))
        else:
            path = path_of(points=halved(n, grid) if how == "known before" else None)
            made[n] = [path.increment(a, b) for a, b in pairs(grid(n))]
    fine, ratio = grid(many), many // few
    for i, (a, c) in enumerate(pairs(grid(few))):
        inner = range(ratio * i, ratio * (i + 1))
        parts = sum(math.sqrt(fine[j + 1] - fine[j]) * made[many][j] for j in inner)
        torch.testing.assert_close(made[few][i], parts / math.sqrt(c - a), rtol=0, atol=1e-11)


def test_a_run_that_skips_its_first_noise_keeps_the_path() -> None:
    """What is split first is the grid, not what happens to be asked for."""
    made = {}
    for n in (10, 20):
        points = log_snr_grid(-4, 4, n)
        source = noise_source(seed=3).along(points)
        made[n] = list(source.intervals(requests(points)[1:], (2, 6), F64, CPU))
    a, b, c = log_snr_grid(-4, 4, 20)[2:5]
    parts = math.sqrt(b - a) * made[20][1] + math.sqrt(c - b) * made[20][2]
    torch.testing.assert_close(parts / math.sqrt(c - a), made[10][0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("grid", [lambda n: log_snr_grid(-5, 5, n), lambda n: [i / n for i in range(n + 1)]])
def test_the_path_does_not_jump_where_times_are_rounded(grid) -> None:
    """VP and EDM have the same log-SNRs up to rounding; so must be their noise, halves of equal length too."""
    made = {}
    for sign in (1, -1):
        points = [p * (1 + sign * 1e-15 * (-1) ** i) for i, p in enumerate(grid(20))][:-1] + [grid(20)[-1]]
        made[sign] = torch.cat(list(noise_source(seed=3).intervals(requests(points), (2, 6), F64, CPU)))
    torch.testing.assert_close(made[1], made[-1], rtol=0, atol=1e-6)


def test_any_two_grids_agree_between_knots() -> None:
    low, high = brownian_module.KNOTS
    paths = [path_of(points=points) for points in (None, halved(10, lambda n: log_snr_grid(-5, 5, n)), [0.1, 0.99])]
    first, *others = (path.increment(low, high) for path in paths)
    for other in others:
        torch.testing.assert_close(first, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 10, 20, 50, 300])
def test_a_step_costs_little_more_than_one_normal(drawn, steps: int) -> None:
    """A known grid: one normal an interval and one a knot, none of them twice."""
    source = noise_source(seed=3)
    for _ in source.intervals(requests(log_snr_grid(-5, 5, steps)), (2, 6), torch.float32, CPU):
        pass
    assert len(drawn) == len(set(drawn)) <= steps + len(brownian_module.KNOTS)


def test_the_path_holds_few_states(monkeypatch: pytest.MonkeyPatch) -> None:
    path = path_of(points=halved(300, lambda n: [i / n for i in range(n + 1)]))
    held = []
    for a, b in pairs([i / 300 for i in range(301)]):
        path.increment(a, b)
        held.append(len(path._held))
        assert all(part.increment is not None and part.b > a for part in path._held)
    assert max(held) <= 9
    assert not path._held


def test_a_noise_is_no_operation_of_torch() -> None:
    """On the CPU it is made beside torch: nothing for a profiler to count, nothing for autograd to see."""

    class Counting(TorchDispatchMode):
        seen: ClassVar[list[Any]] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Counting.seen.append(func)
            return func(*args, **(kwargs or {}))

    coming = noise_source(seed=3).intervals(requests(GRIDS["uniform"]), (2, 7), torch.float32, CPU)
    with Counting():
        for _ in coming:
            pass
    assert Counting.seen == [torch.ops.aten.lift_fresh.default] * 10  # numpy's memory becomes a tensor: no kernel


def test_jumps_change_no_bit() -> None:
    asked = [(0.1, 0.2), (0.2, 0.35), (0.8, 0.9), (0.1, 0.2), (0.0, 1.0), (0.15, 0.2), (0.2, 0.35), (0.3, 0.3001)]
    fresh = [path_of().increment(a, b) for a, b in asked]
    path = path_of()
    for (a, b), xi in zip(asked, fresh, strict=True):
        assert torch.equal(path.increment(a, b), xi), (a, b)


@pytest.mark.parametrize("points", [None, [0.0, 1.0, 0.3]])
def test_points_of_one_leaf_keep_their_values(points) -> None:
    path = path_of(points=points)
    asked = [0.3, 0.3 + 3e-7, 0.3 + 1e-7, 0.3 + 2e-7]
    first = [path.increment(0.0, p) for p in asked]
    path.increment(0.6, 0.9)
    assert all(torch.equal(path.increment(0.0, p), xi) for p, xi in zip(asked, first, strict=True))


def test_paths_side_by_side_do_not_share_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other shapes and dtypes, and where no array is kept."""
    kinds = [((2, 6), F64), ((6, 2), F64), ((2, 6), torch.float32), ((2, 7), torch.float32), ((2, 0), F64)]
    one = lambda shape, dtype: noise_source(seed=3).intervals(requests(GRIDS["uniform"]), shape, dtype, CPU)  # noqa: E731
    alone = [list(one(*kind)) for kind in kinds]
    for kept in (2**25, 100, 0):
        monkeypatch.setattr(brownian_module, "_KEPT", kept)
        together = list(zip(*(one(*kind) for kind in kinds), strict=True))
        for made, expected in zip(together, zip(*alone, strict=True), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(made, expected, strict=True))


def test_what_was_handed_out_is_not_written_into() -> None:
    path = path_of(points=halved(16, lambda n: [i / n for i in range(n + 1)]))
    made = [path.increment(a, b) for _ in range(2) for a, b in pairs([i / 16 for i in range(17)])]
    copies = [x.clone() for x in made]
    path.increment(0.0, 0.5)
    path.increment(0.03, 0.04)
    assert all(torch.equal(x, y) for x, y in zip(made, copies, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(made[:16], made[16:], strict=True))


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
