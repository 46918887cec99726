r"""Boomerang: images noised to a moderate level and sampled back come home changed, and the level says how much.

$$ z_t = \alpha_t x_0 + \sigma_t \epsilon, \qquad x' = \text{a run from } z_t \text{ down to data} $$

The shipped model of clothes; the images are its own samples. Another network says whether the class is kept, and how
near to real ones the new images are.

Luzi et al., Boomerang: local sampling on image manifolds using diffusion models, 2022, section 3,
https://arxiv.org/abs/2210.12100.

    python recipes/boomerang.py
"""

from __future__ import annotations

import torch
from book import run

import fewstep as fs
from fewstep.quality import load_classifier


def main(short: bool) -> dict[str, float]:
    """Distance to the image and share of kept classes by the level it was noised to."""
    num, steps = (10, 6) if short else (200, 12)
    model, judge = fs.load(), load_classifier()
    labels = torch.arange(num) % len(model.labels)
    denoiser = model.denoiser(labels.tolist())
    with torch.no_grad():
        image = fs.sample(
            denoiser, model.process, final="state", steps=steps, shape=(num, *model.shape), seed=0, progress=False
        )
        told = judge.logits(image).argmax(1)
        free = model.denoiser()  # the way back is not told the class
        far, kept = {}, {}
        for t in (0.1, 0.3, 0.5, 0.8):
            back = fs.boomerang(free, model.process, image, t=t, steps=steps, seed=1)
            far[t] = float((back - image).square().mean().sqrt())
            kept[t] = float((judge.logits(back).argmax(1) == told).double().mean())
    assert list(far.values()) == sorted(far.values())
    assert kept[0.1] >= (0.8 if short else 0.85)
    assert kept[0.8] < kept[0.1]
    return {f"distance from t = {t}": value for t, value in far.items()} | {
        f"class kept from t = {t}": value for t, value in kept.items()
    }


if __name__ == "__main__":
    run(main, __doc__, seeds=(0, 1))
