r"""Networks as other code bases call them, each as a denoiser in one line; `fewstep.wrap` is what they are made of.

| preset          | the network is called as         | it returns                  | process |
|-----------------|----------------------------------|-----------------------------|---------|
| `edm`           | net(x, sigma, class_labels=y)    | D(x, sigma)                 | EDM     |
| `score_sde`     | net(x, 999 t)                    | eps                         | VP, SubVP |
| `score_sde`     | net(x, sigma)                    | the score                   | VE      |
| `torchcfm`      | net(t, x), data at t = 1         | data minus noise            | Flow    |
| `flow_matching` | net(x, t), data at t = 1         | data minus noise            | Flow    |
| `consistency`   | net(c_in x, 250 log sigma)       | F in c_skip x + c_out F     | EDM     |
| `i2sb`          | net(z, noise level)              | (z - x0) / std              | I2SB    |
| `ddbm`          | net(c_in z, 250 log t)           | F in c_skip z + c_out F     | DDBMVP, DDBMVE |
| `ir_sde`        | net(z, y, index)                 | eps                         | IRSDE   |
| `resshift`      | net(c_in z, index)               | x0                          | ResShift |

Conditions are bound by the caller: `edm(net, labels=y)`, `torchcfm(partial(net, y=y))`; the presets of bridges take the
other end y too, `i2sb(net, y)`, and then no shape. The process is the denoiser's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.bridged import bridged
from fewstep.denoiser.network import Wrapped, _dtype, wrap
from fewstep.process import DDBMVE, DDBMVP, EDM, I2SB, IRSDE, VE, VP, Flow, ResShift, ScalarProcess, SubVP
from fewstep.words import typed

__all__ = [
    "consistency", "ddbm", "edm", "flow_matching", "i2sb", "i2sb_times", "ir_sde", "ir_sde_times", "resshift",
    "resshift_times", "score_sde", "torchcfm"
]  # fmt: skip

Network = Callable[..., Any]


@typed
def edm(net: Network, labels: Tensor | None = None, *, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Wrapped:
    """A preconditioned network of EDM and EDM2, in any of their preconditionings (VP, VE, iDDPM, EDM).

    Args:
        net: net(x, sigma, class_labels=...) -> the denoised x; x = x0 + sigma eps, sigma (batch,).
        labels: (batch, classes), one-hot, or None.
        sigma_min, sigma_max: the range, within the network's own `sigma_min`, `sigma_max`.

    References: Karras et al. 2022, https://arxiv.org/abs/2206.00364, https://github.com/NVlabs/edm.
    """
    low, high = float(getattr(net, "sigma_min", 0.0)), float(getattr(net, "sigma_max", math.inf))
    process = EDM(sigma_min=max(float(sigma_min), low), sigma_max=min(float(sigma_max), high))
    return wrap(net if labels is None else partial(net, class_labels=labels), process, "data", time="sigma")


@typed
def score_sde(net: Network, process: ScalarProcess) -> Wrapped:
    """A continuous network of score_sde: DDPM++ or NCSN++ for `VP`, `SubVP` or `VE`.

    Args:
        net: for VP and sub-VP net(x, 999 t), which returns the noise with the sign of eps; for VE net(x, sigma), the
            score itself.
        process: the SDE it was trained on.

    References: Song et al. 2021, https://arxiv.org/abs/2011.13456, https://github.com/yang-song/score_sde_pytorch
    (models/utils.py, get_score_fn).
    """
    if isinstance(process, VP | SubVP):
        return wrap(net, process, "noise", time=_times_999)
    if isinstance(process, VE):
        return wrap(net, process, "score", time="sigma")
    raise ValueError(f"got {process} for a network of score_sde, which knows VP, SubVP and VE: use fewstep.wrap")


@typed
def torchcfm(net: Network) -> Wrapped:
    """A velocity field net(t, x) of torchcfm: from noise at t = 0 to data at t = 1.

    References: Tong et al. 2023, https://arxiv.org/abs/2302.00482, https://github.com/atong01/conditional-flow-matching.
    """
    return _dressed(_backward_turned, net, Flow(), "flow", time=_from_noise)


@typed
def flow_matching(net: Network) -> Wrapped:
    r"""A velocity field net(x, t) from noise at t = 0 to data at t = 1, on straight paths.

    With our t = 1 - t', where data is at 0, the network's v(x, t') = x_1 - x_0 is -(eps - x0), our flow's negative.

    References: Lipman et al. 2022, https://arxiv.org/abs/2210.02747, https://github.com/facebookresearch/flow_matching.
    """
    return _dressed(_backward, net, Flow(), "flow", time=_from_noise)


@typed
def consistency(net: Network, *, sigma_data: float = 0.5, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Wrapped:
    r"""A consistency model's network F behind its preconditioning, for `lcm` (which is made for it) or any solver.

    $$ f(x, \sigma) = \frac{\sigma_d^2}{(\sigma - \sigma_{min})^2 + \sigma_d^2}\, x
       + \frac{(\sigma - \sigma_{min})\, \sigma_d}{\sqrt{\sigma^2 + \sigma_d^2}}\,
         F\Bigl(\frac{x}{\sqrt{\sigma^2 + \sigma_d^2}},\; 250 \log \sigma\Bigr) $$

    so that f is the identity at sigma_min.

    References: Song, Dhariwal, Chen, Sutskever, Consistency models, 2023, appendix C,
    https://arxiv.org/abs/2303.01469, https://github.com/openai/consistency_models (karras_diffusion.py).
    """
    process = EDM(sigma_min=sigma_min, sigma_max=sigma_max)
    return _dressed(partial(_consistent, sigma_data, sigma_min), net, process, "data", time="sigma")


@typed
def i2sb_times(steps: int = 1000, beta_max: float = 0.3) -> Tensor:
    """The times of `I2SB` at the indices 0, 1, ... of its published schedule: the variance accumulated up to each."""
    half = torch.linspace(1e-4**0.5, (beta_max / steps) ** 0.5, steps, dtype=torch.float64)[: steps // 2] ** 2
    return torch.cat([half, half.flip(0)]).cumsum(0)


@typed
def ir_sde_times(steps: int = 100, eps: float = 0.005) -> Tensor:
    """The times of `IRSDE` and `GOUB` at the indices 0, ..., steps of the published cosine schedule.

    theta is 1 - alphas_cumprod of the cosine schedule itself, and its integral ends at -log(eps).
    """
    x = torch.linspace(0, steps + 2, steps + 3, dtype=torch.float64)
    kept = torch.cos((x / (steps + 2) + 0.008) / 1.008 * math.pi / 2) ** 2
    theta = 1 - (kept / kept[0])[1:-1]
    total = theta.cumsum(0) - theta[0]
    return total / total[-1] * -math.log(eps)


@typed
def resshift_times(
    steps: int = 15, *, kappa: float = 2.0, power: float = 0.3, least: float = 0.04, end: float = 0.99
) -> Tensor:
    """The times of `ResShift`, eta, at the indices 0, 1, ... of its exponential schedule."""
    start = min(least / kappa, least)
    place = torch.linspace(0, 1, steps, dtype=torch.float64) ** power
    return (start * (end / start) ** place) ** 2


@typed
def i2sb(net: Network, y: Tensor, *, steps: int = 1000, beta_max: float = 0.3) -> Any:
    """A network of I2SB with its y: net(x, label), or net(x, label, cond=y) bound by the caller, returns (z - x0)/std.

    std is that of the forward half, so x0 = z - sqrt(t) F. The label of index i is what the published class looks up
    itself in its `noise_levels`: 1e-4 to 1 over the indices, times their number.

    References: Liu et al. 2023, https://arxiv.org/abs/2302.05872, https://github.com/NVlabs/I2SB (i2sb/network.py).
    """
    times = i2sb_times(steps, beta_max)

    def label(t: Tensor) -> Tensor:
        return steps * (1e-4 + (1 - 1e-4) * _index(times, t) / (steps - 1))

    def call(net: Network, z: Tensor, at: Tensor, **conditions: Any) -> Tensor:
        index = (at.double() / steps - 1e-4) / (1 - 1e-4) * (steps - 1)
        std = _entry(times, index).sqrt().reshape(-1, *(1,) * (z.ndim - 1)).to(z)
        return z - std * _tensor(net(z, at, **conditions))

    process = I2SB(variance=float(times[-1]), t_min=0.0)
    return bridged(_dressed(call, net, process, "data", time=label), y)


@typed
def ddbm(
    net: Network, y: Tensor, process: DDBMVP | DDBMVE, *, sigma_data: float = 0.5, sigma_end: float = 0.5,
    covariance: float = 0.125,
) -> Any:  # fmt: skip
    r"""A network of DDBM with its y: net(c_in z, 250 log t), with y as the caller binds it (`xT=y`), returns F.

    $$ D = c_{skip} z + c_{out} F, \quad c_{in} = A^{-1/2}, \quad c_{skip} = (m \sigma_d^2 + n c)/A, \quad
       c_{out} = (n^2 (\sigma_e^2 \sigma_d^2 - c^2) + \sigma_d^2 R^2)^{1/2} c_{in} $$

    with A = n^2 sigma_e^2 + m^2 sigma_d^2 + 2 m n c + R^2, the variance of z.

    References: Zhou et al. 2023, appendix A.5, https://arxiv.org/abs/2309.16948, https://github.com/alexzhou907/DDBM.
    """
    data, end, both = sigma_data**2, sigma_end**2, covariance

    def call(net: Network, z: Tensor, label: Tensor, **conditions: Any) -> Tensor:
        t = (label.double() / 250).exp().clamp(max=process.end)
        m, n, r = (v.reshape(-1, *(1,) * (z.ndim - 1)) for v in (process.alpha(t), process.n(t), process.sigma(t)))
        total = n**2 * end + m**2 * data + 2 * m * n * both + r**2
        skip, out = (m * data + n * both) / total, ((n**2 * (end * data - both**2) + data * r**2) / total).sqrt()
        return skip.to(z) * z + out.to(z) * _tensor(net((z * total.rsqrt().to(z)), label, **conditions))

    return bridged(_dressed(call, net, process, "data", time=lambda t: 250 * (t + 1e-44).log()), y)


@typed
def ir_sde(net: Network, y: Tensor, *, steps: int = 100, eps: float = 0.005, max_sigma: float = 50.0) -> Any:
    """A network of IR-SDE with its y: net(z, y, index) returns the noise of z - n y - m x0.

    Pictures are in [0, 1], and max_sigma in their 255 levels, as in the released options. The published class subtracts
    y from z and joins both itself.

    References: Luo et al. 2023, https://arxiv.org/abs/2301.11699, https://github.com/Algolzw/image-restoration-sde.
    """
    times = ir_sde_times(steps, eps)
    process = IRSDE(noise=max_sigma / 255 if max_sigma >= 1 else max_sigma, t_max=float(times[-1]))
    call = partial(_beside, net)
    wrapped = wrap(partial(call, y=y), process, "noise", dtype=_dtype(net), time=lambda t: _index(times, t))
    return bridged(wrapped, y)


@typed
def resshift(
    net: Network, y: Tensor, *, steps: int = 15, kappa: float = 2.0, power: float = 0.3, least: float = 0.04,
    end: float = 0.99,
) -> Any:  # fmt: skip
    """A network of ResShift with its y: net(z / sqrt(1 + kappa^2 eta), index) returns x0; bind its `lq`.

    Its chain is `solver="resshift"` on `grid=torch.cat([resshift_times(...).flip(0), torch.zeros(1)])`.

    References: Yue, Wang, Loy 2023, https://arxiv.org/abs/2307.12348, https://github.com/zsyOAOA/ResShift.
    """
    times = resshift_times(steps, kappa=kappa, power=power, least=least, end=end)

    def call(net: Network, z: Tensor, index: Tensor, **conditions: Any) -> Tensor:
        scale = (1 + kappa**2 * _entry(times, index.double())).rsqrt().reshape(-1, *(1,) * (z.ndim - 1))
        return _tensor(net(z * scale.to(z), index, **conditions))

    process = ResShift(kappa=kappa, t_max=float(times[-1]))
    return bridged(_dressed(call, net, process, "data", time=lambda t: _index(times, t)), y)


def _times_999(t: Tensor) -> Tensor:
    return 999 * t


def _from_noise(t: Tensor) -> Tensor:
    return 1 - t


def _dressed(call: Network, net: Network, process: ScalarProcess, predicts: str, **options: Any) -> Wrapped:
    """Wraps call(net, x, t, **conditions); tensors that a partial binds to the samples stay bound to them."""
    bare, conditions = (net.func, net.keywords) if isinstance(net, partial) and not net.args else (net, {})
    dressed = partial(partial(call, bare), **conditions)
    return wrap(dressed, process, predicts, dtype=_dtype(net), **options)


def _backward(net: Network, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
    return -_tensor(net(x, t, **conditions))


def _backward_turned(net: Network, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
    return -_tensor(net(t, x, **conditions))


def _consistent(data: float, low: float, net: Network, x: Tensor, sigma: Tensor, **conditions: Any) -> Tensor:
    """f(x, sigma) of a consistency model's F."""
    level = sigma.reshape(-1, *(1,) * (x.ndim - 1))
    norm, above = torch.hypot(level, torch.full_like(level, data)), level - low
    out = _tensor(net((x / norm).to(x.dtype), 250 * sigma.log(), **conditions))
    return data**2 / (above**2 + data**2) * x + above * data / norm * out


def _tensor(out: Any) -> Tensor:
    """What a network returned: a tensor, a tuple that starts with one, or an object with `.sample`."""
    return out[0] if isinstance(out, tuple) else getattr(out, "sample", out)


def _beside(net: Network, z: Tensor, label: Tensor, y: Tensor) -> Any:
    return net(z, y.to(z).expand_as(z), label)


def _index(times: Tensor, t: Tensor) -> Tensor:
    """The index of a time in a rising table, fractional in between; the nearest end outside."""
    i = (torch.searchsorted(times, t.contiguous(), right=True) - 1).clamp(0, len(times) - 2)
    return (i + (t - times[i]) / (times[i + 1] - times[i])).clamp(0, len(times) - 1)


def _entry(times: Tensor, index: Tensor) -> Tensor:
    """The inverse of `_index`."""
    i = index.floor().long().clamp(0, len(times) - 2)
    return times[i] + (index - i) * (times[i + 1] - times[i])
