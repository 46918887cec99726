"""Damaged and hostile inputs for every reader of the library, by the thousand, each judged while it runs.

    python benchmarks/mutate --count 30000 --seed 0           # all readers; exit code 1 when a single case is at fault
    python benchmarks/mutate --only table --count 2000        # one reader
    python benchmarks/mutate --only table --case 417          # one case again, its files kept and its error shown

A case is a function of (seed, kind, number): whole inputs of the kind, mutated, are read; what is accepted is used as
a user would. It is well when it is refused with one sentence (ValueError, OSError, ModuleNotFoundError) or when what
was accepted runs. Faults are other errors on reading, any error in use but "not finite" of wrong numbers, more than
5 s, more than 1 GiB, code that was run, files outside the case's folder. Workers are processes: one that dies or hangs
is a fault of the case it was at.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import queue
import random
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from guard import Guard, _trace  # noqa: E402 - the threads first
from kinds import KINDS  # noqa: E402
from mutators import Special, write  # noqa: E402

HANGS = 30.0  # seconds of the clock after which a silent worker is taken to hang
WELL = ("refused", "used")


def case(kind: str, number: int, seed: int, whole: dict[str, Any], folder: Path) -> Any:
    """Writes one case's files; returns what reads and uses them."""
    rng = random.Random(f"{seed}/{kind}/{number}")
    files: dict[str, bytes | Special] = dict(rng.choice(whole[kind]))
    files = KINDS[kind].mutated(rng, files)
    write(files, folder)
    return lambda: KINDS[kind].use(folder)


def worker(jobs: Any, results: Any, seed: int, whole: dict[str, Any], folder: Path) -> None:
    """Runs cases until there are none; every case is told before and after."""
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1), os.dup2(null, 2)
    guard, at = Guard(folder), folder / "case"
    while (job := jobs.get()) is not None:
        kind, number = job
        results.put((os.getpid(), kind, number, None, "", 0.0))
        start = time.monotonic()
        verdict, said = guard.watch(case(kind, number, seed, whole, at))
        shutil.rmtree(at, ignore_errors=True)
        results.put((os.getpid(), kind, number, verdict, said, time.monotonic() - start))
        if verdict == "too large":
            return  # its peak would hide later ones


class Pool:
    """Worker processes that are made again when they die, leave or hang."""

    def __init__(self, count: int, jobs: list[tuple[str, int]], seed: int, whole: dict[str, Any], folder: Path) -> None:
        self.context = multiprocessing.get_context("fork")
        self.jobs, self.results = self.context.Queue(), self.context.Queue()
        for job in jobs:
            self.jobs.put(job)
        for _ in range(count):
            self.jobs.put(None)
        self.args, self.folder, self.made = (seed, whole), folder, 0
        self.at: dict[int, tuple[str, int, float]] = {}
        self.workers = {w.pid: w for w in (self._new() for _ in range(count))}

    def _new(self) -> Any:
        self.made += 1
        folder = self.folder / f"worker-{self.made}"
        folder.mkdir()
        made = self.context.Process(target=worker, args=(self.jobs, self.results, *self.args, folder), daemon=True)
        made.start()
        return made

    def run(self, left: int) -> Any:
        """Yields (kind, number, verdict, what was said, seconds) until `left` cases are done."""
        while left:
            try:
                pid, kind, number, verdict, said, seconds = self.results.get(timeout=1.0)
                if verdict is None:
                    self.at[pid] = (kind, number, time.monotonic())
                else:
                    self.at.pop(pid, None)
                    left -= 1
                    yield kind, number, verdict, said, seconds
                continue
            except queue.Empty:
                pass
            for pid, made in list(self.workers.items()):
                job = self.at.get(pid)
                hung = job is not None and time.monotonic() - job[2] > HANGS
                if made.is_alive() and not hung:
                    continue
                if hung:
                    made.kill()
                made.join()
                del self.workers[pid]
                if job is not None:
                    self.at.pop(pid)
                    left -= 1
                    said = "hung" if hung else f"the worker died with exit code {made.exitcode}"
                    yield job[0], job[1], "hung" if hung else "died", said, HANGS
                if left:
                    made = self._new()
                    self.workers[made.pid] = made


def spread(kinds: list[str], count: int, first: int) -> list[tuple[str, int]]:
    """How many cases of each kind: by its weight, at least one."""
    total = sum(KINDS[k].weight for k in kinds)
    jobs = [(k, first + i) for k in kinds for i in range(max(1, round(count * KINDS[k].weight / total)))]
    random.Random(0).shuffle(jobs)
    return jobs


def again(kind: str, number: int, seed: int, folder: Path) -> int:
    """One case in this process, with its traceback; its files stay."""
    at = folder / "case"
    run = case(kind, number, seed, {kind: KINDS[kind].whole()}, at)
    print(f"its files are in {at}")
    try:
        run()
    except BaseException as error:
        print(_trace(error.__cause__ or error))
        raise
    print("used")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=30_000, help="cases in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--case", type=int, help="one case of the one kind, in this process")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case of each kind")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, help="where the faults are written, a JSON line each")
    args = parser.parse_args()
    if args.case is not None:
        return again(args.only[0], args.case, args.seed, Path(tempfile.mkdtemp(prefix="mutate-")))
    folder = Path(tempfile.mkdtemp(prefix="mutate-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    os.environ["FEWSTEP_CACHE"] = str(folder / "cache")
    start, counts, faults = time.monotonic(), collections.Counter(), []
    slowest: tuple[float, str] = (0.0, "")
    try:
        whole = {kind: KINDS[kind].whole() for kind in args.only}
        jobs = spread(args.only, args.count, args.first)
        pool = Pool(args.workers, jobs, args.seed, whole, folder)
        for done, (kind, number, verdict, said, seconds) in enumerate(pool.run(len(jobs)), 1):
            counts[kind, verdict] += 1
            slowest = max(slowest, (seconds, f"{kind} {number}"))
            if verdict not in WELL:
                faults.append({"kind": kind, "case": number, "seed": args.seed, "verdict": verdict, "said": said})
            if args.out and (verdict not in WELL or done == 1):
                args.out.write_text("".join(json.dumps(fault) + "\n" for fault in faults))
            if done % 1000 == 0:
                print(
                    f"{done} cases, {len(faults)} faults, {done / (time.monotonic() - start):.0f} a second", flush=True
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _report(counts, faults, slowest, time.monotonic() - start)
    return 1 if faults else 0


def _report(counts: Any, faults: list[dict[str, Any]], slowest: tuple[float, str], seconds: float) -> None:
    for kind in dict.fromkeys(k for k, _ in counts):
        print(f"{kind:<12}", ", ".join(f"{n} {verdict}" for (k, verdict), n in sorted(counts.items()) if k == kind))
    classes = collections.defaultdict(list)
    for fault in faults:
        said = fault["said"]
        classes[fault["kind"], fault["verdict"], said.rpartition(" at ")[2] or said[:80]].append(fault)
    for (kind, verdict, _), group in sorted(classes.items(), key=lambda item: -len(item[1]))[:60]:
        print(f"{len(group):>5} {kind} {verdict}: {group[0]['said'][:240]}   [--only {kind} --case {group[0]['case']}]")
    total = sum(counts.values())
    print(
        f"{total} cases in {seconds:.0f} s, {total / seconds:.0f} a second, the slowest {slowest[0]:.2f} s", slowest[1]
    )
    print(f"{len(faults)} faults")


if __name__ == "__main__":
    sys.exit(main())
