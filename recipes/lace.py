r"""LACE: AND, OR and NOT of attributes as energies in a generator's latent space, by one ODE.

$$ p(z, c) \propto e^{-E(z)} N(z; 0, I), \qquad dz = \tfrac12 \beta(t) \sum_i \nabla_z E_i(z)\, dt $$

On VP the normal law of the latents stays as it is, so its score and the drift cancel. The generator is a smooth map
from six latents to the plane, and each attribute a logistic function of one of its coordinates. The energies are of
clean latents and taken at every time as they are, as in the paper, so the ODE is no exact sampler: beside samples of
rejection, which are, its own have the attributes more surely and lie farther out.

Nie, Vahdat and Anandkumar, Controllable and compositional generation with latent-space energy-based models, 2021,
section 3, https://arxiv.org/abs/2110.10873.

    python recipes/lace.py
"""

from __future__ import annotations

import torch
from book import run
from torch import Tensor

import fewstep as fs

WEIGHTS = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) / 6**0.5


def generator(z: Tensor) -> Tensor:
    """Six latents to the plane."""
    x = z.double() @ WEIGHTS.T
    return x + 0.3 * torch.sin(2 * x.flip(1))


def right(z: Tensor, t: object) -> Tensor:
    """Log p(right | z)."""
    return torch.nn.functional.logsigmoid(6 * generator(z)[:, 0])


def high(z: Tensor, t: object) -> Tensor:
    """Log p(high | z)."""
    return torch.nn.functional.logsigmoid(6 * generator(z)[:, 1])


def main(short: bool) -> dict[str, float]:
    """How probable each composition is at samples of the ODE and at exact ones, their spread, and AND's accuracy."""
    num = 500 if short else 5000
    process = fs.VP()
    latent = fs.Gaussian(process, 0.0, 1.0)
    compositions = {
        "right AND high": fs.conjunction(right, high),
        "right AND NOT high": fs.conjunction(right, fs.negation(high)),
        "right OR high": fs.disjunction(right, fs.conjunction(high, fs.negation(right))),
    }
    pool = torch.randn(200_000, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chance = torch.rand(len(pool), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    figures = {}
    for name, log_prob in compositions.items():
        z = fs.sample(
            fs.ClassifierGuided(latent, log_prob), process, final="state", steps=20, shape=(num, 6), dtype=torch.float64
        )
        kept = pool[chance.log() < log_prob(pool, 0.0)]
        found, exact = (float(log_prob(v, 0.0).exp().mean()) for v in (z, kept))
        figures[f"{name}: probability by the ODE"] = found
        figures[f"{name}: of exact samples"] = exact
        figures[f"{name}: spread over exact"] = float(z.std(0).norm() / kept.std(0).norm())
        assert found > exact
    x = generator(
        fs.sample(
            fs.ClassifierGuided(latent, compositions["right AND high"]),
            process,
            final="state",
            steps=20,
            shape=(num, 6),
        )
    )
    both = float(((x[:, 0] > 0) & (x[:, 1] > 0)).double().mean())
    assert both >= 0.8
    return figures | {"right AND high: share that has both": both}


if __name__ == "__main__":
    run(main, __doc__)
