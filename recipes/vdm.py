r"""Variational diffusion: in the limit of many steps the bound does not see the schedule between its ends.

$$ L_\infty = \int_{\lambda_{min}}^{\lambda_{max}} e^{2 \lambda}\, E |x - D(z_\lambda)|^2\, d\lambda,
   \qquad \lambda = \log(\alpha / \sigma) $$

is an integral over the log-SNR, so only its ends matter. VP, the cosine schedule and a flow, cut to the same two
log-SNRs, have different times, scales and grids; their bounds meet as the steps grow, and spread at few.

Kingma, Salimans, Poole and Ho, Variational diffusion models, 2021, section 5.1, https://arxiv.org/abs/2107.00630.

    python recipes/vdm.py
"""

from __future__ import annotations

import torch
from book import run

import fewstep as fs

MEANS = torch.tensor([[-1.0, 0.5], [0.2, -0.8], [1.1, 1.0]], dtype=torch.float64)
HIGH, LOW = 3.0, -4.0  # log-SNRs of the ends


def main(short: bool) -> dict[str, float]:
    """The relative spread of the three schedules' diffusion loss at few and at many steps."""
    spreads, draws = {}, 8
    for steps in (8, 64) if short else (8, 64, 256):
        losses = []
        for process, warp in ((fs.VP(), 1.0), (fs.Cosine(), 1.3), (fs.Flow(), 0.8)):
            data = fs.Mixture(process, MEANS, 0.3)
            x = data.sample(40 if short else 1000, torch.Generator().manual_seed(0))
            # each schedule takes its steps of log-SNR its own way
            share = torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** warp
            grid = process.inverse_log_snr(LOW + (HIGH - LOW) * share)
            losses.append(float(fs.elbo(data, process, x, grid=grid, draws=draws, seed=1).steps.sum(1).mean()))
        spreads[steps] = (max(losses) - min(losses)) / min(losses)
    many = max(spreads)
    assert spreads[many] < (0.06 if short else 0.01)
    assert spreads[many] < spreads[8] / 2
    return {f"spread of the loss in {steps} steps": value for steps, value in spreads.items()} | {
        f"diffusion loss in {many} steps, nats": losses[0]
    }


if __name__ == "__main__":
    run(main, __doc__, seeds=(0, 1))
