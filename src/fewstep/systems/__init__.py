"""The book of systems: every system of the field's tutorials, where it is here, and how far it came.

A chapter is a TOML file beside this one and a row of it a system, so that adding one takes a minute:

    [ddim]
    what = "one sentence"
    paper = "authors, title, year, arXiv:number"
    claim = "what the paper says it reaches"
    code = ["fewstep.DDIM"]             # public names; the file is found from them. Left out: not yet here
    lacks = "what of it is not here"    # left out: nothing
    show = "fewstep check ddim"         # a command that shows it
    figure = "what it reached here"     # left out: not measured
    record = "tests/test_x.py::test_y"  # the file in which the figure's numbers stand, and its test or line there

`SYSTEMS` is read when it is asked for, without torch; `place` finds a name by reading source, so nothing is imported
for it either.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

__all__ = ["CHAPTERS", "SYSTEMS", "System", "place"]

CHAPTERS = {
    "foundations": "Foundations",
    "solvers": "Solvers",
    "training": "Distillation, training and compression",
    "spaces": "Smaller spaces and cascades",
    "processes": "Other processes",
    "conditioning": "Conditions and guidance",
    "applications": "Applications",
}
PACKAGE = Path(__file__).parent.parent

if TYPE_CHECKING:
    SYSTEMS: dict[str, System]


@dataclass(frozen=True, kw_only=True)
class System:
    """A row of the book; the module docstring says what each field holds."""

    id: str
    chapter: str
    what: str
    paper: str
    claim: str
    code: tuple[str, ...] = ()
    lacks: str = ""
    show: str = ""
    figure: str = ""
    record: str = ""

    @property
    def state(self) -> str:
        """`here`, `in part` where something is lacking, or `not yet`."""
        return "not yet" if not self.code else "in part" if self.lacks else "here"

    @property
    def reached(self) -> str:
        """The figure, or that there is none."""
        return self.figure or ("not measured" if self.code else self.state)

    @property
    def source(self) -> str:
        """The file of the record, and the test in it."""
        path = self.record.partition("::")[0]
        return self.record if path.endswith(".py") else path

    @property
    def places(self) -> tuple[str, ...]:
        """Where its formulas are: `src/fewstep/... : Name`."""
        return tuple(": ".join(place(name)) for name in self.code)


@cache
def place(name: str) -> tuple[str, str]:
    """The file that defines a dotted public name, as a path in the repository, and its name there."""
    module, _, attribute = name.rpartition(".")
    path = PACKAGE.joinpath(*module.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if path.is_file() and module.partition(".")[0] == "fewstep":
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if attribute in {name for node in tree.body for name in _defined(node)}:
            return f"src/fewstep/{path.relative_to(PACKAGE).as_posix()}", attribute
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if attribute == (alias.asname or alias.name):
                        return place(f"{node.module}.{alias.name}")
    raise ValueError(f"got {name!r}, which is defined in no file of fewstep: give a public name as it is imported")


def _defined(node: ast.stmt) -> list[str]:
    """The names a statement of a module defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def __getattr__(name: str) -> dict[str, System]:
    """Reads `SYSTEMS`."""
    if name != "SYSTEMS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import tomllib

    systems = globals()[name] = {
        id: System(id=id, chapter=chapter, **{**row, "code": tuple(row.get("code", ()))})
        for chapter in CHAPTERS
        for id, row in tomllib.loads(Path(__file__).with_name(f"{chapter}.toml").read_text(encoding="utf-8")).items()
    }
    return systems
