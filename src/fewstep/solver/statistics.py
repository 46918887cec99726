r"""Model statistics: numbers measured on a trained network that samplers read, as functions of log-SNR.

| field     | what                                                        | read by                          |
|-----------|-------------------------------------------------------------|----------------------------------|
| `eps2`    | E||eps_theta||^2 / d, the mean square of the prediction     | `analytic-ddpm`, `analytic-ddim` |
| `error2`  | E||eps - eps_theta||^2 / d, the mean square of its error    | the same, with `corrected`       |
| `l, s, b` | linear part, scale and bias of the prediction along the ODE | `dpm-solver-v3`                  |

On scalar processes all of them depend on the log-SNR alone (they are made of eps and x/alpha), so what was measured
on VP serves EDM or flow. Between nodes they are interpolated linearly, beyond the last one held.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.files import extra, load_tensors, save_tensors
from fewstep.process.base import Process
from fewstep.process.operator import Coefficient, Diagonal
from fewstep.words import Typed

__all__ = ["FILE", "Statistics", "attach"]

FILE = "statistics.safetensors"
_FORMAT = "fewstep statistics 1"
_TENSORS = ("log_snr", "eps2", "error2", "l", "s", "b")
_LEAST = 1e-30  # stands for a variance of zero where its logarithm is interpolated


@dataclass(frozen=True, eq=False, kw_only=True)
class Statistics(Typed):
    """Statistics at the nodes `log_snr`, increasing; equal when their numbers are.

    Attributes:
        log_snr: (N,) float64.
        eps2, error2: (N,), or (N, *size) with one number a frequency on diagonal processes; None when not measured.
        l, s, b: (N,) or (N, *data shape), all three or none.
        samples: how many data points every node was measured with.
        weights: SHA-256 of the network's weights, where they come from a file.
        path: the file they were read from.
    """

    log_snr: Tensor
    eps2: Tensor | None = None
    error2: Tensor | None = None
    l: Tensor | None = None  # noqa: E741 - the paper's letter
    s: Tensor | None = None
    b: Tensor | None = None
    samples: int = 0
    weights: str | None = None
    path: Path | None = None

    def __post_init__(self) -> None:
        nodes = self._tensors()
        for name, value in nodes.items():
            object.__setattr__(self, name, value)
        lam = nodes["log_snr"]
        if lam.ndim != 1 or len(lam) < 2 or not bool((lam.diff() > 0).all()):
            raise ValueError(f"got statistics at {lam.numel()} log-SNRs: give at least 2, increasing")
        for name, value in nodes.items():
            if len(value) != len(lam) or not bool(value.isfinite().all()):
                raise ValueError(f"got {name} of shape {tuple(value.shape)}: give {len(lam)} finite entries")
        if len({self.l is None, self.s is None, self.b is None}) > 1:
            raise ValueError("got some of l, s and b: give all three or none")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Statistics) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        kinds = " and ".join(["eps2"] * (self.eps2 is not None) + ["l, s, b"] * (self.l is not None)) or "nothing"
        return f"Statistics({kinds} at {len(self.log_snr)} nodes, {self.digest[:8]})"

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the numbers."""
        found = hashlib.sha256()
        for name, value in self._tensors().items():
            found.update(f"{name}{tuple(value.shape)}".encode() + value.numpy().astype("<f8").tobytes())
        return found.hexdigest()

    def at(self, name: str, lam: Tensor) -> Tensor:
        """A statistic at log-SNRs (...,): (..., *shape), linear between nodes."""
        values = self._tensors().get(name)
        if values is None:
            raise ValueError(f"got statistics without {name}: measure it with `fewstep stats`")
        return _interpolate(self.log_snr, values, lam)

    def data_variance(
        self, process: Process, t: float, *, half_range: float = float("inf"), corrected: bool = False
    ) -> Coefficient:
        r"""Gamma_t = E Var(x0 | z_t) of a coordinate, in the process's coordinates: (R/M)^2 (1 - E eps_theta^2).

        With `corrected` it is (R/M)^2 E (eps - eps_theta)^2, the same for a perfect network, and right for others.
        It can only fall as the noise falls, so an estimate below a later one is raised to it (a noisy eps2 is most
        often above 1 at the start), and data within `half_range` of its middle has at most half_range^2.
        """
        lam = torch.as_tensor(process.log_snr(t), dtype=torch.float64)
        measured = self._tensors()
        rest = measured["error2"] if corrected else 1 - measured["eps2"]
        if process.kind == "diagonal":
            times = process.inverse_log_snr(self.log_snr)
            m, r = process.M(times), process.R(times)
            if rest.shape[1:] != m.values.shape[1:]:
                raise ValueError(
                    f"got eps2 of shape {tuple(rest.shape)} for {type(process).__name__}, which has one variance a "
                    "frequency: measure the statistics on this process"
                )
            gamma = rest * (r.values / m.values) ** 2
        else:
            if rest.ndim > 1:
                raise ValueError(
                    f"got eps2 of shape {tuple(rest.shape)}, one variance a frequency, for {type(process).__name__}, "
                    "which has one a node: measure the statistics on this process"
                )
            gamma = rest * (-2 * self.log_snr).exp()
        falling = gamma.clamp(min=_LEAST).flip(0).cummax(0).values.flip(0)
        found = _interpolate(self.log_snr, falling.log(), lam).exp().clamp(max=half_range**2)
        return Diagonal(found, found.ndim) if process.kind == "diagonal" else float(found)

    def save(self, path: str | Path) -> Path:
        """Writes safetensors; the header holds the format, the digest, the samples and the weights' hash."""
        about = {"format": _FORMAT, "digest": self.digest, "samples": str(self.samples), "weights": self.weights or ""}
        save_tensors(path, self._tensors(), about)
        return Path(path)

    @staticmethod
    def load(path: str | Path, *, weights: str | None = None) -> Statistics:
        """Reads statistics; refuses another file, a changed one, and those of other weights than `weights`."""
        path = Path(path)
        tensors = load_tensors(path)
        with extra("safetensors", "diffusers", "reading statistics").safe_open(path, "pt") as file:
            about = file.metadata() or {}
        if about.get("format") != _FORMAT or not set(tensors) <= set(_TENSORS) or "log_snr" not in tensors:
            raise ValueError(f"got {path}, which is no {_FORMAT}: give a file that `fewstep stats` wrote")
        found = Statistics(
            **tensors, samples=int(about.get("samples", 0)), weights=about.get("weights") or None, path=path
        )
        if found.digest != about.get("digest"):
            raise ValueError(f"got {path}, whose numbers are not those that were saved: measure the statistics again")
        if weights is not None and found.weights is not None and weights != found.weights:
            raise ValueError(
                f"got {path}, measured on weights {found.weights[:12]}, for weights {weights[:12]}: "
                "measure the statistics again with `fewstep stats`"
            )
        return found

    def config(self) -> dict[str, Any]:
        """What a solver's config says of its statistics: the file and the numbers' hash."""
        return {"file": str(self.path.resolve()) if self.path else None, "sha256": self.digest}

    @staticmethod
    def given(value: Statistics | str | Path | None, reads: tuple[str, ...]) -> Statistics | None:
        """What a solver was given, a file's name read; refused where it lacks what the solver reads."""
        found = Statistics.load(value) if isinstance(value, str | Path) else value
        if found is not None and not isinstance(found, Statistics):
            raise ValueError(f"got a {type(found).__name__} as statistics: give Statistics, or the name of their file")
        if found is not None and any(getattr(found, name) is None for name in reads):
            raise ValueError(f"got statistics without {', '.join(reads)}: measure them with `fewstep stats`")
        return found

    @staticmethod
    def from_config(config: dict[str, Any]) -> Statistics:
        """The statistics that `config` named, from their file; a ValueError where they are no longer there."""
        path = config.get("file")
        if not path or not Path(path).is_file():
            raise ValueError(f"got statistics {str(config.get('sha256'))[:12]}, whose file {path} is not there")
        found = Statistics.load(path)
        if found.digest != config.get("sha256"):
            raise ValueError(f"got statistics in {path} that are not {str(config.get('sha256'))[:12]}: measured again?")
        return found

    def _tensors(self) -> dict[str, Tensor]:
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name in _TENSORS}
        return {k: torch.as_tensor(v, dtype=torch.float64).cpu() for k, v in values.items() if v is not None}


def attach(solver: Any, model: Any) -> Any:
    """A solver with the statistics of a model's folder, where it reads any, was given none, and finds what it needs.

    Statistics of other weights than the model's are refused.
    """
    path = None if model.path is None else model.path / FILE
    if path is None or not path.is_file() or getattr(solver, "statistics", "") is not None:
        return solver
    found = Statistics.load(path, weights=model.weights)
    with suppress(ValueError):  # measured, but not what this solver reads
        return replace(solver, statistics=found)
    return solver


def _interpolate(nodes: Tensor, values: Tensor, lam: Tensor) -> Tensor:
    """Linear between the nodes, held beyond them."""
    i = (torch.searchsorted(nodes, lam.contiguous(), right=True) - 1).clamp(0, len(nodes) - 2)
    place = ((lam - nodes[i]) / (nodes[i + 1] - nodes[i])).clamp(0, 1)
    place = place.reshape(place.shape + (1,) * (values.ndim - 1))
    return values[i] + place * (values[i + 1] - values[i])
