r"""Semantic guidance: the model is led to a reference by the likeness of features, without knowing a label.

$$ \log p(y | z) = w\, \frac{f \cdot f'}{|f|\, |f'|} + \text{const}, \qquad
   \hat x_0 \leftarrow \hat x_0 + \frac{\sigma^2}{\alpha} \nabla_z \log p(y | z) $$

f are the shipped classifier's features of the data prediction, f' those of one image; the gradient goes through the
denoiser. Half of a second guide, another image, gives samples between.

Liu et al., More control for free! Image synthesis with semantic diffusion guidance, 2021, section 3,
https://arxiv.org/abs/2112.05744. The paper's networks see noisy images; here they see the prediction.

    python recipes/semantic-guidance.py
"""

from __future__ import annotations

import torch
from book import run

import fewstep as fs
from fewstep.quality import load_classifier


def main(short: bool) -> dict[str, float]:
    """Likeness to a reference with and without its guide, and to both of two with a guide each."""
    num, steps = (4, 6) if short else (64, 16)
    model, judge = fs.load(), load_classifier()
    how = {"steps": steps, "progress": False}
    pair = fs.sample(model.denoiser([9, 0]), model.process, shape=(2, *model.shape), seed=5, **how)  # a boot, a shirt
    look = lambda x, t: judge.body(x.float())  # noqa: E731  # `judge.features` keeps no gradient
    with torch.no_grad():
        boot, shirt = look(pair, 0.0).split(1)
    free = model.denoiser()

    def likeness(*guides: fs.Similarity) -> dict[str, float]:
        denoiser = free
        if guides:
            guided = fs.ClassifierGuided(free, fs.conjunction(*guides), 1.0, on="x0_hat", interval=(0.0, 0.7))
            denoiser = fs.Thresholded(guided, None)  # strong guides lead out of the pictures' range
        x = fs.sample(denoiser, model.process, shape=(num, *model.shape), seed=0, **how)
        with torch.no_grad():
            f = look(x, 0.0)
        return {
            name: float(torch.nn.functional.cosine_similarity(f, g).mean())
            for name, g in (("boot", boot), ("shirt", shirt))
        }

    none = likeness()
    one = likeness(fs.Similarity(look, boot, weight=60.0))
    two = likeness(fs.Similarity(look, boot, weight=30.0), fs.Similarity(look, shirt, weight=30.0))
    assert one["boot"] > none["boot"] + 0.2
    return {
        "likeness to the boot, unguided": none["boot"],
        "likeness to the boot, guided": one["boot"],
        "likeness to the shirt, unguided": none["shirt"],
        "likeness to the boot, both guides": two["boot"],
        "likeness to the shirt, both guides": two["shirt"],
    }


if __name__ == "__main__":
    run(main, __doc__, seeds=(0, 5))
