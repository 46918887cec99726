"""The loop: what it returns, counts, and promises about memory, noise and compilation."""

from __future__ import annotations

import math
import weakref
from functools import partial
from importlib import import_module

import pytest
import torch

import fewstep as fs
from fewstep.denoiser import Counted
from fewstep.loop import Plan, walk
from fewstep.loop.rows import InPlace
from fewstep.tableau import Form, NoiseInterval, Row, Tableau
from oracle import DISTINCT

VP = fs.VP()
ON_VP = [name for name in DISTINCT if "scalar" in fs.TABLES[name]().kinds]


@pytest.fixture(scope="module")
def mixture() -> fs.Mixture:
    means = torch.tensor([[1.0, -0.5], [-1.0, 0.3], [0.2, 1.5]])
    return fs.Mixture(VP, means, torch.tensor([0.2, 0.4, 0.3]))


class Network(torch.nn.Module):
    """A tiny convolution that depends on time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.two(torch.tanh(self.one(x) + t.to(x.dtype)[:, None, None, None]))


@pytest.mark.parametrize("solver", ON_VP)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
def test_calls_counted_are_calls_planned(solver, steps, mixture):
    made = fs.TABLES[solver]()
    lowest = made.calls(1, to_zero=made.reaches_zero(VP))
    if steps < lowest:
        with pytest.raises(ValueError, match=f"at least {lowest} calls"):
            fs.tabulate(solver, VP, steps=steps)
        return
    table, counted = fs.tabulate(solver, VP, steps=steps), Counted(mixture)
    x = fs.sample(counted, VP, solver=table, shape=(4, 2), seed=1)
    assert counted.calls == table.nfe <= steps
    assert counted.evaluations == 4 * table.nfe
    assert x.shape == (4, 2)
    assert x.isfinite().all()


def test_thousand_steps(mixture):
    for solver in ("ddpm", "unipc-3", "multistep-pc-3"):
        assert fs.sample(mixture, VP, solver=solver, steps=1000, shape=(4, 2)).isfinite().all()


def test_nfe_is_exact_or_refused_with_the_nearest(mixture):
    heun = partial(fs.tabulate, "heun", VP)  # whose step to sigma = 0 is one call
    for final, fits, other, nearest in (
        ("zero", 7, 6, "5 or 7"), ("state", 6, 7, "6 or 8"), ("denoise", 7, 8, "6 or 8"),
    ):  # fmt: skip
        assert heun(nfe=fits, final=final).nfe == fits - (final == "denoise") == heun(steps=fits, final=final).nfe
        with pytest.raises(ValueError, match=f"takes {nearest} calls"):
            heun(nfe=other, final=final)


def test_denoise_spends_one_of_the_calls(mixture):
    counted = Counted(mixture)
    x = fs.sample(counted, VP, steps=5, shape=(4, 2), final="denoise")
    assert counted.calls == 5
    z = fs.sample(mixture, VP, steps=4, shape=(4, 2), final="state")
    assert torch.equal(x, mixture(z, VP.t_min))
    with pytest.raises(ValueError, match="at least 2"):
        fs.sample(mixture, VP, steps=1, shape=(4, 2), final="denoise")
    with pytest.raises(ValueError, match="got steps='5': give a whole number"):
        fs.sample(mixture, VP, steps="5", shape=(4, 2), final="denoise")


def test_state_at_the_last_time_of_an_explicit_grid():
    times = torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64)
    z_T = torch.randn(3, 5, dtype=torch.float64)
    point = fs.Mixture(VP, torch.full((1, 5), 0.7), 0.0)
    z = fs.sample(point, VP, solver="unipc-2", grid=times, x=z_T)
    eps = (z_T - VP.alpha(1.0) * 0.7) / VP.sigma(1.0)
    assert torch.allclose(z, VP.diffuse(torch.full((3, 5), 0.7, dtype=torch.float64), 0.2, eps), atol=1e-12)


@pytest.mark.parametrize("solver", ["ddpm", "edm-sde", "unipc-3"])
def test_a_sample_does_not_depend_on_its_batch(solver, mixture):
    whole = fs.sample(mixture, VP, solver=solver, steps=50, shape=(64, 2), seed=3)
    for first, size in ((17, 1), (16, 3), (0, 64)):
        part = fs.sample(mixture, VP, solver=solver, steps=50, shape=(size, 2), seed=3, first=first)
        assert torch.allclose(part, whole[first : first + size], atol=1e-5)


def test_stochastic_solvers_follow_one_path(mixture):
    """The same seed at 200 and at 400 steps ends near the same place; another seed does not."""
    kind = {"shape": (256, 2), "solver": "ddpm", "grid": "log-snr", "dtype": torch.float64}
    coarse, fine, other = (fs.sample(mixture, VP, steps=n, seed=s, **kind) for n, s in ((200, 0), (400, 0), (400, 1)))
    assert (coarse - fine).square().mean() < 0.2 * (coarse - other).square().mean()


def test_generator_and_ready_noise(mixture):
    a, b = (
        fs.sample(mixture, VP, solver="ddpm", steps=5, shape=(4, 2), noise=torch.Generator().manual_seed(7))
        for _ in range(2)
    )
    assert torch.equal(a, b)
    x = torch.randn(4, 2, dtype=torch.float64)
    ready = torch.randn(5, 4, 2, dtype=torch.float64)
    times = fs.tabulate("ddpm", VP, steps=5, final="state").grid
    z = x
    for k, (t, s) in enumerate(zip(times[:-1].tolist(), times[1:].tolist(), strict=True)):
        ratio = VP.alpha(t) / VP.alpha(s)
        gain = ratio * VP.sigma(s) ** 2 / VP.sigma(t) ** 2
        d = mixture(z, t)
        std = math.sqrt(VP.sigma(s) ** 2 - gain**2 * VP.sigma(t) ** 2)
        z = VP.alpha(s) * d + gain * (z - VP.alpha(t) * d) + std * ready[k]
    assert torch.allclose(
        fs.sample(mixture, VP, solver="ddpm", steps=5, x=x, noise=ready, final="state"), z, atol=1e-12
    )


def test_bfloat16_network_keeps_a_float32_state():
    network = Network().to(torch.bfloat16)
    seen = []
    denoiser = fs.wrap(lambda x, t: (seen.append((x.dtype, t.dtype)), network(x, t))[1], VP, "v", dtype=torch.bfloat16)
    x = fs.sample(denoiser, VP, steps=3, shape=(2, 1, 8, 8))
    assert x.dtype == torch.float32
    assert set(seen) == {(torch.bfloat16, torch.float32)}


def test_compiles_as_one_graph():
    denoiser = fs.wrap(Network(), VP, "v")
    for solver in ("unipc-3", "ddpm"):
        table = fs.tabulate(solver, VP, steps=4)
        plan, z = Plan.of(table, denoiser), torch.randn(2, 1, 8, 8)
        noises = [torch.randn_like(z) for _ in table.noises]
        with torch.no_grad():
            compiled = torch.compile(partial(walk, plan), fullgraph=True, backend="aot_eager")
            assert torch.allclose(compiled(z, noises), walk(plan, z, noises), atol=1e-5)


def test_inference_mode_unless_asked_otherwise():
    network = Network()
    denoiser = fs.wrap(network, VP, "v")
    assert not fs.sample(denoiser, VP, steps=3, shape=(2, 1, 8, 8)).requires_grad
    x = fs.sample(denoiser, VP, solver="heun", steps=4, shape=(2, 1, 8, 8), differentiable=True)
    x.square().sum().backward()
    assert network.one.weight.grad.abs().sum() > 0
    seen = []

    def guided(z, t):
        seen.append(torch.is_inference_mode_enabled())
        return z * 0.5

    guided.needs_grad = True
    fs.sample(guided, VP, steps=2, shape=(1, 3))
    assert seen == [False, False]


def test_memory_is_the_live_rows(monkeypatch):
    """A hundred steps of DDIM never hold more than a handful of states at once."""
    alive, most, places = [], [0], set()

    def denoiser(z, t):
        out = z * 0.9
        alive.append(weakref.ref(out))
        most[0] = max(most[0], sum(ref() is not None for ref in alive))
        return out

    class Seen(InPlace):
        def make(self, step):
            z = super().make(step)
            places.add(z.data_ptr())
            return z

    for solver, outputs, states in (("ddim", 2, 4), ("unipc-3", 4, 8)):
        alive.clear()
        places.clear()
        most[0] = 0
        with monkeypatch.context() as patch:
            patch.setattr(import_module("fewstep.loop.walk"), "SideBySide", lambda columns, start: Seen({}, start))
            fs.sample(denoiser, VP, solver=solver, steps=100, shape=(1, 4))
        assert most[0] <= outputs
        assert 0 < len(places) <= states  # states are written where states were


def test_callback_and_hook(mixture):
    seen = []
    fs.sample(mixture, VP, solver="ddim", steps=3, shape=(2, 2), callback=lambda *a: seen.append(a))
    assert [row for row, *_ in seen] == [0, 1, 2]
    assert all(state.shape == x0.shape == (2, 2) for _, _, state, x0 in seen)
    assert torch.equal(seen[1][3], mixture(seen[1][2], seen[1][1]))
    fixed = fs.sample(mixture, VP, steps=3, shape=(2, 2), final="state", after=lambda row, t, z: torch.full_like(z, t))
    assert torch.equal(fixed, torch.full((2, 2), VP.t_min))


def test_variance_heads_and_given_rows():
    """A hand-made table: z1 = given + 2 x0[0] + sqrt(variance[0]) xi0."""
    form = Form({("z", 1): 1.0, ("y", 0, "x0"): 2.0, ("root", 0, "variance", 0): 1.0})
    table = Tableau(
        rows=(Row(1.0, 1.0, Form({}), "start"), Row(1.0, None, Form({}), "condition"), Row(0.5, None, form)),
        noises=(NoiseInterval(1.0, 0.5),),
        process=VP,
        grid=torch.tensor([1.0, 0.5], dtype=torch.float64),
    )
    x, given, xi = (torch.randn(3, 2, dtype=torch.float64) for _ in range(3))
    denoiser = lambda z, t: {"x0": z + 1, "variance": z**2}  # noqa: E731
    z = fs.sample(denoiser, VP, solver=table, x=x, given={"condition": given}, noise=xi[None])
    assert torch.allclose(z, given + 2 * (x + 1) + x.abs() * xi)
    with pytest.raises(ValueError, match="given row 'condition'"):
        fs.sample(denoiser, VP, solver=table, x=x)


@pytest.mark.parametrize(("name", "data"), [("cld", (1, 4, 4)), ("blurring", (1, 4, 4)), ("flow", (1, 4, 4))])
def test_other_processes_sample_by_default(name, data):
    process = fs.PROCESSES[name](**({"size": (4, 4)} if name == "blurring" else {}))
    gaussian = fs.Gaussian(process, 0.3, 0.5)
    z = fs.sample(gaussian, process, steps=40, shape=(512, *data), dtype=torch.float64)
    x = process.to_data(z)
    assert x.shape == (512, *data)
    assert abs(float(x.mean()) - 0.3) < 0.03
    assert abs(float(x.std()) - 0.5) < 0.03


@pytest.mark.parametrize("name", ["vp", "ve", "edm", "flow", "cld", "discrete"])
def test_a_start_inside_the_grid_has_the_marginal_of_its_time(name):
    process = fs.PROCESSES[name]()
    start = process.t_min + 0.6 * (process.t_max - process.t_min)
    grid = process.inverse_log_snr(
        torch.linspace(process.log_snr(start), 4.0, 60, dtype=torch.float64),
    )
    gaussian = fs.Gaussian(process, 0.0, 0.5)
    z = fs.sample(gaussian, process, solver="ddim", grid=grid, shape=(20_000, 1), dtype=torch.float64)
    spread = process.to_data(fs.sample(gaussian, process, solver="ddim", grid=grid[:2], shape=(20_000, 1)))
    assert process.to_data(z).abs().max() < 5  # a start at the level of t_max would still be far out
    assert spread.isfinite().all()
    z0 = process.prior(torch.randn(20_000, *process.state_shape((1,))).double(), start)
    assert float(z0.var()) == pytest.approx(float(z0.new_tensor(0) + _level(process, start)), rel=0.05)


def _level(process, t: float) -> float:
    sigma = process.Sigma(t)
    if process.kind != "block":
        return sigma
    return float(sigma.values.diagonal().mean())


@pytest.mark.parametrize("solver", [name for name in ON_VP if not fs.TABLES[name]().heads])
@pytest.mark.parametrize("view", [lambda z, t: z, lambda z, t: z[:], lambda z, t: z.view(-1).view_as(z)])
def test_a_denoiser_may_return_its_input(solver, view):
    a, b = (
        fs.sample(d, VP, solver=solver, steps=9, shape=(3, 2), seed=1) for d in (view, lambda z, t: view(z, t).clone())
    )
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    "options",
    [{"solver": "ddim"}, {"solver": "ddim", "parallel": 2}, {"solver": "rk45"}, {"solver": "predictor-corrector"}],
    ids=["table", "parallel", "adaptive", "driver"],
)
def test_a_run_tells_how_far_it_is(mixture, monkeypatch, options):
    told, shown = [], []
    run = partial(fs.sample, mixture, mixture.process, shape=(2, *mixture.means.shape[1:]), **options)
    one = run(progress=told.append)
    assert len(told) > 5
    assert all(0 <= share <= 1 for share in told)
    assert told[-1] == 1
    assert len({round(share, 6) for share in told}) > 5
    assert sum(b < a for a, b in zip(told, told[1:])) <= len(told) / 10  # noqa: B905 - a rejected step goes back
    monkeypatch.setattr("fewstep.terminal.Bar.to", lambda bar, done: shown.append(done / bar.total))
    assert torch.equal(run(), one)
    assert shown == pytest.approx(told)
    shown.clear()
    run(progress=False)
    assert shown == []


def test_solver_classes_and_factories_are_solvers(mixture):
    a, b = (fs.sample(mixture, VP, solver=s, steps=4, shape=(1, 2)) for s in (fs.DDIM, fs.TABLES["ddim"]))
    assert torch.equal(a, b)


def test_callbacks_get_x0_hat_in_data_space():
    blurring = fs.Blurring(size=(4, 4))
    gaussian, seen = fs.Gaussian(blurring, 0.4, 0.2), []
    fs.sample(gaussian, blurring, steps=3, shape=(1, 1, 4, 4), callback=lambda *a: seen.append(a))
    _, t, z, x0 = seen[0]
    assert torch.allclose(x0, gaussian(z, t), atol=1e-6)
    network, seen = fs.wrap(Network(), VP, "v"), []
    table = fs.tabulate("ddim", VP, steps=3).in_terms_of("v")
    fs.sample(network, VP, solver=table, shape=(1, 1, 8, 8), callback=lambda *a: seen.append(a))
    _, t, z, x0 = seen[1]
    assert torch.allclose(x0, network(z, t), atol=1e-5)


def test_no_graph_leaves_a_denoiser_that_differentiates():
    network = Network()

    def guided(z, t):
        with torch.enable_grad():
            return fs.wrap(network, VP, "v")(z, t)

    guided.needs_grad = True
    assert not fs.sample(guided, VP, steps=3, shape=(1, 1, 8, 8)).requires_grad


@pytest.mark.parametrize("run", [fs.sample, fs.solve])
def test_the_last_call_may_differentiate_inside_too(run):
    def slope(x, t):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(x.square().sum(), x)[0]

    denoiser = fs.wrap(slope, VP, needs_grad=True)
    found = run(denoiser, VP, steps=3, shape=(2, 3), final="denoise")
    assert not getattr(found, "state", found).requires_grad


def test_differentiable_after_an_ordinary_run_on_blurring():
    blurring = fs.Blurring(size=(6, 6))
    gaussian = fs.Gaussian(blurring, 0.4, 0.2)
    fs.sample(gaussian, blurring, steps=2, shape=(1, 1, 6, 6))
    x = torch.randn(1, 1, 6, 6, requires_grad=True)
    fs.sample(gaussian, blurring, steps=2, x=x, differentiable=True).sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("process", [fs.Flow(), fs.EDM(sigma_min=0.0), fs.VP(t_min=0.0)])
def test_denoising_at_a_clean_end(process):
    gaussian = fs.Gaussian(process, 0.4, 0.2)
    x = fs.sample(gaussian, process, solver="ddim", grid="uniform", steps=5, shape=(2, 3), final="denoise")
    z = fs.sample(gaussian, process, solver="ddim", grid="uniform", steps=4, shape=(2, 3))
    assert torch.allclose(x, z)


def test_scalar_data():
    mixture = fs.Mixture(VP, torch.tensor([1.0, -1.0]), 0.1)
    x = fs.sample(mixture, VP, steps=20, shape=(64,))
    assert x.shape == (64,)
    assert (x.abs() - 1).abs().max() < 0.6
