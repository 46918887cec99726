"""A network of your own: train one in seconds on 2-D data, say what it predicts, sample it.

    python examples/your_own_network.py

The network is called as net(x, t) and predicts v = alpha eps - sigma x0 (Salimans & Ho 2022, appendix D). The data lie
on the unit circle, so samples must too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fewstep as fs

torch.manual_seed(0)
process = fs.VP()


class Network(nn.Module):
    """Two hidden layers on the point and a few waves of the log-SNR."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        lam = process.log_snr(t).to(x.dtype)[:, None] / 4
        waves = [f(k * lam) for f in (torch.sin, torch.cos) for k in (0.5, 1.0, 2.0, 4.0)]
        return self.layers(torch.cat([x, *waves], 1))


net = Network()
optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
STEPS = 1500
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
for _ in range(STEPS):
    angle = 2 * torch.pi * torch.rand(512)
    x0, eps = torch.stack([angle.cos(), angle.sin()], 1), torch.randn(512, 2)
    t = process.inverse_log_snr(torch.rand(512, dtype=torch.float64) * 9.5 - 5.0)  # all levels of noise alike
    alpha, sigma = (c(t).float()[:, None] for c in (process.alpha, process.sigma))
    loss = (net(process.diffuse(x0, t, eps), t) - (alpha * eps - sigma * x0)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()

denoiser = fs.wrap(net, process, predicts="v")
x = fs.sample(denoiser, process, steps=12, shape=(2000, 2), seed=0)
radius = x.norm(dim=1)
near = float(((radius - 1).abs() < 0.15).float().mean())
spread = float(x.mean(0).abs().max())
print(f"loss {loss:.3f}; radius {radius.mean():.3f} +- {radius.std():.3f}, {near:.0%} within 0.15 of the circle")
assert near > 0.9
assert spread < 0.1  # all the way round: the mean of the circle is 0
