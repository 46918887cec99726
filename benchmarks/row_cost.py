"""What one row costs: the loop's update beside one fused linear combination, and the whole loop beside diffusers.

    python benchmarks/row_cost.py --out benchmarks/results/row_cost_HARDWARE_DATE.json

A row is z_k = a z_{k-1} + b y_0 + c y_1 with both outputs already in the history, float32, batch 1, one thread. Its
cost is the slope of `fewstep.loop.walk` over a table with many such rows, so the loop's own Python is in it. Beside it
in the same run, alternately, each case once to warm its memory and once timed: the bare chain `mul(out=)`,
`add_(alpha=)`, `add_(alpha=)`; the compiled expression; `blocks`, the chain over one block of the state after the
other; `mv` over a history whose tensors lie side by side; and two that write over the state, `addmv` and the compiled
one. The fused combination is the best of compiled and mv, which make a new tensor; the best of all is printed too.

The loops are run with a denoiser that returns a ready tensor, so that a step is the solver's own work: a noise
prediction for diffusers' `step` and for a table in terms of noise, and for a table in terms of x0 a data prediction,
which no side converts. Printed are medians, and the least in brackets, of this thread's processor time: on a shared
machine the wall clock counts the others too.

Prediction before the first run (2026-11-20). Small state, (4, 64, 64): three kernels take 8 us, the bookkeeping of a
row 3 to 5 us more, `mv` 6 us: ratio about 2. Large state, (3, 1024, 1024): 12 MB a tensor, bound by memory; the chain
moves 8 tensors and a fused row 4, but the written one stays partly in the cache: ratio about 1.5. Loop with a ready
denoiser: under 20 us a row on the small state; diffusers 100 to 300 us a step, since it computes its coefficients
between the calls. Seen: small 10 us, 2.2 of `mv`, 1.6 of `mv` with a copy of the output, 1.4 of the chain; large 1.5
of the compiled one; the walk 12 to 36 us a row, diffusers 66 to 830.

Prediction before rows were written over the state they are the last to read (2026-11-21): small, with the outputs side
by side, 3.3 us of `addmv_` and 1.5 us of Python, ratio 1.2 of `mv`; large, in place and block by block, three tensors
are read and one written where the compiled expression also fetches what it overwrites: ratio 0.9. A step of the walk
8 us for DDIM and 11 us for 2M, a sixth of diffusers'.

Seen on 2026-11-21 (results/row_cost_xeon_2026-11-21.json, two cores, nothing else running): small 5.1 us, 1.21 of
`mv`, 1.6 of `addmv_`. Large 1.09 of the compiled one, 1.44 of the compiled one that writes over the state. The walk
takes 8 us a step for DDIM, 12 to 15 for 2M, 13 to 18 for 3M and 23 to 39 for UniPC-3, a seventh to a seventeenth of
diffusers'. Writing the table takes 0.2 to 0.9 ms a step, once.
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
from fewstep.pace import hardware
from fewstep.tableau import Form, Row, Tableau

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
    long, short = (Plan.of(table(n), denoiser, like=z) for n in (rows + 2, 2))
    buffers = [torch.empty_like(z), torch.empty_like(z)]
    history = torch.stack([z, y0, y1, torch.empty_like(z)]).flatten(1)  # states take turns in slots 0 and 3
    turns = ((history[:3].T, torch.tensor([A, B, C]), history[3]), (history[1:].T, torch.tensor([B, C, A]), history[0]))
    pair, weights, state = history[1:3].T, torch.tensor([B, C]), history[0]
    parts = [x.view(-1).split(BLOCK) for x in (z, y0, y1, *buffers)]

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
    over = torch.compile(lambda x, p, q: x.copy_(A * x + B * p + C * q), fullgraph=True, dynamic=False)

    def compiled() -> None:
        x = z
        for k in range(rows):
            x = fused(x, y0, y1, buffers[k % 2])

    def compiled_over() -> None:
        for _ in range(rows):
            over(buffers[0], y0, y1)

    def mv() -> None:
        for k in range(rows):
            read, vector, out = turns[k % 2]
            torch.mv(read, vector, out=out)

    def addmv() -> None:
        for _ in range(rows):
            state.addmv_(pair, weights, beta=A)

    return {
        "loop": lambda: walk(long, z),
        "base": lambda: walk(short, z),
        "chain": chain,
        "blocks": blocks,
        "compiled": compiled,
        "mv": mv,
        "compiled, over": compiled_over,
        "addmv, over": addmv,
    }


def schedulers(kind: str) -> dict[str, tuple[str, Callable[[], object]]]:
    """Our name -> (diffusers' name, its scheduler), on the same 1000 alphas and predicting noise or x0."""
    try:
        import diffusers
    except ModuleNotFoundError:
        return {}
    predicts = {"prediction_type": {"noise": "epsilon", "x0": "sample"}[kind]}
    multistep = lambda order: lambda: diffusers.DPMSolverMultistepScheduler(**predicts, solver_order=order)  # noqa: E731
    return {
        "ddim": ("DDIMScheduler", lambda: diffusers.DDIMScheduler(**predicts, clip_sample=False)),
        "dpmpp-2m": ("DPMSolverMultistepScheduler, order 2", multistep(2)),
        "dpmpp-3m": ("DPMSolverMultistepScheduler, order 3", multistep(3)),
        "unipc-3": ("UniPCMultistepScheduler", lambda: diffusers.UniPCMultistepScheduler(**predicts, solver_order=3)),
    }


class Ready:
    """A denoiser that returns one tensor, in terms of whatever the table reads."""

    def __init__(self, output: torch.Tensor) -> None:
        self.output = output

    def at(self, t: float, output: str) -> Callable[[torch.Tensor], torch.Tensor]:  # noqa: ARG002
        """The tensor, at any time."""
        return lambda z: self.output  # noqa: ARG005


def loop_cases(solver: str, kind: str, make: Callable[[], object] | None, steps: int) -> dict:
    """The whole loop with a denoiser that returns a ready tensor: ours, and a scheduler's `step`."""
    process, (z, d) = fs.Discrete(), torch.randn(2, *SHAPES[0]).unbind()

    def ready() -> Plan:
        made = fs.tabulate(solver, process, steps=steps)
        return Plan.of(made if kind == "x0" else made.in_terms_of(kind), Ready(d), like=z)

    plan = ready()
    cases = {"tabulate": ready, "walk": lambda: walk(plan, z)}
    if make is not None:
        scheduler = make()

        def theirs() -> None:
            scheduler.set_timesteps(steps)
            x = z
            for t in scheduler.timesteps:
                x = scheduler.step(d, t, x).prev_sample

        cases |= {"set_timesteps": lambda: scheduler.set_timesteps(steps), "theirs": theirs}
    return cases


def measure(cases: dict[str, Callable[[], object]], repeat: int) -> dict[str, tuple[float, float]]:
    """Median and least seconds of each, run alternately: once to warm its memory, once timed."""
    taken: dict[str, list[float]] = {case: [] for case in cases}
    with torch.inference_mode():
        for case in cases.values():  # compile
            case()
        for _ in range(repeat):
            for case, run in cases.items():
                run()
                began = time.thread_time()
                run()
                taken[case].append(time.thread_time() - began)
    return {case: (statistics.median(values), min(values)) for case, values in taken.items()}


def less(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """The difference of two measurements."""
    return one[0] - other[0], one[1] - other[1]


def main() -> None:
    """Measures, prints ratios, writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=41, help="timed runs of each case (default: 41)")
    parser.add_argument("--steps", type=int, default=20, help="steps of the whole loop (default: 20)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    record: dict = {"date": str(date.today()), "machine": hardware(), "torch": torch.__version__,
                    "threads": torch.get_num_threads(), "repeat": args.repeat, "rows": {}, "loops": {}}  # fmt: skip
    for shape in SHAPES:
        rows = 100 if shape[-1] < 100 else 20
        found = measure(row_cases(shape, rows), args.repeat)
        found["loop"] = less(found["loop"], found.pop("base"))
        us = {case: tuple(seconds / rows * 1e6 for seconds in both) for case, both in found.items()}
        ours = us["loop"]
        ratio = {case: (ours[0] / both[0], ours[1] / both[1]) for case, both in us.items() if case != "loop"}
        record["rows"]["x".join(map(str, shape))] = {"us, median and least": us, "loop / case": ratio}
        print(f"a row on {shape}, us:", *(f"{case} {both[0]:.1f} ({both[1]:.1f});" for case, both in us.items()))
        for label, among in (("fused", ("compiled", "mv")), ("any", tuple(ratio))):
            most = [max(ratio[case][i] for case in among) for i in (0, 1)]
            print(f"  loop / best of {label}: {most[0]:.2f} ({most[1]:.2f})")
    for kind in ("noise", "x0"):
        peers = schedulers(kind)
        for solver in ("ddim", "dpmpp-2m", "dpmpp-3m", "unipc-3"):
            label, make = peers.get(solver, ("", None))
            found = measure(loop_cases(solver, kind, make, args.steps), args.repeat)
            if make is not None:
                found["step"] = less(found.pop("theirs"), found["set_timesteps"])
            us = {case: tuple(seconds / args.steps * 1e6 for seconds in both) for case, both in found.items()}
            record["loops"][f"{solver}, {kind}"] = {"peer": label, "us a step, median and least": us}
            print(
                f"{solver}, {kind}, us a step:",
                *(f"{case} {both[0]:.1f} ({both[1]:.1f});" for case, both in us.items()),
            )
            if make is not None:
                print(
                    f"  {label}: step / walk {us['step'][0] / us['walk'][0]:.1f} ({us['step'][1] / us['walk'][1]:.1f})"
                )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
