r"""Standard normals as a function of what they are for: named streams, sample after sample, the same on every machine.

    key   = BLAKE2b(seed, stream, k)                  256 bits: state and increment of the generator
    words = PCG64-DXSM(key), from word n * sample on  64 bits each, n for a sample: half of its numbers, rounded up
    z_1 + i z_2 = sqrt(-2 log u) exp(i theta)         a pair a word, in float32

A generator that can jump ahead costs one jump a batch, however many samples it holds, and its words and all arithmetic
here are numpy's, whose bits depend neither on the batch and the thread nor on the width of vectors (AVX2 and AVX-512
agree). Other devices get the same numbers: the host makes them while the device works.

u in (0, 1] is a multiple of 2^-31 and theta one of 2 pi / 2^32, each from one half of the words: no normal is beyond
6.56 in size. Pairs are made in blocks of `BLOCK`: of 2 m numbers of a block, the first m are z_1.

References: O'Neill, "PCG", Harvey Mudd College HMC-CS-2014-0905, 2014; PCG64DXSM in numpy's documentation,
https://numpy.org/doc/stable/reference/random/bit_generators/pcg64dxsm.html. Box, Muller, "A note on the generation of
random normal deviates", Annals of Mathematical Statistics 29, 1958.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import PCG64DXSM
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["STREAM", "Noise", "as_tensor", "blocks", "check_state", "room"]

STREAM = 2  # the version of the numbers: one for all of them, raised when any bit changes; records hold it
BLOCK = 2**14  # pairs made at once, which stay in the cache; a part of the stream's definition

_BELOW, _U, _THETA = np.int32(-(2**31)), np.float32(-(2.0**-31)), np.float32(math.tau / 2**32)
_CPU = torch.device("cpu")
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class _Key(ISeedSequence):
    """What the generator starts from, which it asks for as it would ask a seed sequence."""

    def __init__(self, *parts: object) -> None:
        self.words = np.frombuffer(hashlib.blake2b(repr(parts).encode(), digest_size=32).digest(), np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        """All words of the key, of which the generator wants exactly these."""
        assert (n_words, dtype) == (4, np.uint64)
        return self.words


def blocks(
    noise: Noise, stream: str, k: int, like: NDArray[Any], scale: float = 1.0, *, fill: bool = False
) -> Iterator[tuple[tuple[slice, slice], NDArray[Any]]]:
    """Normals number k of a stream times `scale`, block after block of an array as `room` makes one: where, and which.

    They lie where the next ones will, or with `fill` in their place in that array.
    """
    (batch, width), single = like.shape, like.dtype == np.float32
    if noise.first + batch > 2**32:
        _word("last sample, first + batch - 1,", noise.first + batch - 1)
    bits = PCG64DXSM(_Key(noise.seed, stream, k))  # pyright: ignore[reportArgumentType] - its stubs know no other keys
    if noise.first:
        bits.advance(noise.first * width // 2)
    height = max(2 * BLOCK // max(width, 1), 1)
    spare = None if fill and single else np.empty(min(2 * BLOCK, batch * width), np.float32)
    for i in range(0, batch, height):
        for j in range(0, width, 2 * BLOCK):
            where = slice(i, i + height), slice(j, j + 2 * BLOCK)
            place = like[where]
            xi = place if spare is None else spare[: place.size].reshape(place.shape)
            _box_muller(bits, xi.reshape(len(place), 2, -1), scale if single else 1.0)
            if not single:
                xi = np.multiply(xi, scale, out=place if fill else None, dtype=like.dtype)
            yield where, xi


def _box_muller(bits: PCG64DXSM, out: NDArray[np.float32], scale: float) -> None:
    """Fills (samples, 2, pairs): z_1, then z_2, times the scale, of the generator's next words."""
    samples, _, pairs = out.shape
    words = bits.random_raw(samples * pairs).view(np.int32).reshape(samples, 2, pairs)
    radius = (words[:, 0] | _BELOW).astype(np.float32)  # -2^31 u
    radius *= _U
    np.log(radius, radius)
    radius *= np.float32(-2 * scale * scale)
    np.sqrt(radius, radius)
    theta = words[:, 1].astype(np.float32)
    theta *= _THETA
    np.multiply(np.cos(theta), radius, out[:, 0])
    np.multiply(np.sin(theta, theta), radius, out[:, 1])


def room(shape: Sequence[int], dtype: type[np.floating] = np.float32) -> NDArray[Any]:
    """Room for a state (batch, ...) as (batch, even)."""
    size = math.prod(shape[1:])
    return np.empty((shape[0], size + size % 2), dtype)


def as_tensor(x: NDArray[Any], shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """What lies in the room for a state, as one."""
    size = math.prod(shape[1:])
    made = torch.from_numpy((x if x.shape[1] == size else x[:, :size]).reshape(shape))
    return made if made.dtype == dtype and device in ("cpu", _CPU) else made.to(device=device, dtype=dtype)


def _word(name: str, value: Any, bits: int = 32) -> int:
    """The value as an integer in [0, 2^bits), or a ValueError that names it."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number < 2**bits:
        raise ValueError(f"{name} is {value!r}; allowed are integers in [0, 2^{bits}); choose another {name}.")
    return number


def check_state(shape: Sequence[int], dtype: torch.dtype) -> None:
    """Refuses shapes without a batch and dtypes that hold no normals."""
    if len(shape) < 1 or any(n < 0 for n in shape):
        raise ValueError(
            f"noise shape is {tuple(shape)}; it must be (batch, ...) with sizes >= 0; put the batch first."
        )
    if dtype not in _DTYPES:
        raise ValueError(
            f"noise dtype is {dtype}; allowed are {', '.join(map(str, _DTYPES))}; draw in one and convert."
        )


@dataclass(frozen=True)
class Noise:
    """Named streams of standard normals, a function of (seed, sample, stream, k, element).

    Row i of a batch is sample number `first + i` of the seed, whatever the batch size, the order of work, the number
    of workers or the device: the same bits. Streams are independent. The numbers are made in float32 and converted, so
    they are the same numbers in float64.

    Args:
        seed: integer in [0, 2^64).
        first: number of the first sample in the batch, in [0, 2^32).

    Example:
        >>> import torch
        >>> whole, part = Noise(seed=3), Noise(seed=3, first=17)
        >>> torch.equal(whole.normal("initial", 0, (20, 2))[17], part.normal("initial", 0, (1, 2))[0])
        True
    """

    seed: int = 0
    first: int = 0

    def __post_init__(self) -> None:
        vars(self).update(seed=_word("seed", self.seed, 64), first=_word("first", self.first))

    def normal(
        self,
        stream: str,
        k: int,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Standard normals number k of the named stream.

        Args:
            stream: any name; "initial" and "path/0", "path/1", ... are used by the sources.
            k: integer in [0, 2^32).
            shape: (batch, ...).
            dtype: what the float32 numbers are converted to.
            device: where they are wanted.

        Returns:
            Tensor of shape (batch, ...).
        """
        check_state(shape, dtype)
        x = room(shape)
        for _ in blocks(self, stream, _word("k", k), x, fill=True):
            pass
        return as_tensor(x, shape, dtype, device)
