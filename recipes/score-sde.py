r"""Score SDEs: reverse SDE, probability-flow ODE and predictor-corrector have the process's marginals at every time.

$$ dz = [f - g^2 s]\, dt + g\, d\bar w, \qquad dz = [f - \tfrac12 g^2 s]\, dt, \qquad
   z \leftarrow z + \eta s + \sqrt{2 \eta}\, \xi, \quad \eta = 2 (r\, |\xi| / |s|)^2 $$

A mixture on a line, whose law at every time is known, is sampled down to three times by each on VP, VE and sub-VP,
and held to that law by the Kolmogorov-Smirnov distance, sqrt(n) times which is below 1.63 with probability 0.99. In
few predictor steps corrector steps bring the samples nearer. The corrector has steps of one size here: eta of the
formula is a ratio of norms, which in one dimension is a ratio of two numbers and keeps no law; `fs.LangevinCorrected`
has it for images.

Song et al., Score-based generative modeling through stochastic differential equations, 2021, sections 4.1 to 4.3,
https://arxiv.org/abs/2011.13456.

    python recipes/score-sde.py
"""

from __future__ import annotations

import torch
from book import run

import fewstep as fs

MEANS = torch.tensor([[-1.0], [0.8]], dtype=torch.float64)
STDS, WEIGHTS = torch.tensor([0.3, 0.4]), torch.tensor([0.4, 0.6])


def distance(x: torch.Tensor, data: fs.Mixture, t: float) -> float:
    """The largest difference of the samples' distribution from the process's own at t."""
    alpha, sigma, x = data.process.alpha(t), data.process.sigma(t), x.flatten().sort().values
    spread = (alpha**2 * STDS.double() ** 2 + sigma**2).sqrt()
    exact = (torch.special.ndtr((x[:, None] - alpha * MEANS[:, 0]) / spread) * WEIGHTS.double()).sum(1)
    step = torch.arange(len(x) + 1, dtype=torch.float64) / len(x)
    return float(torch.maximum((step[1:] - exact).abs(), (step[:-1] - exact).abs()).max())


def main(short: bool) -> dict[str, float]:
    """The worst distance of each sampler, times sqrt(n); and the corrector's share of the error it leaves."""
    num, steps = (500, 100) if short else (4000, 400)
    corrected = fs.PredictorCorrector(snr=0.1)
    samplers = {"reverse SDE": "euler-maruyama", "ODE": "multistep-pc-2", "predictor-corrector": corrected}
    worst = dict.fromkeys(samplers, 0.0)
    for process in (fs.VP(),) if short else (fs.VP(), fs.VE(), fs.SubVP()):
        data = fs.Mixture(process, MEANS, STDS, WEIGHTS)
        top = float(process.log_snr(process.t_max))
        for end in (-1.0, 1.0, 2.5):
            n = steps if end > 0 else steps // 2
            grid = process.inverse_log_snr(torch.linspace(top, end, n + 1, dtype=torch.float64))
            for name, solver in samplers.items():
                x = fs.sample(data, process, solver=solver, grid=grid, shape=(num, 1), dtype=torch.float64, seed=1)
                worst[name] = max(worst[name], num**0.5 * distance(x, data, float(grid[-1])))

    process, off = fs.VP(), {}
    data = fs.Mixture(process, MEANS, STDS, WEIGHTS)
    for inner in (0, 4):
        grid = fs.GRIDS["log-snr"](process, 15)
        solver = fs.PredictorCorrector(inner=inner, snr=0.3) if inner else "euler-maruyama"
        x = fs.sample(data, process, solver=solver, grid=grid, shape=(4 * num, 1), dtype=torch.float64, seed=2)
        off[inner] = distance(x, data, process.t_min)
    assert max(worst.values()) < (3.0 if short else 2.2)  # nine laws are looked at
    assert off[4] < off[0]
    return {f"{name}, worst distance x sqrt(n)": value for name, value in worst.items()} | {
        "distance in 15 steps, predictor alone": off[0],
        "distance in 15 steps, corrected": off[4],
    }


if __name__ == "__main__":
    run(main, __doc__, seeds=(1, 2))
