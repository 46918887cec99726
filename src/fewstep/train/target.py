r"""What a student is to return: rows of its teacher's table, solved for the prediction.

A student's row is z_s = R_s R_t^-1 z + (M_s - R_s R_t^-1 M_t) g, its `jump`. Where its teacher's rows lead from z_t to
z_s, it must return g = `unjump`, the average of D on the way. Time runs from noise to data everywhere: t > u > s.

Functions take times (batch,) and states z (batch, *state); denoisers take (z, t) to data space, students (z, t, s).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import forward_ad as forward

from fewstep.process import Process
from fewstep.process.operator import Coefficient, apply, inverse, wide
from fewstep.train.pairs import Batch
from fewstep.words import Typed

if TYPE_CHECKING:
    from fewstep.train.player import Players

__all__ = [
    "Jumps", "Point", "Target", "averaged", "column", "guided", "halved", "heun", "jump", "push", "shortened", "unjump"
]  # fmt: skip

Denoise = Callable[[Tensor, Tensor], Tensor]
Jumps = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Point:
    """Where a network is asked in one step of training.

    Attributes:
        process, batch: what is noised, and how.
        z, t: the state and its time.
        u, s: a time on the way, and the destination.
        last: where s is the last time of the student's grid (B,).
        x0, eps: what the state was made of.
    """

    process: Process
    batch: Batch
    z: Tensor
    t: Tensor
    u: Tensor
    s: Tensor
    last: Tensor
    x0: Tensor
    eps: Tensor


class Target(Typed):
    """What the network is to return at a point, in data space: (players, point) -> (B, *shape)."""

    def __call__(self, at: Players, point: Point) -> Tensor:
        raise NotImplementedError


def row(process: Process, t: Tensor, s: Tensor) -> tuple[Coefficient, Coefficient]:
    """(c, w) of z_s = c z_t + w g."""
    back = process.R(s) * inverse(process.R(t))
    return back, process.M(s) - back * process.M(t)


def jump(process: Process, z: Tensor, t: Tensor, s: Tensor, g: Tensor) -> Tensor:
    """z_s of the average g on the way from t to s: DDIM's row."""
    c, w = row(process, t, s)
    return apply(c, z) + apply(w, process.coordinates(g))


def unjump(process: Process, z: Tensor, t: Tensor, s: Tensor, z_s: Tensor) -> Tensor:
    """The g that gives z_s. On blocks a state has twice the numbers of g, and two rows are not one."""
    if process.kind == "block":
        raise ValueError(
            f"got {type(process).__name__}, whose states have twice the numbers of the data: no one prediction jumps "
            "over two rows there; distil on a scalar or diagonal process"
        )
    c, w = row(process, t, s)
    return process.from_coordinates(apply(inverse(w), z_s - apply(c, z)))


def column(v: Tensor, like: Tensor) -> Tensor:
    """Numbers or answers, one a sample, in the shape that multiplies or chooses states; their dtype stays."""
    return v.reshape(-1, *(1,) * (like.ndim - 1))


def halved(process: Process, teacher: Denoise, z: Tensor, t: Tensor, u: Tensor, s: Tensor, last: Tensor) -> Tensor:
    """Progressive distillation: the g that jumps as the teacher's rows t -> u -> s do; on the last, its last x0.

    References: Salimans, Ho, 2022, appendix G, https://arxiv.org/abs/2202.00512 (their time runs as here).
    """
    z_u = jump(process, z, t, u, teacher(z, t))
    x0 = teacher(z_u, u)
    g = unjump(process, z, t, s, jump(process, z_u, u, s, x0))
    return torch.where(column(last, g), x0, g)


def guided(conditional: Tensor, unconditional: Tensor, w: Tensor) -> Tensor:
    """(1 + w) x_c - w x_u: w = 0 is no guidance (Meng et al. 2023, eq. 4, https://arxiv.org/abs/2210.03142)."""
    w = wide(w, conditional)
    return (1 + w) * conditional - w * unconditional


def heun(process: Process, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Heun's step of d(z/alpha)/d rho = (z/alpha - D)/rho, rho = sigma/alpha, from t to s; Euler's where rho_s = 0.

    References: Karras et al. 2022, algorithm 1; Song et al. 2023, eq. 6, https://arxiv.org/abs/2303.01469.
    """
    first = denoise(z, t)
    z_s = jump(process, z, t, s, first)
    a, b = (column(process.alpha(v), z) for v in (t, s))  # type: ignore[attr-defined] - scalar processes
    rho, rho_s = (column(torch.exp(-process.log_snr(v)), z) for v in (t, s))
    ends = rho_s == 0
    second = (z_s / b - denoise(z_s, torch.where(ends.flatten(), t, s))) / torch.where(ends, 1.0, rho_s)
    x_s = z / a + (rho_s - rho) / 2 * ((z / a - first) / rho + second)
    return torch.where(ends, z_s, b * x_s)


def shortened(process: Process, student: Jumps, z: Tensor, t: Tensor, u: Tensor, s: Tensor) -> Tensor:
    """The g that jumps as the student's own two jumps t -> u -> s do.

    References: Frans et al., One step diffusion via shortcut models, 2024, eq. 4, https://arxiv.org/abs/2410.12557
    (their time runs from noise to data, from 0 to 1).
    """
    z_u = jump(process, z, t, u, student(z, t, u))
    return unjump(process, z, t, s, jump(process, z_u, u, s, student(z_u, u, s)))


def push(
    process: Process, student: Jumps, z: Tensor, t: Tensor, s: Tensor, x0: Tensor, ds: float = 0.0
) -> tuple[Tensor, Tensor]:
    """g(z, t, s) and dg/dt along the ODE's velocity where D is x0: dz/dt = R' R^-1 (z - M x0) + M' x0."""
    spread = process.R_rate(t) * inverse(process.R(t))
    c = process.coordinates(x0)
    velocity = apply(spread, z) + apply(process.M_rate(t) - spread * process.M(t), c)
    with torch.no_grad(), forward.dual_level():
        moving = [forward.make_dual(v.clone(), d) for v, d in
                  ((z, velocity.to(z)), (t, torch.ones_like(t)), (s, torch.full_like(s, ds)))]  # fmt: skip
        g, rate = forward.unpack_dual(student(*moving))
    return g, torch.zeros_like(g) if rate is None else rate


def averaged(
    process: Process, g: Tensor, rate: Tensor, t: Tensor, s: Tensor, x0: Tensor, along: Tensor | None = None
) -> Tensor:
    r"""One step towards g = D + (S_s - S_t) dg/dS_t, multiplied through by R_s R_t^-1, which is finite everywhere.

    $$ D + (1 - a)(g - D') + (M_s - a M_t)\, R_t\, (M_t' R_t - M_t R_t')^{-1}\, dg/dt, \qquad a = R_s R_t^{-1} $$

    D' is the x0 of the velocity that dg/dt is taken along: D itself unless it is given.

    On a flow with g = z - t u it is mean flow's v - (t - s) du/dt; with s at the data a = 0, and it is dg/dt = 0 that
    consistency models ask for in continuous time.

    References: Geng et al., Mean flows, 2025, eq. 6, https://arxiv.org/abs/2505.13447 (their time runs as here).
    """
    a, w = row(process, t, s)
    m, r = process.M(t), process.R(t)
    gain = w * r * inverse(process.M_rate(t) * r - m * process.R_rate(t))
    aim, own, pushed = (process.coordinates(x) for x in (x0, g, x0 if along is None else along))
    return process.from_coordinates(
        aim + own - pushed - apply(a, own - pushed) + apply(gain, process.coordinates(rate))
    )
