r"""Problems whose exact denoiser is known, seen through a network that errs: each a subject of `fewstep.bench`.

Data are a mixture of Gaussians with diagonal covariances in an orthonormal basis. With y = x0 + e^-lambda n, all that a
state tells of the data, and n = e^(2 lambda), the exact denoiser of a mixture with weights w_k is

$$ D = \sum_k \pi_k c_k (\mu_k + s_k^2 n y), \qquad c_k = 1/(1 + s_k^2 n), \qquad
   \log \pi_k = \log w_k + \tfrac12 \sum (\log c_k + c_k s_k^2 n^2 y^2 + 2 c_k n \mu_k y - c_k n \mu_k^2) + const $$

(`fewstep.Mixture` by products of matrices, a few times as fast and with a class a sample). The network of a problem
returns F of that D plus an error of root mean square `size` in the units of F, a fixed function of state, time, class:

| error  | what it is                                                                  |
|--------|-----------------------------------------------------------------------------|
| shift  | one number for all coordinates, which swings slowly with log-SNR            |
| smooth | random features of the state on its own scale and of log-SNR                |
| white  | random features of the state on a scale of 1/300: other noise at any other state |
| mixed  | .8, .5 and .33 of the three, as a small trained network has them            |

Half of its variance is the class's own, so guidance amplifies it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fewstep as fs
from fewstep.bench import Subject
from fewstep.files import kept_tensors, save_tensors
from fewstep.process.operator import apply, inverse
from fewstep.process.predict import preconditioning

__all__ = ["DATA", "ERRORS", "Data", "Exact", "Problem"]

ERRORS = {"": (0.0, 0.0, 0.0), "shift": (1.0, 0.0, 0.0), "smooth": (0.0, 1.0, 0.0), "white": (0.0, 0.0, 1.0),
          "mixed": (0.8, 0.5, 0.33)}  # fmt: skip
FEATURES = 48  # of the smooth error
FAST = 300.0  # how fast the white error turns, in radians for a state of unit size
REAL, ENDS = 8192, 4096  # samples that stand for the data: drawn, and at the end of many calls
ELSEWHERE = 10**6  # seed of the noises whose exact end states are the reference of a guided problem


@dataclass(frozen=True, eq=False)
class Data:
    """Components: means and deviations (K, d) in the orthonormal `basis` (d, d), of samples of `shape`."""

    means: Tensor
    stds: Tensor
    shape: tuple[int, ...]
    basis: Tensor | None = None

    @property
    def std(self) -> float:
        """Of all entries about the mean of their coordinate."""
        return float((self.stds.square() + (self.means - self.means.mean(0)).square()).mean().sqrt())

    def draw(self, count: int, seed: int) -> Tensor:
        """Samples (count, *shape)."""
        g = torch.Generator().manual_seed(seed)
        part = torch.randint(len(self.means), (count,), generator=g)
        x = self.means[part] + self.stds[part] * torch.randn(
            count, self.means.shape[1], dtype=self.means.dtype, generator=g
        )
        return self.out(x).reshape(count, *self.shape)

    def into(self, x: Tensor) -> Tensor:
        """Flattened samples in the basis."""
        x = x.flatten(1)
        return x if self.basis is None else x @ self.basis.T

    def out(self, x: Tensor) -> Tensor:
        """Back, flattened."""
        return x if self.basis is None else x @ self.basis


def _generator(seed: int) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Normal and uniform numbers in float64."""
    g = torch.Generator().manual_seed(seed)
    return tuple(partial(make, dtype=torch.float64, generator=g) for make in (torch.randn, torch.rand))  # type: ignore


def cosines(size: int) -> Tensor:
    """The orthonormal DCT-II basis, a row a frequency."""
    k, x = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64) + 0.5
    rows = (2 / size) ** 0.5 * torch.cos(math.pi / size * k * x)
    return torch.cat([rows[:1] / 2**0.5, rows[1:]])


def points(
    seed: int,
    dimensions: int,
    parts: int = 8,
    spread: float = 1.0,
) -> Data:
    """Round clusters of deviation .1 to .5: centres of deviation `spread` about a common one of half of it."""
    normal, uniform = _generator(seed)
    means = 0.5 * spread * normal(1, dimensions) + spread * normal(parts, dimensions)
    width = 0.1 + 0.4 * uniform(parts, 1)
    return Data(means, width.expand(parts, dimensions), (dimensions,))


def line(seed: int, parts: int = 12, radius: float = 1.0, std: float = 0.05) -> Data:
    """Thin clusters on a spiral in the plane."""
    angle = torch.arange(parts, dtype=torch.float64) * 2.4 + seed
    rho = radius * ((torch.arange(parts, dtype=torch.float64) + 1) / parts).sqrt()
    means = torch.stack([rho * angle.cos(), rho * angle.sin()], 1)
    return Data(means, torch.full_like(means, std), (2,))


def digits(seed: int, parts: int = 10, side: int = 8, std: float = 0.15) -> Data:
    """Pictures in [-1, 1]: bright strokes on black, with less noise at high frequencies."""
    normal, uniform = _generator(seed)
    k = torch.arange(side, dtype=torch.float64)
    fall = 1 / (1 + (k[:, None] ** 2 + k**2) / 4)
    smooth = lambda x: cosines(side).T @ (x * fall) @ cosines(side)  # noqa: E731
    pictures = torch.tanh(4 * (smooth(8 * normal(parts, side, side)) - 0.6))
    both = torch.kron(cosines(side), cosines(side))
    width = std * (0.5 + uniform(parts, 1)) * fall.flatten().sqrt()
    return Data(pictures.flatten(1) @ both.T, width, (1, side, side), both)


def series(seed: int, parts: int = 6, length: int = 32, std: float = 0.5) -> Data:
    """Gaussian processes of several smoothnesses about waves with a trend."""
    normal, uniform = _generator(seed)
    time = torch.linspace(0, 1, length, dtype=torch.float64)
    waves = torch.sin(2 * math.pi * ((1 + 4 * uniform(parts, 1)) * time + uniform(parts, 1)))
    means = waves * (0.3 + uniform(parts, 1)) + normal(parts, 1) * time + 0.5
    k = torch.arange(length, dtype=torch.float64)
    width = 1 / (1 + (k / (1 + 6 * uniform(parts, 1))) ** 2)
    width = std * width / width.square().mean(1, keepdim=True).sqrt()
    return Data(means @ cosines(length).T, width, (length,), cosines(length))


def latents(seed: int, parts: int = 12, channels: int = 4, side: int = 4) -> Data:
    """What an autoencoder makes of pictures: broad parts of deviation 1 in all, and a mean a channel."""
    normal, uniform = _generator(seed)
    d = channels * side * side
    means, width = 0.7 * normal(parts, d), 0.3 + 0.8 * uniform(parts, d)
    scale = Data(means, width, (d,)).std
    shift = torch.linspace(-1, 1, channels, dtype=torch.float64).repeat_interleave(side * side)
    return Data(means / scale + shift, width / scale, (channels, side, side))


DATA: dict[str, Callable[..., Data]] = {"points": points, "line": line, "digits": digits, "series": series,
                                        "latents": latents}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Exact:
    """D of a mixture for y = x0 + e^-lambda n at a log-SNR, of some classes alone: component k has class k mod C."""

    data: Data
    classes: int = 0

    @cached_property
    def _weights(self) -> Tensor:
        """Log weights (1 + C, K): of all parts, then of each class's."""
        parts = len(self.data.means)
        own = torch.arange(parts) % max(1, self.classes) == torch.arange(self.classes)[:, None]
        return torch.cat([torch.zeros(1, parts), torch.where(own, 0.0, -math.inf)]).double()

    def __call__(self, y: Tensor, lam: float, classes: Tensor) -> Tensor:
        """E[x0 | y] (batch, d) in float64 for flattened y in float64, classes (batch,) with 0 for none."""
        mu, var, n, y = self.data.means, self.data.stds.square(), math.exp(2 * lam), self.data.into(y)
        keep = 1 / (1 + var * n)
        logits = y.square() @ (keep * var * n * n).T + 2 * n * y @ (keep * mu).T
        logits = logits + (keep.log() - keep * n * mu.square()).sum(1)
        pi = (0.5 * logits + self._weights[classes]).softmax(1)
        return self.data.out(pi @ (keep * mu) + n * (pi @ (keep * var)) * y)


@dataclass(frozen=True, eq=False)
class Erring:
    """The error of a network: (x of unit size (batch, d), log-SNR, classes) -> (batch, d), root mean square 1."""

    shares: tuple[float, float, float]
    dimensions: int
    classes: int
    seed: int

    @cached_property
    def _drawn(self) -> dict[str, Tensor]:
        normal, uniform = _generator(self.seed)
        d = self.dimensions
        turn = lambda n: 2 * math.pi * uniform(1 + self.classes, n)  # noqa: E731
        return {"shift": turn(1), "smooth": turn(FEATURES), "white": turn(d), "slow": normal(d, FEATURES) / d**0.5,
                "fast": FAST * normal(d, d) / d**0.5, "mix": normal(FEATURES, d) / FEATURES**0.5,
                "rate": 0.5 * normal(FEATURES)}  # fmt: skip

    def __call__(self, x: Tensor, lam: float, classes: Tensor) -> Tensor:
        if not any(self.shares):
            return torch.zeros_like(x)
        lam = max(-10.0, min(10.0, lam))
        owners = [torch.zeros_like(classes), classes] if self.classes else [torch.zeros_like(classes)]
        return sum(self._one(x, lam, owner) for owner in owners) / len(owners) ** 0.5  # type: ignore[return-value]

    def _one(self, x: Tensor, lam: float, owner: Tensor) -> Tensor:
        v, (shift, smooth, white) = self._drawn, self.shares
        found = torch.zeros_like(x)
        if shift:
            found = found + shift * 2**0.5 * torch.cos(v["shift"][owner] + 0.4 * lam)
        if smooth:
            found = found + smooth * 2**0.5 * torch.cos(x @ v["slow"] + v["rate"] * lam + v["smooth"][owner]) @ v["mix"]
        if white:
            found = found + white * 2**0.5 * torch.cos(x @ v["fast"] + FAST * lam + v["white"][owner])
        return found


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A mixture on a process, seen through a network.

    Attributes:
        name: of the problem.
        process: of the network.
        kind: of data, in `DATA`, and its `options`.
        seed: of data and error.
        predicts: what the network returns, as in `fewstep.wrap`; "" is the exact denoiser of data, unwrapped.
        time: the network's time.
        error: one of `ERRORS`.
        size: its root mean square, in the units of what is predicted.
        guidance: scale, towards one of `classes` classes.
        classes: how many there are.
    """

    name: str
    process: fs.Process
    kind: str
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    predicts: str = "noise"
    time: str | None = None
    error: str = ""
    size: float = 0.0
    guidance: float = 1.0
    classes: int = 0
    made: dict[str, Data] = field(default_factory=dict, compare=False, repr=False)

    @property
    def exact(self) -> bool:
        """Whether the network has no error."""
        return not self.size

    @property
    def data(self) -> Data:
        """The data, made once."""
        if "data" not in self.made:
            self.made["data"] = DATA[self.kind](self.seed, **self.options)
        return self.made["data"]

    def subject(self, real: int | None = None, kept: Path | None = None) -> Subject:
        """The problem for `fewstep.bench`, with `real` samples of the data.

        Of a guided one they are exact end states from other noises, kept in the folder `kept` where there is one.
        """
        plain = self._subject(self.size)
        if self.guidance == 1:
            return replace(plain, data=self.data.draw(real or REAL, ELSEWHERE + self.seed).float())
        path = kept and kept / f"ends-{hashlib.sha256(f'{plain.digest} {real}'.encode()).hexdigest()[:16]}.safetensors"
        found = kept_tensors(path) if path else {}
        if not found:
            found = {"ends": self._ends(real or ENDS).float()}
            if path:
                save_tensors(path, found, sealed=True)
        return replace(plain, data=found["ends"])

    def _subject(self, size: float) -> Subject:
        digest = f"{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()} {self} size {size}"
        return Subject(name=self.name, digest=digest, process=self.process, shape=self.data.shape, classes=self.classes,
                       guidance=self.guidance, denoiser=partial(self.denoiser, size=size))  # fmt: skip

    def _ends(self, count: int) -> Tensor:
        """Exact end states from other noises, without error."""
        subject, p = self._subject(0.0), self.process
        noise = fs.Noise(seed=ELSEWHERE + self.seed).normal("initial", 0, (count, *p.state_shape(self.data.shape)))
        table = fs.tabulate("multistep-pc-3", p, steps=80, final="state")
        z = fs.sample(subject.of(0, count), p, solver=table, x=p.prior(noise, table.rows[0].t), progress=False)
        return p.to_data(z)

    def denoiser(self, labels: Sequence[int] | None, size: float | None = None) -> fs.Wrapped:
        """The wrapped network of some classes, or of none."""
        size = self.size if size is None else size
        classes = torch.tensor(0) if labels is None or not self.classes else torch.as_tensor(labels) + 1
        erring = Erring(tuple(size * share for share in ERRORS[self.error]), self.data.means.shape[1], self.classes,
                        self.seed)  # fmt: skip
        net = partial(_network, problem=self, exact=Exact(self.data, self.classes), erring=erring, classes=classes)
        edm = {"sigma_data": self.data.std} if self.predicts == "edm" else {}
        return fs.wrap(net, self.process, self.predicts, time=self.time, dtype=torch.float64, **edm)


def _network(x: Tensor, label: Tensor, *, problem: Problem, exact: Exact, erring: Erring, classes: Tensor) -> Tensor:
    """F of the exact D, and its error; times may differ between samples."""
    classes = classes.expand(len(x))
    found = torch.empty_like(x)
    for value in label.unique().tolist():
        rows = label == value
        found[rows] = _at(x[rows], _time(problem, value), problem, exact, erring, classes[rows])
    return found


def _time(problem: Problem, label: float) -> float:
    """The process's time of a network's label."""
    p: Any = problem.process
    if problem.predicts == "edm":
        return p.inverse_log_snr(-4 * label)
    return (label + 1) / p.count if problem.time == "index" else label


def _at(x: Tensor, t: float, problem: Problem, exact: Exact, erring: Erring, classes: Tensor) -> Tensor:
    """F at one time."""
    p, lam = problem.process, float(problem.process.log_snr(t))
    unit = lambda e, like: e.reshape(like.shape)  # noqa: E731
    if p.kind == "diagonal":
        shape = (-1, *problem.data.shape)
        mixture = fs.Mixture(p, problem.data.out(problem.data.means).reshape(shape), problem.data.stds.reshape(shape))
        _, a, b = preconditioning(problem.predicts, p, t)
        f = apply(inverse(b), p.coordinates(mixture(x, t)) - apply(a, x))
        return f + unit(erring(x.flatten(1), lam, classes), x)
    if p.kind == "block":  # the network sees the state's statistic, as that of a variance-preserving process
        alpha, sigma = (float(torch.sigmoid(torch.tensor(s * 2 * lam, dtype=torch.float64)).sqrt()) for s in (1, -1))
        c_in, a, b = 1.0, alpha, -sigma
    else:
        alpha, sigma = float(p.alpha(t)), float(p.sigma(t))
        c_in, a, b = (float(c) for c in preconditioning(problem.predicts, p, t, problem.data.std))
    z = x.flatten(1) / c_in
    d = exact(z / alpha, lam, classes) if alpha else exact(torch.zeros_like(z), -math.inf, classes)
    f = (d - a * z) / b if b else torch.zeros_like(z)
    return unit(f + erring(z / math.hypot(alpha, sigma), lam, classes), x)
