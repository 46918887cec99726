"""The topic pages run as they stand, draw their figures and use the public names alone."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import pytest

import fewstep as fs

TOPICS = Path(__file__).parent.parent / "docs" / "topics"
PAGES = sorted(TOPICS.glob("plot_*.py"))
QUICK = ("plot_04_tables", "plot_10_guidance")  # the others, a half a minute together, are slow


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # torch's tensors, as matplotlib asks
@pytest.mark.parametrize(
    "page", [pytest.param(p, id=p.stem, marks=[] if p.stem in QUICK else pytest.mark.slow) for p in PAGES]
)
def test_page_runs_and_draws(page, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    monkeypatch.chdir(TOPICS)
    with plt.style.context(TOPICS / "topics.mplstyle"):
        runpy.run_path(str(page), run_name="__main__")
    figures = [plt.figure(n) for n in plt.get_fignums()]
    plt.close("all")
    assert 2 <= len(figures) <= 4
    assert all(axis.has_data() and axis.title.get_text() + axis.get_xlabel() + axis.get_ylabel() or axis.images
               for figure in figures for axis in figure.axes)  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_page_is_a_lesson(page):
    """A title, cells that begin with words, and public names only."""
    text = page.read_text(encoding="utf-8")
    tree = ast.parse(text)
    title, underline = (ast.get_docstring(tree) or "").splitlines()[:2]
    assert underline == "=" * len(title)
    for cell in text.split("\n# %%\n")[1:]:
        heading, underline = cell.splitlines()[:2]
        assert underline == "# " + "-" * len(heading.removeprefix("# ")), heading
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert imported - {"warnings"} == {"fewstep", "matplotlib.pyplot", "torch"}
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "fs"}
    assert used <= set(fs.__all__)


def test_pages_are_numbered_from_one():
    assert [page.stem.split("_")[1] for page in PAGES] == [f"{n:02}" for n in range(1, len(PAGES) + 1)]
