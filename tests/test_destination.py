"""Where a row leads: written by solvers, kept in tables and files, passed on by the doors, read by some denoisers.

For Gaussian data the average of D over the ODE from t to s is known, so DDIM ends exactly in any number of steps.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fewstep as fs
from fewstep.denoiser import Counted, Gaussian
from fewstep.interop import k_diffusion
from fewstep.interop.carried import carried
from fewstep.solver import SOLVERS
from fewstep.tableau import Tableau
from fewstep.tableau.file import _decoded, _encode
from oracle import DISTINCT, process as small

MEAN, STD = 0.3, 0.5
PROCESSES = {"vp": fs.VP(), "edm": fs.EDM(), "flow": fs.Flow(t_max=0.99)}


def there(p: fs.Process, z: Tensor, t: float | Tensor, s: float | Tensor) -> Tensor:
    """The exact end at s of the ODE from z at t, for data N(MEAN, STD^2)."""
    wide = [torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1) for v in (t, s)]
    (a, r), (b, q) = ((p.alpha(v), p.sigma(v)) for v in wide)
    return b * MEAN + torch.hypot(b * STD, q) / torch.hypot(a * STD, r) * (z - a * MEAN)


def average(p: fs.Process, z: Tensor, t: float | Tensor, s: float | Tensor) -> Tensor:
    """g(z, t, s); the data prediction at s = t."""
    wide = [torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1) for v in (t, s)]
    (a, r), (b, q) = ((p.alpha(v), p.sigma(v)) for v in wide)
    still = (wide[0] - wide[1]).abs() < 1e-12
    plain = MEAN + a * STD**2 / (a**2 * STD**2 + r**2) * (z - a * MEAN)
    return torch.where(still, plain, (there(p, z, t, s) - q / r * z) / torch.where(still, 1.0, b - q / r * a))


class Exact(fs.Denoiser):
    destination = True

    def __init__(self, process: fs.Process) -> None:
        self.process = process

    def at(self, t, output="x0", *, to=None):
        return (
            (lambda z: average(self.process, z, t, t if to is None else to))
            if output == "x0"
            else self.beside(output, t)
        )


class Net(nn.Module):
    """A network of two times, told as indices of a thousand, that predicts noise."""

    def __init__(self, process: fs.Process) -> None:
        super().__init__()
        self.process = process
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, t, s):
        t, s = ((v + 1) / 1000 for v in (t, s))
        a, r = (v[:, None] for v in (self.process.alpha(t), self.process.sigma(t)))
        return self.one * (x - a * average(self.process, x, t, s)) / r


def start(p: fs.Process) -> Tensor:
    xi = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return p.alpha(p.t_max) * MEAN + p.sigma(p.t_max) * xi


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", PROCESSES)
def test_ddim_ends_exactly_in_any_number_of_steps(name: str, steps: int) -> None:
    p = PROCESSES[name]
    z, exact = start(p), Exact(p)
    want = there(p, z, p.t_max, p.t_min)
    run = partial(fs.sample, solver="ddim", steps=steps, x=z, final="state")
    assert torch.allclose(run(exact, p), want, rtol=0, atol=1e-9)
    assert torch.allclose(run(exact, p, parallel=True), want, rtol=0, atol=1e-2)
    assert torch.allclose(run(exact, p, parallel=fs.Parallel(tolerance=0)), want, rtol=0, atol=1e-9)
    assert not torch.allclose(run(Gaussian(p, MEAN, STD), p), want, rtol=0, atol=1e-4)


WRAPPED = {
    "counted": Counted,
    "guided": lambda d: fs.guide(d, d, 3.0),
    "two parts": lambda d: fs.Guided(base=d, shift=lambda z, t: 0 * z, process=d.process),
    "composed": lambda d: fs.Composed(d, (d,), (2.0,)),
    "thresholded": lambda d: fs.Thresholded(d, None, bound=1e3),
    "retimed": lambda d: fs.retime(d, d.process),
    "differentiated": lambda d: fs.Differentiated(d, d.process),
    "twice": lambda d: Counted(fs.Thresholded(Counted(d), None, bound=1e3)),
    "a callable": lambda d: Callable(d),
}  # fmt: skip


class Callable:
    """A wrapper of a user's own."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, z, t, to=None):
        return self.inner(z, t, to)


class Deaf:
    """One that takes a single time."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, z, t):
        return self.inner(z, t)


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_pass_it_on(name: str) -> None:
    p = fs.VP()
    z, denoiser = start(p), WRAPPED[name](Exact(p))
    found = fs.sample(denoiser, p, solver="ddim", steps=3, x=z, memory="64GiB", final="state")
    assert torch.allclose(found, there(p, z, p.t_max, p.t_min), rtol=0, atol=1e-9)
    found = fs.sample(denoiser, p, solver="ddim", steps=3, x=z, final="zero")
    assert torch.allclose(found, there(p, z, p.t_max, 0.0), rtol=0, atol=1e-9)


def test_a_wrapper_of_one_time_is_refused_around_two() -> None:
    p = fs.VP()
    with pytest.raises(ValueError, match="got a Deaf around a denoiser that reads where a row leads"):
        fs.sample(Deaf(Exact(p)), p, solver="ddim", steps=3, x=start(p))

    class Old(fs.Denoiser):
        def __init__(self, inner):
            self.inner = inner

        def at(self, t, output="x0"):
            return self.inner.at(t, output)

    with pytest.raises(ValueError, match="got a Old around"):
        fs.sample(Counted(Old(Exact(p))), p, solver="ddim", steps=3, x=start(p))
    plain = Gaussian(p, MEAN, STD)
    same = [fs.sample(d, p, solver="ddim", steps=3, x=start(p)) for d in (plain, Counted(Old(plain)), Deaf(plain))]
    assert torch.equal(same[0], same[1])
    assert torch.equal(same[0], same[2])


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_network_is_told_in_its_own_convention(compile: bool) -> None:
    p = fs.VP()
    z, net = start(p), Net(p)
    denoiser = fs.wrap(net, p, predicts="noise", time="index", destination=True)
    for wrapped in (denoiser, fs.guide(denoiser, denoiser, 3.0), fs.guide(bound(net, p, 0), bound(net, p, 1), 3.0)):
        found = fs.sample(wrapped, p, solver="ddim", steps=4, x=z, compile=compile, final="state")
        assert torch.allclose(found, there(p, z, p.t_max, p.t_min), rtol=0, atol=1e-8)
    assert torch.allclose(denoiser(z, 0.5), Gaussian(p, MEAN, STD)(z, 0.5))  # the plain denoiser


def bound(net: Net, p: fs.Process, label: int):
    labels = torch.full((5,), label)
    return fs.wrap(partial(labelled, net=net, label=labels), p, time="index", dtype=torch.float64, destination=True)


def labelled(x, t, s, net, label):
    assert len(x) == len(t) == len(s) == len(label)
    return net(x, t, s)


def test_a_destination_at_sigma_zero_has_a_finite_value() -> None:
    told = []

    def net(x, t, s):
        told.append((float(t[0]), float(s[0])))
        return x

    p = fs.EDM()
    d = fs.wrap(net, p, predicts="edm", sigma_data=0.5, destination=True)
    fs.sample(d, p, solver="ddim", grid=torch.tensor([80.0, 1.0, 0.0], dtype=torch.float64), x=torch.ones(1, 2))
    assert sum(told, ()) == pytest.approx((math.log(80) / 4, 0, 0, math.log(p.t_min) / 4), abs=1e-6)
    there = d.at(torch.tensor([1.0, 1.0], dtype=torch.float64), to=torch.tensor([0.0, 0.5], dtype=torch.float64)).there
    assert there.tolist() == pytest.approx([math.log(v) / 4 for v in (p.t_min, 0.5)])


@pytest.mark.parametrize("name", DISTINCT)
def test_each_call_of_a_table_leads_down_to_a_time_of_its_grid_or_stays(name: str) -> None:
    solver = SOLVERS[name]()
    p = next(q for q in map(small, ("vp", "blurring", "cld")) if q.kind in solver.kinds)
    grid = torch.linspace(0.9 * p.t_max, max(p.t_min, 0.05 * p.t_max), 5, dtype=torch.float64)
    table = solver.tabulate(p, grid)
    ends = {*grid.tolist()} if "ancestral" not in name else None
    for row in table.rows:
        assert (row.to is None) == (row.at is None)
        if row.to is not None:
            assert row.to <= row.at
            assert ends is None or row.to in ends or row.to == row.at
    assert len(table.destinations) == table.nfe


def test_steps_and_their_stages_lead_to_the_end_of_the_step() -> None:
    p, grid = fs.VP(), torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64)
    for name in ("ddim", "dpmpp-2m", "unipc-3", "ddpm", "dpmpp-2m-sde"):
        assert SOLVERS[name]().tabulate(p, grid).destinations == [0.6, 0.3]
    for name, stages in (("heun", 2), ("dpmpp-2s", 2), ("dpm-solver-3", 3), ("rk4", 4), ("seeds-2", 2)):
        assert SOLVERS[name]().tabulate(p, grid).destinations == [0.6] * stages + [0.3] * stages
    assert SOLVERS["lcm"]().tabulate(p, grid).destinations == [0.3, 0.3]  # a consistency function goes to the end
    langevin = fs.AnnealedLangevin(inner=2).tabulate(p, grid)
    assert langevin.destinations == [0.9, 0.9, 0.6, 0.6]  # and a Langevin step stays
    churned = fs.EDMHeun(churn=1.0).tabulate(p, grid)
    assert churned.rows[1].at > 0.9
    assert churned.destinations == [0.6, 0.6, 0.3, 0.3]


def test_files_carry_it_and_older_ones_still_load(tmp_path: Path) -> None:
    p = fs.VP()
    table = fs.DDIM().tabulate(p, torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64))
    table.save(path := tmp_path / "table")
    assert Tableau.load(path) == table
    assert Tableau.load(path).destinations == [0.6, 0.3]
    meta, numbers = _decoded(path.read_bytes())
    for row in meta["rows"]:
        del row["to"]
    path.write_bytes(_encode(json.dumps(meta), numbers.numpy().tobytes()))
    old, z = Tableau.load(path), start(p)
    assert old != table
    plain = Gaussian(p, MEAN, STD)
    assert torch.equal(*(fs.sample(plain, p, solver=t, x=z) for t in (old, table)))
    for parallel in (None, True):
        with pytest.raises(ValueError, match="row 0 of the table does not say where its call leads"):
            fs.sample(Exact(p), p, solver=old, x=z, parallel=parallel)
    meta["rows"][0]["to"] = "0.6"
    path.write_bytes(_encode(json.dumps(meta), numbers.numpy().tobytes()))
    with pytest.raises(ValueError, match="the time that row 0 leads to is '0.6', where a finite number belongs"):
        Tableau.load(path)
    meta["rows"][0]["to"] = -0.1
    path.write_bytes(_encode(json.dumps(meta), numbers.numpy().tobytes()))
    with pytest.raises(ValueError, match="got time -0.1 for VP"):
        Tableau.load(path)


def test_what_is_made_of_a_table_keeps_it() -> None:
    p, q = fs.VP(), fs.EDM()
    table = fs.DDIM().tabulate(p, torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64))
    assert table.in_terms_of("noise").destinations == table.eliminate().destinations == [0.6, 0.3]
    moved, z = carried(table, q), start(q)
    assert moved.destinations == pytest.approx([float(t) for t in moved.grid[1:]])
    found = fs.sample(Exact(q), q, solver=moved, x=z)
    assert torch.allclose(found, there(q, z, float(moved.grid[0]), float(moved.grid[-1])), rtol=0, atol=1e-9)


def test_drivers_that_choose_their_times_ask_the_plain_denoiser() -> None:
    p = fs.VP()
    z = start(p)
    runs = [fs.solve(d, p, solver="rk45", x=z) for d in (Exact(p), Gaussian(p, MEAN, STD))]
    assert torch.allclose(runs[0].state, runs[1].state, rtol=0, atol=1e-9)
    table = runs[0].table(1)
    again = fs.sample(Exact(p), p, solver=table, x=z[1:2])
    assert torch.allclose(again, runs[0].state[1:2], rtol=0, atol=1e-9)


def test_a_driver_that_is_given_its_grid_says_where_it_leads() -> None:
    p = fs.VP()
    z = start(p)
    run = fs.solve(Exact(p), p, solver="predictor-corrector", steps=6, x=z, seed=2)
    again = fs.sample(Exact(p), p, solver=run.table(0), x=z[:1], seed=2)
    assert torch.allclose(again, run.state[:1], rtol=0, atol=1e-9)
    assert run.table(0).destinations[0] == float(run.table(0).grid[1])


def test_the_k_diffusion_door_tells_the_level_it_leads_to() -> None:
    p = fs.EDM()
    sigmas = torch.tensor([80.0, 5.0, 0.4, 0.0], dtype=torch.float64)

    class Model:
        destination = True

        def __call__(self, x, sigma, to, scale):
            return scale * average(p, x, sigma, to)

    z = start(p)
    found = k_diffusion.sample_euler(Model(), z, sigmas, extra_args={"scale": 1.0})
    assert torch.allclose(found, there(p, z, 80.0, 0.0), rtol=0, atol=1e-9)


def test_the_diffusers_door_tells_the_time_steps_it_leads_to() -> None:
    pytest.importorskip("diffusers")
    from diffusers_march import FLOW, scheduler

    s = scheduler("ddim", 4, **FLOW)
    p, z = s.process, torch.randn(5, 3, dtype=torch.float64)
    first = float(s.table.rows[0].at)
    assert s.destinations.tolist() == [*s.timesteps[1:].tolist(), 0.0]
    want = there(p, z, first, 0.0)
    for t, to in zip(s.timesteps, s.destinations, strict=True):
        g = average(p, z, float(t) / 1000, float(to) / 1000)
        z = s.step((z - g) / (float(t) / 1000), t, z).prev_sample  # of a flow: x = (1 - t) x0 + t eps
    assert torch.allclose(z, want, rtol=0, atol=1e-4)


def test_the_bits_of_networks_with_one_time_do_not_know_of_it() -> None:
    p = fs.VP()
    z, plain = start(p), Gaussian(p, MEAN, STD)
    table = fs.DPMMultistep().tabulate(p, torch.linspace(0.9, 0.1, 7, dtype=torch.float64))
    blank = replace(table, rows=tuple(replace(row, to=None) for row in table.rows))
    assert torch.equal(*(fs.sample(plain, p, solver=t, x=z) for t in (table, blank)))
