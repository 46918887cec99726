"""The readable printout of a table: what `fewstep explain` shows."""

from __future__ import annotations

from fewstep.process.operator import Block, Coefficient, Diagonal
from fewstep.tableau.tableau import Tableau, name

__all__ = ["explain"]


def explain(table: Tableau) -> str:
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
    return "\n".join(lines)


def _label(table: Tableau) -> str:
    if table.solver is None:
        return "table"
    config = table.solver.config()
    return f"{config.pop('class')}({', '.join(f'{k}={v!r}' for k, v in config.items())})"


def _weight(c: Coefficient) -> str:
    if isinstance(c, Diagonal):
        flat = c.values.flatten()
        return f"{flat[0]:+.5g}..{flat[-1]:+.5g}"
    if isinstance(c, Block):
        return "[" + "; ".join(" ".join(f"{x:+.4g}" for x in line) for line in c.values.tolist()) + "]"
    return f"{float(c):+.6g}"
