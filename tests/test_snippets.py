"""Whatever a page shows as code is run: README, CONTRIBUTING and docs/, page by page, in an empty folder.

- Python blocks are run, each in a namespace of its own, and must print what a text block right behind them says. A
  block whose first line is `# name.py` is also the file of that name, for the commands of the page.
- Lines that begin with `fewstep` go through the parser; `explain` and `list`, and whatever names a file of the page,
  are run.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fewstep.cli import main, parse

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
TRANSLATION = ROOT / "README.zh-CN.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(```+)([\w{}]*)[^\n]*\n(.*?)^\1$", re.DOTALL | re.MULTILINE)


def fences(page: Path) -> list[tuple[str, str, int, str | None]]:
    """Language, code, line number, and the output that a text block right behind it says."""
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    after = [text[a.end() : b.start()].strip() for a, b in zip(found, found[1:], strict=False)] + ["end"]
    following = [*found[1:], None]
    return [
        (
            fence[2],
            fence[3],
            text.count("\n", 0, fence.start()) + 1,
            following[i][3] if not after[i] and following[i] and following[i][2] == "text" else None,
        )
        for i, fence in enumerate(found)
    ]


def commands(page: Path) -> list[str]:
    texts = [code.replace("\\\n", " ") for language, code, *_ in fences(page) if language != "python"]
    lines = [line for text in texts for line in text.splitlines()]
    return [line.partition(" #")[0].strip() for line in lines if line.startswith("fewstep ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for language, code, line, output in fences(page):
        if language == "python":
            capsys.readouterr()
            exec(compile("\n" * line + code, page.name, "exec"), {"__name__": "__main__"})
            if output is not None:
                assert capsys.readouterr().out == output, f"line {line}"
            if name := re.match(r"# ([\w.]+\.py)\n", code):
                (tmp_path / name[1]).write_text(code, encoding="utf-8")
    for command in commands(page):
        argv = ["5" if word == "N" else word for word in shlex.split(command)[1:]]
        made = any(Path(word.partition(":")[0]).is_file() for word in argv if ".py" in word)
        if argv[-1] == "--help":
            with pytest.raises(SystemExit, match="0"):
                parse(argv)
        elif argv[0] == "list" or (argv[0] == "explain" and not Path(argv[1]).suffix) or made:
            capsys.readouterr()
            assert main(argv) == 0, command
            assert capsys.readouterr().out
        else:
            assert parse(argv).command == argv[0]


def test_code_was_found():
    assert sum(language == "python" for page in PAGES for language, *_ in fences(page)) > 20
    assert any(output for page in PAGES for *_, output in fences(page))
    assert {command.split()[1] for command in commands(README)} >= {
        "sample", "explain", "list", "check", "stats", "bench", "fit", "export", "train"
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_code_hides_from_these_tests(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    assert "```" not in text
    assert "~~~" not in text
    assert not re.search(r"^\s+fewstep \w+|^\s+import fewstep", text, re.MULTILINE), "a block by indentation is not run"


def test_the_translation_has_the_same_code():
    code = [[fence[:2] for fence in fences(page)] for page in (README, TRANSLATION)]
    assert code[0] == code[1]
    for page, other in ((README, TRANSLATION), (TRANSLATION, README)):
        assert f"]({other.name})" in "".join(page.read_text(encoding="utf-8").splitlines(True)[:6])


@pytest.mark.parametrize("page", [README, TRANSLATION], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    headings = {re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
                for line in text.splitlines() if line.startswith("#")}  # fmt: skip
    for target in re.findall(r'(?:\]\(|src=")([^)"]+)', text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("http"):
            assert (ROOT / target).exists(), target
