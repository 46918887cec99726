r"""Classifier guidance: at scale 1 with the exact classifier it is the conditional law, beyond it trades variety away.

$$ s(z, t | c) = s(z, t) + w\, \nabla_z \log p(c | z, t) $$

A mixture of six clusters in two classes; its classifier at every noise level is known. Samples at w = 1 are held to
the conditional by the Frechet distance, beside as many true ones; accuracy rises and spread falls with w.

Dhariwal and Nichol, Diffusion models beat GANs on image synthesis, 2021, section 4, https://arxiv.org/abs/2105.05233.

    python recipes/classifier-guidance.py
"""

from __future__ import annotations

from functools import partial

import torch
from book import run
from torch import Tensor

import fewstep as fs
from fewstep.quality import frechet_distance

CENTRES = torch.tensor([[x, y] for x in (-0.7, 0.7) for y in (-1.5, 0.0, 1.5)], dtype=torch.float64)
STD = 0.5  # the classes overlap


def log_class(one: fs.Mixture, every: fs.Mixture, z: Tensor, t: float | Tensor) -> Tensor:
    """Log p(c | z) of half the clusters."""
    return fs.marginal_log_prob(one, z, t) - fs.marginal_log_prob(every, z, t) + torch.tensor(0.5).log()


def main(short: bool) -> dict[str, float]:
    """The distance at w = 1, and accuracy and spread by w."""
    num = 1000 if short else 10_000
    process = fs.VP()
    every, one = fs.Mixture(process, CENTRES, STD), fs.Mixture(process, CENTRES[3:], STD)
    classifier = partial(log_class, one, every)
    g = torch.Generator().manual_seed(0)
    real, other = (one.sample(num, g) for _ in range(2))
    accuracy, spread = {}, {}
    for w in (0.0, 1.0, 3.0, 8.0):
        guided = fs.ClassifierGuided(every, classifier, w)
        x = fs.sample(guided, process, final="state", steps=40, shape=(num, 2), dtype=torch.float64, seed=0)
        accuracy[w] = float((x[:, 0] > 0).double().mean())  # the optimal classifier of clean data
        spread[w] = float(x.std(0).square().sum().sqrt())
        if w == 1:
            found, floor = frechet_distance(x, real), frechet_distance(other, real)
    assert found < (10 if short else 3) * floor + 0.002
    assert list(accuracy.values()) == sorted(accuracy.values())
    assert spread[8.0] < spread[3.0] < spread[1.0] < spread[0.0]
    return (
        {"Frechet distance at w = 1": found, "the same of true samples": floor}
        | {f"accuracy at w = {w:g}": value for w, value in accuracy.items()}
        | {f"spread at w = {w:g}": value for w, value in spread.items()}
    )


if __name__ == "__main__":
    run(main, __doc__)
