"""One line of sampling on three kinds of process: numbers (VP), 2x2 blocks (Langevin) and frequencies (blurring).

    python examples/langevin_and_blurring.py

The solver asks the process for M, R and Psi and never what they are. Data is a mixture of two Gaussians on 4x4 images,
so the mean and the standard deviation of the samples are known: `w m1 + (1 - w) m2`, and per pixel
`sqrt(w s1^2 + (1 - w) s2^2 + w (1 - w) (m1 - m2)^2)`.
"""

from __future__ import annotations

import torch

import fewstep as fs

SIZE, NUM = (1, 4, 4), 4000
WEIGHT, STDS = 0.3, torch.tensor([0.2, 0.4], dtype=torch.float64)
ramp = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(SIZE)
MEANS = torch.stack([0.5 + 0.3 * ramp, -0.5 + 0.2 * ramp])
EXACT_MEAN = WEIGHT * MEANS[0] + (1 - WEIGHT) * MEANS[1]
EXACT_STD = (
    WEIGHT * STDS[0] ** 2 + (1 - WEIGHT) * STDS[1] ** 2 + WEIGHT * (1 - WEIGHT) * (MEANS[0] - MEANS[1]) ** 2
).sqrt()

for process in (fs.VP(), fs.CLD(), fs.Blurring(size=SIZE[1:])):
    denoiser = fs.Mixture(process, MEANS, STDS, torch.tensor([WEIGHT, 1 - WEIGHT]))
    z = fs.sample(denoiser, process, solver="multistep-pc-2", steps=25, shape=(NUM, *SIZE), seed=0)
    x = process.to_data(z).double()
    mean, std = float((x.mean(0) - EXACT_MEAN).abs().max()), float((x.std(0) - EXACT_STD).abs().max())
    name = type(process).__name__
    print(f"{name:9} state {tuple(z.shape)!s:16} off by at most {mean:.3f} in the mean, {std:.3f} in the std")
    assert x.shape == (NUM, *SIZE)
    assert mean < 0.04  # three standard errors of the mean are 0.027
    assert std < 0.04
