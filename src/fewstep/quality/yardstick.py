"""Real features that many sets are measured against, and what resampling says about the differences.

What depends on the real features alone is computed once. A resample is a vector of counts, how often each sample was
drawn; two sets of paired samples get the same counts, so that what they share cancels in the difference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.quality.metrics import Features

__all__ = ["Yardstick", "interval", "resamples"]

EXACT = 256  # features up to which every resample is measured for itself


class Yardstick:
    r"""The Frechet distance of weighted sets to one real set X: see `fewstep.quality.frechet_gaussians`.

    Args:
        real: features (n, d), n >= 2.
    """

    def __init__(self, real: Features) -> None:
        real = torch.as_tensor(real, dtype=torch.float64)
        self.mean, covariance = real.mean(0), torch.cov(real.T).reshape(real.shape[1], -1)
        self.trace = covariance.trace()
        lam, U = torch.linalg.eigh(covariance)
        self.root = (U * lam.clamp_min(0).sqrt()) @ U.T  # C^{1/2}

    def frechet(self, features: Features, counts: Tensor | None = None) -> float:
        """Squared Frechet distance of the features (m, d), the i-th taken `counts[i]` times, to the real ones."""
        mean, covariance, _ = _moments(features, counts)
        cross = torch.linalg.eigvalsh(self.root @ covariance @ self.root).clamp_min(0).sqrt().sum()
        distance = (mean - self.mean).square().sum() + covariance.trace() + self.trace - 2 * cross
        return max(0.0, float(distance))

    def resampled(self, features: Features, counts: Tensor) -> Tensor:
        """The distance of every resample (times, m): (times,) float64.

        Above 256 features, where an eigendecomposition a resample would take hours, to first order in the counts: the
        distance plus mean(counts * `influence`), without the bias that small resamples have.
        """
        if torch.as_tensor(features).shape[1] <= EXACT:
            return torch.tensor([self.frechet(features, row) for row in counts], dtype=torch.float64)
        influence = self.influence(features)
        return self.frechet(features) + counts.double() @ influence / len(influence)

    def influence(self, features: Features) -> Tensor:
        r"""What one more copy of each sample does to m times the distance, (m,), to first order.

        $$ 2 (\mu - \mu_X)^T (y - \mu) + (y - \mu)^T G (y - \mu) - \mathrm{tr}\, G C, \qquad
           G = 1 - C_X^{1/2} (C_X^{1/2} C C_X^{1/2})^{-1/2} C_X^{1/2}: $$

        the derivatives of `frechet_gaussians` by mean and covariance, 1 - G being the optimal map from Y to X.
        """
        mean, covariance, apart = _moments(features)
        lam, U = torch.linalg.eigh(self.root @ covariance @ self.root)
        inverse_root = torch.where(lam > 1e-9 * lam[-1], lam.clamp_min(1e-300).rsqrt(), 0.0)
        bend = torch.eye(len(mean), dtype=torch.float64) - self.root @ ((U * inverse_root) @ U.T) @ self.root
        return 2 * apart @ (mean - self.mean) + ((apart @ bend) * apart).sum(1) - (bend * covariance).sum()


def _moments(features: Features, counts: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (d,), covariance (d, d) and differences from the mean (m, d) of weighted features."""
    y = torch.as_tensor(features, dtype=torch.float64)
    w = torch.ones(len(y), dtype=torch.float64) if counts is None else counts.double()
    mean = w @ y / w.sum()
    y = y - mean
    return mean, (y * w[:, None]).T @ y / (w.sum() - 1), y


def resamples(count: int, times: int, *, seed: int = 0) -> Tensor:
    """Counts (times, count): each row draws `count` of `count` samples with replacement."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (times, count), generator=generator)
    return torch.stack([torch.bincount(row, minlength=count) for row in drawn])


def interval(value: float, resampled: Tensor, *, level: float = 0.95) -> tuple[float, float]:
    """The basic bootstrap interval: twice the value minus the resamples' quantiles, which undoes their bias."""
    tail = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(resampled.double(), tail).tolist()
    return 2 * value - high, 2 * value - low
