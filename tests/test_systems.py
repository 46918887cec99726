"""The book of systems is true: names are defined, commands parse, figures stand in their records, and none hides."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fewstep.cli import main, parse
from fewstep.systems import CHAPTERS, SYSTEMS, System, place

ROOT = Path(__file__).parent.parent
NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?(?!\w|\.\d)")
GOOD = System(id="x", chapter="solvers", what="Something", paper="A, B, 2020, arXiv:2010.02502", claim="it works")


def faults(system: System) -> list[str]:
    """What is not true of a row."""
    said = [f"no {name}" for name in ("what", "paper", "claim") if not getattr(system, name)]
    said += ["an id"] * (not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", system.id))
    said += ["a sentence on more than one line"] * ("\n" in "".join(map(str, dataclasses.astuple(system))))
    said += [f"{name} is not defined" for name in system.code if not defined(name)]
    if system.state == "not yet":
        said += [f"not yet, though {name} is given" for name in ("show", "figure", "lacks") if getattr(system, name)]
        said += [f"not yet, though {path} cites it" for path in citing(system.paper)]
    elif not system.show:
        said += ["no command"]
    said += ["a command that does not parse"] * (bool(system.show) and not parses(system.show))
    if bool(system.figure) != bool(system.record):
        return [*said, "a figure without record, or a record without figure"]
    return said + ([] if not system.figure else missing(system.figure, system.record))


def defined(name: str) -> bool:
    """Whether the file that `place` finds defines the name."""
    try:
        path, last = place(name)
    except ValueError:
        return False
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return any(last in (getattr(node, "name", None), getattr(getattr(node, "target", None), "id", None))
               or any(last == getattr(target, "id", None) for target in getattr(node, "targets", ()))
               for node in tree.body)  # fmt: skip


def citing(paper: str) -> list[str]:
    """Files of the library that cite the paper."""
    numbers = re.findall(r"\d{4}\.\d{5}", paper)
    return [str(path) for path, text in SOURCES.items() if any(number in text for number in numbers)]


def parses(command: str) -> bool:
    """A command line of fewstep that its parser takes, or a script that is there and knows the options."""
    program, *words = shlex.split(command)
    if program == "fewstep":
        try:
            return parse(words).command == words[0]
        except SystemExit as done:
            return done.code == 0
        except ValueError:
            return False
    script = ROOT / words[0]
    if program != "python" or script.suffix != ".py" or not script.is_file():
        return False
    known = script.read_text(encoding="utf-8") + (HELPER if script.parent == ROOT / "recipes" else "")
    return all(f'"{word}"' in known for word in words if word.startswith("--"))


def missing(figure: str, record: str) -> list[str]:
    """Numbers of the figure that its record lacks: the first in the named test or lines, the others in the file."""
    path, _, where = record.partition("::")
    if not (ROOT / path).is_file():
        return [f"no file {path}"]
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".py"):
        tests = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == where]
        part = "".join(ast.get_source_segment(text, node) or "" for node in tests)
    else:
        part = "\n".join(line for line in text.splitlines() if where in line)
    first, *rest = numbers(figure) or [""]
    return [f"no {first or 'number'} in {record}"] * (first not in numbers(part)) + [
        f"no {number} in {path}" for number in rest if number not in numbers(text)
    ]


def numbers(text: str) -> list[float]:
    """The numbers in a text, in order."""
    return [float(number.replace(",", "")) for number in NUMBER.findall(text)]


SOURCES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")}
HELPER = (ROOT / "recipes" / "book.py").read_text(encoding="utf-8")


def test_every_system_of_the_tutorials_has_a_row():
    assert len(SYSTEMS) == 81
    counts = {chapter: sum(row.chapter == chapter for row in SYSTEMS.values()) for chapter in CHAPTERS}
    assert list(counts.values()) == [14, 18, 15, 8, 11, 5, 10]
    assert all(id == row.id for id, row in SYSTEMS.items())


@pytest.mark.parametrize("id", SYSTEMS)
def test_the_row_is_true(id):
    assert faults(SYSTEMS[id]) == []


HERE = dataclasses.replace(GOOD, code=("fewstep.DDIM",), show="fewstep check ddim")
FIGURE = dataclasses.replace(HERE, figure="order 1.0", record="docs/conformance.md::| `ddim`, `dbim-1` |")


@pytest.mark.parametrize(
    ("row", "change", "fault"),
    [
        (GOOD, {"claim": ""}, "no claim"),
        (GOOD, {"id": "DDIM"}, "an id"),
        (GOOD, {"what": "Two\nlines"}, "a sentence on more than one line"),
        (GOOD, {}, "cites it"),  # the paper of DDIM
        (GOOD, {"paper": "A, 2020", "show": "fewstep list"}, "not yet, though show is given"),
        (HERE, {"code": ("fewstep.DDIMM",)}, "fewstep.DDIMM is not defined"),
        (HERE, {"code": ("fewstep.solver.nowhere.DDIM",)}, "is not defined"),
        (HERE, {"code": ("torch.Tensor",)}, "is not defined"),
        (HERE, {"show": ""}, "no command"),
        (HERE, {"show": "fewstep chek ddim"}, "does not parse"),
        (HERE, {"show": "fewstep check ddim --nothing vp"}, "does not parse"),
        (HERE, {"show": "python examples/nothing.py"}, "does not parse"),
        (HERE, {"show": "python examples/quickstart.py --short"}, "does not parse"),
        (HERE, {"figure": "order 1.0"}, "a figure without record"),
        (FIGURE, {"figure": "order 1.7"}, "no 1.7 in"),
        (FIGURE, {"figure": "order one"}, "no number in"),
        (FIGURE, {"figure": "order 1.0 in 7.77 calls"}, "no 7.77 in"),
        (FIGURE, {"record": "docs/nothing.md"}, "no file"),
        (FIGURE, {"figure": "1e-3", "record": "tests/test_geometry.py::test_nothing"}, "no 0.001 in"),
    ],
)
def test_a_row_that_is_not_true_is_noticed(row, change, fault):
    for good in (HERE, FIGURE):
        assert faults(good) == []
    assert any(fault in said for said in faults(dataclasses.replace(row, **change)))


def test_the_command_prints_a_line_a_system(capsys):
    assert main(["systems"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [line[0] for line in lines] == list(SYSTEMS)


@pytest.mark.parametrize("id", ["ddim", "genie", "ddgan", "latent-diffusion"])
def test_the_command_prints_all_about_one(capsys, id):
    assert main(["systems", id]) == 0
    said, row = capsys.readouterr().out, SYSTEMS[id]
    for part in (row.state, row.what, row.paper, row.claim, row.lacks, row.show, row.reached, row.source, *row.places):
        assert part in said


def test_an_unknown_system_is_one_sentence_with_near_ones(capsys):
    assert main(["systems", "gddimm"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "got system 'gddimm', which is not known: did you mean gddim" in said.err


def test_the_book_is_read_without_torch():
    code = "import sys; from fewstep.cli import main; main(['systems', 'ddim']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
