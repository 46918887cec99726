r"""How far a fitted solver's end states x are from its teacher's y; for each of them lower is better.

| name       | distance                                                                        | sees        |
|------------|---------------------------------------------------------------------------------|-------------|
| `paired`   | mean (x - y)^2, in data space                                                   | every pixel |
| `features` | the same over the variance of y, plus that of features phi(x), phi(y) over theirs | both      |
| `kid`      | unbiased squared kernel distance of phi(x) and phi(y), k(a, b) = (a.b/d + 1)^3   | the law     |

`kid` takes features of real samples in place of the teacher's where they are given: then the teacher is no bound.

References: paired distances are the family's custom (BNS, https://arxiv.org/abs/2403.01329; GAS,
https://arxiv.org/abs/2510.17699); the kernel distance is GGDM's (Watson et al. 2022,
https://arxiv.org/abs/2202.05830), to real samples there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.words import one_of

__all__ = ["OBJECTIVES", "Objective", "objective"]

Objective = Callable[[Tensor, Tensor], Tensor]  # (x, y), both (B, *shape), of the same noises
Features = Callable[[Tensor], Tensor]  # (B, *shape) -> (B, d), differentiable

ROWS = 512  # of the kernel of real samples at once: that of 10,000 is a gigabyte
OBJECTIVES = ("paired", "features", "kid")


def objective(name: str, features: Features | None, real: Tensor | None = None) -> Objective:
    """The objective of that name; a ValueError for an unknown one, and for features that lack or have no use."""
    if real is not None and name != "kid":
        raise ValueError(f"got features of real samples with objective={name!r}, which is to the teacher: take kid")
    one_of("objective", name, OBJECTIVES)
    if name == "paired":
        if features is not None:
            raise ValueError("got features with objective='paired', which has no use for them: leave them out")
        return paired
    if features is None:
        raise ValueError(f"got objective={name!r} without features: give a function (B, *shape) -> (B, d)")
    if name == "features":
        return lambda x, y: perceived(x, y, features)
    return (lambda x, y: kid(x, y, features)) if real is None else kid_to(real, features)


def paired(x: Tensor, y: Tensor) -> Tensor:
    """The mean square difference."""
    return (x - y).square().mean()


def perceived(x: Tensor, y: Tensor, features: Features) -> Tensor:
    """Data and features, each in units of the teacher's variance."""
    pairs = ((x, y), features(torch.cat([x, y])).chunk(2))
    return sum((paired(a, b) / b.var(0).mean().clamp(min=1e-12) for a, b in pairs), start=x.new_zeros(()))


def kid(x: Tensor, y: Tensor, features: Features) -> Tensor:
    """The U-statistic of Gretton et al. 2012, eq. 4, which leaves out i = j everywhere: pairs share their noise."""
    n, phi = len(x), features(torch.cat([x, y]))
    kernel = _kernel(phi, phi)
    xx, xy, yy = kernel[:n, :n], kernel[:n, n:], kernel[n:, n:]
    return _apart(xx + yy - xy - xy.mT)


def kid_to(real: Tensor, features: Features) -> Objective:
    """The same to real samples, by their features (m, d): all pairs across, i = j left out within."""
    if real.ndim != 2 or len(real) < 2 or not bool(real.isfinite().all()):
        raise ValueError(f"got features of real samples of shape {tuple(real.shape)}: give finite ones, (m, d), m >= 2")
    constant = torch.zeros((), dtype=torch.float64)
    for first in range(0, len(real), ROWS):
        kernel = _kernel(real[first : first + ROWS], real).cpu()
        constant += (kernel.sum() - kernel.diagonal(first).sum()) / (len(real) * (len(real) - 1))

    def distance(x: Tensor, _: Tensor) -> Tensor:
        phi = features(x)
        there = real.to(phi.device)
        if phi.shape[1] != there.shape[1]:
            raise ValueError(f"got {there.shape[1]} features of real samples and {phi.shape[1]} of samples: take one")
        return _apart(_kernel(phi, phi)) - 2 * _kernel(phi, there).mean() + constant.to(phi.device)

    return distance


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() @ b.double().mT / a.shape[1] + 1) ** 3


def _apart(kernel: Tensor) -> Tensor:
    """The mean of a square matrix without its diagonal."""
    return (kernel.sum() - kernel.diagonal().sum()) / (len(kernel) * (len(kernel) - 1))
