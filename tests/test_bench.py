"""The bench: resuming, failures, selection, numbers."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import pytest
import torch

import fewstep as fs
from bench_toy import D, fake, mixture, study, the
from fewstep import bench
from fewstep.bench.cell import Cell
from fewstep.bench.contender import OURS, PEERS, Contender
from fewstep.bench.measure import Meter
from fewstep.bench.run import enter, make, preselect
from fewstep.files import load_tensors, save_tensors
from fewstep.noise import noise_source
from fewstep.quality import Yardstick, frechet_distance, interval, resamples


def test_a_killed_bench_goes_on_and_ends_the_same(tmp_path):
    calls = []

    def tick(n: int) -> None:
        calls.append(n)
        if len(calls) == 200:
            raise KeyboardInterrupt

    cells = [Cell(run=the(name, 5), seed=0) for name in ("default", "ddim")]
    killed, whole = study(tmp_path / "a", tick=tick), study(tmp_path / "b")
    ends = Cell(run=killed.exact, seed=0)
    with pytest.raises(KeyboardInterrupt):
        [killed.make(cell, 300) for cell in (ends, *cells)]
    done = [p for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert done == [p for p in done if p.suffix == ".safetensors"]
    assert killed.work([ends], 300) < whole.work([ends], 300)
    for cell in (ends, *cells):
        a, b = killed.make(cell, 300), whole.make(cell, 300)
        assert all(torch.equal(a[key], b[key]) for key in a if key not in ("seconds", "pace"))
    before, damaged = len(calls), min((tmp_path / "a").rglob("*.safetensors"))
    whole_bytes = damaged.read_bytes()
    damaged.write_bytes(whole_bytes[:-10])
    for cell in (ends, *cells):
        killed.make(cell, 300)
    assert len(damaged.read_bytes()) == len(whole_bytes)
    assert len(calls) > before
    before = len(calls)
    for cell in cells:
        killed.make(cell, 300)
    assert len(calls) == before
    assert killed.work([*cells, ends], 300) == 0


def test_more_samples_use_what_is_there(tmp_path):
    s = study(tmp_path)
    cell = Cell(run=the("ddim", 5), seed=0)
    few = s.make(cell, 256)
    assert s.work([cell], 400) == 144 * 5
    many = s.make(cell, 400)
    assert torch.equal(many["error"][:256], few["error"])
    assert len(many["features"]) == 400
    assert s.work([replace(cell, seed=1)], 256) == 256 * 5
    assert s.work([replace(cell, seen=False)], 256) == 0
    assert replace(s, features=replace(s.features, digest="others")).work([cell], 256) == 256 * 5
    s.make(Cell(run=cell.run, seed=2, seen=False), 10)
    assert s.work([replace(cell, seed=2)], 10) == 10 * 5


def test_samples_do_not_depend_on_the_part_they_are_made_in(tmp_path):
    s = study(tmp_path, batch=7)
    run = the("ddim", 5)
    noise = noise_source(None, 0, 0).initial((270, D), torch.float32, "cpu")
    x = run.go(mixture(fs.VP()), noise, 0, 0)
    made = s.make(Cell(run=run, seed=0), 270)
    assert torch.allclose(made["features"], x.float(), atol=1e-6)
    ends = s.make(Cell(run=s.exact, seed=0), 270)
    assert torch.allclose(made["error"], (x - ends[run.end]).double().square().mean(1), atol=1e-6)


def odd(name: str, group: str = OURS, *, shift: float = 0.0) -> Contender:
    """Ours at 8 calls, moved; NaN where shift is."""
    run = the("default", 8)

    def go(denoiser, noise, seed, first):
        return run.go(denoiser, noise, seed, first) + shift

    return Contender(name=name, group=group, prepare=lambda process, calls: replace(run, digest=name, go=go))


def test_a_contender_that_fails_is_shown_and_stops_nothing(tmp_path, capsys):
    def broken(process, calls):
        raise RuntimeError("no step\nleft")

    contenders = [odd("nan", shift=float("nan")), Contender(name="broken", group=PEERS, prepare=broken), odd("good")]
    made = [make(study(tmp_path), entry, 20, [0]) for entry in enter(contenders, fs.VP(), [8])]
    assert [m.failed for m in made] == ["20 of 20 samples hold NaN or infinity", "RuntimeError: no step left", ""]
    s = study(tmp_path)
    rows = Meter(None, 20, 1).rows(made, [s.make(Cell(run=s.exact, seed=0), 20)], 60)
    text = bench.table_text(rows)
    assert "broken failed at 8 calls: RuntimeError: no step left" in text
    assert text.splitlines()[2].startswith("good")
    assert list(csv.DictReader(bench.csv_text(rows).splitlines()))[0]["failed"]


def test_the_nearest_are_chosen_in_each_group_and_the_same_samples_only_once(tmp_path):
    contenders = [odd("far", shift=0.3), odd("near", shift=0.1), odd("nearer", shift=0.05), odd("twin", shift=0.0501),
                  odd("nan", shift=float("nan")), odd("theirs", PEERS, shift=0.5)]  # fmt: skip
    seen = []
    entries = enter(contenders, fs.VP(), [8])
    chosen, ranking = preselect(study(tmp_path), entries, 2, 64, 0, lambda made: seen.append(made))
    assert [entry.contender.name for entry in chosen] == ["nearer", "near", "theirs"]
    assert [row["name"] for row in ranking] == ["nearer", "twin", "near", "far", "nan", "theirs"]
    assert [row["chosen"] for row in ranking] == [True, False, True, False, False, True]
    assert [row["images"] for row in ranking] == [64, 64, 64, 8, 8, 64]
    assert len(seen) == 10


def test_the_nearest_by_frechet_distance_need_not_be_near_the_exact_ends(tmp_path):
    run, s = the("default", 8), study(tmp_path)

    def turned(denoiser, noise, seed, first):  # other samples' ends: the right law, and far from its own
        return run.go(denoiser, noise, seed, first).flip(0)

    other = Contender(name="turned", group=OURS, prepare=lambda process, n: replace(run, digest="turned", go=turned))
    contenders = [other, odd("shifted", shift=0.3), odd("near", shift=0.1), odd("lost", shift=1e31),
                  odd("nan", shift=float("nan"))]  # fmt: skip
    yardstick = Yardstick(mixture(fs.VP()).sample(4000, torch.Generator().manual_seed(0)))
    entries = enter(contenders, fs.VP(), [8])
    chosen, ranking = preselect(s, entries, 1, 128, 3, lambda made: None, yardstick)
    assert [entry.contender.name for entry in chosen] == ["turned"]
    assert [row["name"] for row in ranking] == ["turned", "near", "shifted", "lost", "nan"]
    assert [row["images"] for row in ranking] == [128, 128, 128, 128, 16]
    assert ranking[0]["frechet"] < ranking[1]["frechet"] < ranking[2]["frechet"] < ranking[3]["frechet"] == math.inf
    chosen, _ = preselect(s, entries, 1, 128, 3, lambda made: None)
    assert [entry.contender.name for entry in chosen] == ["near"]
    beside = enter([odd("near", shift=0.1), odd("beside", shift=0.11), odd("twin", shift=0.1001)], fs.VP(), [8])
    for yard, names in ((yardstick, ["near", "beside"]), (None, ["near"])):
        chosen, _ = preselect(s, beside, 3, 128, 3, lambda made: None, yard)
        assert [entry.contender.name for entry in chosen] == names


def test_a_group_in_which_all_fail_stops_nothing(tmp_path):
    entries = enter([odd("nan", shift=float("nan")), odd("theirs", PEERS, shift=0.5)], fs.VP(), [8])
    chosen, ranking = preselect(study(tmp_path), entries, 1, 64, 0, lambda made: None)
    assert [entry.contender.name for entry in chosen] == ["theirs"]
    assert [bool(row["failed"]) for row in ranking] == [True, False]


def test_a_yardstick_is_the_frechet_distance_and_counts_are_repetitions():
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(200, 3, generator=g), 1.3 * torch.randn(90, 3, generator=g) + 0.2
    yard, counts = Yardstick(x), resamples(90, 3, seed=2)
    assert yard.frechet(y) == pytest.approx(frechet_distance(x, y), rel=1e-9)
    assert counts.sum(1).tolist() == [90, 90, 90]
    again = y.repeat_interleave(counts[0], 0)
    assert yard.frechet(y, counts[0]) == pytest.approx(frechet_distance(x, again), rel=1e-9)
    many = resamples(90, 300, seed=3)
    exact, first_order = yard.resampled(y, many), many.double() @ yard.influence(y) / 90
    assert torch.corrcoef(torch.stack([exact, first_order]))[0, 1] > 0.95
    assert float(first_order.std() / exact.std()) == pytest.approx(1, abs=0.2)
    more = torch.eye(90, dtype=torch.int64)[7] + 100  # one more copy of sample 7 among 100 of each
    change = (yard.frechet(y, more) - yard.frechet(y, torch.full((90,), 100))) * 90 * 100
    assert change == pytest.approx(float(yard.influence(y)[7]), rel=0.05)
    assert interval(1.0, torch.linspace(1, 2, 1001)) == pytest.approx((2 - 1.975, 2 - 1.025))


def test_the_smallest_and_the_largest_entry_are_told_and_older_parts_made_again(tmp_path):
    s, cell = study(tmp_path), Cell(run=the("ddim", 5), seed=0)
    made = s.make(cell, 20)
    assert torch.equal(made["span"], torch.stack([made["features"].amin(1), made["features"].amax(1)], 1))
    row = Meter(None, 20, 1)._quality([made])
    assert (row["low"], row["high"]) == (float(made["features"].min()), float(made["features"].max()))
    (path,) = s._folder(cell).glob("*")
    save_tensors(path, {k: v for k, v in load_tensors(path, sealed=True).items() if k != "span"}, sealed=True)
    assert torch.equal(s.make(cell, 20)["span"], made["span"])


def test_parts_of_other_noise_are_not_taken_up(tmp_path, monkeypatch):
    s, cell = study(tmp_path), Cell(run=the("ddim", 5), seed=0)
    mine = s._folder(cell)
    monkeypatch.setattr("fewstep.bench.cell.STREAM", 1)
    assert s._folder(cell) != mine


def test_paired_differences_tell_better_worse_and_even():
    from fewstep.bench.features import Real

    g = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randn(n, D, generator=g)  # noqa: E731
    noise = [draw(500) for _ in range(3)]
    made = [fake("peer", PEERS, [1.10 * x for x in noise]), fake("good", OURS, [1.08 * x for x in noise]),
            fake("bad", OURS, [1.12 * x for x in noise]), fake("twin", OURS, [1.10 * x for x in noise]),
            fake("worst", PEERS, [2.0 * x for x in noise])]  # fmt: skip
    ends = fake("exact", "exact", noise).seeds
    meter = Meter(Real(source="draws", reference=draw(5000), other=draw(500)), 500, 3)
    rows = {row["name"]: row for row in meter.rows(made, ends, 60)}
    assert {name: rows[name].get("verdict") for name in ("good", "bad", "twin", "worst", "peer")} == {
        "good": "better", "bad": "worse", "twin": "even", "worst": "worse", "peer": None}  # fmt: skip
    assert rows["twin"]["gap_interval"] == pytest.approx((0, 0))
    assert rows["good"]["against"] == "peer"
    low, high = rows["good"]["ratio_interval"]
    assert low < rows["good"]["ratio"] < high
    assert low > 1
    each = torch.tensor([frechet_distance(meter.real.reference, x) for x in noise], dtype=torch.float64)
    assert rows["exact end states"]["frechet"] == pytest.approx(float(each.mean()))
    half = 4.303 * float(each.std()) / 3**0.5
    assert rows["exact end states"]["frechet_interval"] == pytest.approx(
        (float(each.mean()) - half, float(each.mean()) + half)
    )
    assert rows["real samples (floor)"]["frechet"] < rows["peer"]["frechet"]


def test_without_real_samples_the_distance_to_the_exact_end_decides(tmp_path):
    near, far = (fake(name, group, [torch.zeros(30, D)], e) for name, group, e in (("a", OURS, 0.04), ("b", PEERS, 1)))
    rows = Meter(None, 30, 1).rows([near, far], near.seeds, 60)
    assert rows[0]["rmse"] == pytest.approx(0.2)
    assert rows[0]["gap"] == pytest.approx(-0.8)
    assert rows[0]["verdict"] == "better"
    assert "Frechet" not in bench.table_text(rows)
