r"""Denoisers on bridges: the other end y, and the state that a network is shown.

A run walks u = z - n y (`fewstep.process.bridge`), and networks were trained on z:

$$ D(u, t) = p u + q F(u + n_t y, t) $$

where F is what the network returns and x0 = p u + q F its conversion, so that noise, v and flow are those of u. What is
around a network (guidance, thresholds, clocks) sees u, as on any scalar process.

A network that was trained here (`fewstep train bridge`) is told y beside the state and learns the residual x0 - y, of
which u - m y = m (x0 - y) + R eps is an ordinary state: D(u, t) = y + D'(u - m y, t).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.base import Around, Denoiser, Denoises, Plain, as_denoiser, layers, mapped, of_samples, parts
from fewstep.denoiser.heads import VarianceHead
from fewstep.denoiser.network import Wrapped
from fewstep.process.base import Process, Time
from fewstep.process.bridge import Bridge
from fewstep.process.operator import apply
from fewstep.words import typed

__all__ = ["Bridged", "End", "bridged", "given_end", "of_slice", "placed"]


@dataclass(frozen=True, eq=False)
class End:
    """The other end, one a sample or one for all."""

    y: Tensor

    def select(self, index: Tensor) -> End:
        """The same for some of the samples."""
        return self if len(self.y) == 1 else End(self.y[index.to(self.y.device)])


@dataclass(frozen=True, eq=False)
class Bridged(Around):
    """A denoiser of z at the bottom of a tree as one of u; see `bridged`."""

    denoiser: Denoiser
    end: End
    process: Any = None  # the bridge that it was made for; None where it does not tell
    residual: bool = False  # its network is one of x0 - y, and sees u - m y

    @property
    def y(self) -> Tensor:
        return self.end.y

    @property
    def heads(self) -> tuple[str, ...]:
        return self.denoiser.heads

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Any]:
        """The denoiser at one time: u -> an output."""
        if output == "derivative":
            return self.beside(output, t)
        if self.residual:
            call, m, y = self.denoiser.toward(t, output, to), self.process.alpha(t), self.y
            return lambda u: call(u - apply(m, y.to(u))) + (y.to(u) if output == "x0" else 0.0)
        shown = self._shown(t)
        if isinstance(self.denoiser, Wrapped) and output == "x0":
            ready = self.denoiser.ready(t, output, to)
            return lambda u: ready.convert(u, ready.raw(shown(u)))
        call = self.denoiser.toward(t, output, to)
        return lambda u: call(shown(u))

    def _shown(self, t: Time) -> Callable[[Tensor], Tensor]:
        """U -> z; of a network that was made for no bridge, u."""
        process = self.process
        return (lambda u: process.seen(u, t, self.y)) if isinstance(process, Bridge) else lambda u: u


@typed
def bridged(denoiser: Denoises, y: Tensor) -> Any:
    """A denoiser with the other end y of a bridge, for `fewstep.sample` and all that takes a denoiser.

        x = fewstep.sample(fewstep.bridged(denoiser, y), fewstep.I2SB(), steps=5)

    Runs start at y, so they need neither a shape nor a start; starts, callbacks and results are z.

    Args:
        denoiser: (z, t) -> x0_hat, as `wrap` makes one for a bridge, or with guidance around such. A network that sees
            y beside z has it bound, `partial(net, y=y)`. A callable of your own with no denoiser of this library in it
            is shown z as a whole; a network of a process that is no bridge (`retime`) is shown u.
        y: (batch, *data shape), the other end of each sample, in the units of data; or (1, *data shape), one for all.

    The ODE, its likelihood and its encodings are those of E[x0 | z, y]. Of a network that does not see y only the
    stochastic steps of the bridge's own chain (`ddpm`) keep the law of z over pairs.
    """
    if not y.ndim or not y.numel() or not y.is_floating_point():
        raise ValueError(
            f"got y of {y.dtype} {tuple(y.shape)}: give the other end of each sample, (batch, *data shape)"
        )
    if not bool(torch.isfinite(y).all()):
        raise ValueError("got a y that is not finite: check what was given")

    def change(part: Any) -> Any:
        if isinstance(part, Bridged | VarianceHead):
            what = "that has its y already" if isinstance(part, Bridged) else "with a variance head, which sees states"
            raise ValueError(f"got a denoiser {what}: give bridged a denoiser of z without")
        own = isinstance(part, Denoiser) and all(type(layer) is Plain for layer in layers(part))
        if own or (isinstance(part, Denoiser) and not parts(part)):
            return Bridged(part, End(y), part.process)
        return part

    return mapped(as_denoiser(denoiser), change)


def given_end(denoiser: Any) -> Tensor | None:
    """The y of a denoiser; None where it has none."""
    return next((layer.y for layer in layers(denoiser) if isinstance(layer, Bridged)), None)


def of_slice(denoiser: Any, count: int, where: slice) -> Any:
    """The denoiser of some of `count` samples: where it has one y for each, with theirs."""
    denoiser = as_denoiser(denoiser)
    y = given_end(denoiser)
    if y is None or len(y) == 1:
        return denoiser
    if len(y) != count:
        raise ValueError(f"got {len(y)} ends y for {count} samples: give one for each, or one for all")
    return of_samples(denoiser, torch.arange(where.start, min(where.stop, count)), count)


def placed(denoiser: Any, process: Process) -> Any:
    """The denoiser on a bridge, which those in it that tell none were made for."""
    return mapped(
        denoiser, lambda d: replace(d, process=process) if isinstance(d, Bridged) and d.process is None else d
    )
