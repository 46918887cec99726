"""`fewstep list`: what the registries hold."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

__all__ = ["arguments", "run"]

KINDS = ("solvers", "processes", "grids")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fewstep list`."""
    parser.add_argument("kind", nargs="?", choices=KINDS, help="only this kind (default: all)")


def run(args: argparse.Namespace) -> None:
    """Lists solvers, processes and grids, each with its first line."""
    import fewstep as fs

    registries = {"solvers": fs.SOLVERS, "processes": fs.PROCESSES, "grids": fs.GRIDS}
    blocks = []
    for kind in KINDS if args.kind is None else (args.kind,):
        registry = registries[kind]
        width = max(map(len, registry))
        lines = [f"  {name:<{width}}  {_first_line(entry)}" for name, entry in registry.items()]
        blocks.append("\n".join([f"{kind}:", *lines]))
    print("\n\n".join(blocks))


def _first_line(entry: Any) -> str:
    """Returns the first docstring line of a registry entry; a `functools.partial` adds the options it sets."""
    text = (inspect.getdoc(getattr(entry, "func", entry)) or "").strip().partition("\n")[0]
    options = ", ".join(f"{key}={value}" for key, value in getattr(entry, "keywords", {}).items())
    return f"{text} [{options}]" if options else text
