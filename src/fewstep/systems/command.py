"""`fewstep systems`: the book of systems, read without torch."""

from __future__ import annotations

import argparse

from fewstep import systems
from fewstep.words import pick

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fewstep systems`."""
    text = "all about this one (default: a line about each)"
    parser.add_argument("system", nargs="?", type=known, metavar="ID", help=text)


def known(name: str) -> systems.System:
    """Argparse type: a system of the book."""
    try:
        return pick(systems.SYSTEMS, name, "system")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(args: argparse.Namespace) -> None:
    """Shows the systems of the field: what each is, whether it is here, what it claims and what it reached here.

    Without ID: a line a system, `not yet` where there is no code. docs/systems.md is the same as a page.
    """
    if args.system is None:
        book, blocks = systems.SYSTEMS, []
        width = max(map(len, book))
        for chapter, title in systems.CHAPTERS.items():
            rows = [system for system in book.values() if system.chapter == chapter]
            lines = [f"  {row.id:<{width}}  {row.state:<7}  {row.what}; {row.reached}" for row in rows]
            blocks.append("\n".join([f"{title}:", *lines]))
        print("\n\n".join(blocks))
        return
    system = args.system
    print(f"{system.id} ({system.state}): {system.what}\n")
    about = {
        "paper": system.paper,
        "published": system.claim,
        "here": "\n           ".join(system.places),
        "lacks": system.lacks,
        "shown by": system.show,
        "reached": f"{system.figure} ({system.source})" if system.figure else system.reached,
    }
    print("\n".join(f"{name:<9}  {text}" for name, text in about.items() if text))
