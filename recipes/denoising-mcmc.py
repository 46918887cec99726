r"""Denoising MCMC: a chain over states and noise levels finds far modes, and each sample costs a short run down.

$$ z \leftarrow z - \tfrac{\eta}{2} (z - M_t D) + \sqrt\eta\, R_t \xi, \qquad t \sim p(t | z) $$

Ten modes on a ring, of weights from 1 to 10; all chains start in the lightest. The same chain kept at the
lowest two levels never leaves it.

Kim and Ye, Denoising MCMC for accelerating diffusion-based generative models, 2022, section 4,
https://arxiv.org/abs/2209.14593. Here p(t | z) is the mixture's own; on images a classifier of the level.

    python recipes/denoising-mcmc.py
"""

from __future__ import annotations

import torch
from book import run

import fewstep as fs


def main(short: bool) -> dict[str, float]:
    """How far visits are from the weights, the chain's memory of a mode, and calls a sample."""
    chains, saved, burn = (150, 4, 150) if short else (500, 20, 400)
    process = fs.EDM()
    angle = torch.arange(10, dtype=torch.float64) * torch.pi / 5
    modes = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    weights = torch.arange(1, 11, dtype=torch.float64) / 55
    data = fs.Mixture(process, modes, 0.15, weights)
    start = modes[:1].expand(chains, -1)

    how = {"eta": 0.3, "skip": 10, "solver": "multistep-pc-2", "steps": 8, "seed": 0}
    top = float(process.inverse_log_snr(-1.5))
    found = fs.denoising_mcmc(data, process, start, levels=10, highest=top, saved=saved, burn=burn, **how)
    mode = (found.samples[:, :, None] - modes).norm(dim=3).argmin(2)  # (saved, chains)
    share = torch.bincount(mode.flatten(), minlength=10).double() / mode.numel()
    off = float((share - weights).abs().sum()) / 2
    near = float((found.samples - modes[mode]).std())
    stays = float((mode[1:] == mode[:-1]).double().mean())

    low = fs.denoising_mcmc(data, process, start, levels=found.times[-2:], saved=1, burn=burn, **how)
    stuck = float(((low.samples[0][:, None] - modes).norm(dim=2).argmin(1) == 0).double().mean())
    assert off < (0.15 if short else 0.03)
    assert abs(near - 0.15) < 0.03
    assert stuck == 1.0
    return {
        "total variation of visits to weights": off,
        "spread within a mode (0.15 in the data)": near,
        "share of neighbours in one mode": stays,
        "the same by chance": float(weights.square().sum()),
        "share that stays without high levels": stuck,
        "calls a sample": found.calls_a_sample,
    }


if __name__ == "__main__":
    run(main, __doc__)
