"""Pictures, plots, text and errors as pieces of the page; each is found and read without a mouse and without eyes."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import torch
from torch import Tensor

from fewstep.terminal import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["STYLE", "code", "difference", "image", "links", "plot", "refusal", "text", "words"]

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")


def image(samples: Tensor, caption: str, width: str = "100%") -> str:
    """Samples in [-1, 1], (n, *shape), as one sheet with its caption, at most so wide."""
    file = io.BytesIO()
    png(samples, file)
    return _figure("pixels", "image/png", file.getvalue(), caption, width)


def difference(one: Tensor, other: Tensor) -> str:
    """How far two runs lie apart, sample by sample: grey where they agree, and the numbers in the caption."""
    apart = (one - other).double()
    most = float(apart.abs().max())
    rms = float(apart.square().mean().sqrt())
    each = f"{rms:.2g} root mean square, {most:.2g} at most; black to white is 2"
    picture = apart / most if most else torch.zeros_like(apart)
    return image(picture.float(), f"The first less the second, grey where they agree: {each}", "26em")


def plot(figure: Figure, caption: str) -> str:
    """A matplotlib figure with its caption, at most a quarter wider than it was drawn."""
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return _figure("plot", "image/svg+xml", file.getvalue(), caption, width=f"{1.25 * figure.get_figwidth():.3g}in")


def text(content: str, label: str) -> str:
    """Lines of fixed width that may be wider than the screen: they scroll by themselves, with the arrow keys too."""
    return f'<pre class="fs" tabindex="0" role="region" aria-label="{html.escape(label)}">{html.escape(content)}</pre>'


def code(content: str, label: str) -> str:
    """Lines to take away, with a button that copies them."""
    safe = html.escape(label)
    copy = "navigator.clipboard.writeText(this.parentElement.nextElementSibling.textContent)"
    button = f'<button class="fs" aria-label="Copy: {safe}" onclick="{copy}">Copy</button>'
    return f'<div class="fs"><span>{safe}</span>{button}</div><pre class="fs wrap">{html.escape(content)}</pre>'


def links(files: Sequence[Path], root: str) -> str:
    """Files to download, by their paths under a root of the server."""
    items = (f'<li><a href="{root}/{quote(str(f))}" download="{f.name}">{f.name}</a></li>' for f in files)
    return f'<ul class="fs" aria-label="Download">{"".join(items)}</ul>'


def words(sentence: str) -> str:
    """A sentence that says what is going on."""
    return f'<p class="fs" role="status">{html.escape(sentence)}</p>'


def refusal(sentence: str) -> str:
    """A sentence that says what is wrong."""
    return f'<p class="fs refused" role="alert">{html.escape(sentence)}</p>'


def _figure(kind: str, mime: str, data: bytes, caption: str, width: str = "100%") -> str:
    source = f"data:{mime};base64,{base64.b64encode(data).decode()}"
    safe = html.escape(caption)
    return (
        f'<figure class="fs"><img class="{kind}" style="max-width: {width}" alt="{safe}" src="{source}">'
        f"<figcaption>{safe}</figcaption></figure>"
    )
