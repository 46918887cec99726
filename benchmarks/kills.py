"""Kills sample, train, fit, stats and bench at every point at which a file gets its name, and looks at what is left.

    python benchmarks/kills.py                 # every rename of the five commands, fresh folders and old results: 3 min
    python benchmarks/kills.py --points all    # also every create, flush and delete
    python benchmarks/kills.py --signal TERM   # stopped instead of killed
    python benchmarks/kills.py --most 12       # a thin selection, as in the tests
    python benchmarks/kills.py --moments 20    # five methods of training, each killed at 20 random moments: 2 min

A child of this process, forked once everything is imported, runs a command in a tiny configuration and is killed before
or behind one call of os.replace and its kin. Then every file there must be whole by its reader and every record be that
of the files beside it; the same command, undisturbed, must end with the bytes of a run that was never killed, and leave
no other file. Clocks stand still, so that times are the same bytes too. The exit code is 1 where any of this fails.

`--moments` asks no call: a training is killed wherever it is then, at a border of stages, among half-recorded pairs,
within a save, and once more while it goes on; clocks run, and all tensors of all files must be those of a whole run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fewstep as fs
from fewstep import bench, saved
from fewstep.cli import main
from fewstep.files import load_tensors, read_json, read_record
from fewstep.model import build_network, save_model
from fewstep.stats import Statistics
from fewstep.train.loop import read_header

RENAMES = ("replace", "rename", "link")
OTHERS = ("fsync", "unlink", "open", "mkdir", "rmdir")


@dataclass(frozen=True)
class Case:
    """A command line whose results go to a folder; `old` makes other results there first."""

    name: str
    argv: tuple[str, ...]
    old: tuple[str, ...] | None


@dataclass(frozen=True)
class Point:
    """Where a run is stopped: before or behind its `number`-th call of a kind that counts."""

    number: int
    behind: bool
    signal: int


@dataclass(frozen=True)
class Moment:
    """When a run is killed: so many seconds after it began."""

    seconds: float


class Figure:
    """Stands for a plot, which takes a second and has the date in it."""

    def savefig(self, file: Any, format: str, dpi: int) -> None:
        """Writes what makes the picture."""
        file.write(f"{format} {dpi}".encode())


def prepare(folder: Path) -> list[Case]:
    """A model and data, tiny, and the command lines; OUT in them is the folder of the results."""
    rng, data, model = np.random.default_rng(0), str(folder / "data.npz"), str(folder / "model")
    np.savez(data, x_train=rng.integers(0, 256, (16, 8, 8)).astype(np.uint8), y_train=np.arange(16) % 2)
    torch.manual_seed(0)
    net = build_network({
        "_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1,
        "block_out_channels": [4, 4], "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2,
        "norm_num_groups": 2, "num_class_embeds": 3, "add_attention": False,
    })  # fmt: skip
    save_model(model, net, process=fs.VP(), predicts="v", shape=(1, 8, 8), labels=("a", "b"))
    sample = ("sample", model, "--num", "4", "--batch", "2", "--steps", "2", "--out", "OUT")
    train = ("train", data, "OUT", "--images", "16", "--batch", "8", "--channels", "4,4", "--patch", "1",
             "--hours", "1e6", "--save-every", "1e-9", "--quiet")  # fmt: skip
    fit = ("fit", model, "--steps", "2", "--solver", "ddim", "--grid", "uniform", "--samples", "4", "--held-out", "2",
           "--batch", "2", "--teacher-steps", "3", "--iterations", "2", "--out", "OUT/fit.table")  # fmt: skip
    stats = ("stats", model, "--samples", "4", "--nodes", "3", "--only", "variance", "--batch", "2",
             "--out", "OUT/statistics.safetensors")  # fmt: skip
    compare = ("bench", model, "--solver", "ddim", "--calls", "2", "--images", "8", "--exact", "10", "--features",
               "pixels", "--data", data, "--resamples", "20", "--out", "OUT")  # fmt: skip
    lines = {"sample": (sample, ("--seed", "1")), "train": (train, ("--seed", "1")), "fit": (fit, ("--seed", "1")),
             "stats": (stats, ("--seed", "1")), "bench": (compare, ("--seeds", "1"))}  # fmt: skip
    cases = [Case(name, argv, None) for name, (argv, _) in lines.items()]
    for name, (argv, other) in lines.items():
        anew = ("--anew",) if name == "train" else ()
        cases.append(Case(f"{name} over old results", argv + anew, argv + other))
    return cases


def trainings(folder: Path) -> list[Case]:
    """Methods whose runs have all that a kill can hit, and a teacher for them."""
    points, teacher = str(folder / "points.npz"), str(folder / "teacher")
    np.savez(points, x=np.random.default_rng(0).normal(size=(64, 2)))
    tiny = ("--images", "640", "--batch", "16", "--save-every", "0.004", "--quiet")
    assert main(["train", "denoise", points, teacher, "--process", "cosine", *tiny]) == 0  # imports for all
    taught = ("--teacher", f"{teacher}/model")
    stages = ("--option", "steps=16", "--option", "to=1")  # four, each with the teacher that the last one made
    pairs = ("--option", "pairs=3000", "--option", "calls=3")  # three batches, recorded twice, of its own flow
    lines = {
        "denoise": taught,
        "progressive": (*taught, *stages),
        "consistency": taught,
        "reflow": pairs,
        "dmd": taught,
    }
    return [Case(name, ("train", name, points, "OUT", *more, *tiny), None) for name, more in lines.items()]


def run(
    argv: tuple[str, ...], out: Path, log: Path, kinds: tuple[str, ...] = (), stop: Point | Moment | None = None,
    *, live: bool = False,
) -> int:  # fmt: skip
    """Runs a command line in a forked child; returns its exit code, or minus the signal that killed it.

    The log holds what it wrote, and in its last line how many calls that count it made. Clocks stand unless it is live.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        if isinstance(stop, Moment):
            time.sleep(stop.seconds)
            os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        descriptor = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        calls = [0]
        if not live:
            time.perf_counter = time.monotonic = clock
        for kind in kinds:
            setattr(os, kind, watched(getattr(os, kind), calls, stop))
        code = main([word.replace("OUT", str(out)) for word in argv])
        print(f"\ncalls {calls[0]}", flush=True)
    except BaseException as error:
        print(f"Traceback: {error!r}", flush=True)
        code = 99
    os._exit(code)


def clock() -> float:
    """A clock that stands still."""
    return 1000.0


def watched(call: Any, calls: list[int], stop: Point | None) -> Any:
    """A function of `os` that counts its calls, and at one of them sends this process the signal."""

    def counting(*args: Any, **named: Any) -> Any:
        if call.__name__ == "open" and not (len(args) > 1 and args[1] & os.O_CREAT):
            return call(*args, **named)
        calls[0] += 1
        here = stop if stop is not None and stop.number == calls[0] else None
        if here and not here.behind:
            os.kill(os.getpid(), here.signal)
        result = call(*args, **named)
        if here and here.behind:
            os.kill(os.getpid(), here.signal)
        return result

    return counting


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def faults(folder: Path) -> Iterator[str]:
    """What is not whole, or belongs to another set, among the files that have their names."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        try:
            if path.name == "checkpoint.safetensors":
                assert read_header(path)["sealed"]
                load_tensors(path, sealed=True)
            elif path.name == "statistics.safetensors":
                Statistics.load(path)
            elif path.suffix in (".part", ".starts") or path.parent.name == "bench" or path.name.startswith("teacher"):
                load_tensors(path, sealed=True)
            elif path.suffix == ".safetensors":
                load_tensors(path)
            elif path.suffix == ".table":
                fs.Tableau.load(path)
            elif path.name in ("run.json", "table.json"):
                read_record(path)
            elif path.suffix == ".json":
                read_json(path, "results")
            elif path.suffix == ".npz":
                with np.load(path) as arrays:
                    assert len(arrays["samples"]) == 4
            elif not path.stat().st_size:
                raise ValueError("empty")
            if path.name == "fewstep.json":
                fs.load(path.parent)
        except Exception as error:
            yield f"{path.name}: {error}"


def judge(case: Case, stop: Point, start: Path | None, whole: dict[str, bytes], work: Path, kinds: Any) -> list[str]:
    """Stops a run at a point, looks at what it left, lets the next run end, and says what is wrong."""
    out, log = work / "out", work / "log"
    shutil.rmtree(out, ignore_errors=True)
    if start is not None:
        shutil.copytree(start, out)
    code, wrong = run(case.argv, out, log, kinds, stop), []
    words = log.read_text(errors="replace")
    if stop.signal == signal.SIGKILL:
        wrong += [] if code == -signal.SIGKILL else [f"ended with {code}: {words[-200:]}"]
    else:
        wrong += [] if code == 128 + stop.signal else [f"ended with {code}: {words[-200:]}"]
        wrong += ["a traceback"] if "Traceback" in words else []
        wrong += [f"left {name}" for name in contents(out) if "/." in f"/{name}"]
    wrong += [f"half-written or mixed: {fault}" for fault in faults(out)]
    if (code := run(case.argv, out, log, ())) != 0:
        wrong.append(f"the next run ended with {code}: {log.read_text(errors='replace')[-300:]}")
    ends = contents(out)
    wrong += [f"left over: {name}" for name in ends.keys() - whole.keys()]
    wrong += [f"differs: {name}" for name in whole if ends.get(name) != whole[name]]
    return wrong


def trained(out: Path) -> dict[str, Any]:
    """Every tensor of every file below a folder; of other files that they are there."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_file() and path.suffix == ".safetensors" and "/." not in f"/{name}":
            found |= {f"{name}: {key}": value for key, value in load_tensors(path).items() if key != "said"}
        elif path.is_file():
            found[name] = None
    return found


def moments(number: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Kills every training at so many random moments; yields its name and what is wrong, for each of them."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        out, log = root / "out", root / "log"
        for case in trainings(root):
            began = time.monotonic()
            shutil.rmtree(out, ignore_errors=True)
            assert run(case.argv, out, log, live=True) == 0, log.read_text()
            seconds, whole = time.monotonic() - began, trained(out)
            print(f"{case.name}: {seconds:.2f} s, {len(whole)} tensors and files", flush=True)
            for _ in range(number):
                shutil.rmtree(out, ignore_errors=True)
                wrong, codes = [], []
                while codes.count(-signal.SIGKILL) < 2 and 0 not in codes:
                    moment = Moment(seconds * rng.uniform(0.02, 0.7))
                    codes.append(run(case.argv, out, log, stop=moment, live=True))
                    wrong += [f"half-written: {fault}" for fault in faults(out)]
                codes.append(run(case.argv, out, log, live=True))
                wrong += [f"ended with {code}: {log.read_text()[-300:]}" for code in codes if code not in (0, -9)]
                ends = trained(out)
                wrong += [f"left over: {key}" for key in ends.keys() - whole.keys()]
                wrong += [f"lacks: {key}" for key in whole.keys() - ends.keys()]
                wrong += [f"differs: {key}" for key, value in whole.items()
                          if value is not None and key in ends and not torch.equal(value, ends[key])]  # fmt: skip
                yield case.name, wrong if -signal.SIGKILL in codes else ["never killed"]


def points(count: int, number: int) -> list[Point]:
    """Before and behind each of the calls."""
    return [Point(k, behind, number) for k in range(1, count + 1) for behind in (False, True)]


def every(plans: list[Any], most: int | None) -> list[Any]:
    """At most so many, spread evenly."""
    return plans if most is None or most >= len(plans) else [plans[k * len(plans) // most] for k in range(most)]


def go(args: argparse.Namespace) -> int:
    """All kills; prints a line a command, and the faults."""
    torch.set_num_threads(1)
    saved._EVERY = -1.0
    bench.figures = lambda *_: [("plot", Figure())]
    kinds = RENAMES + (OTHERS if args.points == "all" else ())
    number = signal.SIGTERM if args.signal == "TERM" else signal.SIGKILL
    began, tally, plans = time.monotonic(), Counter[str](), []
    if args.moments:
        for name, wrong in moments(args.moments, args.seed):
            tally.update(["kills", *(fault.partition(":")[0] for fault in wrong)])
            for fault in wrong:
                print(f"{name}: {fault}")
        print(json.dumps({**tally, "seconds": round(time.monotonic() - began)}))
        return int(len(tally) > 1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ["FEWSTEP_CACHE"] = str(root / "cache")
        cases = prepare(root)
        fs.load(root / "model")  # imports what each child would import
        for k, case in enumerate(cases):
            work, start = root / f"{k}", None
            work.mkdir()
            if case.old is not None:
                start = work / "start"
                assert run(case.old, work / "out", work / "log", ()) == 0, (work / "log").read_text()
                shutil.copytree(work / "out", start)
            assert run(case.argv, work / "warm", work / "log", ()) == 0  # what is kept for all runs is written once
            assert run(case.argv, work / "out", work / "log", kinds) == 0, (work / "log").read_text()
            count = int((work / "log").read_text().rpartition("calls")[2])
            whole = contents(work / "out")
            plans += [(case, point, start, whole, work) for point in points(count, number)]
            print(f"{case.name}: {count} calls, {len(whole)} files", flush=True)
        for case, point, start, whole, work in every(plans, args.most):
            wrong = judge(case, point, start, whole, work, kinds)
            tally.update(["kills", *(fault.partition(":")[0] for fault in wrong)])
            for fault in wrong:
                print(f"{case.name}, {'behind' if point.behind else 'before'} call {point.number}: {fault}")
    print(json.dumps({**tally, "seconds": round(time.monotonic() - began)}))
    return int(len(tally) > 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", choices=("renames", "all"), default="renames", help="which calls count")
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL", help="what is sent (default: KILL)")
    parser.add_argument("--most", type=int, help="at most so many kills, spread evenly")
    parser.add_argument("--moments", type=int, help="trainings instead, each killed at so many random moments")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    sys.exit(go(parser.parse_args()))
