"""A network that is trained: with its optimiser, its averages, its learning rate and its clip."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoiser import Denoiser
from fewstep.denoiser.student import Student
from fewstep.train.objective import Batch

__all__ = ["Player", "Players", "Reads"]

Reads = Callable[[Any, Batch], Student]  # a network and a batch's conditions -> how its output is read
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

    def __init__(self, players: Mapping[str, Player], teacher: Callable[[Batch, bool], Denoiser] | None = None) -> None:
        super().__init__(players)
        self.given, self.became = teacher, False

    def teacher(self, batch: Batch, *, conditional: bool = True) -> Callable[..., Tensor]:
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
