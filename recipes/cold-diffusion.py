r"""Cold diffusion: what a restorer gets wrong grows step by step, unless each step only takes back a step of the blur.

$$ x \leftarrow D(R(x), k - 1) \quad \text{(algorithm 1)}, \qquad
   x \leftarrow x - D(R(x), k) + D(R(x), k - 1) \quad \text{(algorithm 2)} $$

The data are Gaussian fields with the spectrum of clothes, D is a Gaussian blur of up to 3 pixels in 20 steps, and R is
the best linear restorer of what 8-bit levels leave, with or without an error of its own: a fixed picture of deviation
0.05 on top of all that it returns. The direct restoration is R once, the best that a mean can be. The second algorithm
is `ddim` where the noise stays the same.

Bansal et al., Cold diffusion: inverting arbitrary image transforms without noise, 2022, algorithms 1 and 2,
https://arxiv.org/abs/2208.09392. The paper trains R on pictures.

    python recipes/cold-diffusion.py
"""

from __future__ import annotations

import torch
from book import clothes, run
from torch import Tensor

import fewstep as fs

SIDE, STEPS, BLUR, LEVEL = 28, 20, 3.0, 1 / 128


def main(short: bool) -> dict[str, float]:
    """PSNR of the blurred, of the direct restoration and of both algorithms, with and without an error of R."""
    num = 20 if short else 200
    process = fs.VEBlur(size=(SIDE, SIDE))  # whose basis is that of blur
    f = torch.arange(SIDE, dtype=torch.float64)
    square = f[:, None] ** 2 + f**2
    spread = clothes()
    kept = [torch.exp(-square * (torch.pi * BLUR * k / STEPS / SIDE) ** 2 / 2) for k in range(STEPS + 1)]
    g = torch.Generator().manual_seed(0)
    modes = spread.sqrt() * torch.randn(num, 1, SIDE, SIDE, generator=g, dtype=torch.float64)
    x0 = process.from_coordinates(modes)
    wrong = 0.05 * torch.randn(num, 1, SIDE, SIDE, generator=g, dtype=torch.float64)

    def spectral(x: Tensor, gain: Tensor) -> Tensor:
        return process.from_coordinates(gain * process.coordinates(x))

    def degrade(x: Tensor, k: int) -> Tensor:
        return spectral(x, kept[k])

    figures = {}
    y = degrade(x0, STEPS)
    for name, error in (("", 0.0), (", R off by 0.05", 1.0)):

        def restore(x: Tensor, k: int, error: float = error) -> Tensor:
            return spectral(x, kept[k] * spread / (kept[k] ** 2 * spread + LEVEL**2)) + error * wrong

        made = {"direct": restore(y, STEPS)}
        made |= {f"algorithm {n}": fs.cold(y, restore, degrade, steps=STEPS, algorithm=n) for n in (1, 2)}
        figures |= {f"{what}{name}": psnr(x, x0) for what, x in made.items()}
    figures["blurred"] = psnr(y, x0)
    direct, first, second = (figures[f"{n}, R off by 0.05"] for n in ("direct", "algorithm 1", "algorithm 2"))
    assert second > direct - 1
    assert first < direct - 4
    assert figures["direct"] > figures["blurred"] + 2
    return {f"PSNR, {name}": value for name, value in figures.items()}


def psnr(x: Tensor, x0: Tensor) -> float:
    """In dB, of pictures in [-1, 1]."""
    return float((10 * torch.log10(4 / (x - x0).square().flatten(1).mean(1))).mean())


if __name__ == "__main__":
    run(main, __doc__)
