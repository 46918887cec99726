"""Networks of other code bases through their presets: the exact denoiser of a mixture, in each convention."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep.denoiser.base import of_samples

MEANS, STDS = torch.tensor([[1.0, -0.5], [-1.0, 0.8]], dtype=torch.float64), (0.3, 0.5)


def denoised(x, rho):
    """D of a mixture for x = x0 + rho eps, rho (batch,)."""
    rho = rho.reshape(-1, 1).double()
    var = [s**2 + rho**2 for s in STDS]
    logits = [-((x - m) ** 2).sum(1, keepdim=True) / (2 * v) - v.log() for m, v in zip(MEANS, var, strict=True)]
    share = torch.softmax(torch.cat(logits, 1), 1)
    parts = [m + s**2 / v * (x - m) for m, s, v in zip(MEANS, STDS, var, strict=True)]
    return sum(share[:, k : k + 1] * part for k, part in enumerate(parts))


def rho_of(process, t):
    return torch.exp(-process.log_snr(t.double()))


def edm_net(x, sigma, class_labels=None):
    assert class_labels is None
    return denoised(x, sigma)


def edm_net_of_labels(x, sigma, class_labels):
    assert class_labels.shape == (len(x), 3)
    return denoised(x, sigma)


def score_sde_net(process):
    def net(x, label):
        t = label / 999 if not isinstance(process, fs.VE) else process.inverse_log_snr(-label.double().log())
        alpha, sigma = process.alpha(t.double())[:, None], process.sigma(t.double())[:, None]
        residual = x - alpha * denoised(x / alpha, rho_of(process, t))
        return -residual / sigma**2 if isinstance(process, fs.VE) else residual / sigma

    return net


def velocity(x, t):
    """x_1 - x_0 given x_t = t x_1 + (1 - t) x_0, data at t = 1."""
    t = t.reshape(-1, 1).clamp(min=1e-9)  # where nothing is known, D is the data's mean
    d = denoised(x / t, ((1 - t) / t).flatten())
    return d - (x - t * d) / (1 - t)


def consistency_net(x, t, sd=0.5, low=0.002):
    sigma = (t / 250).exp().reshape(-1, 1)
    norm = (sigma**2 + sd**2).sqrt()
    z = x * norm
    skip, out = sd**2 / ((sigma - low) ** 2 + sd**2), (sigma - low) * sd / norm
    return (denoised(z, sigma.flatten()) - skip * z) / out


class TorchCFM(nn.Module):
    """A network with weights, in float64."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, t, x, y=None):
        assert y is None or len(y) == len(x)
        return self.one * velocity(x, t)


PRESETS = {
    "edm": lambda: fs.presets.edm(edm_net),
    "edm with labels": lambda: fs.presets.edm(edm_net_of_labels, torch.eye(3)[torch.tensor([0, 1, 2, 0])]),
    "score_sde vp": lambda: fs.presets.score_sde(score_sde_net(fs.VP()), fs.VP()),
    "score_sde sub-vp": lambda: fs.presets.score_sde(score_sde_net(fs.SubVP()), fs.SubVP()),
    "score_sde ve": lambda: fs.presets.score_sde(score_sde_net(fs.VE()), fs.VE()),
    "torchcfm": lambda: fs.presets.torchcfm(TorchCFM()),
    "torchcfm with labels": lambda: fs.presets.torchcfm(partial(TorchCFM(), y=torch.arange(4))),
    "flow_matching": lambda: fs.presets.flow_matching(lambda x, t: (velocity(x, t),)),
    "consistency": lambda: fs.presets.consistency(consistency_net),
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_convention_is_the_same_denoiser(name):
    denoiser = PRESETS[name]()
    process = denoiser.process
    for rho in (20.0, 1.0, 0.05):
        t = float(process.inverse_log_snr(-torch.tensor(rho, dtype=torch.float64).log()))
        z = process.alpha(t) * (MEANS[torch.tensor([0, 1, 0, 1])] + rho * torch.randn(4, 2, dtype=torch.float64))
        near = 1e-9 if name.startswith("torchcfm") else 1e-4  # float32 times, but for a network of float64
        wanted = denoised(z / process.alpha(t), torch.full((4,), rho))
        torch.testing.assert_close(denoiser(z, t), wanted, rtol=near, atol=near)
        torch.testing.assert_close(of_samples(denoiser, torch.tensor([2]), 4)(z[2:3], t), denoiser(z, t)[2:3])


@pytest.mark.parametrize("name", PRESETS)
def test_it_samples(name):
    denoiser = PRESETS[name]()
    run = partial(fs.sample, denoiser, denoiser.process, steps=6, shape=(4, 2), dtype=torch.float64, seed=1)
    x = run()
    assert bool(x.isfinite().all())
    near = (denoiser.process.to_data(x)[:, None] - MEANS).norm(dim=-1).amin(1)
    assert bool((near < 2.5).all())


def test_the_range_of_an_edm_network_is_its_own():
    net = partial(edm_net)
    net.sigma_min, net.sigma_max = 0.01, 50.0
    assert fs.presets.edm(net).process == fs.EDM(sigma_min=0.01, sigma_max=50.0)


def test_a_consistency_model_is_the_identity_at_its_lowest_level():
    denoiser = fs.presets.consistency(lambda x, t: torch.full_like(x, 7.0))
    x = torch.randn(3, 2, dtype=torch.float64)
    torch.testing.assert_close(denoiser(x, 0.002), x, rtol=1e-6, atol=1e-6)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="knows VP, SubVP and VE"):
        fs.presets.score_sde(edm_net, fs.Cosine())
    with pytest.raises(ValueError, match="a tensor"):
        fs.presets.edm(edm_net, 3)
