"""The command `fewstep`: a dict of commands, each a module with `arguments(parser)` and `run(args)`.

The help of a command is its function's docstring, and no help imports torch. Whatever goes wrong ends in one sentence
on stderr, and in the exit code of its kind:

| code | what it was                                                                                              |
|------|----------------------------------------------------------------------------------------------------------|
| 0    | done                                                                                                     |
| 1    | the work failed: a file is missing, broken, or does not fit; a promise is not kept; the reader went away |
| 2    | the command line is wrong by itself: a name, an option, a value, or two that exclude each other          |
| 130  | Ctrl-C                                                                                                   |
| 143  | SIGTERM, which is Ctrl-C otherwise                                                                       |

`--debug`, or FEWSTEP_DEBUG=1, shows the traceback instead.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from textwrap import dedent
from types import ModuleType

from fewstep.cli import bench, check, demo, explain, export, fit, listing, restore, sample, stats, train, ui
from fewstep.cli.common import Parser, Usage, pick
from fewstep.signals import terminable
from fewstep.systems import command as systems
from fewstep.words import VERSION, sentence

__all__ = ["COMMANDS", "main"]

PATHS = ("model", "out", "data", "words", "teacher", "files")  # arguments that name a file or a folder


COMMANDS: dict[str, ModuleType] = {
    "sample": sample, "demo": demo, "explain": explain, "list": listing, "systems": systems, "check": check,
    "train": train, "restore": restore, "stats": stats, "fit": fit, "export": export, "bench": bench, "ui": ui,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in argv or os.environ.get("FEWSTEP_DEBUG", "") not in ("", "0")
    # Threads that wait by spinning make a busy machine five times slower (measured, two threads on two cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    form, warnings.formatwarning = warnings.formatwarning, lambda message, *_, **__: f"fewstep: {message}\n"
    try:
        with terminable():
            args = parse(argv)
            COMMANDS[args.command].run(args)
            sys.stdout.flush()
    except KeyboardInterrupt as stop:
        print("fewstep: stopped.", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args and isinstance(stop.args[0], int) else signal.SIGINT)
    except BrokenPipeError:  # the reader of `fewstep list | head` went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        print(f"fewstep: {sentence(error)}", file=sys.stderr)
        return 2 if isinstance(error, Usage) else 1
    finally:
        warnings.formatwarning = form
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line; the first word that is not a command gets the nearest ones named."""
    if argv and not argv[0].startswith("-"):
        pick(COMMANDS, argv[0], "command")
    parser, subs = parsers()
    if not argv:
        parser.print_help()
        parser.exit()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        subs[args.command].unknown(unknown[0])
    return args


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the command line, and that of every command."""
    parser = Parser(prog="fewstep", description="Samples any trained diffusion or flow model in few steps.")
    parser.add_argument("--version", action="version", version=f"fewstep {VERSION}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--completion", action=Completion, choices=("bash", "zsh", "fish"),
                        help="print what makes this shell complete commands, options and names, and stop")  # fmt: skip
    commands, subs = parser.add_subparsers(dest="command", metavar="COMMAND", required=True), {}
    for name, command in COMMANDS.items():
        text = dedent("    " + (command.run.__doc__ or "").strip())
        subs[name] = commands.add_parser(name, help=text.partition("\n")[0], description=text)
        subs[name].add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        command.arguments(subs[name])
    return parser, subs


class Completion(argparse.Action):
    """Prints a shell's completion, with the names of `fewstep list` where solvers, processes and grids are named."""

    def __call__(self, parser: argparse.ArgumentParser, _args: object, shell: object, _flag: str | None = None) -> None:
        """Prints and exits."""
        from fewstep.files import extra

        shtab = extra("shtab", "shell", "completion")
        names = {kind: [n for e in listing.known() if e["kind"] == kind for n in (e["name"], *e["also"])]
                 for kind in listing.KINDS}  # fmt: skip
        whole, subs = parsers()
        for action in (action for sub in subs.values() for action in sub._actions):
            if (kind := {"solver": "solvers", "grid": "grids", "process": "processes"}.get(action.dest)) is not None:
                action.choices = names[kind]
            elif action.choices is None and (action.dest in PATHS or "FILE" in str(action.metavar)):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(whole, shell))
        parser.exit()
