r"""What a network is, told from its output: its prediction, its time and its process, held against how it is wrapped.

States z = alpha f + sigma eps are made of a field f and noise eps at several levels of one process, and the network is
called as if it were of that process and time. What a denoiser makes of them is a gain on each of the two,

$$ D = g_f f + g_\epsilon \frac{\sigma}{\alpha} \epsilon, \qquad g(\lambda) = E_s \frac{1}{1 + e^{-2\lambda} / s^2}, $$

the Wiener filter of data whose standard deviation in that direction is s (`LEAST` to `MOST` along the fields, from 0 on
along the noise, two of them mixed); so a network of the prediction x0 = p z + q F (`fewstep.process.predict`) returns

$$ F = \frac{g_f - p \alpha}{q} f + \frac{g_\epsilon - p \alpha}{q} \frac{\sigma}{\alpha} \epsilon. $$

The misfit of a reading (process, time, prediction) is the root mean square distance of the two measured factors from
the nearest that any s allow, in units of the prediction's size.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor

from fewstep.denoiser.network import TIMES, Wrapped
from fewstep.noise import noise_source
from fewstep.process import ScalarProcess
from fewstep.process.base import Memory, Process, recalling
from fewstep.process.predict import PREDICTIONS
from fewstep.process.scalar import EDM, VE, VP, Cosine, Discrete, Flow
from fewstep.stats.errors import errors_of
from fewstep.words import typed

__all__ = ["Diagnosis", "check_prediction"]

LEVELS = 7  # log-SNRs from the first to the second of the next line, where the process goes that far
HIGH, LOW = -3.5, 4.5
ENTRIES = 512  # numbers a factor is measured on, at each level
FIELD = 0.6  # of the fields, in data units
LEAST, MOST, WIDTHS = 0.15, 6.0, 16  # of s
FITS = 0.14  # a misfit below is one of a network that is what it is wrapped as: exact ones have 0.02, trained ones 0.13
LOOSE = 0.2  # above, a network looks like nothing known
BETTER = 0.5  # another reading is named where its misfit is at most this share of the declared one's
SETTLED = 0.5  # a mark below which times and processes that a network may not bear are not tried
TIE = 1.5  # marks nearer than this factor are named together
CALLS = 16  # of the network, at most
NAMES = (*PREDICTIONS, "edm", *(f"-{name}" for name in PREDICTIONS if name != "score"))  # -score is much like noise


@dataclass(frozen=True, kw_only=True, eq=False)
class Diagnosis(Sequence[str]):
    """What a network looks like: a sequence of predictions, with the rest."""

    # predictions that fit, as "v", the best first; where only its negative does, "-v". () where none does
    names: tuple[str, ...]
    process: ScalarProcess  # on which they fit: the declared one, or the one it looks trained on
    # the convention in which they fit, as in `fewstep.wrap`; "reversed" is the declared one run backwards
    time: str | Callable[[Tensor], Tensor]
    misfit: float  # of the best of them; see the module
    declared: float  # the misfit of the network as it is wrapped
    sentence: str  # what is the matter and how sure that is, or that nothing is

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self.names[index]

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        return self.names == tuple(other) if isinstance(other, tuple | Diagnosis) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.names)


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """A network called as one of a process and a time; `changes` is in how much that differs from the declaration."""

    wrapped: Wrapped
    changes: int = 0
    backwards: bool = False

    def misfits(self, shape: tuple[int, ...], seed: int, device: torch.device | str) -> dict[str, tuple[float, float]]:
        """How much each prediction misses that this reading can be of, and how large the output is in its units."""
        process: Any = self.wrapped.process
        high, low = max(process.log_snr(process.t_max), HIGH), min(process.log_snr(process.t_min), LOW)
        lam = torch.linspace(high, low, LEVELS, dtype=torch.float64)
        t = process.inverse_log_snr(lam)
        edm = self.wrapped.predicts == "edm"
        measured = _factors(self.wrapped, t, shape, seed, device)
        with recalling(Memory(process, t.tolist())):  # every prediction asks for the same
            return {name: _misfit(self.wrapped, name, lam, t, measured) for name in NAMES if (name == "edm") == edm}


@typed
def check_prediction(
    denoiser: Wrapped,
    shape: tuple[int, ...],
    *,
    data: Tensor | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Diagnosis:
    """Warns where a network does not look like what it is wrapped as, and says what it looks like.

    One call of 14 states or more where all is well. Else other predictions are tried with other times (those of
    `fewstep.wrap`, and the declared one backwards) or other processes, with at most `CALLS` calls.

    For trained networks and data of order 1, a standard deviation of 0.2 to 3. What cannot be told: what makes no
    difference on these states, as an index from its floor, or schedules with alpha^2 + sigma^2 = 1 from one another
    under `time="sigma"` and `"log-sigma/4"`; a schedule from another that gives the same slopes with data of another
    width (linear and cosine, on white Gaussian data); a flow network of an index from a score, both called far outside
    their times; anything of a network that knows a few points by heart.

    Args:
        denoiser: of `fewstep.wrap` on a scalar process, its conditions bound for any number of samples.
        shape: of one sample, as (C, H, W).
        data: (K, *shape), clean: the error is measured on them too (`fewstep.stats.errors_of`, a dozen calls or more),
            the sentence says where the network is weak, and a warning where that is most of the log-SNRs.
        seed: of the states.
        device: where the network lives.

    Returns:
        The predictions that fit, in a `Diagnosis` that compares as their tuple; () where it looks like nothing known,
        which is no reason for a warning.

    Raises:
        ValueError: for a process that is not scalar, and for what is wrong with the network's output.
    """
    process = denoiser.process
    if not isinstance(process, ScalarProcess):
        raise ValueError(f"got a network on {type(process).__name__}: predictions are told apart on scalar processes")

    def trial(reading: _Reading) -> list[tuple[float, float, _Reading, str]]:
        """A mark for each prediction (little output says little, as do many changes), misfit, reading, name."""
        found = reading.misfits(shape, seed, device)
        return [((misfit / max(size, 1e-3) + 0.05) * (1 + reading.changes + (name != denoiser.predicts)) ** 2, misfit,
                 reading, name) for name, (misfit, size) in found.items()]  # fmt: skip

    own, safe, *others = _readings(denoiser)
    trials = trial(own)
    declared = next(misfit for _, misfit, _, name in trials if name == denoiser.predicts)
    for other in [] if declared <= FITS else [safe, *others]:
        if other is others[0] and any(mark < SETTLED and misfit <= FITS for mark, misfit, *_ in trials):
            break
        with suppress(Exception):  # called with what it was not made for, a network may do anything
            trials += trial(other)
    mark, best, reading, name = min(trials, key=lambda one: (one[1] > LOOSE, one[0]))
    if declared <= FITS or best > min(BETTER * declared, LOOSE):
        reading, best, name = own, declared, denoiser.predicts
    near = 1.5 * best + 0.01
    names = [n for _, misfit, one, n in sorted(trials, key=lambda one: one[1]) if one is reading and misfit <= near]
    names = tuple(n for n in names if not n.startswith("-")) or tuple(names)
    warned = reading is not own or name != denoiser.predicts
    if not warned and best > LOOSE:
        names, sentence = (), f"looks like nothing known (misfit {best:.2g}): nothing can be told"
    elif not warned:
        sentence = f"looks like {' or '.join(names)}, as it is wrapped (misfit {best:.2g})"
    else:
        passed = [(reading, known) for known in names] + [(own, denoiser.predicts)]
        rest = [one for one in trials if one[1] <= LOOSE and one[2:] not in passed]
        second = min(rest, key=lambda one: one[0], default=(math.inf, 0.0, own, ""))
        tied = second[0] < TIE * mark
        looks = _looks(denoiser, reading, names) + (f", or {_looks(denoiser, second[2], second[3:])}" if tied else "")
        how = "perhaps" if tied else "most likely" if second[0] < 2 * TIE * mark else "clearly"
        sentence = (
            f"got a network wrapped with predicts={denoiser.predicts!r}, whose output looks {how} like {looks} "
            f"(misfit {best:.2g}, {declared:.2g} as it is wrapped): wrap it as what it was trained for"
        )
        names = tuple(dict.fromkeys([*names, *second[3:]])) if tied else names
        warnings.warn(sentence, stacklevel=3)
    if data is not None:
        error = errors_of(denoiser, data.to(device), seed=seed)
        sentence += f"; {error.sentence}"
        if 2 * sum(error.weak) > len(error.weak):
            warnings.warn(
                f"got a network that knows less than the mean of the data at {sum(error.weak)} of {len(error.weak)} "
                f"log-SNRs, up to {error.until:.1f}: train it on, or wrap it as what it was trained for",
                stacklevel=3,
            )
    time = "reversed" if reading.backwards else reading.wrapped.time
    process = reading.wrapped.process
    assert isinstance(process, ScalarProcess)
    return Diagnosis(names=names, process=process, time=time, misfit=best, declared=declared, sentence=sentence)


def _looks(declared: Wrapped, found: _Reading, names: Sequence[str]) -> str:
    """What a reading differs in from the declaration, in words."""
    w, between = found.wrapped, {("index", "t"): "an index network called with t in [0, 1]",
                                 ("t", "index"): "a network of t in [0, 1] called with an index"}  # fmt: skip
    looks = []
    if declared.predicts not in names:
        spelt = [f"minus {name[1:]} (negate its output)" if name.startswith("-") else name for name in names]
        looks.append(f"{' or '.join(spelt)} wrapped as {declared.predicts}")
    if found.backwards:
        looks.append("one whose time is reversed")
    elif w.time != declared.time:
        looks.append(between.get((str(w.time), str(declared.time)), f"a network of the time {w.time!r}"))
    if w.process is not declared.process:
        name = "Stable Diffusion's Discrete" if isinstance(w.process, Discrete) else type(w.process).__name__
        looks.append(f"one trained on {name}")
    return " and ".join(looks)


def _readings(d: Wrapped) -> Iterator[_Reading]:
    """The declared reading; the same backwards; other times, EDM's scaling, other processes."""
    process, plain = d.process, "noise" if d.predicts == "edm" else d.predicts
    yield _Reading(wrapped=d)
    yield _Reading(wrapped=replace(d, time=partial(_turned, process, d.time)), changes=1, backwards=True)
    looked_up = d.time == "index-int"  # a network that is told whole numbers takes nothing else
    for time in ("index-int",) if looked_up else (time for time in TIMES if time != "index-int"):
        if (time, plain) != (d.time, d.predicts) and (time != "index" or process.t_max <= 1):
            yield _Reading(wrapped=replace(d, time=time, predicts=plain), changes=int(time != d.time))
    for time in dict.fromkeys((d.time,) if looked_up else (d.time, "log-sigma/4")):
        if (time, "edm") != (d.time, d.predicts):
            yield _Reading(wrapped=replace(d, time=time, predicts="edm"), changes=int(time != d.time))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2  # of Stable Diffusion
    for other in (VP(), Discrete(alphas_cumprod=tuple((1 - betas).cumprod(0).tolist())), Cosine(), Flow(), EDM(), VE()):
        if other != process and (not str(d.time).startswith("index") or other.t_max <= 1):
            yield _Reading(wrapped=replace(d, process=other), changes=1)


def _turned(process: Process, time: str | Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    back = process.t_max + process.t_min - t
    return TIMES[time](process, back) if isinstance(time, str) else time(back)


def _factors(
    denoiser: Wrapped, t: Tensor, shape: tuple[int, ...], seed: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """What of the fields and what of the noise is in the output at each time, from one call on pairs z and -z."""
    process, pairs = denoiser.process, -(-ENTRIES // math.prod(shape))
    eps = noise_source(None, seed, 0).initial((2 * pairs, *shape), torch.float32, device)
    eps, signs = eps[:pairs], eps[pairs:]
    field = FIELD * signs[(..., *(slice(0, 1),) * (len(shape) - 1))].sign().expand_as(eps)  # the same in a channel
    z = torch.cat([process.diffuse(field, float(s), eps) for s in t])
    times = t.repeat_interleave(pairs)
    with torch.no_grad():
        out = denoiser.at(torch.cat([times, times]), denoiser.predicts)(torch.cat([z, -z]))
    odd = ((out[: len(z)] - out[len(z) :]) / 2).double().reshape(len(t), -1)
    f, e = field.double().flatten(), eps.double().flatten()
    parts = torch.stack([f, e], 1)
    solved = torch.linalg.solve(parts.T @ parts, parts.T @ odd.T).cpu()
    return solved[0], solved[1]


def _misfit(
    denoiser: Wrapped, name: str, lam: Tensor, t: Tensor, measured: tuple[Tensor, Tensor]
) -> tuple[float, float]:
    """How far the measured factors are from the nearest that a network of that prediction has, and how large."""
    process: Any = denoiser.process
    sign = -1 if name.startswith("-") else 1
    plain = replace(denoiser, predicts=name.removeprefix("-"))
    alpha, sigma = process.alpha(t), process.sigma(t)
    ready = [plain.ready(s) for s in t.tolist()]
    p, q = (
        torch.tensor([float(c) for c in each]).double() for each in zip(*((at.p, at.q) for at in ready), strict=True)
    )
    size = torch.hypot((1 - p * alpha) / q, p * sigma / q)
    s = torch.logspace(math.log10(LEAST), math.log10(MOST), WIDTHS, dtype=torch.float64)
    total = large = 0.0
    for factor, unit, narrow, weight in ((measured[0], 1.0, LEAST, FIELD), (measured[1], sigma / alpha, 0.0, 1.0)):
        widths = s if narrow else torch.cat([torch.zeros(1, dtype=torch.float64), s / 4, s[-5:]])
        gain = torch.special.expit(2 * (lam + widths[:, None].log()))
        allowed = weight * unit * (gain - p * alpha) / q / size  # (widths, levels)
        rest = weight * sign * factor / size - allowed
        between = allowed[:, None] - allowed
        share = ((rest * between).sum(-1) / between.square().sum(-1).clamp_min(1e-12)).clamp(0, 1)
        total += float((rest - share[..., None] * between).square().mean(-1).min())
        large += float((weight * factor / size).square().mean())
    return math.sqrt(total), math.sqrt(large)
