r"""What networks predict, as one line each: x0 = p z + q F.

| prediction | the network returns F =                      | x0 =                                   |
|------------|----------------------------------------------|----------------------------------------|
| `data`     | x0                                           | F                                      |
| `noise`    | eps                                          | (z - sigma F) / alpha                  |
| `v`        | alpha eps - sigma x0 (Salimans & Ho 2022)    | (alpha z - sigma F)/(alpha^2+sigma^2)  |
| `flow`     | eps - x0 (Liu et al. 2022)                   | (z - sigma F) / (alpha + sigma)        |
| `score`    | -(z - alpha x0) / sigma^2                    | (z + sigma^2 F) / alpha                |

`noise`, `score` and `data` mean the same on every linear process, with matrices for alpha and sigma; `v` and `flow`
are defined for processes whose M and R are diagonal.
"""

from __future__ import annotations

from collections.abc import Callable

from fewstep.process.base import Process, Time
from fewstep.process.operator import Coefficient, inverse, magnitude

__all__ = ["PREDICTIONS", "conversion"]

Conversion = Callable[[Process, Time], tuple[Coefficient, Coefficient]]


def _data(process: Process, t: Time) -> tuple[Coefficient, Coefficient]:
    return 0.0, 1.0


def _noise(process: Process, t: Time) -> tuple[Coefficient, Coefficient]:
    return process.data_from_noise(t)


def _score(process: Process, t: Time) -> tuple[Coefficient, Coefficient]:
    return process.data_from_score(t)


def _v(process: Process, t: Time) -> tuple[Coefficient, Coefficient]:
    m, r = process.M(t), process.R(t)
    scale = inverse(m * m + r * r)
    return m * scale, -1.0 * (r * scale)


def _flow(process: Process, t: Time) -> tuple[Coefficient, Coefficient]:
    m, r = process.M(t), process.R(t)
    scale = inverse(m + r)
    return scale, -1.0 * (r * scale)


PREDICTIONS: dict[str, Conversion] = {"data": _data, "noise": _noise, "v": _v, "flow": _flow, "score": _score}
_NOT_FOR_BLOCKS = ("v", "flow")


def conversion(prediction: str, process: Process, t: Time) -> tuple[Coefficient, Coefficient]:
    """(p, q) with x0 = p z + q F for that prediction at that time; a ValueError where it does not exist."""
    if prediction not in PREDICTIONS:
        raise ValueError(f"got predicts={prediction!r}: choose one of {', '.join(PREDICTIONS)}")
    if process.kind == "block" and prediction in _NOT_FOR_BLOCKS:
        raise ValueError(
            f"got predicts={prediction!r} for {type(process).__name__}, whose noise is a matrix: "
            "use 'noise', 'score' or 'data'"
        )
    p, q = PREDICTIONS[prediction](process, t)
    if not magnitude(p) < float("inf"):
        raise ValueError(
            f"got a network that predicts {prediction} at t = {t}, where the state holds no signal (alpha = 0): "
            "it knows nothing there; start the grid later or use a data, v or flow prediction"
        )
    return p, q
