"""What a person sees: pictures side by side, a table, and a bar only where someone waits at a terminal."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from fewstep.ui import Bar, sheet, table


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
