"""A denoiser whose networks run through `torch.compile`: one graph each, for all times and steps of a run.

Only the networks are compiled, and with them nothing that differs from row to row: their times arrive as tensors, and
what `functools.partial` binds to the samples stays an argument. A graph is thus made once for each batch size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any, cast

import torch

from fewstep.denoiser.network import Counted, Wrapped

__all__ = ["compiled", "with_networks"]


def compiled(denoiser: Any, **options: Any) -> Any:
    """The denoiser with its networks compiled.

    Args:
        denoiser: one of `fewstep.wrap`, or one that keeps such in its fields (`guide`, `retime`, `Counted`, ...).
        options: of `torch.compile`, as mode="max-autotune".

    Raises:
        ValueError: for a denoiser with no wrapped network in it.
    """
    known: list[tuple[Any, Any]] = []  # one network in two denoisers stays one, and is called once for both

    def once(net: Callable[..., Any]) -> Callable[..., Any]:
        if not (same := [made for one, made in known if one == net]):
            same = [torch.compile(net, **{"dynamic": False, **options})]
            known.append((net, same[0]))
        return same[0]

    made = with_networks(denoiser, once)
    if made is denoiser:
        raise ValueError(
            f"got a {type(denoiser).__name__} to compile, in which there is no wrapped network: give one of wrap"
        )
    return made


def with_networks(denoiser: Any, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Any:
    """The denoiser with each wrapped network in it changed; itself where there is none."""
    if isinstance(denoiser, Wrapped):
        return replace(denoiser, net=_network(denoiser.net, change))
    if isinstance(denoiser, Counted):
        inner = with_networks(denoiser.denoiser, change)
        return denoiser if inner is denoiser.denoiser else denoiser.of(inner)
    if isinstance(denoiser, tuple):
        made = tuple(with_networks(part, change) for part in denoiser)
        return made if any(a is not b for a, b in zip(made, denoiser, strict=True)) else denoiser
    if not is_dataclass(denoiser) or isinstance(denoiser, type):
        return denoiser
    parts = {f.name: getattr(denoiser, f.name) for f in fields(denoiser) if f.init}
    made = {name: with_networks(part, change) for name, part in parts.items()}
    changed = {name: part for name, part in made.items() if part is not parts[name]}
    return replace(cast(Any, denoiser), **changed) if changed else denoiser


def _network(net: Callable[..., Any], change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[..., Any]:
    return partial(_network(net.func, change), *net.args, **net.keywords) if isinstance(net, partial) else change(net)
