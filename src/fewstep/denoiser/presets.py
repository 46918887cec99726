r"""Networks as other code bases call them, each as a denoiser in one line; `fewstep.wrap` is what they are made of.

| preset          | the network is called as         | it returns                  | process |
|-----------------|----------------------------------|-----------------------------|---------|
| `edm`           | net(x, sigma, class_labels=y)    | D(x, sigma)                 | EDM     |
| `score_sde`     | net(x, 999 t)                    | eps                         | VP, SubVP |
| `score_sde`     | net(x, sigma)                    | the score                   | VE      |
| `torchcfm`      | net(t, x), data at t = 1         | data minus noise            | Flow    |
| `flow_matching` | net(x, t), data at t = 1         | data minus noise            | Flow    |
| `consistency`   | net(c_in x, 250 log sigma)       | F in c_skip x + c_out F     | EDM     |

Conditions are bound by the caller: `edm(net, labels=y)`, `torchcfm(partial(net, y=y))`. The process is the denoiser's:

    denoiser = fewstep.denoiser.presets.edm(net)
    x = fewstep.sample(denoiser, denoiser.process, steps=8, shape=(16, 3, 32, 32))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.network import Wrapped, _dtype, wrap
from fewstep.process import EDM, VE, VP, Flow, ScalarProcess, SubVP
from fewstep.words import typed

__all__ = ["consistency", "edm", "flow_matching", "score_sde", "torchcfm"]

Network = Callable[..., Any]


@typed
def edm(net: Network, labels: Tensor | None = None, *, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Wrapped:
    """A preconditioned network of EDM and EDM2, in any of their preconditionings (VP, VE, iDDPM, EDM).

    Args:
        net: net(x, sigma, class_labels=...) -> the denoised x; x = x0 + sigma eps, sigma (batch,).
        labels: (batch, classes), one-hot, or None.
        sigma_min, sigma_max: the range, within what the network says of itself (`net.sigma_min`, `net.sigma_max`).

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
