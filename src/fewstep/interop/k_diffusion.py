r"""Every solver as a function of k-diffusion's convention, which ComfyUI and webui share.

    from fewstep.interop import k_diffusion as K

    x = K.sample_dpmpp_2m(model, x, sigmas)             # a name the tools know (`fewstep.interop.tool_names`)
    x = K.sample_gaussian_split(model, x, sigmas)       # any solver, `-` written as `_`
    x = K.sample("DPM++ 2M SDE")(model, x, sigmas, seed=3, eta=0.5)
    sigmas = K.get_sigmas("karras", 10, 0.03, 14.6)

`model(x, sigma, **extra_args)` returns the denoised x for x = x0 + sigma eps, with sigma a (batch,) tensor. `sigmas`
falls and usually ends in 0; it is used exactly as given. The process is EDM's, on which t = sigma; a flow model, whose
x is (1 - sigma) x0 + sigma eps, is run with `process=fewstep.Flow()`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.denoiser.network import as_state
from fewstep.denoiser.watch import NetworkError, called, kept, watching
from fewstep.interop.tool_names import ALIASES, LABELS, SCHEDULERS
from fewstep.loop import sample as run, tabulate
from fewstep.loop.drive import along
from fewstep.noise import NoiseSource, noise_source
from fewstep.noise.source import Request
from fewstep.process import EDM, Flow, ScalarProcess
from fewstep.process.base import Time
from fewstep.solver import SOLVERS, Ancestral, Driver, Solver
from fewstep.tableau import Tableau
from fewstep.words import named, pick, placed, whole

__all__ = ["SAMPLERS", "get_sigmas", "sample"]

Callback = Callable[[dict[str, Any]], object]
NoiseSampler = Callable[[Tensor, Tensor], Tensor]

GUIDED = {"base", "guidance"}  # the heads that a guided model of these tools can tell apart
BY_RANGE = ("dpm_fast", "dpm_adaptive")  # those that k-diffusion calls by sigma_min and sigma_max
IDLE = {"euler", "heun", "dpm_2", "dpm_fast", "dpm_adaptive"}  # k-diffusion's take s_noise where they add no noise


# name -> what makes the solver: every solver that runs on one number sigma, then the names of the tools.
SAMPLERS: dict[str, Callable[..., Any]] = {
    **{name.replace("-", "_"): make for name, make in SOLVERS.items()
       if "scalar" in (solver := make()).kinds and set(getattr(solver, "heads", ())) <= GUIDED},
    **{name: SOLVERS[make] if isinstance(make, str) else make for name, make in ALIASES.items()},
}  # fmt: skip


def __getattr__(name: str) -> Callable[..., Tensor]:
    """Finds sample_<name>."""
    if name.startswith("sample_") and name.removeprefix("sample_") in SAMPLERS:
        return sample(name.removeprefix("sample_"))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its samplers are those of SAMPLERS")


def __dir__() -> list[str]:
    return sorted([*globals(), *(f"sample_{name}" for name in SAMPLERS)])


@cache
def sample(name: str) -> Callable[..., Tensor]:
    """The function of a sampler: a name of SAMPLERS, or a label of webui."""
    name = LABELS.get(name, name)
    if name not in SAMPLERS:  # a name of another tool, or a label that ends in a grid, which the sigmas are
        name = named(SOLVERS, placed(SOLVERS, name, "default")[0], "solver").replace("-", "_")
    make = pick(SAMPLERS, name, "sampler")
    options = inspect.signature(make).parameters

    _, *shared = inspect.signature(march).parameters.values()
    names = {p.name for p in shared}

    def sampler(*args: Any, **given: Any) -> Tensor:
        args, given = by_range(name, args, given) if name in BY_RANGE else (args, given)
        chosen = {key: given.pop(key) for key in [*given] if key not in names}
        for key in chosen:
            if not options:
                raise ValueError(f"got an option {key!r} for sample_{name}, which has none of its own: leave it out")
            pick(options, key, f"option of sample_{name}")
        solver = make(**chosen)
        if isinstance(given.get("process"), Flow) and isinstance(solver, Ancestral) and name in ALIASES:
            solver = replace(solver, down="flow")
        if name in IDLE and not solver.stochastic:
            given |= {"s_noise": 1.0, "noise_sampler": None}
        return march(solver, *args, **given)

    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in options.values()]
    sampler.__dict__["__signature__"] = inspect.Signature([*shared, *own], return_annotation=Tensor)
    sampler.__name__ = sampler.__qualname__ = f"sample_{name}"
    about = inspect.getdoc(type(make())) or ""
    sampler.__doc__ = f"{about}\n\nThe convention: see `fewstep.interop.k_diffusion.march`."
    return sampler


def march(
    solver: Solver | Driver | Tableau,
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    seed: int | None = None,
    process: ScalarProcess | None = None,
) -> Tensor:
    """Runs a solver, or a table written for these sigmas, by k-diffusion's convention.

    Args:
        solver: a solver, a driver (it takes the ends of sigmas), or a table on `process` and sigmas.
        model: (x, sigma, **extra_args) -> the denoised x; sigma is (batch,). One with a `destination` is also told
            `to`, (batch,) the level that the step leads to (`fewstep.denoiser.base`).
        x: (batch, ...) the state at sigmas[0]; the run is in float32 at least, the result in the dtype of x.
        sigmas: (n + 1,) noise levels that fall, as a tensor, an array or a list; used exactly. Where a solver cannot
            step to sigma = 0 it ends at the level before, and the denoised x is the result. Fewer than two levels
            return x. Levels above 0 that rise unsample: the result is the noise that decodes to x (`fewstep.encode`).
        extra_args: for the model.
        callback: called once a step with {"x", "i", "sigma", "sigma_hat", "denoised"}; with a driver, once a call.
        disable: True shows no progress bar.
        s_noise: what all noise is multiplied with.
        noise_sampler: (sigma, sigma_next) -> standard normals of the shape of x, instead of the seed. As in k-diffusion
            a solver whose eta is 0 has no use for it, nor for s_noise; one that never adds noise refuses both.
        seed: of the noise; None takes extra_args["seed"], or else draws one from torch's generator.
        process: the process on whose time sigmas lie; None is EDM. `fewstep.Flow()` for flow models.
    """
    process, sigmas = EDM() if process is None else process, _levels(sigmas)
    if not (isinstance(x, Tensor) and x.is_floating_point() and x.ndim):
        got = f"a tensor of {x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise ValueError(f"got {got} as x: give the state at sigmas[0], a floating-point tensor (batch, ...)")
    if len(sigmas) < 2:
        return x
    args, grid, tell = dict(extra_args or {}), sigmas.detach().to("cpu", torch.float64), _Steps(callback, sigmas)
    stochastic = bool(solver.noises) if isinstance(solver, Tableau) else solver.stochastic
    if not stochastic and getattr(solver, "eta", None) == 0:
        s_noise, noise_sampler = 1.0, None
    if not stochastic and (s_noise != 1 or noise_sampler is not None):
        raise ValueError(f"got s_noise or noise_sampler for {type(solver).__name__}, which adds no noise: leave it out")
    source = noise_source(seed=_seed(seed, args) if stochastic else 0)
    if rises := bool(grid[0] < grid[-1]):
        _check_rising(solver, grid, stochastic)
    if isinstance(solver, Tableau):
        table, stop = _for_levels(solver, grid), len(grid)
    elif rises:
        table, stop = solver.tabulate(process, grid), len(grid)
    else:
        reaches = not isinstance(solver, Driver) and "sigma=0" in solver.ends
        stop = len(grid) - (float(grid[-1]) == 0 and not reaches)
        table = tabulate(solver, process, grid=grid[:stop]) if isinstance(solver, Solver) and stop > 1 else None
    rows = table.rows if table is not None else ()
    read = {symbol[2] for row in rows for symbol, _ in row.form if symbol[0] in ("y", "root")}
    denoiser = _Model(model, args, x.dtype, guided=bool(GUIDED & read))
    z = x if x.dtype in (torch.float32, torch.float64) else x.float()
    with torch.no_grad(), watching():
        if isinstance(solver, Driver):
            if noise_sampler is not None or s_noise != 1:
                raise ValueError("got s_noise or noise_sampler for a driver, whose samples draw at times of their own")
            denoiser.heard = tell.call
            times = grid[[0, stop - 1]] if solver.own_times else grid[:stop]
            if stop > 1:
                z = run(denoiser, process, solver=solver, grid=times, x=z, noise=source, progress=not disable)
        elif table is not None:
            noise = _Drawn(source, table, s_noise, noise_sampler, sigmas)
            tell.steps = steps(table)
            z = run(denoiser, process, solver=table, x=z, noise=noise, callback=tell.row, progress=not disable)
        if stop < len(grid):
            before, level, out = z, float(grid[stop - 1]), denoiser(z, float(grid[stop - 1]))
            z = out["x0"] if isinstance(out, Mapping) else out
            if denoiser.heard is None:
                tell.say(before, stop - 1, level, z)
    return z.to(x.dtype)


def by_range(name: str, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call by k-diffusion's own signature, (model, x, sigma_min, sigma_max[, n], ...), as one by levels.

    DPM-Solver-fast's are even in log sigma, floor(n / 3) + 1 blocks of three calls, the last of what is left, each with
    its stages; the adaptive one takes the ends alone.
    """
    if not (len(args) > 2 and np.ndim(args[2]) == 0) and "sigma_min" not in given:
        return args, given
    names = ("model", "x", "sigma_min", "sigma_max", *(("n",) if name == "dpm_fast" else ()), "extra_args", "callback",
             "disable")  # fmt: skip
    known = dict(zip(names, args, strict=False)) | given
    for option, default in {"eta": 0.0, "return_info": False, "accept_safety": 0.81}.items():
        if known.pop(option, default) != default:
            raise ValueError(f"got {option} for sample_{name}, which runs with {default}: leave it out")
    low, high = float(known.pop("sigma_min", 0.0)), float(known.pop("sigma_max", 0.0))
    if not 0 < low < high:
        raise ValueError(f"got sigma_min={low:g} and sigma_max={high:g}: give 0 < sigma_min < sigma_max")
    ends = torch.tensor([high, low], dtype=torch.float64)
    if name == "dpm_fast":
        n = whole("n", known.pop("n", None))
        blocks = n // 3 + 1
        orders = [3] * (blocks - 2) + [2, 1] if n % 3 == 0 else [3] * (blocks - 1) + [n % 3]
        place = torch.tensor([i + j / k for i, k in enumerate(orders) for j in range(k)], dtype=torch.float64)
        levels = ((1 - place / blocks) * math.log(high) + place / blocks * math.log(low)).exp()
        levels[0] = high
        ends = torch.cat([levels, ends[1:]])
    return (known.pop("model"), known.pop("x"), ends), known


def get_sigmas(
    scheduler: str,
    n: int,
    sigma_min: float = 0.0291675,
    sigma_max: float = 14.614642,
    *,
    process: ScalarProcess | None = None,
) -> Tensor:
    """Noise levels (n + 1,) of a scheduler's name, float32, ending in 0.

    Args:
        scheduler: "karras", "exponential", "normal", ... (`fewstep.interop.tool_names.SCHEDULERS`).
        n: steps.
        sigma_min, sigma_max: the range; the defaults are Stable Diffusion 1 and 2's.
        process: whose time "normal", "sgm_uniform", "simple", "ddim_uniform" and "beta" are even in, and whose range is
            then taken instead; None is EDM, on which time is sigma. On `fewstep.Flow()` the levels are times, as
            everywhere here.
    """
    process = EDM(sigma_min=sigma_min, sigma_max=sigma_max) if process is None else process
    times = pick(SCHEDULERS, scheduler, "scheduler")(process, whole("n", n))
    return (times if isinstance(process, Flow) else torch.exp(-process.log_snr(times))).to(torch.float32)


class _Model:
    """A model of these tools as a denoiser (z, t) -> x0_hat; a guided one tells its parts as heads.

    The parts come from the hook that ComfyUI calls behind guidance: its arguments hold "uncond_denoised".
    """

    def __init__(self, model: Callable[..., Tensor], args: dict[str, Any], dtype: torch.dtype, *, guided: bool) -> None:
        self.model, self.args, self.dtype = model, args, dtype
        self.heard: Callable[[Tensor, Time, Tensor], object] | None = None
        self.base: list[Tensor] | None = [] if guided else None
        self.destination = getattr(model, "destination", None) is True
        if guided:
            options = dict(args.get("model_options", {}))
            hooks = [*options.get("sampler_post_cfg_function", []), self._hook]
            args["model_options"] = options | {"sampler_post_cfg_function": hooks, "disable_cfg1_optimization": True}

    def __call__(self, z: Tensor, t: Time, to: Time | None = None) -> Tensor | dict[str, Tensor]:
        level = lambda v: torch.as_tensor(v, dtype=z.dtype).to(z.device).expand(len(z)).clone()  # noqa: E731
        there = {"to": level(t if to is None else to)} if self.destination else {}
        out = kept(called(self.model, z.to(self.dtype, copy=True), level(t), **self.args, **there))
        if not isinstance(out, Tensor):
            raise NetworkError(f"the model returned a {type(out).__name__}: it must return the denoised x")
        out = as_state(out, z)
        if self.heard is not None:
            self.heard(z, t, out)
        if self.base is None:
            return out
        if not self.base:
            raise ValueError(
                "got a model that called no function of model_options['sampler_post_cfg_function'], from which this "
                "solver learns what is guidance: give a guided model of ComfyUI, or use another solver"
            )
        base = self.base.pop().to(z.dtype)
        return {"x0": out, "base": base, "guidance": out - base}

    def _hook(self, told: Mapping[str, Any]) -> Tensor:
        assert self.base is not None
        self.base[:] = [told["uncond_denoised"]]
        return told["denoised"]


@dataclass(frozen=True)
class _Drawn(NoiseSource):
    """The noise of a table's intervals: a source's, or what a noise sampler draws between two levels; times a scale."""

    source: NoiseSource
    table: Tableau
    scale: float
    sampler: NoiseSampler | None
    sigmas: Tensor

    def initial(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
        return self.source.initial(shape, dtype, device)

    def intervals(
        self, requests: Sequence[Request], shape: Sequence[int], dtype: torch.dtype, device: torch.device | str
    ) -> Iterator[Tensor]:
        source, level = along(self.table, self.source), self.sigmas.new_tensor
        sampled = lambda draw: (draw(level(n.t), level(n.s)) for n in self.table.noises)  # noqa: E731
        drawn = source.intervals(requests, shape, dtype, device) if self.sampler is None else sampled(self.sampler)
        return (xi.to(device, dtype) if self.scale == 1 else self.scale * xi.to(device, dtype) for xi in drawn)

    def snapshot(self) -> Any:
        return self.source.snapshot()

    def restore(self, snapshot: Any) -> None:
        self.source.restore(snapshot)


class _Steps:
    """Tells k-diffusion's callback once a step."""

    def __init__(self, callback: Callback | None, sigmas: Tensor) -> None:
        self.callback, self.sigmas, self.calls = callback, sigmas, 0
        self.steps: dict[int, int] = {}

    def row(self, row: int, t: float, z: Tensor, x0: Tensor) -> None:
        if row in self.steps:
            self.say(z, self.steps[row], t, x0)

    def call(self, z: Tensor, t: Time, x0: Tensor) -> None:
        self.calls += 1
        if self.callback is not None:
            level = torch.as_tensor(t, dtype=self.sigmas.dtype)
            self.callback({"x": z, "i": self.calls - 1, "sigma": level, "sigma_hat": level, "denoised": x0})

    def say(self, z: Tensor, i: int, level: float, x0: Tensor) -> None:
        if self.callback is not None:
            hat = self.sigmas.new_tensor(level)
            self.callback({"x": z, "i": i, "sigma": self.sigmas[i], "sigma_hat": hat, "denoised": x0})


def steps(table: Tableau) -> dict[int, int]:
    """The row with the first call of each step: {row: step}.

    It is the first evaluated row from the last one made at the step's level on, unless that lies beyond the level: then
    it was made before its correction, and is the last evaluated one at the level.
    """
    called = [k for k, row in enumerate(table.rows) if row.at is not None]
    found: dict[int, int] = {}
    way = float(table.grid[-1] - table.grid[0])
    for i, t in enumerate(table.grid.tolist()[:-1]):
        last = max((k for k, row in enumerate(table.rows) if row.t == t), default=None)
        if last is None:
            continue
        after = next((k for k in called if k >= last), None)
        if after is None or ((table.rows[after].at or 0.0) - t) * way > 0:
            after = max((k for k in called if k < last and table.rows[k].at == t), default=None)
        if after is not None:
            found.setdefault(after, i)
    return found


def _levels(sigmas: Any) -> Tensor:
    """Noise levels as a floating-point tensor (n + 1,)."""
    try:
        found = sigmas if isinstance(sigmas, Tensor) else torch.from_numpy(np.array(sigmas, dtype=np.float64))
    except (TypeError, ValueError):
        raise ValueError(f"got a {type(sigmas).__name__} as sigmas: give noise levels (n + 1,) that fall") from None
    if found.ndim != 1 or found.is_complex() or found.dtype == torch.bool:
        raise ValueError(
            f"got sigmas of {found.dtype} and shape {tuple(found.shape)}: give noise levels (n + 1,) that fall"
        )
    return found if found.is_floating_point() else found.float()


def _check_rising(solver: Any, grid: Tensor, stochastic: bool) -> None:
    """Refuses what cannot run from data to noise."""
    if isinstance(solver, Driver | Tableau) or stochastic:
        why = "adds noise" if stochastic else "has its own times"
        raise ValueError(
            f"got sigmas that rise for {type(solver).__name__}, which {why}: give another solver, as euler"
        )
    if not bool((grid[1:] > grid[:-1]).all()) or float(grid[0]) <= 0:
        raise ValueError(
            f"got sigmas that rise from {float(grid[0]):g}: give levels above 0 that all rise, as sigmas.flip(0)"
            "[1:] of levels that end in 0"
        )


def _for_levels(table: Tableau, grid: Tensor) -> Tableau:
    """The table, refused where it was written for other levels."""
    if table.grid.shape != grid.shape or not torch.allclose(table.grid, grid, rtol=1e-6, atol=0):
        raise ValueError(
            f"got a table of {len(table.grid) - 1} steps from {float(table.grid[0]):g} to {float(table.grid[-1]):g} "
            f"and {len(grid) - 1} sigmas from {float(grid[0]):g} to {float(grid[-1]):g}: give it its own levels"
        )
    return table


def _seed(seed: int | None, args: Mapping[str, Any]) -> int:
    seed = args.get("seed") if seed is None else seed
    return int(torch.randint(2**63 - 1, ())) if seed is None else int(seed) % 2**64
