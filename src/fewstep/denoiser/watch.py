r"""Networks as people have them, and what they do to tensors that are not theirs.

| it ...                                             | so ...                                                     |
|----------------------------------------------------|------------------------------------------------------------|
| writes into its input, or keeps it                 | it is handed copies                                        |
| returns memory that others hold                    | what it returned is copied                                 |
| draws or counts, left in training mode             | it is refused at its first call in a run                   |

What comes back belongs to the run where nobody else holds it, by the counts of references: other memory may be a buffer
that a later call writes over (a CUDA graph's, a binding's, a cache). Inside `torch.compile` nothing is done.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from operator import le
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["NetworkError", "called", "kept", "watching"]

COUNTED = ("running_mean", "running_var", "num_batches_tracked", "_u", "_v")  # buffers that training alone changes


class NetworkError(ValueError):
    """What a network does or returned cannot be used; the loop adds the row and the time."""


# Networks called in this run, by address, and kept alive so that it stays theirs.
_SEEN: ContextVar[dict[int, Any] | None] = ContextVar("_SEEN", default=None)


@contextmanager
def watching() -> Iterator[None]:
    """A run, in which networks are looked at in their first call only; one within another is part of it."""
    if _SEEN.get() is not None:
        yield
        return
    token = _SEEN.set({})
    try:
        yield
    finally:
        _SEEN.reset(token)


def called(net: Callable[..., Any], x: Tensor, *args: Any, **options: Any) -> Any:
    """What a network returns for a state x, a copy that nobody else reads. Hand it over, keep no name for it."""
    if _unseen():
        return net(x, *args, **options)
    inner, seen = _inner(net), _SEEN.get()
    if seen is not None and id(inner) in seen:
        return net(x, *args, **options)
    modules = [m for m in _modules(net, 3) if m.training]
    training = _Training(modules, x.device) if modules else None
    out = net(x, *args, **options)
    if training is not None:
        training.check()
    if seen is not None:
        seen[id(inner)] = inner
    return out


def kept(out: Any) -> Any:
    """What a network returned, as the run's own: a copy where others hold it. Hand it over, keep no name for it."""
    if not isinstance(out, Tensor) and isinstance(out, Mapping):
        rest = dict(out)
        del out
        return {name: kept(rest.pop(name)) for name in list(rest)}
    return out if not isinstance(out, Tensor) or _unseen() or _alone(out) else out.clone()


def _unseen() -> bool:
    return torch.compiler.is_compiling() or (_SEEN.get() is None and torch.jit.is_tracing())  # type: ignore[attr-defined]


def _inner(net: Any) -> Any:
    """The network that conditions are bound to; a function that a network is bound to is one for each of them."""
    while isinstance(net, partial) and not any(map(callable, (*net.args, *net.keywords.values()))):
        net = net.func
    return net


def _counts(out: Tensor) -> tuple[int, int, int]:
    """How often a tensor is referred to: by Python, by torch, and its memory."""
    use = getattr(out, "_use_count", int)()
    return sys.getrefcount(out), use, torch._C._storage_Use_Count(out.untyped_storage()._cdata)


def _alone(out: Tensor) -> bool:
    """Whether nobody but the caller of `kept` refers to a tensor or its memory, which torch has made."""
    try:
        return all(map(le, _counts(out), _ONE)) and out.untyped_storage().resizable()
    except (RuntimeError, NotImplementedError, AttributeError):  # inside a transform of torch.func; another torch
        return False


class _Training:
    """Modules in training mode, and what they would draw from or count in."""

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        self.counters = [b for m in modules for name, b in m.named_buffers(recurse=False) if name.endswith(COUNTED)]
        self.before = [b.clone() for b in self.counters]
        self.cuda = device if device.type == "cuda" and not torch.cuda.is_current_stream_capturing() else None
        self.random = self._random()

    def check(self) -> None:
        """Refuses what they did, after putting their counters back."""
        counted = [k for k, b in enumerate(self.counters) if not torch.equal(b, self.before[k])]
        drew = any(not torch.equal(a, b) for a, b in zip(self.random, self._random(), strict=True))
        with torch.no_grad():
            for k in counted:
                self.counters[k].copy_(self.before[k])
        if counted or drew:
            what = "its normalisation layers count what they see" if counted else "its dropout draws at random"
            raise NetworkError(
                f"the network is in training mode, in which {what}: sampling wants it as it was trained to be used; "
                "call its eval() first"
            )

    def _random(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        return states if self.cuda is None else [*states, torch.cuda.get_rng_state(self.cuda)]


def _modules(part: Any, depth: int) -> Iterator[nn.Module]:
    """The modules that a function may call: itself, those bound to it, closed over, named in it or in its fields."""
    if isinstance(part, nn.Module):
        yield from part.modules()
    elif depth and isinstance(part, partial):
        for each in (part.func, *part.args, *part.keywords.values()):
            yield from _modules(each, depth)
    elif depth and isinstance(part, MethodType):
        yield from _modules(part.__self__, depth)
    elif depth and isinstance(part, FunctionType):
        cells = [c.cell_contents for c in part.__closure__ or () if c != CellType()]
        named = [part.__globals__.get(name) for name in part.__code__.co_names]
        for each in (*cells, *named):
            yield from _modules(each, depth - 1)
    elif depth and not isinstance(part, type) and callable(part):
        for each in getattr(part, "__dict__", {}).values():
            yield from _modules(each, depth - 1)


def _of_one() -> tuple[int, int, int]:
    """The counts that `_alone` sees of a tensor that has just been returned."""
    counts: list[tuple[int, int, int]] = []

    def kept(out: Tensor) -> None:
        alone(out)

    def alone(out: Tensor) -> None:
        counts.append(_counts(out))

    kept(torch.zeros(1))
    return counts[0]


_ONE = _of_one()
