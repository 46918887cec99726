r"""DiffPure: noise an attacked image a little, sample it back without a label, and classify what comes out.

$$ x' = \text{a run of the reverse SDE from } z_{t^*} = \alpha_{t^*} x_{adv} + \sigma_{t^*} \epsilon $$

The attack is projected gradient ascent on the shipped classifier's loss, at most 0.25 a pixel of the range [-1, 1];
the images are the shipped model's own samples, those that the classifier knows. Too little noise leaves the attack,
too much loses the class, so t* has an optimum between.

Nie, Guo, Huang, Xiao, Vahdat and Anandkumar, Diffusion models for adversarial purification, 2022, section 3,
https://arxiv.org/abs/2205.07460. The paper also attacks through the purification; that is not done here.

    python recipes/diffpure.py
"""

from __future__ import annotations

import torch
from book import run
from torch import Tensor

import fewstep as fs
from fewstep.quality import load_classifier

STEPS, SIZE = 20, 0.25


def attacked(judge: torch.nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """The images moved within SIZE of each pixel to where the classifier errs most."""
    moved = x.clone()
    for _ in range(STEPS):
        moved.requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(judge(moved), labels)
        (slope,) = torch.autograd.grad(loss, moved)
        moved = (moved.detach() + 2.5 * SIZE / STEPS * slope.sign()).clamp(x - SIZE, x + SIZE).clamp(-1, 1)
    return moved


def main(short: bool) -> dict[str, float]:
    """Accuracy on clean and attacked images, as they are and purified from several levels."""
    num, steps = (10, 6) if short else (60, 12)
    model, judge = fs.load(), load_classifier()
    labels = torch.arange(num) % len(model.labels)
    how = {"steps": 10, "shape": (num, *model.shape), "seed": 0, "progress": False}
    image = fs.sample(model.denoiser(labels.tolist()), model.process, **how).clamp(-1, 1)
    known = judge.logits(image).argmax(1) == labels
    image, labels = image[known].clone(), labels[known]
    bad, free = attacked(judge, image, labels), model.denoiser()

    def accuracy(x: Tensor) -> float:
        return float((judge.logits(x).argmax(1) == labels).double().mean())

    figures = {"attacked, as it is": accuracy(bad)}
    for t in (0.05, 0.2, 0.35, 0.8):
        for name, x in (("clean", image), ("attacked", bad)):
            back = fs.boomerang(free, model.process, x, t=t, solver="ddpm", steps=steps, seed=1)
            figures[f"{name}, purified from t = {t}"] = accuracy(back)
    found = {t: figures[f"attacked, purified from t = {t}"] for t in (0.05, 0.2, 0.35, 0.8)}
    assert max(found[0.2], found[0.35]) > figures["attacked, as it is"] + 0.3
    assert max(found[0.2], found[0.35]) > found[0.8]
    return figures


if __name__ == "__main__":
    run(main, __doc__, seeds=(0, 1))
