"""Some samples of a batch: what is bound to each sample (a label, an image) goes along with it.

Executors that call a network on part of a batch, or on many times of a sample at once, take the denoiser through
`of_samples`. What it follows: dataclasses that keep denoisers or networks, or tuples of them, in their fields,
`functools.partial`, whose tensors of the batch's length are taken to be bound to the samples, and any object with
`select(index)`. What a plain function has closed over stays hidden.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from torch import Tensor

from fewstep.denoiser.network import Counted

__all__ = ["of_samples"]


def of_samples(denoiser: Any, index: Tensor, batch: int) -> Callable[..., Any]:
    """The denoiser for the samples `index` (n,) of a batch, in that order; repeats are allowed."""
    if _selects(denoiser):
        return denoiser.select(index)
    if isinstance(denoiser, tuple):
        each: Any = tuple(of_samples(part, index, batch) for part in denoiser)
        return each if any(a is not b for a, b in zip(each, denoiser, strict=True)) else cast(Any, denoiser)
    if isinstance(denoiser, Counted):
        return denoiser.of(of_samples(denoiser.denoiser, index, batch))
    if isinstance(denoiser, partial):
        pick = lambda v: v[index.to(v.device)] if isinstance(v, Tensor) and v.ndim and len(v) == batch else v  # noqa: E731
        inner = of_samples(denoiser.func, index, batch)
        return partial(inner, *map(pick, denoiser.args), **{k: pick(v) for k, v in denoiser.keywords.items()})
    if not dataclasses.is_dataclass(denoiser):
        return cast(Any, denoiser)
    parts = {f.name: getattr(denoiser, f.name) for f in dataclasses.fields(denoiser) if f.init}
    followed = {k: v for k, v in parts.items() if callable(v) or isinstance(v, tuple) or _selects(v)}
    chosen = {name: of_samples(part, index, batch) for name, part in followed.items()}
    changed: Any = {name: part for name, part in chosen.items() if part is not parts[name]}
    return cast(Any, dataclasses.replace(cast(Any, denoiser), **changed) if changed else denoiser)


def _selects(part: Any) -> bool:
    return hasattr(part, "select") and not isinstance(part, Tensor)
