r"""Semantic guidance: how like a reference a state is, as log p(y | z) up to a constant.

With features f of the image and f' of the reference, (batch, channels, *positions),

| `by`        | log p =                                                       | what it holds fixed                |
|-------------|---------------------------------------------------------------|------------------------------------|
| `cosine`    | w f.f' / (norm f norm f')                                     | the content, as a joint embedding  |
| `structure` | -w mean((f - f')^2) over channels and positions               | the content, place by place        |
| `gram`      | -w mean((G - G')^2), G = f f^T / positions                    | the style: which features go along |
| a function  | w by(f, f'), (batch,)                                         |                                    |

Several at once are a `fewstep.conjunction`; `fewstep.ClassifierGuided` makes a denoiser of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from fewstep.process.base import Time
from fewstep.words import Typed, pick, within

__all__ = ["SIMILARITIES", "Similarity"]

Features = Callable[[Tensor, Time], Tensor]


def _cosine(f: Tensor, g: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(f.flatten(1), g.flatten(1).expand(len(f), -1), dim=1)


def _structure(f: Tensor, g: Tensor) -> Tensor:
    return -(f - g).square().flatten(1).mean(1)


def _gram(f: Tensor, g: Tensor) -> Tensor:
    return _structure(*(v.flatten(2) @ v.flatten(2).mT / v.flatten(2).shape[2] for v in (f, g)))


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": _cosine,
    "structure": _structure,
    "gram": _gram,
}


@dataclass(frozen=True, eq=False)
class Similarity(Typed):
    """(z, t) -> (batch,): the weighted likeness of what it is called with to a reference.

    Args:
        features: (x, t) -> (batch, channels, *positions), differentiable. On the state it should know noise; on
            x0_hat any feature network of images does (`lambda x, t: net(x)`).
        reference: the reference's features (1 or batch, channels, *positions), or a function of t that returns those of
            the reference noised along with the state, as the paper does.
        by: a name of the table above or a function (features, reference) -> (batch,).
        weight: w > 0.

    References: Liu et al., More control for free! Image synthesis with semantic diffusion guidance, 2021,
    https://arxiv.org/abs/2112.05744.
    """

    features: Features
    reference: Tensor | Callable[[Time], Tensor]
    _: KW_ONLY
    by: str | Callable[[Tensor, Tensor], Tensor] = "cosine"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.by, str):
            pick(SIMILARITIES, self.by, "similarity")
        within(self, weight="(0, inf)")

    def __call__(self, x: Tensor, t: Time) -> Tensor:
        """The log probability up to a constant, (batch,)."""
        f = self.features(x, t)
        g = self.reference if isinstance(self.reference, Tensor) else self.reference(t)
        if f.shape[1:] != g.shape[1:] or len(g) not in (1, len(f)) or (self.by == "gram" and f.ndim < 3):
            raise ValueError(
                f"got features of shape {tuple(f.shape)} and a reference of shape {tuple(g.shape)} to compare "
                f"by {self.by}: give (batch, channels, *positions) and the same for 1 or as many references"
            )
        by = SIMILARITIES[self.by] if isinstance(self.by, str) else self.by
        return float(self.weight) * by(f, g.to(f))

    def select(self, index: Tensor) -> Similarity:
        """For some samples of a batch."""
        g = self.reference
        if not isinstance(g, Tensor) or len(g) == 1:
            return self
        return Similarity(self.features, g[index.to(g.device)], by=self.by, weight=self.weight)
