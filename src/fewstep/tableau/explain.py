"""The readable printout of a table: what `fewstep explain` shows."""

from __future__ import annotations

import json
from typing import Any

from fewstep.process.operator import Block, Coefficient, Diagonal
from fewstep.tableau.row import Table, name

__all__ = ["explain"]


def explain(table: Table) -> str:
    """Rows, their times and log-SNRs, which are evaluated, and the weights of each."""
    process = table.process
    stochastic = f", {len(table.noises)} noises" if table.noises else ""
    lines = [
        f"{_label(table)} on {type(process).__name__}: {len(table.grid) - 1} steps, {table.nfe} network calls, "
        f"{len(table.rows)} rows{stochastic}",
        f"{'row':>4} {'time':>10} {'log-SNR':>8}  call  made of",
    ]
    for k, row in enumerate(table.rows):
        call = "" if row.at is None else "yes" if row.at == row.t else f"{row.at:g}"
        made = row.given or "  ".join(f"{_weight(c)} {name(symbol)}" for symbol, c in row.form)
        lines.append(f"{k:>4} {row.t:>10.6g} {float(process.log_snr(row.t)):>8.3f}  {call:<4}  {made}")
    if any(isinstance(c, Diagonal) for row in table.rows for _, c in row.form):
        what = "frequency" if process.kind == "diagonal" else "pixel"
        lines.append(f"weights are per {what}: the first and the last one are shown")
    lines += [f"  xi{i}: standard normal of {n.stream} [{n.t:g}, {n.s:g}]" for i, n in enumerate(table.noises[:3])]
    if len(table.noises) > 3:
        lines.append(f"  ... and so on to xi{len(table.noises) - 1}")
    if table.card is not None:
        lines.append(f"fitted: {json.dumps(table.card)}")
    return "\n".join(lines)


def _label(table: Table) -> str:
    if table.solver is None:
        return "table"
    return _spelt(table.solver.config())


def _spelt(config: dict[str, Any]) -> str:
    """A solver's config as it is called, solvers inside it too; lists of numbers are in the rows."""
    options = {k: v for k, v in config.items() if k != "class" and not isinstance(v, list | tuple)}
    said = {k: _spelt(v) if isinstance(v, dict) and "class" in v else repr(v) for k, v in options.items()}
    return f"{config['class']}({', '.join(f'{k}={v}' for k, v in said.items())})"


def _weight(c: Coefficient) -> str:
    if isinstance(c, Diagonal):
        flat = c.values.flatten()
        return f"{flat[0]:+.5g}..{flat[-1]:+.5g}"
    if isinstance(c, Block):
        return "[" + "; ".join(" ".join(f"{x:+.4g}" for x in line) for line in c.values.tolist()) + "]"
    return f"{float(c):+.6g}"
