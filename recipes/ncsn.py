r"""NCSN: annealed Langevin dynamics finds the weights of two far modes, Langevin at the data's level alone does not.

$$ z \leftarrow z + \tfrac{a_i}{2} s(z, \sigma_i) + \sqrt{a_i}\, \xi, \qquad a_i = \epsilon\, \sigma_i^2 / \sigma_L^2 $$

at levels sigma_1 > ... > sigma_L, some steps at each. Between modes that lie far apart there is no mass and so no
score: a chain at the lowest level stays in the mode nearest to its start. At high levels the modes are one.

Song and Ermon, Generative modeling by estimating gradients of the data distribution, 2019, sections 3.2 and 4.3,
https://arxiv.org/abs/1907.05600. `fs.AnnealedLangevin(step=)` is a_i / sigma_i^2, the same at each level.

    python recipes/ncsn.py
"""

from __future__ import annotations

import torch
from book import run

import fewstep as fs

WEIGHT = 0.8  # of the mode at (5, 5)
MODES = torch.tensor([[-5.0, -5.0], [5.0, 5.0]], dtype=torch.float64)


def main(short: bool) -> dict[str, float]:
    """The weight of the heavy mode in each sampler's samples, and the spread of a mode beside the data's."""
    num, levels, inner = (500, 20, 20) if short else (4000, 30, 60)
    process = fs.VE(sigma_min=0.1, sigma_max=20.0)
    data = fs.Mixture(process, MODES, 1.0, torch.tensor([1 - WEIGHT, WEIGHT]))
    solver = fs.AnnealedLangevin(inner=inner, step=0.1)
    annealed = fs.sample(data, process, solver=solver, grid="log-snr", steps=levels * inner, shape=(num, 2), seed=1)
    start = 16 * torch.rand(num, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 8
    low = process.inverse_log_snr(-torch.tensor([0.11, 0.1], dtype=torch.float64).log())
    solver = fs.AnnealedLangevin(inner=levels * inner, step=0.1)
    plain = fs.sample(data, process, solver=solver, grid=low, x=start, seed=1)
    found = {name: float((x.sum(1) > 0).double().mean()) for name, x in (("annealed", annealed), ("plain", plain))}
    spread = float((annealed[annealed.sum(1) > 0] - MODES[1]).std())
    assert abs(found["annealed"] - WEIGHT) < (0.06 if short else 0.03)
    assert abs(found["plain"] - 0.5) < 0.1
    assert abs(spread - 1) < (0.3 if short else 0.1)
    return {
        "weight of the heavy mode, annealed": found["annealed"],
        "weight of the heavy mode, one level": found["plain"],
        "weight of the heavy mode, data": WEIGHT,
        "spread of a mode": spread,
    }


if __name__ == "__main__":
    run(main, __doc__, seeds=(0, 1))
