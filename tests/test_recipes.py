"""Every recipe runs `--short`, asserts what it shows, uses public names, and has left the figures of a whole run."""

from __future__ import annotations

import ast
import json
import runpy
import sys
from pathlib import Path

import pytest

import fewstep as fs
from fewstep import quality
from fewstep.systems import SYSTEMS

FOLDER = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(path for path in FOLDER.glob("*.py") if path.stem != "book")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_runs_short(path, monkeypatch, capsys, tmp_path):
    pytest.importorskip("diffusers")  # of the shipped network
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [str(path), "--short"])
    monkeypatch.chdir(tmp_path)
    before = sorted(FOLDER.rglob("*.json"))
    runpy.run_path(str(path), run_name="__main__")
    printed = {line.rpartition(" ")[0].rstrip() for line in capsys.readouterr().out.splitlines()}
    kept = json.loads((FOLDER / "results" / f"{path.stem}.json").read_text(encoding="utf-8"))
    assert len(printed) > 1
    assert len(printed - kept["figures"].keys()) <= 1  # a figure of the many steps that a short run has fewer of
    assert sorted(FOLDER.rglob("*.json")) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_is_a_recipe(path):
    """A system's own, with its equation and source, of 40 to 120 lines, on public names, ending in an assert."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    about = ast.get_docstring(tree) or ""
    assert path.stem in SYSTEMS
    assert "$$" in about
    assert "https://" in about
    assert f"python recipes/{path.name}" in about
    assert 40 <= len(text.splitlines()) <= 120
    main = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    assert any(isinstance(node, ast.Assert) for node in main.body)
    assert isinstance(main.body[-1], ast.Return)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {name.name for name in node.names} <= {"fewstep", "math", "torch"}
        if isinstance(node, ast.ImportFrom):
            assert node.module in {"__future__", "book", "fewstep.quality", "functools", "tempfile", "torch"}
            assert node.module != "fewstep.quality" or {name.name for name in node.names} <= set(quality.__all__)
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "fs"}
    assert used <= {*fs.__all__, "manifold", "schroedinger", "train"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_its_result_says_how_it_was_made(path):
    kept = json.loads((FOLDER / "results" / f"{path.stem}.json").read_text(encoding="utf-8"))
    assert kept.keys() == {"date", "torch", "machine", "seeds", "command", "figures"}
    assert kept["command"] == f"python recipes/{path.name}"
    assert all(isinstance(value, float | int) for value in kept["figures"].values())


def test_no_result_is_left_of_a_recipe_that_is_gone():
    assert {path.stem for path in (FOLDER / "results").iterdir()} == {path.stem for path in RECIPES}
    assert len(RECIPES) >= 15
