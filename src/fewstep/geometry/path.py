r"""The geometry of a run: its states, the denoised path beside them, and what shape they have.

States of every process are looked at in data space, where the data they hold is unscaled:

$$ \bar z_t = A_t z_t = x_0 + e^{-\lambda_t} n, \qquad A_t = (M_t^T \Sigma_t^{-1} M_t)^{-1} M_t^T \Sigma_t^{-1} $$

(z / alpha for scalar processes). In rho = e^-lambda the ODE of a scalar process is d z_bar / d rho = (z_bar - D) / rho:
a state moves along the segment to its own D, so the path bends only as D moves.

References: Chen et al., A geometric perspective on diffusion models, 2023, https://arxiv.org/abs/2305.19947.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.denoiser.base import Denoises
from fewstep.geometry.encode import AnySolver
from fewstep.grid import Grid
from fewstep.loop import sample, tabulate
from fewstep.loop.drive import predict
from fewstep.process import Process
from fewstep.process.operator import apply
from fewstep.process.predict import statistic
from fewstep.words import one_of, typed

__all__ = ["Trajectory", "trajectory"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """A run of `trajectory`: one point for every network call, and one at the end.

    - `times`: (points,), float64, noise to data.
    - `states`: (points, batch, *state), as the solver made them.
    - `positions`: (points, batch, *data): the states in data space, z_bar of the module docstring.
    - `denoised`: (points, batch, *data): D of every state.

    The measures below take `of`: "positions" or "denoised".
    """

    times: Tensor
    states: Tensor
    positions: Tensor
    denoised: Tensor

    def gap(self) -> Tensor:
        """Distance of every state to its own prediction, |z_bar - D|, (points, batch)."""
        return (self.positions - self.denoised).flatten(2).norm(dim=2)

    def length(self, of: str = "positions") -> Tensor:
        """Length of the path, (batch,)."""
        return self._path(of).diff(dim=0).norm(dim=2).sum(0)

    def straightness(self, of: str = "positions") -> Tensor:
        """Distance of the ends over the length, (batch,): 1 for a straight path."""
        path = self._path(of)
        return (path[-1] - path[0]).norm(dim=1) / self.length(of)

    def deviation(self, of: str = "positions") -> Tensor:
        """Distance of every point to the line through the ends, (points, batch)."""
        path = self._path(of)
        chord = path[-1] - path[0]
        away = path - path[0]
        along = (away * chord).sum(2, keepdim=True) / chord.square().sum(1)[:, None]
        return (away - along * chord).norm(dim=2)

    def curvature(self, of: str = "positions") -> Tensor:
        """Curvature at the inner points, (points - 2, batch): of the circle through a point and its neighbours."""
        path = self._path(of)
        a, b = path[1:-1] - path[:-2], path[2:] - path[1:-1]
        p, q, r = a.norm(dim=2), b.norm(dim=2), (a + b).norm(dim=2)
        square = (p * q) ** 2 - (a * b).sum(2) ** 2  # four times the triangle's squared area
        return 2 * square.clamp(min=0).sqrt() / (p * q * r)

    def explained(self, components: int = 3, of: str = "positions") -> Tensor:
        """Share of every path's variance in its first principal components, cumulated, (batch, components)."""
        path = self._path(of).transpose(0, 1)
        power = torch.linalg.svdvals(path - path.mean(1, keepdim=True)).square()
        found = power.cumsum(1) / power.sum(1, keepdim=True)
        rest = torch.ones(len(found), max(components - found.shape[1], 0), dtype=found.dtype, device=found.device)
        return torch.cat([found[:, :components], rest], 1)

    def _path(self, of: str) -> Tensor:
        one_of("of", of, ("positions", "denoised"))
        return getattr(self, of).flatten(2).to(torch.float64)


@typed
def trajectory(
    denoiser: Denoises,
    process: Process,
    *,
    solver: AnySolver = None,
    grid: str | Tensor | Grid = "default",
    steps: int | None = None,
    nfe: int | None = None,
    shape: tuple[int, ...] | None = None,
    x: Tensor | None = None,
    seed: int = 0,
    first: int = 0,
    final: str = "zero",
    dtype: torch.dtype = torch.float64,
) -> Trajectory:
    """Runs a table and keeps every evaluated state with its prediction.

    The arguments are those of `sample`. One more call is for the prediction of a last state with noise. Rows at which
    the states hold no data (alpha = 0) have no place in data space and are left out.
    """
    table = tabulate(solver, process, grid=grid, steps=steps, nfe=nfe, final=final)
    kept: list[tuple[float, Tensor, Tensor]] = []
    last = sample(
        denoiser, process, solver=table, shape=shape, x=x, seed=seed, first=first, dtype=dtype, progress=False,
        callback=lambda _, t, z, d: kept.append((t, z.clone(), d.clone())),
    )  # fmt: skip
    end = float(table.grid[-1])
    if float(process.log_snr(end)) == math.inf:
        d = process.to_data(last)
    else:
        with torch.no_grad():
            d = process.from_coordinates(predict(denoiser, process, last, end))
    kept = [point for point in (*kept, (end, last, d)) if float(process.log_snr(point[0])) > -math.inf]
    return Trajectory(
        times=torch.tensor([t for t, _, _ in kept], dtype=torch.float64),
        states=torch.stack([z for _, z, _ in kept]),
        positions=torch.stack([_position(process, z, t) for t, z, _ in kept]),
        denoised=torch.stack([d for _, _, d in kept]),
    )


def _position(process: Process, z: Tensor, t: float) -> Tensor:
    """A_t z in data space."""
    if float(process.log_snr(t)) == math.inf:
        return process.to_data(z)
    return process.from_coordinates(apply(statistic(process, t), z))
