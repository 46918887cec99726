r"""A Schroedinger bridge as two stochastic equations, trained by likelihood; score matching is its case Z = 0.

$$ L(\hat Z) = E \int \tfrac12 |\hat Z|^2 + \hat Z \cdot Z + \nabla \cdot (g \hat Z)\, dt $$

Over a short horizon data do not become noise, so a score model that begins at noise begins at the wrong law. Here the
forward drift Z is learned, too: each network is fitted to walks of the other, and together they join noise and data in
the same short time. The data are four clouds in the plane, the reference VP with beta = 1 over a time of 1.

Chen, Liu and Theodorou, Likelihood training of Schrodinger bridge using forward-backward SDEs theory, 2021, eq. 18,
https://arxiv.org/abs/2110.11291. Walks are those of averaged networks.

    python recipes/sb-fbsde.py
"""

from __future__ import annotations

from tempfile import TemporaryDirectory

import torch
from book import run
from torch import Tensor

import fewstep as fs


def clouds(count: int, seed: int) -> Tensor:
    """Points of four clouds."""
    g = torch.Generator().manual_seed(seed)
    where = 1.5 * (2 * torch.randint(0, 2, (count, 2), generator=g) - 1)
    return where + 0.3 * torch.randn(count, 2, generator=g, dtype=torch.float64)


def energy(x: Tensor, y: Tensor) -> float:
    """The energy distance of two sets of points."""
    n, m = len(x), len(y)
    within = torch.cdist(x, x).sum() / (n * (n - 1)) + torch.cdist(y, y).sum() / (m * (m - 1))
    return float(2 * torch.cdist(x, y).mean() - within)


def main(short: bool) -> dict[str, float]:
    """Energy distances to new data by score matching and by the bridge, and the bound on the likelihood of both."""
    start = torch.randn(2000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, figures = {}, {}
    for name, rounds in (("score matching", 1), ("bridge", 3)):
        with TemporaryDirectory() as folder:
            path = fs.train(clouds(4000, 0).numpy(), folder, method="fbsde", options={"rounds": rounds, "steps": 8},
                            steps=rounds * (99 if short else 400), batch=64, width=48, lr=4e-3, quiet=True)  # fmt: skip
            pair = fs.schroedinger.load(path)
        found[name] = energy(pair.draw(start), clouds(2000, 2))
        figures[f"energy distance, {name}"] = found[name]
        figures[f"nats at least, {name}"] = float(pair.bound(clouds(1000, 3)).mean())
    assert found["bridge"] < found["score matching"] / (1 if short else 4)
    return figures


if __name__ == "__main__":
    run(main, __doc__)
