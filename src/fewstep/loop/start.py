"""Where a run starts: a state that was given, looked at, or one that is drawn; and the shape of what is called."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.noise import NoiseSource
from fewstep.process import Process
from fewstep.process.operator import apply, inverse
from fewstep.words import usable_device, warn, whole

__all__ = ["finite_start", "start_state", "takes"]

WIDE = 10.0  # the largest standard deviation of data that no scale is doubted for
SLACK = 2.0  # how far beyond that, and below the noise alone, a start may lie


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
