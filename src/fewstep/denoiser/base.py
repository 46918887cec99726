r"""What a denoiser is, and what one knows of those that it wraps.

A `Denoiser` takes (z, t) to x0_hat. Its `at(t, output)` gives

| output          | what it is                                                                            |
|-----------------|---------------------------------------------------------------------------------------|
| `x0`            | x0_hat in data space                                                                  |
| `predicts`      | the raw output of a network, where a table may be written in terms of it; or `data`   |
| one of `heads`  | what some solvers read beside x0, in the process's coordinates                        |

A denoiser with a `destination`, as a student of few steps is, reads a second time s = `to` beside t: where the row of
the table leads (`Row.to`). It returns g(z, t, s), the average of D over the way there along the ODE, with which
z_s = R_s R_t^-1 z + (M_s - R_s R_t^-1 M_t) g is the exact end. Asked without `to` it is the plain denoiser, s = t.
`toward` gives `to` to those alone that read it.

What it wraps are the denoisers that it keeps, by themselves or in a tuple, in its attributes: `parts`, in order. All
else follows from them: `layers` and `leaves` of the tree, whose weights they are (`told`), whether it was made for a
process (`same_process`), whether one differentiates inside, the same for some samples of a batch (`of_samples`) or with
other networks (`mapped`).

**Anything callable is a denoiser at the door**, where `as_denoiser` makes it one. It may say `process`, `predicts` and
`heads` (with an `at` of its own), `needs_grad`, `destination` (and then takes `to=`), `weights`, `within`, `guidance`
as a `Denoiser` does. An object of a class of the user's own, a dataclass or not, wraps what it keeps in its attributes,
whatever they are called, and `functools.partial` what is bound to it: denoisers, objects that tell a process, and
wrappers of such, by themselves or in tuples and lists. So a wrapper that tells no process was made for that of what is
inside, and one around a single denoiser passes on its heads. Functions and methods show nothing of what they use.
Wrappers may share what they wrap: each is looked at once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property, partial, wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor

from fewstep.denoiser.inside import OPAQUE, Layer, kept, mapped, of_samples
from fewstep.denoiser.rate import rate
from fewstep.denoiser.watch import called, kept as owned
from fewstep.process.base import Process, Time

__all__ = [
    "Around", "Counted", "Denoiser", "Denoises", "Split", "all_told", "as_denoiser", "fingerprint", "layers", "leaves",
    "mapped", "of_samples", "parts", "range_of", "same_process", "told"
]  # fmt: skip

T = TypeVar("T")
Denoises = Callable[[Tensor, Time], Any]  # what `as_denoiser` takes
_ANSWERS: ContextVar[dict[Any, Any] | None] = ContextVar("_ANSWERS", default=None)


def _once_each(ask: Callable[[Any], T]) -> Callable[[Any], T]:
    """A question that a denoiser hands on to its parts, put once to each; one that leads back has nothing to add."""

    @wraps(ask)
    def answer(denoiser: Any) -> T:
        known = _ANSWERS.get()
        if known is None:
            token = _ANSWERS.set({})
            try:
                return answer(denoiser)
            finally:
                _ANSWERS.reset(token)
        key = ask, id(_itself(denoiser))
        if key not in known:
            known[key] = denoiser, ()
            known[key] = denoiser, ask(denoiser)
        return known[key][1]

    return answer


class Denoiser(Layer, ABC):
    """(z, t) -> x0_hat; see the module's docstring."""

    predicts: str = "data"
    together: ClassVar[tuple[str, ...]] = ()  # the heads that `jointly` makes with x0
    guidance: float | None = None  # the scale of guidance in it; 2 where it has none to tell

    @abstractmethod
    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Any]:
        """The denoiser at a time, or one a sample: z -> an output. What it is no output of goes to `beside`."""

    def __call__(self, z: Tensor, t: Time, to: Time | None = None) -> Any:
        """x0_hat in data space for states z (batch, *state) at a time or (batch,) times."""
        return self.toward(t, "x0", to)(z)

    def toward(self, t: Time, output: str, to: Time | None) -> Callable[[Tensor], Any]:
        """`at`, told where the call leads to if that is known and read."""
        if to is None or not self.destination:
            return self.at(t, output)
        asked = _itself(self)
        taken = signature(asked.at if hasattr(asked, "at") else asked).parameters.values()
        if not any(p.name == "to" or p.kind == p.VAR_KEYWORD for p in taken):
            raise ValueError(
                f"got a {type(asked).__name__} around a denoiser that reads where a row leads, which takes no `to`: "
                "add to=None, and pass it on"
            )
        return self.at(t, output, to=to)

    if TYPE_CHECKING:
        process: Any
    else:

        def __getattr__(self, name: str) -> Any:
            """The process that a wrapper was made for, where it has none of its own: that of what is inside."""
            if name == "process":
                return next(_processes(self), None)
            raise AttributeError(f"a {type(self).__name__} has no attribute {name!r}")

    @property
    @_once_each
    def needs_grad(self) -> bool:
        """Whether it, or a part, differentiates inside."""
        return any(part.needs_grad for part in parts(self))

    @property
    @_once_each
    def destination(self) -> bool:
        """Whether it, or a part, reads the time that a row leads to."""
        return any(part.destination for part in parts(self))

    @property
    @_once_each
    def heads(self) -> tuple[str, ...]:
        """What `at` gives beside x0; of a wrapper its derivative, where all that it wraps have theirs."""
        inside = parts(self)
        return ("derivative",) if inside and all("derivative" in part.heads for part in inside) else ()

    def head(self, name: str, t: Time, to: Time | None = None) -> Callable[[Tensor], Tensor] | None:
        """A head at a time; None where it is not among `heads`."""
        return self.toward(t, name, to) if name in self.heads else None

    def beside(self, output: str, t: Time) -> Callable[[Tensor], Tensor]:
        """What every wrapper has: the derivative of what it returns itself; any other output is refused."""
        if output == "derivative" and output in self.heads and self.process is not None:
            return rate(self, self.process, t)
        raise ValueError(f"got a table in terms of {output!r} for a denoiser without raw outputs: wrap a network")

    def jointly(self, t: Time, *, to: Time | None = None) -> Callable[[Tensor], dict[str, Tensor]]:
        """Z -> x0 in data space and the heads of `together`, of one evaluation of each network."""
        raise NotImplementedError(t, to)


class Around(Denoiser):
    """A wrapper that returns what its `denoiser` does, in all its outputs."""

    denoiser: Denoiser

    @property
    def predicts(self) -> str:  # type: ignore[override]
        return self.denoiser.predicts

    @property
    def heads(self) -> tuple[str, ...]:
        return self.denoiser.heads

    @property
    def together(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.denoiser.together


class Split(Denoiser):
    """A denoiser that is the sum of two heads, `base` and `guidance`."""

    @property
    def heads(self) -> tuple[str, ...]:
        """Both, and the derivative where all parts have theirs."""
        return ("base", "guidance", *super().heads)

    def split(self, output: str, base: Callable, both: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable:
        """Z -> x0, or a part in the process's coordinates, where `both` gives D and what guidance adds to it."""
        if output == "base":
            return lambda z: self.process.coordinates(base(z))

        def made(z: Tensor) -> Tensor:
            d, shift = both(z)
            return d + shift if output == "x0" else self.process.coordinates(shift)

        return made


@dataclass(frozen=True, eq=False)
class Plain(Denoiser):
    """A denoiser made of any callable; see the module's docstring."""

    call: Any
    outer: tuple[Any, ...] = field(default=(), init=False)  # objects that it was found in, which may know each other

    @property
    def needs_grad(self) -> bool:
        own = getattr(self.call, "needs_grad", None)
        return super().needs_grad if own is None else bool(own)

    @property
    def destination(self) -> bool:
        own = getattr(self.call, "destination", None)
        return own if isinstance(own, bool) else super().destination

    @property
    def guidance(self) -> float | None:  # type: ignore[override]
        return getattr(self.call, "guidance", None)

    @cached_property
    def predicts(self) -> str:  # type: ignore[override]
        """Raw outputs are those of an `at`: its own, or of what it is around."""
        if not hasattr(self.call, "at"):
            return "data"
        own = getattr(self.call, "predicts", self._inside and self._inside.predicts)
        return own if isinstance(own, str) else "data"

    @cached_property
    @_once_each
    def heads(self) -> tuple[str, ...]:
        own = getattr(self.call, "heads", ()) if hasattr(self.call, "at") else ()
        return (*own, *(self._inside.heads if self._inside is not None else super().heads))

    @cached_property
    def _inside(self) -> Denoiser | None:
        """What it is around: the one of its parts that lies in none of the others."""
        within = [{id(_itself(layer)) for layer in layers(part)} for part in parts(self)]
        lies = [sum(id(_itself(part)) in each for each in within) for part in parts(self)]
        return parts(self)[lies.index(1)] if lies.count(1) == 1 else None

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Any]:
        """By the callable's own `at`, or else called with copies."""
        own, there = hasattr(self.call, "at"), {} if to is None else {"to": to}
        offered = ("x0", self.predicts, *getattr(self.call, "heads", ()))
        if own and (output in offered or (output != "derivative" and not hasattr(self.call, "predicts"))):
            return self.call.at(t, output, **there)
        if output == "x0":
            return lambda z: owned(called(self.call, z.clone(), _own(t), **{k: _own(v) for k, v in there.items()}))
        if output != "derivative" and self._inside is not None and output in self.heads:
            return self._inside.toward(t, output, to)
        return self.beside(output, t)


def _own(t: Time) -> Time:
    return t.clone() if isinstance(t, Tensor) else t


def as_denoiser(f: Denoises) -> Denoiser:
    """A denoiser as it is, and any other callable as one."""
    return f if isinstance(f, Denoiser) else Plain(f)


def parts(denoiser: Denoiser) -> tuple[Denoiser, ...]:
    """The denoisers that one wraps, in order."""
    if type(denoiser) is Plain:
        if isinstance(denoiser.call, OPAQUE):
            return ()
        outer = (*denoiser.outer, denoiser.call)
        found = tuple(as_denoiser(v) for v in kept(denoiser.call) if _denoises(v, outer))
        for part in found:
            vars(part).update({"outer": outer} if type(part) is Plain else {})
        return found
    if not type(denoiser).__module__.startswith("fewstep."):  # another's may keep any object, and others later
        return tuple(as_denoiser(v) for v in kept(denoiser) if _denoises(v, (denoiser,)))
    if (known := vars(denoiser).get("_parts")) is None:
        known = tuple(v for v in kept(denoiser) if isinstance(v, Denoiser))
        vars(denoiser)["_parts"] = known  # the library's denoisers do not change
    return known


def layers(denoiser: Any, last: Callable[[Denoiser], object] = lambda _: False) -> Iterator[Denoiser]:
    """A denoiser and all that it wraps, from the outside in, each once; of those that are `last` nothing inside."""
    seen, waiting = set(), [as_denoiser(denoiser)]
    while waiting:
        layer = waiting.pop()
        if id(_itself(layer)) not in seen:
            seen.add(id(_itself(layer)))
            yield layer
            waiting += () if last(layer) else reversed(parts(layer))


def leaves(denoiser: Any) -> Iterator[Denoiser]:
    """The denoisers at the bottom, which wrap none."""
    return (layer for layer in layers(denoiser) if not parts(layer))


def told(denoiser: Any, name: str, kind: type[T]) -> T | None:
    """What a denoiser, or else what it wraps, says under a name."""
    return next(all_told(denoiser, name, kind), None)


def all_told(denoiser: Any, name: str, kind: type[T]) -> Iterator[T]:
    """The same of each that says something, from the outside in."""
    found = (getattr(_itself(layer), name, None) for layer in layers(denoiser))
    return (value for value in found if isinstance(value, kind))


def range_of(denoiser: Any) -> float:
    """The largest size of data's entries, as the outermost layer says that tells it; inf where none does.

    What is inside a layer with a process of its own may be in other units, and is not asked.
    """
    for layer in layers(denoiser):
        within = getattr(_itself(layer), "within", None)
        if isinstance(within, int | float) and not isinstance(within, bool):
            return float(within)
        if type(layer) is Plain and isinstance(getattr(layer.call, "process", None), Process):
            break
    return math.inf


def fingerprint(denoiser: Any) -> str | None:
    """The SHA-256 of the weights behind a denoiser, where it or what it wraps tells."""
    return told(denoiser, "weights", str)


def same_process(denoiser: Any, process: Process) -> None:
    """Refuses a denoiser that was made for another process: by its own word, or by that of all that it wraps."""
    theirs = next((p for p in _processes(as_denoiser(denoiser)) if p != process), process)
    if theirs != process:
        raise ValueError(f"got a denoiser made for {theirs} and a run on {process}: give both the same process")


def _processes(denoiser: Denoiser) -> Iterator[Process]:
    """The process that a denoiser tells of itself, or else those that its parts tell."""
    return (own for layer in layers(denoiser, _process) if (own := _process(layer)) is not None)


def _process(layer: Denoiser) -> Process | None:
    """The process that a layer tells, not by way of its parts."""
    given = _itself(layer)
    tells = given is not layer or "process" in vars(layer) or hasattr(type(layer), "process")
    own = getattr(given, "process", None) if tells else None
    return own if isinstance(own, Process) else None


class Counted(Around):
    """A denoiser that counts: `calls`, and `evaluations` (samples that went through the network).

    `on_call()` is called after each network call. The same denoiser for some of its samples counts here too.
    """

    def __init__(self, denoiser: Denoises, *, on_call: Callable[[], object] | None = None) -> None:
        self.denoiser, self.on_call, self._tally = as_denoiser(denoiser), on_call, [0, 0]

    @property
    def calls(self) -> int:
        """Network calls."""
        return self._tally[0]

    @property
    def evaluations(self) -> int:
        """Samples that went through the network."""
        return self._tally[1]

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Any]:
        """The denoiser at one time, counted; a head is read beside a call and counted with that."""
        call = self.denoiser.toward(t, output, to)
        return call if output in self.heads else partial(self.count, call)

    def jointly(self, t: Time, *, to: Time | None = None) -> Callable[[Tensor], dict[str, Tensor]]:
        return partial(self.count, self.denoiser.jointly(t, to=to))

    def count(self, call: Callable[..., Any], z: Tensor, *into: Tensor) -> Any:
        """What a call returns, counted."""
        self._tally[0] += 1
        self._tally[1] += len(z)
        out = call(z, *into)
        if self.on_call is not None:
            self.on_call()
        return out


def _denoises(value: Any, outer: tuple[Any, ...]) -> bool:
    """Whether what somebody's object keeps is a denoiser, or wraps one."""
    seen, waiting = set(map(id, outer)), [value]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, OPAQUE) or not callable(one):
            continue
        if isinstance(one, Denoiser) or isinstance(getattr(one, "process", None), Process):
            return True
        seen.add(id(one))
        waiting += kept(one)
    return False


def _itself(layer: Denoiser) -> Any:
    """What a user gave: a denoiser, or the callable that one was made of."""
    return layer.call if type(layer) is Plain else layer
