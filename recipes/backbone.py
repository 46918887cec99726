r"""What a network is told the time for: one perceptron with its embedding and one without, by the loss of the noise.

$$ E |\epsilon - \hat\epsilon(z_t, t)|^2 \quad\text{against}\quad E |\epsilon - \hat\epsilon(z_t)|^2 $$

The embedding is sines and cosines of t at octaves, as in the common U-Net. A state tells its own noise level in part
only, and a network that has to make it out has less left for the rest. The exact denoiser's loss is the floor of both.

Ho, Jain and Abbeel, Denoising diffusion probabilistic models, 2020, appendix B, https://arxiv.org/abs/2006.11239;
Dhariwal and Nichol, Diffusion models beat GANs on image synthesis, 2021, https://arxiv.org/abs/2105.05233.

    python recipes/backbone.py
"""

from __future__ import annotations

import math

import torch
from book import run
from torch import Tensor, nn

import fewstep as fs

PROCESS = fs.Cosine()
OCTAVES = 2 ** torch.arange(5) * math.pi / 2


def embedded(t: Tensor) -> Tensor:
    """The time with its sines and cosines, (batch, 11)."""
    angles = t[:, None] * OCTAVES
    return torch.cat([t[:, None], angles.sin(), angles.cos()], 1)


def draw(data: fs.Mixture, num: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """States, their times, uniform, and their noises."""
    x = data.sample(num, g)
    t = PROCESS.t_min + (PROCESS.t_max - PROCESS.t_min) * torch.rand(num, generator=g, dtype=torch.float64)
    eps = torch.randn(x.shape, generator=g, dtype=torch.float64)
    return PROCESS.diffuse(x, t, eps), t, eps


def loss(data: fs.Mixture, size: int, steps: int, told: bool) -> float:
    """The mean squared error of the noise on fresh states after so many updates, the time told or zero."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Linear(size + 11, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, size))
    optimiser = torch.optim.Adam(net.parameters())
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: 2 * (1 - k / steps))

    def error(num: int) -> Tensor:
        z, t, eps = draw(data, num, g)
        time = embedded(t.float()) * told
        return (net(torch.cat([z.float(), time], 1)) - eps.float()).square().mean()

    for _ in range(steps):
        optimiser.zero_grad()
        error(256).backward()
        optimiser.step()
        decay.step()
    with torch.no_grad():
        return float(error(40_000))


def main(short: bool) -> dict[str, float]:
    """How much larger the loss is without the time, in two dimensions and in sixteen, and the floor under both."""
    found = {}
    for size in (2, 16):
        g = torch.Generator().manual_seed(size)
        data = fs.Mixture(PROCESS, torch.randn(6, size, generator=g, dtype=torch.float64), 0.1)
        told, blind = (loss(data, size, 200 if short else 3000, told) for told in (True, False))
        z, t, eps = draw(data, 40_000, g)
        alpha, sigma = (v[:, None] for v in (PROCESS.alpha(t), PROCESS.sigma(t)))
        floor = float(((z - alpha * data(z, t)) / sigma - eps).square().mean())
        found |= {f"loss with the time, {size} numbers": told, f"loss of the exact denoiser, {size} numbers": floor}
        found[f"loss without over loss with, {size} numbers"] = blind / told
        assert floor < told < blind
    assert found["loss without over loss with, 2 numbers"] > (1.05 if short else 1.2)
    return found


if __name__ == "__main__":
    run(main, __doc__, seeds=(0, 1))
