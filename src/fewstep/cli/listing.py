"""`fewstep list`: what the registries hold, as it was written down (`docs/tables.py`): reading that takes no torch."""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path
from typing import Any

__all__ = ["KEPT", "arguments", "blocks", "run"]

KINDS = ("solvers", "processes", "grids", "methods")
KEPT = Path(__file__).with_name("listing.txt")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fewstep list`."""
    parser.add_argument("kind", nargs="?", choices=KINDS, help="only this kind (default: all)")


def run(args: argparse.Namespace) -> None:
    """Lists solvers, processes, grids and methods of training, each with its first line."""
    every = blocks() if "fewstep.solver" in sys.modules else KEPT.read_text(encoding="utf-8").rstrip().split("\n\n")
    print("\n\n".join(block for kind, block in zip(KINDS, every, strict=True) if args.kind in (None, kind)))


def blocks() -> list[str]:
    """Each kind with its entries, as the registries hold them now."""
    from fewstep.grid import GRIDS
    from fewstep.process import ALL_PROCESSES
    from fewstep.solver import ALIASES, SOLVERS, names
    from fewstep.train.methods import METHODS

    made = []
    for kind, registry in zip(KINDS, (SOLVERS, ALL_PROCESSES, GRIDS, METHODS), strict=True):
        width, lines = max(map(len, registry)), []
        for name, entry in registry.items():
            if name not in ALIASES:
                _, *others = names(name)
                also = f"; also {', '.join(others)}" if others else ""
                lines.append(f"  {name:<{width}}  {_first_line(entry)}{also}")
        made.append("\n".join([f"{kind}:", *lines]))
    return made


def _first_line(entry: Any) -> str:
    """Returns the first docstring line of a registry entry; a `functools.partial` adds the options it sets."""
    text = (inspect.getdoc(getattr(entry, "func", entry)) or "").strip().partition("\n")[0]
    options = ", ".join(f"{key}={value}" for key, value in getattr(entry, "keywords", {}).items())
    return f"{text} [{options}]" if options else text
