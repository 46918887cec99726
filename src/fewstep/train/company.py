"""Processes that train together, as `torchrun --nproc-per-node 2 -m fewstep train ...` starts them; alone, one of one.

Each takes its part of every batch; all step by the mean gradient, and agree on the clock, on stopping and on failing.
The first alone shows, records and writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["in_turn", "joined", "mean", "same", "shared", "together"]

PATIENCE = timedelta(days=7)  # of those who wait while the first records a teacher's runs
T = TypeVar("T")


def together() -> tuple[int, int]:
    """This process's number among those that train together, and how many they are."""
    d = torch.distributed
    return (d.get_rank(), d.get_world_size()) if d.is_available() and d.is_initialized() else (0, 1)


@contextmanager
def joined() -> Iterator[None]:
    """Joins the others that torchrun started, for the block; a group that is there already is taken as it is."""
    d, world = torch.distributed, os.environ.get("WORLD_SIZE", "1")
    if world in ("", "0", "1") or not d.is_available() or d.is_initialized():
        yield
    else:
        d.init_process_group("gloo", timeout=PATIENCE)
        try:
            yield
        finally:
            d.destroy_process_group()


@contextmanager
def in_turn() -> Iterator[None]:
    """The first process before the others, who find what it has written."""
    rank, world = together()
    if rank:
        torch.distributed.barrier()
    yield
    if world > 1 and not rank:
        torch.distributed.barrier()


def same(value: T) -> T:
    """What the first process has."""
    if together()[1] == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box)
    return box[0]


def shared(*numbers: float) -> list[float]:
    """The mean of each over the processes; one that is not finite makes the mean so."""
    world = together()[1]
    if world == 1:
        return list(numbers)
    all_of = torch.tensor(numbers, dtype=torch.float64)
    torch.distributed.all_reduce(all_of)
    return (all_of / world).tolist()


def mean(gradients: list[Tensor | None]) -> list[Tensor | None]:
    """The mean of gradients over the processes, in place."""
    if (world := together()[1]) > 1:
        for g in gradients:
            if g is not None:
                torch.distributed.all_reduce(g)
                g /= world
    return gradients
