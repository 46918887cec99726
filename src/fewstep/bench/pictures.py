"""The pictures of a bench: work and precision, the trilemma, and a sheet of the same noises under each solver.

Every line is named where it ends.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fewstep.bench.compare import Bench, Measured
from fewstep.bench.contender import FITTED, OURS, PEERS, SAME, STUDENTS
from fewstep.bench.measure import Row
from fewstep.bench.run import Made
from fewstep.drawing import BLUES, DARK, FAINT, GREEN, GREY, ORANGE, PALE, style
from fewstep.terminal import pixels, sheet as tiled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Line", "figures", "lines", "sheet", "trilemma", "work_precision"]

TILE = (5, 2)  # pictures across and down in a cell of the sheet
MOST = 7  # rows of the sheet


def figures(bench: Bench, found: Measured) -> Iterator[tuple[str, Figure]]:
    """(file name, figure): the plots, and a sheet where samples are pictures; none without matplotlib."""
    if find_spec("matplotlib") is None:
        print("no plots: matplotlib is not installed; run pip install 'fewstep[bench]'", file=sys.stderr)
        return
    about = bench.about()
    each = f"{about['images']:,} samples" + (f" x {len(about['seeds'])} seeds" if len(about["seeds"]) > 1 else "")
    title = f"{about['model']}, {each}, {about['features']} features; {about['date']}, {about['machine']}"
    if any("rmse" in row for row in found.rows):
        yield "work-precision", work_precision(found.rows, title)
        if any("frechet" in row and "rmse" in row for row in found.rows):
            yield "trilemma", trilemma(found.rows, title)
        if bench.study.subject.images:
            yield "sheet", sheet(found.made, found.exact, title)


class Line:
    """One name's rows at its numbers of calls, and how it is drawn."""

    def __init__(self, label: str, rows: Sequence[Row], color: str, width: float, marker: str) -> None:
        self.label, self.color, self.width, self.marker = label, color, width, marker
        self.rows = sorted(rows, key=lambda row: row["calls"])


def lines(rows: Sequence[Row], key: str) -> list[Line]:
    """The lines of a plot: peers pale, the best (by `key`) at each number of calls dark, fitted and ours in colour."""
    rows = [row for row in rows if key in row and not row.get("failed")]
    peers = [row for row in rows if row["group"] in (PEERS, SAME)]
    found = [Line("", [row for row in peers if row["name"] == name], PALE, 0.8, ".")
             for name in dict.fromkeys(row["name"] for row in peers)]  # fmt: skip
    for label, group, width in (("best peer, our grid", SAME, 1.0), ("best peer", PEERS, 1.8)):
        mine = [row for row in peers if row["group"] == group]
        counts = sorted({row["calls"] for row in mine})
        best = [min((row for row in mine if row["calls"] == n), key=lambda row: row[key]) for n in counts]
        found += [Line(label, best, DARK if group == PEERS else GREY, width, "s")] if best else []
    mine = [row for row in rows if row["group"] == OURS]
    for k, name in reversed([*enumerate(dict.fromkeys(row["name"] for row in mine))]):
        of = [row for row in mine if row["name"] == name]
        found.append(Line(name, of, BLUES[min(k, len(BLUES) - 1)], 2.2 if k == 0 else 1.3, "o"))
    trained = [row for row in rows if row["group"] == STUDENTS]
    for name in dict.fromkeys(row["name"] for row in trained):
        found.append(Line(name, [row for row in trained if row["name"] == name], GREEN, 1.8, "^"))
    if fitted := [row for row in rows if row["group"] == FITTED]:
        found.append(Line("fitted", fitted, ORANGE, 2.2, "D"))
    return found


def work_precision(rows: Sequence[Row], title: str) -> Figure:
    """Quality, where it was measured, and distance to the exact end states, over network calls."""
    panels = [("frechet", "Fréchet distance to real samples"), ("rmse", "RMS distance to the exact end state")]
    panels = [(key, label) for key, label in panels if any(key in row for row in rows)]
    with style() as figure:
        fig = figure(figsize=(5.6 * len(panels), 4.2), layout="constrained")
        for axes, (key, label) in zip(fig.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            drawn = lines(rows, key)
            for line in drawn:
                _draw(axes, line, "calls", key)
            _calls(axes, rows)
            axes.set_yscale("log")
            axes.set_title(label)
            axes.grid(axis="y", color=FAINT, linewidth=0.8)
            _plain(axes.yaxis)
            _levels(axes, rows, key, "left")
            _name_ends(axes, drawn, "calls", key)
        fig.suptitle(title, x=0.01, ha="left", fontsize=8.5, color=GREY)
        return fig


def trilemma(rows: Sequence[Row], title: str) -> Figure:
    """Quality and coverage over speed: up and right is better in both; numbers at the dots are network calls."""
    panels = [("frechet", "Quality: Fréchet distance (up is better)"),
              ("recall", "Coverage: recall of real samples (up is better)")]  # fmt: skip
    rows = [row | {"speed": 1000 / row["ms_per_image"]} if "ms_per_image" in row else row for row in rows]
    with style() as figure:
        fig = figure(figsize=(11.2, 4.2), layout="constrained")
        for axes, (key, label) in zip(fig.subplots(1, 2), panels, strict=True):
            drawn = lines(rows, "frechet")
            for line in drawn:
                _draw(axes, line, "speed", key)
            axes.set_xscale("log")
            _plain(axes.xaxis)
            if key == "frechet":
                axes.set_yscale("log")
                axes.invert_yaxis()
                _plain(axes.yaxis)
            axes.set_title(label)
            axes.set_xlabel("samples a second (right is faster)", loc="left")
            axes.grid(color=FAINT, linewidth=0.8)
            low, high = axes.get_xlim()
            axes.set_xlim(low, high * (high / low) ** 0.25)  # room for the names
            _levels(axes, rows, key, "right")
            for row in drawn[-1].rows if drawn else ():
                axes.annotate(str(row["calls"]), (row["speed"], row[key]), xytext=(0, 6), textcoords="offset points",
                              ha="center", fontsize=7, color=drawn[-1].color)  # fmt: skip
            _name_ends(axes, drawn, "speed", key)
        fig.suptitle(title, x=0.01, ha="left", fontsize=8.5, color=GREY)
        return fig


def _draw(axes: Axes, line: Line, x: str, y: str) -> None:
    at, value = ([row[key] for row in line.rows] for key in (x, y))
    size = 3 if line.color == PALE else 4.5
    axes.plot(at, value, color=line.color, linewidth=line.width, marker=line.marker, markersize=size,
              zorder=1 if line.color == PALE else 3)  # fmt: skip
    if line.label and f"{y}_interval" in line.rows[0]:
        low, high = zip(*(row[f"{y}_interval"] for row in line.rows), strict=True)
        axes.vlines(at, [max(v, 1e-9) for v in low], high, color=line.color, linewidth=0.9, alpha=0.6)


def _calls(axes: Axes, rows: Sequence[Row]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    counts = sorted({row["calls"] for row in rows if row["group"] in (OURS, PEERS, SAME, FITTED, STUDENTS)})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(n) for n in counts])
    axes.set_xlim(counts[0] / 1.06, counts[-1] * (counts[-1] / counts[0]) ** 0.28 * 1.02)  # room for the names
    axes.set_xlabel("network calls", loc="left")


def _plain(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(LogLocator(subs=range(1, 10)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda v, _: ""))


def _halo() -> list[Any]:
    """A white rim, so that words are read over lines."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=3, foreground="white")]


def _levels(axes: Axes, rows: Sequence[Row], key: str, side: str) -> None:
    """Dashed and dotted lines at the exact end states and the floor, named at one side."""
    for row in rows:
        dash = {"exact": "--", "floor": ":"}.get(row["group"])
        if dash is None or key not in row:
            continue
        axes.axhline(row[key], color=GREY, linewidth=1, linestyle=dash, zorder=0)
        text = f"{row['name']}, {row['calls']} calls" if "calls" in row else row["name"]
        right = side == "right"
        axes.annotate(text, (float(right), row[key]), xycoords=("axes fraction", "data"), xytext=(3 - 6 * right, 3),
                      textcoords="offset points", ha=side, fontsize=7.5, color=GREY, path_effects=_halo(),
                      zorder=0.5)  # fmt: skip


def _name_ends(axes: Axes, drawn: Sequence[Line], x: str, y: str) -> None:
    """Writes each line's name beside its last point on the right, moved apart where they would lie on each other.

    A line that ends before the others has its name below its end.
    """
    figure: Any = axes.figure
    figure.draw_without_rendering()
    step = 11 * figure.dpi / 72  # pixels between two names
    named = [(max(line.rows, key=lambda row: row[x]), line) for line in drawn if line.label]
    last = max((row[x] for row, _ in named), default=0.0)
    ends = []
    for row, line in named:
        style: dict[str, Any] = {"color": line.color, "weight": "bold", "fontsize": 8.5, "path_effects": _halo()}
        place = axes.transData.transform((row[x], row[y]))
        if row[x] > 0.75 * last:
            ends.append((place, row, line.label, style))
        else:
            axes.annotate(line.label, (row[x], row[y]), xytext=(0, -9), textcoords="offset points", ha="center",
                          va="top", **style)  # fmt: skip
    ends.sort(key=lambda end: end[0][1])
    at = [place[1] for place, *_ in ends]
    for _ in range(200):
        for k in range(len(at) - 1):
            if (overlap := step - (at[k + 1] - at[k])) > 0:
                at[k], at[k + 1] = at[k] - overlap / 2, at[k + 1] + overlap / 2
    right = max((place[0] for place, *_ in ends), default=0.0)
    for (place, row, label, style), height in zip(ends, at, strict=True):
        shift = ((right - place[0]) * 72 / figure.dpi + 9, (height - place[1]) * 72 / figure.dpi)
        axes.annotate(label, (row[x], row[y]), xytext=shift, textcoords="offset points", va="center", **style)


def sheet(made: Sequence[Made], exact: Tensor, title: str) -> Figure:
    """The first samples of the first seed; of the peers the one nearest to the exact end states at each count.

    `exact` are the same samples' exact end states (n, 1 or 3, H, W).
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
                picture = tiled(pixels(shown[: across * down]), columns=across, gap=1, width=1)
                axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
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
