"""Sentences for the door: a name that is not known, a value of another type than its annotation, a device.

A value is held against the annotation of its option where that names the types below; any other is left to the code
behind it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import operator
import re
import warnings
from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache, partial, wraps
from types import MethodType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from fewstep.words import elsewhere

if TYPE_CHECKING:
    import torch

__all__ = [
    "LIMITS", "VERSION", "Typed", "among", "as_bytes", "bounded", "build", "finite", "inside", "like", "one_of", "pick",
    "sentence", "short", "typed", "usable_device", "warn", "whole", "within", "written"
]  # fmt: skip

VERSION = "0.1.0"
P = ParamSpec("P")
T = TypeVar("T")

FUNCTIONS = {
    "Denoises": "a function (z, t) -> x0_hat, as fs.wrap(net, process) makes of a network",
    "Levels": "a function y -> log p(t | y)",
    "LogProb": "a function (z, t) -> log probabilities (batch,)",
    "Callback": "a function (row, t, state, x0_hat)",
    "After": "a function (row, t, z) -> z",
    "Callable": "a function",
}

# What an annotation may say for its values to be checked, and what to give then.
KINDS = FUNCTIONS | {
    "bool": "True or False",
    "int": "a whole number",
    "float": "a number",
    "str": "a word",
    "None": "None",
    "tuple": "a tuple of numbers",
    "Time": "a number or a tensor",
    "Tensor": "a tensor",
    "Path": "a path",
    "torch.dtype": "a torch.dtype",
    "torch.device": "a torch.device",
    "Process": "a process, as fs.VP()",
    "ScalarProcess": "a scalar process, as fs.VP()",
    "Solver": "a solver of tables, as fs.DDIM()",
    "Parallel": "a Parallel",
    "Mixture": "a Mixture",
    "Wrapped": "a wrapped network, as fs.wrap makes",
    "Descent": "a Descent, as fs.Descent(iterations=100)",
    "Dataset": "a Dataset",
    "Pace": "a Pace, as fs.Pace(precision='float32')",
    "Images": "images, as fewstep.train.read_images makes",
}


# How much of a thing is taken, whoever asks: beyond, it takes more than some seconds or a GiB.
LIMITS = {
    "rows of a table": 4096,
    "terms of a table": 2**17,
    "noises of a table": 8192,
    "network calls of a table": 100_000,
    "network calls of a rule": 1024,
    "frequencies times network calls of a rule": 2**16,
    "pixels on a side": 1024,
    "threads": 1024,
}

FEW = 12  # names of a registry that a sentence lists
LONGEST = 80  # letters of a value in a sentence
WORD = 4096  # letters of an option, the name of a file among them

SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


_SAID: set[str] = set()  # how the words of other tools were read


def pick(registry: Mapping[str, T], name: str, what: str) -> T:
    """registry[name], or a ValueError that suggests the nearest names; see `named`."""
    return registry[named(registry, name, what)]


def named(registry: Mapping[str, Any], name: str, what: str) -> str:
    """The name of the registry that `name` is, or is elsewhere (`fewstep.words.elsewhere`), which is said once."""
    if isinstance(name, Hashable) and name in registry:
        return name
    if isinstance(name, str) and what in elsewhere.OTHERS and (ours := elsewhere.spelt(name, what)) in registry:
        _say(f"{what} {short(name)} is read as {ours!r}")
        return ours
    close = partial(get_close_matches, str(name)[:LONGEST], registry, n=3)
    near = close(cutoff=0.4) or (close(cutoff=0.0) if len(registry) > FEW else [])
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(registry)}"
    raise ValueError(f"got {what} {short(name)}, which is not known: {hint}")


def placed(registry: Container[str], label: str, grid: Any) -> tuple[str, Any]:
    """The solver and the grid of a label that may end in a grid, which stands where "default" was asked for.

    A name of the registry of solvers is that, however it ends.
    """
    solver, own = elsewhere.apart(label)
    if own is None or label in registry:
        return label, grid
    _say(f"solver {short(label)} is read as {solver!r} on the grid {own!r}")
    return solver, own if isinstance(grid, str) and grid == "default" else grid


def _say(sentence: str) -> None:
    if sentence not in _SAID:
        _SAID.add(sentence)
        warn(sentence)


def build(registry: Mapping[str, Callable[..., Any]], name: str, what: str, options: Sequence[tuple[str, Any]]) -> Any:
    """Makes the entry `name` of a registry of dataclasses, its defaults replaced by `options`."""
    made = pick(registry, name, what)()
    fields = {field.name: field for field in dataclasses.fields(made) if field.init}
    for key, _ in options:
        if not fields:
            raise ValueError(f"got an option {key!r} for {what} {name}, which has none: leave it out")
        pick(fields, key, f"option of {name}")
    return dataclasses.replace(made, **dict(options)) if options else made


def written(options: str) -> list[tuple[str, Any]]:
    """The options in a text, written as in a call: numbers and the like, or words with or without quotes."""
    try:
        call = ast.parse(f"_({options})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not all(part.arg for part in call.keywords):
            raise ValueError
        parts = [(str(part.arg), part.value) for part in call.keywords]
        return [(name, v.id if isinstance(v, ast.Name) else ast.literal_eval(v)) for name, v in parts]
    except (SyntaxError, ValueError):
        raise ValueError(f"got the options {options!r}: write NAME=VALUE, as in eta=0.5, noise=1.003") from None


def sentence(error: Exception) -> str:
    """Returns an error as one line: its own words where they were meant for people, its kind before them otherwise."""
    words = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError | ImportError):
        return words or type(error).__name__
    return f"unexpected {type(error).__name__}: {words} (again with --debug for the traceback)"


def among(part: object, **allowed: Iterable[Any]) -> None:
    """Refuses an option of a part that is not among the values allowed."""
    for name, values in allowed.items():
        one_of(name, getattr(part, name), values)


def one_of(label: str, value: Any, allowed: Iterable[Any]) -> None:
    """Refuses a value that is not among those allowed."""
    if value not in allowed:
        *most, last = map(str, allowed)
        raise ValueError(f"got {label}={value!r}: choose {', '.join(most)} or {last}")


def within(part: object, **intervals: str) -> None:
    """Refuses an option of a part that is not in its interval: std="[0, inf)"."""
    for name, interval in intervals.items():
        inside(name, getattr(part, name), interval)


def inside(label: str, value: float, interval: str) -> None:
    """Refuses a number that is not in an interval, as "(0, 1]"."""
    low, high = map(float, interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    if not (above and (value <= high if interval[-1] == "]" else value < high)):
        least = f"{'of at least' if interval[0] == '[' else 'above'} {low:g}"
        where = least if high == math.inf else f"in {interval}"
        raise ValueError(f"got {label}={value}: give a {'finite ' * interval.endswith('inf)')}number {where}")


def whole(label: str, value: Any) -> int:
    """The value as an int of at least 1, or a ValueError."""
    number = _index(value)
    if number is None or number < 1:
        raise ValueError(f"got {label}={short(value)}: give a whole number of at least 1")
    return number


def short(value: Any) -> str:
    """A value as a sentence has it, whatever a file holds: at most some eighty letters."""
    said = repr(value[:LONGEST] if isinstance(value, str) else value)
    return said if len(said) <= LONGEST else f"{said[:LONGEST]}..."


def bounded(what: str, count: int) -> int:
    """The count, or a ValueError where it is above its limit."""
    if count > LIMITS[what]:
        raise ValueError(f"got {count} {what}: at most {LIMITS[what]} are taken; give fewer")
    return count


def finite(label: str, *values: Any) -> None:
    """Refuses numbers that are infinite or none."""
    for value in values:
        if not math.isfinite(float(value)):
            raise ValueError(f"got {label}={float(value)}: give a finite number")


def as_bytes(size: str | int) -> int:
    """Bytes of a number, or of a text as 4GiB, 500 MB, 2g; a ValueError for anything else."""
    found = re.fullmatch(r"([0-9]+\.?[0-9]*)\s*([kmgt]?i?)b?", str(size).strip().lower())
    count = int(float(found[1]) * SIZES[found[2]]) if found and found[2] in SIZES else 0
    if count < 1:
        raise ValueError(f"got memory={size!r}: give a size as 4GiB or 500MB")
    return count


def typed(function: Callable[P, T]) -> Callable[P, T]:
    """The function, with a ValueError for an argument that is not of its annotation."""
    parameters = inspect.signature(function).parameters
    kinds = _kinds({name: parameter.annotation for name, parameter in parameters.items()})

    @wraps(function)
    def checked(*args: P.args, **options: P.kwargs) -> T:
        _check(kinds, {**dict(zip(parameters, args, strict=False)), **options})
        return function(*args, **options)

    return checked


def like(other: Callable[P, Any]) -> Callable[[Callable[..., T]], Callable[P, T]]:
    """A decorator: the function takes what another one takes, and says so in its signature."""

    def signed(function: Callable[..., T]) -> Callable[P, T]:
        result = inspect.signature(function).return_annotation
        function.__dict__["__signature__"] = inspect.signature(other).replace(return_annotation=result)
        return function

    return signed


def warn(sentence: str) -> None:
    """Warns of what the line outside of this package did that came here, whichever way it came."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "fewstep":
        frame, level = frame.f_back, level + 1
    warnings.warn(sentence, stacklevel=level + 1)


class Typed:
    """A dataclass whose options are held against the annotations of its fields before it looks at them."""

    def __new__(cls, *args: Any, **options: Any) -> Self:
        order = getattr(cls, "__dataclass_fields__", {})
        _check(_kinds_of(cls), {**dict(zip(order, args, strict=False)), **options})
        return super().__new__(cls)


def usable_device(device: torch.device | str) -> torch.device:
    """The device, or a ValueError where it cannot hold a tensor here."""
    import torch

    if device == "cpu":
        return torch.device("cpu")
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # each back end has its own way to say no
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"got the device {str(device)!r}, which does not work here ({reason}): choose another, such as cpu"
        ) from None
    return torch.device(device)


def _kinds(annotations: Mapping[str, Any]) -> dict[str, list[str]]:
    """The kinds of value that each name may have, where all of them are known."""
    texts = {k: v if isinstance(v, str) else inspect.formatannotation(v) for k, v in annotations.items()}
    split = {name: text.split(" | ") for name, text in texts.items()}
    return {name: kinds for name, kinds in split.items() if all(kind.partition("[")[0] in KINDS for kind in kinds)}


@cache
def _kinds_of(cls: type) -> dict[str, list[str]]:
    return _kinds({name: field.type for name, field in getattr(cls, "__dataclass_fields__", {}).items()})


def _check(kinds: Mapping[str, Iterable[str]], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, str) and len(value) > WORD:
            raise ValueError(f"got a text of {len(value)} letters as {name}: give at most {WORD}")
        if name in kinds and not any(_is(value, kind) for kind in kinds[name]):
            plain = value is None or isinstance(value, bool | int | float | str)
            label = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
            got = f"{name}={short(value)}" if plain else f"{label} as {name}"
            raise ValueError(f"got {got}: give {' or '.join(map(_wanted, kinds[name]))}")


def _wanted(kind: str) -> str:
    name, _, entry = kind.partition("[")
    if name == "tuple" and entry.partition(",")[0] in FUNCTIONS:
        return "a tuple of functions"
    return "a tuple of whole numbers" if kind.startswith("tuple[int") else KINDS[name]


def _is(value: Any, kind: str) -> bool:
    """Whether a value is of a kind; numbers of numpy and torch are numbers, True and False are not."""
    name, _, entry = kind.partition("[")
    if value is None or isinstance(value, bool | str):
        return name == ("None" if value is None else type(value).__name__)
    if name == "int":
        return (number := _index(value)) is not None and abs(number) <= 2**64
    if name == "float":
        huge = isinstance(value, int) and abs(value) >= 2**63  # more than a tensor takes
        return hasattr(value, "__float__") and not getattr(value, "ndim", 0) and not huge
    if name == "Time":
        return _is(value, "float") or _is(value, "Tensor")
    if name == "tuple":  # or another sequence, all its entries as the first
        sized = hasattr(value, "__len__") and not isinstance(value, Mapping)
        return sized and getattr(value, "ndim", 1) > 0 and all(_is(v, entry.split(",")[0].rstrip("]")) for v in value)
    if name in FUNCTIONS:
        return callable(value) and not isinstance(value, type) and not (name == "Denoises" and _is_network(value))
    return any(name in (c.__name__, f"{c.__module__}.{c.__qualname__}") for c in type(value).__mro__)


def _is_network(value: Any) -> bool:
    """Whether a function is a network itself, which wants wrapping: a module that tells no process, or its forward."""
    while isinstance(value, partial):
        value = value.func
    if isinstance(value, MethodType) and value.__name__ in ("forward", "__call__"):
        value = value.__self__
    module = any(f"{c.__module__}.{c.__name__}" == "torch.nn.modules.module.Module" for c in type(value).__mro__)
    return module and not {"at", "process"} & {*dir(value)}


def _index(value: Any) -> int | None:
    """The value as an int, where it is one."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
