"""The identity check between commits: a digest of what every solver, wrapper and door makes, and what differs of two.

    python benchmarks/digest.py NEW.json                       # minutes on one core
    python benchmarks/digest.py NEW.json --only 'table/ddim/*' 'door/*'
    python benchmarks/digest.py --compare OLD.json NEW.json     # ends with 1 where anything differs

Every cell is a small run from a fixed seed, by its name: `table/` each distinct solver on each process of its kinds,
`zero/` those that step to sigma = 0, `driver/`, `parallel/`, `fitted/`, `network/` (wrapped, of every prediction),
`around/` (guidance and other wrappers), `use/` (encoding, likelihoods, pieces of a batch, ...) and `door/` (diffusers,
k-diffusion, ComfyUI, ONNX, the command line). Of a cell are kept the SHA-256 of its numbers' bytes in float32 and in
float64, and the float64 numbers' mean and deviation to nine digits: a change of these is a change, a change of the
others alone is one of rounding. What is refused is kept as its sentence. Bits are those of one machine and one torch.
Runs end in the state (`final="state"`), which shows more of a solver than sigma = 0 does, but for those of `zero/`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import date
from fnmatch import fnmatchcase
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fewstep as fs
from fewstep.files import json_text, read_json
from fewstep.pace import hardware

Make = Callable[[torch.dtype], Any]
STEPS, BATCH = 6, 3
ENTRIES = 2**15  # of a state in `network/`: more than the loop makes side by side
AROUND = ("default", "ddim", "unipc-3", "heun", "ddpm", "ddim-cfgpp", "taylor-2")


def main() -> None:
    """Writes a digest, or compares two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="the file to write")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="names of cells, as in a shell")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("OLD", "NEW"))
    args = parser.parse_args()
    if (args.out is None) == (args.compare is None):
        parser.error("give a file to write, or --compare OLD NEW")
    if args.compare:
        sys.exit(compare(*(read_json(path, "a digest")["cells"] for path in args.compare)))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    began, cells = time.perf_counter(), dict(digests(args.only))
    record = {"date": str(date.today()), "torch": torch.__version__, "machine": hardware(),
              "seconds": round(time.perf_counter() - began), "cells": cells}  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json_text(record))
    print(f"{len(cells)} cells, {record['seconds']} s: {args.out}")


def compare(old: dict[str, Any], new: dict[str, Any]) -> int:
    """Prints what differs by name; 1 where anything does."""
    lines = [f"gone       {name}" for name in old.keys() - new.keys()]
    lines += [f"new        {name}" for name in new.keys() - old.keys()]
    for name in old.keys() & new.keys():
        a, b = old[name], new[name]
        if a != b and (isinstance(a, str) or isinstance(b, str)):
            lines.append(
                f"sentence   {name}: {a if isinstance(a, str) else 'ran'} -> {b if isinstance(b, str) else 'runs'}"
            )
        elif a != b:
            kind = "rounding" if a[0] == b[0] else "changed"
            lines.append(f"{kind:<10} {name}: {a[0]} -> {b[0]}")
    print("\n".join(sorted(lines) or [f"{len(old)} cells are the same"]))
    return int(bool(lines))


def digests(only: list[str]) -> Iterator[tuple[str, Any]]:
    """The digest of every cell that one of the patterns matches."""
    for name, make in cells():
        if not any(fnmatchcase(name, pattern) for pattern in only):
            continue
        try:
            single, double = (flat(make(dtype)) for dtype in (torch.float32, torch.float64))
        except Exception as error:  # what is raised is a cell's result too
            yield name, " ".join(f"{type(error).__name__}: {error}".split())
            continue
        wide = double.to(torch.float64)
        size = " ".join(f"{float(v):.9g}" for v in (wide.mean(), wide.std(correction=0)))
        yield name, [size, *(hashlib.sha256(v.numpy().tobytes()).hexdigest()[:16] for v in (single, double))]


def flat(made: Any) -> Tensor:
    """What a cell makes as one row of numbers."""
    if isinstance(made, Tensor):
        return made.detach().flatten().contiguous()
    if isinstance(made, dict):
        made = [made[name] for name in sorted(made)]
    return torch.cat([flat(torch.as_tensor(v)).to(torch.float64) for v in made])


def distinct(registry: dict[str, Callable[..., Any]]) -> dict[str, Any]:
    """The entries of a registry, of those that make one object the first."""
    made: dict[str, Any] = {}
    for name, make in registry.items():
        one = make()
        if all(one != other or type(one) is not type(other) for other in made.values()):
            made[name] = one
    return made


def small(name: str) -> fs.Process:
    """A process of the registry, on 4 x 4 images where it has a size."""
    process: Any = fs.PROCESSES[name]
    try:
        return process(size=(4, 4))
    except TypeError:
        return process()


@cache
def mixture(process: fs.Process, at: float = 0.0) -> fs.Mixture:
    """Three unequal parts of 2 numbers, or of 4 x 4 pixels."""
    shape = (4, 4) if process.kind == "diagonal" else (2,)
    g = torch.Generator().manual_seed(5)
    means = at + torch.randn(3, *shape, dtype=torch.float64, generator=g)
    return fs.Mixture(process, means, torch.tensor([0.5, 0.3, 0.4]), torch.tensor([0.3, 0.45, 0.25]))


def run(denoiser: Any, process: fs.Process, solver: Any, dtype: torch.dtype, **options: Any) -> Tensor:
    """A small run."""
    shape = (BATCH, *((4, 4) if process.kind == "diagonal" else (2,)))
    options = {
        "shape": shape,
        "steps": STEPS,
        "seed": 11,
        "dtype": dtype,
        "progress": False,
        "final": "state",
    } | options
    return fs.sample(denoiser, process, solver=solver, **options)


def cells() -> Iterator[tuple[str, Make]]:
    """Every cell: its name, and its numbers for a dtype."""
    processes, zero = {name: small(name) for name in fs.PROCESSES}, fs.to_zero(fs.GRIDS["default"])
    solvers, drivers = distinct(fs.TABLES), distinct(fs.DRIVERS)
    for name, solver in solvers.items():
        for key, process in processes.items():
            if process.kind in solver.kinds:
                yield f"table/{name}/{key}", partial(tabled, process, name)
                if solver.reaches_zero(process):
                    yield (
                        f"zero/{name}/{key}",
                        partial(run, mixture(process), process, name, grid=zero),
                    )
    for name, driver in drivers.items():
        for key, process in processes.items():
            if process.kind in driver.kinds:
                yield f"driver/{name}/{key}", partial(driven, process, name)
    for name in ("ddim", "multistep-3", "ddpm"):
        for key in ("vp", "flow", "cld", "blurring"):
            yield f"parallel/{name}/{key}", partial(run, mixture(processes[key]), processes[key], name, parallel=True)
    for mode, key in (("exact", "vp"), ("free", "vp"), ("free", "cld")):
        yield f"fitted/{mode}/{key}", partial(fitted, mode, processes[key])
    for parts in (networks, around, uses, pipelines, marches, nodes, commands):
        for name, make in parts():
            yield name, make


def times(process: fs.Process, steps: int) -> Tensor:
    """Times of a moderate range of log-SNR, from 1.9 on down to 3, unevenly."""
    low, high = (float(process.log_snr(t)) for t in (process.t_max, process.t_min))
    share = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    low, high = max(low, -1.9), min(high, 3.0)
    return process.inverse_log_snr(low + (high - low) * (share + 0.1 * torch.sin(3 * share) * (1 - share)))


def start(process: fs.Process, t: float, dtype: torch.dtype) -> Tensor:
    """States of the mixture at a time."""
    g = torch.Generator().manual_seed(6)
    x0 = mixture(process).sample(BATCH, g)
    shape = (BATCH, *process.state_shape(tuple(x0.shape[1:])))
    return process.diffuse(x0, t, torch.randn(shape, dtype=torch.float64, generator=g)).to(dtype)


def tabled(process: fs.Process, name: str, dtype: torch.dtype) -> Tensor:
    """A run on times of its own, from states of the mixture."""
    grid = times(process, 4)
    x = start(process, float(grid[0]), dtype)
    return run(mixture(process), process, name, dtype, grid=grid, steps=None, shape=None, x=x)


def driven(process: fs.Process, name: str, dtype: torch.dtype) -> list[Tensor]:
    """The states of a driver and its calls."""
    made: Any = fs.DRIVERS[name]
    with contextlib.suppress(TypeError, ValueError):
        made = partial(made, rtol=0.1, atol=0.1) if made(rtol=0.1, atol=0.1) else made
    made = made()
    grid = times(process, 1 if made.own_times else 3)
    found = fs.solve(
        mixture(process),
        process,
        solver=made,
        grid=grid,
        x=start(process, float(grid[0]), dtype),
        seed=11,
        progress=False,
    )
    return [found.state, found.calls]


@cache
def fit(mode: str, process: fs.Process) -> fs.Tableau:
    """A table fitted in a second."""
    return fs.fit(
        mixture(process), process, steps=4, shape=(2,), mode=mode, grid="logistic",
        solver="dpmpp-2m" if process.kind == "scalar" else "ddim", samples=16, held_out=8, teacher_steps=8,
        final="state", dtype=torch.float64, progress=False, descent=fs.Descent(iterations=4),
    )  # fmt: skip


def fitted(mode: str, process: fs.Process, dtype: torch.dtype) -> Tensor:
    return run(mixture(process), process, fit(mode, process), dtype, steps=None)


def net(x: Tensor, t: Tensor) -> Tensor:
    """A network that knows its time."""
    t = t.to(x).reshape(-1, *(1,) * (x.ndim - 1))
    return torch.tanh(x * (1 + t / 1000)) - 0.3 * x.roll(1, -1)


def networks() -> Iterator[tuple[str, Make]]:
    """Wrapped networks, on states of a few numbers and of many."""
    shapes = {"few": (2, 4, 4), "many": (2, ENTRIES // 32, 4, 4)}
    for key in ("vp", "edm", "flow", "cld", "blurring"):
        process = small(key)
        for predicts in ("noise", "data", "v", "flow", "score", "edm"):
            if (predicts == "edm" and process.kind != "scalar") or (predicts == "data" and process.kind == "block"):
                continue
            own: Any = {"sigma_data": 0.5} if predicts == "edm" else {}
            wrapped = fs.wrap(net, process, predicts=predicts, **own)
            for size, shape in shapes.items():
                for name in ("default", "dpmpp-2m" if process.kind == "scalar" else "ddim", "heun"):
                    yield f"network/{predicts}/{key}/{name}/{size}", partial(run, wrapped, process, name, shape=shape)


def around() -> Iterator[tuple[str, Make]]:
    """Wrappers around closed forms and networks."""
    for key in ("vp", "flow", "cld", "blurring"):
        process = small(key)
        one, other, third = mixture(process), mixture(process, 0.5), mixture(process, -0.5)
        labelled = [
            fs.wrap(partial(labels, label=torch.full((BATCH,), v)), process, predicts="noise") for v in (1.0, 2.0)
        ]
        seen = fs.Observation(
            lambda x: x[..., :1], torch.zeros(1, 4, 1) if key == "blurring" else torch.zeros(1, 1), 0.1
        )
        made: dict[str, Callable[[], Any]] = {
            "guide": partial(fs.guide, one, other, 3.0),
            "guide-interval": partial(fs.guide, one, other, 3.0, interval=(0.2, 0.8)),
            "guide-rescale": partial(fs.guide, one, other, 3.0, rule=fs.Rescale()),
            "guide-apg": lambda a=one, b=other: fs.guide(a, b, 3.0, rule=fs.APG(norm=1.0, momentum=-0.5)),
            "guide-networks": partial(fs.guide, *labelled, 3.0),
            "guide-0": partial(fs.guide, *labelled, 0.0),
            "Guided": partial(fs.Guided, base=one, shift=lambda z, t, b=other: 0.1 * b(z, t), process=process),
            "classifier": partial(fs.ClassifierGuided, one, likely, 0.3),
            "classifier-x0": partial(fs.ClassifierGuided, one, likely, 0.3, on="x0_hat"),
            "Composed": partial(fs.Composed, one, (other, third), (1.0, -0.5)),
            "perpendicular": partial(fs.Composed, one, (other, third), (1.0, -0.5), perpendicular=True),
            "AnyOf": partial(fs.AnyOf, (one, other), (likely, partial(likely, most=1.0))),
            "Complement": partial(fs.Complement, one, other, partial(likely, most=-1.0)),
            "Thresholded": partial(fs.Thresholded, one, 0.9, bound=0.5),
            "clipped": partial(fs.Thresholded, one, None, bound=0.5),
            "Thresholded-guided": lambda a=one, b=other: fs.Thresholded(fs.guide(a, b, 3.0), 0.9),
            "pigdm": partial(fs.pigdm, one, seen),
            "dps": partial(fs.dps, one, seen),
            "DDNM": partial(fs.DDNM, one, seen),
            "Differentiated": partial(fs.Differentiated, one, process),
            "Counted": partial(fs.Counted, one),
            "Counted-guided": lambda a=labelled[0], b=labelled[1]: fs.Counted(fs.guide(a, b, 3.0)),
            "retime": partial(fs.retime, mixture(fs.VE()), process),
            "Dataset": lambda p=process: fs.Dataset(p, torch.linspace(-1, 1, 64 if p.kind == "diagonal" else 8)
                                                   .reshape(4, *((4, 4) if p.kind == "diagonal" else (2,)))),
        }  # fmt: skip
        for label, make in made.items():
            for name in AROUND:
                yield (
                    f"around/{label}/{key}/{name}",
                    lambda dtype, make=make, p=process, n=name: run(make(), p, n, dtype),
                )
        heads = fs.variance_head(lambda x, t: (net(x, t), 0.5 + 0.1 * torch.tanh(x)), process) if key != "cld" else None
        for name in ("npr-ddpm", "ddim") if heads else ():
            yield f"around/variance-head/{key}/{name}", partial(run, heads, process, name)


def likely(z: Tensor, t: Any, most: float = 0.0) -> Tensor:  # noqa: ARG001 - of no time
    """A log probability."""
    return most - z.flatten(1).square().sum(1)


def labels(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    return net(x, t) + 0.1 * label.to(x).reshape(-1, *(1,) * (x.ndim - 1))


def uses() -> Iterator[tuple[str, Make]]:
    """What else runs a denoiser."""
    for key in ("vp", "cld", "blurring"):
        process = small(key)
        one = mixture(process)
        x = one.sample(BATCH, torch.Generator().manual_seed(3))
        guided = fs.guide(one, mixture(process, 0.5), 3.0)
        yield f"use/encode/{key}", lambda dtype, d=one, p=process, x=x: fs.encode(d, p, x.to(dtype), steps=STEPS)
        yield f"use/elbo/{key}", lambda dtype, d=one, p=process, x=x: fs.elbo(d, p, x.to(dtype), steps=STEPS).nats
        yield f"use/trajectory/{key}", lambda dtype, d=one, p=process, x=x: fs.trajectory(
            d, p, shape=tuple(x.shape), steps=STEPS, final="state", dtype=dtype).denoised  # fmt: skip
        yield f"use/denoise/{key}", partial(run, one, process, "multistep-3", final="denoise")
        yield f"use/pieces/{key}", partial(run, guided, process, "ddim", memory="64GiB")
        yield f"use/parallel-guided/{key}", partial(run, guided, process, "ddim", parallel=3)
        yield f"use/callback/{key}", partial(told, one, process)
        yield f"use/gradient/{key}", partial(gradient, one, process)
    process = small("vp")
    x = mixture(process).sample(BATCH, torch.Generator().manual_seed(3))
    yield "use/log-prob", lambda dtype: fs.log_prob(mixture(process), process, x.to(dtype), tolerance=1e-2).nats
    yield "use/denoising-mcmc", lambda dtype: fs.denoising_mcmc(
        mixture(process), process, x.to(dtype), levels=3, saved=2, skip=1, steps=3).samples  # fmt: skip


def told(denoiser: Any, process: fs.Process, dtype: torch.dtype) -> list[Tensor]:
    seen: list[Tensor] = []
    run(denoiser, process, "multistep-3", dtype, callback=lambda row, t, z, x0: seen.extend((z.clone(), x0.clone())))
    return seen


def gradient(denoiser: Any, process: fs.Process, dtype: torch.dtype) -> Tensor:
    shape = (BATCH, *process.state_shape((4, 4) if process.kind == "diagonal" else (2,)))
    x = torch.linspace(-1, 1, math.prod(shape), dtype=dtype).reshape(shape).requires_grad_()
    more = {"differentiable": True, "final": "state", "progress": False}
    z = fs.sample(denoiser, process, solver="ddim", x=x, steps=3, **more)
    return torch.autograd.grad(z.square().sum(), x)[0]


def pipelines() -> Iterator[tuple[str, Make]]:
    """The scheduler of diffusers."""
    if find_spec("diffusers") is None:
        return
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    configs = {
        "noise": betas | {"prediction_type": "epsilon"}, "v": betas | {"prediction_type": "v_prediction"},
        "clipped": betas | {"prediction_type": "sample", "clip_sample": True, "clip_sample_range": 0.5},
        "thresholded": betas | {"prediction_type": "epsilon", "thresholding": True, "sample_max_value": 1.5},
        "flow": {"shift": 3.0},
        "edm": {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0, "prediction_type": "epsilon"},
    }  # fmt: skip
    for key, config in configs.items():
        few = [None, "unipc-3", "heun", "ddpm", "dpmpp-2s", "edm-sde", "lcm", "euler-ancestral"]
        for name in [None, *distinct(fs.TABLES)] if key == "noise" else few:
            yield f"door/diffusers/{key}/{name}", partial(pipeline, name, config)


def pipeline(name: str | None, config: dict[str, Any], dtype: torch.dtype) -> Tensor:
    from fewstep.interop.diffusers import FewStepScheduler

    scheduler = FewStepScheduler(solver=name, final_sigmas_type="sigma_min", **config)
    scheduler.set_timesteps(STEPS)
    x = torch.linspace(-2, 2, 32, dtype=dtype).reshape(2, 1, 4, 4) * float(scheduler.init_noise_sigma)
    g = torch.Generator().manual_seed(3)
    for t in scheduler.timesteps:
        out = net(scheduler.scale_model_input(x, t), t.reshape(1).to(dtype))
        x = scheduler.step(out, t, x, generator=g, return_dict=False)[0]
    return x


SIGMAS = torch.tensor([14.6, 7.0, 3.1, 1.2, 0.5, 0.1, 0.0])


def model(x: Tensor, sigma: Tensor, model_options: Any = None) -> Tensor:
    """A guided model as ComfyUI has it."""
    out = torch.tanh(x / (1 + sigma[:, None] ** 2)) * 0.8
    for hook in (model_options or {}).get("sampler_post_cfg_function", []):
        out = hook({"denoised": out, "uncond_denoised": 0.9 * out})
    return out


def marches() -> Iterator[tuple[str, Make]]:
    """The samplers of k-diffusion."""
    from fewstep.interop import k_diffusion

    for name in distinct(k_diffusion.SAMPLERS):
        yield f"door/k-diffusion/{name}/edm", partial(march, name, None)
        if "ancestral" in name or name in ("gaussian_split", "euler", "dpmpp_2m", "unipc_3", "dpm_adaptive"):
            yield f"door/k-diffusion/{name}/flow", partial(march, name, fs.Flow())


def march(name: str, process: Any, dtype: torch.dtype) -> Tensor:
    from fewstep.interop import k_diffusion

    levels = torch.linspace(0.98, 0, 7) if process is not None else SIGMAS
    x = torch.linspace(-1, 1, 8, dtype=dtype).reshape(4, 2) * levels[0].to(dtype)
    options = {"rtol": 0.1, "atol": 0.1} if isinstance(k_diffusion.SAMPLERS[name](), fs.Driver) else {}
    with contextlib.suppress(TypeError, ValueError):
        k_diffusion.SAMPLERS[name](**options)
        return k_diffusion.sample(name)(model, x, levels.to(dtype), disable=True, seed=3, process=process, **options)
    return k_diffusion.sample(name)(model, x, levels.to(dtype), disable=True, seed=3, process=process)


def nodes() -> Iterator[tuple[str, Make]]:
    """ComfyUI's menu, in a stub of ComfyUI."""
    for name in ("gaussian_split", "dpmpp_2m_sde", "euler_cfg_pp", "heun", "unipc_3"):
        yield f"door/comfyui/{name}", partial(node, name)


def node(name: str, dtype: torch.dtype) -> Tensor:
    samplers, functions = ModuleType("comfy.samplers"), ModuleType("comfy.k_diffusion.sampling")
    names: list[str] = []
    samplers.__dict__.update(SAMPLER_NAMES=names, KSampler=SimpleNamespace(SAMPLERS=names))
    sys.modules |= {"comfy.samplers": samplers, functions.__name__: functions}
    comfyui = import_module("fewstep.interop.comfyui")
    comfyui.register()
    assert f"fewstep_{name}" in names
    inner = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=object()))
    called = lambda x, sigma, **more: model(x, sigma, more.get("model_options"))  # noqa: E731
    called.__dict__["inner_model"] = inner
    x = torch.linspace(-1, 1, 8, dtype=dtype).reshape(4, 2) * SIGMAS[0].to(dtype)
    return getattr(functions, f"sample_fewstep_{name}")(
        called, x, SIGMAS.to(dtype), extra_args={"model_options": {}, "seed": 3}, disable=True
    )


def commands() -> Iterator[tuple[str, Make]]:
    """The command line on the shipped model, and its ONNX graph."""
    for label, words in {
        "default": "", "guided": "--guidance 3",
        "dpmpp-2m": "--solver dpmpp-2m --final state", "ddpm": "--solver ddpm --final state",
        "denoise": "--final denoise", "driver": "--solver dpm-adaptive-12 --option rtol=0.5 --option atol=0.5",
    }.items():  # fmt: skip
        yield f"door/command/{label}", lambda _, words=words: command(words)
    yield "door/graph", lambda _: graph(1.0)
    yield "door/graph-guided", lambda _: graph(3.0)


@cache
def command(words: str) -> Tensor:
    """Two samples."""
    from fewstep.cli import main

    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        steps = "" if "adaptive" in words else "--steps 3"
        main(["sample", *f"{steps} --num 2 --precision float32 --threads 1 --out {out} {words}".split()])
        return torch.from_numpy(np.load(Path(out) / "samples.npz")["samples"])


@cache
def graph(guidance: float) -> Tensor:
    """Two samples of the module that is exported."""
    from fewstep.interop.onnx import Sampler, inputs

    loaded = fs.load(dtype=torch.float32)
    table = fs.tabulate("ddpm", loaded.process, steps=3, final="state")
    with torch.no_grad():
        return Sampler(loaded, table, guidance)(**inputs(loaded, table, 2, labels=[1, 2], seed=3))


if __name__ == "__main__":
    main()
