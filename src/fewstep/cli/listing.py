"""`fewstep list`: what the registries hold, as it was written down (`docs/tables.py`): reading that takes no torch."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from fewstep.cli.common import Usage

__all__ = ["KEPT", "arguments", "known", "run"]

KINDS = ("solvers", "processes", "grids", "methods")
KEPT = Path(__file__).with_name("listing.json")
MARKS = {"default": "*", "here": ">", None: " "}
LEGEND = (
    "* runs when nothing is said, > good places to start; order of accuracy, calls a step, ~ draws noise; on scalar, "
    "diagonal, block processes; = other names of the same. Whole lines: in a wider terminal, or --json."
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fewstep list`."""
    add = parser.add_argument
    add("kind", nargs="?", choices=KINDS, help="only this kind (default: all)")
    add("--filter", metavar="WORDS", default="",
        help="only what has each of these words, as in 'multistep noise' or 'order-3 block'")  # fmt: skip
    add("--json", action="store_true", help="everything that is known of each, for programs (docs/list.schema.json)")


def run(args: argparse.Namespace) -> None:
    """Lists solvers, processes, grids and methods of training by family, a line each."""
    entries = [e for e in known() if args.kind in (None, e["kind"]) and _has(e, args.filter.lower().split())]
    if not entries:
        raise Usage(f"got --filter {args.filter!r}, which nothing has: give fewer words, or none to see everything")
    print(json.dumps(entries, indent=1, ensure_ascii=False) if args.json else "\n".join(_lines(entries)))


def known() -> list[dict[str, Any]]:
    """Every entry of the registries, in the order in which they are shown."""
    return json.loads(KEPT.read_text(encoding="utf-8"))


def _has(entry: dict[str, Any], words: Iterable[str]) -> bool:
    facts = [entry["name"], *entry["also"], entry["kind"], entry["family"], entry["what"], *(entry["processes"] or ())]
    facts += [f"order-{entry['order']}", f"calls-{entry['calls']}", "stochastic noise" if entry["noise"] else ""]
    facts += ["deterministic"] if entry["noise"] is False else []
    text = " ".join([*facts, entry["start"] or ""]).lower()
    return all(word in text for word in words)


def _lines(entries: list[dict[str, Any]]) -> list[str]:
    """The text: at most as wide as the terminal, or 80 where there is none."""
    width, lines = shutil.get_terminal_size((80, 24)).columns, []
    for family, group in groupby(entries, key=lambda e: e["family"]):
        members = list(group)
        name = max(len(e["name"]) for e in members)
        solvers = members[0]["kind"] == "solvers"
        head = f"{family:<{name + 2}} {'order calls   on' if solvers else ''}".rstrip()
        lines += ["", head, *(_cut(_line(e, name), e["also"], width) for e in members)]
    return [*(textwrap.wrap(LEGEND, width) if any(e["kind"] == "solvers" for e in entries) else ()), *lines]


def _line(e: dict[str, Any], width: int) -> str:
    start = f"{MARKS[e['start']]} {e['name']:<{width}} "
    if e["kind"] == "solvers":
        order, calls = ("-" if e[fact] is None else e[fact] for fact in ("order", "calls"))
        kinds = "".join(kind[0] if kind in (e["processes"] or ()) else "." for kind in ("scalar", "diagonal", "block"))
        start += f"{order:>5} {calls:>5} {'~' if e['noise'] else ' '} {kinds}  "
    return start + e["what"]


def _cut(line: str, also: list[str], width: int) -> str:
    """A line with its other names at its end, shortened in the middle to the width."""
    end = f" = {', '.join(also)}" if also else ""
    if len(line + end) <= width:
        return line + end
    return (line[: max(width - len(end) - 1, width // 2)].rstrip() + "…" + end)[:width]
