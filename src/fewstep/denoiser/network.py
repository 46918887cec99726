r"""The network's door: any (x, t) -> prediction becomes a denoiser (z, t) -> x0_hat.

The state and the time stay in the precision of the run; here, and only here, the state is cast to the network's dtype
and the time is put into the network's own convention:

| time          | the network is called with                                     |
|---------------|----------------------------------------------------------------|
| `t`           | the process's time                                             |
| `index`       | N t - 1: index 0..N-1 of an N-step table, fractional in between |
| `share`       | t / t_max                                                      |
| `thousandths` | 1000 t / t_max                                                 |
| `sigma`       | sigma / alpha                                                  |
| `log-sigma/4` | log(sigma / alpha) / 4 (EDM's c_noise)                         |
| a function    | what it returns for a (batch,) float64 tensor of times         |
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewstep.denoiser.base import Counted, Denoiser
from fewstep.denoiser.watch import NetworkError, called, kept
from fewstep.process import Flow
from fewstep.process.base import Process, Time, like, once, to_tensor
from fewstep.process.operator import Coefficient, apply
from fewstep.process.predict import EDM_LIKE, PREDICTIONS, conversion, preconditioning, view
from fewstep.tableau import MadeFor
from fewstep.words import named, typed

__all__ = ["TIMES", "NetworkError", "Wrapped", "wrap", "writes_into"]


TIMES: dict[str, Callable[[Process, Tensor], Tensor]] = {
    "t": lambda process, t: t,
    "index": lambda process, t: getattr(process, "count", 1000) * t - 1,
    "index-int": lambda process, t: (getattr(process, "count", 1000) * t - 1).round().clamp(min=0.0),
    "share": lambda process, t: t / process.t_max,
    "thousandths": lambda process, t: 1000 * t / process.t_max,
    "sigma": lambda process, t: torch.exp(-process.log_snr(t)),
    "log-sigma/4": lambda process, t: -process.log_snr(t) / 4,
}

# What torch says of floats where whole numbers look something up.
LOOKED_UP = re.compile(r"(indices.*Long|tensors used as indices must be|expected.*Long.*indices)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Wrapped(Denoiser):
    """A denoiser made of a network; see `wrap`. `at(t)` is the same with every number of that time ready."""

    net: Callable[..., Any]
    process: Process
    predicts: str = field()
    time: str | Callable[[Tensor], Tensor]
    dtype: torch.dtype | None
    sigma_data: float
    needs_grad: bool = False  # type: ignore[override]
    weights: str | None = None  # SHA-256 of the network's weights, where they come from a file
    within: float = math.inf  # the largest size of the data's entries, where it is known
    destination: bool = False  # type: ignore[override]
    error: float = 0.0  # of the network's output, as `fewstep stats` measures it; 0 where it is not known
    made_for: MadeFor | None = None  # of a student, the tables that it brings
    heads: ClassVar[tuple[str, ...]] = ()  # type: ignore[override]

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Tensor]:
        """The denoiser at one time: what the loop makes before a run, so that a row computes no coefficient.

        `output` is "x0", or the network's own prediction for its raw output (tables rewritten `in_terms_of` it).
        """
        ready = self.ready(t, output, to)
        return ready if output == "x0" else ready.raw

    def ready(self, t: Time, output: str = "x0", to: Time | None = None) -> AtTime:
        """What `at` returns, or has as its `raw`."""
        t, to = (float(x) if isinstance(x, Tensor) and x.ndim == 0 else x for x in (t, to))
        if output not in ("x0", self.predicts):
            raise ValueError(f"got a table in terms of {output!r} for a network that predicts {self.predicts!r}")
        if self.predicts in EDM_LIKE:
            c_in, p, q = preconditioning(self.predicts, self.process, t, self.sigma_data)
        else:
            c_in = view(self.predicts, self.process, t)
            p, q = conversion(self.predicts, self.process, t) if output == "x0" else (0.0, 1.0)
        return AtTime(self, c_in, p, q, self._label(t), self._there(t if to is None else to))

    def _label(self, t: Time) -> float | Tensor:
        """The time as the network is told it."""
        if isinstance(self.time, str):
            named = partial(TIMES[self.time], self.process)
            return once(self.process, ("label", self.time), lambda t: like(named(to_tensor(t)), t), t)
        label = torch.as_tensor(self.time(t if isinstance(t, Tensor) else torch.tensor([t], dtype=torch.float64)))
        return label if isinstance(t, Tensor) else float(label)

    def _there(self, to: Time) -> float | Tensor | None:
        """The destination as the network is told it; where that is infinite, as at sigma = 0, it is told t_min."""
        if not self.destination:
            return None
        label = self._label(to)
        if isinstance(label, Tensor):
            return torch.where(label.isfinite(), label, self._label(self.process.t_min))
        return label if math.isfinite(label) else self._label(self.process.t_min)


@dataclass(frozen=True, eq=False)
class AtTime:
    """x0 = p z + q F(c_in z, label): a wrapped network at one time (or one a sample)."""

    denoiser: Wrapped
    c_in: Coefficient
    p: Coefficient
    q: Coefficient
    label: float | Tensor
    there: float | Tensor | None = None  # the destination, where the network reads one

    def __call__(self, z: Tensor, into: Tensor | None = None, net: Callable[..., Any] | None = None) -> Tensor:
        """x0_hat in data space; written into a tensor where one is given, see `writes_into`; of another network."""
        if into is None:
            return kept(self.convert(z, self._output(z, net)))
        output = self._output(z)
        if output.shape != into.shape or output.requires_grad:
            return self.convert(z, output)
        torch.mul(output, self.q, out=into)
        return into.add_(z, alpha=self.p) if self.p != 0.0 else into

    def raw(self, z: Tensor, net: Callable[..., Any] | None = None) -> Tensor:
        """The network's output in the state's dtype, shape checked; or another network's."""
        return kept(self._output(z, net))

    def convert(self, z: Tensor, output: Tensor) -> Tensor:
        """x0_hat in data space of the network's output at z."""
        x0 = output if isinstance(self.q, float) and self.q == 1.0 else apply(self.q, output)
        if not isinstance(self.p, float):
            x0 = apply(self.p, z) + x0
        elif self.p != 0.0:
            x0 = x0.add(z, alpha=self.p)
        return self.denoiser.process.from_coordinates(x0)

    def _output(self, z: Tensor, net: Callable[..., Any] | None = None) -> Tensor:
        d = self.denoiser
        net = d.net if net is None else net
        dtype = d.dtype or _dtype(net) or z.dtype
        scaled = d.predicts in EDM_LIKE or not (isinstance(self.c_in, float) and self.c_in == 1.0)
        x = (apply(self.c_in, z) if scaled else z).to(dtype)
        x = x.clone() if x is z else x  # a copy, which the network may write into or keep
        told = torch.int64 if d.time == "index-int" else torch.float64 if dtype == torch.float64 else torch.float32
        times = [_told(v, z, told) for v in (self.label, self.there) if v is not None]
        try:
            out = called(net, x, *times)
        except (RuntimeError, IndexError) as error:
            if LOOKED_UP.search(str(error)) and d.time != "index-int":
                raise NetworkError(
                    f"the network looks its time up in a table by whole numbers and gets time={d.time!r}: wrap it with "
                    f"time='index-int' ({error})"
                ) from error
            if isinstance(error, torch.OutOfMemoryError) or not (misfit := _misfit(net, len(z))):
                raise
            raise NetworkError(f"{misfit}, and fails: {error}") from error
        out = out[0] if isinstance(out, tuple) else getattr(out, "sample", out)
        if isinstance(out, Mapping):
            out = out["sample"] if "sample" in out else next(iter(out.values())) if len(out) == 1 else out
        if not isinstance(out, Tensor):
            keys = f" of {', '.join(map(repr, out))}" if isinstance(out, Mapping) else ""
            raise NetworkError(f"the network returned {type(out).__name__}{keys}: it must return a tensor")
        shapes = self._shapes(z, x)
        if tuple(out.shape) not in shapes:
            misfit = _misfit(net, len(z))
            raise NetworkError(
                f"the network returned shape {tuple(out.shape)} for a state of shape {tuple(z.shape)}: it must return "
                f"{' or '.join(map(str, shapes))}{'; ' + misfit if misfit else ''}"
            )
        out = as_state(out, z)
        if d.predicts == "data":
            return d.process.coordinates(out)
        if d.predicts == "score" and out.shape != z.shape:  # CLD's networks may return the velocity's part alone
            out = torch.stack([torch.zeros_like(out), out], 1)
        return out

    def _shapes(self, z: Tensor, x: Tensor) -> list[tuple[int, ...]]:
        """What the network may return for a state, of which it sees x."""
        d = self.denoiser
        data_shape = (z.shape[0], *d.process.data_shape(tuple(z.shape[1:])))
        by = {"data": [data_shape], "score": [tuple(z.shape), data_shape], "noise": [tuple(z.shape)]}
        return by.get(d.predicts, [tuple(x.shape)])


def _told(label: float | Tensor, z: Tensor, dtype: torch.dtype) -> Tensor:
    """A time for each sample, the network's own."""
    if isinstance(label, Tensor):
        return label.to(z.device, dtype, copy=True)
    return torch.full((z.shape[0],), label, dtype=dtype, device=z.device)


@typed
def wrap(
    net: Callable[..., Any],
    process: Process,
    predicts: str = "noise",
    *,
    time: str | Callable[[Tensor], Tensor] | None = None,
    dtype: torch.dtype | None = None,
    sigma_data: float | None = None,
    within: float = math.inf,
    needs_grad: bool = False,
    destination: bool = False,
) -> Wrapped:
    r"""Makes a denoiser out of a network.

    The network is called as `net(x, t)` with x (batch, *state) in its dtype and t (batch,) in float32 (float64 for a
    float64 network; int64 with time="index-int", for one that looks its time up in a table). It returns a tensor, a
    tuple that starts with one, a dict of one or with "sample", or an object with `.sample`. Bind conditions
    yourself: `partial(net, label=y)`.

    Args:
        net: the network.
        process: the process it was trained on.
        predicts: "noise", "data", "v", "flow", "score" (`fewstep.denoiser.PREDICTIONS`), or "edm": the raw F of EDM's
            preconditioning D = c_skip x + c_out F(c_in x, log(sigma)/4) with x = z/alpha, sigma = sigma/alpha (Karras
            et al. 2022, eq. 7 and table 1), "consistency", the same with x0 = x at t_min, or "residual", the same with
            a c_in that is finite at the pinned end of a bridge. On CLD "noise" and "score"
            are read through their velocity part, and a score network may return that part alone; with "v" and "flow"
            the network sees the state's `statistic` (see `fewstep.process.predict`) and data shapes.
        time: the network's time convention (`TIMES` or a function); None is "t", and "log-sigma/4" for "edm".
        dtype: the network's dtype; None asks its parameters.
        sigma_data: EDM's standard deviation of the data; used with predicts="edm" only, where None is 0.5 with a
            warning.
        within: the largest size of the data's entries, where it is known: 1 for pictures in [-1, 1]. The default
            solver's samples end within it (`fewstep.loop.ends`).
        needs_grad: the network differentiates inside; the loop then keeps autograd on.
        destination: the network is called as `net(x, t, s)`, s (batch,) the time that the table's row leads to, in the
            same convention; its prediction is the average over the way there (see `fewstep.denoiser.base`), and at
            s = t the plain one. Where s has no finite value in the convention, as at sigma = 0, it is that of t_min.

    Raises:
        ValueError: for an unknown prediction or time.
    """
    if predicts == "velocity" and isinstance(process, Flow):
        predicts = "flow"
    predicts = named({**PREDICTIONS, **dict.fromkeys(EDM_LIKE)}, predicts, "predicts")
    time = time or ("log-sigma/4" if predicts in EDM_LIKE else "t")
    if isinstance(time, str):
        time = named(TIMES, time, "time")
        if time.startswith("index") and process.t_max > 1:
            raise ValueError(f"got time={time!r} for {process}, whose time is no share of a table: use another")
    if not within > 0:
        raise ValueError(f"got within={within}: give the largest size of the data's entries, above 0")
    if sigma_data is not None and not 0 < sigma_data < float("inf"):
        raise ValueError(f"got sigma_data={sigma_data}: give the standard deviation of the data, above 0")
    if isinstance(net, Wrapped):
        raise ValueError(f"got a {type(net).__name__} to wrap, which is a denoiser already: give it to sample as it is")
    if predicts not in EDM_LIKE:
        conversion(predicts, process, (process.t_max + process.t_min) / 2)
    elif process.kind != "scalar":
        raise ValueError(
            f"got predicts={predicts!r} for {type(process).__name__}: EDM's preconditioning is for scalar processes"
        )
    if predicts in EDM_LIKE and sigma_data is None:
        warnings.warn(
            f"got predicts={predicts!r} without sigma_data: it takes 0.5, that of EDM's images in [-1, 1]; give the "
            "standard deviation that the network was trained with, sigma_data=0.5 if it is this one",
            stacklevel=3,
        )
    return Wrapped(
        net=net, process=process, predicts=predicts, time=time, dtype=dtype, within=float(within),
        sigma_data=0.5 if sigma_data is None else float(sigma_data), needs_grad=needs_grad, destination=destination,
    )  # fmt: skip


def writes_into(call: Any) -> bool:
    """Whether a call takes a tensor to write x0_hat into: a network's at one time, counted or not, in numbers."""
    if isinstance(call, partial) and getattr(call.func, "__func__", None) is Counted.count:
        call = call.args[0]
    if type(call) is not AtTime or not (isinstance(call.p, float) and isinstance(call.q, float)):
        return False
    own = type(call.denoiser.process)
    return own.coordinates is Process.coordinates and own.from_coordinates is Process.from_coordinates


def as_state(out: Tensor, z: Tensor) -> Tensor:
    """An output in the dtype of the state it was made of, where that loses nothing but digits."""
    if out.dtype == z.dtype:
        return out
    if not out.is_floating_point():
        what = "complex numbers" if out.is_complex() else "no numbers with a point"
        raise NetworkError(f"the network returned {out.dtype}, {what}: it must return a real floating-point tensor")
    return out.to(z.dtype)


def _misfit(net: Any, batch: int) -> str | None:
    """What is bound to a network for another number of samples, in a sentence."""
    while isinstance(net, partial):
        named = {**{f"argument {k}": v for k, v in enumerate(net.args)}, **net.keywords}
        for name, value in named.items():
            if getattr(value, "ndim", 0) and len(value) != batch:
                return f"the network has {name} of shape {tuple(value.shape)} bound to it for a batch of {batch}"
        net = net.func
    return None


def _dtype(net: Callable[..., Any]) -> torch.dtype | None:
    net = getattr(net, "func", net)  # functools.partial
    if isinstance(net, nn.Module):
        return next((p.dtype for p in net.parameters() if p.is_floating_point()), None)
    return None
