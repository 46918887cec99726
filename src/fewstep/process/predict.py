r"""What networks predict, as one line each: x0 = p z + q F.

| prediction | the network returns F =                      | x0 =                                   |
|------------|----------------------------------------------|----------------------------------------|
| `data`     | x0                                           | F                                      |
| `noise`    | eps                                          | (z - sigma F) / alpha                  |
| `v`        | alpha eps - sigma x0 (Salimans & Ho 2022)    | (alpha z - sigma F)/(alpha^2+sigma^2)  |
| `flow`     | eps - x0 (Liu et al. 2022)                   | (z - sigma F) / (alpha + sigma)        |
| `score`    | -(z - alpha x0) / sigma^2                    | (z + sigma^2 F) / alpha                |

`noise`, `score` and `data` mean the same on every linear process, with matrices for alpha and sigma, and so do `v` and
`flow` where M and R are diagonal. Where they are blocks (CLD), all that a state tells about the data is its `statistic`

$$ (M^T \Sigma^{-1} M)^{-1} M^T \Sigma^{-1} z = x_0 + e^{-\lambda} n, \qquad n \sim N(0, I), $$

a scalar process of the same log-SNR; a network that predicts `v` or `flow` is called with that, scaled to
alpha^2 + sigma^2 = 1 or alpha + sigma = 1, and predicts what it would there.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from fewstep.process.base import Process, Time, like, to_tensor
from fewstep.process.operator import Coefficient, inverse, magnitude, transpose
from fewstep.process.scalar import ScalarProcess
from fewstep.words import one_of

__all__ = ["EDM_LIKE", "PREDICTIONS", "VARIANCES", "conversion", "preconditioning", "statistic", "view"]

EDM_LIKE = ("edm", "consistency", "residual")  # preconditionings, which have the data's deviation in them
VARIANCES = ("sn", "npr")  # heads that predict the variance of every coordinate of the noise
Conversion = Callable[[Process, Time], tuple[Coefficient, Coefficient]]


def _v(process: Process, t: Time) -> tuple[Coefficient, Coefficient]:
    if process.kind == "block":
        alpha, sigma = _levels("v", process, t)
        return alpha * view("v", process, t), -sigma
    m, r = process.M(t), process.R(t)
    scale = inverse(m * m + r * r)
    return m * scale, -1.0 * (r * scale)


def _flow(process: Process, t: Time) -> tuple[Coefficient, Coefficient]:
    if process.kind == "block":
        return view("flow", process, t), -_levels("flow", process, t)[1]
    m, r = process.M(t), process.R(t)
    scale = inverse(m + r)
    return scale, -1.0 * (r * scale)


PREDICTIONS: dict[str, Conversion] = {
    "data": lambda process, t: (0.0, 1.0),
    "noise": lambda process, t: process.data_from_noise(t),
    "v": _v,
    "flow": _flow,
    "score": lambda process, t: process.data_from_score(t),
}


def statistic(process: Process, t: Time) -> Coefficient:
    """A with A z = x0 + e^-lambda n for z = M x0 + R eps: all that a state tells about the data.

    Scalar and block processes have one; where every frequency has its own log-SNR it would be M^-1.
    """
    if process.kind != "block":
        return inverse(process.M(t))
    m = process.M(t)
    back = transpose(m) * inverse(process.Sigma(t))
    return inverse(back * m) * back


def view(prediction: str, process: Process, t: Time) -> Coefficient:
    """What the state is multiplied with before a network that predicts `prediction` sees it; 1.0 but on blocks."""
    if process.kind != "block" or prediction not in ("v", "flow"):
        return 1.0
    return statistic(process, t) * _levels(prediction, process, t)[0]


def _levels(prediction: str, process: Process, t: Time) -> tuple[Time, Time]:
    """(alpha, sigma) at the process's log-SNR with alpha^2 + sigma^2 = 1 (`v`) or alpha + sigma = 1 (`flow`)."""
    lam = to_tensor(process.log_snr(t))
    if prediction == "v":
        return like(torch.sigmoid(2 * lam).sqrt(), t), like(torch.sigmoid(-2 * lam).sqrt(), t)
    return like(torch.sigmoid(lam), t), like(torch.sigmoid(-lam), t)


def conversion(prediction: str, process: Process, t: Time) -> tuple[Coefficient, Coefficient]:
    """(p, q) with x0 = p z + q F for that prediction at that time; a ValueError where it does not exist."""
    one_of("predicts", prediction, PREDICTIONS)
    p, q = PREDICTIONS[prediction](process, t)
    if not magnitude(p) < float("inf"):
        raise ValueError(
            f"got a network that predicts {prediction} at t = {t}, where the state holds no signal (alpha = 0): "
            "it knows nothing there; start the grid later or use a data, v or flow prediction"
        )
    return p, q


def preconditioning(
    prediction: str, process: Process, t: Time, sigma_data: float = 0.5
) -> tuple[Coefficient, Coefficient, Coefficient]:
    """(c_in, p, q) with x0 = p z + q F(c_in z): what a network is shown, and how its output is read.

    `view` and `conversion`, or for "edm" EDM's preconditioning of x = z / alpha at sigma / alpha (Karras et al. 2022,
    table 1), on scalar processes. "consistency" is the same with x0 = x at t_min: c_skip and c_out of sigma - sigma_min
    (Song et al. 2023, appendix C). "residual" is "edm" with c_in = (sigma^2 + sigma_data^2)^-1/2, which is finite where
    a bridge is pinned, alpha = sigma = 0: there x0 = sigma_data F.
    """
    if prediction not in EDM_LIKE:
        return view(prediction, process, t), *conversion(prediction, process, t)
    assert isinstance(process, ScalarProcess)
    alpha, sigma = process.alpha(t), process.sigma(t)
    if prediction == "residual":
        known = torch.sigmoid(2 * to_tensor(process.log_snr(t)) + 2 * math.log(sigma_data))
        p = torch.where(known > 0, known / to_tensor(alpha), 0.0)
        return (sigma**2 + sigma_data**2) ** -0.5, like(p, t), like(sigma_data * (1 - known).sqrt(), t)
    total = sigma**2 + (alpha * sigma_data) ** 2  # alpha^2 (sigma_edm^2 + sigma_data^2)
    if prediction == "edm":
        return total**-0.5, alpha * sigma_data**2 / total, sigma * sigma_data * total**-0.5
    rho = sigma / alpha - process.sigma(process.t_min) / process.alpha(process.t_min)
    p = sigma_data**2 / (rho**2 + sigma_data**2) / alpha
    return total**-0.5, p, alpha * rho * sigma_data * total**-0.5
