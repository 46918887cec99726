"""The ends of a run: a start that was given, looked at, or one that is drawn; and whether samples leave their range.

Samples of the default are set into the range that their data is known to have, on scalar processes. The range is convex
and holds all data, so that none moves away from any data. It is one reduction at the end of a run.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.denoiser.base import fingerprint, range_of
from fewstep.noise import NoiseSource
from fewstep.process import Process, ScalarProcess
from fewstep.process.operator import apply, inverse
from fewstep.solver import Default
from fewstep.words import usable_device, warn, whole

__all__ = ["Beyond", "beyond", "finite_start", "in_range", "limit_of", "start_state", "takes"]

WIDE = 10.0  # the largest standard deviation of data that no scale is doubted for
SLACK = 2.0  # how far beyond that, and below the noise alone, a start may lie
FACTOR = 1.5  # times the range, from which on it is said
FAR, MANY = 2.0, 1e-3  # a warning is due from so many times the range on, or for such a share of entries
CLEAN = 3.0  # the log-SNR from which on a state is as good as data
RARE = 5.0  # deviations of the noise that is left, beyond which one entry in two million lies

_SAID: set[str | None] = set()  # the networks that were warned of


def start_state(
    process: Process,
    t: float,
    shape: tuple[int, ...] | None,
    x: Tensor | None,
    source: NoiseSource,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> Tensor:
    """The start that was given, or one drawn for a shape."""
    if (shape is None) == (x is None):
        raise ValueError(
            "got both a shape and a start x: give one" if x is not None else "got no shape: give shape or x"
        )
    if x is not None:
        _check_dtype(x.dtype)
        if not x.ndim or not x.numel():
            raise ValueError(f"got a start x of shape {tuple(x.shape)}, in which there is no sample: give at least one")
        _check_scale(process, t, x)
        return x
    state_shape, device = _state_shape(process, () if shape is None else shape), usable_device(device or "cpu")
    _check_dtype(dtype)
    return process.prior(source.initial(state_shape, dtype, device), t)


def finite_start(x: Any) -> None:
    """Refuses a start that is not finite; what is no start at all is refused behind it."""
    if not isinstance(x, Tensor) or not x.ndim or not x.numel():
        return
    if not bool((good := x.reshape(len(x), -1).isfinite().all(1)).all()):
        where = int((~good).nonzero()[0])
        raise ValueError(f"got a start x that is not finite, first in sample {where}: give numbers, or leave it out")


def takes(label: str, function: Callable[..., Any] | None, count: int) -> None:
    """Refuses a hook that cannot be called with so many arguments."""
    if function is None:
        return
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # one that does not tell
        return
    try:
        signature.bind(*range(count))
    except TypeError as error:
        wanted = {3: "(row, t, z)", 4: "(row, t, state, x0_hat)"}[count]
        raise ValueError(f"got {label} with the arguments {signature} ({error}): it is called with {wanted}") from None


def _check_scale(process: Process, t: float, x: Tensor) -> None:
    """Warns of a start whose size is not that of data up to `WIDE` under the noise of its time.

    The size is the root mean square of R^-1 z, which is that of n standard normals where there are no data; what n
    normals reach but once in a million times is allowed for (Wilson and Hilferty's cube).
    """
    if process.kind == "diagonal" or process.log_snr(t) == math.inf:
        return
    n, white = x.numel(), apply(inverse(process.R(t)), x.detach())
    size = float(white.norm().double()) / math.sqrt(n)
    low, high = (max(0.0, 1 - 2 / (9 * n) + sign * 5 * math.sqrt(2 / (9 * n))) ** 1.5 for sign in (-1, 1))
    most = math.sqrt(1 + WIDE**2 * math.exp(2 * process.log_snr(t)))
    if math.isfinite(size) and not low / SLACK <= size <= most * high * SLACK:
        sigma = float(x.detach().norm().double()) / math.sqrt(n) / size if size else 1.0
        warn(
            f"got a start x of size {size * sigma:.3g} (its root mean square) at t = {t:g}, where {process} has noise "
            f"of size {sigma:.3g}: is it scaled as `process.prior` and `process.diffuse` do?"
        )


def _state_shape(process: Process, shape: tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(shape, tuple | list):
        raise ValueError(f"got a {type(shape).__name__} as shape: give a tuple of whole numbers, as tuple(shape)")
    if not shape:
        raise ValueError("got shape=(): give (batch, *data shape)")
    shape = tuple(whole("shape entry", n) for n in shape)
    return (shape[0], *process.state_shape(shape[1:]))


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"got a state in {dtype}: states are float32 or float64 (a bfloat16 state loses 0.3 over 1000 steps); "
            "run the network in another dtype through wrap(dtype=...)"
        )


class Beyond(NamedTuple):
    """How many samples, with how many entries, are larger than `limit`, and the largest size."""

    limit: float
    samples: int
    entries: int
    largest: float


def beyond(data: Tensor, within: float) -> Beyond | None:
    """What of samples (batch, *shape) is larger than `FACTOR` times a range; None where nothing is."""
    limit = FACTOR * within
    if limit == math.inf or not data.numel():
        return None
    low, high = data.aminmax()
    largest = max(-float(low), float(high))
    if not largest > limit:
        return None
    out = (data.abs() > limit).flatten(1)
    return Beyond(limit, int(out.any(1).sum()), int(out.sum()), largest)


def in_range(denoiser: Any, process: Process, z: Tensor, t: float, *, solver: Any, final: str) -> Tensor:
    """The end z of a run at time t, warned of, once a network, where many or far entries leave the range it tells.

    What the default solver made comes back within alpha range + 5 sigma where process has these, and as data within the
    range; any other as it is.
    """
    within, bounded = range_of(denoiser), isinstance(solver, Default)
    if within == math.inf or (final != "denoise" and float(process.log_snr(t)) < CLEAN):
        return z
    data = z if final == "denoise" else process.to_data(z)
    found = beyond(data.detach(), within)
    if (
        found
        and (found.largest > FAR * within or found.entries > MANY * data.numel())
        and (network := fingerprint(denoiser)) not in _SAID
    ):
        _SAID.add(network)
        warn(
            f"got {found.samples} of {len(data)} samples that leave the data's range of {within:g}, by {found.entries} "
            f"of {data.numel()} entries beyond {found.limit:g} and up to {found.largest:.3g}"
            f"{' (they are set into it)' if bounded else ''}: bound predictions with fs.Thresholded, give more calls, "
            "or measure the network with `fewstep stats`"
        )
    if not bounded:
        return z
    limit = within if final == "denoise" else limit_of(process, t, within, solver)
    return z if limit == math.inf else z.clamp(-limit, limit)


def limit_of(process: Process, t: float, within: float, solver: Any) -> float:
    """The largest size that entries of a state have at the end t of a run of the default; inf for other solvers."""
    if not isinstance(solver, Default) or not isinstance(process, ScalarProcess) or float(process.log_snr(t)) < CLEAN:
        return math.inf
    return float(process.alpha(t)) * within + RARE * float(process.sigma(t))
