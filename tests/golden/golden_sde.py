"""A fault of a stochastic reference, given to our solver so that the two can be compared."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from fewstep.process import Process
from fewstep.solver import SDEMultistep
from fewstep.tableau import Tableau
from fewstep.tableau.form import Form

__all__ = ["FlippedBend"]


@dataclass(frozen=True, kw_only=True)
class FlippedBend(SDEMultistep):
    """3M SDE with -1/2 where phi_3 has 1/2: the weight of D2 is alpha_s less, as diffusers has it."""

    def tabulate(self, process: Process, grid: Tensor) -> Tableau:
        table = super().tabulate(process, grid)
        rows = list(table.rows)
        for k in range(3, len(rows)):
            if ("y", k - 3, "x0") not in rows[k].form.terms:
                continue
            t, s = rows[k - 1].t, rows[k].t
            lam = [float(process.log_snr(rows[j].t)) for j in (k - 1, k - 2, k - 3)]
            x = [(v - lam[0]) / (float(process.log_snr(s)) - float(process.log_snr(t))) for v in lam]
            form = rows[k].form
            for j, v in zip((k - 1, k - 2, k - 3), x, strict=True):
                weight = -process.M(s) / math.prod(v - u for u in x if u != v)
                form = form + weight * Form.of(("y", j, "x0"))
            rows[k] = replace(rows[k], form=form)
        return replace(table, rows=tuple(rows))
