r"""Cold diffusion: any degradation that grows in steps 1 ... n, undone by a restorer, without noise.

    algorithm 1    x <- D(R(x, k), k - 1)
    algorithm 2    x <- x - D(R(x, k), k) + D(R(x, k), k - 1)

D(x0, k) degrades data to the strength k, D(x0, 0) = x0, and R(x, k) restores. What R gets wrong enters the second
algorithm by the difference of two degradations alone. Degradations may be of any kind, random ones too if D keeps its
numbers. Where D is linear and diagonal on a process of constant noise (`fewstep.HeatDissipation`, the denoiser R), the
two are the tables of `LCM(noise=0)` and `ddim`.

References: Bansal et al., Cold diffusion, 2022, https://arxiv.org/abs/2208.09392 (algorithms 1 and 2).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fewstep.words import whole

__all__ = ["cold"]

Moved = Callable[[Tensor, int], Tensor]


def cold(x: Tensor, restore: Moved, degrade: Moved, *, steps: int, algorithm: int = 2) -> Tensor:
    """What x, degraded to the strength `steps`, was: `steps` calls of (x, k) -> x0_hat, from k = steps down to 1."""
    if algorithm not in (1, 2):
        raise ValueError(f"got algorithm={algorithm}: give 1, which degrades anew, or 2, which corrects")
    for k in range(whole("steps", steps), 0, -1):
        x0 = restore(x, k)
        x = degrade(x0, k - 1) if algorithm == 1 else x - degrade(x0, k) + degrade(x0, k - 1)
    return x
