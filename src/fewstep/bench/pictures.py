"""The pictures of a bench: work and precision, the trilemma, and a sheet of the same noises under each solver.

Lines are named as people name them, in a legend below, where no name lies on a line or on another. Each plot is at most
1,200 pixels wide, and is drawn a second time for screens as narrow as a phone's, panel below panel.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from textwrap import fill
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fewstep.bench.compare import Bench, Measured
from fewstep.bench.contender import FITTED, OURS, PEERS, SAME, STUDENTS
from fewstep.bench.measure import Row
from fewstep.bench.run import Made
from fewstep.drawing import BLUES, DARK, FAINT, GREEN, GREY, ORANGE, PALE, style
from fewstep.solver import DEFAULT_SOLVERS
from fewstep.terminal import pixels, sheet as tiled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Line", "figures", "lines", "readable", "sheet", "trilemma", "work_precision"]

WIDE, NARROW = 8.0, 3.6  # inches, of 150 pixels
TILE, SMALL = (5, 2), (2, 3)  # pictures across and down in a cell of the sheet; where there are many columns
MOST = 7  # rows of the sheet
WORDS = {
    "unipc": "UniPC", "ddim": "DDIM", "ddpm": "DDPM", "dpmpp": "DPM++", "dpm": "DPM", "deis": "DEIS", "euler": "Euler",
    "heun": "Heun", "pndm": "PNDM", "ipndm": "iPNDM", "edm": "EDM", "lms": "LMS", "sa": "SA", "ode": "ODE",
    "sde": "SDE", "2m": "2M", "2s": "2S", "3m": "3M"
}  # fmt: skip
AIM = "Fitted tables and students aim at the data, not at the ODE's end states: they are not drawn here."


def figures(bench: Bench, found: Measured) -> Iterator[tuple[str, Figure]]:
    """(file name, figure): the plots, and a sheet where samples are pictures; none without matplotlib."""
    if find_spec("matplotlib") is None:
        print("no plots: matplotlib is not installed; run pip install 'fewstep[bench]'", file=sys.stderr)
        return
    about = bench.about()
    each = f"{about['images']:,} samples" + (f" x {len(about['seeds'])} seeds" if len(about["seeds"]) > 1 else "")
    title = f"{about['model']}, {each}, {about['features']} features; {about['date']}, {about['machine']}"
    if any("rmse" in row for row in found.rows):
        for behind, narrow in (("", False), ("-narrow", True)):
            yield f"work-precision{behind}", work_precision(found.rows, title, narrow=narrow)
            if any("frechet" in row and "rmse" in row for row in found.rows):
                yield f"trilemma{behind}", trilemma(found.rows, title, narrow=narrow)
        if bench.study.subject.images:
            yield "sheet", sheet(found.made, found.exact, title)


class Line:
    """One name's rows at its numbers of calls, and how it is drawn."""

    def __init__(self, label: str, rows: Sequence[Row], color: str, width: float, marker: str) -> None:
        self.label, self.color, self.width, self.marker = label, color, width, marker
        self.rows = sorted(rows, key=lambda row: row["calls"])


def readable(name: str, group: str = OURS) -> str:
    """A contender's name as people write it: "unipc-3@karras" of diffusers is "UniPC-3, karras (diffusers)"."""
    library, _, rest = name.rpartition("/")
    solver, _, grid = rest.partition("@")
    if group == OURS and solver in ("default", *DEFAULT_SOLVERS.values()):
        spoken, library = "fewstep", "default"
    else:
        spoken = "-".join(WORDS.get(part, part) for part in solver.split("-")).replace("DPM++-", "DPM++ ")
    grid, plus, end = grid.partition("+")
    named = [spoken, *([grid] if grid not in ("", "default") else []), *([end] if plus and end != "zero" else [])]
    return ", ".join(named) + (f" ({library})" if library else "")


def lines(rows: Sequence[Row], key: str) -> list[Line]:
    """The lines of a plot: peers pale, the best (by `key`) at each number of calls dark, fitted and ours in colour."""
    rows = [row for row in rows if key in row and not row.get("failed")]
    peers = [row for row in rows if row["group"] in (PEERS, SAME)]
    found = [Line("", [row for row in peers if row["name"] == name], PALE, 0.8, ".")
             for name in dict.fromkeys(row["name"] for row in peers)]  # fmt: skip
    for label, group, width in (("best of others, our grid", SAME, 1.0), ("best of others", PEERS, 1.8)):
        mine = [row for row in peers if row["group"] == group]
        counts = sorted({row["calls"] for row in mine})
        best = [min((row for row in mine if row["calls"] == n), key=lambda row: row[key]) for n in counts]
        names = [*dict.fromkeys(row["name"] for row in best)]
        spoken = readable(names[0], group) if len(names) == 1 else label
        found += [Line(spoken, best, DARK if group == PEERS else GREY, width, "s")] if best else []
    mine = [row for row in rows if row["group"] == OURS]
    for k, name in reversed([*enumerate(dict.fromkeys(row["name"] for row in mine))]):
        of = [row for row in mine if row["name"] == name]
        found.append(Line(readable(name), of, BLUES[min(k, len(BLUES) - 1)], 2.2 if k == 0 else 1.3, "o"))
    trained = [row for row in rows if row["group"] == STUDENTS]
    for name in dict.fromkeys(row["name"] for row in trained):
        found.append(Line(name, [row for row in trained if row["name"] == name], GREEN, 1.8, "^"))
    if fitted := [row for row in rows if row["group"] == FITTED]:
        found.append(Line("fitted", fitted, ORANGE, 2.2, "D"))
    return found


def work_precision(rows: Sequence[Row], title: str, *, narrow: bool = False) -> Figure:
    """Quality, where it was measured, and distance to the exact end states, over network calls.

    The second is drawn of solvers that aim at those end states alone.
    """
    panels = [("frechet", "Fréchet distance to real samples"), ("rmse", "RMS distance to the exact end state")]
    panels = [(key, label) for key, label in panels if any(key in row for row in rows)]
    with style() as figure:
        fig, all_axes = _panels(figure, len(panels), narrow)
        for axes, (key, label) in zip(all_axes, panels, strict=True):
            aiming = [row for row in rows if key != "rmse" or row["group"] not in (FITTED, STUDENTS)]
            for line in lines(aiming, key):
                _draw(axes, line, "calls", key)
            _calls(axes, aiming)
            axes.set_yscale("log")
            axes.set_title(label)
            axes.grid(axis="y", color=FAINT, linewidth=0.8)
            _plain(axes.yaxis)
            _levels(axes, aiming, key)
            if len(aiming) < len(rows):
                axes.set_xlabel(f"network calls\n{fill(AIM, 48)}", loc="left")
        _finish(fig, title, narrow)
        return fig


def trilemma(rows: Sequence[Row], title: str, *, narrow: bool = False) -> Figure:
    """Quality and coverage over speed: up and right is better in both; along a line the calls rise to the left."""
    panels = [("frechet", "Quality: Fréchet distance (up is better)"),
              ("recall", "Coverage: recall (up is better)")]  # fmt: skip
    rows = [row | {"speed": 1000 / row["ms_per_image"]} if "ms_per_image" in row else row for row in rows]
    with style() as figure:
        fig, all_axes = _panels(figure, 2, narrow)
        for axes, (key, label) in zip(all_axes, panels, strict=True):
            for line in lines(rows, "frechet"):
                _draw(axes, line, "speed", key)
            axes.set_xscale("log")
            _plain(axes.xaxis)
            if key == "frechet":
                axes.set_yscale("log")
                axes.invert_yaxis()
                _plain(axes.yaxis)
            axes.set_title(label)
            axes.set_xlabel("samples a second (right is faster, with fewer calls)", loc="left")
            axes.grid(color=FAINT, linewidth=0.8)
            _levels(axes, rows, key)
        _finish(fig, title, narrow)
        return fig


def _panels(figure: type[Figure], count: int, narrow: bool) -> tuple[Figure, list[Axes]]:
    """Panels beside each other, or below each other on a narrow figure."""
    down, across = (count, 1) if narrow else (1, count)
    size = (NARROW, 1.0 + 3.1 * count) if narrow else (WIDE if count > 1 else WIDE / 1.6, 4.4)
    fig = figure(figsize=size, layout="constrained")
    return fig, list(fig.subplots(down, across, squeeze=False).flat)


def _finish(fig: Figure, title: str, narrow: bool) -> None:
    """The title above, and a legend of all panels' lines below."""
    named = {str(line.get_label()): line for axes in fig.axes for line in axes.lines}
    handles = [line for label, line in named.items() if not label.startswith("_")]
    fig.legend(handles=handles, loc="outside lower left", ncols=1 if narrow else 3, fontsize=8, frameon=False,
               labelcolor=DARK, handlelength=2.4)  # fmt: skip
    fig.suptitle(fill(title, 60 if narrow else 130), x=0.01, ha="left", fontsize=7 if narrow else 8, color=GREY)


def _draw(axes: Axes, line: Line, x: str, y: str) -> None:
    at, value = ([row[key] for row in line.rows] for key in (x, y))
    size = 3 if line.color == PALE else 4.5
    axes.plot(at, value, color=line.color, linewidth=line.width, marker=line.marker, markersize=size,
              label=line.label or "other libraries", zorder=1 if line.color == PALE else 3)  # fmt: skip
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
    axes.set_xlim(counts[0] / 1.06, counts[-1] * 1.06)
    axes.set_xlabel("network calls", loc="left")


def _plain(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(LogLocator(subs=range(1, 10)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda v, _: ""))


def _levels(axes: Axes, rows: Sequence[Row], key: str) -> None:
    """Dashed and dotted lines at the exact end states and the floor."""
    for row in rows:
        dash = {"exact": "--", "floor": ":"}.get(row["group"])
        if dash is None or key not in row:
            continue
        text = f"{row['name']}, {row['calls']} calls" if "calls" in row else row["name"]
        axes.axhline(row[key], color=GREY, linewidth=1, linestyle="-." if "sigma" in text else dash, zorder=0,
                     label=text)  # fmt: skip


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
    across, down = TILE if len(counts) < 5 else SMALL
    h, w = exact.shape[-2:]
    wide = min(2.2, (WIDE - 1.3) / (len(counts) + 1))
    high = wide * down * h / (across * w)
    with style() as figure:
        size = (1.3 + wide * (len(counts) + 1), 0.55 + (high + 0.14) * len(order))
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
                if here is not None and here.entry.contender.group in (PEERS, SAME):
                    label = fill(readable(str(here.entry.contender), PEERS), int(24 * wide))
                    axes.set_title(label, fontsize=5, color=GREY, weight="normal", pad=2)
            axes_of_row[0].text(-0.04, 0.5, fill(name, 16), transform=axes_of_row[0].transAxes, ha="right", va="center",
                                fontsize=8, color=DARK, weight="bold")  # fmt: skip
        for axes, n in zip(grid[0], [*counts, None], strict=True):
            text = "exact" if n is None else f"{n} calls"
            axes.annotate(text, (0.5, 1), xycoords="axes fraction", xytext=(0, 10), textcoords="offset points",
                          ha="center", fontsize=8.5, weight="bold", color=DARK)  # fmt: skip
        fig.suptitle(title, x=0.01, ha="left", fontsize=8, color=GREY)
        return fig


def _row(made: Made) -> str:
    """The row a contender stands in; tables are fitted to one number of calls each."""
    contender = made.entry.contender
    named = {PEERS: "best of others", SAME: "best of others, our grid", FITTED: "fitted"}
    return named.get(contender.group) or readable(contender.name, contender.group)
