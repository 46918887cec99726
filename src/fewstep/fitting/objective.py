r"""How far a fitted solver's end states x are from its teacher's y; for each of them lower is better.

| name       | distance                                                                        | sees        |
|------------|---------------------------------------------------------------------------------|-------------|
| `paired`   | mean (x - y)^2, in data space                                                   | every pixel |
| `features` | the same over the variance of y, plus that of features phi(x), phi(y) over theirs | both      |
| `kid`      | unbiased squared kernel distance of phi(x) and phi(y), k(a, b) = (a.b/d + 1)^3   | the law     |

References: paired distances are the family's custom (BNS, https://arxiv.org/abs/2403.01329; GAS,
https://arxiv.org/abs/2510.17699); the kernel distance is GGDM's (Watson et al. 2022,
https://arxiv.org/abs/2202.05830), taken to the teacher's samples here, so that no data is needed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["OBJECTIVES", "Objective", "objective"]

Objective = Callable[[Tensor, Tensor], Tensor]  # (x, y), both (B, *shape), of the same noises
Features = Callable[[Tensor], Tensor]  # (B, *shape) -> (B, d), differentiable

OBJECTIVES = ("paired", "features", "kid")


def objective(name: str, features: Features | None) -> Objective:
    """The objective of that name; a ValueError for an unknown one, and for features that lack or have no use."""
    if name not in OBJECTIVES:
        raise ValueError(f"got objective={name!r}: choose one of {', '.join(OBJECTIVES)}")
    if name == "paired":
        if features is not None:
            raise ValueError("got features with objective='paired', which has no use for them: leave them out")
        return paired
    if features is None:
        raise ValueError(f"got objective={name!r} without features: give a function (B, *shape) -> (B, d)")
    return (lambda x, y: perceived(x, y, features)) if name == "features" else (lambda x, y: kid(x, y, features))


def paired(x: Tensor, y: Tensor) -> Tensor:
    """The mean square difference."""
    return (x - y).square().mean()


def perceived(x: Tensor, y: Tensor, features: Features) -> Tensor:
    """Data and features, each in units of the teacher's variance."""
    seen = features(torch.cat([x, y]))
    pairs = ((x, y), seen.chunk(2))
    return sum((paired(a, b) / b.var(0).mean().clamp(min=1e-12) for a, b in pairs), start=x.new_zeros(()))


def kid(x: Tensor, y: Tensor, features: Features) -> Tensor:
    """The U-statistic of Gretton et al. 2012, eq. 4, which leaves out i = j everywhere: pairs share their noise."""
    seen = features(torch.cat([x, y])).double()
    kernel = (seen @ seen.mT / seen.shape[1] + 1) ** 3
    n = len(x)
    xx, xy, yy = kernel[:n, :n], kernel[:n, n:], kernel[n:, n:]
    each = xx + yy - xy - xy.mT
    return (each.sum() - each.diagonal().sum()) / (n * (n - 1))
