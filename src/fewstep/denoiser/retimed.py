r"""A denoiser of one scalar process seen as a denoiser of another.

What a state tells about the data is u = x0 + e^{-lambda} n and its log-SNR, whatever the process calls its time and
however it scales its state, so processes differ in clock and scale only:

$$ D_B(z, t) = D_A(s_A(t')\, u(z), t'), \qquad \lambda_A(t') = \lambda_B(t) $$

A network trained on VP is thereby sampled on the EDM, flow or cosine clock with the same data predictions, and on CLD
through the state's sufficient statistic (`fewstep.process.predict.statistic`). References: Karras et al. 2022, appendix
C, https://arxiv.org/abs/2206.00364, for the scalar case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.denoiser.base import Denoiser, Denoises, as_denoiser
from fewstep.process import ScalarProcess
from fewstep.process.base import Process, Time, like, to_tensor
from fewstep.process.operator import Coefficient, apply
from fewstep.process.predict import statistic
from fewstep.words import typed

__all__ = ["Retimed", "retime"]


@dataclass(frozen=True, eq=False)
class Retimed(Denoiser):
    """`inner`, made for `source`, as a denoiser for `process`; see `retime`."""

    inner: Denoiser
    source: ScalarProcess
    process: Process

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner", as_denoiser(self.inner))

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Tensor]:
        if output != "x0":
            return self.beside(output, t)
        source = self.source
        time, end = self._time(t, source.t_min), source.t_min if source.t_zero is None else source.t_zero
        scale = _norm(source, time) * _normalised(self.process, t)
        call = self.inner.toward(time, output, None if to is None else self._time(to, end))
        return lambda z: call(apply(scale, z))

    def _time(self, t: Time, last: float) -> Time:
        """The time of `source`, down to its `last`, with the log-SNR of a time of `process`."""
        low, high = (float(self.source.log_snr(end)) for end in (self.source.t_max, last))
        lam = to_tensor(self.process.log_snr(t)).clamp(low, high)
        return like(to_tensor(self.source.inverse_log_snr(lam)), t)


@typed
def retime(denoiser: Denoises, process: Process, *, source: ScalarProcess | None = None) -> Retimed:
    """A denoiser for `process` out of one that was made for another scalar process.

    Args:
        denoiser: made for `source`.
        process: scalar, or CLD: the process to sample on.
        source: the process the denoiser was made for; None asks the denoiser.

    Times of `process` beyond the source's range of log-SNR are read as its nearest end, with the state scaled to that
    end's size.

    Raises:
        ValueError: for a process whose frequencies have log-SNRs of their own, or a denoiser whose process is unknown.
    """
    inner = as_denoiser(denoiser)
    source = source or inner.process
    if not isinstance(source, ScalarProcess):
        raise ValueError(
            f"got a denoiser made for {source if source is not None else 'no process it tells'}: "
            "retime takes one made for a scalar process; give it as source="
        )
    if process.kind == "diagonal":
        raise ValueError(
            f"got {type(process).__name__} to retime to: its frequencies have log-SNRs of their own, which no scalar "
            "process has; train a network for it"
        )
    return Retimed(inner, source, process)


def _norm(process: ScalarProcess, t: Time) -> Time:
    """Sqrt(alpha^2 + sigma^2)."""
    return like(torch.hypot(to_tensor(process.alpha(t)), to_tensor(process.sigma(t))), t)


def _normalised(process: Process, t: Time) -> Coefficient:
    """The statistic scaled to alpha^2 + sigma^2 = 1, finite at alpha = 0."""
    if isinstance(process, ScalarProcess):
        norm = _norm(process, t)  # 0 at the pinned end of a bridge, whose state says nothing
        return torch.where(norm > 0, 1 / norm, 0.0) if isinstance(norm, Tensor) else 1 / norm if norm else 0.0
    return statistic(process, t) * like(torch.sigmoid(2 * to_tensor(process.log_snr(t))).sqrt(), t)
