r"""Second outputs beside a frozen denoiser: variances of the noise (SN, NPR), and the derivative along the ODE (GENIE).

| method  | the target                             | what reads it                            |
|---------|----------------------------------------|------------------------------------------|
| `sn`    | eps^2                                  | `sn-ddpm`, by `fewstep.variance_head`    |
| `npr`   | (eps - eps_hat)^2, eps_hat frozen      | `npr-ddpm`                               |
| `genie` | d eps_hat / d gamma along the ODE      | `taylor-2`, by `Rate`                    |

gamma = sigma / alpha. With zbar = z / alpha, d zbar = eps d gamma, so D = zbar - gamma eps moves as dD/d gamma = -gamma
d eps/d gamma. The head of GENIE is -k1/gamma + k2 gamma/(1 + gamma^2) + k3/(gamma (1 + gamma^2)) of three outputs, and
is told the predicted noise, in training as in sampling. The published loss is gamma^2 |.|^2; here it is weighed by
1 + gamma^2 more. Where gamma is large the outputs must cancel, and a step over a share of gamma makes of their error
one of gamma^2 |.| in zbar: by the published weight few calls are worse than DDIM's. Time runs from noise to data.

References: Bao et al., 2022, https://arxiv.org/abs/2206.07309; Dockhorn, Vahdat, Kreis, GENIE, 2022, eq. 9 and 12,
https://arxiv.org/abs/2210.05475.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser, as_denoiser
from fewstep.process import Process
from fewstep.process.base import Time, derivative, to_tensor
from fewstep.process.operator import apply, inverse, wide
from fewstep.train.methods.base import Method, Setting
from fewstep.train.objective import Objective, Stage
from fewstep.train.pairs import Draw, Independent, Uniform
from fewstep.train.player import Denoises, Players, Student
from fewstep.train.target import push

__all__ = ["Genie", "Heads", "Rate", "Variance", "assembled", "gamma", "gamma_rate", "genie_loss", "noise_of",
           "noise_rate", "variance_target"]  # fmt: skip


def gamma(process: Process, t: Tensor) -> Tensor:
    """Sigma / alpha."""
    return torch.exp(-torch.as_tensor(process.log_snr(t)))


def gamma_rate(process: Process, t: Tensor) -> Tensor:
    """D gamma / dt."""
    return derivative(lambda t: gamma(process, t), t)


def noise_of(process: Process, denoiser: Denoises, z: Tensor, t: Tensor) -> Tensor:
    """The noise that a denoiser predicts, R^-1 (z - M D)."""
    return apply(inverse(process.R(t)), z - apply(process.M(t), process.coordinates(denoiser(z, t))))


def noise_rate(process: Process, denoiser: Denoises, z: Tensor, t: Tensor) -> Tensor:
    """D eps_hat / d gamma along the ODE of the denoiser."""
    _, rate = push(process, lambda z, t, _: noise_of(process, denoiser, z, t), z, t, t, denoiser(z, t))
    return apply(1 / gamma_rate(process, t), rate)


def assembled(outputs: tuple[Tensor, ...], g: Tensor) -> Tensor:
    """The derivative of three outputs at gamma g (B,)."""
    k1, k2, k3 = outputs
    g = wide(g, k1)
    return -k1 / g + k2 * g / (1 + g**2) + k3 / (g * (1 + g**2))


def genie_loss(off: Tensor, g: Tensor) -> Tensor:
    """Gamma^2 times the mean squared error of the derivative: (B,)."""
    return g**2 * (off**2).flatten(1).mean(1)


def variance_target(eps: Tensor, predicted: Tensor, kind: str) -> Tensor:
    """What a variance head learns: of the noise itself, or of the predicted one's error."""
    return eps**2 if kind == "sn" else (eps - predicted) ** 2


@dataclass(frozen=True, kw_only=True)
class Heads(Objective):
    """The squared error of a head beside the teacher; `kind` is "sn", "npr" or "genie"."""

    process: Process
    kind: str

    def losses(self, at: Players, draw: Draw) -> Iterator[Mapping[str, Tensor]]:
        p, net, teacher = self.process, at["net"].at(draw.batch), at.teacher(draw.batch)
        t = Uniform(clock="log-snr").times(p, draw.uniform("t"))
        x0, eps = Independent()(draw, torch.zeros_like)
        z = p.diffuse(x0, t, eps)
        with torch.no_grad():
            if self.kind == "genie":
                goal = noise_rate(p, teacher, z, t)
            else:
                goal = variance_target(eps, noise_of(p, teacher, z, t), self.kind)
        if self.kind != "genie":
            yield {"net": ((net.raw(z, t, t) - goal) ** 2).flatten(1).mean(1)}
            return
        g, told = gamma(p, t), draw.batch.told(y=noise_of(p, teacher, z, t))
        off = assembled(at["net"].at(told).outputs(z, t), g) - goal
        yield {"net": genie_loss(off, g) * (1 + g**2)}


@dataclass(frozen=True, eq=False)
class Rate(Denoiser):
    """A denoiser with the derivative that a GENIE head learned: its head "derivative" is dD/dt.

    Args:
        denoiser: the frozen one.
        head: the network of the three outputs, as it is read; it is told the predicted noise as y.
    """

    denoiser: Denoiser
    head: Student

    heads = ("derivative",)  # type: ignore[assignment]

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Tensor]:
        """The denoiser's own, or -gamma gamma' d eps/d gamma."""
        if output != "derivative":
            return as_denoiser(self.denoiser).toward(t, output, to)
        p = self.head.process

        def rate(z: Tensor) -> Tensor:
            times = to_tensor(t).expand(len(z))
            g, eps = gamma(p, times), noise_of(p, as_denoiser(self.denoiser), z, times)
            told = replace(self.head, net=partial(self.head.net, y=eps))
            return apply(-g * gamma_rate(p, times), assembled(told.outputs(z, times), g)).to(z)

        return rate


class OfHeads(Method):
    """A head beside a frozen teacher; it is no denoiser itself."""

    kind: ClassVar[str]
    needs: ClassVar[bool] = True
    predicts: ClassVar[str | None] = "noise"
    denoises: ClassVar[bool] = False
    lr: ClassVar[float] = 8e-3

    def stages(self, on: Setting) -> list[Stage]:
        return [Stage(objective=Heads(process=on.process, kind=self.kind))]


@dataclass(frozen=True, kw_only=True)
class Variance(OfHeads):
    """The variance of the noise at every coordinate: "sn" of the noise, "npr" of the prediction's error."""

    kind: str = "npr"  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class Genie(OfHeads):
    """The derivative of the predicted noise along the ODE, in three outputs; the network sees that noise as y."""

    kind: ClassVar[str] = "genie"
    outputs: ClassVar[int] = 3
    noise: ClassVar[bool] = True
