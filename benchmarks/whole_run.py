"""What a whole run costs outside the network: beside diffusers, k-diffusion and a loop by hand, as ratios of one run.

    python benchmarks/whole_run.py                          # all parts, a few minutes
    python benchmarks/whole_run.py --short --part runs      # fewer repeats, one part
    python benchmarks/whole_run.py --out benchmarks/results/whole_run_HARDWARE_DATE.json
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/whole_run.py --out ...

| part      | what is compared                                                                          | asked for    |
|-----------|-------------------------------------------------------------------------------------------|--------------|
| `runs`    | `fewstep.sample`, its table written anew, over diffusers' `set_timesteps` and steps       | .5           |
|           | the same with the table kept                                                              | .25          |
|           | a stochastic solver, table kept, over diffusers' with its own `randn`                     | 1            |
| `tables`  | ms a step to write a table, every solver: the median on scalar and diagonal ones, on CLD  | .2, 2        |
| `noise`   | a step's noise, fresh and on the path, over `torch.randn` of as many numbers              | 2            |
| `network` | the shipped model's run over the bare calls of its network, less 1, batch 1 and 64        | .03, .01     |
| `start`   | `list`, `explain`, `--help` over `import torch`; `sample` up to its first network call    | 1.1, 1.3     |
|           | over importing torch and the one class of diffusers that it needs                         |              |
| `workers` | two threads, and two processes, over one: samples a second                                | 1.8          |

A run is 50 or 10 steps on (1, 4, 64, 64) with a network that returns a ready tensor. Cases of a comparison run in turn,
in one thread; a time is the least of the repeats, of the process's own processor time (`workers`: of the wall clock).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import torch
from overhead import cases as network_cases

import fewstep as fs
from fewstep.bench.peers.k_diffusion import _sampling
from fewstep.loop.drive import noises_of
from fewstep.noise import noise_source
from fewstep.pace import hardware
from fewstep.process import PROCESSES
from fewstep.solver import ALIASES
from fewstep.tableau.kept import forget

SHAPE = (1, 4, 64, 64)
Cases = dict[str, Callable[[], object]]
PAIRS = {  # ours, what is asked for (anew, kept), the scheduler of diffusers, and the sampler of k-diffusion
    "ddim": ((0.5, 0.25), "DDIMScheduler", {"clip_sample": False}, "euler"),
    "dpmpp-2m": ((0.5, 0.25), "DPMSolverMultistepScheduler", {"solver_order": 2}, "dpmpp_2m"),
    "unipc-3": ((0.5, 0.25), "UniPCMultistepScheduler", {"solver_order": 3}, None),
    "default": ((0.5, 0.25), "UniPCMultistepScheduler", {"solver_order": 3}, None),
    "dpmpp-2m-sde": ((math.inf, 1.0), "DPMSolverMultistepScheduler",
                     {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde"),
    "euler-ancestral": ((math.inf, 1.0), "EulerAncestralDiscreteScheduler", {}, "euler_ancestral"),
}  # fmt: skip
START = {
    "import torch": ("-c", "import torch"),
    "fewstep --help": ("-m", "fewstep", "--help"),
    "fewstep sample --help": ("-m", "fewstep", "sample", "--help"),
    "fewstep list": ("-m", "fewstep", "list"),
    "fewstep explain ddim": ("-m", "fewstep", "explain", "ddim"),
}
CLASS = "import torch; from diffusers import UNet2DModel"
CALL = """
import sys
import torch.nn
def stop(*_):
    raise SystemExit
torch.nn.modules.module.register_module_forward_pre_hook(stop)
from fewstep.cli import main
main(["sample", "--steps", "2", "--num", "1", "--precision", "float32", "--out", sys.argv[1]])
"""


def least(cases: Cases, repeat: int, clock: Callable[[], float] = time.process_time) -> dict[str, float]:
    """The least seconds of each case, run in turn."""
    taken = dict.fromkeys(cases, math.inf)
    for k in range(repeat + 1):
        for name, run in cases.items():
            began = clock()
            run()
            taken[name] = min(taken[name], clock() - began) if k else math.inf  # the first warms up
    return taken


def peers(solver: str, steps: int, d: torch.Tensor) -> Cases:
    """The same run by others: each with an output that is ready, and its own `randn`."""
    _, scheduler, options, sampler = PAIRS[solver]
    found: Cases = {}
    try:
        import diffusers

        made = getattr(diffusers, scheduler)(**options)

        def diffused() -> None:
            made.set_timesteps(steps)
            x = d
            for t in made.timesteps:
                made.is_scale_input_called = True
                x = made.step(d, t, x).prev_sample

        found["diffusers"] = diffused
    except ModuleNotFoundError:
        pass
    try:
        sampling = _sampling() if sampler else None
    except ModuleNotFoundError:
        sampling = None
    if sampling is not None:
        more = {} if solver in ("ddim", "dpmpp-2m") else {"noise_sampler": lambda *_: torch.randn_like(d)}
        run = getattr(sampling, f"sample_{sampler}")

        def karras() -> None:
            run(lambda x, s: d, d, sampling.get_sigmas_karras(steps, 0.03, 14.6), disable=True, **more)

        found["k-diffusion"] = karras
    if solver in ("ddim", "dpmpp-2m"):
        found["by hand"] = partial(by_hand, fs.Discrete(), 1 if solver == "ddim" else 2, steps, d)
    return found


def by_hand(process: fs.Discrete, order: int, steps: int, d: torch.Tensor) -> torch.Tensor:
    """DDIM or DPM-Solver++(2M), its numbers first and then a loop that looks at nothing."""
    times = fs.GRIDS["default"](process, steps)
    alpha, sigma, lam = process.alpha(times), process.sigma(times), process.log_snr(times)
    h = lam.diff()
    weight = -alpha[1:] * torch.expm1(-h)
    more = torch.zeros_like(h)
    if order == 2:
        more[1:] = weight[1:] * h[1:] / h[:-1] / 2
    x, before = torch.randn(d.shape) * float(sigma[0]), d
    for keep, w, b in zip((sigma[1:] / sigma[:-1]).tolist(), (weight + more).tolist(), more.tolist(), strict=True):
        x.mul_(keep).add_(d, alpha=w)
        if b:
            x.sub_(before, alpha=b)
        before = d
    return x


def runs(repeat: int) -> dict[str, dict[str, float]]:
    """Milliseconds of whole runs."""
    process, d, found = fs.Discrete(), torch.randn(SHAPE), {}
    noisy = fs.wrap(lambda x, t: d, process)
    for steps in (50, 10):
        for solver in PAIRS:
            options = {"solver": None if solver == "default" else solver, "steps": steps, "shape": SHAPE}
            run = partial(fs.sample, lambda z, t: d, process, **options, progress=False)

            def anew(run: Callable[[], object] = run) -> None:
                forget()
                run()

            cases = {
                "anew": anew,
                "kept": run,
                "wrapped": partial(fs.sample, noisy, process, **options, progress=False),
            }
            with torch.inference_mode(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                taken = least(cases | peers(solver, steps, d), repeat)
            row = {f"{name} ms": 1e3 * value for name, value in taken.items()}
            for peer in ("diffusers", "k-diffusion", "by hand"):
                row |= {f"{name} / {peer}": taken[name] / taken[peer] for name in cases if peer in taken}
            found[f"{solver}, {steps} steps"] = row
            asked = PAIRS[solver][0]
            print(f"{solver}, {steps} steps:", *(f"{name} {value:.2f};" for name, value in row.items()),
                  f"asked for {asked[0]} anew, {asked[1]} kept", flush=True)  # fmt: skip
    return found


def tables(repeat: int) -> dict[str, dict[str, float]]:
    """Milliseconds a step to write a table of 50 steps, of every solver and process."""
    found: dict[str, dict[str, float]] = {}
    for name, make in PROCESSES.items():
        process, found[name] = make(), {}
        for solver in (name for name in fs.TABLES if name not in ALIASES):
            try:
                written = fs.TABLES[solver]()
                times = fs.GRIDS["default"](process, 50)
                written.tabulate(process, times)
            except ValueError:  # not for this process, or this end
                continue

            def write(solver: fs.Solver = written, process: fs.Process = process, times: torch.Tensor = times) -> None:
                forget()
                solver.tabulate(process, times)

            found[name][solver] = 20 * least({"": write}, max(1, repeat // 4))[""]
        limit = 2.0 if process.kind == "block" else 0.2
        above = {solver: round(ms, 2) for solver, ms in found[name].items() if ms > limit}
        median = statistics.median(found[name].values())
        print(f"tables on {name}: median {median:.2f} ms a step; above {limit}: {above}", flush=True)
    return found


def noise(repeat: int) -> dict[str, dict[str, float]]:
    """Microseconds of a step's noise."""
    found, source = {}, noise_source(None, 1)
    table = fs.tabulate("euler-ancestral", fs.VP(), steps=50)
    count = range(len(table.noises))
    for shape in (SHAPE, (64, 1, 28, 28), (1, 3, 256, 256)):
        cases = {
            "path": lambda shape=shape: list(noises_of(table, source, shape, torch.float32, torch.device("cpu"))),
            "fresh": lambda shape=shape: [source.noise.normal("x", k, shape) for k in count],
            "randn": lambda shape=shape: [torch.randn(shape) for _ in count],
        }
        taken = least(cases, repeat)
        row = {f"{name} us": 1e6 * value / len(table.noises) for name, value in taken.items()}
        row |= {f"{name} / randn": taken[name] / taken["randn"] for name in ("path", "fresh")}
        found[str(shape)] = row
        print(f"noise {shape}:", *(f"{name} {value:.2f};" for name, value in row.items()), flush=True)
    return found


def network(repeat: int) -> dict[str, float]:
    """The overhead of runs of the shipped model, as a share of its network's calls."""
    model, found = fs.load(), {}
    for batch in (1, 64):
        for solver in ("ddim", "dpmpp-2m", "gaussian-split", "dpmpp-2m-sde", "euler-ancestral"):
            taken = least(network_cases(model, solver, 10, batch, "cpu"), repeat if batch == 1 else max(2, repeat // 8))
            found[f"{solver}, batch {batch}"] = taken["run"] / taken["calls"] - 1
            print(f"network, {solver}, batch {batch}: {found[f'{solver}, batch {batch}']:+.1%}", flush=True)
    return found


def processor_seconds(command: tuple[str, ...]) -> float:
    """What a fresh interpreter takes of the processor, with its bytecode written before."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = os.times()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, env=environment)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def start(repeat: int) -> dict[str, float]:
    """Start-up as shares of what must be imported."""
    cases = START | {"import the class": ("-c", CLASS), "sample": ("-c", CALL, os.devnull + "/x")}
    taken = dict.fromkeys(cases, math.inf)
    for _ in range(max(3, repeat // 5)):
        for name, command in cases.items():
            taken[name] = min(taken[name], processor_seconds(command))
    over = {name: taken["import the class" if name == "sample" else "import torch"] for name in taken}
    for name, seconds in taken.items():
        print(f"start, {name}: {seconds:.2f} s, {seconds / over[name]:.2f}", flush=True)
    return taken | {f"{name} / imports": taken[name] / over[name] for name in taken}


WORKER = """
import time, torch, fewstep as fs
from concurrent.futures import ThreadPoolExecutor
torch.set_num_threads(1)
model = fs.load()
table = fs.tabulate("dpmpp-2m", model.process, steps=10)
def one(first):
    fs.sample(model.denoiser(), model.process, solver=table, shape=(16, *model.shape), first=first, progress=False)
one(0)
"""
THREADS = (
    WORKER
    + """
def timed(workers):
    began = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, range(0, 64, 16)))
    return time.perf_counter() - began
pairs = [(timed(1), timed(2)) for _ in range(3)]
print(min(a for a, _ in pairs) / min(b for _, b in pairs))
"""
)
ALONE = (
    WORKER
    + """
import sys
sys.stdin.readline()
print("ready", flush=True)
sys.stdin.readline()
for k in range(8):
    one(16 * k)
print("done", flush=True)
"""
)


def workers(repeat: int) -> dict[str, float]:  # noqa: ARG001
    """Samples a second of two threads and of two processes over one."""
    told = subprocess.run([sys.executable, "-c", THREADS], check=True, stdout=subprocess.PIPE, text=True)
    seconds = {}
    for count in (1, 2):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        made = [subprocess.Popen([sys.executable, "-c", ALONE], **pipes) for _ in range(count)]
        for word in ("ready", "done"):
            began = time.perf_counter()
            for one in made:
                one.stdin.write("\n")
                one.stdin.flush()
            for one in made:
                assert one.stdout.readline().strip() == word
        seconds[count] = time.perf_counter() - began
        for one in made:
            one.wait()
    found = {"threads": float(told.stdout), "processes": 2 * seconds[1] / seconds[2]}
    print("workers:", *(f"two {name} {value:.2f};" for name, value in found.items()), flush=True)
    return found


PARTS = {"runs": runs, "tables": tables, "noise": noise, "network": network, "start": start, "workers": workers}


def main() -> None:
    """Measures the parts, prints a line each, writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeat", type=int, default=25, help="of each case (default: 25)")
    parser.add_argument("--short", action="store_true", help="five repeats")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    record: dict = {"date": str(date.today()), "machine": hardware(), "torch": torch.__version__,
                    "capability": torch.backends.cpu.get_cpu_capability()}  # fmt: skip
    for part in args.part:
        record[part] = PARTS[part](5 if args.short else args.repeat)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
