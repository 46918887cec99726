"""Likelihood, and the ODE run backwards: data to noise, between two noises, and back.

    python examples/likelihood_and_encodings.py

The data is a Gaussian, whose density is known, so all of it is held against exact answers. What `log_prob` gives is the
density of the state at t_min: the data with the noise that is left there.
"""

from __future__ import annotations

import torch

import fewstep as fs

MEAN, STD = 0.4, 0.3
process = fs.VP()
denoiser = fs.Gaussian(process, mean=MEAN, std=STD)
data = MEAN + STD * torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

found = fs.log_prob(denoiser, process, data, tolerance=1e-4)
alpha, sigma = process.alpha(process.t_min), process.sigma(process.t_min)
exact = torch.distributions.Normal(alpha * MEAN, (alpha**2 * STD**2 + sigma**2) ** 0.5).log_prob(data).sum(1)
print(found.says)
for i in range(len(data)):
    print(f"  {found.nats[i]:.3f} nats by the ODE in {found.calls[i]} calls, {exact[i]:.3f} exactly")
# The run starts from N(0, I), and the process ends near it: what of the data is left at t_max is the difference.
assert (found.nats - exact).abs().max() < 0.02

how = {"solver": "multistep-pc-3", "steps": 60}
noise = fs.encode(denoiser, process, data, **how)
again = fs.decode(denoiser, process, noise, **how)
print(f"encoded and decoded: off by {(again - data).abs().max():.1e}")
assert (again - data).abs().max() < 1e-3

way = fs.slerp(noise[:1], noise[1:2], torch.linspace(0, 1, 5))[:, 0]  # five encodings from the first to the second
between = fs.decode(denoiser, process, way, **how)
print("between two of them:", [[round(v, 2) for v in x] for x in between.tolist()])
assert torch.allclose(between[[0, -1]], data[:2], atol=1e-3)
