r"""The probability-flow ODE: exact log densities, encodings that decode to their data, and steps as a tolerance asks.

$$ \frac{dz}{dt} = F z - \tfrac12 G G^T \nabla \log p_t(z) = v, \qquad
   \log p_0(z_0) = \log p_T(z_T) + \int_0^T \operatorname{tr} \frac{\partial v}{\partial z}\, dt $$

Song et al., Score-based generative modeling through stochastic differential equations, 2021, sections 4.3 and D.2,
https://arxiv.org/abs/2011.13456; Grathwohl et al., FFJORD, 2019, https://arxiv.org/abs/1810.01367, for the estimate of
the trace by random signs.

    python recipes/pf-ode-likelihood.py
"""

from __future__ import annotations

import torch
from book import run

import fewstep as fs

MEANS = torch.tensor([[-1.0, 0.5], [0.2, -0.8], [1.1, 1.0]], dtype=torch.float64)
STDS, WEIGHTS = (0.5, 0.3, 0.4), (0.3, 0.45, 0.25)


def density(x: torch.Tensor) -> torch.Tensor:
    """The mixture's own log density."""
    parts = [
        torch.distributions.Normal(mean, std).log_prob(x).sum(1) + torch.tensor(weight).log()
        for mean, std, weight in zip(MEANS, STDS, WEIGHTS, strict=True)
    ]
    return torch.stack(parts).logsumexp(0)


def main(short: bool) -> dict[str, float]:
    """Errors of the density by the exact trace and by random signs, of the round trip, and calls by tolerance."""
    process = fs.VP(t_min=1e-5, t_max=1.5)
    data = fs.Mixture(process, MEANS, torch.tensor(STDS), torch.tensor(WEIGHTS))
    x = data.sample(3 if short else 100, torch.Generator().manual_seed(0))
    exact = density(x)
    off = float((fs.log_prob(data, process, x, tolerance=1e-4 if short else 1e-6).nats - exact).abs().max())
    signs = fs.log_prob(data, process, x, tolerance=1e-4, divergence="hutchinson", probes=16)
    in_errors = float(((signs.nats - exact) / signs.error).square().mean().sqrt())

    how = {"solver": "multistep-pc-3", "grid": "log-snr", "steps": 60 if short else 200}
    noise = fs.encode(data, process, x, **how)
    back = float((fs.decode(data, process, noise, **how) - x).abs().max())

    calls = []
    for rtol in (1e-2, 1e-4, 1e-6):
        found = fs.solve(data, process, solver=fs.RK45(rtol=rtol, atol=rtol), x=noise)
        calls.append(float(found.calls.double().mean()))
    assert calls[0] < calls[1] < calls[2]
    assert in_errors < (6 if short else 2.5)
    assert back < (1e-2 if short else 1e-4)
    assert off < 1e-3
    return {
        "log density off by at most, nats": off,
        "random signs off by, in their own error": in_errors,
        "encoded and decoded off by at most": back,
        "calls at a tolerance of 1e-2": calls[0],
        "calls at a tolerance of 1e-4": calls[1],
        "calls at a tolerance of 1e-6": calls[2],
    }


if __name__ == "__main__":
    run(main, __doc__)
