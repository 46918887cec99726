"""Measured statistics beside closed forms, their file, an interrupted run, the command, and what they are worth."""

from __future__ import annotations

import json
import math

import pytest
import torch

import fewstep as fs
import oracle
from fewstep.cli import main
from fewstep.process.operator import magnitude
from fewstep.stats import FILE, analytic_grid, attach, measure
from fewstep.stats.measurement import _node, _v3
from fewstep.stats.trajectory import losses
from test_cli_sample import WEIGHTS, tiny  # noqa: F401 - a fixture

torch.set_num_threads(1)


def data_of(mixture: fs.Mixture, count: int) -> torch.Tensor:
    return mixture.sample(count, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vp() -> tuple[fs.Mixture, fs.Statistics]:
    """A mixture on VP and its statistics."""
    mixture = oracle.denoiser(fs.VP())
    return mixture, measure(mixture, mixture.process, data_of(mixture, 4000), nodes=41, batch=4000)


def exact_gamma(process: fs.Process, std: float, t: float):
    """E Var(x0 | z) of N(., std^2) data."""
    n = (
        math.exp(2 * process.log_snr(t))
        if process.kind != "diagonal"
        else (process.M(t) * process.M(t)).values / (process.R(t) * process.R(t)).values
    )
    return std**2 / (1 + std**2 * n)


@pytest.mark.parametrize("name", ["vp", "flow", "blurring", "cld"])
@pytest.mark.parametrize("corrected", [False, True])
def test_the_data_variance_of_gaussian_data(name, corrected):
    """On numbers, frequencies and blocks; 1 - E eps_theta^2 has the larger sampling error, in strong noise."""
    p = oracle.process(name)
    shape = p.size if name == "blurring" else (2,)
    denoiser = fs.Gaussian(p, torch.zeros(shape), 0.7)
    found = measure(denoiser, p, data_of(denoiser, 4000), nodes=25, v3=False, batch=4000)
    for lam in [x for x in found.log_snr.tolist() if abs(x) < 1.5][::2]:
        t = float(p.inverse_log_snr(lam))
        ours, exact = found.data_variance(p, t, corrected=corrected), exact_gamma(p, 0.7, t)
        assert magnitude(getattr(ours, "values", ours) / exact - 1.0) < (0.08 if corrected else 0.35), (
            lam,
            ours,
            exact,
        )


def test_l_s_and_b_of_gaussian_data():
    """l = rho^2/(v + rho^2); f is constant, so that s is free and s f + b = f' = -l' mean."""
    p, mean, v = fs.VP(), 0.8, 0.49
    denoiser = fs.Gaussian(p, torch.tensor([mean]), 0.7)
    found = measure(denoiser, p, data_of(denoiser, 500), nodes=101, batch=500)
    rho2 = (-2 * found.log_snr).exp()[:, None]
    assert float((found.l - rho2 / (v + rho2)).abs().max()) < 1e-12
    slope = found.s * (-mean * found.l) + found.b
    exact = 2 * v * rho2 / (v + rho2) ** 2 * mean
    assert float((slope - exact)[2:-2].abs().max()) < 0.01


def test_s_and_b_are_the_regression_along_the_ode():
    """Beside f of the same states moved along the exact solution, and its differences."""
    mixture = oracle.denoiser(fs.VP())
    p, lam, x0 = mixture.process, torch.tensor([-0.02, 0.0, 0.02], dtype=torch.float64), data_of(mixture, 300)
    rows = [_node(mixture, p, x0, x, seed=7, v3=True) for x in lam.tolist()]
    l, s, b = _v3(lam, {k: torch.stack([row[k] for row in rows]) / len(x0) for k in rows[0]})  # noqa: E741
    times = p.inverse_log_snr(lam).tolist()
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    z = p.diffuse(x0, times[1], eps)
    states = [z if k == 1 else oracle.quantile_map(mixture, z, times[1], t) for k, t in enumerate(times)]
    f = [(1 - l[k]) * x / p.alpha(t) - mixture(x, t) for k, (x, t) in enumerate(zip(states, times, strict=True))]
    slope = (f[2] - f[0]) / 0.04
    exact = ((slope - slope.mean()) * (f[1] - f[1].mean())).mean() / f[1].var(correction=0)
    assert float(s[1]) == pytest.approx(float(exact), rel=1e-3)
    assert float(b[1]) == pytest.approx(float(slope.mean() - exact * f[1].mean()), rel=1e-2)


def test_measured_statistics_halve_the_error_at_few_calls(vp):
    pr = oracle.Problem("vp")
    grid = oracle.grid(pr.process, 5)
    run = lambda statistics: fs.sample(  # noqa: E731
        pr.denoiser, pr.process, solver=fs.DPMSolverV3(statistics=statistics), grid=grid, x=pr.start
    )
    assert pr.error(run(vp[1])) < 0.5 * pr.error(run(None))


def test_between_nodes_it_is_linear_and_beyond_them_held():
    s = fs.Statistics(log_snr=torch.tensor([0.0, 1.0, 3.0]), eps2=torch.tensor([0.5, 0.3, 0.1]))
    found = s.at("eps2", torch.tensor([-1.0, 0.0, 0.5, 2.0, 9.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.5, 0.5, 0.4, 0.2, 0.1])


def test_the_data_variance_never_rises_with_the_signal_and_is_bounded():
    """A noisy eps2 above 1, and data of known range."""
    p = fs.VP()
    s = fs.Statistics(log_snr=torch.tensor([-3.0, -2.0, 0.0]), eps2=torch.tensor([1.01, 0.99, 0.8]))
    gammas = [s.data_variance(p, float(p.inverse_log_snr(x))) for x in (-3.0, -2.5, -2.0, 0.0)]
    assert gammas[0] == pytest.approx(gammas[2])
    assert gammas == sorted(gammas, reverse=True)
    assert s.data_variance(p, float(p.inverse_log_snr(-3.0)), half_range=0.5) == 0.25


def test_the_file_gives_back_the_statistics_and_says_what_is_wrong(tmp_path, vp):
    found = vp[1]
    path = found.save(tmp_path / FILE)
    loaded = fs.Statistics.load(path)
    assert loaded == found
    assert hash(loaded) == hash(found)
    assert (loaded.samples, loaded.path) == (4000, path)
    with pytest.raises(ValueError, match="measured on weights aaaa, for weights bbbb"):
        fs.Statistics.load(fs.stats.Statistics(log_snr=found.log_snr, weights="aaaa").save(path), weights="bbbb")
    from fewstep.files import save_tensors

    save_tensors(path, {"log_snr": torch.zeros(3)})
    with pytest.raises(ValueError, match="is no fewstep statistics 1"):
        fs.Statistics.load(path)
    save_tensors(path, {"log_snr": torch.arange(3.0)}, {"format": "fewstep statistics 1", "digest": "0"})
    with pytest.raises(ValueError, match="not those that were saved"):
        fs.Statistics.load(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="truncated or corrupt"):
        fs.Statistics.load(path)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"log_snr": torch.zeros(3)}, "increasing"),
        ({"log_snr": torch.arange(3.0), "eps2": torch.ones(2)}, "give 3 finite entries"),
        ({"log_snr": torch.arange(3.0), "eps2": torch.full((3,), math.nan)}, "3 finite entries"),
        ({"log_snr": torch.arange(3.0), "l": torch.ones(3)}, "all three or none"),
    ],
)
def test_statistics_that_are_none_are_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        fs.Statistics(**values)


def test_a_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch):
    """The same numbers, and only the missing calls; other settings start anew."""
    monkeypatch.setattr("fewstep.saved._EVERY", 0.0)
    p = fs.VP()
    mixture = oracle.denoiser(p)
    data, out = data_of(mixture, 6), tmp_path / "statistics.safetensors"
    settings = {"nodes": 5, "batch": 3, "v3": False}
    whole = measure(mixture, p, data, **settings)

    class Stopped(Exception):  # noqa: N818
        pass

    calls = []

    def failing(z, t):
        calls.append(t)
        if len(calls) == 7:
            raise Stopped
        return mixture(z, t)

    with pytest.raises(Stopped):
        measure(failing, p, data, out=out, **settings)
    assert not out.exists()
    counted = fs.Counted(mixture)
    assert measure(counted, p, data, out=out, **settings) == whole
    assert counted.calls == 4
    assert [f.name for f in tmp_path.iterdir()] == [out.name]
    for other in ({"seed": 1}, {"labels": [0, 1, 2, 0, 1, 2]}):
        calls.clear()
        with pytest.raises(Stopped):
            measure(failing, p, data, out=out, **settings)
        counted = fs.Counted(mixture)
        measure(counted, p, data, out=out, **other, **settings)
        assert counted.calls == 10, other


def test_a_folder_that_cannot_be_written_is_found_before_the_work(tiny, tmp_path, monkeypatch, capsys):  # noqa: F811
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "statistics.safetensors"
    monkeypatch.setattr("fewstep.cli.stats._drawn", lambda *_: pytest.fail("it drew samples first"))
    assert main(["stats", str(tiny), "--out", str(out)]) == 1
    assert "cannot write" in capsys.readouterr().err
    with pytest.raises(OSError, match="cannot write"):
        measure(lambda *_: pytest.fail("it called the network first"), fs.VP(), torch.zeros(2, 1), v3=False, out=out)


@pytest.mark.parametrize(
    ("solver", "values", "sentence"),
    [
        (fs.DPMSolverV3, dict.fromkeys("lsb", torch.zeros(3, 1, 5, 5)), "process, or statistics, .* measure the stat"),
        (fs.Analytic, {"eps2": torch.full((3, 2, 2), 0.9)}, "one variance a frequency, for VP, which has one a node"),
    ],
)
def test_statistics_of_another_shape_than_the_state_are_refused(solver, values, sentence):
    statistics = fs.Statistics(log_snr=torch.tensor([-9.0, 0.0, 3.0]), **values)
    with pytest.raises(ValueError, match=sentence):
        fs.sample(fs.Gaussian(fs.VP(), 0.0, 1.0), fs.VP(), solver=solver(statistics=statistics), shape=(2, 1, 2, 2))


def test_what_cannot_be_measured_is_refused():
    p = fs.CLD()
    with pytest.raises(ValueError, match="l, s, b are of scalar processes"):
        measure(oracle.denoiser(p), p, torch.zeros(3, 1), v3=True)
    with pytest.raises(ValueError, match="at least 3, and 2"):
        measure(oracle.denoiser(p), p, torch.zeros(1, 1))
    with pytest.raises(ValueError, match="give one"):
        measure(None, p, torch.zeros(3, 1))


# --- the optimal trajectory -----------------------------------------------------------------------------------------


def test_the_optimal_trajectory_is_the_best_of_all(vp):
    """Against every path among nine times, and against the named grids by the same loss."""
    from itertools import combinations

    mixture, found = vp
    p = mixture.process
    times = analytic_grid(found, p, 8, candidates=9)
    assert len(times) == 9
    loss = losses(found, p, times)
    best = min(sum(loss[i, j] for i, j in zip((0, *c), (*c, 8), strict=True)) for c in combinations(range(1, 8), 2))
    grid = analytic_grid(found, p, 3, candidates=9)
    total = lambda g: float(losses(found, p, g).diagonal(1).sum())  # noqa: E731
    assert total(grid) == pytest.approx(float(best))
    assert grid[[0, -1]].tolist() == [p.t_max, p.t_min]
    ours = total(analytic_grid(found, p, 10))
    for name, make in fs.GRIDS.items():
        assert ours < total(make(p, 10)) + 1e-9, name


def test_the_optimal_trajectory_ends_at_clean_data(vp):
    grid = analytic_grid(vp[1], fs.Flow(t_max=0.99), 4)
    assert grid[[0, -1]].tolist() == [0.99, 0.0]
    assert len(grid) == 5
    assert analytic_grid(vp[1], fs.Flow(t_max=0.99), 1).tolist() == [0.99, 0.0]
    with pytest.raises(ValueError, match="of scalar processes"):
        analytic_grid(vp[1], fs.CLD(), 3)
    with pytest.raises(ValueError, match="from 1 to 255 steps"):
        analytic_grid(vp[1], fs.VP(), 256)


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_stores_statistics_that_sampling_finds(tiny, tmp_path, capsys):  # noqa: F811
    import shutil

    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    assert main(["stats", str(model), "--nodes", "3", "--samples", "4", "--batch", "4"]) == 0
    assert FILE in capsys.readouterr().out
    found = fs.Statistics.load(model / FILE)
    assert found.l.shape == (3, 1, 8, 8)
    for solver in ("dpm-solver-v3", "analytic-ddpm", "analytic-ddim"):
        assert main(["sample", str(model), "--solver", solver, "--steps", "3", "--dry-run"]) == 0
        assert json.loads(capsys.readouterr().out)["solver"]["statistics"]["sha256"] == found.digest
    file = str(model / FILE)
    assert main(["sample", str(model), "--solver", "analytic-ddpm", "--option", f"statistics={file}", "--dry-run"]) == 0
    assert (
        main(["sample", str(model), "--solver", "dpm-solver-v3", "--steps", "3", "--num", "2", "--out", str(tmp_path)])
        == 0
    )
    capsys.readouterr()
    fs.Statistics(log_snr=found.log_snr, eps2=found.eps2, weights="0" * 64).save(file)
    assert main(["sample", str(model), "--solver", "analytic-ddpm", "--steps", "3", "--dry-run"]) == 1
    assert "measure the statistics again" in capsys.readouterr().err
    fs.Statistics(log_snr=found.log_snr, eps2=found.eps2).save(file)
    whole = fs.load(model)
    assert attach(fs.DPMSolverV3(), whole).statistics is None
    assert attach(fs.Analytic(), whole).statistics is not None
    assert attach(fs.DDIM(), whole) == fs.DDIM()
    assert (model / WEIGHTS).exists()


def test_the_command_reads_pictures(tiny, tmp_path, capsys):  # noqa: F811
    import numpy as np

    pictures = tmp_path / "x.npz"
    np.savez(pictures, x_train=np.zeros((6, 8, 8), np.uint8), y_train=np.arange(6) % 3)
    out = tmp_path / "found.safetensors"
    argv = ["stats", str(tiny), "--data", str(pictures), "--nodes", "3", "--samples", "5", "--only", "variance"]
    assert main([*argv, "--out", str(out)]) == 0
    found = fs.Statistics.load(out)
    assert (found.samples, found.l) == (5, None)
    np.savez(pictures, x_train=np.zeros((6, 9, 9), np.uint8))
    assert main([*argv, "--out", str(out)]) == 2
    assert "give its own data" in capsys.readouterr().err
