r"""The exact log density of a closed-form denoiser's data after a process's noise.

With b = M^T Sigma^-1 z, n = M^T Sigma^-1 M and the mixture of N(mu_k, s_k^2), by the matrix inversion and determinant
lemmas (coordinates summed over)

$$ \log p_t(z) = -\tfrac12 \Big( z^T \Sigma^{-1} z - \frac{b^2}{n} \Big) - \tfrac12 \log\det 2\pi\Sigma
   + \log \sum_k w_k \exp\Big( -\tfrac12 \log(1 + s_k^2 n) - \tfrac12 \frac{n}{1 + s_k^2 n} (b/n - \mu_k)^2 \Big). $$

It is what the likelihoods of this package are tested against, and the noise level's Gibbs step in `denoising_mcmc`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.denoiser.oracle import Dataset, Mixture, _matched
from fewstep.process.base import Process, Time
from fewstep.process.operator import apply, inverse, log_det
from fewstep.words import typed

__all__ = ["gaussian_log_prob", "marginal_log_prob"]


@typed
def marginal_log_prob(oracle: Mixture | Dataset, z: Tensor, t: Time) -> Tensor:
    """The log density p_t(z) in nats of states z (batch, *state) at a time or (batch,) times, (batch,) in float64.

    `oracle` is a `Mixture` (or `Gaussian`) or a `Dataset`; sigma must be above 0.
    """
    p, z = oracle.process, z.to(torch.float64)
    b, n = _matched(p, z, t)
    shape = tuple(b.shape[1:])
    n = n.expand(len(n), *shape)
    estimate = torch.where(n > 0, b / torch.where(n > 0, n, 1.0), 0.0)
    rest = gaussian_log_prob(p, z, t) + 0.5 * (estimate * b).flatten(1).sum(1)
    if isinstance(oracle, Mixture):
        mu, std = (v.to(z.device) for v in oracle._components(shape))
        n, estimate = n[:, None], estimate[:, None]
        wide = 1 + std**2 * n
        energy = ((n / wide) * (estimate - mu) ** 2 + wide.log()).flatten(2).sum(2)
        return rest + (oracle.log_weights.to(z.device) - 0.5 * energy).logsumexp(1)
    total = torch.full((len(z),), -math.inf, dtype=torch.float64, device=z.device)
    b, n, estimate = b.flatten(1), n.flatten(1), estimate.flatten(1)
    for start in range(0, len(oracle.items), oracle.chunk):
        x = oracle.items[start : start + oracle.chunk].to(z.device, torch.float64) * oracle.scale + oracle.shift
        x = p.coordinates(x).flatten(1)
        energy = n @ (x * x).T - 2 * b @ x.T + (estimate * b).sum(1, keepdim=True)
        total = torch.logaddexp(total, (-0.5 * energy).logsumexp(1))
    return rest + total - math.log(len(oracle.items))


def gaussian_log_prob(process: Process, z: Tensor, t: Time) -> Tensor:
    """The log density N(z; 0, Sigma_t) in nats, (batch,): the law of the start states of a sampler."""
    whitened = apply(inverse(process.R(t)), z).flatten(1)
    spread = log_det(process.R(t), process.data_shape(tuple(z.shape[1:])))
    spread = spread.to(z.device) if isinstance(spread, Tensor) else spread
    return -0.5 * whitened.square().sum(1) - 0.5 * whitened.shape[1] * math.log(math.tau) - spread
