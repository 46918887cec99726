r"""Fokker-Planck: the density of the noising SDE by finite differences, beside the exact law and the reverse SDE.

$$ \partial_t p = -\partial_z (F z\, p) + \tfrac12 G G^T\, \partial_z^2 p $$

The equation is solved upwards in time from a mixture on a line (implicit midpoint in time, central differences in
space) and held against the mixture's own law at t_max; a histogram of the reverse SDE at the end of its run is held
against the law it should have come back to.

Anderson, Reverse-time diffusion equation models, 1982, https://doi.org/10.1016/0304-4149(82)90051-5; Song et al.,
2021, appendix D, https://arxiv.org/abs/2011.13456.

    python recipes/fokker-planck.py
"""

from __future__ import annotations

import torch
from book import run

import fewstep as fs


def main(short: bool) -> dict[str, float]:
    """L1 distances: of the equation's solution to the law, and of the reverse SDE's histogram to it."""
    cells, times, num = (201, 100, 5000) if short else (601, 400, 50_000)
    process = fs.VP(t_min=0.01)
    means = torch.tensor([[-1.0], [0.8]], dtype=torch.float64)
    data = fs.Mixture(process, means, torch.tensor([0.3, 0.4]), torch.tensor([0.4, 0.6]))
    z = torch.linspace(-6, 6, cells, dtype=torch.float64)
    width = float(z[1] - z[0])

    def law(t: float) -> torch.Tensor:
        return fs.marginal_log_prob(data, z[:, None], t).exp()

    slope = (torch.diag(torch.ones(cells - 1), 1) - torch.diag(torch.ones(cells - 1), -1)).double() / (2 * width)
    bend = (torch.diag(torch.ones(cells - 1), 1) + torch.diag(torch.ones(cells - 1), -1)).double()
    bend = (bend - 2 * torch.eye(cells, dtype=torch.float64)) / width**2
    grid = torch.linspace(process.t_min, process.t_max, times + 1, dtype=torch.float64)
    p, one = law(process.t_min), torch.eye(cells, dtype=torch.float64)
    for t, s in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        middle = (t + s) / 2
        step = (s - t) / 2 * (-slope @ torch.diag(process.F(middle) * z) + 0.5 * process.GG(middle) * bend)
        p = torch.linalg.solve(one - step, p + step @ p)
    solved = float((p - law(process.t_max)).abs().sum() * width)

    x = fs.sample(data, process, solver="euler-maruyama", steps=1000 if not short else 200, shape=(num, 1), seed=0)
    counted = torch.histc(x.double(), 60, -3, 3) / num
    fine = torch.linspace(-3, 3, 6001, dtype=torch.float64)[:-1] + 5e-4
    inside = fs.marginal_log_prob(data, fine[:, None], process.t_min).exp().reshape(60, 100).sum(1) * 1e-3
    sampled = float((counted - inside).abs().sum())
    assert solved < (0.02 if short else 0.005)
    assert sampled < (0.15 if short else 0.05)
    return {"L1 of the equation to the law": solved, "L1 of the reverse SDE to the law": sampled}


if __name__ == "__main__":
    run(main, __doc__)
