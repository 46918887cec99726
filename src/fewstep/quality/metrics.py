r"""Distances between two sets of feature vectors, and fidelity and coverage by nearest neighbours.

Symbols: X = {x_i}, i = 1..n, and Y = {y_j}, j = 1..m, are features, arrays (n, d) and (m, d); for the metrics with
a direction X is real and Y generated. mu, C: mean and covariance (divisor n - 1). B(x, r): ball of radius r.
NND_k(x_i): distance from x_i to its k-th nearest neighbour in X, itself not counted.
Everything is computed in float64 on the CPU.

Many sets are measured against one by a `Yardstick`. A resample is a vector of counts, how often each sample was drawn;
two sets of paired samples get the same counts, so that what they share cancels in the difference.

References:
    Heusel et al., GANs trained by a two time-scale update rule, 2017, eq. 6. https://arxiv.org/abs/1706.08500
    Gretton et al., A kernel two-sample test, JMLR 13, 2012, eq. 3.
    Binkowski et al., Demystifying MMD GANs, 2018, section 4. https://arxiv.org/abs/1801.01401
    Kynkaanniemi et al., Improved precision and recall metric, 2019. https://arxiv.org/abs/1904.06991
    Naeem et al., Reliable fidelity and diversity metrics, 2020. https://arxiv.org/abs/2002.09797
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["KernelDistance", "Neighbours", "Quality", "Yardstick", "compare", "frechet_distance", "frechet_gaussians",
           "interval", "kernel_distance", "neighbours", "precision_recall", "resamples"]  # fmt: skip

EXACT = 256  # features up to which every resample is measured for itself

Features = Tensor | np.ndarray


def frechet_distance(a: Features, b: Features) -> float:
    r"""Squared Frechet (2-Wasserstein) distance of the Gaussians with the moments of two sets (n >= 2, d).

    Biased upward by about (terms) / n: compare only values at equal set sizes, and with the data-to-data floor at that
    size. Formula and source: `frechet_gaussians`.
    """
    a, b = _pair(a, b, least=2)
    return frechet_gaussians(
        a.mean(0), torch.cov(a.T).reshape(a.shape[1], -1), b.mean(0), torch.cov(b.T).reshape(b.shape[1], -1)
    )


def frechet_gaussians(mean_a: Features, cov_a: Features, mean_b: Features, cov_b: Features) -> float:
    r"""Squared 2-Wasserstein distance of two Gaussians (Heusel et al. 2017, eq. 6; Dowson and Landau 1982).

    $$ |\mu_a - \mu_b|^2 + \mathrm{tr} C_a + \mathrm{tr} C_b - 2 \mathrm{tr} (C_a C_b)^{1/2} $$

    The last trace is the sum of the square roots of the eigenvalues of the symmetric C_a^{1/2} C_b C_a^{1/2}, which has
    the eigenvalues of C_a C_b: two symmetric eigendecompositions, no complex square root, singular covariances allowed.
    Means are (d,), covariances (d, d) symmetric and positive semi-definite.
    """
    mean_a, cov_a, mean_b, cov_b = (torch.as_tensor(v, dtype=torch.float64) for v in (mean_a, cov_a, mean_b, cov_b))
    cross = _cross(_root(cov_a), cov_b)
    return max(0.0, float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross))


def _root(covariance: Tensor) -> Tensor:
    """C^{1/2}."""
    lam, U = torch.linalg.eigh(covariance)
    return (U * lam.clamp_min(0).sqrt()) @ U.T


def _cross(root: Tensor, covariance: Tensor) -> Tensor:
    """The last trace, of C_a^{1/2} and C_b."""
    return torch.linalg.eigvalsh(root @ covariance @ root).clamp_min(0).sqrt().sum()


@dataclass(frozen=True)
class KernelDistance:
    """`value`: unbiased MMD^2, which may be negative; `error`: its standard error."""

    value: float
    error: float


def kernel_distance(a: Features, b: Features, *, blocks: int = 16) -> KernelDistance:
    r"""Unbiased squared maximum mean discrepancy with the cubic kernel (KID; Binkowski et al. 2018, section 4).

    $$ \frac{\sum_{i \ne i'} k(x_i, x_{i'})}{n (n - 1)} + \frac{\sum_{j \ne j'} k(y_j, y_{j'})}{m (m - 1)}
       - \frac{2}{n m} \sum_{i,j} k(x_i, y_j), \qquad k(x, y) = (x \cdot y / d + 1)^3 $$

    (Gretton et al. 2012, eq. 3.) Unbiased at every size, so sets of different sizes may be compared; near 0 when both
    come from one distribution. The error is a block jackknife: both sets are cut into `blocks` consecutive blocks
    and the estimate repeated with each pair of blocks left out, error^2 = (B - 1) / B sum (v_b - mean)^2. Rows are
    taken to be in random order. Where we differ: the paper averages over several small subsets and common
    code (1000 rows each) reports their spread, which is the error of a subset, not of the whole.

    Args:
        a: features (n, d).
        b: features (m, d).
        blocks: B; each set needs at least 2 B rows, else B is lowered to fit.
    """
    a, b = _pair(a, b, least=4)
    blocks = max(2, min(blocks, len(a) // 2, len(b) // 2))
    na, aa, a_self = _block_sums(a, a, blocks)
    nb, bb, b_self = _block_sums(b, b, blocks)
    _, ab, _ = _block_sums(a, b, blocks)
    aa, bb = aa - torch.diag(a_self), bb - torch.diag(b_self)  # without k(x, x)

    def estimate(keep: Tensor) -> Tensor:
        n, m = na[keep].sum(), nb[keep].sum()
        within = [s[keep][:, keep].sum() / (c * (c - 1)) for s, c in ((aa, n), (bb, m))]
        return within[0] + within[1] - 2 * ab[keep][:, keep].sum() / (n * m)

    every = torch.arange(blocks)
    left_out = torch.stack([estimate(every[every != i]) for i in range(blocks)])
    error = ((blocks - 1) / blocks * (left_out - left_out.mean()).square().sum()).sqrt()
    return KernelDistance(float(estimate(every)), float(error))


def _block_sums(a: Tensor, b: Tensor, blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows per block of a (B,), kernel sums over each pair of blocks (B, B), sums of k(x, x) by block of a (B,)."""
    parts, others = a.tensor_split(blocks), b.tensor_split(blocks)
    sums = torch.zeros(blocks, blocks, dtype=torch.float64)
    for i, x in enumerate(parts):
        for j, y in enumerate(others):
            sums[i, j] = sums[j, i] if a is b and j < i else _kernel(x, y).sum()
    own = torch.stack([((p.square().sum(1) / p.shape[1] + 1) ** 3).sum() for p in parts])
    return torch.tensor([len(p) for p in parts], dtype=torch.float64), sums, own


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return torch.addmm(torch.ones((), dtype=x.dtype), x, y.T, alpha=1 / x.shape[1]).pow_(3)


@dataclass(frozen=True)
class Neighbours:
    """Fidelity (precision, density) and coverage of the data (recall, coverage); each is 0 for sets far apart."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(real: Features, fake: Features, *, k: int = 5) -> tuple[float, float]:
    """Precision and recall of Kynkaanniemi et al. 2019; see `neighbours`."""
    result = neighbours(real, fake, k=k)
    return result.precision, result.recall


def neighbours(real: Features, fake: Features, *, k: int = 5) -> Neighbours:
    r"""Precision, recall, density and coverage from k-nearest-neighbour balls.

    $$ f(y, X) = 1[\exists i: y \in B(x_i, NND_k(x_i))], \quad
       \mathrm{precision} = \frac1m \sum_j f(y_j, X), \quad \mathrm{recall} = \frac1n \sum_i f(x_i, Y) $$

    (Kynkaanniemi et al. 2019), and (Naeem et al. 2020)

    $$ \mathrm{density} = \frac{1}{k m} \sum_{j, i} 1[y_j \in B(x_i, NND_k(x_i))], \quad
       \mathrm{coverage} = \frac1n \sum_i 1[\exists j: y_j \in B(x_i, NND_k(x_i))]. $$

    For two sets from one distribution density is 1 on average and coverage is (Naeem et al.)
    1 - (n-1)...(n-k) / ((n+m-1)...(n+m-k)), about 1 - 2^-k at n = m. Balls are closed, so identical sets give 1, 1, 1
    or more, 1. Take n = m: precision grows and recall falls with the share of real images.

    Args:
        real: X (n, d), n > k.
        fake: Y (m, d), m > k.
        k: which neighbour sets the radius.
    """
    real, fake = _pair(real, fake, least=2)
    if not 1 <= k < min(len(real), len(fake)):
        sets = f"{len(real)} real and {len(fake)} generated features; it is at least 1 and below both"
        raise ValueError(f"k came as {k} for {sets}; choose a smaller k or more samples.")
    r_real, r_fake = _radii(real, k), _radii(fake, k)
    in_real = torch.zeros(len(fake), dtype=torch.float64)  # number of real balls that hold y_j
    recalled, covered = [], []
    for x, r in zip(real.split(1024), r_real.split(1024), strict=True):
        distance = _distances(x, fake)  # (rows, m)
        inside = distance <= r[:, None]
        in_real += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distance <= r_fake).any(1))
    shares = (in_real > 0, torch.cat(recalled), torch.cat(covered))
    precision, recall, coverage = (float(v.double().mean()) for v in shares)
    return Neighbours(precision=precision, recall=recall, density=float(in_real.mean() / k), coverage=coverage)


def _radii(x: Tensor, k: int) -> Tensor:
    """NND_k of every row: the (k + 1)-th smallest distance, since the smallest is the row itself."""
    return torch.cat([_distances(part, x).kthvalue(k + 1, dim=1).values for part in x.split(1024)])


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")  # exact zeros for equal rows


@dataclass(frozen=True)
class Quality:
    """The quality numbers of a set of samples against a reference set of the features' space."""

    samples: int
    reference: int
    frechet: float
    kernel: float
    kernel_error: float
    precision: float
    recall: float
    density: float
    coverage: float

    def as_dict(self) -> dict[str, float]:
        """The fields as a plain dict, ready for JSON."""
        return asdict(self)


def compare(real: Features, fake: Features, *, k: int = 5) -> Quality:
    """All metrics of features (m, d) against the whole of the `real` (n, d); neighbours at equal size, with their k.

    For the neighbour metrics the larger set is cut to the size of the smaller one (its first rows).
    """
    real, fake = _pair(real, fake, least=4)
    n = min(len(real), len(fake))
    kernel, near = kernel_distance(real, fake), neighbours(real[:n], fake[:n], k=k)
    return Quality(samples=len(fake), reference=len(real), frechet=frechet_distance(real, fake), kernel=kernel.value,
                   kernel_error=kernel.error, **asdict(near))  # fmt: skip


def _pair(a: Features, b: Features, *, least: int) -> tuple[Tensor, Tensor]:
    """Both sets as float64 (rows, d), or one sentence about what is wrong with them."""
    a, b = (torch.as_tensor(v).detach().to("cpu", torch.float64) for v in (a, b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < least:
        raise ValueError(
            f"features came as {tuple(a.shape)} and {tuple(b.shape)}; two arrays (rows, d) with one d and at least "
            f"{least} rows each are needed; take both from one feature network."
        )
    for name, v in (("first", a), ("second", b)):
        if not bool(torch.isfinite(v).all()):
            wrong = f"the {name} features hold NaN or infinity"
            raise ValueError(f"{wrong}; finite numbers are needed; look at the samples.")
    return a, b


class Yardstick:
    """The Frechet distance of weighted sets to one real set X (n >= 2, d): see `fewstep.quality.frechet_gaussians`."""

    def __init__(self, real: Features) -> None:
        real = torch.as_tensor(real, dtype=torch.float64)
        self.mean, covariance = real.mean(0), torch.cov(real.T).reshape(real.shape[1], -1)
        self.trace = covariance.trace()
        self.root = _root(covariance)

    def frechet(self, features: Features, counts: Tensor | None = None) -> float:
        """Squared Frechet distance of the features (m, d), the i-th taken `counts[i]` times, to the real ones."""
        mean, covariance, _ = _moments(features, counts)
        cross = _cross(self.root, covariance)
        return max(0.0, float((mean - self.mean).square().sum() + covariance.trace() + self.trace - 2 * cross))

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
    drawn = torch.randint(count, (times, count), generator=torch.Generator().manual_seed(seed))
    return torch.stack([torch.bincount(row, minlength=count) for row in drawn])


def interval(value: float, resampled: Tensor, *, level: float = 0.95) -> tuple[float, float]:
    """The basic bootstrap interval: twice the value minus the resamples' quantiles, which undoes their bias."""
    tail = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(resampled.double(), tail).tolist()
    return 2 * value - high, 2 * value - low
