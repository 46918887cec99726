"""What people see of a run on a bridge: z = u + n y, where the loop walks u. Elsewhere the two are one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.bridged import given_end, placed
from fewstep.process import Process
from fewstep.process.base import Time
from fewstep.process.bridge import Bridge

__all__ = ["Seen"]


@dataclass(frozen=True)
class Seen:
    """A process, and on bridges the other end y of every sample."""

    process: Process
    y: Tensor | None = None

    @staticmethod
    def of(denoiser: Any, process: Process) -> tuple[Any, Seen]:
        """The denoiser with its process, where it told none, and how people see its runs."""
        y = given_end(denoiser)
        if not isinstance(process, Bridge):
            return denoiser, Seen(process)
        if y is None:
            raise ValueError(
                f"got {type(process).__name__}, a bridge, and a denoiser without its other end: give "
                "fewstep.bridged(denoiser, y)"
            )
        return placed(denoiser, process), Seen(process, y)

    def wanted(self, shape: Any, x: Tensor | None, dtype: torch.dtype, device: Any) -> tuple[Any, torch.dtype, Any]:
        """Shape, dtype and device of a run: without a start those of y, whose shape what is given must have."""
        if self.y is None:
            return shape, dtype, device
        own, got = tuple(self.y.shape), tuple(shape) if isinstance(shape, tuple | list) else shape
        got = tuple(x.shape) if x is not None and shape is None else got
        if got is not None and got != own and not (own[0] == 1 and got[1:] == own[1:]):
            raise ValueError(f"got a run of shape {got} on a bridge with y of shape {own}: give one y a sample, or one")
        kept = self.y.dtype if self.y.dtype in (torch.float32, torch.float64) else dtype
        return (got or own) if x is None else shape, kept, device or self.y.device

    def start(self, x: Tensor | None, t: float) -> Tensor | None:
        """U of a start z that was given."""
        return x if x is None or self.y is None else self._away(x, t)

    def drawn(self, u: Tensor, t: float) -> Tensor:
        """The start of a run, for one that was drawn from noise alone: with y in the place of data."""
        return u if self.y is None else u + self.process.diffuse(self.y.to(u), t, torch.zeros_like(u))

    def state(self, u: Tensor, t: Time) -> Tensor:
        """Z of a state."""
        return u if self.y is None else self.process.seen(u, t, self.y)  # type: ignore[attr-defined]

    def callback(self, told: Callable[..., Any] | None) -> Callable[..., Any] | None:
        """A callback that is shown z."""
        if told is None or self.y is None:
            return told
        return lambda row, t, u, d: told(row, t, self.state(u, t), d)

    def after(self, edit: Callable[..., Any] | None) -> Callable[..., Any] | None:
        """A hook that edits z."""
        if edit is None or self.y is None:
            return edit

        def edited(row: int, t: float, u: Tensor) -> Any:
            told = edit(row, t, self.state(u, t))
            return self._away(told, t) if isinstance(told, Tensor) and told.shape == u.shape else told

        return edited

    def _away(self, z: Tensor, t: float) -> Tensor:
        return z - self.state(torch.zeros_like(z), t)
