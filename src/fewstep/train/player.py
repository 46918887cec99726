r"""Players: networks that are trained, how they are read, and the teacher.

A student is a denoiser with a destination, g(z, t, s), the average of D along the ODE from t to s:

$$ g = (S_s - S_t)^{-1} \int_t^s D\, dS, \quad S = R^{-1} M, \qquad
   z_s = R_s R_t^{-1} z + (M_s - R_s R_t^{-1} M_t)\, g $$

Time runs from noise to data: s is nearer to the data than t. s = t is the plain denoiser, s at the data the consistency
function, s the next point of a grid the progressive student; a network that is told s has them all. One DDIM row, and
so one table, samples every one of them exactly: what such a network learns is the row's prediction.

A network of one time stands for the destination that it was trained for. A network of two is called as net(x, t, s),
both in its time convention (`fewstep.denoiser.TIMES`); where that is infinite, at sigma = 0, it is told `t_min`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoiser import TIMES
from fewstep.denoiser.network import as_state
from fewstep.process import Process
from fewstep.process.base import Time, to_tensor
from fewstep.process.operator import Coefficient, apply, inverse
from fewstep.process.predict import preconditioning
from fewstep.train.pairs import Batch

__all__ = ["EMA", "Asked", "Denoises", "Player", "Players", "Reads", "Student", "Watch"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Student:
    """A network read as g = p z + q F(c_in z, t[, s]); see the module's docstring.

    Args:
        net: called as net(x, t), or net(x, t, s) with `destination`; conditions are bound by `functools.partial`.
        process, predicts, sigma_data: as in `fewstep.wrap`.
        time: a name in `TIMES`, or a function of times.
        destination: whether the network is told the destination.
        dtype: of the network; None: that of the state.
    """

    net: Callable[..., Any]
    process: Process
    predicts: str = "data"
    time: str | Callable[[Tensor], Tensor] = "t"
    sigma_data: float = 0.5
    destination: bool = False
    dtype: torch.dtype | None = None

    def __call__(self, z: Tensor, t: Time, s: Tensor | None = None) -> Tensor:
        """The average on the way from t to s for states z, in data space; of s = t where there is none."""
        t = t if isinstance(t, Tensor) and t.ndim else to_tensor(t).expand(len(z))
        return self.read(z, t, self.raw(z, t, t if s is None else s))

    def raw(self, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The network's output F, in the dtype of the state."""
        return self.outputs(z, t, s)[0]

    def outputs(self, z: Tensor, t: Tensor, s: Tensor | None = None) -> tuple[Tensor, ...]:
        """All that the network returns."""
        dtype = self.dtype or z.dtype
        x = apply(preconditioning(self.predicts, self.process, t, self.sigma_data)[0], z).to(dtype)
        times = [self._label(v, z, dtype) for v in ((t, t if s is None else s) if self.destination else (t,))]
        out = self.net(x, *times)
        return tuple(as_state(v, z) for v in (out if isinstance(out, tuple) else (getattr(out, "sample", out),)))

    def read(self, z: Tensor, t: Tensor, raw: Tensor) -> Tensor:
        """x0 = p z + q F, in data space."""
        _, p, q = preconditioning(self.predicts, self.process, t, self.sigma_data)
        return self.process.from_coordinates(apply(p, z) + apply(q, raw))

    def unread(self, z: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """The F that is read as x0."""
        _, p, q = preconditioning(self.predicts, self.process, t, self.sigma_data)
        return apply(inverse(q), self.process.coordinates(x0) - apply(p, z))

    def output(self, t: Tensor) -> Coefficient:
        """Q, by which an error of F is one of x0."""
        return preconditioning(self.predicts, self.process, t, self.sigma_data)[2]

    def _label(self, t: Tensor, z: Tensor, dtype: torch.dtype) -> Tensor:
        named = self.time if callable(self.time) else partial(TIMES[self.time], self.process)
        label = named(t)
        if not bool(torch.isfinite(label).all()):  # at sigma = 0 it is told t_min
            label = torch.where(torch.isfinite(label), label, named(torch.full_like(t, self.process.t_min)))
        return label.to(z.device, torch.float64 if dtype == torch.float64 else torch.float32)


Denoises = Callable[..., Tensor]  # (z, t), in data space
Asked = Callable[[Batch, bool], Denoises]  # of a teacher: a batch, with its conditions or without
Reads = Callable[[Any, Batch], Student]  # a network and a batch's conditions -> how its output is read
Watch = Callable[[Tensor, Tensor], None]  # of a batch: log-SNR (B,), squared error of x0 (B,)
OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.0),
    "radam": lambda parameters, lr: torch.optim.RAdam(parameters, lr=lr),
}
EMA = "ema"  # the average that is saved as the model


class Player:
    """A network with all that training changes.

    Args:
        net: the network.
        reads: how its output is read; None for a network that is no denoiser (a schedule, an encoder).
        lr: the learning rate, over that of the run.
        clip: the largest norm of its gradient.
        averages: names of its averages beside "ema".
        optimiser: "adamw" or "radam".
    """

    def __init__(
        self,
        net: nn.Module,
        reads: Reads | None = None,
        *,
        lr: float = 1.0,
        clip: float = 1.0,
        averages: Iterable[str] = (),
        optimiser: str = "adamw",
    ) -> None:
        self.net, self.reads, self.lr, self.clip, self.kind = net, reads, lr, clip, optimiser
        self.parameters = list(net.parameters())
        self.averages = {name: copy.deepcopy(net).requires_grad_(False) for name in (EMA, *averages)}
        self.anew()

    def anew(self) -> None:
        """The optimiser without memory."""
        self.optimiser, self.updates, self.gradient = OPTIMISERS[self.kind](self.parameters, lr=1.0), 0, 0.0

    def at(self, batch: Batch, average: str | None = None) -> Student:
        """The denoiser as it stands, or one of its averages."""
        assert self.reads is not None
        return self.reads(self.net if average is None else self.averages[average], batch)

    def become(self, source: nn.Module) -> None:
        """Takes the weights of a network of its kind, in all averages too, and forgets how they were reached."""
        for net in (self.net, *self.averages.values()):
            net.load_state_dict(source.state_dict())
        self.anew()

    def gradients(self, loss: Tensor, *, again: bool) -> list[Tensor | None]:
        """Of a loss by this player's own parameters; `again` where another player's follow."""
        return list(torch.autograd.grad(loss, self.parameters, retain_graph=again, allow_unused=True))

    def step(self, gradients: list[Tensor | None], lr: float) -> None:
        """One update of the weights."""
        for p, g in zip(self.parameters, gradients, strict=True):
            p.grad = g if g is None or g.stride() == p.stride() else torch.empty_like(p).copy_(g)
        for group in self.optimiser.param_groups:
            group["lr"] = lr * self.lr
        self.gradient = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.updates += 1

    def follow(self, decays: Mapping[str, float]) -> None:
        """The averages after an update."""
        for name, decay in decays.items():
            own = list(self.averages[name].parameters())
            torch._foreach_lerp_(own, [p.detach() for p in self.parameters], 1 - decay)  # type: ignore[reportPrivateImportUsage]

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """All of it, by name, for a checkpoint."""
        found: dict[str, Tensor] = {}
        for name, p in self.net.named_parameters():
            state = self.optimiser.state.get(p) or {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            found |= {f"{prefix}net.{name}": p, f"{prefix}m.{name}": state["exp_avg"]}
            found[f"{prefix}v.{name}"] = state["exp_avg_sq"]
        for average, net in self.averages.items():
            found |= {f"{prefix}{average}.{name}": p for name, p in net.named_parameters()}
        return found

    def restore(self, tensors: Mapping[str, Tensor], prefix: str, updates: int) -> None:
        """As a checkpoint has it; a ValueError names what does not fit."""

        def taken(key: str, like: Tensor) -> Tensor:
            found = tensors.get(prefix + key)
            if found is None or (found.shape, found.dtype) != (like.shape, like.dtype):
                raise ValueError(f"has no {key.partition('.')[2]} of shape {tuple(like.shape)}")
            return torch.empty_like(like).copy_(found)

        for name, p in self.net.named_parameters():
            p.data.copy_(taken(f"net.{name}", p))
            state = {"exp_avg": taken(f"m.{name}", p), "exp_avg_sq": taken(f"v.{name}", p)}
            if updates:
                self.optimiser.state[p] = {"step": torch.tensor(float(updates)), **state}
        for average, net in self.averages.items():
            for name, p in net.named_parameters():
                p.data.copy_(taken(f"{average}.{name}", p))
        self.updates = updates


class Players(dict[str, Player]):
    """The players by name, and the teacher: a denoiser for a batch's conditions, or a network that became it."""

    def __init__(self, players: Mapping[str, Player], teacher: Asked | None = None) -> None:
        super().__init__(players)
        self.given, self.became = teacher, False
        self.watch: Watch | None = None  # who is shown the errors, if anybody is

    def teacher(self, batch: Batch, *, conditional: bool = True) -> Denoises:
        """Who is imitated now: the network "teacher" once a stage made one, else what was given."""
        if self.became:
            return self["teacher"].at(batch)
        if self.given is None:
            raise ValueError("got a method that imitates a teacher and none: give teacher=")
        return self.given(batch, conditional)

    def promote(self) -> None:
        """The student's average becomes the teacher."""
        average = self["net"].averages[EMA]
        if not self.became:
            self["teacher"], self.became = Player(copy.deepcopy(average), self["net"].reads), True
        self["teacher"].become(average)
