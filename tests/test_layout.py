"""The rooms of the code, drawn from its imports: floors, circles, arrows up, and files side by side."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import layout  # pyright: ignore[reportMissingImports]


@pytest.fixture(scope="module")
def modules():
    return layout.files()


@pytest.fixture(scope="module")
def arrows(modules):
    return layout.imports(modules)


def test_no_room_imports_one_above_it(arrows):
    assert layout.arrows_up(arrows) == []
    assert len(layout.floors(layout.between(arrows))) <= 10


def test_no_files_import_one_another_in_a_circle(arrows):
    assert layout.circles(arrows) == []


def test_a_room_is_seen_at_a_glance(modules):
    assert max(layout.fullness(modules).values()) <= 12


def test_the_drawing_in_the_docs_is_that_of_the_code(arrows):
    page = (Path(__file__).parent.parent / "docs" / "design.md").read_text(encoding="utf-8")
    assert layout.drawing(arrows) in page, "run python benchmarks/layout.py and copy the floors"


def test_a_drawing_has_a_floor_for_what_is_above_another():
    drawn = {"a.x": {"b.y"}, "b.y": {"c"}, "c": set(), "d": {"c"}}
    assert layout.floors(layout.between(drawn)) == [["c"], ["b", "d"], ["a"]]
    assert layout.circles(drawn) == layout.arrows_up(drawn) == []
    drawn["c"] = {"b.y"}
    assert layout.floors(layout.between(drawn)) == [["b", "c"], ["a", "d"]]
    assert layout.circles(drawn) == [{"b.y", "c"}]
    assert layout.arrows_up(drawn) == [("b.y", "c"), ("c", "b.y")]
