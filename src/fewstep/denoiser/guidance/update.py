r"""How the two predictions of classifier-free guidance are put together, where it is not D_u + w (D_c - D_u).

Both rules act on data predictions D_c, D_u, sample by sample, and w = 1 is the conditional model, as in `guide`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.process.base import Time
from fewstep.process.operator import wide
from fewstep.words import Typed, finite

__all__ = ["APG", "Rescale"]

Combine = Callable[[Tensor, Tensor, Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class Rescale(Typed):
    r"""Guidance that keeps the spread of the conditional prediction.

    $$ D = D_u + w (D_c - D_u), \qquad D' = \phi\, \frac{\mathrm{std}(D_c)}{\mathrm{std}(D)} D + (1 - \phi) D $$

    Args:
        share: phi in (0, 1]; the paper's is 0.7. None of it is `guide` without a rule.

    A prediction without spread, flat or of one number, has none to bring back and is left as guidance makes it.

    Where we differ: the paper scales the network's output, whatever it predicts (v there, noise in many tools); here it
    is the data prediction, so that one setting means the same for all networks.

    References: Lin, Liu, Li, Yang, Common diffusion noise schedules and sample steps are flawed, 2023,
    https://arxiv.org/abs/2305.08891.
    """

    share: float = 0.7

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"got share={self.share}: give 0 < share <= 1; without rescaling leave the rule away")

    def at(self, t: Time) -> Combine:  # noqa: ARG002 - the same at all times
        """(conditional, unconditional, scale) -> D at a time."""

        def combine(conditional: Tensor, unconditional: Tensor, scale: Any) -> Tensor:
            guided = unconditional + scale * (conditional - unconditional)
            if guided[:1].numel() < 2:
                return guided
            wanted, found = (wide(d.flatten(1).std(1), d) for d in (conditional, guided))
            size = wide(guided.flatten(1).abs().amax(1), guided)
            least = 8 * torch.finfo(found.dtype).eps * size  # below it is rounding
            ratio = torch.where(found > least, wanted / found.clamp(min=torch.finfo(found.dtype).tiny), 1.0)
            return guided * (1 + self.share * (ratio - 1))

        return combine


@dataclass(frozen=True, kw_only=True, eq=False)
class APG(Typed):
    r"""Adaptive projected guidance: the part of the update parallel to the prediction, which saturates, is weakened.

    $$ \Delta_k = (D_c - D_u) + \beta \Delta_{k-1}, \qquad \Delta \leftarrow \Delta \min(1, r / |\Delta|), \qquad
       D' = D_c + (w - 1)\,(\Delta_\perp + \eta \Delta_\parallel) $$

    with parts perpendicular and parallel to D_c. eta = 1 without momentum and norm is classifier-free guidance.

    Args:
        parallel: eta, 0 to 1; the paper's is 0.
        norm: r, in data units times the root of the count of values; None is no limit.
        momentum: beta; the paper's are negative, as -0.5. It follows one run of a table: calls of one time for all
            samples, in the order of the rows; a call by itself has none, and per-sample times are refused.

    References: Sadat, Hilliges, Weber, Eliminating oversaturation and artifacts of high guidance scales in diffusion
    models, 2024, https://arxiv.org/abs/2410.02416.
    """

    parallel: float = 0.0
    norm: float | None = None
    momentum: float = 0.0
    _run: list[dict[str, Tensor]] = field(default_factory=lambda: [{}], init=False, repr=False)  # the last update

    def __post_init__(self) -> None:
        if not -1.0 < self.momentum < 1.0:
            raise ValueError(f"got momentum={self.momentum}: give -1 < momentum < 1")
        if self.norm is not None and not 0 < self.norm < float("inf"):
            raise ValueError(f"got norm={self.norm}: give a limit above 0, or None")
        finite("parallel", self.parallel)
        if self.parallel == 1.0 and self.norm is None and self.momentum == 0.0:
            raise ValueError("got parallel=1 without norm and momentum, which is plain guidance: leave the rule away")

    def select(self, index: Tensor) -> APG:
        """The same rule for some of the samples."""
        if self.momentum:
            raise ValueError(f"got momentum for {len(index)} samples of a batch (memory=): it follows the whole batch")
        return self

    def at(self, t: Time) -> Combine:
        """(conditional, unconditional, scale) -> D at a time; the rows of one run are bound before its first call."""
        if self.momentum and isinstance(t, Tensor) and t.ndim:
            raise ValueError("got momentum with a time for each sample (a driver, or parallel): use a sequential table")
        if self._run[0]:
            self._run[0] = {}
        memory = self._run[0]

        def combine(conditional: Tensor, unconditional: Tensor, scale: Any) -> Tensor:
            delta = conditional - unconditional
            if self.momentum:
                delta = delta + self.momentum * memory["last"] if memory else delta
                memory["last"] = delta
            if self.norm is not None:
                size = wide(delta.flatten(1).norm(dim=1), delta)
                delta = delta * (self.norm / size.clamp(min=torch.finfo(size.dtype).tiny)).clamp(max=1.0)
            along = along_of(delta, conditional)
            return conditional + (scale - 1) * (delta - (1 - self.parallel) * along)

        return combine


def along_of(v: Tensor, direction: Tensor) -> Tensor:
    """The part of v (batch, ...) along a direction (batch, ...), sample by sample."""
    a, b = v.flatten(1), direction.flatten(1)
    square = b.square().sum(1, keepdim=True).clamp(min=torch.finfo(b.dtype).tiny)
    return ((a * b).sum(1, keepdim=True) / square * b).reshape(v.shape)
