r"""From data to a state at the end of a run, where the sampler would have left it.

Where the state is the data (in the process's coordinates) there is nothing to add. Where a velocity comes with it
(blocks), the velocity is drawn given the position. For data x0 without a preferred value, z = M x0 + R eps says that
u^T z with u = (-M_v, M_x) is noise alone, N(0, u^T Sigma u), so

$$ q(v | x) = N\Big( \frac{M_v}{M_x} x,\; \frac{u^T \Sigma u}{M_x^2} \Big). $$
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.process import Process
from fewstep.process.operator import Block

__all__ = ["data_time", "gaussian_start", "lift"]


def data_time(process: Process, t: float | None = None) -> float:
    """The time at which data is read as a state: t, else t_min; where sigma is 0 there, a thousandth of the axis on."""
    if t is None:
        t = float(process.t_min)
        if float(process.log_snr(t)) == math.inf:
            t += 1e-3 * (process.t_max - process.t_min)
    process.check_times(torch.tensor([t], dtype=torch.float64))
    if float(process.log_snr(t)) == math.inf:
        raise ValueError(
            f"got t={t:g}, where sigma = 0 and the ODE has lost its noise: give a time above it, or leave t out "
            f"for {data_time(process):g}"
        )
    return t


def lift(process: Process, x: Tensor, t: float, eps: Tensor | None = None) -> tuple[Tensor, Tensor | float]:
    """A state z at t with to_data(z) = x, and log q of what had to be drawn for it (0 where nothing was).

    eps (batch, *data shape) are the standard normals the velocity is drawn with; None takes its mean.
    """
    if process.kind != "block":
        return process.coordinates(x), 0.0
    m, s = process.M(t), process.Sigma(t)
    assert isinstance(m, Block)
    assert isinstance(s, Block)
    (m_x,), (m_v,) = m.values.tolist()
    u = torch.tensor([-m_v, m_x], dtype=torch.float64)
    std = math.sqrt(float(u @ s.values @ u)) / abs(m_x)
    e = torch.zeros_like(x) if eps is None else eps
    log_q = -0.5 * e.flatten(1).square().sum(1) - e[0].numel() * (0.5 * math.log(math.tau) + math.log(std))
    return torch.stack([x, m_v / m_x * x + std * e], 1), log_q


def gaussian_start(process: Process, way_out: str = "raise t_max") -> None:
    """Refuses a process whose state at t_max still holds data: then no Gaussian is the law that a run starts from."""
    lam = float(process.log_snr(process.t_max))
    if lam > -2:
        raise ValueError(
            f"got {type(process).__name__}, whose state at t_max = {process.t_max:g} still holds the data "
            f"(log-SNR {lam:.2g}), so that no known law starts its runs and it has no likelihood: {way_out}"
        )
