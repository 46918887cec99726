"""The names of ComfyUI and webui: each formula written here again, on x = x0 + sigma eps, beside its solver."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fewstep as fs
from fewstep.interop import k_diffusion as K
from fewstep.words import placed

SIGMAS = torch.tensor([14.6, 7.0, 3.1, 1.2, 0.5, 0.1, 0.0], dtype=torch.float64)
Step = Callable[[Tensor, float, float], Tensor]


def model(x: Tensor, sigma: Tensor, scale: float = 0.8, **_: Any) -> Tensor:
    return torch.tanh(x / (1 + sigma[:, None] ** 2)) * scale


def d_of(x: Tensor, t: float, scale: float = 0.8) -> Tensor:
    return model(x, torch.full((len(x),), t, dtype=x.dtype), scale)


def guided(x: Tensor, sigma: Tensor, model_options: Any = None) -> Tensor:
    out = {"denoised": model(x, sigma), "uncond_denoised": model(x, sigma, 0.6)}
    return [hook(out) for hook in model_options["sampler_post_cfg_function"]][-1]


def start() -> Tensor:
    return 14.6 * torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def normals(seed: int = 1) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *_: torch.randn(4, 2, dtype=torch.float64, generator=generator)


def pairs(sigmas: Tensor) -> Iterator[tuple[int, float, float]]:
    levels = sigmas.tolist()
    yield from ((i, *pair) for i, pair in enumerate(zip(levels[:-1], levels[1:], strict=True)))


def integrals(low: float, high: float, weight: Callable[[Any], Any], places: list[float]) -> list[float]:
    """The integrals of weight times each Lagrange polynomial through the places."""
    node, share = np.polynomial.legendre.leggauss(60)
    u, share = low + (high - low) * (node + 1) / 2, share * (high - low) / 2
    basis = [np.prod([(u - b) / (a - b) for b in places if b != a], axis=0) * np.ones_like(u) for a in places]
    return [float((share * weight(u) * b).sum()) for b in basis]


def same(name: str, wanted: Tensor, sigmas: Tensor = SIGMAS, tolerance: float = 1e-12, **options: Any) -> None:
    asked = options.pop("model", model)
    found = K.sample(name)(asked, start(), sigmas, disable=True, **options)
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


def test_res_multistep() -> None:
    """Exponential Adams-Bashforth of two points in log sigma."""
    x, past = start(), []
    for _, t, s in pairs(SIGMAS):
        past = [(-math.log(t), d_of(x, t)), *past][:2]
        if s == 0:
            x = past[0][1]
            continue
        b = integrals(-math.log(t), -math.log(s), lambda u, s=s: s * np.exp(u), [u for u, _ in past])
        x = s / t * x + sum(c * d for c, (_, d) in zip(b, past, strict=True))
    same("res_multistep", x)


ADAMS = [[1.0], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]


def test_ipndm() -> None:
    x, past = start(), []
    for _, t, s in pairs(SIGMAS):
        past = [(x - d_of(x, t)) / t, *past][:4]
        slope = past[0] if s == 0 else sum(w * p for w, p in zip(ADAMS[len(past) - 1], past, strict=True))
        x = x + (s - t) * slope
    same("ipndm", x)


def test_ipndm_v() -> None:
    """Adams-Bashforth on unequal steps up to two points, on equal ones up to three; its fourth weights are its own."""
    x, past = start(), []
    for _, t, s in pairs(SIGMAS):
        past = [(t, (x - d_of(x, t)) / t), *past][:2]
        b = integrals(t, s, np.ones_like, [u for u, _ in past] if s else [t])
        x = x + sum(c * e for c, (_, e) in zip(b, past, strict=False))
    same("ipndm_v", x, max_order=2)
    even = torch.linspace(12, 2, 6, dtype=torch.float64)
    same("ipndm_v", K.sample("ipndm")(model, start(), even, disable=True, max_order=3), even, max_order=3)
    x, past = start(), []
    for _, t, s in pairs(even):
        past = [(x - d_of(x, t)) / t, *past][:4]
        weights = [*ADAMS[:3], [57 / 24, -65 / 24, 43 / 24, -11 / 24]][len(past) - 1]
        x = x + (s - t) * sum(w * e for w, e in zip(weights, past, strict=True))
    same("ipndm_v", x, even)


def test_deis_in_sigma() -> None:
    """Polynomials in sigma through three slopes."""
    x, past = start(), []
    for _, t, s in pairs(SIGMAS):
        past = [(t, (x - d_of(x, t)) / t), *past][:3]
        b = integrals(t, s, np.ones_like, [u for u, _ in past])
        x = x + sum(c * e for c, (_, e) in zip(b, past, strict=True))
    same("deis", x)


@pytest.mark.parametrize("options", [{}, {"ge_gamma": 1.3}])
@pytest.mark.parametrize("plus", [False, True])
def test_gradient_estimation(options: dict[str, float], plus: bool) -> None:
    """Euler with (gamma - 1) of the change of the slope; in CFG++ the slope is the unguided one."""
    x, last, gamma = start(), None, options.get("ge_gamma", 2.0)
    for _, t, s in pairs(SIGMAS):
        d = d_of(x, t)
        slope = (x - (d_of(x, t, 0.6) if plus else d)) / t
        turn = 0.0 if last is None else (gamma - 1) * (s - t) * (slope - last)
        x = d if s == 0 else (d + s * slope if plus else x + (s - t) * slope) + turn
        last = slope
    name = "gradient_estimation_cfg_pp" if plus else "gradient_estimation"
    same(name, x, model=guided if plus else model, **options)


def test_heunpp2() -> None:
    """Slopes at up to three levels ahead, the later ones weighed by their share of sigma over the first's."""
    x, levels = start(), SIGMAS.tolist()
    for i in range(len(levels) - 1):
        ahead, slopes, count = x, [], min(3, len(levels) - 1 - i)
        for j in range(count):
            slopes.append((ahead - d_of(ahead, levels[i + j])) / levels[i + j])
            ahead = ahead + (levels[i + j + 1] - levels[i + j]) * slopes[-1]
        shares = [levels[i + j] / (count * levels[0]) for j in range(1, count)]
        mean = (1 - sum(shares)) * slopes[0] + sum(w * e for w, e in zip(shares, slopes[1:], strict=True))
        x = x + (levels[i + 1] - levels[i]) * mean
    same("heunpp2", x)


@pytest.mark.parametrize("name", ["lcm", "ddpm"])
def test_renoising(name: str) -> None:
    """lcm: x0_hat + sigma xi. ddpm: the posterior of a step, given x0_hat."""
    x, draw = start(), normals()
    for _, t, s in pairs(SIGMAS):
        d = d_of(x, t)
        keep = 0.0 if name == "lcm" else s * s / (t * t)
        spread = s if name == "lcm" else s * math.sqrt(1 - s * s / (t * t))
        x = d + keep * (x - d) + (spread * draw() if s else 0.0)
    same(name, x, noise_sampler=normals())


def test_lcm_on_flows() -> None:
    grid, x, draw = torch.linspace(1, 0, 6, dtype=torch.float64), start() / 14.6, normals()
    for _, t, s in pairs(grid):
        x = (1 - s) * d_of(x, t) + (s * draw() if s else 0.0)
    found = K.sample("lcm")(model, start() / 14.6, grid, disable=True, process=fs.Flow(), noise_sampler=normals())
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("points", [1, 2, 3])
def test_er_sde(points: int) -> None:
    """r x + (1 - r) D + int (1 - phi(s)/phi(u)) (D' + D'' (u - t)) du, by quadrature; phi(u) = u (e^(u^0.3) + 10)."""
    phi = lambda u: u * (np.exp(u**0.3) + 10.0)  # noqa: E731
    x, draw, past = start(), normals(), []
    for _, t, s in pairs(SIGMAS):
        past = [(t, d_of(x, t)), *past][:points]
        d = past[0][1]
        if s == 0:
            x = d
            continue
        r = float(phi(s) / phi(t))
        x = r * x + (1 - r) * d + math.sqrt(s * s - (r * t) ** 2) * draw()
        slopes = [(a - b) / (u - v) for (u, a), (v, b) in zip(past, past[1:], strict=False)]
        bend = [2 * (slopes[0] - slopes[1]) / (t - past[2][0])] if len(past) == 3 else []
        for order, slope in enumerate([*slopes[:1], *bend]):
            kernel = lambda u, k=order, s=s, t=t: (1 - phi(s) / phi(u)) * (u - t) ** k  # noqa: E731
            x = x + integrals(t, s, kernel, [t])[0] * slope
    same("er_sde", x, max_stage=points, noise_sampler=normals(), tolerance=1e-9)


@pytest.mark.parametrize(("name", "places", "options"), [
    ("seeds_2", (1 / 2,), {}), ("seeds_2", (1 / 2,), {"solver_type": "phi_2"}), ("seeds_2", (1 / 2,), {"eta": 0.4}),
    ("seeds_3", (1 / 3, 2 / 3), {}),
])  # fmt: skip
def test_seeds(name: str, places: tuple[float, ...], options: dict[str, Any]) -> None:
    """Exponential stages of the SDE in log sigma, all on one path of noise."""
    eta, x, draw = options.get("eta", 1.0), start(), normals()
    for _, t, s in pairs(SIGMAS):
        if s == 0:
            x = d_of(x, t)
            continue
        h = math.log(t / s)
        lams = [-math.log(t) + r * h for r in (0.0, *places, 1.0)]
        found, noise, state, where = [], torch.zeros_like(x), x, lams[0]
        for k, lam in enumerate(lams[1:]):
            found.append((where, d_of(state, math.exp(-where))))
            step = lam - where
            noise = math.exp(-(1 + eta) * step) * noise
            noise = noise + math.exp(-lam) * math.sqrt(-math.expm1(-2 * eta * step)) * draw()
            used = found if k < 2 else [found[0], found[2]]
            kernel = lambda u, lam=lam: (1 + eta) * np.exp((1 + eta) * (u - lam))  # noqa: E731
            if name == "seeds_2" and k == 1 and options.get("solver_type") != "phi_2":
                used = used[1:]  # phi_1: the prediction of the middle for the whole step
            b = integrals(lams[0], lam, kernel, [u for u, _ in used])
            fall = math.exp(-(1 + eta) * (lam - lams[0]))
            state = fall * x + sum(c * d for c, (_, d) in zip(b, used, strict=True)) + noise
            where = lam
        x = state
    same(name, x, noise_sampler=normals(), tolerance=1e-11, **options)


@pytest.mark.parametrize("tau", [1.0, 0.0])
def test_sa_solver(tau: float) -> None:
    """Stochastic Adams, predictor of three points and corrector of four, on levels that do not end at 0."""
    levels, draw, rate = SIGMAS[:-1], normals(), 1 + tau**2
    x = ahead = start()
    past, before = [], None
    for _, t, s in pairs(levels):
        past = [(-math.log(t), d_of(ahead, t)), *past][:4]
        x = ahead
        if before is not None:  # the step again, with the prediction made at its end
            fixed, low = before
            kernel = lambda u, t=t: rate * np.exp(rate * (u + math.log(t)))  # noqa: E731
            b = integrals(low, -math.log(t), kernel, [u for u, _ in past])
            x = fixed + sum(c * d for c, (_, d) in zip(b, past, strict=True))
        noise = s * math.sqrt(1 - (s / t) ** (2 * tau**2)) * draw() if tau else 0.0
        fixed = (s / t) ** rate * x + noise
        kernel = lambda u, s=s: rate * np.exp(rate * (u + math.log(s)))  # noqa: E731
        b = integrals(-math.log(t), -math.log(s), kernel, [u for u, _ in past[:3]])
        ahead = fixed + sum(c * d for c, (_, d) in zip(b, past, strict=False))
        before = (fixed, -math.log(t))
    if tau:
        return same("sa_solver", ahead, levels, noise_sampler=normals(), tolerance=1e-10)
    return torch.testing.assert_close(
        K.march(fs.SASolver(tau=0.0), model, start(), levels, disable=True), ahead, rtol=0, atol=1e-10
    )


def test_cfg_plus_plus_around_others() -> None:
    """euler_ancestral: x0_hat guided, the slope unguided. dpmpp_2m: 2M on the unguided, and the guidance."""
    x, draw = start(), normals()
    for _, t, s in pairs(SIGMAS):
        up = s * math.sqrt(1 - s * s / (t * t))
        x = d_of(x, t) + s * s / t * (x - d_of(x, t, 0.6)) / t + (up * draw() if s else 0.0)
    same("euler_ancestral_cfg_pp", x, model=guided, noise_sampler=normals())
    x, last = start(), None
    for i, t, s in pairs(SIGMAS):
        d, u = d_of(x, t), d_of(x, t, 0.6)
        ratio = math.log(t / s) / math.log(float(SIGMAS[i - 1]) / t) if i and s else 0.0
        slope = 0.0 if last is None else 0.5 * ratio * (u - last)
        x, last = s / t * x + (1 - s / t) * (u + slope) + d - u, u
    same("dpmpp_2m_cfg_pp", x, model=guided)


TABLE = fs.Discrete()
LEVELS = torch.exp(-TABLE.log_snr(torch.arange(1, 1001, dtype=torch.float64) / 1000))


def at(index: Any) -> Tensor:
    """The level at entries of the table, log-linear in between as ComfyUI has it."""
    place = torch.as_tensor(index, dtype=torch.float64)
    left = place.floor().clamp(max=998).long()
    logs = LEVELS.log()
    return (logs[left] + (place - left) * (logs[left + 1] - logs[left])).exp()


def test_schedulers() -> None:
    from scipy.stats import beta

    n, first, last = 10, float(LEVELS[-1]), float(LEVELS[0])
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    wanted = {
        "normal": at(999 * (1 - ramp)),
        "sgm_uniform": at(999 * (1 - torch.arange(n, dtype=torch.float64) / n)),
        "simple": LEVELS[[999 - 100 * i for i in range(n)]],
        "ddim_uniform": LEVELS[[901 - 100 * i for i in range(n)]],
        "kl_optimal": torch.tan(math.atan(first) + ramp * (math.atan(last) - math.atan(first))),
        "beta": at(999 * torch.tensor([float(beta.ppf(1 - i / n, 0.6, 0.6)) for i in range(n)])),
    }
    way = [i * 0.025 / 5 for i in range(5)]
    # beyond the half: a parabola that meets it, and its slope, and 1 at the end
    rest = 1 - 0.025 / 5 * n
    wanted["linear_quadratic"] = first * (1 - torch.tensor(
        [*way, *(0.025 / 5 * i + rest * ((i - 5) / 5) ** 2 for i in range(5, n))], dtype=torch.float64
    ))  # fmt: skip
    for name, levels in wanted.items():
        found = K.get_sigmas(name, n, process=TABLE).double()
        assert found[-1] == 0
        between = name in ("sgm_uniform", "normal", "beta")  # entries: log sigma is linear there, and log alpha here
        torch.testing.assert_close(found[:-1], levels, rtol=1e-3 if between else 2e-6, atol=0)
    table, flow = (K.get_sigmas("linear_quadratic", 6, process=p) for p in (fs.EDM(sigma_max=8.0), fs.Flow()))
    torch.testing.assert_close(table, 8 * flow)


def test_what_is_left_out_is_not_offered() -> None:
    with pytest.raises(ValueError, match="did you mean"):
        K.sample("sa_solver_pece")


@pytest.mark.parametrize("name", fs.SOLVERS)
def test_a_name_of_ours_is_read_as_it_is_however_it_ends(name: str) -> None:
    assert placed(fs.SOLVERS, name, "default") == (name, "default")
    if name in fs.TABLES and "scalar" in fs.TABLES[name]().kinds:
        assert fs.tabulate(name, fs.VP(), steps=12).solver == fs.TABLES[name]()
