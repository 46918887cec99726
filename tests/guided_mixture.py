"""A mixture whose classifier is exact, on every kind of process."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import fewstep as fs
from fewstep.process.operator import apply

PROCESSES = ("vp", "edm", "flow", "sub-vp", "cld", "blurring")
MEANS = 1.5 * torch.randn(6, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
FIRST, SECOND = slice(0, 2), slice(2, 5)


def process_of(name: str) -> fs.Process:
    return fs.Blurring(size=(2, 2), sigma_blur_max=1.0) if name == "blurring" else fs.PROCESSES[name]()


def middle(process: fs.Process) -> float:
    return float(process.inverse_log_snr(-0.4))


def states(process: fs.Process, t: float, count: int = 5) -> Tensor:
    g = torch.Generator().manual_seed(3)
    x0 = MEANS[torch.randint(6, (count,), generator=g)]
    eps = torch.randn(count, *process.state_shape((1, 2, 2)), dtype=torch.float64, generator=g)
    return process.diffuse(x0, t, eps)


def mixture(process: fs.Process, which: slice = slice(None)) -> fs.Mixture:
    return fs.Mixture(process, MEANS[which], 0.4)


def log_class(process: fs.Process, which: slice, z: Tensor, t: object) -> Tensor:
    """log p(component in `which` | z): the exact classifier, with 6 components of equal weight."""
    share = len(MEANS[which]) / len(MEANS)
    one, every = mixture(process, which), mixture(process)
    return fs.marginal_log_prob(one, z, t) - fs.marginal_log_prob(every, z, t) + math.log(share)


def posterior(process, prior, z: Tensor, t: float, a: Tensor, y: float, std: float, noise: float) -> Tensor:
    """E[x0 | z, y] by dense linear algebra on (state, y) jointly Gaussian with x0."""
    eye = torch.eye(4, dtype=torch.float64).reshape(4, 1, 2, 2)
    M = apply(process.M(t), process.coordinates(eye)).reshape(4, -1).T  # state = M x0 + noise
    basis = torch.eye(M.shape[0], dtype=torch.float64).reshape(-1, *z.shape[1:])
    cov = apply(process.Sigma(t), basis).reshape(len(basis), -1)
    A = torch.cat([M, a.reshape(1, 4)])
    S = torch.block_diag(cov, torch.tensor([[noise**2]], dtype=torch.float64)) + std**2 * A @ A.T
    seen = torch.cat([z.flatten(1), torch.full((len(z), 1), y, dtype=torch.float64)], 1)
    return (seen @ torch.linalg.solve(S, std**2 * A)).reshape(len(z), 1, 2, 2)
