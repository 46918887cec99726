"""Where a run takes its noise from: one tiny protocol, and its three forms (counter, generator, ready tensor)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from fewstep.noise.brownian import BrownianPath, check_interval, coarse_to_fine
from fewstep.noise.counter import Noise, check_state

__all__ = ["GeneratorSource", "NoiseSource", "PathSource", "Request", "TensorSource", "noise_source"]

# (a, b, stream, index): the increment of the path from a to b (stream "path"), or draw `index` of another stream.
Request = tuple[float, float, str, int]


@runtime_checkable
class NoiseSource(Protocol):
    """Where a run takes its standard normals from: the starting noise, then one tensor for each interval, in order."""

    def initial(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """Standard normal noise eps of the starting state, of shape (batch, ...)."""
        ...

    def intervals(
        self, requests: Sequence[Request], shape: Sequence[int], dtype: torch.dtype, device: torch.device | str
    ) -> Iterator[Tensor]:
        """Yields one standard normal tensor of `shape` for each request, in order, made when asked for."""
        ...

    def snapshot(self) -> Any:
        """What `restore` needs to yield the same noise again; nothing, of a source without a state."""

    def restore(self, snapshot: Any) -> None:
        """Goes back to a snapshot, to replay a run."""


@dataclass(frozen=True)
class PathSource(NoiseSource):
    """The default source: stream "initial" of a `Noise`, then increments of its Brownian path.

    Intervals that overlap are correlated as they are on the path; disjoint ones are independent. The path is looked at
    first at the positions of the run's grid, from coarse to fine; where there is none, at all ends of intervals.
    """

    noise: Noise
    grid: tuple[float, ...] = ()

    def along(self, grid: Sequence[float]) -> PathSource:
        """The same for a run on these increasing positions."""
        return replace(self, grid=tuple(grid))

    def initial(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """Stream "initial", k = 0."""
        return self.noise.normal("initial", 0, shape, dtype=dtype, device=device)

    def intervals(
        self, requests: Sequence[Request], shape: Sequence[int], dtype: torch.dtype, device: torch.device | str
    ) -> Iterator[Tensor]:
        """Increments of one `BrownianPath`, or draws of another stream; all positions are checked at once."""
        ends = {p for a, b, stream, _ in requests if stream == "path" for p in (a, b)}
        for a, b, stream, _ in requests:
            if stream == "path":
                check_interval(a, b)
        grids = (list(self.grid), sorted(ends.difference(self.grid)))
        points = [grid[i] for grid in grids for i in (*{0, len(grid) - 1}, *coarse_to_fine(len(grid) - 1)) if grid]
        path = BrownianPath(self.noise, shape, dtype, device, points=points if ends else None)
        return (
            path.increment(a, b)
            if stream == "path"
            else self.noise.normal(stream, index, shape, dtype=dtype, device=device)
            for a, b, stream, index in requests
        )


@dataclass(frozen=True)
class GeneratorSource(NoiseSource):
    """Independent normals drawn in order from a `torch.Generator`, on its own device.

    The numbers of a sample depend on the batch around it and on what was drawn before: the promise of `Noise` that a
    sample has the same bits in any batch is lost, and positions do not matter. Drawing advances the generator;
    `snapshot` and `restore` replay a run.
    """

    generator: torch.Generator

    def _draw(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
        g = self.generator
        return torch.randn(tuple(shape), generator=g, dtype=dtype, device=g.device).to(device)

    def initial(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
        check_state(shape, dtype)
        return self._draw(shape, dtype, device)

    def intervals(
        self, requests: Sequence[Request], shape: Sequence[int], dtype: torch.dtype, device: torch.device | str
    ) -> Iterator[Tensor]:
        check_state(shape, dtype)
        return (self._draw(shape, dtype, device) for _ in requests)

    def snapshot(self) -> Tensor:
        return self.generator.get_state()

    def restore(self, snapshot: Tensor) -> None:
        self.generator.set_state(snapshot)


@dataclass(frozen=True)
class TensorSource(NoiseSource):
    """Ready noise: row l of a tensor of shape (n_intervals, batch, ...) is the noise of the l-th interval.

    Args:
        noise: floating tensor (n_intervals, batch, ...); more rows than intervals are legal, the rest is not used.
        start: where the starting noise comes from.
    """

    noise: Tensor
    start: Noise = field(default_factory=Noise)

    def __post_init__(self) -> None:
        if not self.noise.is_floating_point() or self.noise.ndim < 2:
            raise ValueError(
                f"noise tensor has shape {tuple(self.noise.shape)} and dtype {self.noise.dtype}; "
                "it must be floating, of shape (n_intervals, batch, ...); "
                "stack one standard normal state for each interval."
            )

    def initial(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
        return self.start.normal("initial", 0, shape, dtype=dtype, device=device)

    def intervals(
        self, requests: Sequence[Request], shape: Sequence[int], dtype: torch.dtype, device: torch.device | str
    ) -> Iterator[Tensor]:
        """Rows of the tensor, in order; the shape and the number of rows are checked at once."""
        check_state(shape, dtype)
        n, got = len(requests), tuple(self.noise.shape)
        if got[1:] != tuple(shape) or got[0] < n:
            raise ValueError(
                f"noise tensor has shape {got}; this run needs ({n} or more, {', '.join(map(str, shape))}); "
                "stack one standard normal state for each interval."
            )
        return (self.noise[i].to(device=device, dtype=dtype) for i in range(n))


def noise_source(noise: Any = None, seed: int = 0, first: int = 0) -> NoiseSource:
    """The source for what a caller gave as noise.

    Args:
        noise: None for `Noise(seed, first)`; a `Noise`; any object that is a `NoiseSource`; a `torch.Generator`; or a
            tensor of shape (n_intervals, batch, ...), whose starting noise is that of `Noise(seed, first)`.
        seed: integer in [0, 2^64).
        first: number of the first sample in the batch.
    """
    if noise is None or isinstance(noise, Noise):
        return PathSource(noise or Noise(seed, first))
    if isinstance(noise, torch.Generator):
        return GeneratorSource(noise)
    if isinstance(noise, Tensor):
        return TensorSource(noise, Noise(seed, first))
    if isinstance(noise, NoiseSource):
        return noise
    raise ValueError(
        f"noise is a {type(noise).__name__}; allowed are None, a Noise, a torch.Generator, a tensor "
        "of shape (n_intervals, batch, ...) and a NoiseSource; an integer seed is given as seed=."
    )
