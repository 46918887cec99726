r"""Networks with a second output: the variance of the noise, which SN-DPM and NPR-DPM read.

| head  | the second output is trained on    | the table reads               |
|-------|------------------------------------|-------------------------------|
| `npr` | g = E[(eps - eps_theta)^2 | z]     | g                             |
| `sn`  | h = E[eps^2 | z]                   | h - eps_theta^2               |

Both are E Var(eps | z) of every coordinate of the state, 0 where the estimate is below it.

References: Bao et al., Estimating the optimal covariance with imperfect mean in diffusion probabilistic models, 2022,
https://arxiv.org/abs/2206.07309.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.base import Around
from fewstep.denoiser.network import NetworkError, Wrapped, _dtype, wrap
from fewstep.process.base import Process, Time
from fewstep.process.operator import apply, inverse
from fewstep.process.predict import VARIANCES, conversion
from fewstep.words import pick, typed

__all__ = ["VarianceHead", "variance_head"]


@dataclass(frozen=True, kw_only=True, eq=False)
class VarianceHead(Around):
    """A denoiser made of a network with two outputs; see `variance_head`."""

    denoiser: Wrapped
    kind: str

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], dict[str, Tensor]]:
        """The denoiser and the head, by name, at one time, with every number of that time ready."""
        second: list[Tensor] = []

        def first(x: Tensor, *times: Tensor) -> Tensor:
            out = self.denoiser.net(x, *times)
            if not (isinstance(out, tuple) and len(out) >= 2 and out[1].shape == x.shape):
                raise NetworkError(f"the network must return (prediction, {self.kind}), both of shape {tuple(x.shape)}")
            second.append(out[1])
            return out[0]

        p = self.process
        ready, r, m = replace(self.denoiser, net=first).at(t, output, to=to), inverse(p.R(t)), p.M(t)
        back = None if output == "x0" else conversion(output, p, t)

        def call(z: Tensor) -> dict[str, Tensor]:
            main = ready(z)
            variance = second.pop().to(z.dtype)
            if self.kind == "sn":
                x0 = p.coordinates(main) if back is None else apply(back[0], z) + apply(back[1], main)
                variance = variance - apply(r, z - apply(m, x0)) ** 2
            return {output: main, self.kind: variance.clamp(min=0)}

        return call


@typed
def variance_head(
    net: Callable[..., Any], process: Process, head: str = "npr", *, dtype: torch.dtype | None = None, **options: Any
) -> VarianceHead:
    """Makes a denoiser of a network that returns (prediction, second output), for `sn-ddpm` and `npr-ddpm`.

    Args:
        net: called as by `wrap`; the second output has the state's shape and coordinates.
        process: the process it was trained on, of numbers or frequencies.
        head: what the second output is, "npr" or "sn".
        dtype, options: of `wrap`.
    """
    pick(dict.fromkeys(VARIANCES), head, "head")
    if process.kind == "block":
        raise ValueError(f"got {type(process).__name__} for a variance head: give a process of numbers or frequencies")
    return VarianceHead(denoiser=wrap(net, process, dtype=dtype or _dtype(net), **options), kind=head)
