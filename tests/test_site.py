"""The site is whole: it builds without a warning, asks no other host for anything, and every public name is in it."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fewstep as fs

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# Packages without a page: the command line has its own, peers are what the benchmark compares with, `page` is a page,
# `words` is what all rooms speak with.
UNLISTED = {"fewstep.cli", "fewstep.cli.restore", "fewstep.interop", "fewstep.bench.peers", "fewstep.page",
            "fewstep.models", "fewstep.words", "fewstep.train.drifts", "fewstep.train.students",
            *(f"fewstep.solver.{family}" for family in ("ode", "sde", "around", "driver"))}  # fmt: skip


def rooms() -> list[str]:
    """The modules that the pages of the reference show."""
    pages = [page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md")]
    return [name for page in pages for name in re.findall(r"^:::\{room\} (\S+)$", page, re.MULTILINE)]


def test_every_package_has_its_place_in_the_reference():
    packages = {m.name for m in pkgutil.walk_packages(fs.__path__, "fewstep.") if m.ispkg}
    assert packages - UNLISTED <= set(rooms())
    assert len(rooms()) == len(set(rooms()))


def test_every_public_name_is_in_the_reference():
    shown = {id(getattr(importlib.import_module(room), name))
             for room in rooms() for name in importlib.import_module(room).__all__}  # fmt: skip
    missing = [name for name in fs.__all__ if name != "__version__" and id(getattr(fs, name)) not in shown]
    assert not missing, "give these a {room} in docs/reference"


def test_formulas_are_what_browsers_need(monkeypatch):
    pytest.importorskip("ziamath")
    monkeypatch.syspath_prepend(str(DOCS / "extensions"))
    mathml = importlib.import_module("mathml").mathml
    assert mathml("|a|", False).count('lspace="0" rspace="0"') == 2
    assert "𝔼" in mathml(r"\mathbb E", False)
    assert "ℝ" in mathml(r"\mathbb R", False)
    assert "mtable" in mathml(r"a &= b \\ c &= d", True)
    spaced, tight = mathml(r"\log x", False), mathml(r"\log(x)", False)
    assert 'rspace="0.167em">log' in spaced
    assert 'rspace="0">log' in tight


def test_docstrings_become_markdown(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "extensions"))
    pytest.importorskip("sphinx")
    markdown = importlib.import_module("reference").markdown
    text = """A sum over j<k, see https://example.org/a_b.

    $$ j<k $$

    Args:
        x, y: `a<b` and
            more.

    Returns:
        All of it,
        in two lines.
    References: here.
    """
    assert [line for line in markdown(text) if line.strip()] == [
        "A sum over j\\<k, see <https://example.org/a_b>.",
        "$$ j<k $$",
        ":param x,y: `a<b` and",
        "  more.",
        ":returns: All of it,",
        "  in two lines.",
        "References: here.",
    ]


def test_what_a_field_is_stands_behind_it(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "extensions"))
    pytest.importorskip("sphinx")
    reference = importlib.import_module("reference")
    page = "\n".join(reference.entry("fewstep.bench.Asked", importlib.import_module("fewstep.bench").Asked))
    assert ":var images: samples of each contender, number of calls and seed." in page
    assert ":var solvers: NAME, NAME@GRID with * for any" in page  # a comment above its field


def test_the_site_builds_strictly_and_stands_alone(tmp_path):
    """One test, so that the topics are executed once however the suite is spread over workers."""
    for module in ("sphinx", "myst_parser", "furo", "sphinx_gallery", "ziamath"):
        pytest.importorskip(module)
    site = built(tmp_path)
    every_source_is_a_page(site)
    nothing_is_fetched_from_another_host(site)
    solver = (site / "reference" / "solver.html").read_text(encoding="utf-8")
    assert 'id="fewstep.UniPC"' in solver
    assert 'display="block"' in solver  # mathematics
    assert (site / "_static" / "math.ttf").stat().st_size > 100_000
    assert "reference/denoiser.html#fewstep.wrap" in (site / "your_own_network.html").read_text(encoding="utf-8")


def built(folder: Path) -> Path:
    """The site with every topic executed, from a copy: a build writes pages beside the sources."""
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("gallery", "__pycache__"))
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / page, folder)
    (folder / "models").symlink_to(ROOT / "models")
    run = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", "site"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return folder / "site"


def every_source_is_a_page(site: Path) -> None:
    topics = list((DOCS / "topics").glob("*.py"))
    pages = [page.relative_to(DOCS) for page in DOCS.rglob("*.md")] + [Path("gallery", topic.name) for topic in topics]
    assert len(topics) > 10
    assert len(pages) > 40
    for page in pages:
        assert (site / page).with_suffix(".html").is_file(), page
    for topic in topics:
        assert list((site / "_images").glob(f"sphx_glr_{topic.stem}_001*")), f"{topic} drew nothing"


def nothing_is_fetched_from_another_host(site: Path) -> None:
    """No script, sheet or picture comes from elsewhere, and every picture is there."""
    fetched = re.compile(r"<(?:script|img|iframe|source|video)\b[^>]*\bsrc=\"(?:https?:)?//[^\"]*")
    linked = re.compile(r"<link\b[^>]*\brel=\"(?:stylesheet|preload|icon|preconnect)\"[^>]*href=\"(?:https?:)?//[^\"]*")
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not fetched.findall(text) + linked.findall(text), page
        for image in re.findall(r"<img\b[^>]*\bsrc=\"([^\"]+)\"", text):
            assert (page.parent / image).is_file(), f"{page}: {image}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet
