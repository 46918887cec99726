r"""Sampling is as easy as learning the score: three errors, varied one at a time, on data for which all is exact.

$$ TV \lesssim \sqrt{KL(q | \gamma)}\, e^{-T} + \sqrt{d h L^2 T} + \epsilon_{score} \sqrt{T} $$

With Gaussian data on a line everything stays Gaussian, so the total variation to the data follows from the samples'
mean and deviation. The score is made wrong by a constant; the steps h are Euler-Maruyama's; the start is N(0, 1)
where the process at time T has e^-T of its mean left. The bound's powers are upper bounds: score and start are met,
the steps do better (order 1 in h where one half is proven).

Chen, Chewi, Li, Li, Salim and Zhang, Sampling is as easy as learning the score, 2022, theorem 2,
https://arxiv.org/abs/2209.11215.

    python recipes/theory-l2-score.py
"""

from __future__ import annotations

import math

import torch
from book import run

import fewstep as fs

MEAN, STD = 1.0, 0.5
POINTS = torch.linspace(-4, 6, 20001, dtype=torch.float64)


def variation(x: torch.Tensor, process: fs.VP) -> float:
    """The total variation between N(mean(x), std(x)^2) and the process's law at its end."""
    alpha, sigma = process.alpha(process.t_min), process.sigma(process.t_min)
    exact = torch.distributions.Normal(alpha * MEAN, (alpha**2 * STD**2 + sigma**2) ** 0.5)
    found = torch.distributions.Normal(x.mean(), x.std())
    return float((found.log_prob(POINTS).exp() - exact.log_prob(POINTS).exp()).abs().sum()) * 5e-4 / 2


def power(errors: list[float]) -> float:
    """The mean power with which errors grow from one doubling to the next."""
    return math.log2(errors[-1] / errors[0]) / (len(errors) - 1)


def main(short: bool) -> dict[str, float]:
    """The power of each error, and the largest variation it made."""
    num = 30_000 if short else 1_000_000
    half = torch.randn(num // 2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = torch.cat([half, -half]) / half.square().mean().sqrt()  # mean 0 and deviation 1 exactly
    pair = torch.tensor([[-1.0], [1.0]], dtype=torch.float64) / 2**0.5  # so has this one, and the ODE's map is affine

    def made(process: fs.VP, steps: int, off: float = 0.0, solver: str = "ddim") -> float:
        exact = fs.Gaussian(process, MEAN, STD)
        # the score off by a constant c moves D = (z + sigma^2 s) / alpha by c sigma^2 / alpha
        pull = lambda t: off * process.sigma(t) ** 2 / process.alpha(t)  # noqa: E731
        grid = process.inverse_log_snr(
            torch.linspace(process.log_snr(process.t_max), process.log_snr(process.t_min), steps + 1).double()
        )
        x = pair if solver == "ddim" else start
        return variation(fs.sample(lambda z, t: exact(z, t) + pull(t), process, solver=solver, grid=grid, x=x), process)

    fine = fs.VP(t_min=1e-2)
    score = [made(fine, 400, off) for off in (0.05, 0.1, 0.2)]
    step = [made(fine, n, solver="euler-maruyama") for n in (200, 100, 50)]
    # T = int beta / 2: alpha = e^-T, halved from one to the next
    early = [made(fs.VP(t_min=1e-2, t_max=float(fine.inverse_log_snr(-math.log(1 / a**2 - 1) / 2))), 400)
             for a in (0.1, 0.2, 0.4)]  # fmt: skip
    powers = {"score": power(score), "steps": power(step), "start": power(early)}
    assert abs(powers["score"] - 1) < 0.15
    assert powers["steps"] > 0.4
    assert abs(powers["start"] - 1) < 0.25
    return {
        "power of the score's error": powers["score"],
        "power of the step": powers["steps"],
        "power of what is left of the mean, e^-T": powers["start"],
        "variation at a score off by 0.2": score[-1],
        "variation in 50 steps": step[-1],
        "variation from e^-T = 0.4": early[-1],
    }


if __name__ == "__main__":
    run(main, __doc__)
