"""The directives that write the reference: `room` (a package's public names) and `commands` (the command line).

Docstrings here are Markdown with Google's sections, so an entry is written as Markdown and parsed as such:
`:::{room} fewstep.solver` is the module's docstring and an entry for every name of its `__all__`. What the package
offers by itself (`fewstep.__all__`) goes by that shorter name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import fewstep as fs
from fewstep import cli

SECTIONS = {"Args": "param", "Attributes": "var", "Raises": "raises", "Returns": "returns"}
VERBATIM = re.compile(r"(`+[^`]*`+|\$\$.*?\$\$|^    .*?$)", re.DOTALL | re.MULTILINE)  # code and mathematics


def full_name(module: Any, name: str) -> str:
    """The shortest address under which a name can be imported."""
    short = name in fs.__all__ and getattr(fs, name) is getattr(module, name)
    return f"fewstep.{name}" if short else f"{module.__name__}.{name}"


def markdown(docstring: str | None) -> list[str]:
    """A docstring as Markdown: Google's sections become field lists, addresses links, and `<` is a sign."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    written: list[str] = []
    section = ""
    for line in lines:
        head = re.fullmatch(rf"({'|'.join(SECTIONS)}):", line)
        if head:
            section = head[1]
            written.append("")
        elif section and (line.startswith(" ") or not line):
            written.append(_field(section, line, written))
        else:
            section = ""
            written += ["", line] if line.startswith("References:") else [line]
    parts = VERBATIM.split("\n".join(written))
    parts[::2] = [re.sub(r"<(?=[A-Za-z/!?])", r"\\<", part) for part in parts[::2]]
    parts[::2] = [re.sub(r"https?://[^\s,;)]*[^\s,;).]", r"<\g<0>>", part) for part in parts[::2]]
    return "".join(parts).splitlines()


def _field(section: str, line: str, written: list[str]) -> str:
    text = line[4:]
    if not text or text.startswith(" "):
        return "  " + text.strip()
    if section == "Returns":
        return "  " + text if written[-1] else f":returns: {text}"
    names, _, rest = text.partition(": ")
    return f":{SECTIONS[section]} {names.replace(', ', ',')}: {rest}"  # what stands before a space would be a type


def entry(name: str, value: Any) -> Iterator[str]:
    """The Markdown of one name."""
    if inspect.isclass(value):
        inner = [line for member in members(value) for line in member]
        yield from block("class", name + signature(value), [*markdown(_own_docstring(value)), "", *inner], fence=6)
    elif inspect.isfunction(value):
        yield from block("function", name + signature(value), markdown(value.__doc__), fence=6)
    else:
        yield from block("data", name, contents(value), fence=6)


def members(owner: type) -> Iterator[Iterator[str]]:
    """The methods and properties that say what they are; one that fulfils its base class is described there."""
    for name, member in vars(owner).items():
        function = getattr(member, "fget", None) or getattr(member, "func", None) or getattr(member, "__func__", member)
        if name.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
            continue
        if function is member or function is getattr(member, "__func__", None):
            bound = not isinstance(member, staticmethod)
            option = [] if function is member else [f":{type(member).__name__}:", ""]
            yield block("method", name + signature(function, bound), [*option, *markdown(function.__doc__)], fence=5)
        else:
            yield block("property", name, markdown(function.__doc__), fence=5)


def block(kind: str, head: str, lines: list[str], fence: int) -> Iterator[str]:
    """A directive of the Python domain."""
    yield f"{':' * fence}{{py:{kind}}} {head}"
    yield from lines
    yield from (":" * fence, "")


def contents(value: Any) -> list[str]:
    """What a constant holds: the keys of a registry, or its value where that is short."""
    if isinstance(value, dict):
        return [", ".join(f"`{key}`" for key in value)]
    text = repr(value).replace("typing.", "").replace("collections.abc.", "")
    return [f"`{text}`"] if len(text) < 200 and " at 0x" not in text else []


def signature(value: Any, bound: bool = False) -> str:
    """`(argument: type = default, ...) -> type`, with annotations as they are written in the source."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    parts: list[str] = []
    for parameter in list(found.parameters.values())[bound:]:
        if parameter.kind is parameter.KEYWORD_ONLY and not any(part.startswith("*") for part in parts):
            parts.append("*")
        parts.append(_parameter(parameter))
    returns = "" if inspect.isclass(value) or found.return_annotation is found.empty else _type(found.return_annotation)
    return f"({', '.join(parts)})" + (f" -> {returns}" if returns else "")


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = stars + parameter.name
    annotated = parameter.annotation is not parameter.empty
    if annotated:
        text += f": {_type(parameter.annotation)}"
    if parameter.default is parameter.empty:
        return text
    default = parameter.default
    simple = default is None or isinstance(default, bool | int | float | str | tuple | torch.dtype)
    shown = repr(default) if simple else getattr(default, "__name__", "...")
    return text + (f" = {shown}" if annotated else f"={shown}")


def _type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _own_docstring(owner: type) -> str | None:
    """The docstring, with what a dataclass says of its fields in comments behind or above them."""
    written = owner.__dict__.get("__doc__")
    if not written or written.startswith(f"{owner.__name__}("):  # dataclasses write that one
        return None
    if not dataclasses.is_dataclass(owner) or re.search(r"^ *(Args|Attributes):$", written, re.MULTILINE):
        return written
    found = re.findall(
        r"(?:^    # (.+)\n)?^    ([a-z]\w*): [^#\n]+(?:# (.+))?$", inspect.getsource(owner), re.MULTILINE
    )
    fields = [f"    {name}: {above or behind}." for above, name, behind in found if above or behind]
    return "\n".join([inspect.cleandoc(written), *(["", "Attributes:", *fields] if fields else [])])


class Room(SphinxDirective):
    """`:::{room} module`: its docstring and its public names."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module = importlib.import_module(self.arguments[0])
        made_of(self, module)
        lines = [*markdown(module.__doc__), ""]
        for name in module.__all__:
            lines += entry(full_name(module, name), getattr(module, name))
        return parsed(self, lines)


class Commands(SphinxDirective):
    """`:::{commands}`: what every command of `fewstep` prints under --help."""

    def run(self) -> list[nodes.Node]:
        lines = []
        made_of(self, cli)
        for name in cli.COMMANDS:
            text = io.StringIO()
            with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
                cli.main([name, "--help"])
            lines += [f"**fewstep {name}**", "", "```", *text.getvalue().rstrip().splitlines(), "```", ""]
        return parsed(self, lines)


def made_of(directive: SphinxDirective, module: Any) -> None:
    """Has the page written anew when a source file of the module, or this one, changes."""
    source = Path(str(module.__file__))
    directive.env.note_dependency(__file__)
    for file in source.parent.rglob("*.py") if source.stem == "__init__" else [source]:
        directive.env.note_dependency(str(file))


def parsed(directive: SphinxDirective, lines: list[str]) -> list[nodes.Node]:
    """Markdown as nodes."""
    box = nodes.container()
    directive.state.nested_parse(StringList(lines, directive.get_source_info()[0]), directive.content_offset, box)
    return box.children


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("room", Room)
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
