"""The stochastic families: which are which, that noise off is the ODE, weak order on Gaussians, strong on one path."""

from __future__ import annotations

import math
from functools import cache, partial

import pytest
import torch
from scipy.integrate import quad

import fewstep as fs
import oracle
from fewstep.check.exactness import check_point_mass
from fewstep.process import PROCESSES, Flow
from fewstep.process.operator import inverse, magnitude
from fewstep.solver import (
    DDIM,
    DDPM,
    ERSDE,
    LCM,
    SEEDS,
    Ancestral,
    DPMMultistep,
    EDMHeun,
    Multistep,
    Restart,
    SASolver,
    SDEMultistep,
    Singlestep,
)
from fewstep.solver.sde.reverse import carry, reverse
from fewstep.tableau import Tableau
from oracle import numbers

torch.set_num_threads(1)

KINDS = ("vp", "blurring", "cld")


@cache
def problem(name: str):
    return oracle.Problem(name)


def table(solver, process: str, steps: int = 5) -> Tableau:
    p = problem(process).process
    return solver.tabulate(p, oracle.grid(p, steps))


def assert_same(a: Tableau, b: Tableau, tolerance: float = 1e-12) -> None:
    """Equal eliminated tables: the same sampler."""
    left, right = numbers(a), numbers(b)
    assert len(left) == len(right)
    for x, y in zip(left, right, strict=True):
        for key in x.keys() | y.keys():
            assert magnitude(x.get(key, 0.0) - y.get(key, 0.0)) < tolerance * (1 + magnitude(x.get(key, 0.0))), key


# without noise: (stochastic solver with its noise off, the deterministic one, processes)
ODES = {
    "1": (SDEMultistep(points=1, eta=0.0), DDIM(), KINDS),
    "2m": (SDEMultistep(eta=0.0), DPMMultistep(points=2, final_ramp=False), ("vp", "flow")),
    "2m-heun": (SDEMultistep(eta=0.0, type="heun"), Multistep(points=2), KINDS),
    "3m": (
        SDEMultistep(points=3, eta=0.0, type="heun"),
        DPMMultistep(points=3, type="heun", final_ramp=False),
        ("vp",),
    ),
    "3m-corrected": (SDEMultistep(points=3, eta=0.0, type="heun", corrected=True), Multistep(points=3), KINDS),
    "2m-noise": (SDEMultistep(eta=0.0, form="noise", type="heun"), Multistep(points=2, form="noise"), KINDS),
    "ramp": (SDEMultistep(eta=0.0, final_ramp=True), DPMMultistep(points=2, final_ramp=True), ("vp",)),
    "sa": (SASolver(tau=0.0), Multistep(points=3, corrector=True), KINDS),
    "sa-outside": (SASolver(tau_min=1e6), Multistep(points=3, corrector=True), KINDS),
    "seeds-2": (SEEDS(eta=0.0), Singlestep(points=2, type="heun"), KINDS),
    "dpmpp-sde": (SEEDS(eta=0.0, type="midpoint"), Singlestep(points=2), KINDS),
    "seeds-3": (SEEDS(stages=3, eta=0.0), Singlestep(points=3), KINDS),
    "er-sde": (ERSDE(phi="ode", corrected=True), Multistep(points=3, clock="rho"), ("vp", "blurring")),
    "euler-ancestral": (Ancestral(eta=0.0), DDIM(), KINDS),
    "dpm-2-ancestral": (Ancestral(points=2, form="noise", eta=0.0), Singlestep(points=2, form="noise"), KINDS),
    "dpmpp-2s-ancestral": (Ancestral(points=2, eta=0.0, down="flow"), Singlestep(points=2), KINDS),
    "restart": (Restart(intervals=()), EDMHeun(), KINDS),
}


@pytest.mark.parametrize(("name", "process"), [(n, p) for n, (*_, ps) in ODES.items() for p in ps])
def test_without_noise_it_is_the_ode_solver(name, process):
    solver, ode, _ = ODES[name]
    made = table(solver, process)
    assert not made.noises
    assert solver.stochastic == bool(name == "sa-outside")
    assert_same(made, table(ode, process))


SAME = {
    "stochastic gDDIM at lambda = 1 is DDPM": (SDEMultistep(points=1), DDPM(), KINDS),
    "Euler ancestral is DDIM(eta)": (Ancestral(eta=0.6), DDIM(eta=0.6), ("vp", "flow", "edm")),
    "the first predictor of SA-Solver is 2M": (
        SASolver(points=2, corrector=False),
        SDEMultistep(type="heun"),
        KINDS,
    ),
    "ER-SDE with phi = x^2 is the reverse SDE": (
        ERSDE(points=1, phi="sde"),
        SDEMultistep(points=1),
        ("vp", "blurring"),
    ),
    "ER-SDE with phi = x^1.5 is eta = 1/2": (
        ERSDE(points=1, phi="sde-2"),
        SDEMultistep(points=1, eta=0.5),
        ("vp", "blurring"),
    ),
}


@pytest.mark.parametrize(("name", "process"), [(n, p) for n, (*_, ps) in SAME.items() for p in ps])
def test_one_sampler_by_two_names(name, process):
    a, b, _ = SAME[name]
    assert_same(table(a, process), table(b, process), 1e-11)


@pytest.mark.parametrize("eta", [0.3, 1.0, 2.0])
def test_the_published_numbers_of_2m_and_3m(eta):
    """k-diffusion's lines of sample_dpmpp_2m_sde and sample_dpmpp_3m_sde, at the last step of a run on VP."""
    p, made = problem("vp").process, {}
    for name, solver in {
        "midpoint": SDEMultistep(eta=eta),
        "heun": SDEMultistep(eta=eta, type="heun"),
        "3m": SDEMultistep(points=3, eta=eta, type="heun"),
    }.items():
        made[name] = {s[:2]: c for s, c in table(solver, "vp").rows[-1].form}
    g = oracle.grid(p, 5)
    lam = p.log_snr(g).tolist()
    h, h_1, h_2 = (lam[-k] - lam[-k - 1] for k in (1, 2, 3))
    alpha, sigma, before = p.alpha(float(g[-1])), p.sigma(float(g[-1])), p.sigma(float(g[-2]))
    one = -math.expm1(-h * (1 + eta))
    phi_2 = 1 - one / (h * (1 + eta))
    phi_3 = phi_2 / (h * (1 + eta)) - 0.5
    for form in made.values():
        assert form["z", 4] == pytest.approx(sigma / before * math.exp(-h * eta), rel=1e-12)
        assert form["xi", 4] == pytest.approx(sigma * math.sqrt(-math.expm1(-2 * eta * h)), rel=1e-12)
    r = h_1 / h
    assert made["midpoint"]["y", 3] == pytest.approx(-alpha * one / 2 / r, rel=1e-11)
    assert made["heun"]["y", 3] == pytest.approx(-alpha * phi_2 / r, rel=1e-11)
    r1 = h_2 / h
    d1, d2 = 1 / r1 * r / (r + r1), 1 / r1 / (r + r1)  # of D_2, the oldest
    assert made["3m"]["y", 2] == pytest.approx(alpha * (phi_2 * d1 - phi_3 * d2), rel=1e-10)


def test_the_published_numbers_of_er_sde():
    """The weight of the oldest prediction in a step of ER-SDE-Solver-3, with its integral done by QUADPACK."""
    p = PROCESSES["edm"]()
    g = oracle.grid(p, 4)
    (_, x2, x1, x_s, x_t), phi = g.tolist(), lambda x: x * (math.exp(x**0.3) + 10)
    form = {s[:2]: c for s, c in ERSDE().tabulate(p, g).rows[-1].form}
    integral, _ = quad(lambda x: (x - x_s) / phi(x), x_t, x_s, epsabs=1e-14)
    bend = 1 / (x1 - x2) / ((x_s - x2) / 2)
    assert form["z", 3] == pytest.approx(phi(x_t) / phi(x_s), rel=1e-12)
    assert form["y", 1] == pytest.approx(((x_t - x_s) ** 2 / 2 + phi(x_t) * integral) * bend, rel=1e-10)
    slope = (x_t - x_s) + phi(x_t) * quad(lambda x: 1 / phi(x), x_t, x_s, epsabs=1e-14)[0]
    back = form["y", 1] * (1 + (x1 - x2) / (x_s - x1))  # what D'' reads of the prediction before
    assert form["y", 2] == pytest.approx(-slope / (x_s - x1) - back, rel=1e-9)


def test_seeds_stages_share_one_path():
    """SEEDS-2: the step's noise is the stage's, carried on, and what the rest of the step adds."""
    p, r = problem("vp").process, 1 / 2
    made = table(SEEDS(), "vp", 1)
    g = oracle.grid(p, 1)
    h = float(p.log_snr(g[1]) - p.log_snr(g[0]))
    stage, step = ({s: c for s, c in row.form if s[0] == "xi"} for row in made.rows[1:])
    middle, end = p.sigma(made.rows[1].t), p.sigma(float(g[1]))
    assert stage["xi", 0] == pytest.approx(middle * math.sqrt(-math.expm1(-2 * r * h)), rel=1e-12)
    carried = end * math.exp(-(1 - r) * h) * math.sqrt(-math.expm1(-2 * r * h))
    assert step["xi", 0] == pytest.approx(carried, rel=1e-12)
    assert math.hypot(*step.values()) == pytest.approx(end * math.sqrt(-math.expm1(-2 * h)), rel=1e-12)
    assert [(n.t, n.s) for n in made.noises] == [(g[0], made.rows[1].t), (made.rows[1].t, g[1])]


def test_noises_of_a_step_that_are_drawn_apart_cost_an_order():
    """Each stage keeps its law, so a point mass sees nothing; on a Gaussian the weak order falls from 2 to 1."""
    p = problem("vp").process
    apart = SEEDS(type="midpoint", noises="separate")
    check_point_mass(table(apart, "vp"))
    slopes = [_slope(s, p) for s in (SEEDS(type="midpoint"), apart)]
    assert slopes[0] > 1.75
    assert slopes[1] < 1.25


@pytest.mark.parametrize("eta", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("process", KINDS)
def test_what_the_reverse_sde_carries(process, eta):
    """Phi solves its equation: a difference quotient gives F + (1 + eta)/2 G G^T Sigma^-1, and steps compose."""
    p = problem(process).process
    law, t = reverse(p, eta), float(oracle.grid(p, 1)[0])
    step, f = 1e-4 * t, p.F(t) + 0.5 * (1 + eta) * (p.GG(t) * inverse(p.Sigma(t)))
    quotient = (1 / (2 * step)) * (carry(law, t, t + step) - carry(law, t, t - step))
    assert magnitude(quotient - f) < 1e-5 * magnitude(f)
    s, u = 0.6 * t, 0.3 * t
    assert magnitude(carry(law, s, u) * carry(law, t, s) - carry(law, t, u)) < 1e-11


@pytest.mark.parametrize("process", [*KINDS, "flow"])
@pytest.mark.parametrize("eta", [0.4, 1.6])
def test_a_point_mass_is_exact_for_every_eta(process, eta):
    for solver in (SDEMultistep(eta=eta), SEEDS(eta=eta), SASolver(tau=eta, tau_max=1.0)):
        check_point_mass(table(solver, process, 4))


def _slope(solver, process, steps: tuple[int, int] = (32, 128)) -> float:
    few, many = (oracle.law_error(solver.tabulate(process, oracle.grid(process, n))) for n in steps)
    return math.log2(few / many) / math.log2(steps[1] / steps[0])


WEAK = {
    "1": (SDEMultistep(points=1, eta=0.5), 1),
    "2m": (SDEMultistep(eta=0.5), 2),
    "noise-1": (SDEMultistep(points=1, form="noise"), 1),
    "noise-2": (SDEMultistep(form="noise"), 2),
    "sa-1": (SASolver(points=1), 2),
    "sa-1-predictor": (SASolver(points=1, corrector=False), 1),
    "sa-inside": (SASolver(tau_min=0.3, tau_max=3.0), 2),
    "er-1": (ERSDE(points=1), 1),
    "er-4": (ERSDE(phi="sde-4"), 2),
    "flow-2s": (Ancestral(points=2, eta=0.5, down="flow"), 2),
    "3s": (Ancestral(points=3), 3),
    "restart-twice": (Restart(intervals=((0.5, 0.3, 1), (0.9, 0.6, 2))), 2),
}


@pytest.mark.parametrize("name", WEAK)
def test_weak_order_on_a_gaussian(name):
    """Mean and covariance of the last row, in closed form, against the law it should have."""
    solver, order = WEAK[name]
    assert solver.order == order
    assert order - 0.25 < _slope(solver, problem("vp").process) < order + 0.5


STRONG = {
    "2m": SDEMultistep(eta=0.7),
    "sa": SASolver(),
    "seeds-2": SEEDS(),
    "dpmpp-sde": SEEDS(type="midpoint"),
    "er-sde": ERSDE(),
    "noise": SDEMultistep(form="noise"),
}


@pytest.mark.parametrize(("name", "process"), [*((name, "vp") for name in STRONG), ("seeds-2", "heat")])
def test_strong_order_on_one_path(name, process):
    """Nested grids of one seed follow one Brownian path: consecutive runs approach each other like h.

    On heat too, whose log-SNR has so few e-folds that many steps lie close together.
    """
    pr, solver = problem(process), STRONG[name]
    fine, x = oracle.grid(pr.process, 256), torch.cat([pr.start] * 3)  # three paths from each start

    def gap(n):
        few, many = (
            fs.sample(pr.denoiser, pr.process, solver=solver, grid=fine[:: 256 // k].clone(), x=x, seed=0)
            for k in (n, 2 * n)
        )
        return float((few - many).norm() / many.norm())

    coarse, finest = gap(16), gap(128)
    assert coarse < 0.3
    assert math.log2(coarse / finest) / 3 > 0.75


def test_the_same_seed_follows_the_same_path_at_10_and_20_steps():
    """Two solvers, two step counts, two processes: one path, one sample in the limit."""
    ends = {}
    for process in ("vp", "edm"):
        pr = problem(process)
        p = pr.process
        low, high = p.log_snr(oracle.grid(p, 1)).tolist()
        lam = torch.linspace(low, high, 21, dtype=torch.float64)
        start = problem("vp").start / problem("vp").process.alpha(float(problem("vp").ends[0]))
        for n in (10, 20):
            g = p.inverse_log_snr(lam[:: 20 // n])
            x = start * p.alpha(float(g[0]))
            z = fs.sample(pr.denoiser, p, solver=SEEDS(), grid=g, x=x, seed=3)
            ends[process, n] = z / p.alpha(float(g[-1]))
    other = fs.sample(pr.denoiser, p, solver=SEEDS(), grid=g, x=x, seed=4) / p.alpha(float(g[-1]))
    far = float((other - ends["edm", 20]).norm())
    assert float((ends["vp", 20] - ends["edm", 20]).norm()) < 1e-9 * far
    assert float((ends["vp", 10] - ends["vp", 20]).norm()) < 0.35 * far


def test_restart_goes_up_again_and_counts_its_calls():
    solver = Restart(intervals=((0.8, 0.5, 2),))
    p = problem("vp").process
    made = solver.tabulate(p, oracle.grid(p, 10))
    g = made.grid.tolist()
    ups = [(a.t, b.t) for a, b in zip(made.rows, made.rows[1:], strict=False) if b.t > a.t]
    assert ups == [(g[8], g[5])] * 2
    assert made.nfe == solver.calls(10, to_zero=False) == 2 * (10 + 2 * 3)
    assert [n.stream for n in made.noises] == ["restart", "restart"]
    flow = solver.tabulate(Flow(), torch.linspace(0.9, 0, 3, dtype=torch.float64))
    assert flow.nfe == solver.calls(2, to_zero=True)


def test_lcm_draws_the_law_of_its_prediction():
    """z_s = M_s D + R_s xi: a point mass is exact, and with a denoiser the data's own variance is lost."""
    made = table(LCM(), "vp", 3)
    check_point_mass(made, tolerance=1e-13)
    for k, row in enumerate(made.rows[1:]):
        assert row.form.terms.keys() == {("y", k, "x0"), ("xi", k)}
    p = problem("vp").process
    assert oracle.law_error(LCM().tabulate(p, oracle.grid(p, 64))) > 0.3


def test_ancestral_variants_step_down_where_the_tools_do():
    """sigma_down of k-diffusion on EDM, and of rectified flow on its own process."""
    edm, flow = PROCESSES["edm"](), Flow()
    up = 0.7 * math.sqrt(1.0 * (16 - 1) / 16)
    form = _last_form(Ancestral(eta=0.7).tabulate(edm, torch.tensor([4.0, 1.0], dtype=torch.float64)))
    assert form["xi"] == pytest.approx(up, rel=1e-12)
    assert form["z"] == pytest.approx(math.sqrt(1 - up**2) / 4, rel=1e-12)
    form = _last_form(Ancestral(eta=0.7, down="flow").tabulate(flow, torch.tensor([0.8, 0.6], dtype=torch.float64)))
    down = 0.6 * (1 + (0.6 / 0.8 - 1) * 0.7)
    assert form["z"] == pytest.approx(0.4 / (1 - down) * down / 0.8, rel=1e-12)
    assert form["xi"] == pytest.approx(math.sqrt(0.36 - down**2 * 0.16 / (1 - down) ** 2), rel=1e-12)


def _last_form(made):
    """The coefficients of the state and of the noise in a table's last row."""
    return {s[0]: c for s, c in made.rows[-1].form}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (partial(SDEMultistep, points=4), "choose 1, 2 or 3"),
        (partial(SDEMultistep, eta=-1.0), "at least 0"),
        (partial(SEEDS, noises="own"), "path or separate"),
        (partial(ERSDE, phi="sde-9"), "choose ode, sde"),
        (partial(Ancestral, eta=1.5), "number in"),
        (partial(Restart, intervals=((0.2, 0.5, 1),)), "high < low"),
        (partial(SASolver, tau=math.inf), "finite number"),
    ],
)
def test_bad_options_get_a_sentence(make, words):
    with pytest.raises(ValueError, match=words):
        make()
