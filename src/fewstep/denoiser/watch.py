r"""The first calls of a network in a run, watched: what networks as people have them do to tensors that are not theirs.

| it ...                                             | so ...                                                     |
|----------------------------------------------------|------------------------------------------------------------|
| writes into its input                              | it is handed copies                                        |
| returns its input, or memory that others hold      | what it returned is copied                                 |
| draws or counts, left in training mode             | it is refused                                              |

The first call of each network in a run is handed a copy of the state, which tells whether it writes. What comes back
belongs to the run where nobody else holds it, by the counts of references. Memory that is held elsewhere may be a
buffer that the next call writes over (a CUDA graph's, a binding's) or something constant: it is copied, and on a
processor compared with itself after the next calls. A network that has done none of this in `FRESH` calls, or returned
held memory unchanged in `HELD`, is trusted for the rest of the run, and called as it is. Outside a run every call is
watched, and inside `torch.compile` none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from operator import le
from types import CellType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["NetworkError", "called", "kept", "trusted", "watching"]

FRESH, HELD = 2, 5  # calls
PROBE = 2**12  # numbers of a tensor that are compared
COUNTED = ("running_mean", "running_var", "num_batches_tracked", "_u", "_v")  # buffers that training alone changes


class NetworkError(ValueError):
    """What a network does or returned cannot be used; the loop adds the row and the time."""


@dataclass(eq=False)
class _Seen:
    """What is known of a network in a run."""

    net: Any  # kept alive, as it is known by its address
    calls: int = 0
    writes: bool | None = None  # into its input; None where that was not looked at
    reuses: bool = False  # memory that it returned before
    held: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # returned, and what was in there

    @property
    def trusted(self) -> bool:
        return not self.writes and not self.reuses and self.calls >= (HELD if self.held else FRESH)


_RUN: ContextVar[dict[int, _Seen] | None] = ContextVar("fewstep_run", default=None)


class _Own(dict[int, _Seen]):
    """Every function is the library's own."""

    def get(self, *_: Any) -> _Seen:
        return _Seen(None, calls=FRESH)


@contextmanager
def watching(*, own: bool = False) -> Iterator[None]:
    """A run, in which networks are watched in their first calls only, or never; one within another is part of it.

    Args:
        own: the functions it calls are the library's own, which keep what they are given as it is.
    """
    if _RUN.get() is not None:
        yield
        return
    token = _RUN.set(_Own() if own else {})
    try:
        yield
    finally:
        _RUN.reset(token)


def trusted(net: Any) -> bool:
    """Whether a network needs no watching any more."""
    if torch.compiler.is_compiling():
        return True
    run = _RUN.get()
    if run is None:
        return torch.jit.is_tracing()  # type: ignore[attr-defined] - it is there
    return (seen := run.get(id(_inner(net)))) is not None and seen.trusted


def called(net: Callable[..., Any], x: Tensor, *args: Any, own: bool = False, **options: Any) -> Any:
    """What a network returns for a state x, which it may not change; `own`: x is a copy that nobody else reads."""
    seen = _seen(net)
    training = _training(net, x) if not seen.calls else None
    given = x if own or seen.writes is False else _copy(x)
    version = -1 if given is x else given._version
    out = net(given, *args, **options)
    if training is not None:
        training.check()
    if given is not x and seen.writes is None:
        seen.writes = given._version != version or not _same(given, x)
    seen.calls += 1
    seen.reuses = seen.reuses or not all(_same(_probe(part), was) for part, was in seen.held)
    return out


def kept(net: Any, out: Any) -> Any:
    """What a network returned, as the run's own: a copy where others hold it. Hand it over, keep no name for it."""
    if isinstance(out, Mapping):
        rest = dict(out)
        del out
        return {name: kept(net, rest.pop(name)) for name in list(rest)}
    if not isinstance(out, Tensor) or _alone(out):
        return out
    seen = _seen(net)
    if out.device.type != "cpu":
        seen.reuses = True  # to ask would be to wait for it
    elif not seen.trusted:
        seen.held.append((out, _probe(out).clone()))
    return out.clone()


def _seen(net: Any) -> _Seen:
    net, run = _inner(net), _RUN.get()
    return _Seen(net) if run is None else run.setdefault(id(net), _Seen(net))


def _inner(net: Any) -> Any:
    while isinstance(net, partial):
        net = net.func
    return net


def _copy(x: Tensor) -> Tensor:
    """A copy that counts how often it is written into, which tensors of inference mode do not."""
    if not torch.is_inference_mode_enabled():
        return x.clone()
    with torch.inference_mode(False), torch.no_grad():
        return x.clone()


def _probe(x: Tensor) -> Tensor:
    """Some numbers of a tensor, or the few that it has, in a view of it."""
    x = x.detach()
    return x if x.numel() <= PROBE else x.reshape(-1)[:: x.numel() // PROBE]


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, as far as a probe of them says, on a processor; else nobody waits."""
    if a.device.type != "cpu":
        return True
    try:
        one, other = (_probe(v).numpy() for v in (a, b))
        return np.array_equal(one, other) or np.array_equal(one, other, equal_nan=True)
    except (RuntimeError, TypeError):  # inside a transform of torch.func; a dtype that numpy has not
        return True


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


def _training(net: Any, x: Tensor) -> _Training | None:
    modules = [m for m in _modules(net, 3) if m.training]
    return _Training(modules, x.device) if modules else None


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
