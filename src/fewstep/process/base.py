r"""The algebra a linear Gaussian process owns; everything a solver may ask of it.

$$ z_t = M_t x_0 + R_t \epsilon, \qquad R_t R_t^T = \Sigma_t, \qquad dz = F_t z\, dt + G_t\, dw $$

- `M` carries clean data to the mean, `Psi` solves the drift (`dPsi = F Psi dt`), so `Psi_t Psi_s^-1` takes s to t.
- `R` is the root of Sigma that solves `dR/dt = (F + 1/2 G G^T Sigma^-1) R` (Zhang et al. 2022, gDDIM, eq. 17). With it
  a single data point makes `eps = R^-1 (z - M x0)` constant along the probability-flow ODE, and two exact forms hold:

$$ d(R^{-1} z) = d(R^{-1} M)\, D(z_t, t), \qquad d(\Psi^{-1} z) = d(\Psi^{-1} R)\, \epsilon(z_t, t). $$

`D(z, t) = E[x0 | z]` is the data prediction and `eps = R^-1 (z - M D)` the noise prediction. Scalar processes have
M = Psi = alpha and R = sigma. Time runs from `t_max` (noise) to `t_min` (data). A time is a float, or a `(batch,)`
float64 tensor of per-sample times; a float gives a coefficient for the whole batch, a vector one per sample.

References: Zhang, Tao, Chen, gDDIM, 2022, eq. 16-18, https://arxiv.org/abs/2206.05564.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from bisect import bisect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.process.operator import Coefficient, apply, inverse, transpose, unstacked
from fewstep.words import Typed

__all__ = [
    "Memory", "Process", "Time", "across", "asking_at", "derivative", "like", "once", "recalling", "to_tensor"
]  # fmt: skip

Time = Any  # float | (batch,) float64 Tensor; a function of a Time returns the same of the two
ASKED = ("M", "R", "Psi", "F", "GG", "Sigma", "M_rate", "R_rate", "alpha", "sigma", "log_snr", "inverse_log_snr")
SHARED = ("_parts", "_faded", "_mean")  # methods whose values several of ASKED share
PLACES = ("alpha", "sigma", "log_snr", "inverse_log_snr")  # answered while times are noted, which are made of them


class Memory:
    """What a process has answered at single times: see `recalling`.

    A tensor operation costs as much for one number as for a hundred: what is asked at one of `times` is worked out at
    all of them. While `noting` is set, other times, log-SNRs and stretches are collected and answered by the line
    between their neighbours, for a second time that asks for all of them together. Times are made of some answers:
    these are guesses, and the second time asks at other ones.
    """

    def __init__(self, process: Process, times: list[float]) -> None:
        self.process, self.times, self.noting = process, dict.fromkeys(times), False
        self.noted: dict[float, None] = {}
        self.noted_beside: dict[Any, tuple[Callable[..., Any], dict[Any, None]]] = {}  # log-SNRs and stretches
        self.guesses: dict[float, None] = {}
        self.order: list[float] = []  # the times, rising
        self.answers: dict[tuple[Any, Any], Any] = {}
        self.steps = dict(zip(times[:-1], times[1:], strict=True))
        self.batch: tuple[list[float], Tensor] = [], torch.zeros(0)  # the times last asked for at once
        self.nodes: list[tuple[Tensor, dict[Any, Any]]] = [(self.batch[1], {})]  # those, and what `asking_at` names

    def note(self) -> None:
        """Begins the noting."""
        self.noting, self.noted, self.noted_beside, self.guesses = True, {}, {}, {}
        self.order = sorted(self.times)

    def recall(self) -> tuple[bool, bool]:
        """Ends the noting, and takes what was noted among the times; whether there was anything, and any guess."""
        self.noting = False
        self.times |= self.noted
        for key, (f, asked) in self.noted_beside.items():
            with suppress(RuntimeError, ValueError):  # of a guess; what is asked again is then worked out alone
                self._work_out(key, f, list(asked))
        return bool(self.noted or self.noted_beside), bool(self.guesses)

    def across(self, key: Any, f: Callable[[Time, Time], Any], t: float, s: float) -> Any:
        """f(t, s), worked out for all steps of the grid at once where it is one."""
        if (key, (t, s)) not in self.answers:
            if self.steps.get(t) == s:
                self._work_out(key, f, list(self.steps.items()))
            elif self.noting:
                return self._guessed(key, f, (t, s), (t + s) / 2)
            else:
                self.answers[key, (t, s)] = f(t, s)
        return self.answers[key, (t, s)]

    def _guessed(self, key: Any, f: Callable[..., Any], asked: Any, guess: float) -> float:
        self.noted_beside.setdefault(key, (f, {}))[1][asked] = None
        self.guesses[guess] = None
        return guess

    def _work_out(self, key: Any, f: Callable[..., Any], asked: list[Any]) -> None:
        at = torch.tensor(asked, dtype=torch.float64)
        every = zip(asked, unstacked(f(*at.unbind(1)) if at.ndim > 1 else f(at)), strict=True)
        self.answers.update(((key, one), value) for one, value in every)

    def _stand_in(self, key: Any, f: Callable[[Time], Any], t: float, name: str) -> Any:
        """What is answered at a time that is noted: of numbers the line between its neighbours."""
        if t not in self.guesses:
            self.noted[t] = None
        ends = _neighbours(self.order, t)
        found = [self.answers[key, u] if (key, u) in self.answers else self.answer(key, f, u, name) for u in ends]
        if type(found[0]) is not float or type(found[1]) is not float:
            return found[0]
        guess = _line(t, ends, found)
        if name in PLACES:
            self.guesses[guess] = None
        return guess

    def _time(self, lam: float) -> float:
        """About the time of a log-SNR."""
        places = [-self.process.log_snr(u) for u in self.order]
        ends = _neighbours(places, -lam)
        return _line(-lam, ends, [self.order[places.index(x)] for x in ends])

    def answer(self, key: Any, f: Callable[[Time], Any], t: float, name: str = "") -> Any:
        """F at t, worked out for all known times at once; while times are noted, a stand-in for one that is new."""
        if name == "inverse_log_snr":
            return self._guessed(key, f, t, self._time(t)) if self.noting else self.answers.setdefault((key, t), f(t))
        if t not in self.times:
            return self._stand_in(key, f, t, name) if self.noting else self.answers.setdefault((key, t), f(t))
        new = [u for u in self.times if (key, u) not in self.answers]
        try:
            batch = self.batch
            if batch[0] != new:
                batch = self.batch = new, torch.tensor(new, dtype=torch.float64)
                self.nodes = [(batch[1], {}), *self.nodes[1:]]
            values = unstacked(f(batch[1]))
        except (RuntimeError, ValueError):  # a time beside this one may be singular
            return self.answers.setdefault((key, t), f(t))
        self.answers.update(((key, u), value) for u, value in zip(new, values, strict=True))
        return self.answers[key, t]


def _neighbours(rising: list[float], x: float) -> tuple[float, float]:
    """The two of a rising list nearest to x, one on either side where there is one."""
    i = min(max(bisect(rising, x), 1), len(rising) - 1)
    return rising[i - 1], rising[i]


def _line(x: float, ends: tuple[float, float], values: list[float]) -> float:
    """The line through two values, or the one of them that is finite."""
    (a, b), (u, v) = ends, values
    found = u + (v - u) * (x - a) / (b - a) if b > a else u
    return found if math.isfinite(found) else u if math.isfinite(u) else v


_MEMORY: ContextVar[Memory | None] = ContextVar("_MEMORY", default=None)


@contextmanager
def asking_at(nodes: Tensor) -> Iterator[None]:
    """While the block runs, a process that remembers works out once what it is asked at these times, or log-SNRs."""
    memory = _MEMORY.get()
    if memory is None:
        yield
        return
    before = memory.nodes
    memory.nodes = [*before, (nodes, {})]
    try:
        yield
    finally:
        memory.nodes = before


@contextmanager
def recalling(memory: Memory) -> Iterator[None]:
    """While the block runs, the memory's process remembers its answers at single times there, as it gave them."""
    token = _MEMORY.set(memory)
    try:
        yield
    finally:
        _MEMORY.reset(token)


def once(process: Process, key: Any, f: Callable[[Time], Any], t: Time) -> Any:
    """f(t), a function of the process that has a name, remembered inside `recalling`."""
    memory = _MEMORY.get()
    if memory is None or type(t) is not float or memory.process is not process:
        return f(t)
    found = memory.answers.get((key, t))
    return memory.answer(key, f, t) if found is None else found


def across(process: Process, key: Any, f: Callable[[Time, Time], Any], t: Time, s: Time) -> Any:
    """f(t, s), a function of the process that has a name, for all steps of the grid at once inside `recalling`."""
    memory = _MEMORY.get()
    if memory is None or type(t) is not float or memory.process is not process:
        return f(t, s)
    return memory.across(key, f, t, s)


def _remembered(name: str, method: Callable[[Any, Time], Any]) -> Callable[[Any, Time], Any]:
    """The method of a process, by way of `once`; one that calls its `super()`'s is remembered apart from that."""

    @functools.wraps(method)
    def ask(self: Process, t: Time) -> Any:
        memory = _MEMORY.get()
        if memory is None or memory.process is not self:
            return method(self, t)
        if type(t) is not float:
            for nodes, answers in memory.nodes:
                if t is nodes:
                    return answers[method] if method in answers else answers.setdefault(method, method(self, t))
            return method(self, t)
        found = memory.answers.get((method, t))
        return memory.answer(method, functools.partial(method, self), t, name) if found is None else found

    return ask


class Process(Typed, ABC):
    """A linear Gaussian process. To write one, give the abstract methods; everything else follows from them.

    - `kind`: "scalar", "diagonal" or "block": what its coefficients are, which solvers declare.
    - `domain`: the times at which the formulas hold, beyond [t_min, t_max] where the mathematics allows.
    """

    kind: ClassVar[str]
    domain: ClassVar[tuple[float, float]] = (0.0, 1.0)
    default_grid: ClassVar[str]
    t_max: float
    t_min: float

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ASKED + SHARED:
            if (method := cls.__dict__.get(name)) is not None:
                setattr(cls, name, _remembered(name, method))

    def __post_init__(self) -> None:
        """Refuses time ranges that are empty or outside the domain."""
        low, high = self.domain
        if not low <= self.t_min < self.t_max <= high:
            raise ValueError(
                f"got {type(self).__name__} from t_max={self.t_max} down to t_min={self.t_min}: "
                f"give {low:g} <= t_min < t_max <= {high:g}"
            )

    @abstractmethod
    def M(self, t: Time) -> Coefficient:
        """The mean map: E[z_t | x0] = M_t x0."""

    @abstractmethod
    def R(self, t: Time) -> Coefficient:
        """The root of Sigma_t that makes the noise of a point mass constant along the ODE."""

    @abstractmethod
    def Psi(self, t: Time) -> Coefficient:
        """The solution of the drift from a reference time: Psi_t Psi_s^-1 carries s to t."""

    @abstractmethod
    def F(self, t: Time) -> Coefficient:
        """The drift matrix of dz = F z dt + G dw."""

    @abstractmethod
    def GG(self, t: Time) -> Coefficient:
        """G_t G_t^T, the diffusion matrix."""

    @abstractmethod
    def log_snr(self, t: Time) -> Time:
        """The natural clock: 1/2 log(M^T Sigma^-1 M); alpha/sigma's logarithm where M and R are numbers."""

    @abstractmethod
    def inverse_log_snr(self, lam: Time) -> Time:
        """The time at which `log_snr` is `lam`."""

    def path_clock(self, t: Time) -> Time:
        """Where a time lies on the noise's Brownian path, which has room for [-8, 8]: the log-SNR."""
        return self.log_snr(t)

    @abstractmethod
    def data_from_noise(self, t: Time) -> tuple[Coefficient, Coefficient]:
        """(p, q) with x0 = p z + q eps whenever z = M x0 + R eps."""

    @abstractmethod
    def data_from_score(self, t: Time) -> tuple[Coefficient, Coefficient]:
        """(p, q) with x0 = p z + q s whenever s = -Sigma^-1 (z - M x0)."""

    def coordinates(self, x0: Tensor) -> Tensor:
        """Clean data in the coordinates in which M acts on it."""
        return x0

    def from_coordinates(self, c: Tensor) -> Tensor:
        """The inverse of `coordinates`."""
        return c

    def to_data(self, z: Tensor) -> Tensor:
        """A state taken to data space."""
        return self.from_coordinates(z)

    def state_shape(self, data_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one state for data of one shape (both without the batch)."""
        return tuple(data_shape)

    def data_shape(self, state_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The inverse of `state_shape`."""
        return tuple(state_shape)

    def Sigma(self, t: Time) -> Coefficient:
        """The covariance R R^T."""
        r = self.R(t)
        return r * transpose(r)

    def M_rate(self, t: Time) -> Coefficient:
        """dM/dt = F M."""
        return self.F(t) * self.M(t)

    def R_rate(self, t: Time) -> Coefficient:
        """dR/dt = F R + 1/2 G G^T R^-T."""
        r = self.R(t)
        return self.F(t) * r + 0.5 * (self.GG(t) * transpose(inverse(r)))

    def transition(self, t: Time, s: Time) -> Coefficient:
        """Psi_t Psi_s^-1."""
        return self.Psi(t) * inverse(self.Psi(s))

    def diffuse(self, x0: Tensor, t: Time, eps: Tensor) -> Tensor:
        """z_t = M_t x0 + R_t eps for data x0 (batch, *shape) and noise eps shaped like the state."""
        return apply(self.M(t), self.coordinates(x0)) + apply(self.R(t), eps)

    def prior(self, eps: Tensor, t: Time | None = None) -> Tensor:
        """The start state for standard normal noise: R_t eps, at t_max unless a time is given."""
        return apply(self.R(self.t_max if t is None else t), eps)

    def check_times(self, times: Tensor) -> None:
        """Refuses times outside the process's domain; the ends t_min and t_max may be passed where it is defined."""
        low, high = self.domain
        bad = [t for t in times.tolist() if not (low <= t <= high and math.isfinite(t))]
        if bad:
            raise ValueError(
                f"got time {bad[0]:g} for {type(self).__name__}, which is defined on [{low:g}, {high:g}]: "
                "give times inside"
            )

    @property
    def t_zero(self) -> float | None:
        """The time at which sigma = 0, where a step may end; None for a process that has no such time."""
        low = self.domain[0]
        return low if math.isfinite(low) and self.log_snr(low) == math.inf else None


for _name in ("Sigma", "M_rate", "R_rate"):
    setattr(Process, _name, _remembered(_name, getattr(Process, _name)))


def derivative(f: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """df/dt of an elementwise function, exact to rounding (reverse mode in float64)."""
    with torch.inference_mode(False), torch.enable_grad():
        u = t.clone().detach().requires_grad_(True)
        y = f(u)
        return torch.autograd.grad(y.sum(), u)[0] if y.requires_grad else torch.zeros_like(t)


def to_tensor(t: Time) -> Tensor:
    """A time (or another such value) as a float64 tensor."""
    return torch.as_tensor(t, dtype=torch.float64)


def like(value: Tensor, t: Time) -> Time:
    """A result for the time it was made of: a float for a float (never -0.0), the tensor for a tensor."""
    return value if isinstance(t, Tensor) else value.item() + 0.0
