"""Every solver here beside what the reference implementations of the field produced.

The folder is FEWSTEP_GOLDEN (default ../shared/golden beside the repository); without it these tests are skipped.
Every entry is compared, listed in NOT_YET with a reason, or compared as a known fault (`golden_tables`).
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from golden_case import EXACT, Case, NotYet, Unknown, amplified, difference, run
from golden_places import place
from golden_store import Entry, folder, store
from golden_tables import FAULTS, NOT_YET

GOLDEN = store()
if GOLDEN is None:
    pytest.skip(f"no golden numbers in {folder()}: set FEWSTEP_GOLDEN", allow_module_level=True)


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
        if entry.finite == (case.fault is not None and FAULTS[case.fault].tolerance is None)
    ]
    assert not wrong, "\n".join(wrong[:5])


@pytest.mark.parametrize("family", sorted(CASES))
def test_family(family):
    """Every entry of a family, to 1e-9 of its largest number or to what the table of faults says."""
    wrong, worst = [], {}
    finer = {_without_quadrature(e): e for e, _ in CASES[family] if e.config.get("quad") == "midpoint"}
    for entry, case in CASES[family]:
        try:
            ours = run(entry, case)
        except ValueError as error:
            wrong.append((float("inf"), f"{error}: {entry.label}"))
            continue
        fault = FAULTS[case.fault] if case.fault else None
        if ours.shape != entry.final.shape or not bool(ours.isfinite().all()):
            wrong.append((float("inf"), f"shape {tuple(ours.shape)} or numbers that are not finite: {entry.label}"))
            continue
        if fault and fault.tolerance is None:
            continue
        error = difference(ours, entry.final)
        worst[case.fault] = max(worst.get(case.fault, 0.0), error)
        limit = fault.tolerance if fault else EXACT
        if not error <= limit and not (limit == EXACT and error <= min(30 * amplified(entry, case), 1e-6)):
            wrong.append((error, f"{error:.1e} off, allowed {limit:.0e}: {entry.label}"))
        if fault and fault.emulated:
            same = difference(run(entry, replace(case, solver=case.crude)), entry.final)
            label = f"{case.fault}, emulated"
            worst[label] = max(worst.get(label, 0.0), same)
            if not same <= fault.emulated:
                wrong.append((same, f"{same:.1e} off with its own quadrature, allowed {fault.emulated}: {entry.label}"))
        better = finer.get(_without_quadrature(entry)) if fault and fault.nearer else None
        if better is not None and not difference(ours, better.final) < error / 2:
            wrong.append((error, f"not nearer to the finer quadrature ({error:.1e}): {entry.label}"))
    for label, error in worst.items():
        print(f"{family}: {error:.1e} {label or ''}")
    wrong.sort(key=lambda pair: -pair[0])
    assert not wrong, f"{len(wrong)} of {len(CASES[family])}:\n" + "\n".join(text for _, text in wrong[:5])


def _without_quadrature(entry: Entry) -> str:
    """An entry's options but its quadrature; `sampler` order0 is the order 0 of deis."""
    options = {k: v for k, v in entry.config.items() if k not in ("quad", "is_em", "sampler")}
    options["deis_order"] = options.get("deis_order", 0)
    options.pop("denoising", None)
    return json.dumps([options, entry.raw["nfe"], entry.d], sort_keys=True)
