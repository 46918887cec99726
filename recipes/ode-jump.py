r"""The shape of sampling paths on a trained network: nearly flat, and the prediction arrives before the state.

$$ \frac{d \bar z}{d \rho} = \frac{\bar z - D}{\rho}, \qquad \bar z = z / \alpha, \quad \rho = \sigma / \alpha $$

so a state moves along the segment to its own prediction D. ODE-Jump leaves the path early and returns D there.

Chen, Zhou, Mei, Shen, Chen and Wang, A geometric perspective on diffusion models, 2023, sections 3 and 5,
https://arxiv.org/abs/2305.19947.

    python recipes/ode-jump.py
"""

from __future__ import annotations

import torch
from book import run

import fewstep as fs


def main(short: bool) -> dict[str, float]:
    """What three components explain, when prediction and state arrive, and what a jump from four fifths costs."""
    num, steps = (4, 10) if short else (64, 30)
    model = fs.load()
    denoiser = model.denoiser([k % len(model.labels) for k in range(num)])
    path = fs.trajectory(
        denoiser, model.process, solver="ddim", final="state", steps=steps, shape=(num, *model.shape), seed=0
    )
    explained = float(path.explained(3)[:, 2].min())
    end = path.positions[-1]
    scale = float(end.std())
    states, denoised = (
        (way - end).square().flatten(2).mean(2).sqrt().mean(1) for way in (path.positions, path.denoised)
    )
    half = len(states) // 2
    late = torch.arange(len(states))[
        states > scale / 4
    ].max()  # the last points farther than a quarter of the deviation
    early = torch.arange(len(states))[denoised > scale / 4].max()

    how = {"solver": "ddim", "shape": (num, *model.shape), "seed": 0}
    whole = fs.sample(denoiser, model.process, steps=steps, final="state", progress=False, **how)
    jumped = fs.jump(denoiser, model.process, steps=steps, share=0.8, **how)
    off = float((jumped - whole).square().mean().sqrt()) / scale
    assert bool((denoised[:-1] < states[:-1]).all())
    assert explained > 0.95
    assert off < (0.25 if short else 0.1)
    return {
        "variance in three components, at least": explained,
        "state's distance to its end at half-way": float(states[half]) / scale,
        "prediction's distance to the end there": float(denoised[half]) / scale,
        "share of the run until the state is near": float(late) / steps,
        "share until the prediction is near": float(early) / steps,
        "a jump from four fifths is off by": off,
    }


if __name__ == "__main__":
    run(main, __doc__)
