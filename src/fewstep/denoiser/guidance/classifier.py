r"""Classifier guidance: the gradient of any differentiable log p(y | z_t), or of one on x0_hat, added to the score.

$$ D' = D + w\, q\, \nabla_z \log p(y \mid z_t), \qquad
   \nabla_z \log p(y \mid D(z_t, t)) = (\partial_z D)^T\, \nabla_D \log p(y \mid D), $$

with q as in `fewstep.denoiser.guidance.gradient`. This is the published form on the noise, eps' = eps - sigma w g, for
any solver; the form on the reverse mean is a solver's affair: `fewstep.ReverseMean`. w = 1 is Bayes' rule, w = 0 the
model alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.denoiser.base import Denoises, Split
from fewstep.denoiser.guidance.gradient import LogProb, check_interval, data_shift, gradient, settle
from fewstep.denoiser.watch import called
from fewstep.process.base import Time, to_tensor
from fewstep.process.operator import wide
from fewstep.words import Typed, among, finite

__all__ = ["ClassifierGuided"]


@dataclass(frozen=True, eq=False)
class ClassifierGuided(Typed, Split):
    """The denoiser guided by log p(y | z_t), of one evaluation more and a backward pass.

    Args:
        denoiser: (z, t) -> x0_hat.
        log_prob: (z, t) -> (batch,), up to a constant, of states (batch, *state) or x0_hat (batch, *shape), and of the
            time as it came, a number or (batch,): a classifier's log-softmax at a label, a similarity, minus an energy.
        scale: w.
        on: "state", for one that knows noisy states; "x0_hat" for one that knows data, and is differentiated
            through the denoiser.
        interval: (low, high) in the process's time, where there is guidance; elsewhere the denoiser alone is called.
            A network's derivative says little where the state holds next to no signal, and q is largest there.
        process: the process; None asks the denoiser.

    References: Dhariwal, Nichol, Diffusion models beat GANs on image synthesis, 2021,
    https://arxiv.org/abs/2105.05233; on x0_hat: Bansal et al., Universal guidance for diffusion models, 2023,
    https://arxiv.org/abs/2302.07121.
    """

    denoiser: Denoises
    log_prob: LogProb
    scale: float = 1.0
    _: KW_ONLY
    on: str = "state"
    interval: tuple[float, float] | None = None
    process: Any = None

    needs_grad: ClassVar[bool] = True  # type: ignore[override]

    def __post_init__(self) -> None:
        among(self, on=("state", "x0_hat"))
        settle(self, "denoiser")
        check_interval(self.interval, self.process)
        finite("scale", self.scale)

    # it has no derivative, as it differentiates inside
    heads = ("base", "guidance")  # type: ignore[assignment]

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Tensor]:
        """The guided denoiser, or `base`, the model alone, and `guidance` in the process's coordinates."""
        if output not in ("x0", "base", "guidance"):
            return self.beside(output, t)
        base, inside = self.denoiser.toward(t, "x0", to), bool(self._inside(t).any())
        if output == "base":
            return lambda z: self.process.coordinates(base(z))
        if output == "guidance":
            if not inside:
                return lambda z: torch.zeros(len(z), *self.process.data_shape(tuple(z.shape[1:]))).to(z)
            return lambda z: self.process.coordinates(self._shift(base, z, t)[0])

        def guided(z: Tensor) -> Tensor:
            shift, seen = self._shift(base, z, t)
            return (seen if self.on == "x0_hat" else base(z)) + shift

        return guided if inside else base

    def _inside(self, t: Time) -> Tensor:
        """Whether a time, or each of (batch,) times, lies where there is guidance."""
        t = to_tensor(t)
        low, high = self.interval or (-torch.inf, torch.inf)
        return (low <= t) & (t <= high)

    def _shift(self, base: Callable[[Tensor], Tensor], z: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """What guidance adds to x0_hat, and what the log probability was told."""

        def judged(z: Tensor) -> tuple[Tensor, Tensor]:
            seen = base(z) if self.on == "x0_hat" else z
            return called(self.log_prob, seen, t), seen

        g, seen = gradient(judged, z)
        return data_shift(self.process, t, float(self.scale) * wide(self._inside(t), g) * g), seen
