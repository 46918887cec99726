"""Judges the default: our solver and grid against other libraries' samplers on theirs, at equal network calls.

    python benchmarks/judge_default.py                                          # the set JUDGE
    python benchmarks/judge_default.py --set choose --problem 'points-*' --calls 4,8
    python benchmarks/judge_default.py --problem fashion-noise@4 fashion-edm@7.5 --models MY/MODELS
    python benchmarks/judge_default.py --rule mine.py:rule              # (denoiser, process, calls, grid) -> table

Each problem of `benchmarks/problems`: all peers are looked at on `--select-images` noises of seed 1, at each number of
calls the `--select` of smallest Frechet distance (on exact problems also those nearest to the exact end states) are
measured on seed 0 with the default, from the same noises: first with 256 samples, and with `--images` where that leaves
a doubt, half its interval being more than half of the difference. Networks are dear: half as many peers are measured,
and above 8 calls only the better half of the peers at 8 is looked at. A line a number of calls:

| column | meaning |
|---|---|
| default, best peer | squared Frechet distance to the data, and of the best peer measured |
| difference | with its paired 95 % interval; better, even (the interval holds 0) or worse |
| rms, best | distance to the exact end states; on exact problems the peer nearest to them, and the verdict |
| / plain | that of the default over that of `GaussianSplit()` as it is by itself |
| range | the farthest entry of a sample from the middle of the data, over half their range |

Then, a line, the default on every named grid against DDIM on that grid; and at the end the totals. A file for each
cell is kept in `--out`: killed at any moment, the same command goes on, and after a change of the default only its own
samples are made again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from problems import CHOOSE, JUDGE, MODELS, Network, Problem, find
from torch import Tensor

import fewstep as fs
from fewstep.bench.cell import Cell, Study
from fewstep.bench.compare import versions
from fewstep.bench.contender import OURS, PEERS, Contender, exact, ours, run_of
from fewstep.bench.features import Real, features_of, real
from fewstep.bench.measure import Meter, Row
from fewstep.bench.peers import peers
from fewstep.bench.run import TWIN, Entry, Made, enter, make, preselect
from fewstep.check.subject import named_object
from fewstep.cli.common import several
from fewstep.files import write_text
from fewstep.quality import Yardstick
from fewstep.terminal import Bar, table

MEASURED, CHOOSES = 0, 1  # seeds
AGREED = 8  # calls above which a network's peers that are worse than half of the others stay so
FEW = 256  # samples after which a clear difference stands
FAR = 2.0  # times DDIM's distance on the same grid
BEYOND = 1.5  # times the range of the data
DEARER = 1.1  # times the distance of the plain solver
OTHERS = ("ddim@*", "gddim-?@*", "gddim-?-pc@*", "deis-tab-3@*", "unipc-3@*")  # where other libraries have none


@dataclass(frozen=True, kw_only=True)
class Case:
    """A problem made ready."""

    problem: Problem | Network
    study: Study
    real: Real
    range: tuple[float, float]

    @property
    def process(self) -> fs.Process:
        return self.study.subject.process


def ready(problem: Problem | Network, args: argparse.Namespace) -> Case:
    """The problem with its features, real samples and exact end states."""
    kept = args.out / "kept"
    subject = problem.subject(within=args.models) if isinstance(problem, Network) else problem.subject(kept=kept)
    features = features_of(None, subject)
    end = exact(subject, 40 if subject.path else 100, "log-snr")  # a grid that no new default moves
    study = Study(subject=subject, features=features, exact=end, kept=kept, batch=128 if subject.path else 256)
    found = real(features, subject, None, kept)
    assert found is not None
    low, high = (-1.0, 1.0) if subject.data is None else (float(v) for v in subject.data.aminmax())
    return Case(problem=problem, study=study, real=found, range=(low, high))


@cache
def libraries(patterns: tuple[str, ...]) -> dict[str, Contender]:
    """Other libraries' samplers on their own grids."""
    return {c.name: c for c in peers(patterns)[0] if c.group == PEERS}


def rivals(case: Case, args: argparse.Namespace) -> dict[str, Contender]:
    """The samplers of other libraries; for processes that they do not know, published solvers of ours."""
    if case.process.kind == "scalar":
        return libraries(tuple(args.peers))
    return {c.name: replace(c, group=PEERS) for c in ours(OTHERS, case.study.subject)}


@cache
def entered(process: fs.Process, calls: int, patterns: tuple[str, ...]) -> list[Entry]:
    """The rivals on a scalar process that run there, of those that make the same samples only the first."""
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=g)  # noqa: E731
    mixture, noise = fs.Mixture(process, draw(5, 4), 0.3), draw(8, 4).float()
    found: list[Entry] = []
    seen: list[Tensor] = []
    for entry in enter(libraries(patterns).values(), process, [calls]):
        try:
            x = entry.run.go(mixture, noise, 0, 0) if entry.run else torch.full((1,), math.nan)
        except Exception:  # a peer raises what it likes
            continue
        if bool(x.isfinite().all()) and not any(float((x - y).abs().max()) < 1e-3 for y in seen):
            found.append(entry)
            seen.append(x)
    return found


def chosen(case: Case, calls: int, args: argparse.Namespace) -> list[str]:
    """The names of the rivals to measure at a number of calls; kept, with who was in the better half."""
    study, network = case.study, isinstance(case.problem, Network)
    keep = max(1, args.select // 2) if network else args.select
    decides = (study.subject.digest, study.features.digest, study.exact.digest, keep, args.select_images, args.peers,
               versions(), TWIN)  # fmt: skip
    path = args.out / "kept" / f"chosen-{hashlib.sha256(repr(decides).encode()).hexdigest()[:16]}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    if str(calls) in known:
        return known[str(calls)]["chosen"]
    study.make(Cell(run=study.exact, seed=CHOOSES), args.select_images)
    if case.process.kind == "scalar":
        entries = entered(case.process, calls, tuple(args.peers))
    else:
        entries = enter(rivals(case, args).values(), case.process, [calls])
    agreed = max((n for n in map(int, known) if AGREED <= n < calls), default=None) if network else None
    if agreed:
        entries = [entry for entry in entries if entry.contender.name in known[str(agreed)]["better"]]
    names, better = [], []
    for yardstick in (Yardstick(case.real.reference), *[None] * case.problem.exact):
        told, ranking = preselect(study, entries, keep, args.select_images, CHOOSES, lambda made: None, yardstick)
        names += [entry.contender.name for entry in told if entry.contender.name not in names]
        ranked = [row["name"] for row in ranking]
        better += ranked if agreed else ranked[: (len(ranked) + 1) // 2]
    known[str(calls)] = {"chosen": names, "better": better}
    write_text(path, json.dumps(known, indent=1))
    return names


def default(case: Case, rule: str | None, grid: str | None = None) -> Contender:
    """The default, or a rule in its place, on its own grid or a named one."""
    subject = case.study.subject
    (contender,) = ours([f"default@{grid}" if grid else "default"], subject)
    if rule:
        made = named_object(rule)
        contender = replace(contender, prepare=lambda process, n: run_of(made(subject.of(0, 1), process, n, grid)))
    return replace(contender, name="default")


def candidates(case: Case, rule: str | None) -> list[Contender]:
    """The default, or a rule in its place, and on exact problems the plain solver."""
    found = [default(case, rule)]
    if isinstance(case.problem, Problem):
        solver = fs.GaussianSplit()
        plain = lambda process, n: run_of(fs.tabulate(solver, process, steps=n))  # noqa: E731
        found.append(Contender(name="plain", group=OURS, prepare=plain))
    return found


def compared(case: Case, entries: Sequence[Entry], count: int) -> list[Row]:
    """Rows of contenders at one number of calls: by Frechet distance, with what is by distance to the exact ends."""
    study, calls = case.study, entries[0].calls
    made: list[Made] = [make(study, entry, count, [MEASURED]) for entry in entries]
    ends = [study.make(Cell(run=study.exact, seed=MEASURED), count)]
    rows = Meter(case.real, count, 1, whole=False).rows(made, ends, calls)[: len(made)]
    if case.problem.exact:
        for row, near in zip(rows, Meter(None, count, 1).rows(made, ends, calls), strict=False):
            row |= {f"rmse_{key}": near[key] for key in ("against", "gap", "gap_interval", "verdict") if key in near}
    return rows


def measured(case: Case, calls: int, names: Sequence[str], args: argparse.Namespace) -> Row:
    """The default at one number of calls."""
    known = rivals(case, args)
    entries = enter([*candidates(case, args.rule), *(known[name] for name in names)], case.process, [calls])
    count = min(FEW, args.images)
    rows = compared(case, entries, count)
    low, high = rows[0].get("gap_interval", (-1.0, 1.0))
    if count < args.images and abs(low + high) < 2 * (high - low):
        limit = min((r["frechet_interval"][1] for r in rows if r["group"] == PEERS and "frechet" in r), default=0.0)
        near = {r["name"] for r in rows if r["group"] == OURS or ("frechet" in r and r["frechet_interval"][0] <= limit)}
        nearest = rows[0].get("rmse_against")
        entries = [e for e in entries if e.contender.name in near or e.contender.name == nearest]
        rows = compared(case, entries, args.images)
    row, others = rows[0], {r["name"]: r for r in rows[1:]}
    if row.get("failed"):
        return {"problem": case.problem.name, **row}
    middle, half = sum(case.range) / 2, (case.range[1] - case.range[0]) / 2
    found = {"problem": case.problem.name, **row, "range": max(row["high"] - middle, middle - row["low"]) / half}
    if row.get("against") in others:
        found["peer_frechet"] = others[row["against"]]["frechet"]
    if "rmse" in others.get("plain", {}) and row["rmse"]:
        found |= {"rmse_ratio": row["rmse"] / others["plain"]["rmse"]}
    if row.get("rmse_against") in others:
        found["peer_rmse"] = others[row["rmse_against"]]["rmse"]
    return found


def on_grids(case: Case, args: argparse.Namespace) -> list[Row]:
    """The default on every named grid at a few numbers of calls, over DDIM there."""
    found, study = [], case.study
    yardstick = Yardstick(case.real.reference)
    for name in fs.GRIDS:
        pair = [default(case, args.rule, name), *ours([f"ddim@{name}"], study.subject)]
        count = args.grid_images // 2 if isinstance(case.problem, Network) else args.grid_images
        for n in args.grid_calls:
            made = [make(study, entry, count, [MEASURED]) for entry in enter(pair, case.process, [n])]
            if made[1].failed:
                continue  # a grid that is not for this process or count
            row: Row = {"problem": case.problem.name, "grid": name, "calls": n, "failed": made[0].failed}
            if made[0].seeds:
                near = [yardstick.frechet(m.seeds[0]["features"]) for m in made]
                row |= {"ratio": near[0] / near[1], "rmse_ratio": made[0].rmse / made[1].rmse}
            found.append(row)
    return found


def text_of(rows: Sequence[Row]) -> str:
    """The table of a problem."""
    lines = []
    for r in rows:
        if r.get("failed"):
            lines.append([str(r["calls"]), f"failed: {r['failed']}"] + [""] * 9)
            continue
        line = [str(r["calls"]), f"{r['frechet']:.3f}"] + [""] * 7
        if "against" in r:
            low, high = r["gap_interval"]
            line[2:5] = f"{r['peer_frechet']:.3f} {r['against']}", f"{low:+.3f} to {high:+.3f}", r["verdict"]
        if "rmse_ratio" in r:
            line[5], line[8] = f"{r['rmse']:.4f}", f"{r['rmse_ratio']:.2f}"
        if "rmse_against" in r:
            line[6:8] = f"{r['peer_rmse']:.4f} {r['rmse_against']}", r["rmse_verdict"]
        lines.append([*line, f"{r['range']:.2f}", str(r["images"])])
    heads = ["calls", "default", "best peer", "difference", "", "rms", "best", "", "/ plain", "range", "samples"]
    return table(heads, lines)


def grids_text(rows: Sequence[Row]) -> str:
    """One line: the worst of the default over DDIM on the named grids."""
    bad = [r for r in rows if r["failed"]]
    good = [r for r in rows if not r["failed"]]
    parts = []
    for key, what in (("rmse_ratio", "rms"), ("ratio", "Frechet")):
        worst = max(good, key=lambda r: r[key], default=None)
        if worst:
            parts.append(f"{what} at most {worst[key]:.2f} times DDIM's ({worst['grid']}, {worst['calls']} calls), "
                         f"{sum(r[key] > FAR for r in good)} of {len(good)} above {FAR:g}")  # fmt: skip
    failed = "".join(f"; FAILED on {r['grid']} at {r['calls']}: {r['failed']}" for r in bad)
    return f"on {len({r['grid'] for r in rows})} named grids: {'; '.join(parts)}{failed}"


def totals(rows: Sequence[Row], grids: Sequence[Row]) -> str:
    """The last lines."""
    count = Counter(r.get("verdict", "none") for r in rows if not r.get("failed"))
    near = Counter(r["rmse_verdict"] for r in rows if "rmse_verdict" in r)
    dear = [r for r in rows if r.get("rmse_ratio", 0) > DEARER and r["calls"] >= 5 and "rmse_against" in r]
    wide = [f"{r['problem']} {r['calls']}: {r['range']:.1f}" for r in rows if r.get("range", 0) > BEYOND]
    say = lambda c: f"{c['better']} better, {c['even']} even, {c['worse']} worse"  # noqa: E731
    worse = [f"{r['problem']} {r['calls']}" for r in rows if r.get("verdict") == "worse"]
    far = sum(r.get("rmse_ratio", 0) > FAR for r in grids)
    fell = [f"{r['problem']} {r['calls']}" for r in [*rows, *grids] if r.get("failed")]
    return "\n".join([
        f"worse at: {', '.join(worse) or 'none'}",
        f"outside {BEYOND:g} times the data's range: {', '.join(wide) or 'none'}",
        f"failed: {', '.join(fell) or 'none'}",
        f"by Frechet distance {say(count)}; by rms on exact problems {say(near)}, {len(dear)} above {DEARER:g} times "
        f"plain at 5 calls and more; on named grids {far} of {len(grids)} above {FAR:g} times DDIM",
    ])  # fmt: skip


def weight(problem: Problem | Network) -> float:
    """How long a problem takes, about."""
    return 1.0 if isinstance(problem, Problem) else 6.0 * (1 if problem.guidance == 1 else 2)


def main() -> None:
    """Judges, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--set", choices=("judge", "choose"), default="judge")
    add("--problem", nargs="+", default=["*"], metavar="GLOB", help="names of the set, or MODEL@SCALE (default: all)")
    add("--calls", type=several(1), default=[3, 4, 5, 6, 8, 10, 15, 20])
    add("--images", type=int, default=1000, help="samples of each cell (default: 1000)")
    add("--select", type=int, default=4, help="peers measured at each number of calls (default: 4)")
    add("--select-images", type=int, default=128, help="samples by which they are chosen (default: 128)")
    add("--peers", nargs="+", default=[], metavar="PATTERN", help="the peers, as 'diffusers/dpm++*' (default: all)")
    add("--grid-calls", type=several(1), default=[3, 5, 10], help="calls on named grids (default: 3,5,10)")
    add("--grid-images", type=int, default=64, help="samples there (default: 64)")
    add("--no-grids", action="store_true", help="leave the named grids out")
    add("--short", action="store_true", help="4, 6 and 10 calls, 256 samples, exact problems, no named grids")
    text = "(denoiser, process, calls, name of a grid or None) -> table, in place of the default"
    add("--rule", metavar="FILE.py:FUNCTION", help=text)
    add("--models", type=Path, default=MODELS, help="folder of the networks (default: models)")
    add("--out", type=Path, default=Path("out/judge"), help="what is kept (default: out/judge)")
    add("--csv", type=Path, help="file of the rows")
    args = parser.parse_args()
    try:
        wanted = find(args.problem, {"judge": JUDGE, "choose": CHOOSE}[args.set])
    except ValueError as error:
        parser.error(str(error))
    if args.short:
        args.calls, args.images, args.no_grids = [4, 6, 10], 256, True
        wanted = [problem for problem in wanted if isinstance(problem, Problem)] or wanted
    torch.set_num_threads(1)
    rows: list[Row] = []
    grids: list[Row] = []
    with suppress(KeyboardInterrupt):
        judge(wanted, args, rows, grids)
    print(totals(rows, grids))
    if args.csv:
        write(args.csv, [*rows, *grids])


def judge(wanted: Sequence[Problem | Network], args: argparse.Namespace, rows: list[Row], grids: list[Row]) -> None:
    """Each problem in turn; what is found is printed and joins the rows."""
    began, whole, done = time.perf_counter(), sum(map(weight, wanted)), 0.0
    for problem in wanted:
        if isinstance(problem, Network) and problem.model != "shipped" and not (args.models / problem.model).is_dir():
            print(f"{problem.name} is left out: there is no {args.models / problem.model}\n", flush=True)
            continue
        case = ready(problem, args)
        subject = case.study.subject
        print(f"{problem.name}: {type(case.process).__name__}, predicts {getattr(subject.of(0, 1), 'predicts', 'data')}"
              f"{_told(problem)}, data from {case.range[0]:.2f} to {case.range[1]:.2f}", flush=True)  # fmt: skip
        here = [] if args.calls[0] <= 2 else [measured(case, 2, [], args)]
        with Bar(3 * sum(args.calls), problem.name) as bar:
            for n in args.calls:
                names = chosen(case, n, args)
                bar.advance(n)
                here.append(measured(case, n, names, args))
                bar.advance(2 * n)
        print(text_of(here), flush=True)
        rows += here
        if not args.no_grids:
            grids += (there := on_grids(case, args))
            print(grids_text(there), flush=True)
        done += weight(problem)
        passed = time.perf_counter() - began
        print(f"{passed:.0f} s, about {passed / done * (whole - done) / 60:.0f} min left\n", flush=True)


def _told(problem: Problem | Network) -> str:
    if isinstance(problem, Network) or problem.exact:
        return f", guided by {problem.guidance:g}" if problem.guidance != 1 else ""
    return f" with an error {problem.error} of {problem.size:g}" + _told(replace(problem, size=0.0))


def write(path: Path, rows: Sequence[Row]) -> None:
    """The rows as CSV."""
    keys = ["problem", "grid", "calls", "network_calls", "images", "failed", "frechet", "against", "peer_frechet",
            "gap", "gap_low", "gap_high", "verdict", "rmse", "rmse_against", "peer_rmse", "rmse_gap", "rmse_gap_low",
            "rmse_gap_high", "rmse_verdict", "rmse_ratio", "ratio", "low", "high", "range"]  # fmt: skip
    flat: list[dict[str, Any]] = []
    for row in rows:
        ends = {f"{key.removesuffix('_interval')}_{side}": value[k] for key, value in row.items()
                if key.endswith("_interval") for k, side in enumerate(("low", "high"))}  # fmt: skip
        flat.append({key: value for key, value in (row | ends).items() if key in keys})
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, keys, lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)


if __name__ == "__main__":
    main()
