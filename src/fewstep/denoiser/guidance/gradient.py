r"""What a gradient of log p(y | z) does to a data prediction.

$$ s = -\Sigma^{-1}(z - M D), \qquad s' = s + g \;\Rightarrow\; D' = D + q\, g, $$

with the q of `process.data_from_score`: sigma^2 / alpha on a scalar process, the same mode by mode on a diagonal one.
On CLD it reads the velocity's part of g, the only one its reverse SDE has; where y depends on the data alone, M D'
follows the whole of s'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.base import as_denoiser
from fewstep.process.base import Process, Time
from fewstep.process.operator import apply, magnitude

__all__ = ["LogProb", "check_interval", "data_shift", "gradient", "process_of", "settle"]

LogProb = Callable[[Tensor, Time], Tensor]


def gradient(f: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of f(z)[0], (batch,), by z, and f(z)[1] beside it.

    Gradients leave it only where the caller differentiates through z himself.
    """
    through = z.requires_grad and torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        z = z if through else z.detach().clone().requires_grad_(True)
        value, beside = f(z)
        if tuple(value.shape) != (len(z),):
            raise ValueError(
                f"got log probabilities of shape {tuple(value.shape)} for a batch of {len(z)}: give one a sample"
            )
        found = None
        if value.requires_grad:
            (found,) = torch.autograd.grad(value.sum(), z, create_graph=through, allow_unused=True)
        if found is None:
            raise ValueError(
                "got a log probability without a gradient by the state: compute it from the state, by torch's "
                "differentiable operations and with autograd left on"
            )
    return found, beside if through else beside.detach()


def data_shift(process: Process, t: Time, g: Tensor) -> Tensor:
    """What a gradient g (batch, *state) adds to x0_hat, (batch, *shape) in data space.

    Raises:
        ValueError: where the state holds no signal (alpha = 0).
    """
    q = process.data_from_score(t)[1]
    if not magnitude(q) < float("inf"):
        raise ValueError(
            f"got guidance at t = {t}, where the state holds no signal (alpha = 0): start the grid later, or give "
            "an interval without it"
        )
    return process.from_coordinates(apply(q, g))


def check_interval(interval: tuple[float, float] | None, process: Process) -> None:
    """Refuses what is no (low, high), or none of the process's times."""
    if interval is None:
        return
    if not (len(interval) == 2 and interval[0] < interval[1]):
        raise ValueError(f"got interval={interval}: give (low, high), times between which there is guidance")
    if not (interval[0] <= process.t_max and process.t_min <= interval[1]):
        raise ValueError(
            f"got interval={interval} for {process}, which has no time there: give one within "
            f"[{process.t_min:g}, {process.t_max:g}]"
        )


def settle(wrapper: Any, *names: str) -> None:
    """Makes denoisers of what a wrapper was given under these names, one or a tuple, and takes the process of all."""
    given = {name: getattr(wrapper, name) for name in names}
    made = {k: tuple(map(as_denoiser, v)) if isinstance(v, tuple | list) else as_denoiser(v) for k, v in given.items()}
    each = [d for v in made.values() for d in (v if isinstance(v, tuple) else (v,))]
    vars(wrapper).update(made, process=process_of(*each, process=wrapper.process))


def process_of(*denoisers: Any, process: Process | None = None) -> Process:
    """The one process that all these denoisers tell, or that is given."""
    told = [p for p in (process, *(as_denoiser(d).process for d in denoisers)) if p is not None]
    for other in told:
        if not isinstance(other, Process):
            raise ValueError(f"got process={other!r}: give a process, as fs.VP()")
    if not told:
        raise ValueError("got denoisers made for no process they tell: give it as process=")
    if any(p != told[0] for p in told):
        raise ValueError(f"got denoisers made for {' and '.join(map(str, told))}: give all of one process")
    return told[0]
