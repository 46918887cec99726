"""The instrument over the registries: every solver is held to what it declares.

Each solver runs on VP, on one process of every other kind, and on one of the rest in turn; `-m slow` runs the others.
"""

from __future__ import annotations

from functools import partial
from zlib import crc32

import pytest

import fewstep as fs
import oracle
from fewstep.check.cell import slope
from fewstep.check.exact import integrate, problem, small
from fewstep.check.exactness import covariance, moment_defect, point_mass
from fewstep.process import PROCESSES
from fewstep.solver import DDIM, TABLES, DPMMultistep, EDMHeun, Multistep, RungeKutta, UniPC
from fewstep.solver.base import Moments
from fewstep.solver.ode.runge_kutta import METHODS

OPTIONS = {
    "ddim-eta-0.5": partial(DDIM, eta=0.5),
    "edm-churn": partial(EDMHeun, churn=4.0),
    "edm-churn-rk4": partial(EDMHeun, churn=4.0, method="rk4"),
    "unipc-2-bh1": partial(UniPC, points=2, b="bh1", final_ramp=False),
    "unipc-3-noise": partial(UniPC, points=3, form="noise"),
    "unipc-3-bh1-noise": partial(UniPC, points=3, form="noise", b="bh1", final_ramp=False),
    "unipc-1-predictor": partial(UniPC, points=1, corrector=False),
    "unipc-3-predictor": partial(UniPC, points=3, corrector=False),
    "dpm-2m-noise": partial(DPMMultistep, points=2, form="noise"),
    "dpmpp-2m-heun": partial(DPMMultistep, points=2, type="heun"),
    "dpm-3m-noise": partial(DPMMultistep, points=3, form="noise", corrected=True),
    "multistep-1-pc": partial(Multistep, points=1, corrector=True),
    "multistep-4-pc": partial(Multistep, points=4, corrector=True),
    "multistep-2-rho": partial(Multistep, points=2, form="noise", clock="rho"),
    "multistep-2-data-t": partial(Multistep, points=2, clock="t", corrector=True),
    "multistep-3-noise-ramp": partial(Multistep, points=3, form="noise", final_ramp=True),
    **{f"rk-{m}": partial(RungeKutta, method=m) for m in METHODS},
    **{
        f"rk-{m}-{form}-{clock}": partial(RungeKutta, method=m, form=form, clock=clock)
        for form in ("state", "noise", "data")
        for clock in ("t", "log-snr", "rho")
        for m in ("heun", "kutta3")
    },
}
OPTIONS_ON_CLD = (
    "ddim-eta-0.5",
    "multistep-4-pc",
    "multistep-2-rho",
    "multistep-2-data-t",
    "rk-heun-state-t",
    "rk-kutta3-data-log-snr",
    "rk-kutta3-noise-rho",
)


def sweep(name: str) -> tuple[str, ...]:
    """VP, and one of the other processes, which depends on the name: each is tried with several solvers of a family."""
    rest = [process for process in PROCESSES if process != "vp"]
    return ("vp", rest[crc32(name.encode()) % len(rest)])


def cells() -> list:
    """Every solver on every process, those outside the thinned sweep marked slow; an option that is another's once."""
    found = []
    for name in oracle.DISTINCT:
        found += [pytest.param(name, p, marks=() if p in sweep(name) else pytest.mark.slow) for p in PROCESSES]
    tried = {(TABLES[name](), p) for name in oracle.DISTINCT for p in sweep(name)}
    for name, p in [
        *((n, "vp" if n.endswith("-t") else "edm") for n in OPTIONS),
        *((n, "cld") for n in OPTIONS_ON_CLD),
    ]:
        if (cell := (OPTIONS[name](), p)) not in tried:
            found.append(pytest.param(name, p))
            tried.add(cell)
    return found


@pytest.mark.parametrize(("name", "process"), cells())
def test_promises(name, process):
    report = fs.check.solver({**TABLES, **OPTIONS}[name], process, label=name)
    assert report.ok, f"\n{report}"
    assert all(v.sentence for v in report)


@pytest.mark.parametrize(
    ("name", "row"), [("dpmpp-2m", -1), ("unipc-2", 2), ("dpmpp-3m", -1)], ids=["2m", "unipc-2's predictor", "3m"]
)
def test_moments_that_are_not_claimed_decay(name, row):
    """2M and UniP-2 miss the first moment by O(h); the published 3M misses the second by O(1)."""
    p = small("vp")
    s = TABLES[name](final_ramp=False)
    assert s.moments is not None
    degree = max(s.moments.degrees[:2]) + 1 if name != "dpmpp-3m" else 2
    defects = [
        moment_defect(s.tabulate(p, oracle.grid(p, n)), degree, form="data", clock="log-snr")[row] for n in (8, 16, 32)
    ]
    ratios = [a / b for a, b in zip(defects, defects[1:])]  # noqa: B905
    assert min(defects) > 1e-4
    if name == "dpmpp-3m":
        assert all(0.7 < ratio < 1.4 for ratio in ratios)
    else:
        assert all(ratio > 1.5 for ratio in ratios)


@pytest.mark.parametrize("name", ["multistep-2", "multistep-pc-3", "deis-tab-3", "unipc-3", "dpmpp-3m", "edm"])
def test_order_up_to_512_steps(name):
    pr, s = problem(small("edm")), TABLES[name]()
    run = lambda n: fs.sample(pr.denoiser, pr.process, solver=s, grid=oracle.grid(pr.process, n), x=pr.start)  # noqa: E731
    errors = [pr.error(run(n)) for n in (128, 512)]
    assert slope(*errors) > s.order - 0.25, errors


def test_inflated_noise_changes_the_law_by_its_own_amount():
    """A point mass ends with 1.003^2 times its variance, however many steps are taken (Karras et al., section 4)."""
    p, s = small("vp"), TABLES["edm-sde"]()
    assert s.order == 0
    table = s.tabulate(p, oracle.grid(p, 128))
    _, r, added = point_mass(table)[-1]
    assert covariance(r, added) / p.Sigma(table.rows[-1].t) == pytest.approx(1.003**2, rel=3e-6)


@pytest.mark.parametrize("name", ["vp", "flow"])
def test_collocation_is_the_quantile_map(name):
    pr = problem(small(name))
    assert float((integrate(pr.denoiser, pr.start, *pr.ends) - pr.end).abs().max()) < 1e-12


@pytest.mark.parametrize("name", ["blurring", "cld"])
def test_collocation_is_what_an_adaptive_method_finds(name):
    pr = problem(small(name))
    found = oracle.integrate(pr.denoiser, pr.start[:2], *pr.ends, rtol=1e-9)
    assert float((found - pr.end[:2]).abs().max()) < 1e-8


def test_collocation_is_the_closed_form_on_gaussian_data():
    pr = problem(small("blurring"))
    gaussian = fs.Gaussian(pr.process, pr.denoiser.means[0], 0.6)
    exact = oracle.gaussian_map(gaussian, pr.start, *pr.ends)
    assert float((integrate(gaussian, pr.start, *pr.ends) - exact).abs().max()) < 1e-12


def test_a_promise_checks_its_words():
    """A misspelt end or kind would promise nothing, and be held to nothing."""
    for wrong, match in (
        (lambda: fs.Promise(-1), "order -1: give a whole number"),
        (lambda: fs.Promise(1.5), "order 1.5"),
        (lambda: fs.Promise(1, ends=("sigma = 0",)), "ends=.*out of alpha=0, sigma=0"),
        (lambda: fs.Promise(1, ends="sigma=0"), "give a tuple"),
        (lambda: fs.Promise(1, point_mass=("numbers",)), "point_mass=.*out of scalar, diagonal, block"),
        (lambda: fs.Promise(1, heads="derivative"), "heads='derivative': give a tuple of names"),
        (lambda: fs.Promise(1, stochastic="no"), "stochastic='no': give True or False"),
        (lambda: Moments("score", "t", (0,)), "form='score': choose data or noise"),
        (lambda: Moments("data", "lambda", (0,)), "clock='lambda': choose t, log-snr or rho"),
    ):
        with pytest.raises(ValueError, match=match):
            wrong()
    assert fs.Promise(2, ends=(), point_mass=(), heads=("mine",)).heads == ("mine",)
