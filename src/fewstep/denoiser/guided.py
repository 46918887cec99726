r"""Denoisers of two parts, and the derivative of a denoiser along its ODE: what some solvers read beside x0.

| head         | what it is, in the process's coordinates                 | who reads it              |
|--------------|----------------------------------------------------------|---------------------------|
| `base`       | D of the model alone                                     | `ltsp`, `stsp`, `*-cfgpp` |
| `guidance`   | what guidance adds to D                                  | `ltsp`, `stsp`, `*-cfgpp` |
| `derivative` | dD/dt along the probability-flow ODE, the total rate     | `taylor-2`                |

A head is computed only in the rows that read it, so a solver that takes the two parts apart pays for each alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad as forward

from fewstep.denoiser.guidance.gradient import check_interval
from fewstep.denoiser.network import Wrapped, bound, needs_grad
from fewstep.process.base import Process, Time
from fewstep.process.operator import apply, inverse
from fewstep.words import Typed, finite, typed

__all__ = ["ClassifierFree", "Differentiated", "Guided", "guide", "rate"]

Denoiser = Callable[[Tensor, Time], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Guided(Typed):
    """D = base + shift, for any solver; those that split it read the parts as heads.

    Args:
        base: the model's denoiser.
        shift: (z, t) -> what guidance adds to x0_hat, in data space. Of a classifier's gradient g = w d log p(y|z)/dz
            it is what `process.data_from_score` makes of a score: q g.
        process: the process of both.
        needs_grad: one of them differentiates inside.
    """

    base: Denoiser
    shift: Denoiser
    process: Process
    needs_grad: bool = False

    def __call__(self, z: Tensor, t: Time) -> Tensor:
        """The guided x0_hat in data space."""
        return bound(self.base, t)(z) + bound(self.shift, t)(z)

    def head(self, name: str, t: Time) -> Callable[[Tensor], Tensor] | None:
        """`base` and `guidance`, in the process's coordinates."""
        part = {"base": self.base, "guidance": self.shift}.get(name)
        return None if part is None else lambda z: self.process.coordinates(bound(part, t)(z))


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifierFree:
    """D = D_u + scale (D_c - D_u) in one call where both are one network; see `guide`."""

    conditional: Denoiser
    unconditional: Denoiser
    scale: float
    process: Process
    interval: tuple[float, float] | None = None
    rule: Any = None
    together: ClassVar[tuple[str, ...]] = ("base", "guidance")  # the heads of `parts`

    @property
    def needs_grad(self) -> bool:
        return needs_grad(self.conditional, self.unconditional)

    @property
    def predicts(self) -> str:
        """What both networks return: guidance is linear, so a table may run on it as on that of one network."""
        one, other = (getattr(d, "predicts", "data") for d in (self.conditional, self.unconditional))
        return one if one == other and self.rule is None else "data"

    def __call__(self, z: Tensor, t: Time) -> Tensor:
        """The guided x0_hat in data space."""
        return self.at(t)(z)

    def at(self, t: Time, output: str = "x0") -> Callable[[Tensor], Tensor]:
        """The guided denoiser at one time."""
        scale = self._scale(t)
        if isinstance(scale, float) and (scale == 1.0 or (scale == 0.0 and self.rule is None)):
            return bound(self.conditional if scale else self.unconditional, t, output)
        both = self._both(t, output)
        combine = self.rule.at(t) if self.rule is not None else None

        def guided(z: Tensor) -> Tensor:
            conditional, unconditional = both(z)
            if combine is not None:
                return combine(conditional, unconditional, _wide(scale, conditional))
            return torch.lerp(unconditional, conditional, _wide(scale, conditional))  # one pass

        return guided

    def head(self, name: str, t: Time) -> Callable[[Tensor], Tensor] | None:
        """`base`, the unconditional model, and `guidance`, in the process's coordinates."""
        if name == "base":
            base = bound(self.unconditional, t)
            return lambda z: self.process.coordinates(base(z))
        if name != "guidance":
            return None
        parts = self.parts(t)
        return lambda z: parts(z)["guidance"]

    def parts(self, t: Time) -> Callable[[Tensor], dict[str, Tensor]]:
        """Z -> x0 in data space and both heads, of one evaluation of each network."""
        both, scale = self._both(t, "x0"), self._scale(t)
        combine = self.rule.at(t) if self.rule is not None else None

        def of(z: Tensor) -> dict[str, Tensor]:
            conditional, unconditional = both(z)
            if combine is not None:
                shift = combine(conditional, unconditional, _wide(scale, conditional)) - unconditional
            else:
                shift = apply(scale, conditional - unconditional)
            base, guidance = (self.process.coordinates(v) for v in (unconditional, shift))
            return {"x0": unconditional + shift, "base": base, "guidance": guidance}

        return of

    def _scale(self, t: Time) -> float | Tensor:
        """The scale at a time, or one a sample; 1 outside the interval."""
        if self.interval is None:
            return float(self.scale)
        low, high = self.interval
        if isinstance(t, Tensor) and t.ndim:
            return torch.where((low <= t) & (t <= high), self.scale, 1.0)
        return float(self.scale) if low <= float(t) <= high else 1.0

    def _both(self, t: Time, output: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Z -> what the conditional and the unconditional denoiser return at one time."""
        one, other = (bound(d, t, output) for d in (self.conditional, self.unconditional))
        twice = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
        pair = _one_network(self.conditional, self.unconditional)
        ready = self.conditional.ready(twice, output) if pair else None

        def both(z: Tensor) -> tuple[Tensor, Tensor]:
            net = _pair(self.conditional.net, self.unconditional.net, len(z)) if ready is not None else None
            if ready is not None and net is not None:
                call = ready if output == "x0" else ready.raw
                try:
                    out = call(torch.cat([z, z]), net=net)
                    return out[: len(z)], out[len(z) :]
                except torch.OutOfMemoryError:  # then one after the other
                    pass
            return one(z), other(z)

        return both


def _wide(scale: float | Tensor, like: Tensor) -> Any:
    """A scale for tensors like this one: itself, or one a sample."""
    return scale.to(like).reshape(-1, *(1,) * (like.ndim - 1)) if isinstance(scale, Tensor) else scale


def _one_network(one: Any, other: Any) -> bool:
    """Whether two denoisers are one network, and differ in the tensors only that a `functools.partial` binds to it."""
    if not (isinstance(one, Wrapped) and isinstance(other, Wrapped)):
        return False
    if not all(getattr(one, f.name) == getattr(other, f.name) for f in fields(Wrapped) if f.name != "net"):
        return False
    a, b = one.net, other.net
    if not (isinstance(a, partial) and isinstance(b, partial) and a.func == b.func and not a.args and not b.args):
        return False
    both_tensors = lambda *values: all(isinstance(v, Tensor) for v in values)  # noqa: E731
    return a.keywords.keys() == b.keywords.keys() and all(
        value is b.keywords[name] or both_tensors(value, b.keywords[name]) for name, value in a.keywords.items()
    )


def _pair(a: partial, b: partial, batch: int) -> partial | None:
    """One network with the tensors of both for twice the batch: one each, or one for all; None where they are neither.

    They are put together at each call, as their owner may have changed them in place.
    """
    bound_to: dict[str, Any] = {}
    for name, value in a.keywords.items():
        if not isinstance(value, Tensor):
            bound_to[name] = value
            continue
        each = [v.expand(batch) if v.ndim == 0 else v for v in (value, b.keywords[name])]
        if len(each[0]) != batch or each[0].shape != each[1].shape:
            return None
        bound_to[name] = torch.cat(each)
    return partial(a.func, **bound_to)


@typed
def guide(
    conditional: Denoiser,
    unconditional: Denoiser,
    scale: float,
    *,
    interval: tuple[float, float] | None = None,
    rule: Any = None,
) -> ClassifierFree:
    """Classifier-free guidance: D = D_u + scale (D_c - D_u), with D_u as base.

    Both are evaluated, in one network call of twice the batch where they are one network with labels bound to it
    (`functools.partial`, `Model.denoiser`); where the scale is 1 or 0 only the one that counts is.

    Args:
        conditional, unconditional: two denoisers of one process.
        scale: diffusers' guidance_scale: 1 is the conditional model, 0 the unconditional one.
        interval: (low, high) in the process's time, where there is guidance; elsewhere the conditional model alone is
            evaluated. None is everywhere.
        rule: another way to put the two together where the scale is not 1: `fewstep.Rescale`, `fewstep.APG`.

    A negative prompt is the unconditional denoiser of another condition; autoguidance (Karras et al., Guiding a
    diffusion model with a bad version of itself, 2024, https://arxiv.org/abs/2406.02507) a weaker model of the same
    one.

    References: Ho, Salimans, Classifier-free diffusion guidance, 2022, https://arxiv.org/abs/2207.12598, whose w is
    scale - 1; Kynkaanniemi et al., Applying guidance in a limited interval, 2024, https://arxiv.org/abs/2404.07724.
    """
    processes = [p for p in (getattr(d, "process", None) for d in (conditional, unconditional)) if p is not None]
    if len(processes) < 2 or processes[0] != processes[1]:
        raise ValueError(f"got denoisers made for {processes or 'no process they tell'}: give two of one process")
    check_interval(interval, processes[0])
    finite("scale", scale)
    if rule is not None and (isinstance(rule, type) or not hasattr(rule, "at")):
        raise ValueError(f"got rule={rule!r}: give one as fs.Rescale() or fs.APG(), or None")
    idle = {"rule": rule, "interval": interval} if scale == 1 else {}
    for name, value in idle.items():
        if value is not None:
            raise ValueError(f"got {name}={value!r} with scale=1, where it has nothing to do: give another scale")
    return ClassifierFree(
        conditional=conditional,
        unconditional=unconditional,
        scale=float(scale),
        process=processes[0],
        interval=interval,
        rule=rule,
    )


@dataclass(frozen=True, eq=False)
class Differentiated(Typed):
    """A denoiser that also offers its exact derivative along the ODE, by forward differentiation of the network.

    A row that reads the head costs two evaluations more, one of them a Jacobian-vector product; GENIE learns a head
    for it instead (Dockhorn, Vahdat, Kreis 2022, https://arxiv.org/abs/2210.05475).
    """

    denoiser: Any
    process: Process

    @property
    def needs_grad(self) -> bool:
        return getattr(self.denoiser, "needs_grad", False)

    def __call__(self, z: Tensor, t: Time) -> Tensor:
        """x0_hat in data space."""
        return bound(self.denoiser, t)(z)

    def head(self, name: str, t: Time) -> Callable[[Tensor], Tensor] | None:
        """`derivative`, in the process's coordinates."""
        return rate(self.denoiser, self.process, t) if name == "derivative" else None


def rate(denoiser: Denoiser, process: Process, t: Time) -> Callable[[Tensor], Tensor]:
    r"""Z -> dD/dt = (\partial_z D) dz/dt + \partial_t D with dz/dt = R' R^-1 (z - M D) + M' D, the ODE's velocity."""
    spread = process.R_rate(t) * inverse(process.R(t))
    pull = process.M_rate(t) - spread * process.M(t)

    def predict(z: Tensor, times: Tensor) -> Tensor:
        return process.coordinates(denoiser(z, times))

    def along(z: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            z = z.clone()  # of a run in inference mode, which forward differentiation does not take
            times = torch.as_tensor(t, dtype=torch.float64).expand(len(z)).clone()
            velocity = apply(spread, z) + apply(pull, predict(z, times))
            with forward.dual_level():
                moving = forward.make_dual(z, velocity), forward.make_dual(times, torch.ones_like(times))
                found = forward.unpack_dual(predict(*moving)).tangent
            return torch.zeros_like(velocity) if found is None else found

    return along
