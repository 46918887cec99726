"""The problems of `benchmarks/problems`: that they build, are apart, and that exact ones are exact; and their judge."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fewstep as fs
from bench_toy import every_peer

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import judge_default
from problems import CHOOSE, ERRORS, JUDGE, Network, Problem, find
from problems.exact import Erring

EXACT = {name: p for name, p in {**CHOOSE, **JUDGE}.items() if isinstance(p, Problem)}


def states(problem: Problem, t: float, count: int = 6) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    p, data = problem.process, problem.data.draw(count, seed=3)
    return p.diffuse(data, t, torch.randn(count, *p.state_shape(problem.data.shape), dtype=torch.float64, generator=g))


def oracle(problem: Problem, z: torch.Tensor, t: float, parts: slice = slice(None)) -> torch.Tensor:
    """D of `fs.Mixture` for some components, in the basis in which their covariances are diagonal."""
    p, data = problem.process, problem.data
    means, stds, shape = data.means[parts], data.stds[parts], (-1, *data.shape)
    if p.kind == "diagonal":
        return fs.Mixture(p, data.out(means).reshape(shape), stds.reshape(shape))(z, t)
    if p.kind == "block":
        return fs.Mixture(p, means, stds)(z, t)
    return data.out(fs.Mixture(p, means, stds)(data.into(z), t)).reshape(shape)


@pytest.mark.parametrize("name", EXACT)
def test_a_problem_without_error_is_its_mixture(name):
    problem = EXACT[name]
    assert torch.allclose(problem.data.into(problem.data.out(problem.data.means)), problem.data.means)
    for lam in (-3.0, 0.0, 3.0):
        t = float(problem.process.inverse_log_snr(lam))
        z = states(problem, t)
        assert torch.allclose(problem.denoiser(None, 0.0)(z, t), oracle(problem, z, t), atol=1e-9)
        if problem.classes:
            told = problem.denoiser([1] * len(z), 0.0)(z, t)
            assert torch.allclose(told, oracle(problem, z, t, slice(1, None, problem.classes)), atol=1e-9)


def test_the_sets_are_apart_and_hold_every_kind():
    assert not CHOOSE.keys() & JUDGE.keys()
    assert len({problem.seed for problem in EXACT.values()}) == len(EXACT)
    networks = [{(p.model, p.guidance) for p in s.values() if isinstance(p, Network)} for s in (CHOOSE, JUDGE)]
    assert not networks[0] & networks[1]
    for s in (CHOOSE, JUDGE):
        exact = [p for p in s.values() if isinstance(p, Problem)]
        assert {p.error for p in exact} == set(ERRORS)
        assert {p.predicts for p in exact} == {"noise", "v", "data", "flow", "edm"}
        assert len({p.process for p in exact}) >= 5
        assert any(p.guidance > 1 and p.size for p in exact)
    assert [p.name for p in find(["points-3", "fashion-noise@7.5"], JUDGE)] == ["points-3", "fashion-noise@7.5"]
    with pytest.raises(ValueError, match="fits none"):
        find(["nothing"], JUDGE)


@pytest.mark.parametrize("name", ["points-3", "codes-w4", "blurred", "langevin", "points-16"])
def test_a_problem_is_a_subject_of_the_bench(name):
    problem = EXACT[name]
    subject = problem.subject(real=12)
    assert subject.data is not None
    assert subject.data.shape == (12, *subject.shape)
    assert subject.digest == replace(problem, made={}).subject(real=12).digest
    assert subject.digest != replace(problem, size=0.5).subject(real=12).digest
    t = float(problem.process.inverse_log_snr(0.0))
    denoiser = subject.of(0, 6)
    assert denoiser.predicts == problem.predicts
    assert denoiser(states(problem, t).float(), t).shape == (6, *subject.shape)


def test_real_samples_of_a_guided_problem_are_its_exact_end_states():
    problem = EXACT["points-4-w7"]
    ends = problem.subject(real=64).data
    label = problem.subject(real=1).labels(0, 64)
    towards = torch.cdist(ends.double(), problem.data.means).argmin(1) % 2
    assert float((towards == torch.tensor(label)).double().mean()) > 0.95


@pytest.mark.parametrize("error", [error for error in ERRORS if error])
def test_an_error_has_its_size_and_is_a_function(error):
    erring = Erring(tuple(0.03 * share for share in ERRORS[error]), 24, 3, seed=5)
    x = torch.randn(300, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    none, third = torch.zeros(300, dtype=torch.int64), torch.full((300,), 3)
    sizes = [
        erring(x, lam, which).square().mean() for lam in torch.linspace(-6, 6, 40).tolist() for which in (none, third)
    ]
    assert float(torch.stack(sizes).mean().sqrt()) == pytest.approx(0.03, rel=0.25)
    assert torch.allclose(erring(x, 1.0, third)[:7], erring(x[:7], 1.0, third[:7]), rtol=0, atol=1e-9)
    assert not torch.allclose(erring(x, 1.0, third), erring(x, 1.0, none), atol=1e-3)
    moved = (erring(x, 1.0, none) - erring(x + 0.01, 1.0, none)).square().mean().sqrt()
    assert (float(moved) > 0.005) == bool(ERRORS[error][2])


def test_an_error_is_in_the_units_of_the_prediction():
    problem = EXACT["points-48-shift"]
    p = problem.process
    times = [float(p.inverse_log_snr(lam)) for lam in torch.linspace(-2.5, 4, 24).tolist()]
    apart = [(problem.denoiser(None)(z, t) - problem.denoiser(None, 0.0)(z, t)) * p.alpha(t) / p.sigma(t)
             for t in times for z in [states(problem, t, 2)]]  # fmt: skip
    assert float(torch.stack(apart).square().mean().sqrt()) == pytest.approx(problem.size, rel=0.2)
    z = states(problem, times[0], 2)
    both = problem.denoiser(None)(z, torch.tensor(times[:2], dtype=torch.float64))
    each = [problem.denoiser(None)(z[k : k + 1], times[k]) for k in range(2)]
    assert torch.allclose(both, torch.cat(each), atol=1e-9)


def test_the_judge_prints_writes_and_does_no_work_twice(tmp_path, capsys, monkeypatch):
    if "diffusers/ddim@trailing" not in every_peer():
        pytest.skip("diffusers is not installed")
    argv = ["judge", "--problem", "points-3", "--calls", "4", "--images", "300", "--select-images", "32",
            "--grid-calls", "4", "--grid-images", "8", "--peers", "diffusers/ddim@*", "diffusers/unipc-2@*", "--out",
            str(tmp_path), "--csv", str(tmp_path / "rows.csv")]  # fmt: skip
    monkeypatch.setattr(sys, "argv", argv)
    judge_default.main()
    first = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert [row["calls"] for row in rows[:2]] == ["2", "4"]
    assert rows[1]["against"].startswith("diffusers/")
    assert float(rows[1]["gap_low"]) <= float(rows[1]["gap"]) <= float(rows[1]["gap_high"])
    assert float(rows[1]["range"]) < 1.5
    assert {row["grid"] for row in rows[2:]} >= {"karras", "log-snr", "uniform"}
    assert "by Frechet distance" in first.splitlines()[-1]
    monkeypatch.setattr(judge_default.Study, "_part", lambda *_: pytest.fail("work was done twice"))
    judge_default.main()
    again = capsys.readouterr().out
    assert [x for x in again.splitlines() if " min left" not in x] == [
        x for x in first.splitlines() if " min left" not in x
    ]
