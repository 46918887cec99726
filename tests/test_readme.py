"""The README is run: its Python and what it explains and lists as they stand, its other commands through the parser."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fewstep.cli import main, parse

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.partition("#")[0].strip() for line in README.splitlines() if line.startswith("fewstep ")]


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_python_runs(code, capsys):
    pytest.importorskip("diffusers")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_commands(command, capsys, tmp_path, monkeypatch):
    argv = shlex.split(command)[1:]
    if argv[-1] == "--help":
        with pytest.raises(SystemExit, match="0"):
            parse(argv)
        assert "usage: fewstep" in capsys.readouterr().out
        return
    assert parse(argv).command == argv[0]
    if argv[0] in ("explain", "list"):
        monkeypatch.chdir(tmp_path)
        assert main(argv) == 0
        assert len(capsys.readouterr().out.splitlines()) > 5


def test_commands_were_found():
    assert {command.split()[1] for command in COMMANDS} == {
        "sample", "explain", "list", "check", "stats", "bench", "fit", "export", "train"
    }  # fmt: skip


def test_links_lead_somewhere():
    headings = {re.sub(r"[^a-z -]", "", line.lstrip("# ").lower()).replace(" ", "-")
                for line in README.splitlines() if line.startswith("#")}  # fmt: skip
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in headings
        elif not target.startswith("http"):
            assert (Path(__file__).parent.parent / target).exists()
