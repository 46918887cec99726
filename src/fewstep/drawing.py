"""The style of every picture that is drawn here; colours are Okabe and Ito's, which the colour-blind tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fewstep.files import extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BLUES", "DARK", "FAINT", "GREEN", "GREY", "ORANGE", "PALE", "style"]

BLUES = ("#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#7A5C00")
GREEN = "#117733"
ORANGE, DARK, GREY, PALE = "#D55E00", "#333333", "#8C8C8C", "#D0D0D0"
FAINT = "#EEEEEE"  # of grids
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": DARK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": DARK,
    "ytick.color": DARK,
    "svg.hashsalt": "fewstep",
}


@contextmanager
def style() -> Iterator[type[Figure]]:
    """Gives matplotlib's Figure within this page's style."""
    matplotlib = extra("matplotlib", "bench", "drawing plots")
    with matplotlib.rc_context(STYLE):
        from matplotlib.figure import Figure

        yield Figure
