"""Fitting: the freedom around a solver, the descent through the loop, what is kept on disk, what is refused."""

from __future__ import annotations

import json
import math
import struct
import warnings
from dataclasses import replace

import pytest
import torch

import fewstep as fs
from fewstep import saved
from fewstep.check.exactness import check_point_mass
from fewstep.denoiser.base import fingerprint
from fewstep.fitting import descent, objective
from fewstep.fitting.freedom import Freedom
from fewstep.fitting.starts import _grids
from fewstep.fitting.teacher import FIRST, Task, record
from fewstep.loop.plan import Plan
from fewstep.loop.walk import walk
from fewstep.saved import Saved

VP = fs.VP()
PROCESSES = {
    "vp": (VP, (3,)),
    "edm": (fs.EDM(), (3,)),
    "flow": (fs.Flow(), (3,)),
    "cld": (fs.CLD(), (3,)),
    "blurring": (fs.Blurring(size=(4, 4)), (4, 4)),
}


def mixture(process=VP, shape=(2,), parts=6, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return fs.Mixture(process, 2 * torch.randn(parts, *shape, generator=generator), 0.3)


def freedom(process=VP, solver="multistep-3", mode="free", steps=4):
    table = fs.tabulate(solver, process, steps=steps)
    return Freedom(solver=table.solver, process=process, grid=table.grid, mode=mode)


def near(f, size=0.02, seed=0):
    """A vector near the origin."""
    generator = torch.Generator().manual_seed(seed)
    return f.origin + size * torch.randn(len(f.origin), generator=generator, dtype=torch.float64)


def fit(**options):
    """A fit of a second on a mixture."""
    settings = {
        "steps": 4, "shape": (2,), "solver": "dpmpp-2m", "grid": "logistic", "samples": 96, "held_out": 64,
        "teacher_steps": 40, "dtype": torch.float64, "progress": False, "descent": fs.Descent(iterations=30),
    }  # fmt: skip
    return fs.fit(mixture(), VP, **{**settings, **options})


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("mode", ["exact", "free"])
def test_the_origin_is_the_published_solver_and_exact_means_exact(name, mode):
    process, shape = PROCESSES[name]
    f = freedom(process, mode=mode)
    x = process.prior(torch.randn(5, *process.state_shape(shape), dtype=torch.float64), process.t_max)
    d = mixture(process, shape)
    published = fs.sample(d, process, solver=f.solver, grid=f.grid, x=x)
    torch.testing.assert_close(fs.sample(d, process, solver=f.fitted(f.origin), x=x), published, rtol=1e-9, atol=1e-9)

    moved = f.fitted(near(f))
    assert not torch.allclose(fs.sample(d, process, solver=moved, x=x), published, atol=1e-3)
    assert moved.solver.point_mass == (f.solver.point_mass if mode == "exact" else ())
    if mode == "exact":
        check_point_mass(moved, tolerance=1e-9)
    else:
        with pytest.raises(ValueError, match="point mass"):
            check_point_mass(moved)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_gradient_through_the_loop_is_the_tables(name):
    """Along a direction in all free numbers at once: grid, weights, start, times."""
    process, shape = PROCESSES[name]
    f, d = freedom(process, solver="multistep-2", steps=3), mixture(process, shape)
    x = process.prior(torch.randn(4, *process.state_shape(shape), dtype=torch.float64), process.t_max)
    v, pull = near(f).requires_grad_(), torch.randn(x.shape, dtype=torch.float64)
    end = walk(Plan.of(f.table(v), lambda z, t: d(z, t.expand(len(z))), like=x, reuse=False), x)
    torch.testing.assert_close(end, fs.sample(d, process, solver=f.fitted(v), x=x), rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad((end * pull).sum(), v)
    for part, size in zip(("psi", "theta", "phi", "delta"), f.sizes, strict=True):
        along = torch.zeros_like(f.origin)
        first = {"psi": 0, "theta": f.sizes[0], "phi": sum(f.sizes[:2]), "delta": sum(f.sizes[:3])}[part]
        along[first : first + size] = torch.randn(size, dtype=torch.float64)
        ends = [fs.sample(d, process, solver=f.fitted(v + h * along), x=x) for h in (1e-5, -1e-5)]
        slope = float(((ends[0] - ends[1]) * pull).sum()) / 2e-5
        assert float(gradient @ along) == pytest.approx(slope, rel=1e-4, abs=1e-4), part


def test_evaluation_times_stay_between_the_ends_and_grids_fall():
    f = freedom(fs.Flow())
    for size in (1.0, 30.0):
        table = f.fitted(near(f, size))
        times = [row.at for row in table.rows if row.at is not None]
        assert all(0.0 <= t <= 1.0 for t in times)
        assert bool((table.grid.diff() < 0).all())
        assert table.grid[[0, -1]].tolist() == f.grid[[0, -1]].tolist()


@pytest.mark.parametrize("mode", ["exact", "free"])
def test_the_held_out_error_falls(mode):
    table = fit(mode=mode, descent=fs.Descent(iterations=70))
    rmse = table.card["rmse"]
    assert rmse["fitted"] < 0.5 * rmse["start"]
    x = VP.prior(fs.Noise(0, FIRST + 96).normal("initial", 0, (64, 2), dtype=torch.float64), VP.t_max)
    ideal, got = (fs.sample(mixture(), VP, solver=s, x=x, **n)
                  for s, n in (("multistep-3", {"steps": 40}), (table, {})))  # fmt: skip
    assert math.sqrt(float((ideal - got).square().mean())) == pytest.approx(rmse["fitted"], rel=1e-6)
    if mode == "exact":
        check_point_mass(table, tolerance=1e-9)


def test_in_64_dimensions_with_a_start_of_its_own_choice():
    table = fs.fit(mixture(shape=(64,)), VP, steps=5, shape=(64,), grid="logistic", samples=128, held_out=64, seed=1,
                   teacher_steps=30, progress=False, descent=fs.Descent(iterations=25))  # fmt: skip
    assert table.card["rmse"]["fitted"] < 0.85 * table.card["rmse"]["start"]
    assert table.nfe == 5


def test_the_default_start_of_a_network_has_its_own_grid():
    """The one that the default solver has on it, here for few numbers: not the process's."""
    exact = mixture(shape=(6,))

    def network(x, t):
        a, s = VP.alpha(t[0]), VP.sigma(t[0])
        return (x - a * exact(x, t[0])) / s

    denoiser = fs.wrap(network, VP, predicts="noise", time="t")
    task = Task(conditioned=lambda _: denoiser, process=VP, shape=(6,), samples=8, held_out=8, batch=8, seed=0)
    grids = _grids(task, None, 5)
    assert torch.equal(grids["default"](VP, 5), fs.Default(predicts="noise", size=6).grid("default")(VP, 5))
    assert not torch.equal(grids["default"](VP, 5), fs.GRIDS["default"](VP, 5))
    assert _grids(task, "default", 5)["default"] is fs.GRIDS["default"]


def test_the_best_of_the_tried_starts_is_taken():
    each = [fit(solver=s, grid=None, method="dp").card for s in ("multistep-2", "dpmpp-2m", "unipc-2")]
    best = fit(solver=None, grid=None, method="dp").card
    assert best["start"]["grid"] in ("gits", "klub")
    assert best["iterations"] == 0
    assert best["rmse"]["fitted"] == best["rmse"]["start"] <= min(c["rmse"]["start"] for c in each) + 1e-12


def test_a_stopped_fit_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(saved, "_EVERY", 0.0)
    whole = fit(out=tmp_path / "whole" / "a.table")
    steps, step = [], descent._step

    def stopping(*args):
        steps.append(1)
        if len(steps) in (13, 22):
            raise KeyboardInterrupt
        step(*args)

    monkeypatch.setattr(descent, "_step", stopping)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit(out=tmp_path / "a.table")
    table = fit(out=tmp_path / "a.table")
    assert len(steps) == 32  # 30 iterations, none twice but the two that were stopped
    assert table == whole
    assert sorted(p.suffix for p in tmp_path.glob("*.*")) == [".safetensors", ".table"]


def test_a_recording_goes_on_and_another_task_starts_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(saved, "_EVERY", 0.0)
    calls = []

    def counted(z, t):
        calls.append(len(z))
        if len(calls) == 25:
            raise KeyboardInterrupt
        return mixture()(z, t)

    task = Task(conditioned=lambda _: counted, process=VP, shape=(2,), samples=20, held_out=9, batch=8, seed=0)
    table = fs.tabulate("ddim", VP, steps=10)
    with pytest.raises(KeyboardInterrupt):
        record(task, table, Saved(tmp_path / "t", {"a": 1}), progress=False)
    ends = record(task, table, Saved(tmp_path / "t", {"a": 1}), progress=False)
    assert calls[25:] == [4] * 10 + [8] * 10 + [1] * 10
    torch.testing.assert_close(ends, record(task, table, Saved(None, {}), progress=False), rtol=0, atol=0)
    seen = len(calls)
    record(task, table, Saved(tmp_path / "t", {"a": 1}), progress=False)
    assert len(calls) == seen
    record(task, table, Saved(tmp_path / "t", {"a": 2}), progress=False)
    assert len(calls) == seen + 50


def test_a_recording_of_another_denoiser_is_not_taken(tmp_path):
    options = {"steps": 3, "shape": (2,), "solver": "ddim", "grid": "logistic", "samples": 8, "held_out": 4,
               "teacher_steps": 4, "descent": fs.Descent(iterations=1), "progress": False}  # fmt: skip
    for seed in (3, 4):
        fs.fit(mixture(seed=seed), VP, out=tmp_path / "a.table", **options)
    assert len(list(tmp_path.glob("teacher-*"))) == 2


def test_a_recording_of_other_noise_is_not_taken(tmp_path, monkeypatch):
    options = {"steps": 3, "shape": (2,), "solver": "ddim", "grid": "logistic", "samples": 8, "held_out": 4,
               "teacher_steps": 4, "descent": fs.Descent(iterations=1), "progress": False}  # fmt: skip
    for stream in (1, fs.noise.STREAM):
        monkeypatch.setattr("fewstep.fitting.card.STREAM", stream)
        table = fs.fit(mixture(), VP, out=tmp_path / "a.table", **options)
        assert table.card["noise_stream"] == stream
    assert len(list(tmp_path.glob("teacher-*"))) == 2


def test_the_network_is_called_again_on_the_way_back_and_no_more(monkeypatch):
    calls = []

    def counted(z, t):
        calls.append(len(z))
        return mixture()(z, t)

    f = freedom()
    task = Task(conditioned=lambda _: counted, process=VP, shape=(2,), samples=8, held_out=8, batch=8, seed=0)
    descent._gradient(f, task, f.origin, slice(0, 8), torch.zeros(8, 2), objective.paired)
    assert calls == [8] * 8


def test_a_descent_that_went_astray_goes_back():
    q = torch.ones(2, dtype=torch.float64)
    now = {"done": torch.tensor(7), "looks": torch.tensor([[0.0, 1.0]], dtype=torch.float64), "q": 3 * q,
           "best": q, "mean": q, "square": q, "scale": torch.tensor(4.0)}  # fmt: skip
    descent._look(now, math.nan)
    assert now["q"].tolist() == [1.0, 1.0]
    assert float(now["scale"]) == 2.0
    assert not now["mean"].any()


def test_kernel_distance_is_the_u_statistic():
    x, y = torch.randn(2, 7, 5, dtype=torch.float64)
    k = lambda a, b: float(a @ b / 5 + 1) ** 3  # noqa: E731
    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    wanted = sum(k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]) for i, j in pairs) / len(pairs)
    assert float(objective.kid(x, y, lambda v: v)) == pytest.approx(wanted)


def test_kernel_distance_to_real_samples_takes_all_pairs_across():
    x, y = torch.randn(4, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    k = lambda a, b: float(a @ b / 5 + 1) ** 3  # noqa: E731
    within = lambda v: sum(k(v[i], v[j]) for i in range(len(v)) for j in range(len(v)) if i != j)  # noqa: E731
    wanted = within(x) / 12 + within(y) / 42 - 2 * sum(k(a, b) for a in x for b in y) / 28
    assert float(objective.kid_to(y, lambda v: v)(x, x)) == pytest.approx(wanted)


def test_real_samples_pull_a_fit_past_its_teacher():
    """Real samples are the teacher's moved by 1: only a fit to them leaves the teacher."""
    features = lambda x: torch.cat([x, x.square()], 1)  # noqa: E731
    real = features(sampled() + 1.0)
    near, far = (fit(objective="kid", features=features, **more) for more in ({}, {"real": real}))
    ends = [fs.sample(mixture(), VP, solver=t, shape=(512, 2)).double() for t in (near, far)]
    to_real = [float(objective.kid_to(real, features)(x, x)) for x in ends]
    assert to_real[1] < 0.8 * to_real[0]
    assert far.card["real"] == 512


def sampled():
    return fs.sample(mixture(), VP, steps=40, shape=(512, 2), seed=5, dtype=torch.float64)


def test_a_fit_ends_at_sigma_zero_unless_asked_otherwise():
    table = fit(solver=None, grid=None)
    assert table.grid[-1] == 0.0
    assert table.card["final"] == "zero"
    assert table.card["rmse"]["fitted"] < table.card["rmse"]["start"]
    state = fit(final="state")
    assert (state.grid[-1], state.card["final"]) == (VP.t_min, "state")


@pytest.mark.parametrize("name", ["features", "kid"])
def test_other_objectives_fall_too(name):
    features = lambda x: torch.cat([x, x.square()], 1)  # noqa: E731
    looks = []
    judge = descent.judge
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(descent, "judge", lambda *a: looks.append(judge(*a)) or looks[-1])
        fit(objective=name, features=features)
    assert min(looks[2:]) < 0.7 * looks[0]


def test_a_fitted_table_is_a_small_file_with_its_card(tmp_path):
    table = fit(out=tmp_path / "a.table")
    back = fs.Tableau.load(tmp_path / "a.table")
    assert back == table
    assert back.card == json.loads(json.dumps(table.card))
    assert (tmp_path / "a.table").stat().st_size < 8000
    assert f"{table.card['rmse']['fitted']}" in back.explain()
    assert "Fitted(start=DPMMultistep(" in back.explain()
    x = torch.randn(3, 2)
    same = [fs.sample(mixture(), VP, solver=s, x=x) for s in (table, tmp_path / "a.table")]
    assert torch.equal(*same)


@pytest.mark.parametrize("name", ["cld", "blurring"])
def test_blocks_and_frequencies_are_saved(name, tmp_path):
    process, _ = PROCESSES[name]
    f = freedom(process)
    table = replace(f.fitted(near(f)), card={"weights": None})
    table.save(tmp_path / "a.table")
    back = fs.Tableau.load(tmp_path / "a.table")
    assert back == table
    assert back.card == {"weights": None}


def test_a_file_that_was_changed_cut_or_made_by_a_later_version_is_refused(tmp_path):
    path = tmp_path / "a.table"
    table = freedom().fitted(freedom().origin)
    replace(table, card={"rmse": 0.5}).save(path)
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    later = raw.replace(b"fewstep table 1", b"fewstep table 2")
    for bad, words in ((raw[:-9], "checksum"), (raw.replace(b"0.5", b"0.1"), "checksum"), (raw[: length // 2], "JSON"),
                       (later, "checksum"), (b"", "table")):  # fmt: skip
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=words):
            fs.Tableau.load(path)


def test_a_later_format_is_named(tmp_path, monkeypatch):
    from fewstep.tableau import file

    monkeypatch.setattr(file, "_FORMAT", "fewstep table 2")
    freedom().fitted(freedom().origin).save(tmp_path / "a.table")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="'fewstep table 2', this version reads 'fewstep table 1'"):
        fs.Tableau.load(tmp_path / "a.table")


def test_a_table_of_another_model_warns():
    class Ours:
        process, weights = VP, "b" * 64

        def __call__(self, z, t):
            return mixture()(z, t)

    table = freedom().fitted(freedom().origin)
    x = torch.randn(3, 2)
    with pytest.warns(UserWarning, match="fitted to the weights aaaaaaaaaaaa for the weights bbbbbbbbbbbb"):
        fs.sample(fs.Counted(Ours()), VP, solver=replace(table, card={"weights": "a" * 64}), x=x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fs.sample(Ours(), VP, solver=replace(table, card={"weights": "b" * 64}), x=x)
        assert fingerprint(fs.guide(Ours(), Ours(), 2.0)) == "b" * 64
        fs.sample(mixture(), VP, solver=replace(table, card={"weights": "a" * 64}), x=x)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solver": "ddpm", "grid": "default"}, "reads xi0"),
        ({"solver": "taylor-2"}, "derivative"),
        ({"solver": "gaussian-split", "mode": "exact"}, "does not carry one point exactly"),
        ({"mode": "loose"}, "mode='loose'"),
        ({"method": "guess"}, "method='guess'"),
        ({"objective": "kid"}, "without features"),
        ({"real": torch.zeros(9, 2)}, "with objective='paired'"),
        ({"objective": "kid", "features": torch.flatten, "real": torch.zeros(9)}, r"\(m, d\)"),
        ({"final": "denoise"}, "final='denoise'"),
        (
            {"objective": "kid", "features": torch.flatten, "real": torch.zeros(9, 2), "method": "dp"},
            "real samples with method='dp'",
        ),
        ({"features": torch.flatten}, "no use for them"),
        ({"solver": "heun", "steps": 3, "final": "state"}, "heun|4 calls|2 or 4"),
        ({"conditioned": lambda _: mixture()}, "both a denoiser and conditioned"),
        ({"held_out": 1}, "held_out=1"),
        ({"steps": 0}, "steps=0"),
        ({"solver": "nope"}, "'nope'"),
        ({"grid": torch.tensor([1.0, 0.5, 0.001])}, "takes 2"),
        ({"objective": "kid", "features": torch.flatten, "batch": 1}, "batch=1"),
        ({"out": "/"}, "which is a folder"),
        ({"about": {"guidance": math.nan}}, "not ready for JSON"),
        ({"device": "nowhere"}, "device 'nowhere'"),
        ({"descent": {"iterations": 3}}, "give a Descent"),
    ],
)
def test_what_cannot_be_fitted_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        fit(**options)


@pytest.mark.parametrize(
    "option", [{"iterations": 0}, {"every": 0}, {"patience": 0}, {"rate": math.nan}, {"rate": -1.0}, {"rate": "fast"}]
)
def test_a_descent_that_is_none_is_refused(option):
    with pytest.raises(ValueError, match=f"got {next(iter(option))}="):
        fs.Descent(**option)
