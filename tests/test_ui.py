"""What a person sees: pictures side by side, a table, and a bar only where someone waits at a terminal."""

from __future__ import annotations

import io
import math
import sys

import numpy as np
import pytest
import torch

from fewstep.terminal import GAP, Bar, pixels, png, sheet, table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("n", "columns", "grid"), [(1, None, (1, 1)), (5, None, (3, 2)), (6, 3, (2, 3))])
def test_a_sheet_holds_every_picture_in_order(n, columns, grid):
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 1, 7, 7))
    page = sheet(images, columns=columns, gap=1, width=1)
    assert page.shape == (grid[0] * 8 + 1, grid[1] * 8 + 1)
    assert [int(page[1 + k // grid[1] * 8, 1 + k % grid[1] * 8]) for k in range(n)] == list(range(n))
    assert (page[0] == 255).all()


def test_a_sheet_of_coloured_pictures_is_enlarged_by_whole_factors():
    page = sheet(np.zeros((4, 3, 8, 8), dtype=np.uint8), gap=2, width=100)
    assert page.shape == (22 * 4, 22 * 4, 3)
    assert page.dtype == np.uint8


def test_a_table_is_aligned():
    text = table(["name", "n"], [["a", "1"], ["long name", "100"]])
    assert text.splitlines() == ["name         n", "---------  ---", "a            1", "long name  100"]


@pytest.mark.parametrize("rich", [True, False])
def test_a_bar_shows_on_a_terminal_after_a_while(monkeypatch, rich):
    monkeypatch.setattr(sys, "stderr", Terminal())
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.progress", None)
    with Bar(10, "sampling", after=0.0) as bar:
        for _ in range(10):
            bar.advance()
    assert "sampling" in sys.stderr.getvalue()


@pytest.mark.parametrize(("stream", "after"), [(Terminal, 60.0), (io.StringIO, 0.0)])
def test_a_bar_stays_away_from_short_work_and_from_files(monkeypatch, stream, after):
    monkeypatch.setattr(sys, "stderr", stream())
    with Bar(10, "sampling", after=after) as bar:
        bar.advance(10)
    assert sys.stderr.getvalue() == ""


@pytest.mark.parametrize(
    ("shape", "mode", "tile"),
    [
        ((4, 1, 8, 6), "L", (8, 6)),
        ((4, 2, 8, 6), "L", (8, 12)),
        ((4, 3, 8, 6), "RGB", (8, 6)),
        ((4, 4, 8, 6), "L", (8, 24)),
        ((4, 5, 8, 6), "L", (8, 30)),
        ((4, 3, 2, 8, 6), "L", (8, 36)),
        ((4, 3, 16), "L", (3, 16)),
        ((4, 3), "L", (1, 3)),
        ((4,), "L", (1, 1)),
    ],
)
def test_a_sheet_shows_samples_of_any_shape(shape, mode, tile):
    picture, file = pytest.importorskip("PIL.Image"), io.BytesIO()
    samples = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)
    png(samples, file, columns=4)
    with picture.open(file) as sheet_:
        assert sheet_.mode == mode
        h, w = tile[0] + GAP, tile[1] + GAP
        scale = max(1, 640 // (4 * w + GAP))
        assert sheet_.size == (scale * (4 * w + GAP), scale * (h + GAP))


def test_channels_lie_side_by_side():
    samples = torch.tensor([-1.0, -0.5, 0.5, 1.0]).reshape(1, 4, 1, 1).expand(2, 4, 5, 3)
    shown = pixels(samples)
    assert shown.shape == (2, 1, 5, 12)
    assert shown[1, 0, 4].tolist() == [0, 0, 0, 64, 64, 64, 191, 191, 191, 255, 255, 255]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.complex64])
def test_samples_of_any_dtype_are_shown(dtype):
    samples = torch.tensor([-1, 0, 1]).to(dtype).reshape(3, 1, 1, 1)
    assert pixels(samples).ravel().tolist() == [0, 128, 255]


def test_what_is_not_finite_is_black_or_white():
    samples = torch.tensor([math.nan, -math.inf, -7.0, math.inf], requires_grad=True)
    assert pixels(samples).ravel().tolist() == [0, 0, 0, 255]


def test_a_sheet_is_bounded():
    picture = pytest.importorskip("PIL.Image")
    for shape, shown in (((300_000, 1, 6, 6), (4098, 4098)), ((2, 1, 9000, 9000), (3004, 3004)), ((0, 1, 8, 8), None)):
        file = io.BytesIO()
        png(torch.zeros(1).expand(shape), file)
        with picture.open(file) as sheet_:
            assert shown is None or sheet_.size == shown
