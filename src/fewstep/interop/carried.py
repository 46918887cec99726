r"""A table written for one scalar process, carried to another: the same sampler on another clock and scale.

Where the log-SNRs agree, z_A = s z_B with s = alpha_A / alpha_B, and both have the same data predictions. So row k of
the table becomes

$$ z^B_k = s_k^{-1} \Bigl( \sum_i A_{ki}\, s_i\, z^B_i + \sum_j B_{kj}\, y_j + \sum_l C_{kl}\, \xi_l \Bigr) $$

at the time of B with the same log-SNR. References: Karras et al. 2022, appendix C, https://arxiv.org/abs/2206.00364.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from fewstep.process import ScalarProcess
from fewstep.process.base import to_tensor
from fewstep.tableau import Form, Tableau

__all__ = ["carried"]


def carried(table: Tableau, process: ScalarProcess) -> Tableau:
    """The table for another scalar process; refused where it has given rows, whose scale nobody knows."""
    source = table.process
    if source == process:
        return table
    if not isinstance(source, ScalarProcess) or table.output != "x0" or len(table.given) > 1:
        raise ValueError(
            f"got a table on {source} that reads {table.output!r} and the given rows {', '.join(table.given)}: only "
            "one on a scalar process that reads x0 and starts from a state can be carried"
        )
    origin: ScalarProcess = source
    norm = lambda p, t: math.hypot(p.alpha(t), p.sigma(t))  # noqa: E731

    def clock(t: float) -> float:
        return float(process.inverse_log_snr(origin.log_snr(t)))

    def scale(t: float) -> float:
        """z_A / z_B: alpha_A / alpha_B, by their norms, which are in the same proportion and never 0."""
        return norm(origin, t) / norm(process, clock(t))

    scales = [scale(row.t if row.at is None else row.at) for row in table.rows]
    rows = []
    for k, row in enumerate(table.rows):
        terms: dict[Any, Any] = {s: c * (scales[s[1]] if s[0] == "z" else 1.0) / scales[k] for s, c in row.form}
        at, to = (None if t is None else clock(t) for t in (row.at, row.to))
        rows.append(replace(row, t=clock(row.t), at=at, form=Form(terms), to=to))
    noises = tuple(replace(n, t=clock(n.t), s=clock(n.s)) for n in table.noises)
    grid = torch.as_tensor(process.inverse_log_snr(to_tensor(origin.log_snr(table.grid))), dtype=torch.float64)
    heads = {(j, head): (p * scales[j], q) for (j, head), (p, q) in table.heads.items()}
    return replace(table, rows=tuple(rows), noises=noises, process=process, grid=grid, solver=None, heads=heads)
