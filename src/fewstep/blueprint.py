"""A network as a config describes it, held against the header of its weights before either takes memory.

A config may ask for terabytes, for layers without end, or for another network than that of the weights beside it. So
its values are held against the annotations of its class; the network is built on torch's meta device, whose tensors
have shapes and no numbers, with no more parameters than the file has; and names, shapes and dtypes are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

__all__ = ["check_arguments", "check_call", "check_fits", "describing", "is_whole", "unfit"]

FLOATS = ("F64", "F32", "F16", "BF16")
LARGEST = 2**28  # numbers of what a network makes for itself, beside its weights
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", NoneType: "null"}


def check_arguments(cls: type, config: Mapping[str, Any], where: str | Path, *, null: bool = False) -> dict[str, Any]:
    """The arguments of a class that a config in a file holds; a ValueError for one of another type than its annotation.

    With `null`, null stands for a value left out, and for False, where the class has no meaning for it.
    """
    hints, given = get_type_hints(cls.__init__), dict(config)
    for name, value in config.items():
        if name not in hints or _is(value, hints[name]):
            continue
        if not (null and value is None):
            kinds = get_args(hints[name]) if get_origin(hints[name]) in (Union, UnionType) else (hints[name],)
            allowed = " or ".join(WORDS.get(kind, "a list") for kind in kinds)
            raise unfit(f"{where} gives {name} as {value!r:.80}; {cls.__name__} takes {allowed}")
        del given[name]
        if hints[name] is bool:
            given[name] = False
    return given


def check_call(
    build: Callable[[], nn.Module], size: tuple[int, ...], where: str | Path, *, labelled: bool, returns: int = 0
) -> None:
    """Refuses a network that cannot be called as net(x, t, class_labels=y) on images (1, C, H, W), by shapes alone.

    It is said with the file of its config and with what the network came upon. It returns as many channels as it
    takes, or `returns`.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            classes = torch.zeros(1, dtype=torch.long) if labelled else None
            made: Any = build().eval()(torch.zeros(size), torch.zeros(1), class_labels=classes)
            if tuple(made.sample.shape) != (1, returns or size[1], *size[2:]):
                raise ValueError(f"it returns {tuple(made.sample.shape)}")
    except Exception as error:  # whatever a network of odd options comes upon
        reason = " ".join(str(error).split())[:300]
        raise unfit(f"{where} describes a network that cannot be called on {size} ({reason})") from error


def check_fits(
    make: Callable[[], nn.Module],
    found: Mapping[str, tuple[str, tuple[int, ...]]],
    where: str | Path,
    *,
    renamed: Callable[[nn.Module, MutableMapping[str, Any]], Mapping[str, Any]] = lambda net, found: found,
) -> None:
    """Refuses a file of weights that are not those of a network, by names, shapes and dtypes alone.

    `found` is what `fewstep.files.tensor_shapes` says of it, which `renamed` brings to the names the network knows.
    """
    with _at_most(2 * len(found) + 100), torch.device("meta"):
        net = make()
    wanted = {name: tuple(t.shape) for name, t in net.state_dict().items()}
    known = renamed(net, dict(found))
    shapes = {name: shape for name, (_, shape) in known.items()}
    if wanted != shapes:
        name = next(n for n in sorted({*wanted, *shapes}) if wanted.get(n) != shapes.get(n))
        both = f"{shapes.get(name, 'missing')}, config.json asks for {wanted.get(name, 'none')}"
        raise unfit(f"{where} has {name} as {both}; weights and config belong together")
    for name, (dtype, _) in known.items():
        if dtype not in FLOATS:
            raise unfit(f"{where} has {name} in {dtype}; weights are {', '.join(FLOATS)}")
    if (own := sum(b.numel() for name, b in net.named_buffers() if name not in wanted)) > LARGEST:
        raise ValueError(
            f"config.json asks for {own} numbers beside the weights in {where}; at most {LARGEST} are made; give a "
            "smaller sample_size."
        )


def unfit(what: str) -> ValueError:
    """The error of a folder that is not as it was written."""
    return ValueError(f"{what}; fetch or write the folder again.")


@contextmanager
def describing(name: str, where: str | Path) -> Iterator[None]:
    """Makes whatever a class of networks comes upon in a config one sentence."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise unfit(f"{where} does not describe a {name} ({reason}); it holds that class's arguments") from error


def is_whole(value: Any, most: float = math.inf) -> bool:
    """Whether a value out of a JSON file is a whole number from 1 to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


@contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Stops the building of a network, in this thread, at so many parameters."""
    here, seen = get_ident(), 0

    def counted(*_: Any) -> None:
        nonlocal seen
        seen += get_ident() == here
        if seen > count:
            raise ValueError("it asks for more parameters than there are weights")

    handle = register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


def _is(value: Any, kind: Any) -> bool:
    """Whether a value out of a JSON file is of an annotation; of one that says nothing, all are."""
    if get_origin(kind) in (Union, UnionType):
        return any(_is(value, k) for k in get_args(kind))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind in (bool, int, str, NoneType):
        return type(value) is kind
    if get_origin(kind) in (tuple, list):
        entries = [k for k in get_args(kind) if k is not Ellipsis]
        return isinstance(value, list | tuple) and all(any(_is(v, k) for k in entries) for v in value)
    return True
