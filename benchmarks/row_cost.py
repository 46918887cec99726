"""What one row costs: the loop's update beside one fused linear combination, and the whole loop beside diffusers.

    python benchmarks/row_cost.py --out benchmarks/results/row_cost_HARDWARE_DATE.json

A row is z_k = a z_{k-1} + b y_0 + c y_1 with both outputs already in the history, float32, batch 1, one thread. Its
cost is the slope of `fewstep.loop.walk` over a table with many such rows, so the loop's own Python is in it. Beside it,
alternately in the same run: the bare chain `mul(out=)`, `add_(alpha=)`, `add_(alpha=)`; `blocks`, the same chain over
one block of the state after the other; the compiled expression; `mv` over a history whose tensors lie side by side (a
lower bound: nothing lays them there); and `mv+copy`, which also copies one network output into that history, as a
sampler built on it would have to. The fused one is the best of chain, compiled and mv.

Prediction, written down before the first run. Small state, (4, 64, 64): three kernels take 8 us, the bookkeeping of a
row 3 to 5 us more, `mv` 6 us: ratio about 2. Large state, (3, 1024, 1024): 12 MB a tensor, bound by memory; the chain
moves 8 tensors and a fused row 4, but the written one stays partly in the cache: ratio about 1.5. Loop with a ready
denoiser: under 20 us a row on the small state; diffusers 100 to 300 us a step, since it computes its coefficients
between the calls.

Seen on 2026-11-20 (results/row_cost_xeon_2026-11-20.json, two shared cores): small 10 us, 2.2 of `mv`, 1.6 of
`mv+copy`, 1.4 of the chain; large 1.5 of the compiled one (1.8 to 2.2 in runs beside another job, when memory is
slower). The walk takes 12 to 36 us a row, diffusers 66 to 830. Writing the table takes 0.2 to 1.5 ms a step, once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

import fewstep as fs
from fewstep.loop import Plan, walk
from fewstep.tableau import Form, Row, Tableau
from fewstep.train.card import hardware

SHAPES = ((1, 4, 64, 64), (1, 3, 1024, 1024))
A, B, C = 0.9, 0.4, -0.3
BLOCK = 2**17  # 512 kB of float32: what the chain wrote is still in the cache when it is read again
PROCESS = fs.VP()


def table(rows: int) -> Tableau:
    """The start and one row, both called; then `rows` rows of three terms that read the two outputs."""
    times = torch.linspace(PROCESS.t_max, PROCESS.t_min, rows + 2, dtype=torch.float64)
    made = [Row(1.0, 1.0, Form({}), "start"), Row(float(times[1]), float(times[1]), Form({("z", 0): 1.0}))]
    for k in range(2, rows + 2):
        form = Form({("z", k - 1): A, ("y", 0, "x0"): B, ("y", 1, "x0"): C})
        made.append(Row(float(times[k]), None, form))
    return Tableau(rows=tuple(made), noises=(), process=PROCESS, grid=times)


def row_cases(shape: tuple[int, ...], rows: int) -> dict[str, Callable[[], object]]:
    """Functions that each make `rows` rows (the loop's also makes two more, which `base` makes alone)."""
    z, y0, y1 = torch.randn(3, *shape).unbind()
    outputs = {PROCESS.t_max: y0}
    denoiser = lambda x, t: outputs.get(t, y1)  # noqa: ARG005, E731
    long, short = (Plan.of(table(n), denoiser) for n in (rows + 2, 2))
    buffers = [torch.empty_like(z), torch.empty_like(z)]
    history = torch.stack([z, y0, y1, torch.empty_like(z)]).flatten(1)  # states take turns in slots 0 and 3
    turns = ((history[:3].T, torch.tensor([A, B, C]), history[3]), (history[1:].T, torch.tensor([B, C, A]), history[0]))
    parts = [x.view(-1).split(BLOCK) for x in (z, y0, y1, *buffers)]
    slot, output = history[2], y1.flatten()

    def chain() -> None:
        x = z
        for k in range(rows):
            out = torch.mul(x, A, out=buffers[k % 2])
            x = out.add_(y0, alpha=B).add_(y1, alpha=C)

    def blocks() -> None:
        x, outs = parts[0], parts[3:]
        for k in range(rows):
            for q, p0, p1, out in zip(x, parts[1], parts[2], outs[k % 2], strict=True):
                torch.mul(q, A, out=out).add_(p0, alpha=B).add_(p1, alpha=C)
            x = outs[k % 2]

    fused = torch.compile(lambda x, p, q, out: out.copy_(A * x + B * p + C * q), fullgraph=True, dynamic=False)

    def compiled() -> None:
        x = z
        for k in range(rows):
            x = fused(x, y0, y1, buffers[k % 2])

    def mv() -> None:
        for k in range(rows):
            read, weights, out = turns[k % 2]
            torch.mv(read, weights, out=out)

    def mv_copy() -> None:
        for k in range(rows):
            read, weights, out = turns[k % 2]
            slot.copy_(output)
            torch.mv(read, weights, out=out)

    return {
        "loop": lambda: walk(long, z),
        "base": lambda: walk(short, z),
        "chain": chain,
        "blocks": blocks,
        "compiled": compiled,
        "mv": mv,
        "mv+copy": mv_copy,
    }


def schedulers() -> dict[str, tuple[str, Callable[[], object]]]:
    """Our name -> (diffusers' name, its scheduler), on the same 1000 alphas and predicting x0."""
    try:
        import diffusers
    except ModuleNotFoundError:
        return {}
    kind = {"prediction_type": "sample"}
    return {
        "ddim": ("DDIMScheduler", lambda: diffusers.DDIMScheduler(**kind, clip_sample=False)),
        "dpmpp-2m": ("DPMSolverMultistepScheduler", lambda: diffusers.DPMSolverMultistepScheduler(**kind)),
        "unipc-3": ("UniPCMultistepScheduler", lambda: diffusers.UniPCMultistepScheduler(**kind, solver_order=3)),
    }


def loop_cases(solver: str, make: Callable[[], object] | None, shape: tuple[int, ...], steps: int) -> dict:
    """The whole loop with a denoiser that returns a ready tensor: ours, and a scheduler's `step`."""
    process, (z, d) = fs.Discrete(), torch.randn(2, *shape).unbind()
    denoiser = lambda x, t: d  # noqa: ARG005, E731
    plan = Plan.of(fs.tabulate(solver, process, steps=steps), denoiser)
    cases = {
        "tabulate": lambda: Plan.of(fs.tabulate(solver, process, steps=steps), denoiser),
        "walk": lambda: walk(plan, z),
    }
    if make is not None:
        scheduler = make()

        def theirs() -> None:
            scheduler.set_timesteps(steps)
            x = z
            for t in scheduler.timesteps:
                x = scheduler.step(d, t, x).prev_sample

        cases |= {"set_timesteps": lambda: scheduler.set_timesteps(steps), "theirs": theirs}
    return cases


def medians(cases: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """Median seconds of each, run alternately."""
    taken: dict[str, list[float]] = {case: [] for case in cases}
    with torch.inference_mode():
        for case in cases.values():  # warm up, compile
            case()
        for _ in range(repeat):
            for case, run in cases.items():
                began = time.perf_counter()
                run()
                taken[case].append(time.perf_counter() - began)
    return {case: statistics.median(values) for case, values in taken.items()}


def main() -> None:
    """Measures, prints ratios, writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=25, help="runs of each case (default: 25)")
    parser.add_argument("--steps", type=int, default=20, help="steps of the whole loop (default: 20)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    record: dict = {"date": str(date.today()), "machine": hardware(), "torch": torch.__version__,
                    "threads": torch.get_num_threads(), "repeat": args.repeat, "rows": {}, "loops": {}}  # fmt: skip
    for shape in SHAPES:
        rows = 100 if shape[-1] < 100 else 10
        found = medians(row_cases(shape, rows), args.repeat)
        found["loop"] -= found.pop("base")
        micro = {case: seconds / rows * 1e6 for case, seconds in found.items()}
        best = min(("chain", "compiled", "mv"), key=micro.__getitem__)
        ratio = {f"loop / {case}": micro["loop"] / micro[case] for case in micro if case != "loop"}
        record["rows"]["x".join(map(str, shape))] = {"us": micro, "best": best, "ratios": ratio}
        print(f"row on {shape}: " + ", ".join(f"{case} {us:.1f} us" for case, us in micro.items()))
        print(
            f"  loop / best fused ({best}): {ratio[f'loop / {best}']:.2f}", *(f"{k} {v:.2f}" for k, v in ratio.items())
        )
    peers = schedulers()
    for solver in ("ddim", "dpmpp-2m", "unipc-3"):
        label, make = peers.get(solver, ("", None))
        found = medians(loop_cases(solver, make, SHAPES[0], args.steps), args.repeat)
        if make is not None:
            found["theirs"] -= found["set_timesteps"]
        per_step = {case: seconds / args.steps * 1e6 for case, seconds in found.items()}
        record["loops"][solver] = {"peer": label, "us_per_step": per_step}
        print(f"{solver} of {args.steps} steps on {SHAPES[0]}, us a step: walk {per_step['walk']:.1f}, before the run "
              f"{per_step['tabulate']:.1f}" + (f"; {label}.step {per_step['theirs']:.1f}, set_timesteps "
              f"{per_step['set_timesteps']:.1f}: walk / step {per_step['walk'] / per_step['theirs']:.2f}"
              if make is not None else ""))  # fmt: skip
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
