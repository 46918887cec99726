"""What a bench says: a table on the terminal, the same as CSV, and everything as JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from fewstep.bench.measure import Row
from fewstep.terminal import table

__all__ = ["COLUMNS", "csv_text", "table_text"]

COLUMNS = ("name", "group", "calls", "network_calls", "images", "failed", "frechet", "frechet_low", "frechet_high",
           "ratio", "ratio_low", "ratio_high", "against", "gap", "gap_low", "gap_high", "verdict", "kernel",
           "kernel_error", "precision", "recall", "density", "coverage", "rmse", "rmse_low", "rmse_high", "low", "high",
           "seconds", "ms_per_image")  # fmt: skip


def table_text(rows: Sequence[Row]) -> str:
    """The rows, one block a number of calls, the best first; columns that nobody fills are left out."""
    columns = {
        "solver": lambda row: row["name"] + ("" if row["group"] != "fitted" else " (fitted)"),
        "calls": lambda row: str(row.get("network_calls", "")),
        "Frechet": lambda row: _number(row, "frechet") + _interval(row, "frechet"),
        "/ exact": lambda row: _number(row, "ratio", ".2f"),
        "- best peer": lambda row: _number(row, "gap", "+.3f") + _interval(row, "gap"),
        "verdict": lambda row: row.get("verdict", ""),
        "kernel e3": lambda row: (
            f"{1000 * row['kernel']:.1f} +- {1000 * row['kernel_error']:.1f}" if "kernel" in row else ""
        ),
        "precision": lambda row: _number(row, "precision"),
        "recall": lambda row: _number(row, "recall"),
        "coverage": lambda row: _number(row, "coverage"),
        "rmse": lambda row: _number(row, "rmse", ".4f"),
        "span": lambda row: f"{row['low']:.2f} to {row['high']:.2f}" if "low" in row else "",
        "ms/image": lambda row: _number(row, "ms_per_image", ".2f"),
    }
    good = [row for row in rows if not row.get("failed")]
    score = "frechet" if any("frechet" in row for row in good) else "rmse"
    blocks: list[list[str]] = []
    shown = {head: cell for head, cell in columns.items() if any(cell(row) for row in good)}
    for calls in dict.fromkeys(row.get("calls") for row in good):
        block = [row for row in good if row.get("calls") == calls]
        block.sort(key=lambda row: row.get(score, 0.0))
        blocks += [[cell(row) for cell in shown.values()] for row in block] + [[""] * len(shown)]
    lines = [table(list(shown), blocks[:-1])]
    failed: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.get("failed"):
            failed.setdefault((row["name"], row["failed"]), []).append(str(row["calls"]))
    lines += [f"{name} failed at {', '.join(calls)} calls: {why}" for (name, why), calls in failed.items()]
    return "\n".join(lines)


def csv_text(rows: Sequence[Row]) -> str:
    """The rows as CSV, every interval as two columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        ends = {f"{key.removesuffix('_interval')}_{side}": value[k] for key, value in row.items()
                if key.endswith("_interval") for k, side in enumerate(("low", "high"))}  # fmt: skip
        writer.writerow({key: value for key, value in {**row, **ends}.items() if key in COLUMNS})
    return text.getvalue()


def _number(row: Row, key: str, digits: str = ".3f") -> str:
    return format(row[key], digits) if key in row else ""


def _interval(row: Row, key: str) -> str:
    if f"{key}_interval" not in row:
        return ""
    low, high = row[f"{key}_interval"]
    return f" [{low:.3f}, {high:.3f}]"
