"""Links that a page has on the site and not in the repository, or the other way round.

`fs.sample` in a sentence leads to its entry in the reference, wherever the sentence stands. A page that lies above
docs/ in the repository, and the page that a topic's script becomes, are pages of the site.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

import fewstep as fs

ELSEWHERE = {  # where a link of the repository leads, and where it does on the site
    r"\]\((?:\.\./)?README\.md": "](index.md",
    r"\]\((?:\.\./)?(CONTRIBUTING|CHANGELOG)\.md": lambda found: f"]({found[1].lower()}.md",
    r"\]\(topics/(\w+)\.py": r"](gallery/\1.rst",
    r"\]\(topics/\)": "](gallery/index.rst)",
}


def target(text: str, inside: bool) -> str | None:
    """The public name that code in a sentence means; a bare one counts in the reference, or where it is a class."""
    name = text.split("(")[0]
    bare = name.removeprefix("fs.").removeprefix("fewstep.")
    if bare in fs.__all__ and (bare != name or inside or bare[0].isupper()):
        return f"fewstep.{bare}"
    return None


def link(app: Sphinx, doctree: nodes.document) -> None:
    """Makes a link of every literal that names something public."""
    page = app.env.current_document.docname
    for code in list(doctree.findall(nodes.literal)):
        if isinstance(code.parent, nodes.reference | pending_xref) or code.get("classes"):
            continue
        name = target(code.astext(), page.startswith("reference/"))
        if name:
            xref = pending_xref("", refdomain="py", reftype="obj", reftarget=name, refexplicit=True, refdoc=page)
            code.replace_self(xref)
            xref += code


def turn(app: Sphinx, docname: str, source: list[str]) -> None:
    """Turns links of the repository into links of the site."""
    for pattern, there in ELSEWHERE.items():
        source[0] = re.sub(pattern, there, source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", turn)
    app.connect("include-read", lambda app, path, parent, source: turn(app, parent, source))
    app.connect("doctree-read", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
