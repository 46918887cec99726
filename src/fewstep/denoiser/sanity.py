r"""What a network predicts, told from its output: does it look like what it is wrapped as?

Data N(mu, s^2 I) has D = mu + d (z - alpha mu) with d = alpha s^2 / (alpha^2 s^2 + sigma^2), so a network of the
prediction x0 = p z + q F (`fewstep.denoiser.predict`) returns F = (d - p)/q z + constant. Times sigma far up and times
alpha near the data, that slope hardly depends on s:

| prediction | sigma x slope, nearly all noise | alpha x slope, nearly none |
|------------|---------------------------------|----------------------------|
| `noise`    | 1                               | 0                          |
| `data`     | 0                               | 1                          |
| `v`, `edm` | 0                               | 0                          |
| `flow`     | 1                               | -1                         |
| `score`    | -1 / sigma                      | below 0                    |

(with alpha^2 + sigma^2 = 1; on other processes as the formula says). Both slopes are measured in one call, over pairs
of states z and -z, in whose difference constants vanish: noise above, smooth fields with a little noise below.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch

from fewstep.denoiser.network import Wrapped
from fewstep.denoiser.predict import PREDICTIONS
from fewstep.noise import noise_source
from fewstep.process.base import ScalarProcess
from fewstep.words import typed

__all__ = ["check_prediction"]

HIGH, LOW = -4.0, 5.0  # log-SNRs of the two levels, where the process goes that far
NARROW, WIDE = 0.2, 3.0  # standard deviations of data, between which it may lie
NEAR = 0.35  # a slope that is no further from a prediction's, in units of the prediction's size, is that prediction's
ENTRIES = 512  # numbers a slope is measured on
FIELD = 0.6  # of the smooth fields, in data units
NAMES = (*PREDICTIONS, "edm", *(f"-{name}" for name in PREDICTIONS if name != "score"))  # -score is much like noise


@typed
def check_prediction(
    denoiser: Wrapped, shape: tuple[int, ...], *, seed: int = 0, device: torch.device | str = "cpu"
) -> tuple[str, ...]:
    """Warns where a network's output does not look like the prediction it is wrapped as; costs one call.

    For trained networks: one that returns next to nothing, as before training, looks like `v`. What cannot be told:
    `v` from `edm`; `v` on processes with alpha = 1 (EDM, VE), where its size depends on the data's; whether the process
    is the right one. Data should be of order 1, a standard deviation of 0.2 to 3. States near the data are made up: a
    network that knows a few points by heart and nothing else may return anything there, and be mistaken.

    Args:
        denoiser: of `fewstep.wrap` on a scalar process, its conditions bound for any number of samples.
        shape: of one sample, as (C, H, W).
        seed: of the states.
        device: where the network lives.

    Returns:
        What the output looks like: names of predictions; where there is none, of those whose negative it looks like,
        as "-flow". () where it looks like nothing known, which is no reason for a warning.

    Raises:
        ValueError: for a process that is not scalar, and for what is wrong with the network's output.
    """
    process = denoiser.process
    if not isinstance(process, ScalarProcess):
        raise ValueError(f"got a network on {type(process).__name__}: predictions are told apart on scalar processes")
    lams = max(process.log_snr(process.t_max), HIGH), min(process.log_snr(process.t_min), LOW)
    levels = [float(process.inverse_log_snr(lam)) for lam in lams]
    slopes = _slopes(denoiser, shape, levels, seed, device)
    high, low = ([name for name in NAMES if _fits(denoiser, name, t, f)] for t, f in zip(levels, slopes, strict=True))
    # States near the data are made up. Where a network returns there what no prediction would, they say nothing.
    found = [name for name in high if name in low] or ([] if denoiser.predicts in high else high)
    looks = tuple(name for name in found if not name.startswith("-")) or tuple(found)
    if looks and denoiser.predicts not in looks:
        warnings.warn(
            f"got a network wrapped with predicts={denoiser.predicts!r}, whose output looks like {' or '.join(looks)}: "
            "wrap it as what it was trained to predict",
            stacklevel=3,
        )
    return looks


def _slopes(
    denoiser: Wrapped, shape: tuple[int, ...], levels: Sequence[float], seed: int, device: torch.device | str
) -> list[float]:
    """The slopes of the network's output over states at two levels, from one call."""
    process, pairs = denoiser.process, -(-ENTRIES // math.prod(shape))
    eps = noise_source(None, seed, 0).initial((2 * pairs, *shape), torch.float32, device)
    above, below = eps[:pairs], eps[pairs:]
    field = FIELD * below[(..., *(slice(0, 1),) * (len(shape) - 1))].sign()  # the same in a whole channel
    z = torch.cat([process.prior(above, levels[0]), process.diffuse(field.expand_as(below), levels[1], below)])
    t = torch.tensor(levels, dtype=torch.float64).repeat_interleave(pairs)
    with torch.no_grad():
        out = denoiser.at(torch.cat([t, t]), denoiser.predicts)(torch.cat([z, -z]))
    odd = ((out[: len(z)] - out[len(z) :]) / 2).double()
    return [
        float((f * x).sum() / (x * x).sum()) for f, x in zip(odd.split(pairs), z.double().split(pairs), strict=True)
    ]


def _fits(denoiser: Wrapped, name: str, t: float, slope: float) -> bool:
    """Whether a slope at a time is one of that prediction, for some width of the data: it is monotone in the width."""
    process, sign, score = denoiser.process, -1 if name.startswith("-") else 1, name.endswith("score")
    assert isinstance(process, ScalarProcess)
    alpha, sigma = process.alpha(t), process.sigma(t)
    ready = replace(denoiser, predicts=name.removeprefix("-")).ready(t)
    narrow, wide = (0.0 if score else NARROW), WIDE  # far from data a score is as large as that of a point
    gains = (alpha * s**2 / ((alpha * s) ** 2 + sigma**2) for s in (narrow, wide))
    low, high = sorted(sign * (d - ready.p) / ready.q for d in gains)
    near = NEAR * (min(1.0, 1 / sigma) if score else 1.0) / max(alpha, sigma)
    return low - near < slope < high + near
