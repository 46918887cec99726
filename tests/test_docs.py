"""The pages in docs/ hold what the registries and the result files say, and their links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import fewstep as fs
from fewstep.solver import ALIASES

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "docs" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_blocks_are_in_sync(tables, capsys):
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


def test_a_changed_block_is_noticed(tables, monkeypatch, tmp_path):
    page = tmp_path / "choosing.md"
    page.write_text(tables.PAGE.read_text(encoding="utf-8").replace("| `unipc-3` | 2 |", "| `unipc-3` | 7 |"))
    monkeypatch.setattr(tables, "PAGE", page)
    assert tables.main(["--check"]) == 1
    assert tables.main([]) == 0
    assert tables.main(["--check"]) == 0


def test_a_book_that_is_behind_is_noticed(tables, monkeypatch, tmp_path):
    page = tmp_path / "systems.md"
    page.write_text(tables.BOOK.read_text(encoding="utf-8").replace("**ddgan**", "**gan**"), encoding="utf-8")
    monkeypatch.setattr(tables, "BOOK", page)
    assert tables.main(["--check"]) == 1
    assert tables.main([]) == 0
    assert tables.main(["--check"]) == 0


def test_every_solver_has_a_line(tables):
    assert list(tables.WHEN) == [name for name in fs.TABLES if name not in ALIASES]


def test_the_map_names_every_solver_once_and_none_that_is_not_there():
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "solvers.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(name for row in rows for name in re.findall(r"`([^`]+)`", row)) == sorted(fs.SOLVERS)


def test_the_page_names_the_defaults(tables):
    text = tables.PAGE.read_text(encoding="utf-8")
    for solver in fs.DEFAULT_SOLVERS.values():
        assert f"`{solver}`" in text
    for name, process in fs.PROCESSES.items():
        assert re.search(rf"^\| {name} .*`{process().default_grid}`", text, re.MULTILINE), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
    for path in re.findall(r"`((?:src|docs|tests|examples|recipes|benchmarks)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path
