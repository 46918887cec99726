r"""Degradations: what happens to a picture x0 before it is given as y, of its own shape.

| name         | y                                                              | its number (default)          |
|--------------|----------------------------------------------------------------|-------------------------------|
| `blur`       | a Gaussian blur, the picture mirrored at its edges             | pixels of deviation (2)       |
| `downscale`  | means of squares, and bicubic back to the size                 | side of a square (4)          |
| `mask`       | a share of the pixels, all channels of one, set to 0           | share (0.5)                   |
| `box`        | one square of the picture set to 0                             | its side over the picture's (0.5) |
| `noise`      | white noise added                                              | deviation (0.2)               |
| `jpeg`       | JPEG by Pillow                                                 | quality (30)                  |
| `bsr`        | blur, downscale, noise and JPEG of random strengths and order  | strength (1)                  |

A degradation is named with its number, `downscale4`, and some in a row are joined by +: `blur1.5+noise0.1+jpeg40`.
Pictures are (batch, channels, height, width) in [-1, 1]; `mask` and `noise` take data of any shape. What is random is
drawn anew for every picture and step of a training.

References: Zhang et al., Designing a practical degradation model for deep blind image super-resolution, 2021,
https://arxiv.org/abs/2103.14006 (BSR; here without its camera model and its second downscaling).
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fewstep.files import extra
from fewstep.words import pick, short

__all__ = ["DEGRADATIONS", "Degradation", "Random", "degradation"]


class Random(Protocol):
    """Numbers by name, one set a sample; `fewstep.train.pairs.Draw` is one."""

    def normal(self, name: str, like: Tensor) -> Tensor: ...

    def uniform(self, name: str) -> Tensor: ...


Part = Callable[[Tensor, float, Random, str], Tensor]  # (x, its number, random numbers, a name for them)


@dataclass(frozen=True)
class Degradation:
    """Parts in a row; see `degradation`."""

    parts: tuple[tuple[str, float], ...]

    def __call__(self, x: Tensor, random: Random) -> Tensor:
        """Y of data x, of its shape."""
        for k, (name, number) in enumerate(self.parts):
            x = DEGRADATIONS[name][0](x, number, random, f"degrade/{k}")
        return x


def degradation(text: str) -> Degradation:
    """The degradation of a name, as `downscale4` or `blur1.5+noise0.1`."""
    parts = []
    for word in text.split("+"):
        found = re.fullmatch(r"([a-z]+)([0-9]*\.?[0-9]*)", word.strip())
        if found is None:
            raise ValueError(
                f"got the degradation {short(word)}: give a name and its number, as downscale4, or some joined by +"
            )
        _, usual, low, high = pick(DEGRADATIONS, found[1], "degradation")
        number = float(found[2]) if found[2] not in ("", ".") else usual
        if not low <= number <= high or (found[1] in WHOLE and number != int(number)):
            what = "a whole number" if found[1] in WHOLE else "a number"
            raise ValueError(f"got the degradation {short(word)}: {found[1]} takes {what} from {low:g} to {high:g}")
        parts.append((found[1], number))
    return Degradation(tuple(parts))


def _pictures(x: Tensor, name: str) -> None:
    if x.ndim != 4:
        raise ValueError(
            f"got {name} for data of shape {tuple(x.shape[1:])}: pictures have three axes; give mask or noise"
        )


def _blurred(x: Tensor, deviation: Tensor) -> Tensor:
    """A blur of its own deviation for every picture, in pixels."""
    for side in (2, 3):
        n = x.shape[side]
        reach = min(n - 1, max(1, math.ceil(3 * float(deviation.max()))))
        at = torch.arange(-reach, reach + 1, dtype=x.dtype)
        kernel = torch.exp(-(at**2) / 2 / deviation.to(x)[:, None].clamp(min=1e-3) ** 2)
        kernel = kernel / kernel.sum(1, keepdim=True)
        padded = functional.pad(x.transpose(side, 3), (reach, reach, 0, 0), mode="reflect")
        x = torch.einsum("bchwk,bk->bchw", padded.unfold(3, 2 * reach + 1, 1), kernel).transpose(side, 3)
    return x.contiguous()


def _blur(x: Tensor, number: float, random: Random, name: str) -> Tensor:  # noqa: ARG001
    _pictures(x, "blur")
    return _blurred(x, x.new_full((len(x),), number))


def _downscale(x: Tensor, number: float, random: Random, name: str) -> Tensor:  # noqa: ARG001
    _pictures(x, "downscale")
    sides = tuple(x.shape[2:])
    if any(side % int(number) for side in sides):
        raise ValueError(f"got downscale{number:g} for pictures of {sides}: both sides must be multiples of {number:g}")
    small = functional.avg_pool2d(x, int(number))
    return functional.interpolate(small, size=sides, mode="bicubic", align_corners=False).clamp(-1, 1)


def _mask(x: Tensor, number: float, random: Random, name: str) -> Tensor:
    field = random.normal(name, x[:, :1] if x.ndim == 4 else x)
    return torch.where(field < torch.special.ndtri(torch.tensor(number, dtype=x.dtype)), 0.0, x)


def _box(x: Tensor, number: float, random: Random, name: str) -> Tensor:
    _pictures(x, "box")
    hidden = torch.ones_like(x[:, :1], dtype=torch.bool)
    for axis in (2, 3):
        n = x.shape[axis]
        size = max(1, round(number * n))
        first = (random.uniform(f"{name}/{axis}") * (n - size + 1)).long()
        at = torch.arange(n)
        inside = (at >= first[:, None]) & (at < first[:, None] + size)
        hidden = hidden & inside.reshape(len(x), 1, *((n, 1) if axis == 2 else (1, n))).to(x.device)
    return torch.where(hidden, 0.0, x)


def _noise(x: Tensor, number: float, random: Random, name: str) -> Tensor:
    return x + number * random.normal(name, x)


def _jpeg(x: Tensor, number: float, random: Random, name: str) -> Tensor:  # noqa: ARG001
    return _compressed(x, [int(number)] * len(x))


def _compressed(x: Tensor, qualities: list[int]) -> Tensor:
    _pictures(x, "jpeg")
    library = extra("PIL.Image", "train", "JPEG")
    levels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy(force=True)
    made = np.empty_like(levels)
    for k, (picture, quality) in enumerate(zip(levels, qualities, strict=True)):
        for c in range(0, len(picture), 3 if len(picture) == 3 else 1):
            part = picture.transpose(1, 2, 0) if len(picture) == 3 else picture[c]
            file = io.BytesIO()
            library.fromarray(part).save(file, "JPEG", quality=quality)
            read = np.asarray(library.open(file))
            made[k, c : c + (3 if read.ndim == 3 else 1)] = read.transpose(2, 0, 1) if read.ndim == 3 else read
    return torch.from_numpy(made).to(x) / 127.5 - 1


def _bsr(x: Tensor, number: float, random: Random, name: str) -> Tensor:
    """Blur of up to 2 pixels, half of the pictures downscaled by 2, noise of up to 0.1, in one of six orders; JPEG."""
    _pictures(x, "bsr")
    if any(side % 2 for side in x.shape[2:]):
        raise ValueError(f"got bsr for pictures of {tuple(x.shape[2:])}: both sides must be even")

    def share(what: str) -> Tensor:
        return random.uniform(f"{name}/{what}").to(x)

    column = (-1, 1, 1, 1)
    parts: list[Callable[[Tensor], Tensor]] = [
        lambda z: _blurred(z, 2 * number * share("blur")),
        lambda z: torch.where(share("downscale").reshape(column) < 0.5, _downscale(z, 2, random, name), z),
        lambda z: z + 0.1 * number * share("noise").reshape(column) * random.normal(f"{name}/noise", z),
    ]
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    chosen = (share("order") * len(orders)).long()
    y = x.clone()
    for k, order in enumerate(orders):
        z = x
        for part in order:
            z = parts[part](z)
        y = torch.where((chosen == k).reshape(column), z, y)
    return _compressed(y, [round(95 - 65 * min(1.0, number) * float(v)) for v in share("jpeg")])


DEGRADATIONS: dict[str, tuple[Part, float, float, float]] = {  # what it does; its number, and what that may be
    "blur": (_blur, 2.0, 0.0, 64.0),
    "downscale": (_downscale, 4.0, 1.0, 64.0),
    "mask": (_mask, 0.5, 0.0, 1.0),
    "box": (_box, 0.5, 0.0, 1.0),
    "noise": (_noise, 0.2, 0.0, 10.0),
    "jpeg": (_jpeg, 30.0, 1.0, 100.0),
    "bsr": (_bsr, 1.0, 0.0, 2.0),
}
WHOLE = ("downscale", "jpeg")  # whose number is a whole one
