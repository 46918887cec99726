"""The drawing of the code, from its imports: rooms on floors, circles of files, arrows up, and how full a room is.

A room is a folder or a file directly in `src/fewstep`; what it imports, in functions and for type checkers too, lies
below it. Rooms that import one another, directly or in a round, share a floor, and each import between them is an arrow
up.

    python benchmarks/layout.py
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "fewstep"
FACE = "__init__"


def files() -> dict[str, Path]:
    """The files by module, without the package's name: "loop.walk", "loop" for its `__init__`."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def imports(modules: dict[str, Path]) -> dict[str, set[str]]:
    """What every file imports of the others; a name of a package that is no file is the package's `__init__`."""

    def home(name: str) -> str:
        name = name.removeprefix("fewstep").removeprefix(".") or FACE
        while name not in modules:
            name = name.rpartition(".")[0] or FACE
        return name

    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fewstep":
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names if alias.name.split(".")[0] == "fewstep"}
        found[module] = {home(name) for name in names} - {module}
    return found


def room(module: str) -> str:
    return module.split(".")[0]


def circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """The sets of nodes that reach one another."""
    below = {node: _reached(node, arrows) for node in arrows}
    found = {frozenset({node, *(other for other in below[node] if node in below[other])}) for node in arrows}
    return sorted((set(circle) for circle in found if len(circle) > 1), key=len, reverse=True)


def _reached(node: str, arrows: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    ahead = [node]
    while ahead:
        for other in arrows[ahead.pop()] - seen:
            seen.add(other)
            ahead.append(other)
    return seen


def between(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """The arrows between rooms."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, others in arrows.items():
        found[room(module)] |= {room(other) for other in others} - {room(module)}
    return dict(found)


def floors(rooms: dict[str, set[str]]) -> list[list[str]]:
    """The rooms from the lowest floor up: each one above all that it imports."""
    together = {name: circle for circle in circles(rooms) for name in circle}
    height: dict[str, int] = {}

    def up(name: str) -> int:
        if name not in height:
            mine = together.get(name, {name})
            below = set().union(*(rooms[other] for other in mine)) - mine
            level = 1 + max((up(other) for other in below), default=0)
            height.update(dict.fromkeys(mine, level))
        return height[name]

    for name in rooms:
        up(name)
    return [sorted(n for n, level in height.items() if level == k) for k in range(1, 1 + max(height.values()))]


def arrows_up(arrows: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports between rooms that import one another, as files."""
    mutual = circles(between(arrows))
    pairs = [(a, b) for a, others in arrows.items() for b in others if room(a) != room(b)]
    return sorted((a, b) for a, b in pairs if any(room(a) in c and room(b) in c for c in mutual))


def fullness(modules: dict[str, Path]) -> Counter[str]:
    """How many files stand side by side in every folder, its `__init__` apart."""
    folders = (p.parent for p in modules.values() if p.name not in ("__init__.py", "__main__.py"))
    return Counter(str(folder.relative_to(SOURCE.parent)) for folder in folders)


def drawing(arrows: dict[str, set[str]]) -> str:
    """The floors as lines, the highest first."""
    lines = [f"{k:4}  {'  '.join(names)}" for k, names in enumerate(floors(between(arrows)), 1)]
    return "\n".join(reversed(lines)).replace(FACE, "(the face)")


def main() -> None:
    modules = files()
    arrows = imports(modules)
    print(drawing(arrows))
    for circle in circles(arrows):
        print(f"circle of {len(circle)}: {', '.join(sorted(circle))}")
    for a, b in arrows_up(arrows):
        print(f"up: {a} -> {b}")
    print("files side by side:", ", ".join(f"{name} {n}" for name, n in fullness(modules).most_common(4)))


if __name__ == "__main__":
    main()
