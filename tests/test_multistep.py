"""The multistep family: which names are the same sampler, what a corrector adds, and the choice of root on CLD."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

import fewstep as fs
import oracle
from fewstep.check.exactness import point_mass
from fewstep.process import CLD, EDM, PROCESSES, VP, Flow
from fewstep.process.clock import clock
from fewstep.process.operator import inverse, magnitude, transpose
from fewstep.solver import (
    ALIASES,
    DDIM,
    DDPM,
    PNDM,
    SOLVERS,
    DPMMultistep,
    EDMHeun,
    FinalEuler,
    GradientEstimation,
    Multistep,
    Solver,
    UniC,
    UniPC,
    names,
)
from fewstep.solver.ode.pndm import ADAMS
from fewstep.solver.weights import weights
from fewstep.tableau import Tableau

torch.set_num_threads(1)

SCALAR = ("vp", "edm", "flow")
ALL = (*SCALAR, "cld", "blurring")


def assert_same(a: Tableau, b: Tableau, tolerance: float = 1e-12) -> None:
    assert gap(a, b) < tolerance


def gap(a: Tableau, b: Tableau) -> float:
    """The largest difference of the weights of two samplers, every row written from the start and the calls alone."""
    left, right = oracle.numbers(a), oracle.numbers(b)
    assert len(left) == len(right)
    pairs = [(x.get(k, 0.0), y.get(k, 0.0)) for x, y in zip(left, right, strict=True) for k in x.keys() | y.keys()]
    return max(magnitude(x - y) / (1 + magnitude(x)) for x, y in pairs)


def tables(process: str, *solvers: Solver, steps: int = 7) -> list[Tableau]:
    p = oracle.process(process)
    return [s.tabulate(p, oracle.grid(p, steps)) for s in solvers]


@cache
def problem_of(name: str) -> oracle.Problem:
    return oracle.Problem(name)


def slope(solver: Solver, process: str, steps: tuple[int, int]) -> float:
    problem = problem_of(process)
    errors = []
    for n in steps:
        table = solver.tabulate(problem.process, oracle.grid(problem.process, n))
        errors.append(problem.error(fs.sample(problem.denoiser, problem.process, solver=table, x=problem.start)))
    return math.log2(errors[0] / errors[1]) / math.log2(steps[1] / steps[0])


# --- names ----------------------------------------------------------------------------------------------------------


def test_names_for_one_sampler():
    for q in range(4):
        assert ALIASES[f"deis-rhoab-{q}"] == f"lms-{q + 1}"
        assert ALIASES[f"gddim-{q}"] == f"deis-tab-{q}"
    for name, first in ALIASES.items():
        assert SOLVERS[name] is SOLVERS[first]
        assert names(name) == names(first)
        assert names(name)[0] == first
        assert name in names(name)
    made = [SOLVERS[name]() for name in SOLVERS if name not in ALIASES]
    assert all(made.count(solver) == 1 for solver in made)


@pytest.mark.parametrize("process", ALL)
def test_one_prediction_is_ddim(process):
    same = (SOLVERS[n]() for n in ("ipndm-1", "lms-1", "deis-tab-0", "gddim-0"))
    ddim, *others = tables(process, DDIM(), *same, GradientEstimation(gamma=1.0))
    for other in others:
        assert_same(ddim, other)


@pytest.mark.parametrize("process", SCALAR)
def test_res_multistep_is_2m_with_phi_2(process):
    assert_same(*tables(process, SOLVERS["res-multistep"](), DPMMultistep(type="heun", final_ramp=False)), 1e-11)


@pytest.mark.parametrize("process", ALL)
def test_gradient_estimation_at_three_halves_is_ipndm_2(process):
    assert_same(*tables(process, GradientEstimation(gamma=1.5), SOLVERS["ipndm-2"]()))


@pytest.mark.parametrize("process", ["cld", "blurring", "flow"])
def test_the_transfer_carries_a_constant_noise(process):
    """With equal noises the average is that noise: every start and count of points then makes DDIM's steps."""
    p = oracle.process(process)
    for name in ("pndm", "s-pndm", "plms", "ipndm-3", "gradient-estimation"):
        m, r, _ = point_mass(SOLVERS[name]().tabulate(p, oracle.grid(p, 5)))[-1]
        end = float(oracle.grid(p, 5)[-1])
        assert magnitude(m - p.M(end)) < 1e-11
        assert magnitude(r - p.R(end)) < 1e-11


# --- Adams weights in rho -------------------------------------------------------------------------------------------

EQUAL = torch.linspace(8.0, 1.0, 8, dtype=torch.float64)  # of EDM's time, which is rho


@pytest.mark.parametrize("points", [1, 2, 3, 4])
def test_classical_weights_are_exact_on_equal_steps(points):
    ipndm = PNDM(points=points, start="ramp").tabulate(EDM(), EQUAL)
    assert_same(ipndm, SOLVERS[f"lms-{points}"]().tabulate(EDM(), EQUAL))


def test_variable_weights_are_exact_up_to_two_points():
    for process in SCALAR:
        assert_same(*tables(process, PNDM(points=2, start="ramp", weights="variable"), SOLVERS["lms-2"]()))


def test_the_slips_of_ipndm_v():
    """Three weights miss on unequal steps (the bracket), four already on equal ones (the sign)."""
    three, four = (PNDM(points=n, start="ramp", weights="variable") for n in (3, 4))
    assert_same(three.tabulate(EDM(), EQUAL), SOLVERS["lms-3"]().tabulate(EDM(), EQUAL))
    assert gap(*tables("edm", three, SOLVERS["lms-3"]())) > 1e-2
    row = four.tabulate(EDM(), EQUAL).rows[-1]
    found = [c for s, c in row.form if s[0] == "y"]  # the step is -1
    assert found == pytest.approx([-57 / 24, 65 / 24, -43 / 24, 11 / 24], abs=1e-12)
    assert sum(ADAMS[3]) == pytest.approx(1.0)


def test_calls_of_the_starts():
    for name, extra in {"pndm": 9, "s-pndm": 1, "plms": 1, "ipndm-4": 0}.items():
        s = SOLVERS[name]()
        for steps in (4, 10):
            assert s.calls(steps, to_zero=False) == s.calls(steps, to_zero=True) == steps + extra
    p = PNDM()
    assert [p.calls(n, to_zero=False) for n in (1, 2, 3)] == [4, 8, 12]
    assert [p.calls(n, to_zero=True) for n in (1, 2, 3)] == [1, 5, 9]  # no call at sigma = 0
    for steps in (1, 2, 3, 5):
        grid = torch.linspace(0.9, 0.0, steps + 1, dtype=torch.float64)
        for name in ("pndm", "s-pndm", "plms"):
            assert SOLVERS[name]().tabulate(Flow(), grid).nfe == SOLVERS[name]().calls(steps, to_zero=True)


def test_pndm_is_worth_its_start():
    """On a smooth mixture, twenty calls: F-PNDM, which spends twelve on its start, beats DDIM."""
    problem = problem_of("vp")
    errors = {}
    for name, steps in (("pndm", 11), ("s-pndm", 19), ("ddim", 20)):
        table = SOLVERS[name]().tabulate(problem.process, oracle.grid(problem.process, steps))
        assert table.nfe == 20
        errors[name] = problem.error(fs.sample(problem.denoiser, problem.process, solver=table, x=problem.start))
    assert 5 * errors["pndm"] < errors["ddim"]
    assert 5 * errors["s-pndm"] < errors["ddim"]


# --- UniC -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ALL)
@pytest.mark.parametrize("form", ["data", "noise"])
def test_unic_after_the_same_rule_is_the_predictor_corrector(process, form):
    for points in (1, 2, 3):
        rule = Multistep(points=points, form=form)
        pair = Multistep(points=points, form=form, corrector=True)
        assert_same(*tables(process, UniC(predictor=rule, points=points, form=form), pair), 1e-11)


PREDICTORS = {
    "ddim": DDIM(),
    "euler": SOLVERS["euler"](),
    "dpmpp-2m": DPMMultistep(points=2, final_ramp=False),
    "lms-2": SOLVERS["lms-2"](),
    "ipndm-2": SOLVERS["ipndm-2"](),
    "deis-tab-1": SOLVERS["deis-tab-1"](),
    "unip-2": UniPC(points=2, corrector=False, final_ramp=False),
}


@pytest.mark.parametrize("name", PREDICTORS)
def test_unic_raises_the_slope_by_one_at_equal_calls(name):
    predictor = PREDICTORS[name]
    corrected = UniC(predictor=predictor)
    assert corrected.order == predictor.order + 1
    assert corrected.calls(9, to_zero=True) == predictor.calls(9, to_zero=True)
    (table,) = tables("vp", corrected, steps=9)
    assert table.nfe == 9
    plain, better = (slope(s, "vp", (32, 128)) for s in (predictor, corrected))
    assert better > predictor.order + 0.75
    assert better > plain + 0.6


@pytest.mark.parametrize(("name", "process"), [("ddim", "cld"), ("ipndm-2", "cld"), ("deis-tab-1", "blurring")])
def test_unic_raises_the_slope_on_other_kinds(name, process):
    assert slope(UniC(predictor=PREDICTORS[name]), process, (16, 64)) > PREDICTORS[name].order + 0.75


@pytest.mark.parametrize(
    ("predictor", "sentence"),
    [
        (DDPM(), "DDPM, which adds noise"),
        (EDMHeun(), "EDMHeun, which takes more than a call a step"),
        (PNDM(), "PNDM, which takes more than a call a step"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_unic_refuses_a_predictor(predictor, sentence):
    with pytest.raises(ValueError, match=sentence):
        UniC(predictor=predictor)


def test_unic_refuses_a_second_corrector_and_other_options():
    with pytest.raises(ValueError, match="makes 3 rows in 2 steps: give one that makes one a step"):
        tables("vp", UniC(predictor=Multistep(points=1, corrector=True)), steps=2)
    with pytest.raises(ValueError, match="got points=0: give at least 1, or None"):
        UniC(points=0)
    with pytest.raises(ValueError, match="got form='score'"):
        UniC(form="score")
    with pytest.raises(ValueError, match="solved in one log-SNR"):
        tables("cld", UniC(predictor=UniPC(points=1, corrector=False)))


def test_unic_is_saved_with_its_predictor(tmp_path):
    (table,) = tables("vp", UniC(predictor=DPMMultistep(points=2), points=1))
    table.save(tmp_path / "table")
    assert Tableau.load(tmp_path / "table").solver == table.solver


@pytest.mark.parametrize("process", SCALAR)
@pytest.mark.parametrize("b", ["bh1", "bh2"])
def test_varying_coefficients_are_what_unipc_solves_for(process, b):
    """From two predictions behind on B(h) cancels: the rows of UniPC-3 are the exact integrals."""
    solved, exact = tables(process, UniPC(b=b, final_ramp=False), Multistep(points=3, corrector=True))
    for ours, theirs in list(zip(solved.rows, exact.rows, strict=True))[5:]:
        for symbol in {*ours.form.terms, *theirs.form.terms}:
            assert ours.form.terms.get(symbol, 0.0) == pytest.approx(theirs.form.terms.get(symbol, 0.0), abs=1e-9)


# --- gDDIM: root of Sigma, last step --------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["vp", "flow", "blurring"])
def test_roots_are_one_where_they_are_numbers(process):
    for points in (1, 3):
        r, l = (Multistep(points=points, form="noise", clock="t", root=root) for root in "RL")  # noqa: E741
        assert_same(*tables(process, r, l))


def test_on_cld_the_root_carries_a_point_mass_and_cholesky_does_not():
    """gDDIM's finding: one step is exact with R. With L the large Psi_s Psi_t^-1 is not cancelled."""
    p = CLD()
    for steps, least in ((1, 1e3), (16, 0.1)):
        grid = torch.linspace(p.t_max, 0.3, steps + 1, dtype=torch.float64)
        for root in "RL":
            solver = Multistep(points=1, form="noise", clock="t", root=root)
            m, r, _ = point_mass(solver.tabulate(p, grid))[-1]
            off = max(magnitude(m - p.M(0.3)), magnitude(r * transpose(r) - p.Sigma(0.3)))
            assert off < 1e-10 if root == "R" else off > least


@pytest.mark.parametrize(("points", "least"), [(2, 1.75), (3, 1.75)])
def test_cholesky_converges_too(points, least):
    solver = Multistep(points=points, form="noise", clock="t", root="L")
    assert slope(solver, "cld", (24, 72)) > least


def test_the_root_wins_at_few_calls():
    problem = problem_of("cld")
    for calls in (10, 20):
        r, l = (  # noqa: E741
            problem.error(
                fs.sample(
                    problem.denoiser,
                    problem.process,
                    solver=Multistep(points=3, form="noise", clock="t", root=root),
                    grid=oracle.grid(problem.process, calls),
                    x=problem.start,
                )
            )
            for root in "RL"
        )
        assert 2 * r < l


def test_a_root_without_noise_form_is_refused():
    with pytest.raises(ValueError, match="got root='L' in data form"):
        Multistep(root="L")
    with pytest.raises(ValueError, match="got root='K' in noise form: choose R, or L in noise form"):
        Multistep(root="K", form="noise")


@pytest.mark.parametrize("process", ["vp", "cld"])
def test_final_euler_is_the_mean_of_the_reverse_sde(process):
    problem = problem_of(process)
    p, grid = problem.process, oracle.grid(problem.process, 5)
    solver = FinalEuler(solver=DDIM())
    z = fs.sample(problem.denoiser, p, solver=solver, grid=grid, x=problem.start)
    before = fs.sample(problem.denoiser, p, solver="ddim", grid=grid[:-1], x=problem.start)
    t, s = grid[-2:].tolist()
    d = p.coordinates(problem.denoiser(before, t))
    act = lambda c, x: torch.einsum("ij,bj...->bi...", c.values, x) if process == "cld" else c * x  # noqa: E731
    mean = torch.einsum("ij,bj...->bi...", p.M(t).values, d[:, None]) if process == "cld" else p.M(t) * d
    score = -act(inverse(p.Sigma(t)), before - mean)
    expected = before + (s - t) * (act(p.F(t), before) - act(p.GG(t), score))
    torch.testing.assert_close(z, expected, rtol=1e-11, atol=1e-11)
    assert solver.tabulate(p, grid).nfe == solver.calls(5, to_zero=False) == 5
    assert FinalEuler(solver=PNDM()).calls(5, to_zero=True) == 4 + 9 + 1
    with pytest.raises(ValueError, match="alpha = 0"):
        solver.tabulate(Flow(), torch.linspace(1, 0, 4, dtype=torch.float64))


@pytest.mark.parametrize("process", ["vp", "cld", "blurring"])
def test_a_restated_row_solves_the_corrector_with_its_own_noise(process):
    """z_s = P z_t + B_s R_s^-1 (z_s - M_s D) + sum_j B_j eps_j, of which eps_s and what it is made of remain."""
    (table,) = tables(process, Multistep(points=1, form="noise", clock="t", corrector=True, restate=True), steps=2)
    p, (t, s, _) = table.process, table.grid.tolist()
    corrected = next(k for k, row in enumerate(table.rows) if row.t == s and row.at is None)
    (z0, e0, d1) = ("z", 0), ("y", 0, "noise"), ("y", corrected - 1, "x0")
    z = table.rows[corrected].form.terms
    carry, (b, b0) = weights(p, "noise", clock("t"), t, s, [s, t])
    r = b * inverse(p.R(s))
    assert magnitude(z[z0] - (carry + r * z[z0])) < 1e-9 * magnitude(carry)
    assert magnitude(z[e0] - (b0 + r * z[e0])) < 1e-9 * magnitude(b0)
    assert magnitude(z[d1] - (r * z[d1] - r * p.M(s))) < 1e-9


def test_restating_saves_the_corrector_on_cld():
    """There the carried difference of predicted and corrected state is amplified; float32 shows the same number."""
    problem, errors = problem_of("cld"), {}
    for name, solver in {
        "predictor": SOLVERS["gddim-2"](),
        "reused": Multistep(points=3, form="noise", clock="t", corrector=True),
        "restated": SOLVERS["gddim-2-pc"](),
    }.items():
        table = solver.tabulate(problem.process, oracle.grid(problem.process, 20))
        z = fs.sample(problem.denoiser, problem.process, solver=table, x=problem.start)
        single = fs.sample(problem.denoiser, problem.process, solver=table, x=problem.start.float())
        errors[name] = problem.error(z), problem.error(single.double())
    assert 2 * errors["restated"][0] < errors["predictor"][0]
    assert 2 * errors["restated"][0] < errors["reused"][0]
    assert errors["restated"][1] == pytest.approx(errors["restated"][0], rel=1e-2)
    with pytest.raises(ValueError, match="got restate=True: it needs the corrector in noise form"):
        Multistep(restate=True)


# --- writing tables -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [CLD(), CLD(offset=1e-6), CLD(beta=1.0, Gamma=0.5, gamma=0.3)])
def test_the_angle_is_the_integral_of_its_rate(p):
    """By another quadrature: many geometric panels with three Gauss nodes each."""
    x = torch.tensor([-math.sqrt(0.6), 0.0, math.sqrt(0.6)], dtype=torch.float64)
    share = torch.tensor([5.0, 8.0, 5.0], dtype=torch.float64) / 18
    for t in (1e-5, 1e-3, 0.03, 0.7, 2.0):
        edges = torch.linspace(math.log(t) / 2, 0.0, 4001, dtype=torch.float64).exp()
        width = edges.diff()[:, None]
        w = edges[:-1, None] + width * (1 + x) / 2
        exact = -(width * share * p._angle_rate(w)).sum()
        assert float(p._theta(torch.tensor(t, dtype=torch.float64))) == pytest.approx(
            float(exact), abs=2e-13, rel=2e-14
        )


def test_writing_twice_gives_the_same_table():
    """Nodes of the quadrature are kept between steps: nothing of another process, form or grid may be taken."""
    first = {n: fs.tabulate("multistep-pc-2", PROCESSES[n](), steps=3) for n in ("vp", "edm", "cld")}
    fs.tabulate("deis-tab-2", VP(beta_max=19.0), steps=3)
    fs.tabulate("gddim-2-pc", CLD(offset=1e-6), steps=3)
    for name, table in first.items():
        assert fs.tabulate("multistep-pc-2", PROCESSES[name](), steps=3) == table
