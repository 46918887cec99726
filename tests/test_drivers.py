"""Drivers: adaptive steps and data-dependent Langevin steps, each sample alone, with the tables they realise."""

from __future__ import annotations

import inspect
import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import fewstep as fs
import oracle
from fewstep.process.operator import apply, inverse
from fewstep.solver import DDIM, DDPM, RK45, DPMAdaptive, LangevinCorrected, PredictorCorrector, StochasticHeun

ADAPTIVE = [name for name, make in fs.DRIVERS.items() if make().own_times]
PROCESSES = ("vp", "edm", "flow", "cld", "blurring")
LOOSE = {"gotta-go-fast": {"rtol": 0.1, "atol": 0.05}}


def problem(name: str, batch: int = 3) -> tuple[fs.Mixture, torch.Tensor, torch.Tensor]:
    """Denoiser, start states and two ends."""
    p = oracle.Problem(name)
    return p.denoiser, p.start[:batch], torch.tensor(p.ends, dtype=torch.float64)


def driver(name: str, **options) -> fs.Driver:
    return fs.DRIVERS[name](**{**LOOSE.get(name, {}), **options})


def solve(name: str, process: str = "vp", batch: int = 3, **options) -> fs.Outcome:
    d, x, ends = problem(process, batch)
    return fs.solve(d, d.process, solver=driver(name, **options), grid=ends, x=x)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_realised_table_replays_its_sample(name, process):
    d, x, ends = problem(process)
    out = fs.solve(d, d.process, solver=driver(name), grid=ends, x=x, seed=5)
    assert out.ok, str(out)
    for i in (0, 2):
        table = out.table(i)
        assert len(table.grid) == int(out.accepted[i]) + 1
        assert table.grid[-1] == ends[-1]
        assert table.nfe <= int(out.calls[i])
        noise = out.noise(i) if out.noises else None
        again = fs.sample(d, d.process, solver=table, x=x[i : i + 1], noise=noise)
        assert float((again - out.state[i : i + 1]).abs().max()) < 1e-10 * float(again.abs().max())
    assert "steps" in out.table(0).explain()


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_batch_mate_changes_nothing(name):
    d, x, ends = problem("vp", 6)
    whole = fs.solve(d, d.process, solver=driver(name), grid=ends, x=x, seed=5)
    assert len(set(whole.calls.tolist())) > 1, "every sample took the same steps: this problem shows nothing"
    for i in (1, 4):
        alone = fs.solve(d, d.process, solver=driver(name), grid=ends, x=x[i : i + 1], seed=5, first=i)
        assert torch.equal(alone.state, whole.state[i : i + 1])
        assert int(alone.calls[0]) == int(whole.calls[i])


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("options", [{}, {"form": "noise", "clock": "log-snr"}, {"form": "data", "clock": "log-snr"}])
def test_rk45_is_as_exact_as_it_was_asked_to_be(process, options):
    exact = oracle.Problem(process)
    errors = []
    for tolerance in (1e-4, 1e-6):
        out = solve("rk45", process, 3, rtol=tolerance, atol=tolerance, **options)
        errors.append(float((out.state - exact.end[:3]).norm() / exact.end[:3].norm()))
        assert errors[-1] < 30 * tolerance
    assert errors[1] < errors[0]


@pytest.mark.parametrize("form", ["noise", "data"])
@pytest.mark.parametrize(("points", "process"), [(2, "vp"), (2, "cld"), (2, "blurring"), (3, "edm"), (3, "flow")])
def test_dpm_adaptive_follows_its_tolerance(process, form, points):
    exact = oracle.Problem(process)
    loose, tight = (
        solve(f"dpm-adaptive-{points - 1}{points}", process, 3, form=form, rtol=tol, atol=tol) for tol in (1e-2, 5e-4)
    )
    errors = [float((o.state - exact.end[:3]).norm() / exact.end[:3].norm()) for o in (loose, tight)]
    assert errors[0] < 0.1
    assert errors[1] < min(errors[0], 6e-3)
    assert bool((tight.calls > loose.calls).all())


def test_with_the_batch_s_norm_rk45_is_scipy_s():
    d, x, ends = problem("vp", 5)
    p, calls = d.process, []

    def slope(t: float, y: np.ndarray) -> np.ndarray:
        calls.append(t)
        z = torch.from_numpy(y).reshape(x.shape)
        data = d(z, t)
        rate = p.R_rate(t) * inverse(p.R(t))
        return (apply(p.M_rate(t) - rate * p.M(t), data) + apply(rate, z)).flatten().numpy()

    theirs = solve_ivp(slope, ends.tolist(), x.flatten().numpy(), "RK45", rtol=1e-6, atol=1e-6)
    ours = fs.solve(d, p, solver=RK45(rtol=1e-6, atol=1e-6, norm="batch"), grid=ends, x=x)
    assert np.abs(ours.state.flatten().numpy() - theirs.y[:, -1]).max() < 1e-10
    assert ours.rounds == len(calls) == int(ours.calls[0])
    assert torch.allclose(ours.table(0).grid, torch.from_numpy(theirs.t))


def test_samples_that_are_done_leave_the_batch():
    seen = []
    d, x, ends = problem("vp", 6)

    def watched(z, t):
        assert isinstance(t, torch.Tensor)
        assert (t.dtype, tuple(t.shape)) == (torch.float64, (len(z),))
        seen.append(len(z))
        return d(z, t)

    out = fs.solve(watched, d.process, solver="rk45", grid=ends, x=x)
    assert seen[0] == 6 > seen[-1]
    assert (sum(seen), len(seen)) == (int(out.calls.sum()), out.rounds)


def test_a_label_goes_along_with_its_sample():
    d, x, ends = problem("vp", 6)
    shift = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]

    def network(z, t, *, label):
        return d(z, t) + 0.1 * label

    bound = fs.wrap(partial(network, label=shift), d.process, predicts="data")
    counted = fs.Counted(bound)
    whole = fs.solve(counted, d.process, solver="rk45", grid=ends, x=x)
    one = fs.wrap(partial(network, label=shift[4:5]), d.process, predicts="data")
    alone = fs.solve(one, d.process, solver="rk45", grid=ends, x=x[4:5])
    assert torch.equal(alone.state, whole.state[4:5])
    assert (counted.calls, counted.evaluations) == (whole.rounds, int(whole.calls.sum()))


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_impossible_tolerance_stops_with_a_sentence(name, dtype):
    d, x, ends = problem("vp")
    impossible = fs.DRIVERS[name](rtol=0.0, atol=1e-300)
    out = fs.solve(d, d.process, solver=impossible, grid=ends, x=x.to(dtype))
    assert set(out.status) == {"step too small"}
    assert "tolerance" in out.sentence(0)
    assert bool(out.state.isfinite().all())
    with pytest.raises(ValueError, match="3 of 3 samples did not reach the end .*step became too small"):
        fs.sample(d, d.process, solver=impossible, grid=ends, x=x.to(dtype))


@pytest.mark.parametrize("name", ADAPTIVE)
def test_steps_are_the_most_calls_a_sample_takes(name):
    d, x, ends = problem("vp", 6)
    assert int(fs.solve(d, d.process, solver=driver(name), grid=ends, x=x, steps=1).calls.max()) <= 1
    needed = fs.solve(d, d.process, solver=driver(name), grid=ends, x=x).calls
    limit = int(needed.min())
    out = fs.solve(d, d.process, solver=driver(name), grid=ends, x=x, steps=limit)
    assert int(out.calls.max()) <= limit
    assert [s == "reached the end" for s in out.status] == (needed <= limit).tolist()
    assert "too many calls" in out.status
    with pytest.raises(ValueError, match="raise the number of calls"):
        fs.sample(d, d.process, solver=driver(name), grid=ends, x=x, steps=limit)


def test_what_is_not_finite_stops_its_own_sample_alone():
    d, x, ends = problem("vp", 3)
    broken = lambda z, t: torch.where((t < 0.3)[:, None] & (z > 0), torch.nan, d(z, t))  # noqa: E731
    for name in ADAPTIVE:
        out = fs.solve(broken, d.process, solver=driver(name), grid=ends, x=x)
        assert "not finite" in out.status, name
        good = [i for i, s in enumerate(out.status) if s == "reached the end"]
        assert bool(out.state[good].isfinite().all())
    dead = lambda z, t: torch.full_like(z, torch.nan)  # noqa: E731, ARG005
    assert set(fs.solve(dead, d.process, solver="rk45", grid=ends, x=x).status) == {"not finite"}


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("process", ["flow", "vp"])
def test_an_end_at_sigma_0_is_reached_by_a_last_step(name, process):
    p = fs.VP(t_min=0.0) if process == "vp" else fs.Flow()
    d = fs.Gaussian(p, 0.3, 0.7)
    start = 1.0 if "alpha=0" in driver(name).ends else 0.95
    x = p.prior(torch.randn(2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), start)
    grid = torch.tensor([start, 0.0], dtype=torch.float64)
    out = fs.solve(d, p, solver=driver(name), grid=grid, x=x)
    assert out.ok, str(out)
    assert out.times.tolist() == [0.0, 0.0]
    replay = fs.sample(d, p, solver=out.table(1), x=x[1:], noise=out.noise(1) if out.noises else None)
    assert torch.allclose(replay, out.state[1:], atol=1e-12)
    if name != "gotta-go-fast":
        exact = (x - p.alpha(start) * 0.3) * 0.7 / math.hypot(0.7 * p.alpha(start), p.sigma(start)) + 0.3
        assert torch.allclose(out.state, exact, atol=0.05 if "dpm" in name else 1e-3)


def test_the_door_says_what_a_driver_is_not():
    d, x, ends = problem("vp")
    run = partial(fs.sample, d, d.process, x=x)
    with pytest.raises(ValueError, match="a driver, which chooses its steps"):
        fs.tabulate("rk45", d.process)
    refused = {
        "the most it may": {"nfe": 20},
        "grid by name": {"grid": "karras"},
        "grid of 3 times": {"grid": torch.linspace(0.9, 0.1, 3)},
        "these are for tables": {"parallel": True},
        "they have none": {"callback": print},
    }
    for sentence, options in refused.items():
        with pytest.raises(ValueError, match=sentence):
            run(solver="rk45", **options)
    assert torch.equal(run(solver=lambda: RK45(), grid=ends), run(solver="rk45", grid=ends))
    with pytest.raises(ValueError, match="give a seed or a Noise"):
        run(solver="gotta-go-fast", grid=ends, noise=torch.Generator())
    for options in ({"rtol": 0.0, "atol": 0.0}, {"norm": "max"}, {"form": "score"}, {"clock": "u"}, {"last": 2.0}):
        with pytest.raises(ValueError, match="got "):
            RK45(**options)
    for options in ({"points": 4}, {"theta": 0.0}, {"form": "state"}):
        with pytest.raises(ValueError, match="got "):
            DPMAdaptive(**options)
    with pytest.raises(ValueError, match="below 3"):
        solve("rk45").table(3)
    with pytest.raises(ValueError, match="got 5 steps for RK45, which chooses its own"):
        RK45().calls(5, to_zero=False)
    with pytest.raises(ValueError, match="got a limit of 5 calls for LangevinCorrected, whose grid says its calls"):
        LangevinCorrected().limited(5)


def test_one_more_call_denoises():
    d, x, ends = problem("vp")
    plain, clean = (fs.solve(d, d.process, solver="rk45", grid=ends, x=x, final=f) for f in ("state", "denoise"))
    assert torch.equal(clean.state, d(plain.state, float(ends[1])))
    assert (clean.calls - plain.calls).tolist() == [1, 1, 1]


@pytest.mark.parametrize("process", ["vp", "cld"])
def test_a_sample_that_did_not_reach_the_end_keeps_none_from_being_denoised(process):
    d, x, ends = problem(process)
    needed = fs.solve(d, d.process, solver="rk45", grid=ends, x=x).calls
    limit = int(needed.min())
    plain, clean = (fs.solve(d, d.process, solver=RK45(max_calls=limit), grid=ends, x=x, final=f)
                    for f in ("state", "denoise"))  # fmt: skip
    good = [status == "reached the end" for status in plain.status]
    assert 0 < sum(good) < len(good)
    expected = torch.stack([d(z[None], float(ends[1]))[0] if ok else d.process.to_data(z[None])[0]
                            for z, ok in zip(plain.state, good, strict=True)])  # fmt: skip
    assert torch.allclose(clean.state, expected, rtol=1e-12)
    assert (clean.calls - plain.calls).tolist() == [int(ok) for ok in good]
    assert (clean.status, clean.rounds) == (plain.status, plain.rounds + 1)


def test_solve_runs_a_table_too():
    d, x, _ = problem("vp")
    out = fs.solve(d, d.process, solver="ddim", steps=7, x=x)
    assert out.ok
    assert out.calls.tolist() == [7, 7, 7]
    assert torch.equal(out.state, fs.sample(d, d.process, solver=out.table(0), x=x))
    assert "7 network calls" in str(out)


@pytest.mark.parametrize("options", [{}, {"parallel": True}, {"memory": "64GiB"}, {"final": "denoise"}])
@pytest.mark.parametrize(("solver", "size"), [("ddim", 3), ("dpmpp-2m", 3), ("ddpm", 3), ("unipc-3", 20_000)])
def test_a_sample_of_a_table_that_is_not_finite_takes_no_other_with_it(solver, size, options):
    p, poison = fs.VP(), torch.tensor([[0.0], [torch.nan], [0.0]])
    network = lambda x, t, add: torch.tanh(x + t[:, None]) + add  # noqa: E731
    broken, whole = (fs.wrap(partial(network, add=add), p) for add in (poison, torch.zeros(3, 1)))
    run = {"solver": solver, "steps": 6, "shape": (3, size), "seed": 4, **options}
    out = fs.solve(broken, p, **run)
    assert out.status == ("reached the end", "not finite", "reached the end")
    assert "1 of 3 samples did not reach the end (1 with 'not finite': sample 1): sample 1" in str(out)
    want = fs.sample(whole, p, **run)
    assert torch.allclose(out.state[[0, 2]], want[[0, 2]], atol=1e-6)
    with pytest.raises(ValueError, match="not finite"):
        fs.sample(broken, p, **run)


WAYS = {
    "table": {"solver": "ddim", "steps": 5},
    "noise": {"solver": "ddpm", "steps": 5},
    "driver": {"solver": "rk45"},
    "given driver": {"solver": "predictor-corrector", "steps": 6},
    "parallel": {"solver": "ddim", "steps": 5, "parallel": 2},
}


@pytest.mark.parametrize("final", ["state", "denoise"])
@pytest.mark.parametrize("bad", [1, 3])
@pytest.mark.parametrize("way", WAYS)
def test_a_network_that_is_not_finite_has_one_outcome_and_one_sentence(way, bad, final):
    p, add = fs.VP(), torch.tensor([[math.nan]] * bad + [[0.0]] * (3 - bad))
    broken = fs.wrap(partial(lambda x, t, add: torch.tanh(x) + add, add=add), p)  # noqa: ARG005
    run = WAYS[way] | {"shape": (3, 2), "final": final}
    out = fs.solve(broken, p, **run)
    assert out.status == ("not finite",) * bad + ("reached the end",) * (3 - bad)
    which = "sample 0" if bad == 1 else "samples 0, 1, 2"
    lost = rf"{bad} of 3 samples did not reach the end \({bad} with 'not finite': {which}\)"
    said = rf"^{lost}: .*not finite.*: check the network"
    with pytest.raises(ValueError, match=said):
        out.checked()
    with pytest.raises(ValueError, match=said):
        fs.sample(broken, p, **run)


def test_sample_takes_what_solve_takes():
    one, other = (inspect.signature(f) for f in (fs.sample, fs.solve))
    assert one.parameters == other.parameters
    assert (one.return_annotation, other.return_annotation) == ("Tensor", "Outcome")
    with pytest.raises(TypeError, match="unexpected keyword argument 'stpes'"):
        fs.sample(lambda z, t: z, fs.VP(), stpes=3)  # noqa: ARG005


def test_a_last_call_that_is_not_finite_is_said_of_its_sample():
    d, x, ends = problem("vp")
    low = float(ends[1])
    broken = lambda z, t: torch.where(torch.tensor([t > low, True, True])[:, None], d(z, t), torch.nan)  # noqa: E731
    out = fs.solve(broken, d.process, solver="ddim", steps=4, x=x, grid="uniform", final="denoise")
    assert out.status == ("not finite", "reached the end", "reached the end")


def test_stochastic_heun_has_the_law_of_its_process():
    p = fs.VP()
    d = fs.Gaussian(p, 0.3, 0.7)
    z = fs.sample(d, p, solver=StochasticHeun(), steps=200, shape=(4000, 1), dtype=torch.float64)
    assert abs(float(z.mean()) - 0.3) < 0.05
    assert abs(float(z.std()) - 0.7) < 0.04


def test_gotta_go_fast_has_the_law_of_its_process():
    p = fs.VP()
    d = fs.Gaussian(p, 0.3, 0.7)
    out = fs.solve(d, p, solver=driver("gotta-go-fast", rtol=0.3, atol=0.2), shape=(40, 16), dtype=torch.float64)
    assert out.ok
    assert int(out.rejected.sum()) > 0
    assert abs(float(out.state.mean()) - 0.3) < 0.12
    assert abs(float(out.state.std()) - 0.7) < 0.12


# ---- predictor-corrector


def test_the_annealed_corrector_is_the_table_s():
    p = fs.VP()
    driven = LangevinCorrected(corrector="annealed", snr=0.2, corrector_steps=2)
    d, x, _ = problem("vp")
    grid = oracle.grid(p, 12)
    ours = fs.solve(d, p, solver=driven, grid=grid, x=x, seed=3)
    table = PredictorCorrector(inner=2, snr=0.2)
    theirs = fs.sample(d, p, solver=table, grid=grid, x=x, seed=3)
    assert torch.allclose(ours.state, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("process", ["vp", "edm", "cld", "blurring"])
@pytest.mark.parametrize("predictor", [DDIM(), DDPM()])
def test_langevin_steps_of_each_sample_s_own_size(process, predictor):
    d, x, _ = problem(process, 4)
    grid = oracle.grid(d.process, 6)
    pc = LangevinCorrected(predictor=predictor, corrector_steps=2)
    whole = fs.solve(d, d.process, solver=pc, grid=grid, x=x, seed=3)
    assert whole.calls.tolist() == [6 * 3] * 4
    alone = fs.solve(d, d.process, solver=pc, grid=grid, x=x[2:3], seed=3, first=2)
    assert torch.allclose(alone.state, whole.state[2:3], rtol=1e-12)
    replay = fs.sample(d, d.process, solver=whole.table(2), x=x[2:3], seed=3, first=2)
    assert torch.allclose(replay, whole.state[2:3], rtol=1e-10)
    weights = [dict(row.form.terms) for row in whole.table(1).rows]
    other = [dict(row.form.terms) for row in whole.table(2).rows]
    assert sum(a != b for a, b in zip(weights, other, strict=True)) == 12


def test_the_corrector_s_size_is_the_ratio_of_norms():
    p, r = fs.VP(), 0.3
    d = fs.Gaussian(p, 0.3, 0.7)
    grid = torch.tensor([0.6, 0.4], dtype=torch.float64)
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pc = LangevinCorrected(predictor=DDIM(), snr=r)
    z = fs.sample(d, p, solver=DDIM(), grid=grid, x=x)
    score = -(z - p.alpha(0.4) * d(z, 0.4)) / p.sigma(0.4) ** 2
    eta = 2 * (r * noise[0].norm(dim=1) / score.norm(dim=1))[:, None] ** 2
    wanted = z + eta * score + (2 * eta).sqrt() * noise[0]
    assert torch.allclose(fs.sample(d, p, solver=pc, grid=grid, x=x, noise=noise), wanted, atol=1e-12)


def test_predictor_corrector_takes_a_budget_and_refuses_what_it_cannot():
    d, x, _ = problem("vp")
    out = fs.solve(d, d.process, solver="predictor-corrector", steps=11, x=x)
    assert out.calls.tolist() == [10, 10, 10]
    for options in ({"corrector": "heun"}, {"snr": 0.0}, {"corrector_steps": 0}, {"predictor": "ddpm"}):
        with pytest.raises(ValueError, match="got "):
            LangevinCorrected(**options)
    with pytest.raises(ValueError, match="a driver"):
        fs.tabulate("predictor-corrector", d.process)
    cld = oracle.process("cld")
    for predictor in (fs.Multistep(), fs.HeunPP(), fs.LearnedVariance(), fs.UniC()):
        with pytest.raises(ValueError, match="steps from its state alone"):
            fs.sample(d, d.process, solver=LangevinCorrected(predictor=predictor), steps=12, x=x)
    with pytest.raises(ValueError, match="for the predictor UniPC"):
        fs.solve(oracle.denoiser(cld), cld, solver=LangevinCorrected(predictor=fs.UniPC()), steps=4, shape=(1, 1))
