"""What callable objects keep of one another, and the same objects with something inside changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, cast

from torch import Tensor, nn

__all__ = ["OPAQUE", "Layer", "kept", "mapped", "of_samples"]

OPAQUE = (FunctionType, MethodType, BuiltinFunctionType, type, Tensor)  # of these nothing inside is looked at


class Layer:
    """What a `fewstep.denoiser.Denoiser` is here: of a module's attributes these alone are looked at."""


def mapped(part: Any, change: Callable[[Any], Any], known: dict[int, tuple[Any, Any]] | None = None) -> Any:
    """A denoiser, or anything in it, with every part for which `change` has another; itself where it has none.

    From the outside in: what was changed is taken as it is, and what was not is looked through: attributes of
    denoisers, of dataclasses and of other callable objects, what is bound by `functools.partial`, tuples and lists.
    What is shared stays shared (`known`: what each has become).
    """
    known = {} if known is None else known
    if id(part) not in known:
        known[id(part)] = part, part  # an object that leads back to this one finds itself unchanged
        made = change(part)
        if made is part:
            made = _rebuilt(part, partial(mapped, change=change, known=known))
        known[id(part)] = part, made
    return known[id(part)][1]


def _rebuilt(part: Any, inside: Callable[[Any], Any]) -> Any:
    """The same of what `inside` makes of everything in it; itself where that is the same."""
    if type(part) in (tuple, list):
        return _same(part, type(part)(map(inside, part)))
    if isinstance(part, partial):
        func, args = inside(part.func), inside(part.args)
        rest = _same(part.keywords, {name: inside(v) for name, v in part.keywords.items()})
        same = func is part.func and args is part.args and rest is part.keywords
        return part if same else partial(func, *args, **rest)
    found = _attributes(part)
    follow = {n: v for n, v in found.items() if callable(v) or type(v) in (tuple, list) or _selects(v)}
    changed = {name: made for name, v in follow.items() if (made := inside(v)) is not v}
    if not changed:
        return part
    given = {f.name for f in fields(part) if f.init} & changed.keys() if is_dataclass(part) else set()
    twin = replace(cast(Any, part), **{name: changed[name] for name in given}) if given else copy.copy(part)
    for name in changed.keys() - given:
        if getattr(twin, name) is found[name]:  # else `__init__` has made another of what was changed
            object.__setattr__(twin, name, changed[name])
    getattr(twin, "__dict__", {}).pop("_parts", None)
    return twin


def of_samples(denoiser: Any, index: Tensor, batch: int) -> Any:
    """The denoiser for the samples `index` (n,) of a batch, in that order; repeats are allowed.

    What goes along with a sample is what `functools.partial` has bound to a network, one a sample: tensors and arrays
    of the batch's length, lists of as many texts, and such in tuples, lists and mappings; and any object with
    `select(index)`.
    """

    def pick(v: Any) -> Any:
        if isinstance(v, Mapping):
            return _same(v, _filled(v, {name: pick(value) for name, value in v.items()}))
        if type(v) in (tuple, list):
            texts = len(v) == batch and all(isinstance(each, str) for each in v)
            return type(v)(v[i] for i in index.tolist()) if texts else _same(v, type(v)(map(pick, v)))
        if callable(v) or not (getattr(v, "ndim", 0) and len(v) == batch):
            return v
        return v[index.to(v.device) if isinstance(v, Tensor) else index.numpy(force=True)]

    def change(part: Any) -> Any:
        if _selects(part):
            return part.select(index)
        if not isinstance(part, partial):
            return part
        inside = partial(mapped, change=change, known=known)
        rest = {name: inside(pick(v)) for name, v in part.keywords.items()}
        return partial(inside(part.func), *[inside(pick(v)) for v in part.args], **rest)

    known: dict[int, tuple[Any, Any]] = {}
    return mapped(denoiser, change, known)


def _filled(before: Mapping[Any, Any], values: dict[Any, Any]) -> Mapping[Any, Any]:
    """A mapping of the same type with these values, where that can be written; a dict otherwise."""
    if type(before) is not dict and isinstance(before, MutableMapping):
        with suppress(Exception):  # some freeze themselves
            twin = copy.copy(before)
            twin.update(values)
            return twin
    return values


def _same(before: Any, after: Any) -> Any:
    """A collection as it was where nothing in it is another."""
    pairs = zip(*(v.values() if isinstance(v, Mapping) else v for v in (before, after)), strict=True)
    return before if all(a is b for a, b in pairs) else after


def _attributes(part: Any) -> dict[str, Any]:
    """What an object keeps: of ours what it was made with, of a module the denoisers alone."""
    if isinstance(part, OPAQUE) or not (callable(part) or is_dataclass(part)):
        return {}
    named = fields(part) if is_dataclass(part) else ()
    if named and type(part).__module__.startswith("fewstep."):
        return {f.name: getattr(part, f.name) for f in named if f.init}
    slots = [name for cls in type(part).__mro__ for name in _slots(cls)]
    found = {name: getattr(part, name) for name in (*(f.name for f in named), *slots) if hasattr(part, name)}
    found |= getattr(part, "__dict__", {})
    return {name: v for name, v in found.items() if isinstance(v, Layer)} if isinstance(part, nn.Module) else found


def _slots(cls: type) -> list[str]:
    """The names of a class's slots, private ones as they are kept."""
    own = cls.__dict__.get("__slots__", ())
    names = [own] if isinstance(own, str) else own
    return [f"_{cls.__name__.lstrip('_')}{name}" if name[:2] == "__" != name[-2:] else name for name in names]


def kept(part: Any) -> Iterator[Any]:
    """What an object keeps, by itself or in tuples and lists; what is bound by a partial."""
    whole = (part.func, *part.args, *part.keywords.values()) if isinstance(part, partial) else ()
    for value in (*whole, *_attributes(part).values()):
        yield from value if isinstance(value, tuple | list) else (value,)


def _selects(part: Any) -> bool:
    return hasattr(part, "select") and not isinstance(part, Tensor)
