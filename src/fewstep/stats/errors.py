r"""What a network's error is, by log-SNR, and where it knows less than the mean of the data.

A prediction D(z) of data x0 is held against the mean m of the other data. The best one, D* = E[x0 | z], misses x0 by
what no function of the state tells, E<g(z), D* - x0> = 0, so with D = D* + q delta, delta the error of the network's
output F in D = p z + q F (`fewstep.process.predict`),

$$ E \langle D - m,\; D - x_0 \rangle = q^2 E |\delta|^2 + q\, E \langle D^* - m,\; \delta \rangle, $$

whose last term is none where the error has nothing to do with the state's news, and for any error far out, where D* is
m. Per entry this is the error squared, without knowing D*: 0 for an exact denoiser at every log-SNR. The network is
weak where E|D - x0|^2 > E|m - x0|^2: its error there is larger than all that the state tells.

Both are said to hold where the mean over samples is three times its own deviation; m leaves out the sample it is held
against, so neither is biased.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from torch import Tensor

from fewstep.denoiser.bridged import Bridged, of_slice
from fewstep.files import read_json, write_json
from fewstep.process.base import Process
from fewstep.terminal import Bar
from fewstep.words import Typed, finite, typed, whole

__all__ = ["Errors", "errors_of", "known_error"]

FILE = "errors.json"
_FORMAT = "fewstep errors 1"
_FIRST, _LAST, _APART = -6.0, 1.0, 0.5  # log-SNRs that are looked at, for data of deviation 0.5
_TABLE = ("log_snr", "errors", "doubts", "misses", "weak")


@dataclass(frozen=True, kw_only=True)
class Errors(Typed):
    """A network's error at the log-SNRs `log_snr`, increasing."""

    log_snr: tuple[float, ...]
    errors: tuple[float, ...]  # root mean square of the error, in units of the network's output; 0 where none shows
    doubts: tuple[float, ...]  # how large one might be that does not show
    misses: tuple[float, ...]  # root mean square of D - x0, in data
    weak: tuple[bool, ...]  # whether the network knows less than that mean
    predicts: str = "data"  # what the network returns
    std: float = 0.5  # the deviation of the data: what their mean misses
    samples: int = 0  # how many data points were taken
    weights: str | None = None  # SHA-256 of the network's weights, where they come from a file

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, name)) for name in _TABLE}
        if lengths != {len(self.log_snr)} or not self.log_snr:
            raise ValueError(f"got columns of {sorted(lengths)} entries: give one for each log-SNR, and at least one")
        for name in (*_TABLE, "std"):
            values = getattr(self, name) if name != "std" else (self.std,)
            finite(name, *values)
            if name != "log_snr" and min(values) < 0:
                raise ValueError(f"got {name}={min(values)}: give root mean squares, at least 0")
        if sorted(set(self.log_snr)) != list(self.log_snr):
            raise ValueError("got log-SNRs that do not increase: give them from noise to data")

    @property
    def error(self) -> float:
        """The root mean square of the errors where the network is weak; else the most it may be at the start."""
        found = [e for e, weak in zip(self.errors, self.weak, strict=True) if weak]
        return math.sqrt(sum(e * e for e in found) / len(found)) if found else self.errors[0] or self.doubts[0]

    @property
    def until(self) -> float:
        """The log-SNR up to which the network is weak; -inf where it is nowhere."""
        if not any(self.weak):
            return -math.inf
        i = max(k for k, weak in enumerate(self.weak) if weak)
        if i + 1 == len(self.weak):
            return self.log_snr[i]
        more = [(self.misses[k] ** 2 - self.std**2) * math.exp(2 * self.log_snr[k]) for k in (i, i + 1)]
        share = more[0] / (more[0] - min(more[1], 0.0))
        return self.log_snr[i] + share * (self.log_snr[i + 1] - self.log_snr[i])

    @property
    def sentence(self) -> str:
        """Where the network is weak, in words."""
        size = f"{self.error:.2g} of {self.predicts}"
        if not any(self.weak):
            return (
                f"at no log-SNR from {self.log_snr[0]:.1f} on it knows less than the mean of the data (its error at "
                f"{self.log_snr[0]:.1f} is at most {size})"
            )
        return f"at log-SNR below {self.until:.1f} it knows less than the mean of the data (its error there is {size})"

    def save(self, path: str | Path) -> Path:
        """Writes the table as JSON."""
        write_json(path, {"format": _FORMAT, **asdict(self)})
        return Path(path)

    @staticmethod
    def load(path: str | Path) -> Errors:
        """Reads what `save` wrote; a ValueError for another file."""
        found = read_json(path, "a model folder")
        given: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in found.items() if name != "format"
        }
        if found.get("format") != _FORMAT or set(given) != set(Errors.__dataclass_fields__):
            raise ValueError(f"got {path}, which is no {_FORMAT}: measure it again with `fewstep stats`")
        try:
            return Errors(**given)
        except ValueError as error:
            raise ValueError(f"got {path} with what is no table ({error}): measure it with `fewstep stats`") from None


@typed
def errors_of(
    denoiser: Any,
    data: Tensor,
    *,
    conditioned: Callable[[slice], Any] | None = None,
    batch: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Errors:
    """Measures a network's error by log-SNR; `dataclasses.replace(denoiser, error=found.error)` tells the default.

    Args:
        denoiser: of `fewstep.wrap`, on a process of one log-SNR.
        data: (K, *shape), clean: real, or samples of the network itself. 256 pictures are enough;
            of points, 4,000 for a network that predicts noise, 40,000 for others.
        conditioned: the denoiser of a slice of the data, where conditions differ between data points.
        batch: data points a call.
        seed: of the noises.
        progress: show a bar on a terminal.

    Raises:
        ValueError: for a process or a prediction in which x0 = p z + q F has no number q.
    """
    process: Process = denoiser.process
    of_net: Any = denoiser.denoiser if isinstance(denoiser, Bridged) else denoiser  # whose output the error is one of
    n, batch = len(data), whole("batch", batch)
    if n < 2:
        raise ValueError(f"got {n} data points: give at least 2, better 256")
    if process.kind == "diagonal" or not isinstance(of_net.ready((process.t_max + process.t_min) / 2).q, float):
        raise ValueError(
            f"got {type(process).__name__} with predicts={of_net.predicts!r}, where an error has no single size in "
            "data: its error is measured on processes of one log-SNR, on others for data, v and flow alone"
        )
    mean = (data.double().sum(0) - data.double()) / (n - 1)
    blind = (mean - data).square().flatten(1).mean(1).cpu() * ((n - 1) / n)
    std = math.sqrt(float(blind.mean())) or 0.5
    start, last = (least - math.log(2 * std) for least in (_FIRST, _LAST))
    start = max(float(process.log_snr(process.t_max)), start)
    nodes = torch.linspace(start, last, max(2, 1 + round((last - start) / _APART)), dtype=torch.float64).tolist()
    generator, rows = torch.Generator().manual_seed(seed), []
    with Bar(len(nodes), "measuring the error", shown=progress) as bar:
        for lam in nodes:
            t = float(process.inverse_log_snr(lam))
            eps = torch.randn((n, *process.state_shape(tuple(data.shape[1:]))), generator=generator).to(data)
            found = []
            for where in (slice(k, k + batch) for k in range(0, n, batch)):
                with torch.no_grad():
                    part = conditioned(where) if conditioned else of_slice(denoiser, n, where)
                    d = part(process.diffuse(data[where], t, eps[where]), t).double()
                miss = d - data[where]
                both = ((d - mean[where]) * miss).flatten(1).mean(1), miss.square().flatten(1).mean(1)
                found.append(torch.stack(both).cpu())
            square, miss = torch.cat(found, 1)
            rows.append(_row(square, miss, blind, abs(float(of_net.ready(t).q))))
            bar.advance()
    errors, doubts, misses, weak = zip(*rows, strict=True)
    return Errors(log_snr=tuple(nodes), errors=errors, doubts=doubts, misses=misses, weak=weak, std=std, samples=n,
                  predicts=of_net.predicts, weights=of_net.weights)  # fmt: skip


def _row(square: Tensor, miss: Tensor, blind: Tensor, q: float) -> tuple[float, float, float, bool]:
    """The error and what may hide of it, in the network's output; the miss; whether it is more than the mean's."""
    shows = lambda x: (float(x.mean()), 3 * float(x.std()) / math.sqrt(len(x)))  # noqa: E731
    (size, doubt), (more, sure) = shows(square), shows(miss - blind)
    error, most = (math.sqrt(s) / q for s in (size if size > doubt else 0.0, max(size, 0.0) + doubt))
    return error, most, math.sqrt(float(miss.mean())), more > sure


def known_error(folder: Path, weights: str | None) -> float:
    """The error that `fewstep stats` measured on the network of a folder; 0 where none is known."""
    path = folder / FILE
    if not path.is_file():
        return 0.0
    found = Errors.load(path)
    if found.weights != weights:
        warn(
            f"got {path}, measured on the weights {str(found.weights)[:12]}, for the weights {str(weights)[:12]}: it "
            "is not read; measure it again with `fewstep stats`",
            stacklevel=4,
        )
        return 0.0
    return found.error
