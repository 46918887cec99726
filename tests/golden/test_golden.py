"""Every solver here beside what the reference implementations of the field produced.

The numbers and where they come from: README.md beside this file. FEWSTEP_GOLDEN names another folder of such files.
Every entry is compared, listed in NOT_YET with a reason, or compared as a known fault (`golden_tables`).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
import torch
from golden_case import EXACT, Case, NotYet, Unknown, amplified, difference, run
from golden_places import place
from golden_store import OTHER, Entry, store
from golden_tables import FAULTS, NOT_YET, Fault
from torch import Tensor

GOLDEN = store()
if OTHER and "entries" not in GOLDEN.json:
    pytest.skip(f"{OTHER} has no runs of solvers", allow_module_level=True)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _classified() -> tuple[dict[str, list[tuple[Entry, Case]]], Counter[str], dict[str, Entry]]:
    """Cases by family, the count of each label of NOT_YET, and the entries that nobody knows, by their reason."""
    cases: dict[str, list[tuple[Entry, Case]]] = {}
    waiting: Counter[str] = Counter()
    unknown: dict[str, Entry] = {}
    for entry in GOLDEN.entries:
        try:
            case = place(entry)
        except NotYet as reason:
            waiting[str(reason)] += 1
        except Unknown as reason:
            unknown[f"{reason} ({entry.label})"] = entry
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            unknown[f"{type(error).__name__} {error} ({entry.label})"] = entry
        else:
            cases.setdefault(case.family, []).append((entry, case))
    return cases, waiting, unknown


CASES, WAITING, UNKNOWN = _classified()


def test_every_entry_is_in_one_class():
    placed = [case for family in CASES.values() for _, case in family]
    faults = Counter(case.fault for case in placed if case.fault)
    compared = len(placed) - faults.total()
    print(f"\ncompared {compared}, not yet {WAITING.total()}, known faults {faults.total()}, unknown {len(UNKNOWN)}")
    for label, count in WAITING.most_common():
        print(f"  not yet {count:4}  {label}: {NOT_YET.get(label)}")
    for label, count in faults.most_common():
        print(f"  fault   {count:4}  {label}: {FAULTS[label].what}")
    assert set(WAITING) <= set(NOT_YET)
    assert compared + WAITING.total() + faults.total() + len(UNKNOWN) == len(GOLDEN.entries)
    assert not UNKNOWN, "entries that these tests do not know:\n" + "\n".join(list(UNKNOWN)[:20])


def test_only_listed_faults_are_not_finite():
    wrong = [
        entry.label
        for family in CASES.values()
        for entry, case in family
        if entry.finite == (case.fault == "not finite")
    ]
    assert not wrong, "\n".join(wrong[:5])


@pytest.mark.parametrize("family", sorted(CASES))
def test_family(family):
    """Every entry of a family, to 1e-9 of its largest number or by what the table of faults asks."""
    check = Check(finer={_without_quadrature(e): e for e, _ in CASES[family] if e.config.get("quad") == "midpoint"})
    for entry, case in CASES[family]:
        check.entry(entry, case)
    for label, (error, count) in sorted(check.worst.items()):
        print(f"{family}: {error:.1e} in {count} {label}")
    for why in ("rounding", "kinks or weights"):
        found = check.escaped.get(why, [])
        print("\n  ".join([f"{family}: {len(found)} beyond {EXACT:.0e} by {why}", *found]))
    wrong = sorted(check.wrong, key=lambda pair: -pair[0])
    assert not wrong, f"{len(wrong)} of {len(CASES[family])}:\n" + "\n".join(text for _, text in wrong[:5])


@dataclass
class Check:
    """The comparisons of a family: the worst of each kind, what is wrong, and what was held to more than 1e-9.

    `finer` holds the entries with midpoint sums, by their other options.
    """

    finer: dict[str, Entry]
    worst: dict[str, tuple[float, int]] = field(default_factory=dict)
    wrong: list[tuple[float, str]] = field(default_factory=list)
    escaped: dict[str, list[str]] = field(default_factory=dict)

    def entry(self, entry: Entry, case: Case) -> None:
        fault = FAULTS[case.fault] if case.fault else None
        try:
            ours = run(entry, case)
        except ValueError as error:
            self.wrong.append((math.inf, f"{error}: {entry.label}"))
            return
        if ours.shape != entry.final.shape or not bool(ours.isfinite().all()):
            shape = tuple(ours.shape)
            self.wrong.append((math.inf, f"shape {shape} or numbers that are not finite: {entry.label}"))
        elif fault is None or fault.asks == "agrees":
            self._same(entry, case, ours, entry.final, case.fault or "entries")
        elif fault.asks == "sums":
            self._sums(entry, case, ours, fault)

    def _same(self, entry: Entry, case: Case, ours: Tensor, theirs: Tensor, label: str, free: float = 0.0) -> None:
        """To EXACT; else to `free` or 30 times the effect of rounding the start (at most 1e-6), and listed."""
        error = difference(ours, theirs)
        self._note(label, error)
        if error <= EXACT:
            return
        limit, why = free, "kinks or weights"
        if error > free:
            limit, why = min(30 * amplified(entry, case), 1e-6), "rounding"
        text = f"{error:.1e} off, allowed {limit:.1e} by {why} ({label}): {entry.label}"
        if error <= limit:
            self.escaped.setdefault(why, []).append(text)
        else:
            self.wrong.append((error, text))

    def _sums(self, entry: Entry, case: Case, ours: Tensor, fault: Fault) -> None:
        crude = replace(case, solver=case.crude)
        limit = run(entry, replace(case, solver=replace(case.crude, rule="limit", count=64)))
        sums, slack = run(entry, crude), 0.0
        if difference(sums, entry.final) > EXACT:  # what the freedom of the reference does to its sums
            change = {"side": 1} if fault.kinks else {"off": fault.weights}
            moved = [replace(case.crude, **{k: sign * v for k, v in change.items()}) for sign in (1, -1)]
            ends = [run(entry, replace(crude, solver=solver)) for solver in moved]
            slack = difference(*ends) * (1 if fault.kinks else 5)  # the pair is twice `weights` apart
        self._same(entry, crude, sums, entry.final, f"{case.fault}, its own sums", slack)
        away = difference(ours, entry.final)
        if fault.kinks:
            own = difference(ours, limit)
            self._note(f"{case.fault}, ours beside the limit", own)
            if case.crude.rule == "left" and not own < difference(entry.final, limit):
                self.wrong.append((own, f"{own:.1e} from the limit, farther than the entry: {entry.label}"))
        else:
            self._same(entry, case, ours, limit, f"{case.fault}, ours beside the limit")
        self._note(f"{case.fault}, ours beside the entry (not bounded)", away)
        better = self.finer.get(_without_quadrature(entry)) if case.crude.rule == "left" else None
        if better is not None and away > EXACT and not difference(ours, better.final) < away:
            self.wrong.append((away, f"not nearer to the finer quadrature ({away:.1e}): {entry.label}"))

    def _note(self, label: str, error: float) -> None:
        worst, count = self.worst.get(label, (0.0, 0))
        self.worst[label] = (max(worst, error), count + 1)


def _without_quadrature(entry: Entry) -> str:
    """An entry's options but its quadrature; `sampler` order0 is the order 0 of deis."""
    options = {k: v for k, v in entry.config.items() if k not in ("quad", "is_em", "sampler")}
    options["deis_order"] = options.get("deis_order", 0)
    options.pop("denoising", None)
    return json.dumps([options, entry.raw["nfe"], entry.d], sort_keys=True)
