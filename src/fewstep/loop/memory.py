r"""How many samples go through the network at once: a call is measured, and the next takes at most twice as many.

A call of n samples takes about n m bytes at its peak, and m differs with the network, the machine and the kernels that
are chosen (two or three times the tensors themselves, where kernels reorder their inputs). So m is not computed: the
first call takes one sample, its peak of memory is read from the system, and from then on a call takes as many samples
as would fit by the last peak with a quarter to spare, but at most twice as many as the last. Every peak is thereby
known within a factor of two before it is made. The samples of the small calls are samples like any others.

Memory is what the process holds in all: resident memory, or on a GPU what torch has reserved there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.base import Around, Denoises, as_denoiser, of_samples
from fewstep.process.base import Time
from fewstep.words import as_bytes

__all__ = ["InPieces", "Room", "in_pieces"]

MARGIN = 1.25


class Room:
    """The room under a limit, and how many samples the next call may take: `size`.

    Args:
        limit: bytes, or a text as 4GiB: the most that the process may hold.
        device: whose memory.

    Raises:
        ValueError: for no size, and where the process holds more already or one sample takes more.
    """

    def __init__(self, limit: int | str, device: torch.device | str | None = None) -> None:
        self.limit, self.device = as_bytes(limit), torch.device(device or "cpu")
        self.size, self._most = 1, 0
        self._before = _held(self.device, restart=True)
        if self._before >= self.limit:
            raise ValueError(f"got memory={limit!r}, but the process holds {_text(self._before)} already: give more")

    @property
    def left(self) -> int:
        """Bytes between what is held now and the limit."""
        return max(0, self.limit - _held(self.device))

    def note(self, samples: int) -> None:
        """Reads the peak after a call of so many samples."""
        peak = _peak(self.device)
        if samples == 1 and peak > self.limit:
            raise ValueError(
                f"got memory={_text(self.limit)}, but one sample at a time takes {_text(peak)}: give at least that"
            )
        self._most = max(self._most, samples)  # the call that the peak is taken to be of
        fits = self._most * (self.limit - self._before) / (MARGIN * max(peak - self._before, 1))
        self.size = max(1, min(2 * self._most, int(fits)))


@dataclass(frozen=True, eq=False)
class InPieces(Around):
    """A denoiser that takes a batch piece by piece, as many samples at once as a `Room` has room for.

    What is bound to the samples goes along with them as in `fewstep.denoiser.base.of_samples`.
    """

    denoiser: Denoises
    room: Room

    def __post_init__(self) -> None:
        vars(self).update(denoiser=as_denoiser(self.denoiser))

    def at(self, t: Time, output: str = "x0", *, to: Time | None = None) -> Callable[[Tensor], Any]:
        return self._split(lambda denoiser, t, to: denoiser.toward(t, output, to), t, to)

    def jointly(self, t: Time, *, to: Time | None = None) -> Callable[[Tensor], Any]:
        return self._split(lambda denoiser, t, to: denoiser.jointly(t, to=to), t, to)

    def _split(self, make: Callable[[Any, Time, Time], Any], *times: Time) -> Callable[[Tensor], Any]:
        whole = make(self.denoiser, *times)

        def call(z: Tensor) -> Any:
            first, parts = 0, []
            while first < len(z):
                left = len(z) - first
                pieces = -(-left // self.room.size)
                index = torch.arange(first, first - (-left // pieces))
                if len(index) == len(z):
                    part = whole(z)
                else:
                    own = [t[index] if isinstance(t, Tensor) and t.ndim else t for t in times]
                    part = make(of_samples(self.denoiser, index, len(z)), *own)(z[first : first + len(index)])
                parts.append(part)
                first += len(index)
                self.room.note(len(index))
            if len(parts) == 1:
                return parts[0]
            if isinstance(parts[0], Tensor):
                return torch.cat(parts)
            return {head: torch.cat([part[head] for part in parts]) for head in parts[0]}

        return call


def in_pieces(denoiser: Any, memory: int | str | Room | None, like: Tensor) -> Any:
    """The denoiser under a limit of memory, or as it is without one."""
    if memory is None:
        return denoiser
    return InPieces(denoiser, memory if isinstance(memory, Room) else Room(memory, like.device))


def _text(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _held(device: torch.device, *, restart: bool = False) -> int:
    """What the process holds now; with `restart` its peak is read from here on."""
    if device.type == "cuda":
        if restart:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_reserved(device)
    if restart:
        with suppress(OSError):  # where that is not to be had, the largest so far counts: never too little
            Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") or _peak(device)


def _peak(device: torch.device) -> int:
    """The most that the process has held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if (most := _status("VmHWM")) is not None:
        return most
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(entry: str) -> int | None:
    """An entry of Linux's status of the process, in bytes."""
    try:
        return int(Path("/proc/self/status").read_text().partition(f"{entry}:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return None
