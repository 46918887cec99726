"""Counter-based normals: Philox4x32-10 in torch integer operations, named streams, per sample.

A number depends only on what it is for:

    words = Philox4x32-10(counter = (element block, sample, stream, k), key = seed)      four words of 32 bits
    z_1 + i z_2 = sqrt(-2 log u_1) exp(2 pi i u_2)                                        twice, in float64

References: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
https://doi.org/10.1145/2063384.2063405. Box, Muller, "A note on the generation of random normal deviates", Annals of
Mathematical Statistics 29, 1958. We differ in u_1 = (word + 1/2) / 2^32, which is never 0: no normal is
beyond 6.77 in size.
"""

from __future__ import annotations

import math
import operator
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Noise", "check_state", "group_size", "philox", "standard_normals", "stream_id"]

_MASK = 0xFFFFFFFF
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def philox(counter: Sequence[Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Four words of 32 random bits for each counter: Philox4x32-10, in integer operations on the counter's device.

        hi, lo = 0xD2511F53 c_0;  hi', lo' = 0xCD9E8D57 c_2        (32 x 32 -> 64 bits)
        c <- (hi' ^ c_1 ^ key_0, lo', hi ^ c_3 ^ key_1, lo)         ten times, key += (0x9E3779B9, 0xBB67AE85) between

    Args:
        counter: four int64 tensors with values in [0, 2^32), of shapes that broadcast together.
        seed: the key, 64 bits; the low word is key_0.

    Returns:
        Four int64 tensors with values in [0, 2^32), of the broadcast shape.

    References: Salmon et al. (2011). Products wrap in int64, which keeps all 64 bits; the shift copies
    the sign, so the high word is masked; a low word is masked once it is used, after the next exclusive or.
    """
    c_0, c_1, c_2, c_3 = counter
    key_0, key_1 = seed & _MASK, seed >> 32
    for _ in range(10):
        hi_lo, hi_lo_ = c_0 * 0xD2511F53, c_2 * 0xCD9E8D57
        c_0 = ((hi_lo_ >> 32) ^ c_1).bitwise_xor_(key_0).bitwise_and_(_MASK)
        c_2 = ((hi_lo >> 32) ^ c_3).bitwise_xor_(key_1).bitwise_and_(_MASK)
        c_1, c_3 = hi_lo_, hi_lo
        key_0, key_1 = (key_0 + 0x9E3779B9) & _MASK, (key_1 + 0xBB67AE85) & _MASK
    return c_0, c_1 & _MASK, c_2, c_3 & _MASK


def _chunk(device: torch.device) -> int:
    """Blocks of four words worked on at once: their ten int64 tensors should stay in the cache, or fill the device."""
    return 2**15 * min(torch.get_num_threads(), 8) if device.type == "cpu" else 2**20


def group_size(size: int, device: torch.device) -> int:
    """How many states of `size` numbers fill one chunk of work: small ones are made many at once."""
    return max(4 * _chunk(device) // max(size, 1), 1)


def standard_normals(
    noise: Noise, keys: Sequence[tuple[int, int]], shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Standard normals of several keys (stream id, k): (len(keys), *shape), shape = (batch, ...).

    Element w n + j of a sample is normal w of block j, of n blocks.
    """
    check_state(shape, dtype)
    _word("last sample, first + batch - 1,", noise.first + max(shape[0], 1) - 1)
    batch, size = shape[0], math.prod(shape[1:])
    place = torch.device("cpu") if device.type == "mps" else device  # no float64 there
    blocks = -(-size // 4)
    out = torch.empty(len(keys) * batch, 4, blocks, dtype=dtype, device=place)
    samples = torch.arange(noise.first, noise.first + batch, device=place).repeat(len(keys))[:, None]
    streams, ids = (
        torch.cat([torch.full((batch, 1), key[i], dtype=torch.int64, device=place) for key in keys]) for i in (0, 1)
    )
    block = torch.arange(blocks, device=place)[None]
    width = min(_chunk(place), max(blocks, 1))
    height = max(_chunk(place) // width, 1)
    for i in range(0, len(out), height):
        rows = slice(i, i + height)
        for j in range(0, blocks, width):
            columns = slice(j, j + width)
            words = philox((block[:, columns], samples[rows], streams[rows], ids[rows]), noise.seed)
            for w in (0, 2):
                radius = words[w].double().add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
                angle = words[w + 1].double().mul_(math.tau * 2.0**-32)
                out[rows, w, columns] = angle.cos().mul_(radius)
                out[rows, w + 1, columns] = angle.sin_().mul_(radius)
    return out.flatten(1)[:, :size].reshape(len(keys), *shape).to(device)


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


def stream_id(name: str) -> int:
    """The 32-bit id of a named stream: crc32 of its name."""
    return zlib.crc32(name.encode())


@dataclass(frozen=True)
class Noise:
    """Named streams of standard normals, a function of (seed, sample, stream, k, element).

    Row i of a batch is sample number `first + i` of the seed, whatever the batch size, the order of work or the number
    of workers: same bits on one kind of device. Streams are independent.

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
        """Refuses a seed or a sample number that does not fit its words."""
        object.__setattr__(self, "seed", _word("seed", self.seed, 64))
        object.__setattr__(self, "first", _word("first", self.first))

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
            stream: any name; its id is crc32(name). "initial" and "path" (also "path/1", ...) are used by the sources.
            k: integer in [0, 2^32).
            shape: (batch, ...).
            dtype: float64, or what its values are rounded to.
            device: where the numbers are made.

        Returns:
            Tensor of shape (batch, ...).
        """
        keys = [(stream_id(stream), _word("k", k))]
        return standard_normals(self, keys, shape, dtype, torch.device(device))[0]
