"""Pictures, plots, text and errors as pieces of the page; each is found and read without a mouse and without eyes."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from torch import Tensor

from fewstep.terminal import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["STYLE", "code", "image", "links", "plot", "refusal", "text", "words"]

STYLE = """
.gradio-container { width: 100% !important; max-width: 1200px !important; margin: 0 auto !important; }
.block:not(:has(input:focus)) ul[role=listbox] { display: none; } /* gradio leaves it open behind a quick Tab */
figure.fs { margin: 0; }
figure.fs img { display: block; width: 100%; height: auto; margin: 0; border-radius: 4px; }
figure.fs img.pixels { image-rendering: pixelated; }
figure.fs img.plot { background: white; }
figure.fs figcaption { font-size: 0.9em; opacity: 0.8; padding: 0.3em 0; }
pre.fs { overflow: auto; max-height: 28em; font-size: 12px; line-height: 1.45; margin: 0.3em 0 1.2em; padding: 0.6em;
  border: 1px solid var(--border-color-primary); border-radius: 4px; }
pre.fs.wrap { white-space: pre-wrap; overflow-wrap: anywhere; }
pre.fs:focus-visible, .fs a:focus-visible, button.fs:focus-visible { outline: 2px solid var(--color-accent); }
p.fs { margin: 0; min-height: 1.5em; }
p.fs.refused { color: #b3261e; font-weight: 600; }
.dark p.fs.refused { color: #ffb4ab; }
ul.fs { display: flex; flex-wrap: wrap; gap: 0.2em 1.2em; list-style: none; margin: 0.2em 0 0.8em; padding: 0; }
div.fs { display: flex; justify-content: space-between; align-items: center; }
button.fs { font-size: 0.85em; padding: 0.2em 0.8em; border-radius: 4px; }
"""


def image(samples: Tensor, caption: str) -> str:
    """Samples in [-1, 1], (n, *shape), as one sheet with its caption."""
    file = io.BytesIO()
    png(samples, file)
    return _figure("pixels", "image/png", file.getvalue(), caption)


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
