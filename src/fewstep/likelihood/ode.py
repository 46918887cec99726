r"""Dormand-Prince 5(4) with a step size and an end for every sample: y' = f(y, u) on (batch, n) in float64.

$$ y_{n+1} = y_n + h \sum_i b_i k_i, \qquad e = h \sum_i (b_i - \hat b_i) k_i, \qquad
   h \leftarrow h \cdot \min(5, \max(0.2, 0.9\, \|e\|^{-1/5})) $$

with the RMS norm of e / (tol + tol max(|y_n|, |y_n+1|)). The last stage of a step is the first of the next.

References: Dormand, Prince, A family of embedded Runge-Kutta formulae, 1980, https://doi.org/10.1016/0771-050X(80)90013-3.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.solver.driver.embedded import DEFECT
from fewstep.solver.ode.runge_kutta import METHODS

__all__ = ["integrate"]

_METHOD = METHODS["dormand-prince5"]
_A, _C = (*_METHOD.a[1:], _METHOD.b), (*_METHOD.c[1:], 1.0)
_E = tuple(-w for w in DEFECT)

Slope = Callable[[Tensor, Tensor, Tensor], Tensor]


def integrate(
    f: Slope, y: Tensor, start: float, end: float, *, tolerance: float, max_calls: int, groups: int = 0
) -> tuple[Tensor, Tensor]:
    """What y (batch, n), float64, is at u = `end`, and the calls each sample took; `end` may lie on either side.

    f(y, u, which) is dy/du of the samples numbered `which`, each at its own u. `tolerance` is of the local error,
    relative and absolute; the first `groups` columns are measured by themselves, so that no part hides another's.
    After `max_calls` of f the run is given up.
    """
    y, which = y.clone(), torch.arange(len(y))
    u = torch.full((len(y),), start, dtype=torch.float64)
    h = torch.full_like(u, (end - start) / 50)
    found, calls, spent = torch.empty_like(y), torch.zeros(len(y), dtype=torch.int64), 1
    k = [f(y, u, which)]
    calls += 1
    while len(which):
        last = (end - u).abs() <= h.abs() * (1 + 1e-9)
        h = torch.where(last, end - u, h)
        step = h[:, None].to(y.device)
        for a, c in zip(_A, _C, strict=True):
            ahead = y + step * sum(w * slope for w, slope in zip(a, k, strict=True))
            k.append(f(ahead, torch.where(last, end, u + h) if c > 1 - 1e-12 else u + c * h, which))
        calls[which] += 6
        spent += 6
        error = step * sum(w * slope for w, slope in zip(_E, k, strict=True))
        ratio = (error / (tolerance * (1 + torch.maximum(y.abs(), ahead.abs())))).square()
        parts = [part for part in (ratio[:, :groups], ratio[:, groups:]) if part.shape[1]]
        size = torch.stack([part.mean(1).sqrt() for part in parts]).amax(0).cpu()
        good = size <= 1
        factor = torch.where(size.isfinite(), 0.9 * size.clamp(min=1e-8) ** -0.2, 0.2).clamp(0.2, 5.0)
        keep = good.to(y.device)[:, None]
        y, k = torch.where(keep, ahead, y), [torch.where(keep, k[-1], k[0])]
        u, done = torch.where(good, u + h, u), good & last
        h = h * factor
        if bool((h.abs() < 1e-12 * abs(end - start)).any()):
            raise ValueError(
                f"the step became too small at tolerance={tolerance:g}: give a larger one, or check that the network's "
                "values and derivatives are finite"
            )
        found[which[done]] = y[done]
        y, u, h, which, k = y[~done], u[~done], h[~done], which[~done], [k[0][~done]]
        if len(which) and spent >= max_calls:
            raise ValueError(
                f"got tolerance={tolerance:g}, for which {max_calls} calls do not reach the end: "
                "give a larger tolerance or max_calls"
            )
    return found, calls
