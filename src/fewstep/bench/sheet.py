"""A sheet: the same noises under each solver, a column a number of calls, the exact end states at the right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from fewstep.bench.contender import FITTED, PEERS, SAME
from fewstep.bench.run import Made
from fewstep.drawing import DARK, GREY, style
from fewstep.terminal import pixels, sheet as tiled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["sheet"]

TILE = (5, 2)  # pictures across and down
MOST = 7  # rows


def sheet(made: Sequence[Made], exact: Tensor, title: str) -> Figure:
    """The first samples of the first seed; of the peers the one nearest to the exact end states at each count.

    Args:
        made: the contenders' samples.
        exact: the same samples' exact end states (n, 1 or 3, H, W).
        title: what was sampled.
    """
    good = [m for m in made if m.seeds]
    counts = sorted({m.entry.calls for m in good})
    rows: dict[str, dict[int, Made]] = {}
    for m in sorted(good, key=lambda m: -m.rmse):  # the nearest last, so that it stays
        rows.setdefault(_row(m), {})[m.entry.calls] = m
    order = list(dict.fromkeys(map(_row, good)))[:MOST]
    across, down = TILE
    h, w = exact.shape[-2:]
    wide, high = 2.2, 2.2 * down * h / (across * w)
    with style() as figure:
        size = (1.3 + wide * (len(counts) + 1), 0.55 + (high + 0.12) * len(order))
        fig = figure(figsize=size, layout="constrained")
        fig.get_layout_engine().set(h_pad=0.02, hspace=0.0)  # type: ignore[union-attr, call-arg]
        grid = fig.subplots(len(order), len(counts) + 1, squeeze=False)
        for axes_of_row, name in zip(grid, order, strict=True):
            for axes, n in zip(axes_of_row, [*counts, None], strict=True):
                axes.set_axis_off()
                here = rows[name].get(n) if n is not None else None
                if n is not None and here is None:
                    continue
                shown = exact if here is None else here.seeds[0]["shown"]
                axes.imshow(_pixels(shown[: across * down]), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                if here is not None and name != str(here.entry.contender):
                    axes.set_title(str(here.entry.contender), fontsize=5.5, color=GREY, weight="normal", pad=2)
            axes_of_row[0].text(-0.04, 0.5, name, transform=axes_of_row[0].transAxes, ha="right", va="center",
                                fontsize=8, color=DARK, weight="bold")  # fmt: skip
        for axes, n in zip(grid[0], [*counts, None], strict=True):
            text = "exact end state" if n is None else f"{n} calls"
            axes.annotate(text, (0.5, 1), xycoords="axes fraction", xytext=(0, 10), textcoords="offset points",
                          ha="center", fontsize=8.5, weight="bold", color=DARK)  # fmt: skip
        fig.suptitle(title, x=0.01, ha="left", fontsize=8, color=GREY)
        return fig


def _row(made: Made) -> str:
    """The row a contender stands in; tables are fitted to one number of calls each."""
    contender = made.entry.contender
    return {PEERS: "best peer", SAME: "best peer,\nour grid", FITTED: "fitted"}.get(contender.group, contender.name)


def _pixels(images: Tensor) -> np.ndarray:
    return tiled(pixels(images), columns=TILE[0], gap=1, width=1)
