r"""The first diffusion model on its swiss roll: forty steps, the forward variance, and the bound on the likelihood.

$$ -\log p(x) \le KL(q(z_T | x) | p(z_T)) + \sum_t E\, KL(q(z_s | z_t, x) | p(z_s | z_t)) - E \log p(x | z_0) $$

The data are points of the roll, each with a little spread, so that the best reverse mean is known and so is their
density: the bound rises towards it with the number of steps and never passes it.

Sohl-Dickstein et al., Deep unsupervised learning using nonequilibrium thermodynamics, 2015, sections 2.3 and 3.1,
https://arxiv.org/abs/1503.03585. The paper learns mean and variance; here the mean is exact.

    python recipes/diffusion-2015.py
"""

from __future__ import annotations

import torch
from book import run

import fewstep as fs


def roll(num: int, seed: int) -> torch.Tensor:
    """Points on the swiss roll of the paper's first figure, of deviation about 1."""
    u = torch.rand(num, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).sqrt()
    angle = 3 * torch.pi * u
    return 1.6 * u[:, None] * torch.stack([angle.cos(), angle.sin()], 1)


def sliced(x: torch.Tensor, y: torch.Tensor) -> float:
    """The sliced Wasserstein-2 distance over 64 directions."""
    angle = torch.arange(64, dtype=torch.float64) * torch.pi / 64
    w = torch.stack([angle.cos(), angle.sin()])
    return float(((x @ w).sort(0).values - (y @ w).sort(0).values).square().mean().sqrt())


def main(short: bool) -> dict[str, float]:
    """Distances of forty steps' samples to data, and the bound's gap to the density at growing numbers of steps."""
    num, points = (300, 200) if short else (4000, 500)
    process = fs.Discrete()
    data = fs.Mixture(process, roll(points, 0), 0.04)
    x = fs.sample(
        data, process, solver="ddpm-beta", final="state", steps=40, shape=(num, 2), dtype=torch.float64, seed=0
    )
    real, other = (data.sample(num, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    found, floor = sliced(x, real), sliced(other, real)

    some = data.sample(20 if short else 100, torch.Generator().manual_seed(3))
    clean = torch.distributions.Normal(data.means.double(), 0.04)
    exact = clean.log_prob(some[:, None].double()).sum(2).logsumexp(1) - torch.tensor(points).double().log()
    gaps = []
    for steps in (10, 40, 160):
        bound = fs.elbo(data, process, some, solver="ddpm-beta", steps=steps, draws=2 if short else 4)
        gaps.append(float((exact - bound.nats).mean()))
    assert gaps[0] > gaps[1] > gaps[2] > -0.1
    assert found < (4 if short else 1.5) * floor
    return {
        "sliced W2 of 40 steps to data": found,
        "sliced W2 of data to data": floor,
        "gap of the bound in 10 steps, nats": gaps[0],
        "gap of the bound in 40 steps, nats": gaps[1],
        "gap of the bound in 160 steps, nats": gaps[2],
    }


if __name__ == "__main__":
    run(main, __doc__, seeds=(0, 1, 2, 3))
