"""One pipeline, two schedulers: diffusers' own and ours with the same solver, time steps and noise.

    python benchmarks/diffusers_agreement.py --model runwayml/stable-diffusion-v1-5 --prompt "a lighthouse" \
        --steps 10 20 --out benchmarks/results/diffusers_agreement_MODEL_HARDWARE_DATE.json

--model is a folder or a name that diffusers loads: Stable Diffusion, SDXL, SD3, Flux, DiT, unconditional ones. Their
schedulers run on "trailing" time steps, which are whole numbers for them, and ours on the same. The table says how far
apart the final latents lie, relative to their norm, how far a second run of their own lies from the first (what the
machine repeats), and the network calls of both. A solver that draws noise takes it from the pipeline's generator.

One difference is no fault of a solver: their Euler on other spacings than "leading" starts from sigma_max noise where
every other scheduler starts from (1 + sigma_max^2)^{1/2}.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

import fewstep as fs
from fewstep.interop.diffusers import FewStepScheduler
from fewstep.pace import hardware

TRAILING = {"timestep_spacing": "trailing", "final_sigmas_type": "zero"}
Pair = tuple[str, dict[str, Any], Any]  # their class, its options, our solver

# From betas; all end at sigma = 0.
BETAS: dict[str, Pair] = {
    "ddim": ("DDIMScheduler", {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}, "ddim"),
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, "ddim"),
    "dpmpp-2m": ("DPMSolverMultistepScheduler", TRAILING, fs.DPMMultistep(points=2, final_ramp=True)),
    "dpmpp-3m": (
        "DPMSolverMultistepScheduler",
        {**TRAILING, "solver_order": 3},
        fs.DPMMultistep(points=3, final_ramp=True),
    ),
    "unipc-2": ("UniPCMultistepScheduler", TRAILING, "unipc-2"),
    "unipc-3": ("UniPCMultistepScheduler", {**TRAILING, "solver_order": 3}, "unipc-3"),
    "dpmpp-2m-sde": (
        "DPMSolverMultistepScheduler",
        {**TRAILING, "algorithm_type": "sde-dpmsolver++"},
        fs.SDEMultistep(type="midpoint", final_ramp=True),
    ),
}
FLOWS: dict[str, Pair] = {"flow-euler": ("FlowMatchEulerDiscreteScheduler", {}, "ddim")}


def run(pipe: Any, scheduler: Any, arguments: dict[str, Any], seed: int) -> tuple[Tensor, float, int]:
    """The final latents (images where the pipeline has none), seconds, and network calls."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    pipe.scheduler = scheduler
    network = getattr(pipe, "transformer", None) or pipe.unet
    hook = network.register_forward_hook(count)
    generator = torch.Generator().manual_seed(seed)
    if "generator" in signature(scheduler.step).parameters:
        scheduler.step = partial(scheduler.step, generator=generator)  # for pipelines that hand none to it (DiT)
    began = time.perf_counter()
    try:
        out = pipe(**arguments, generator=generator).images
    finally:
        hook.remove()
    return torch.as_tensor(out).double().cpu(), time.perf_counter() - began, calls


def compare(pipe: Any, pair: Pair, arguments: dict[str, Any], seed: int) -> dict[str, Any]:
    """One row of the table."""
    cls, options, solver = pair
    theirs = getattr(diffusers, cls).from_config(pipe.scheduler.config, **options)
    try:
        first, seconds, calls = run(pipe, theirs, arguments, seed)
    except TypeError as error:  # the unconditional pipeline hands a generator to schedulers that take none
        return {"their error": str(error)}
    again, _, _ = run(pipe, getattr(diffusers, cls).from_config(theirs.config), arguments, seed)
    ours = FewStepScheduler.from_config({**theirs.config, "final_sigmas_type": "zero"}, solver=solver)
    ours.set_timesteps = partial(on, ours, theirs.timesteps)
    mine, our_seconds, our_calls = run(pipe, ours, arguments, seed)
    relative: Callable[[Tensor], float] = lambda x: float((x - first).norm() / first.norm())  # noqa: E731
    return {
        "difference": relative(mine),
        "their repeat": relative(again),
        "calls": [our_calls, calls],
        "seconds": [round(our_seconds, 3), round(seconds, 3)],
    }


def on(scheduler: FewStepScheduler, timesteps: Tensor, *_: Any, device: Any = None, **__: Any) -> None:
    """`set_timesteps` that takes the given ones whatever a pipeline asks for."""
    FewStepScheduler.set_timesteps(scheduler, timesteps=timesteps, device=device)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt", default="a lighthouse on a cliff at dusk")
    parser.add_argument("--label", type=int, default=1, help="the class, for pipelines of classes")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--size", type=int, help="pixels a side; the pipeline's own where left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(asked.model)
    pipe.to(asked.device, getattr(torch, asked.dtype))
    pipe.set_progress_bar_config(disable=True)
    known = signature(type(pipe).__call__).parameters
    given: dict[str, Any] = {"output_type": "latent"} if "prompt" in known else {"output_type": "np"}
    given |= {"prompt": asked.prompt} if "prompt" in known else {}
    given |= {"class_labels": [asked.label]} if "class_labels" in known else {}
    given |= {"height": asked.size, "width": asked.size} if asked.size else {}
    pairs = dict(FLOWS if "shift" in pipe.scheduler.config else BETAS)
    if "prompt" not in known:
        pairs.pop("euler", None)  # these pipelines do not scale their start as it asks for
    own, rows = pipe.scheduler, {}
    print(f"{'':24}{'difference':>12}{'their repeat':>14}{'calls':>12}")
    for steps in asked.steps:
        for name, pair in pairs.items():
            pipe.scheduler = own
            row = compare(pipe, pair, {**given, "num_inference_steps": steps}, asked.seed)
            rows[f"{name}, {steps} steps"] = row
            told = row.get("their error") or (
                f"{row['difference']:12.1e}{row['their repeat']:14.1e}{' and '.join(map(str, row['calls'])):>12}"
            )
            print(f"{name + f', {steps} steps':24}{told}")
    if asked.out is not None:
        asked.out.write_text(
            json.dumps(
                {
                    "model": asked.model,
                    "pipeline": type(pipe).__name__,
                    "arguments": {k: v for k, v in vars(asked).items() if k != "out"},
                    "hardware": hardware(asked.device),
                    "date": date.today().isoformat(),
                    "versions": {m.__name__: m.__version__ for m in (torch, diffusers, fs)},
                    "rows": rows,
                },
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
