"""The plots of the page: where the steps fall, the table as a picture, runs in the plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from fewstep.drawing import BLUES, DARK, FAINT, GREY, ORANGE, PALE, style
from fewstep.page.plane import Shape, Walk
from fewstep.process.operator import magnitude
from fewstep.tableau import Tableau
from fewstep.tableau.form import Symbol
from fewstep.tableau.row import name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLORS", "field", "paths", "placement", "weights"]

COLORS = (BLUES[0], ORANGE)  # of the first and the second solver
GROUPS = ("states", "x0", "noise outputs", "noise")  # of a table's columns
WRITTEN = 12  # rows and columns up to which a table's numbers are written into its picture
LINES = 24  # paths that are drawn as lines; the others are dots at their ends
EDGE = 2.7  # half the width of the plane

# What the plots say to those who do not see them, and to the others.
PLACEMENT = "Where the steps fall: a dot where the network is called, a ring where a state is only made"
WEIGHTS = "as a table, a line a row: what it is made of, blue with a weight above 0, red below"
PATHS = "Paths from noise (pale) to samples (orange): the solver's in blue, a dot a call; the exact ones in grey"
FIELD = "The direction of the exact ODE at four of the calls, over the density of the states there"


def placement(tables: Sequence[tuple[str, Tableau]]) -> Figure:
    """Where the steps of one or two tables fall, in log-SNR and in time; see `PLACEMENT`."""
    with style() as figure:
        fig = figure(figsize=(6.0, 1.2 + 0.6 * len(tables)), layout="constrained")
        for axes, label in zip(fig.subplots(2, 1), ("log-SNR", "time"), strict=True):
            for k, (_, table) in enumerate(tables):
                y, place = len(tables) - 1 - k, table.process.log_snr if label == "log-SNR" else float
                axes.axhline(y, color=PALE, linewidth=0.8, zorder=1)
                for row in table.rows:
                    x = float(place(row.t if row.at is None else row.at))
                    if math.isfinite(x):
                        ring = {"markersize": 8, "markerfacecolor": "none", "markeredgewidth": 0.8}
                        axes.plot(x, y, "o", color=COLORS[k], **({"markersize": 4} if row.at is not None else ring))
            axes.set_yticks(range(len(tables)), [title for title, _ in reversed(tables)])
            axes.set_ylim(-0.6, len(tables) - 0.4)
            axes.set_title(label, fontsize=9, weight="normal", color=GREY)
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)
            if label == "time":
                axes.invert_xaxis()
        return fig


def weights(table: Tableau) -> Figure:
    """The table as a picture: a line for each row, a column for each state, output and noise that rows are made of.

    Weights that are tensors are shown by their largest entry.
    """
    columns = sorted({symbol for row in table.rows for symbol, _ in row.form}, key=lambda s: (_group(s), s[1], str(s)))
    values = np.zeros((len(table.rows), len(columns)))
    for k, row in enumerate(table.rows):
        for symbol, c in row.form:
            values[k, columns.index(symbol)] = c if isinstance(c, float) else magnitude(c)
    top, few = float(np.abs(values).max()), len(table.rows) <= WRITTEN and len(columns) <= WRITTEN
    with style() as figure:
        from matplotlib.colors import SymLogNorm
        from matplotlib.ticker import MaxNLocator

        size = (max(3.2, 0.9 + 0.42 * len(columns)), 0.9 + 0.3 * len(table.rows)) if few else (5.0, 4.0)
        fig = figure(figsize=size, layout="constrained")
        axes = fig.subplots()
        axes.imshow(np.ma.masked_equal(values, 0.0), cmap="RdBu", norm=SymLogNorm(0.1, vmin=-top, vmax=top),
                    aspect="auto")  # fmt: skip
        axes.set_facecolor(FAINT)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        groups = [_group(symbol) for symbol in columns]
        for k in range(1, len(groups)):
            if groups[k] != groups[k - 1]:
                axes.axvline(k - 0.5, color="white", linewidth=4)
        if few:
            axes.set_xticks(range(len(columns)), [name(symbol) for symbol in columns], rotation=45, ha="left")
            axes.set_yticks(range(len(table.rows)), [f"z{k}" for k in range(len(table.rows))])
            for (k, j), value in np.ndenumerate(values):
                if value:
                    color = "white" if abs(value) > 0.45 * top else DARK
                    axes.text(j, k, f"{value:.2g}", ha="center", va="center", fontsize=7, color=color)
        else:
            middle = {group: np.mean([k for k, g in enumerate(groups) if g == group]) for group in groups}
            axes.set_xticks(list(middle.values()), [GROUPS[group] for group in middle])
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_ylabel("row")
        return fig


def _group(symbol: Symbol) -> int:
    """Which of `GROUPS` a column belongs to."""
    return {"z": 0, "y": 2 if symbol[2:3] == ("noise",) else 1, "xi": 3, "root": 3}[symbol[0]]


def paths(walk: Walk) -> Figure:
    """The paths of a run over the data's density: the solver's in colour, the exact ones of the ODE grey."""
    with style() as figure:
        fig = figure(figsize=(5, 5), layout="constrained")
        axes = fig.subplots()
        _density(axes, walk.shape, 0.0)
        if walk.exact is not None:
            for k in range(LINES):
                axes.plot(*walk.exact[:, k].T.numpy(), color=GREY, linewidth=1.0, zorder=2)
        for k in range(LINES):
            axes.plot(*walk.points[:, k].T.numpy(), color=COLORS[0], linewidth=0.9, marker=".", markersize=3, zorder=3)
        axes.plot(*walk.points[0].T.numpy(), ".", color=PALE, markersize=3, zorder=1)
        axes.plot(*walk.points[-1].T.numpy(), ".", color=ORANGE, markersize=4, zorder=4)
        _plain(axes)
        return fig


def field(walk: Walk) -> Figure:
    """The ODE's direction at four network calls of a run, over the density there, with the samples as they were."""
    calls = len(walk.points) - 1
    chosen = sorted({0, calls // 2, 3 * calls // 4, calls - 1})
    line = torch.linspace(-EDGE, EDGE, 15, dtype=torch.float64)[1:-1]
    y = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    with style() as figure:
        fig = figure(figsize=(5, 5.3), layout="constrained")
        for axes in fig.subplots(2, 2).flat:
            _plain(axes)
        for k, axes in zip(chosen, fig.axes, strict=False):
            phi = walk.angles[k]
            _density(axes, walk.shape, phi)
            v = walk.shape.velocity(y, phi)
            v = v / v.norm(dim=-1, keepdim=True).clamp(min=float(v.norm(dim=-1).median()))
            axes.quiver(
                *y.permute(2, 0, 1).numpy(), *v.permute(2, 0, 1).numpy(), color=DARK, width=0.006, scale=18, zorder=2
            )
            axes.plot(*walk.points[k].T.numpy(), ".", color=ORANGE, markersize=2.5, zorder=3)
            axes.set_title(f"call {k + 1}", fontsize=9, weight="normal", color=GREY)
        return fig


def _density(axes: Axes, shape: Shape, phi: float) -> None:
    line = torch.linspace(-EDGE, EDGE, 121, dtype=torch.float64)
    height = shape.density(torch.stack(torch.meshgrid(line, line, indexing="xy"), -1), phi).sqrt()
    axes.imshow(height.numpy(), extent=(-EDGE, EDGE, -EDGE, EDGE), origin="lower", cmap="Blues", alpha=0.55,
                vmin=0, vmax=1.3 * float(height.max()), zorder=0)  # fmt: skip


def _plain(axes: Axes) -> None:
    """A square of the plane without scales."""
    axes.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), xticks=[], yticks=[], aspect="equal")
    for spine in axes.spines.values():
        spine.set_visible(False)
