r"""Imagen's dynamic thresholding: strong guidance without saturated pixels.

$$ s = \max(1, Q_p |\hat x_0|), \qquad \hat x_0 \leftarrow \operatorname{clip}(\hat x_0, -s, s) / s $$

The shipped model of clothes at w = 8: static clipping leaves pixels at the ends of the range, dynamic thresholding
brings them in. A share of empty background is black in real images too, so white pixels are counted; a classifier
says whether the class is there.

Saharia et al., Photorealistic text-to-image diffusion models with deep language understanding, 2022, section 2.3,
https://arxiv.org/abs/2205.11487.

    python recipes/imagen.py
"""

from __future__ import annotations

import torch
from book import run

import fewstep as fs
from fewstep.quality import load_classifier


def main(short: bool) -> dict[str, float]:
    """Saturated pixels and label accuracy of both, and of the model at w = 1."""
    num, steps = (10, 6) if short else (200, 15)
    model, judge = fs.load(), load_classifier()
    labels = torch.arange(num) % len(model.labels)
    told, free = model.denoiser(labels.tolist()), model.denoiser()
    strong = fs.guide(told, free, 8.0)
    white, right = {}, {}
    for name, denoiser in (
        ("w = 1", told),
        ("static", fs.Thresholded(strong, None)),
        ("dynamic", fs.Thresholded(strong, 0.9)),
    ):
        x = fs.sample(
            denoiser,
            model.process,
            solver="ddim",
            final="state",
            steps=steps,
            shape=(num, *model.shape),
            seed=0,
            progress=False,
        )
        white[name] = float((x > 0.98).double().mean())
        with torch.no_grad():
            right[name] = float((judge.logits(x).argmax(1) == labels).double().mean())
    assert white["static"] > 2 * white["dynamic"]
    assert right["dynamic"] > right["static"] - 0.05
    return {f"white pixels, {name}": value for name, value in white.items()} | {
        f"label accuracy, {name}": value for name, value in right.items()
    }


if __name__ == "__main__":
    run(main, __doc__)
