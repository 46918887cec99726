"""k-diffusion's convention: the same numbers as its own samplers, its callback, its noise."""

from __future__ import annotations

import inspect
import math
import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import fewstep as fs
from fewstep.interop import k_diffusion as K
from fewstep.interop.carried import carried
from fewstep.interop.tool_names import ALIASES, LABELS, SCHEDULERS

SIGMAS = torch.tensor([14.6, 7.0, 3.1, 1.2, 0.5, 0.1, 0.0], dtype=torch.float64)
THEIRS = ["euler", "heun", "dpm_2", "lms", "dpmpp_2m", "euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral",
          "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"]  # fmt: skip


def model(x, sigma, scale=0.8):
    return torch.tanh(x / (1 + sigma[:, None] ** 2)) * scale


def start(dtype=torch.float64):
    return 14.6 * torch.randn(4, 2, dtype=dtype, generator=torch.Generator().manual_seed(0))


def drawn(seed=1):
    generator = torch.Generator().manual_seed(seed)
    # a noise that also tells the interval it was asked for
    return lambda t, s: torch.randn(4, 2, dtype=torch.float64, generator=generator) + 0.01 * (float(t) - 2 * float(s))


@pytest.fixture(scope="module")
def theirs():
    if find_spec("k_diffusion") is None:
        pytest.skip("pip install --no-deps k-diffusion")
    from fewstep.bench.peers.k_diffusion import _sampling

    return _sampling()


LONGER = ("dpmpp_2m_sde", "dpmpp_3m_sde")  # k-diffusion's own end in an UnboundLocalError at one step


@pytest.mark.parametrize(("name", "sigmas"), [
    pytest.param(name, sigmas, id=f"{name}, {word}")
    for word, sigmas in (("to zero", SIGMAS), ("above zero", SIGMAS[:-1]), ("one step", SIGMAS[-2:]))
    for name in THEIRS
    if word != "one step" or name not in LONGER
])  # fmt: skip
def test_the_numbers_and_the_callbacks_are_k_diffusions(theirs, name, sigmas):
    function, ours, seen, told = getattr(theirs, f"sample_{name}"), {}, [], []
    noisy = "noise_sampler" in inspect.signature(function).parameters
    if noisy:
        ours = {"noise_sampler": drawn(), "s_noise": 1.1} | ({"noises": "separate"} if name == "dpmpp_sde" else {})
    wanted = function(model, start(), sigmas, {"scale": 0.7}, seen.append, True,
                      **({"noise_sampler": drawn(), "s_noise": 1.1} if noisy else {}))  # fmt: skip
    found = getattr(K, f"sample_{name}")(model, start(), sigmas, {"scale": 0.7}, told.append, True, **ours)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)
    assert [a["i"] for a in told] == [a["i"] for a in seen] == list(range(len(sigmas) - 1))
    for a, b in zip(told, seen, strict=True):
        for key in ("x", "sigma", "sigma_hat", "denoised"):
            torch.testing.assert_close(a[key], b[key], rtol=0, atol=1e-13)


@pytest.mark.parametrize(("name", "options"), [("lms", {"order": 2}), ("dpmpp_2m_sde", {"solver_type": "heun"}),
                                               ("dpmpp_2m_sde", {"eta": 0.5}), ("euler_ancestral", {"eta": 0.5}),
                                               ("dpmpp_3m_sde", {"eta": 0.3})])  # fmt: skip
def test_options_mean_what_they_mean_there(theirs, name, options):
    noise = [{"noise_sampler": drawn()} if name != "lms" else {} for _ in range(2)]
    wanted = getattr(theirs, f"sample_{name}")(model, start(), SIGMAS, disable=True, **options, **noise[0])
    found = getattr(K, f"sample_{name}")(model, start(), SIGMAS, disable=True, **options, **noise[1])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_churn_is_k_diffusions(theirs, name, monkeypatch):
    churn = {"s_churn": 2.0, "s_tmin": 0.2, "s_tmax": 10.0, "s_noise": 1.01}
    noises = [torch.randn(4, 2, dtype=torch.float64) for _ in range(6)]
    every, seen, told = iter(noises), [], []
    monkeypatch.setattr(torch, "randn_like", lambda x: next(every))
    wanted = getattr(theirs, f"sample_{name}")(model, start(), SIGMAS, None, seen.append, True, **churn)
    added = iter(xi for xi, sigma in zip(noises, SIGMAS, strict=False) if 0.2 <= sigma <= 10)
    draw = lambda t, s: next(added)  # noqa: E731
    found = getattr(K, f"sample_{name}")(model, start(), SIGMAS, None, told.append, True, noise_sampler=draw, **churn)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)
    assert [float(a["sigma_hat"]) for a in told] == pytest.approx([float(b["sigma_hat"]) for b in seen], rel=1e-12)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)  # of the times that k-diffusion makes itself
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64")
def test_adaptive_and_fast_are_k_diffusions(theirs):
    wanted = theirs.sample_dpm_adaptive(model, start(), 0.1, 14.6, disable=True)
    found = K.sample("dpm_adaptive")(model, start(), SIGMAS[:-1], disable=True)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    levels, asked = [], lambda x, sigma: levels.append(float(sigma[0])) or model(x, sigma)
    wanted = theirs.sample_dpm_fast(asked, start(), 0.1, 14.6, 7, disable=True)
    found = K.sample("dpm_fast")(model, start(), torch.tensor([*levels, 0.1]), disable=True)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 9, 11])
def test_the_fast_one_is_called_as_in_k_diffusion(theirs, n):
    wanted = theirs.sample_dpm_fast(model, start(), 0.1, 14.6, n, {"scale": 0.7}, disable=True)
    found = K.sample_dpm_fast(model, start(), 0.1, 14.6, n, {"scale": 0.7}, disable=True, s_noise=1.0)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("options", [{}, {"order": 2}, {"rtol": 0.01, "h_init": 0.1, "pcoeff": 0.1}])
def test_the_adaptive_one_is_called_as_in_k_diffusion(theirs, options):
    how = {"sigma_min": 0.1, "sigma_max": 14.6, "disable": True, **options}
    wanted = theirs.sample_dpm_adaptive(model, start(), **how)
    torch.testing.assert_close(K.sample_dpm_adaptive(model, start(), **how), wanted, rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="got eta for sample_dpm_adaptive, which runs with 0"):
        K.sample_dpm_adaptive(model, start(), 0.1, 14.6, eta=1.0)
    with pytest.raises(ValueError, match="give 0 < sigma_min < sigma_max"):
        K.sample_dpm_adaptive(model, start(), 0.0, 14.6)


RISING = SIGMAS[:-1].flip(0)


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2", "lms", "dpmpp_2m"])
def test_levels_that_rise_unsample_as_k_diffusion_does(theirs, name):
    x, seen, told = 0.3 * start() / 14.6, [], []
    wanted = getattr(theirs, f"sample_{name}")(model, x, RISING, None, seen.append, True)
    found = getattr(K, f"sample_{name}")(model, x, RISING, None, told.append, True)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    for a, b in zip(told, seen, strict=True):
        for key in ("x", "sigma", "denoised"):
            torch.testing.assert_close(a[key], b[key], rtol=0, atol=1e-12)


def test_unsampling_is_encode_and_comes_back():
    x, fine = 0.3 * start() / 14.6, torch.logspace(math.log10(14.6), -1, 400, dtype=torch.float64)
    denoiser = lambda z, t: model(z, torch.as_tensor(t, dtype=z.dtype).expand(len(z)))  # noqa: E731
    noise = K.sample_unipc_3(model, x, fine.flip(0), disable=True)
    wanted = fs.encode(denoiser, fs.EDM(), z=x, solver="unipc-3", grid=fine)
    torch.testing.assert_close(noise, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(K.sample_unipc_3(model, noise, fine, disable=True), x, rtol=0, atol=1e-5)
    for name, why in (("euler_ancestral", "adds noise"), ("dpm_adaptive", "has its own times")):
        with pytest.raises(ValueError, match=why):
            K.sample(name)(model, x, RISING)
    with pytest.raises(ValueError, match="rise from 0: give levels above 0"):
        K.sample_euler(model, x, SIGMAS.flip(0))


@pytest.mark.parametrize("name", sorted(K.SAMPLERS))
def test_every_sampler_runs_and_tells_its_steps(name):
    told = []

    def guided(x, sigma, model_options=None):
        out = model(x, sigma)
        for hook in (model_options or {}).get("sampler_post_cfg_function", []):
            out = hook({"denoised": out, "uncond_denoised": 0.9 * out})
        return out

    options = {"seed": 3}
    if {"rtol", "atol"} <= set(inspect.signature(K.SAMPLERS[name]).parameters):
        options |= {"rtol": 0.1, "atol": 0.1}  # few steps
    once = K.sample(name)(guided, start(torch.float32), SIGMAS.float(), callback=told.append, disable=True, **options)
    assert once.dtype == torch.float32
    assert bool(once.isfinite().all())
    assert [a["i"] for a in told] == list(range(len(told)))
    if not isinstance(K.SAMPLERS[name](), fs.Driver):
        assert len(told) == len(SIGMAS) - 1
    again = K.sample(name)(guided, start(torch.float32), SIGMAS.float(), disable=True, **options)
    assert torch.equal(once, again)


def test_names_are_those_of_the_registry_and_of_the_tools():
    assert {label for label in LABELS.values()} <= set(ALIASES) <= set(K.SAMPLERS)
    left_out = {name for name in fs.SOLVERS if name.replace("-", "_") not in K.SAMPLERS}
    assert left_out == {"sscs", "sn-ddpm", "npr-ddpm", "taylor-2"}  # blocks alone, or heads that no such model has
    assert K.sample("DPM++ 2M SDE").__name__ == "sample_dpmpp_2m_sde"
    assert K.sample_unipc_3.__name__ == "sample_unipc_3"
    assert "eta" in inspect.signature(K.sample_dpmpp_2m_sde).parameters
    assert "SDE-DPM-Solver++" in K.sample_dpmpp_2m_sde.__doc__
    assert "sample_gaussian_split" in dir(K)


def test_the_page_holds_the_names():
    page = runpy.run_path(str(Path(__file__).parent.parent / "docs" / "names.py"))
    assert set(page["NOTES"]) <= set(ALIASES)
    assert set(page["SPACED"]) == set(SCHEDULERS)
    assert not set(page["LEFT_OUT"]) & set(K.SAMPLERS)
    assert page["main"](["--check"]) == 0, "run python docs/names.py"


def test_cfg_plus_plus_is_its_formula_and_needs_a_guided_model():
    def guided(x, sigma, model_options=None):
        out = {"denoised": model(x, sigma), "uncond_denoised": model(x, sigma, 0.6)}
        return [hook(out) for hook in model_options["sampler_post_cfg_function"]][-1]

    x = start()
    found = K.sample_euler_cfg_pp(guided, x, SIGMAS, disable=True)
    for t, s in zip(SIGMAS[:-1], SIGMAS[1:], strict=True):
        level = t.expand(4)
        x = model(x, level) + s * (x - model(x, level, 0.6)) / t
    torch.testing.assert_close(found, x, rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="give a guided model"):
        K.sample_euler_cfg_pp(lambda x, sigma, model_options: x, start(), SIGMAS, disable=True)


def test_seeds():
    run = lambda **seed: K.sample_euler_ancestral(lambda x, sigma, **_: model(x, sigma), start(), SIGMAS, **seed)  # noqa: E731
    assert torch.equal(run(seed=1), run(extra_args={"seed": 1}))
    assert not torch.equal(run(seed=1), run(seed=2))
    torch.manual_seed(5)
    once = run()
    assert not torch.equal(once, run())
    torch.manual_seed(5)
    assert torch.equal(once, run())
    state = torch.get_rng_state()
    K.sample_dpmpp_2m(model, start(), SIGMAS, disable=True)
    assert torch.equal(torch.get_rng_state(), state)  # what draws no noise leaves the generator alone


def test_on_flows_the_ancestral_samplers_are_those_of_flows():
    flow, x = torch.linspace(0.95, 0, 7, dtype=torch.float64), start() / 14.6
    for name in ("euler_ancestral", "dpmpp_2s_ancestral"):
        found = K.sample(name)(model, x, flow, disable=True, seed=2, process=fs.Flow())
        rectified = fs.tabulate(f"{name.replace('_', '-')}-flow", fs.Flow(), grid=flow)
        wanted = fs.sample(lambda z, t: model(z, torch.full((4,), t)), fs.Flow(), solver=rectified, x=x, seed=2)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)  # times in float32 here


def test_half_precision_goes_to_the_model_and_comes_back():
    seen = []
    x = K.sample_dpmpp_2m(lambda x, sigma: seen.append(x.dtype) or x, start().bfloat16(), SIGMAS.float(), disable=True)
    assert x.dtype == torch.bfloat16
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize(("options", "sentence"), [
    ({"eta": 1.0}, "option 'eta' for sample_res_multistep|option of sample_res_multistep 'eta'"),
    ({"s_noise": 0.9}, "adds no noise"),
    ({"noise_sampler": drawn()}, "adds no noise"),
])  # fmt: skip
def test_options_without_effect_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        K.sample_res_multistep(model, start(), SIGMAS, disable=True, **options)


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"])
def test_eta_0_with_noise_is_the_sampler_without(name):
    run = lambda **options: K.sample(name)(model, start(), SIGMAS, disable=True, **options)  # noqa: E731
    plain = run(eta=0.0)
    for extra in ({"noise_sampler": drawn()}, {"s_noise": 1.003}, {"noise_sampler": drawn(), "s_noise": 0.5}):
        assert torch.equal(run(eta=0, **extra), plain)
    if name == "euler_ancestral":
        torch.testing.assert_close(plain, K.sample_euler(model, start(), SIGMAS, disable=True))


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2"])
def test_s_noise_without_churn_runs_as_in_k_diffusion(name):
    ours = K.sample(name)(model, start(), SIGMAS, disable=True, s_noise=1.003)
    assert torch.equal(ours, K.sample(name)(model, start(), SIGMAS, disable=True))


@pytest.mark.parametrize("kind", [list, tuple, torch.Tensor.numpy, torch.Tensor.float, torch.Tensor.half])
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m_sde"])
def test_sigmas_of_other_kinds_are_the_same_levels(name, kind):
    exact = torch.tensor([14.5, 7.0, 3.0, 1.25, 0.5, 0.125, 0.0], dtype=torch.float64)  # in every precision
    told, options = [], {"disable": True, "seed": 1, "callback": lambda d: told.append(float(d["sigma"]))}
    ours = K.sample(name)(model, start(), kind(exact), **options)
    torch.testing.assert_close(ours, K.sample(name)(model, start(), exact, disable=True, seed=1))
    assert told == exact[:-1].tolist()


def test_whole_sigmas_are_levels_too():
    whole = torch.tensor([14, 7, 3, 1, 0])
    ours = K.sample_dpmpp_2m(model, start(), whole, disable=True)
    assert torch.equal(ours, K.sample_dpmpp_2m(model, start(), whole.double(), disable=True))


@pytest.mark.parametrize("sigmas", [SIGMAS[None], SIGMAS[0], SIGMAS[:, None], SIGMAS > 1, SIGMAS + 0j, "karras", None])
def test_sigmas_that_are_no_row_of_levels_are_refused(sigmas):
    with pytest.raises(ValueError, match=r"sigmas.*give noise levels"):
        K.sample_euler(model, start(), sigmas, disable=True)


@pytest.mark.parametrize("x", [torch.ones(2, 2, dtype=torch.long), torch.ones(2, 2) > 0, torch.ones(2) + 0j,
                               torch.tensor(1.0), [1.0], None])  # fmt: skip
@pytest.mark.parametrize("name", ["euler", "rk45", "dpmpp_2m_sde"])
def test_a_state_that_is_no_batch_of_numbers_is_refused(name, x):
    with pytest.raises(ValueError, match=r"as x: give the state"):
        K.sample(name)(model, x, SIGMAS, disable=True)


@pytest.mark.parametrize("out", [lambda x: None, lambda x: (x,), lambda x: x + 0j, lambda x: x > 0, lambda x: x[:1]])
@pytest.mark.parametrize("levels", [SIGMAS, SIGMAS[-2:]])
def test_a_model_that_returns_no_state_is_refused(levels, out):
    with pytest.raises(ValueError, match=r"returned"):
        K.sample_dpmpp_2m_sde(lambda x, sigma: out(x), start(), levels, disable=True, seed=0)


def test_bad_input_is_refused_and_no_step_is_no_change():
    with pytest.raises(ValueError, match="did you mean"):
        K.sample("dpmpp_2mm")
    with pytest.raises(ValueError, match="rise|fall"):
        K.sample_euler(model, start(), SIGMAS.flip(0), disable=True)
    with pytest.raises(AttributeError, match="sample_nothing"):
        _ = K.sample_nothing
    x = start()
    assert K.sample_euler(model, x, SIGMAS[:1]) is x
    table = fs.tabulate("dpmpp-2m", fs.EDM(), grid=SIGMAS)
    with pytest.raises(ValueError, match="give it its own levels"):
        K.march(table, model, x, SIGMAS[1:])


@pytest.mark.parametrize("name", ["karras", "exponential"])
def test_schedules_are_k_diffusions(theirs, name):
    wanted = getattr(theirs, f"get_sigmas_{name}")(8, 0.03, 14.6)
    torch.testing.assert_close(K.get_sigmas(name, 8, 0.03, 14.6), wanted, rtol=2e-6, atol=0)


def test_schedules_of_a_table():
    process = fs.Discrete()
    for name in SCHEDULERS:
        sigmas = K.get_sigmas(name, 10, process=process)
        assert len(sigmas) == 11
        assert sigmas[-1] == 0
        assert bool((sigmas.diff() < 0).all())
    table = torch.exp(-process.log_snr(torch.arange(1, 1001, dtype=torch.float64) / 1000)).float()
    entries = {"simple": range(999, 0, -100), "ddim_uniform": range(901, 0, -100), "normal": range(999, -1, -111)}
    for name, kept in entries.items():
        torch.testing.assert_close(K.get_sigmas(name, 10, process=process)[:-1], table[list(kept)], rtol=1e-6, atol=0)


@pytest.mark.parametrize("target", [fs.EDM(), fs.Flow()], ids=["edm", "flow"])
@pytest.mark.parametrize("solver", ["unipc-3", "dpmpp-2m-sde", "deis-tab-2", "edm-sde"])
def test_a_table_carried_to_another_process_is_the_same_sampler(solver, target):
    source = fs.VP()
    table = fs.tabulate(solver, source, steps=6)
    there = carried(table, target)
    x0 = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
    norm = lambda process, t: math.hypot(process.alpha(float(t)), process.sigma(float(t)))  # noqa: E731
    denoise = lambda process: lambda z, t: x0 + 0.1 * torch.tanh(z / norm(process, t))  # noqa: E731
    scale = lambda k: norm(source, table.grid[k]) / norm(target, there.grid[k])  # noqa: E731
    z = torch.randn(3, 2, dtype=torch.float64)
    here = fs.sample(denoise(source), source, solver=table, x=z)
    found = scale(-1) * fs.sample(denoise(target), target, solver=there, x=z / scale(0))
    torch.testing.assert_close(found, here, rtol=0, atol=1e-10)
