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
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from fewstep.denoiser.base import Denoiser, Denoises, Split, as_denoiser
from fewstep.denoiser.guidance.gradient import check_interval, process_of, settle
from fewstep.denoiser.network import Wrapped
from fewstep.denoiser.rate import rate
from fewstep.process.base import Process, Time
from fewstep.process.operator import apply, wide
from fewstep.words import Typed, finite, typed

__all__ = ["ClassifierFree", "Differentiated", "Guided", "guide"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Guided(Typed, Split):
    """D = base + shift, for any solver; those that split it read the parts as heads.

    Args:
        base: the model's denoiser.
        shift: (z, t) -> what guidance adds to x0_hat, in data space. Of a classifier's gradient g = w d log p(y|z)/dz
            it is what `process.data_from_score` makes of a score: q g.
        process: the process of both.
    """

    base: Denoises
    shift: Denoises
    process: Process
    needs_grad: bool = False  # type: ignore[override]
    guidance: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        base, shift = as_denoiser(self.base), as_denoiser(self.shift)
        needs_grad = self.needs_grad or base.needs_grad or shift.needs_grad
        vars(self).update(base=base, shift=shift, needs_grad=needs_grad)
        process_of(base, process=self.process)

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Tensor]:
        if output not in ("x0", "base", "guidance"):
            return self.beside(output, t)
        base, shift = (d.toward(t, "x0", to) for d in (self.base, self.shift))
        if output == "x0":
            return lambda z: base(z) + shift(z)
        part = base if output == "base" else shift
        return lambda z: self.process.coordinates(part(z))


@dataclass(frozen=True, eq=False)
class Scales:
    """A guidance scale for each sample of a batch, (batch,)."""

    values: Tensor

    def select(self, index: Tensor) -> Scales:
        """Those of some samples."""
        return Scales(self.values[index.to(self.values.device)])


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifierFree(Split):
    """D = D_u + scale (D_c - D_u) in one call where both are one network; see `guide`."""

    conditional: Denoiser
    unconditional: Denoiser
    scale: Any  # a number, `Scales`, or a function of the log-SNR
    process: Process
    interval: tuple[float, float] | None = None
    rule: Any = None
    together: ClassVar[tuple[str, ...]] = ("base", "guidance")

    @property
    def guidance(self) -> float:  # type: ignore[override]
        """The scale, or the largest of a batch or of a run."""
        if isinstance(self.scale, float):
            return self.scale
        times = torch.linspace(self.process.t_max, self.process.t_min, 33, dtype=torch.float64)[1:-1]
        return max(float(torch.as_tensor(self._at(t)).max()) for t in times.tolist())

    @property
    def predicts(self) -> str:  # type: ignore[override]
        """What both networks return: guidance is linear, so a table may run on it as on that of one network."""
        one, other = self.conditional.predicts, self.unconditional.predicts
        return one if one == other and self.rule is None else "data"

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Tensor]:
        """The guided denoiser at one time; `base` is the unconditional model."""
        if output == "base":
            base = self.unconditional.toward(t, "x0", to)
            return lambda z: self.process.coordinates(base(z))
        if output == "guidance":
            parts = self.jointly(t, to=to)
            return lambda z: parts(z)["guidance"]
        if output not in ("x0", self.predicts):
            return self.beside(output, t)
        scale = self._scale(t)
        if isinstance(scale, float) and (scale == 1.0 or (scale == 0.0 and self.rule is None)):
            return (self.conditional if scale else self.unconditional).toward(t, output, to)
        both = self._both(t, output, to)
        combine = self.rule.at(t) if self.rule is not None else None

        def guided(z: Tensor) -> Tensor:
            conditional, unconditional = both(z)
            if combine is not None:
                return combine(conditional, unconditional, wide(scale, conditional))
            return torch.lerp(unconditional, conditional, wide(scale, conditional))  # one pass

        return guided

    def jointly(self, t: Time, *, to: Time | None = None) -> Callable[[Tensor], dict[str, Tensor]]:
        both, scale = self._both(t, "x0", to), self._scale(t)
        combine = self.rule.at(t) if self.rule is not None else None

        def of(z: Tensor) -> dict[str, Tensor]:
            conditional, unconditional = both(z)
            if combine is not None:
                shift = combine(conditional, unconditional, wide(scale, conditional)) - unconditional
            else:
                shift = apply(scale, conditional - unconditional)
            base, guidance = (self.process.coordinates(v) for v in (unconditional, shift))
            return {"x0": unconditional + shift, "base": base, "guidance": guidance}

        return of

    def _scale(self, t: Time) -> float | Tensor:
        """The scale at a time, or one a sample; 1 outside the interval."""
        scale = self._at(t)
        if self.interval is None:
            return scale
        low, high = self.interval
        if isinstance(t, Tensor) and t.ndim:
            inside = (low <= t) & (t <= high)
            return torch.where(inside, scale.to(inside.device) if isinstance(scale, Tensor) else scale, 1.0)
        return scale if low <= float(t) <= high else 1.0

    def _at(self, t: Time) -> float | Tensor:
        """The scale at a time wherever it lies."""
        if isinstance(self.scale, Scales):
            return self.scale.values
        if not callable(self.scale):
            return float(self.scale)
        found: Any = self.scale(self.process.log_snr(t))
        return found if isinstance(found, Tensor) and found.ndim else float(found)

    def _both(self, t: Time, output: str, to: Time | None) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Z -> what the conditional and the unconditional denoiser return at one time."""
        one, other = (d.toward(t, output, to) for d in (self.conditional, self.unconditional))
        twice, there = (torch.cat([x, x]) if isinstance(x, Tensor) and x.ndim else x for x in (t, to))
        a, b = cast("tuple[Any, Any]", (self.conditional, self.unconditional))
        ready = a.ready(twice, output, there) if _one_network(a, b) else None

        def both(z: Tensor) -> tuple[Tensor, Tensor]:
            if isinstance(self.scale, Scales) and len(self.scale.values) not in (1, len(z)):
                raise ValueError(f"got {len(self.scale.values)} scales for {len(z)} samples: give one each")
            net = _pair(a.net, b.net, len(z)) if ready is not None else None
            if ready is not None and net is not None:
                call = ready if output == "x0" else ready.raw
                try:
                    out = call(torch.cat([z, z]), net=net)
                    return out[: len(z)], out[len(z) :]
                except torch.OutOfMemoryError:  # then one after the other
                    pass
            return one(z), other(z)

        return both


def _one_network(one: Any, other: Any) -> bool:
    """Whether two denoisers are one network, and differ in the tensors only that a `functools.partial` binds to it."""
    if not (isinstance(one, Wrapped) and isinstance(other, Wrapped)):
        return False
    if any(vars(one)[f.name] != vars(other)[f.name] for f in fields(Wrapped) if f.name != "net"):
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
        each = [_spread(v, batch) for v in (value, b.keywords[name])]
        if len(each[0]) != batch or each[0].shape != each[1].shape:
            return None
        bound_to[name] = torch.cat(each)
    return partial(a.func, **bound_to)


def _spread(value: Tensor, batch: int) -> Tensor:
    """A condition for all, of a batch: a number, or the numbers of a text."""
    words = value.ndim == 2 and len(value) == 1 and not value.is_floating_point()
    return value.expand(batch, *value.shape[1:]) if value.ndim == 0 or words else value


@typed
def guide(
    conditional: Denoises,
    unconditional: Denoises,
    scale: float | Tensor | Callable[[Any], Any],
    *,
    interval: tuple[float, float] | None = None,
    rule: Any = None,
) -> ClassifierFree:
    """Classifier-free guidance: D = D_u + scale (D_c - D_u), with D_u as base.

    Both are evaluated, in one network call of twice the batch where they are one network with labels bound to it
    (`functools.partial`, `Model.denoiser`); where the scale is 1 or 0 only the one that counts is.

    Args:
        conditional, unconditional: two denoisers of one process.
        scale: diffusers' guidance_scale: 1 is the conditional model, 0 the unconditional one. Or (batch,) of them, one
            a sample; or a function of the log-SNR, log(alpha / sigma), to a number.
        interval: (low, high) in the process's time, where there is guidance; elsewhere the conditional model alone is
            evaluated. None is everywhere.
        rule: another way to put the two together where the scale is not 1: `fewstep.Rescale`, `fewstep.APG`.

    A negative prompt is the unconditional denoiser of another condition; autoguidance (Karras et al., Guiding a
    diffusion model with a bad version of itself, 2024, https://arxiv.org/abs/2406.02507) a weaker model of the same
    one.

    References: Ho, Salimans, Classifier-free diffusion guidance, 2022, https://arxiv.org/abs/2207.12598, whose w is
    scale - 1; Kynkaanniemi et al., Applying guidance in a limited interval, 2024, https://arxiv.org/abs/2404.07724.
    """
    both = as_denoiser(conditional), as_denoiser(unconditional)
    processes = [d.process for d in both if d.process is not None]
    if len(processes) < 2 or processes[0] != processes[1]:
        raise ValueError(f"got denoisers made for {processes or 'no process they tell'}: give two of one process")
    check_interval(interval, processes[0])
    given: Any = scale
    if isinstance(scale, Tensor) and scale.ndim:
        if scale.ndim > 1 or not bool(scale.isfinite().all()):
            raise ValueError(f"got scales of shape {tuple(scale.shape)}: give (batch,) finite numbers, or one number")
        given = Scales(scale.detach())
    elif not callable(scale):
        finite("scale", scale)
        given = float(scale)
    if rule is not None and (isinstance(rule, type) or not callable(getattr(rule, "at", None))):
        raise ValueError(f"got rule={rule!r}: give one as fs.Rescale() or fs.APG(), or None")
    idle = {"rule": rule, "interval": interval} if isinstance(given, float) and given == 1 else {}
    for name, value in idle.items():
        if value is not None:
            raise ValueError(f"got {name}={value!r} with scale=1, where it has nothing to do: give another scale")
    conditional, unconditional = both
    return ClassifierFree(
        conditional=conditional, unconditional=unconditional, scale=given, process=processes[0],
        interval=interval, rule=rule,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Differentiated(Typed, Denoiser):
    """A denoiser that also offers its exact derivative along the ODE, by forward differentiation of the network.

    A row that reads the head costs two evaluations more, one of them a Jacobian-vector product; GENIE learns a head
    for it instead (Dockhorn, Vahdat, Kreis 2022, https://arxiv.org/abs/2210.05475).
    """

    denoiser: Denoises
    process: Process

    def __post_init__(self) -> None:
        settle(self, "denoiser")

    @property
    def heads(self) -> tuple[str, ...]:
        """The derivative, and what the denoiser has."""
        return tuple(dict.fromkeys(("derivative", *self.denoiser.heads)))

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Tensor]:
        inner: Any = self.denoiser
        return rate(inner, self.process, t) if output == "derivative" else inner.toward(t, output, to)
