"""Mathematics as MathML: browsers draw it by themselves, so no page needs a script, and it can be read and copied.

The font that gives it the right shapes is STIX Two Math (Open Font License), copied out of the ziamath package. What
browsers leave to the writer of MathML is done here: the space around bars and named functions, and letters of other
alphabets, which MathML Core knows by their code points alone.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import ziamath
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

FONT = Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf"
BAR = "&#x0007C;"
SPACE = "0.167em"
ALPHABETS = {"script": (0x1D49C, 0x1D4B6), "bold": (0x1D400, 0x1D41A), "double-struck": (0x1D538, 0x1D552)}
LETTERLIKE = dict(zip("BEFHILMR", "ℬℰℱℋℐℒℳℛ", strict=True)), dict(zip("CHNPQRZ", "ℂℍℕℙℚℝℤ", strict=True))


def mathml(latex: str, display: bool) -> str:
    """One formula."""
    if "&" in latex or r"\\" in latex:
        latex = rf"\begin{{align*}}{latex}\end{{align*}}"
    text = convert(latex, display="block" if display else "inline")
    text = re.sub(rf'<mo[^>]*(stretchy="false")?[^>]*>{BAR}</mo>', _bar, text)
    text = re.sub(r'<mi mathvariant="([a-z-]+)">([A-Za-z])</mi>', _letter, text)
    return re.sub(r"<m[io]>([A-Za-z]{2,})</m[io]>(?=(<mo stretchy=\"false\">&#x00028;)?)", _function, text)


def _bar(found: re.Match[str]) -> str:
    return found[0] if 'stretchy="true"' in found[0] else f'<mo stretchy="false" lspace="0" rspace="0">{BAR}</mo>'


def _letter(found: re.Match[str]) -> str:
    alphabet, letter = found.groups()
    if alphabet not in ALPHABETS:
        return found[0]
    script, double = LETTERLIKE
    odd = {"script": script, "double-struck": double}.get(alphabet, {})
    capital, small = ALPHABETS[alphabet]
    code = capital + ord(letter) - ord("A") if letter.isupper() else small + ord(letter) - ord("a")
    return f"<mi>{odd.get(letter) or chr(code)}</mi>"


def _function(found: re.Match[str]) -> str:
    name, parenthesis = found.groups()
    return f'<mo form="prefix" lspace="{SPACE}" rspace="{"0" if parenthesis else SPACE}">{name}</mo>'


def inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(mathml(node.astext(), display=False))
    raise nodes.SkipNode


def block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(writer.starttag(node, "div", CLASS="math"))
    writer.body.append(mathml(" ".join(node.astext().split()), display=True) + "</div>\n")
    raise nodes.SkipNode


def copy_font(app: Sphinx, error: Exception | None) -> None:
    if app.builder.format == "html" and not error:
        shutil.copy(FONT, Path(app.outdir) / "_static" / "math.ttf")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    app.connect("build-finished", copy_font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
