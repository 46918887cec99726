"""A denoiser whose networks run through `torch.compile`: one graph each, for all times and steps of a run.

Only the networks are compiled, and with them nothing that differs from row to row: their times arrive as tensors, and
what `functools.partial` binds to the samples stays an argument. A graph is thus made once for each batch size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from fewstep.denoiser.base import Plain, mapped
from fewstep.denoiser.network import Wrapped

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
        given = denoiser.call if isinstance(denoiser, Plain) else denoiser
        raise ValueError(f"got a {type(given).__name__} to compile, with no wrapped network in it: give one of wrap")
    return made


def with_networks(denoiser: Any, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Any:
    """The denoiser with each wrapped network in it changed; itself where there is none."""
    return mapped(denoiser, lambda d: replace(d, net=_network(d.net, change)) if isinstance(d, Wrapped) else d)


def _network(net: Callable[..., Any], change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[..., Any]:
    return partial(_network(net.func, change), *net.args, **net.keywords) if isinstance(net, partial) else change(net)
