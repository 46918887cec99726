"""How a network runs on this machine: its precision, memory format and threads, chosen by one timed probe.

No rule knows what is fastest: bfloat16 is 3 times as fast as float32 on one processor and 25 times as slow on another,
channels-last gains on one and loses on the next. So the network itself runs a few times each way, in a fraction of a
second (of a second or two where it is trained), and what was chosen is kept in the user's cache folder for this machine
and this network: the next run takes the same, to the bit. A machine with a GPU is not timed.

    pace = Pace(memory_format="channels-last")     # what is given stays; what is None is measured
    model = load(pace=pace)                        # model.pace is whole, and run.json and the card say it
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fewstep.files import read_json, write_json
from fewstep.parts import beside
from fewstep.words import Typed, bounded, pick, whole

__all__ = ["FORMATS", "PRECISIONS", "Pace", "choose", "hardware"]

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
TRAINED = ("float32", "bfloat16")  # of training, and those that are tried
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}

_CLEAR = 0.95  # of the time of an earlier candidate: what is less is no gain
_FEWER = 0.9  # the same for fewer threads, which are timed by the clock on the wall
_COLD = 3.0  # times the fastest first call: not called again
_HOPELESS = 2.0  # times the fastest: not timed again
_BEHIND = 1.4  # the same for the last rounds
_ENOUGH = 0.02  # seconds of a call that are timed well
_LONG = 1.0  # seconds of a call that is not made a second time
_LARGE = 2**28  # numbers of a network that is not tried
_SPENT = 0.5  # seconds after which no larger batch is tried
_SHORT = 0.002  # seconds of a call at the largest batch below which nothing is worth choosing
_ROUNDS = 3  # of calls that are compared
_KERNELS = ("ATEN_", "ONEDNN_", "DNNL_", "MKL_")  # beginnings of variables that change what is fastest
_MADE: dict[Path, Pace] = {}  # what this process has chosen, where it cannot be kept

Prepare = Callable[["Pace", int], Callable[[], object]]  # (pace, batch) -> one call of the network, to be timed


@dataclass(frozen=True, kw_only=True)
class Pace(Typed):
    """How a network runs; None is for the probe to choose.

    Attributes:
        precision: of the network's numbers: "float32", "bfloat16", "float16" or "float64"; states stay as they are. In
            training it is that of autocast, "float32" or "bfloat16", and the weights stay float32.
        memory_format: of images within it: "contiguous" or "channels-last".
        threads: of torch.
    """

    precision: str | None = None
    memory_format: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.precision is not None:
            pick(PRECISIONS, self.precision, "precision")
        if self.memory_format is not None:
            pick(FORMATS, self.memory_format, "memory_format")
        if self.threads is not None:
            bounded("threads", whole("threads", self.threads))

    @property
    def dtype(self) -> torch.dtype:
        """The precision as torch names it."""
        return PRECISIONS[self.precision or "float32"]

    def place(self, net: nn.Module) -> None:
        """Lays the weights of convolutions out in the memory format, which images then take; their values stay."""
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(memory_format=FORMATS[self.memory_format or "contiguous"])
        for module in net.modules() if self.memory_format == "channels-last" else ():
            if isinstance(module, nn.GroupNorm) and _plain not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(_plain)

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which a network of float32 weights runs in the precision."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    @contextmanager
    def threaded(self) -> Iterator[None]:
        """Torch has the threads while the block runs."""
        before = torch.get_num_threads()
        wanted = self.threads or before
        try:
            if wanted != before:
                torch.set_num_threads(wanted)
            yield
        finally:
            if wanted != before:
                torch.set_num_threads(before)

    def over(self, other: Pace) -> Pace:
        """This one, and the other's where this one has None."""
        return replace(other, **{name: value for name, value in vars(self).items() if value is not None})


def hardware(device: str | torch.device = "cpu") -> str:
    """The processor or GPU a run uses, in words."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return f"{torch.get_num_threads()} of {os.cpu_count()} cores, {name}"


def choose(
    net: nn.Module,
    prepare: Prepare,
    *,
    use: str,
    given: Pace | None = None,
    device: str | torch.device = "cpu",
    sizes: Sequence[int] = (1, 8, 64),
    gpu: str = "float32",
) -> Pace:
    """The pace of a network on this machine: what is given, and for the rest what was kept or is now measured.

    The network is as it was afterwards: weights, buffers, random numbers and threads.

    Args:
        net: the network, float32.
        prepare: (pace, batch) -> the call to time; it may convert the network, whose data are put back.
        use: what it is run for, as "sample"; what is chosen for one use says nothing of another.
        given: what is not to be chosen.
        device: where it runs.
        sizes: batches to try, from small to large, until a call takes long enough to be timed.
        gpu: the precision on a GPU, which is not timed.

    Raises:
        ValueError: for a precision that is given and cannot be trained in.
    """
    given = given or Pace()
    if use == "train" and given.precision not in (None, *TRAINED):
        raise ValueError(f"got precision={given.precision!r} to train in: give {' or '.join(TRAINED)}")
    default = Pace(precision="float32", memory_format="contiguous", threads=torch.get_num_threads())
    if torch.device(device).type != "cpu":
        return given.over(replace(default, precision=gpu))
    if None not in astuple(given):
        return given
    made = {
        "use": use,
        "network": [type(net).__qualname__, [[n, list(p.shape)] for n, p in net.named_parameters()]],
        "given": asdict(given),
        "hardware": hardware(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_KERNELS)},
        "torch": torch.__version__,
    }
    path = _folder() / f"pace-{hashlib.sha256(json.dumps(made).encode()).hexdigest()[:16]}.json"
    found = _kept(path, given) or _MADE.get(path)
    if found is None:
        found = _measured(net, prepare, given.over(default), given, sizes)
        with suppress(OSError):
            _keep(path, {"pace": asdict(found), **{name: made[name] for name in ("use", "hardware", "torch")}})
        _MADE[path] = found = _kept(path, given) or found
    return found


def _plain(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Images as they lie without a format where they are differentiated forward: this module's rule takes no other."""
    return tuple(x.contiguous() for x in inputs) if forward_ad._current_level >= 0 else inputs


def _folder() -> Path:
    """Where it is kept: $FEWSTEP_CACHE, or $XDG_CACHE_HOME/fewstep, or ~/.cache/fewstep."""
    if os.environ.get("FEWSTEP_CACHE"):
        return Path(os.environ["FEWSTEP_CACHE"])
    named = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(named) if os.path.isabs(named) else Path(os.path.expanduser("~")) / ".cache") / "fewstep"


def _kept(path: Path, given: Pace) -> Pace | None:
    """What was chosen before; what cannot be read or is no pace is as good as none."""
    try:
        kept = Pace(**read_json(path, "the cache")["pace"])
        fits = None not in astuple(kept) and given.over(kept) == kept
    except (ValueError, TypeError, KeyError, OSError):
        fits, kept = False, None
    if not fits:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    return kept if fits else None


def _keep(path: Path, made: dict[str, Any]) -> None:
    """Writes what was chosen, unless another process was first: then that is what all take."""
    part = beside(path, secrets.token_hex(4), "part")  # which the next run sweeps where this one is killed
    write_json(part, made)
    try:
        os.link(part, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _measured(net: nn.Module, prepare: Prepare, default: Pace, given: Pace, sizes: Sequence[int]) -> Pace:
    """The fastest pace, in favour of the default, which a network too large to try in other layouts keeps."""
    if sum(p.numel() for p in net.parameters()) > _LARGE:
        return default
    held = [(tensor, tensor.data) for tensor in (*net.parameters(), *net.buffers())]
    owned = [(owner._buffers, dict(owner._buffers)) for owner in net.modules()]  # a change of dtype makes others
    layouts = ("contiguous", "channels-last") if any(t.ndim == 4 for t, _ in held) else ("contiguous",)
    precisions = [given.precision] if given.precision else TRAINED
    formats = [given.memory_format] if given.memory_format else layouts
    candidates = [Pace(precision=p, memory_format=f, threads=1) for p, f in product(precisions, formats)]
    with torch.random.fork_rng(devices=[]), default.threaded():
        try:
            for tensor, data in held:
                tensor.data = data.clone()
            best, size = _race(prepare, candidates, sizes)
            best = replace(best, threads=default.threads)
            if given.threads is None and size and not _busy():
                best = _thinned(prepare, best, size)
        finally:
            for tensor, data in held:
                tensor.data = data
            for buffers, before in owned:
                buffers.update(before)
    return best


def _race(prepare: Prepare, candidates: Sequence[Pace], sizes: Sequence[int]) -> tuple[Pace, int]:
    """The fastest of the candidates, an earlier one unless a later one is clearly faster; and the batch it ran at.

    They run on one thread and the time is the processor's, in which other work on the machine hardly counts: the least
    of a few alternating calls.
    """
    clock, live, seconds, size = time.thread_time, list(candidates), {}, 0
    began = clock()
    for size in sizes:
        seconds = {}
        for pace in live:  # a first call also makes what later ones find made
            if clock() - began > _LONG and seconds:  # of a network whose calls are dear, the others are not tried
                break
            took = _once(prepare, pace, size, clock)
            if took < _COLD * min(seconds.values(), default=math.inf):
                seconds[pace] = took
        if min(seconds.values(), default=math.inf) < _LONG:
            seconds = {pace: _once(prepare, pace, size, clock) for pace in seconds}
        least = min(seconds.values(), default=math.inf)
        live = [pace for pace in live if seconds.get(pace, math.inf) < _HOPELESS * least]
        if len(live) < 2 or least > _ENOUGH or clock() - began > _SPENT:
            break
    least = min(seconds.values(), default=math.inf)
    if not live or least < _SHORT:
        return candidates[0], 0
    for _ in range(_ROUNDS - 1 if len(live) > 1 and least < _LONG else 0):
        least = min(seconds.values())
        for pace in [pace for pace in live if seconds[pace] < _BEHIND * least]:
            seconds[pace] = min(seconds[pace], _once(prepare, pace, size, clock))
    best = live[0]
    for pace in live[1:]:
        best = pace if seconds[pace] < _CLEAR * seconds[best] else best
    return best, size


def _once(prepare: Prepare, pace: Pace, size: int, clock: Callable[[], float]) -> float:
    """Seconds of one call; infinite where the network does not run so."""
    try:
        with pace.threaded():
            call = prepare(pace, size)
            began = clock()
            call()
            return clock() - began
    except Exception:  # a kernel that lacks, or a network that takes more than it is called with here
        return math.inf


def _busy() -> bool:
    """Whether threads are not to be timed: their number is set by hand, or others' work would be timed with them."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return "OMP_NUM_THREADS" in os.environ or load > max(1, torch.get_num_threads() / 2)


def _thinned(prepare: Prepare, best: Pace, size: int) -> Pace:
    """The pace with half its threads, and half of these, as long as that is clearly faster."""
    while best.threads is not None and best.threads > 1:
        half = replace(best, threads=best.threads // 2)
        times = [[_once(prepare, p, size, time.perf_counter) for p in (best, half)] for _ in range(_ROUNDS + 1)]
        now, then = (min(column) for column in zip(*times[1:], strict=True))
        if not then < _FEWER * now:
            break
        best = half
    return best
