"""Solvers that must be the same sampler: equality of eliminated tables, on every process and up to singular ends."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import oracle
from fewstep.process import PROCESSES, Flow
from fewstep.process.operator import magnitude
from fewstep.solver import DDIM, DDPM, TABLES, DPMMultistep, EDMHeun, Multistep, RungeKutta, UniPC
from fewstep.tableau import Tableau
from oracle import numbers

torch.set_num_threads(1)

SCALAR = [name for name, make in PROCESSES.items() if make.kind == "scalar"]
# what these read beside log-SNR: time itself (or a rate in it), or alpha (the upper variance is that of q(z_t | z_s),
# which alpha scales)
NOT_INVARIANT = (
    *("ddpm-beta", "euler", "pndm", "deis-tab-1", "deis-tab-2", "deis-tab-3", "l-deis-1", "l-deis-2"),
    *("gddim-1", "gddim-2", "gddim-3", "gddim-1-pc", "gddim-2-pc", "gddim-3-pc"),
    *("resshift", "momentum"),  # carry the state's noise in the process's own scale
    *("euler-maruyama", "reverse-diffusion", "predictor-corrector-annealed", "taylor-2"),
    *("quasi-taylor-2", "quasi-taylor-3", "quasi-taylor-2-sde", "quasi-taylor-3-sde"),
)


def assert_same(a: Tableau, b: Tableau, tolerance: float = 1e-10) -> None:
    left, right = numbers(a), numbers(b)
    assert len(left) == len(right)
    for x, y in zip(left, right, strict=True):
        for key in x.keys() | y.keys():
            assert magnitude(x.get(key, 0.0) - y.get(key, 0.0)) < tolerance * (1 + magnitude(x.get(key, 0.0))), key


def grid(name: str, steps: int = 6) -> tuple:
    p = oracle.process(name)
    return p, oracle.grid(p, steps)


@pytest.mark.parametrize("process", PROCESSES)
def test_first_order_methods_are_ddim(process):
    p, g = grid(process)
    ddim = DDIM().tabulate(p, g)
    assert_same(ddim, Multistep(points=1).tabulate(p, g))
    assert_same(ddim, Multistep(points=1, form="noise").tabulate(p, g))
    if p.kind == "scalar":
        assert_same(ddim, RungeKutta(method="euler", form="noise", clock="rho").tabulate(p, g))
        assert_same(ddim, DPMMultistep(points=1).tabulate(p, g))
        assert_same(ddim, DPMMultistep(points=1, form="noise").tabulate(p, g))
        assert_same(ddim, UniPC(points=1, corrector=False).tabulate(p, g))
        assert_same(ddim, EDMHeun(method="euler").tabulate(p, g))


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("points", [2, 3])
def test_any_multistep_with_one_step_is_ddim(process, points):
    p, g = grid(process, 1)
    ddim = DDIM().tabulate(p, g)
    assert_same(ddim, Multistep(points=points, corrector=True).tabulate(p, g))
    if p.kind == "scalar":
        assert_same(ddim, DPMMultistep(points=points).tabulate(p, g))
        assert_same(ddim, UniPC(points=points).tabulate(p, g))


@pytest.mark.parametrize("process", [name for name in PROCESSES if name != "cld"])
def test_ancestral_is_ddim_with_full_noise(process):
    """On CLD the two share the law of a point mass, not the split between what is kept and what is drawn."""
    p, g = grid(process)
    assert_same(DDPM().tabulate(p, g), DDIM(eta=1.0).tabulate(p, g))


@pytest.mark.parametrize("process", SCALAR)
def test_published_formulas_are_the_exact_coefficients(process):
    """DPM-Solver++ 2M with phi_2, 3M with its factor and UniP without the 1/2 are exponential multistep in log-SNR."""
    p, g = grid(process)
    for points in (2, 3):
        for form in ("data", "noise"):
            published = DPMMultistep(points=points, form=form, type="heun", corrected=True, final_ramp=False)
            assert_same(published.tabulate(p, g), Multistep(points=points, form=form).tabulate(p, g), 1e-9)


@pytest.mark.parametrize("process", SCALAR)
def test_heun_is_edm(process):
    p, g = grid(process)
    assert_same(EDMHeun().tabulate(p, g), RungeKutta(method="heun").tabulate(p, g))


@pytest.mark.parametrize(
    "solver", [n for n in oracle.DISTINCT if n not in NOT_INVARIANT and "scalar" in TABLES[n]().kinds]
)
@pytest.mark.parametrize("process", [name for name in SCALAR if name != "edm"])
def test_retiming(solver, process):
    """On equal log-SNRs a scalar process is another one with its states scaled: weights scale with alpha."""
    edm, other = PROCESSES["edm"](), oracle.process(process)
    times = other.inverse_log_snr(edm.log_snr(oracle.grid(edm, 6)))
    s = TABLES[solver]()
    ours, theirs = numbers(s.tabulate(other, times))[-1], numbers(s.tabulate(edm, oracle.grid(edm, 6)))[-1]
    assert ours.keys() == theirs.keys()
    end, start = other.alpha(float(times[-1])), other.alpha(float(times[0]))
    for key, c in theirs.items():
        scaled = c * end / (start if key[0] == "z" else 1.0)
        assert ours[key] == pytest.approx(scaled, rel=1e-8, abs=1e-10), key


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_ddim_from_end_to_end_of_a_flow_is_euler_of_the_velocity(steps):
    """z_s = z_t + (s - t) (eps - x0) where alpha = 0 and sigma = 0 are both on the grid."""
    g = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    state = RungeKutta(method="euler", form="state", clock="t").tabulate(Flow(), g[:-1]) if steps > 1 else None
    table = DDIM().tabulate(Flow(), g)
    assert_same(table, DPMMultistep(points=1).tabulate(Flow(), g))
    assert_same(table, Multistep(points=1).tabulate(Flow(), g))
    if state is not None:
        assert_same(state, DDIM().tabulate(Flow(), g[:-1]))
    for (t, s), row in zip(pairwise(g.tolist()), table.rows[1:], strict=True):
        weights = {symbol[0]: c for symbol, c in row.form}
        assert weights["y"] == pytest.approx((t - s) / t)
        assert weights.get("z", 0.0) == pytest.approx(s / t)
