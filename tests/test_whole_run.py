"""What a run does outside the network, counted: operations of tensors and questions to the process, never seconds."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fewstep as fs
from fewstep.loop import Captured, Plan, excess as excess_module, walk
from fewstep.loop.walk import all_finite
from fewstep.process.base import recalling
from fewstep.tableau.kept import forget

D = torch.randn(2, 3)


class Operations(TorchDispatchMode):
    """The names of the operations that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def run(process: fs.Process, steps: int = 6, **options) -> torch.Tensor:
    return fs.sample(lambda z, t: D, process, steps=steps, shape=(2, 3), progress=False, **options)


@pytest.mark.parametrize("solver", [None, "ddim", "unipc-3", "euler-ancestral", "dpmpp-2m-sde"])
def test_a_second_run_asks_the_process_nothing(solver, monkeypatch):
    process, asked = fs.Discrete(), []
    parts = fs.Discrete._parts
    monkeypatch.setattr(fs.Discrete, "_parts", lambda self, t: asked.append(t) or parts(self, t))
    first = run(process, solver=solver)
    assert asked
    asked.clear()
    assert torch.equal(run(process, solver=solver), first)
    assert not asked
    run(process, steps=7, solver=solver)
    assert asked


def test_what_a_wrapped_network_needs_to_know_is_asked_once(monkeypatch):
    process, asked = fs.Discrete(), []
    parts = fs.Discrete._parts
    monkeypatch.setattr(fs.Discrete, "_parts", lambda self, t: asked.append(t) or parts(self, t))
    denoiser = fs.wrap(lambda x, t: D, process, "v", time="index")
    ends = []
    for _ in range(2):
        asked.clear()
        ends.append(fs.sample(denoiser, process, steps=5, shape=(2, 3), progress=False))
    assert torch.equal(*ends)
    assert not asked


def test_another_process_of_the_same_numbers_answers_for_itself():
    table = fs.tabulate("ddim", fs.VP(), steps=4)
    ends = [fs.sample(lambda z, t: D, p, solver=table, shape=(2, 3), progress=False) for p in (fs.VP(), fs.VP())]
    assert torch.equal(*ends)
    memory = table.notes["memory"]
    with recalling(memory):
        assert fs.VP(beta_max=10.0).alpha(0.5) != fs.VP().alpha(0.5)


def test_notes_are_of_the_numbers_as_they_are():
    """Who writes into the heads of a table, or takes a copy, has a plan of what is there."""
    process, z = fs.VP(), torch.randn(2, 3)
    table = fs.tabulate("euler-ancestral", process, grid=torch.linspace(1.0, 0.1, 4, dtype=torch.float64))
    plans = [Plan.of(table, lambda z, t: D) for _ in range(2)]
    assert plans[0].columns is plans[1].columns
    eps = fs.tabulate("deis-tab-1", process, steps=4)
    before = walk(Plan.of(eps, lambda z, t: D), z)
    for key, (p, q) in eps.heads.items():
        eps.heads[key] = (2 * p, 2 * q)  # type: ignore[index]
    assert not torch.equal(walk(Plan.of(eps, lambda z, t: D), z), before)
    for other in (copy.copy(table), copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert not other.notes
        assert other == table


@pytest.mark.parametrize("solver", ["ddim", "unipc-3", "euler-ancestral", "quasi-taylor-2"])
def test_whether_a_table_widens_data_takes_as_many_operations_for_more_steps(solver):
    counts = []
    for steps in (4, 8, 16):
        forget()
        table = fs.tabulate(solver, fs.VP(), steps=steps)
        with Operations() as seen:
            excess_module.excess(table)
        counts.append(len(seen.names))
    assert counts[0] == counts[1] == counts[2] < 60  # none where all is numbers


@pytest.mark.parametrize(("solver", "most"), [("ddim", 240), ("unipc-3", 260), (None, 780)])
def test_a_table_written_anew_costs_a_run_few_operations(solver, most):
    """Grid, table, plan, and whether it widens data: what a run does more than with a table that is kept."""
    process, counts = fs.Discrete(), []
    for steps in (10, 10, 20):
        forget()
        for _ in range(2):
            with Operations() as seen:
                run(process, steps=steps, solver=solver)
            counts.append(len(seen.names))
    _, _, anew, kept, longer, held = counts
    assert 30 < anew - kept <= most
    assert longer - held <= 1.2 * (anew - kept)


def test_the_last_look_is_one_reduction_where_all_is_well():
    for z, good in ((torch.randn(4, 5), True), (torch.full((4, 5), 3e38), True), (torch.tensor([0.0, math.inf]), False),
                    (torch.tensor([math.inf, -math.inf]), False), (torch.tensor([math.nan, 1.0]), False)):  # fmt: skip
        with Operations() as seen:
            assert all_finite(z) is good
        assert not good or z.sum().isinf() or len(seen.names) <= 2


def spied(function: Callable, calls: list) -> Callable:
    return lambda *args, **options: calls.append(args) or function(*args, **options)


def test_a_named_grid_is_made_once_and_a_function_each_time(monkeypatch):
    made: list = []
    monkeypatch.setitem(fs.GRIDS, "mine", spied(fs.GRIDS["uniform"], made))
    forget()
    for _ in range(3):
        fs.tabulate("ddim", fs.VP(), grid="mine", steps=3)
    assert len(made) == 1
    for _ in range(3):
        fs.tabulate("ddim", fs.VP(), grid=fs.GRIDS["mine"], steps=3)
    assert len(made) == 4
    monkeypatch.setitem(fs.GRIDS, "mine", fs.GRIDS["karras"])
    karras = fs.tabulate("ddim", fs.VP(), grid="mine", steps=3)
    assert karras == fs.tabulate("ddim", fs.VP(), grid="karras", steps=3)


def each_step(denoiser, solver: str, shape: tuple[int, ...], process: fs.Process, steps: int = 6) -> list[list[str]]:
    """The operations of a run from one call of the network to the next, noise and the label of the time aside."""
    table = fs.tabulate(solver, process, grid=fs.GRIDS["uniform"](process, steps))
    x, noise = torch.randn(shape), torch.randn(max(1, len(table.noises)), *shape)
    with Operations() as seen:
        fs.sample(denoiser(seen), process, solver=table, x=x, noise=noise, progress=False)
    calls = [k for k, name in enumerate(seen.names) if name == "network"]
    assert len(calls) == table.nfe
    beside = ("full", "to", "view", "select", "empty_like")  # the label of the time; no work
    return [[n for n in seen.names[a + 2 : b] if n not in beside] for a, b in itertools.pairwise(calls)]


def plainly(seen: Operations):
    def network(z: torch.Tensor, t: object) -> torch.Tensor:  # noqa: ARG001
        seen.names.append("network")
        return ZEROS[z.shape].clone()

    return network


ZEROS = {shape: torch.zeros(shape) for shape in ((2, 8), (2, 2**15))}
WRAPS = {
    "plain": lambda _: plainly,
    "noise": lambda process: lambda seen: fs.wrap(plainly(seen), process),
    "v": lambda process: lambda seen: fs.Counted(fs.wrap(plainly(seen), process, "v")),
    "data": lambda process: lambda seen: fs.wrap(plainly(seen), process, "data"),
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize(
    ("solver", "most"), [("dpmpp-2m", 4), ("multistep-2", 4), ("ddpm", 6), ("euler-ancestral", 7), ("dpmpp-2m-sde", 6)]
)
def test_a_step_takes_few_operations(solver, most, wrap):
    """Of three terms at most 4 beside the network, with noise at most 6: counted from call to call.

    A large state is run on raw outputs, by which a multistep row of three terms becomes one of four; an ancestral Euler
    step is made in two rows.
    """
    process = fs.VP()
    for shape in ZEROS:
        steps = each_step(WRAPS[wrap](process), solver, shape, process)[1:]
        raw = shape == (2, 2**15) and wrap in ("noise", "v") and most == 4
        assert max(map(len, steps)) <= most + raw, steps
        assert min(map(len, steps)) >= 3  # the count counts


def paired(device: str = "cpu") -> fs.denoiser.Wrapped:
    """A guided pair of one network with two labels."""

    def network(x: torch.Tensor, t: torch.Tensor, *, label: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x * t[:, None]) + label[:, None]

    labels = (torch.full((2,), v, device=device) for v in (0.3, 0.4))
    return fs.guide(*(fs.wrap(partial(network, label=label), fs.VP()) for label in labels), 2.0)


STOCHASTIC = ["ddpm", "euler-ancestral", "dpmpp-2m-sde", "edm-sde"]


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_a_run_with_noise_and_a_guided_pair_compiles_as_one_graph(solver):
    table, z, denoiser = fs.tabulate(solver, fs.VP(), steps=4), torch.randn(2, 3), paired()
    plan, noises = Plan.of(table, denoiser, like=z), [torch.randn_like(z) for _ in table.noises]
    with torch.no_grad():
        compiled = torch.compile(partial(walk, plan), fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(z, noises), walk(plan, z, noises), atol=1e-5)


def test_a_compiled_run_draws_the_same_noise_and_calls_a_pair_once(monkeypatch):
    graphs, compiled = [], torch.compile
    back_end = lambda graph, inputs: graphs.append(len(inputs)) or graph.forward  # noqa: E731
    run = partial(fs.sample, paired(), fs.VP(), solver="dpmpp-2m-sde", steps=4, shape=(2, 3), seed=3, progress=False)
    monkeypatch.setattr(torch, "compile", lambda net, **options: compiled(net, backend=back_end, **options))
    assert torch.allclose(run(compile=True), run(), atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs want a GPU")
@pytest.mark.parametrize("solver", STOCHASTIC)
def test_a_captured_run_holds_noise_and_a_guided_pair(solver):
    table, z, denoiser = fs.tabulate(solver, fs.VP(), steps=4), torch.randn(2, 3, device="cuda"), paired("cuda")
    plan, noises = Plan.of(table, denoiser, like=z), [torch.randn_like(z) for _ in table.noises]
    captured = Captured(plan, torch.zeros_like(z), [torch.zeros_like(xi) for xi in noises])
    for start in (z, -z):
        assert torch.allclose(captured(start, noises), walk(plan, start, noises), atol=1e-5)


def test_a_call_that_takes_a_state_alone_is_given_a_state_alone():
    """Who hands on a bound network in a function of its own is asked as before."""
    inner = fs.wrap(lambda x, t: 0.5 * x, fs.VP())

    class Doubling:
        def __call__(self, z: torch.Tensor, t: float) -> torch.Tensor:
            return self.at(t)(z)

        def at(self, t: float, output: str = "x0"):
            return partial(lambda call, z: 2 * call(z), inner.at(t, output))

    run = partial(fs.sample, process=fs.VP(), solver="dpmpp-2m", steps=5, shape=(2, 3), progress=False)
    assert torch.equal(run(Doubling()), run(lambda z, t: 2 * inner(z, t)))


def test_threads_that_share_a_table_have_their_own_runs():
    table = fs.tabulate("unipc-3", fs.Discrete(), steps=6)
    denoiser = fs.wrap(lambda x, t: torch.tanh(x * t[:, None]), table.process, time="sigma")
    run = lambda k: fs.sample(denoiser, table.process, solver=table, shape=(2, 3), seed=k, progress=False)  # noqa: E731
    want = [run(k) for k in range(8)]
    for _ in range(4):
        table.notes.clear()
        with ThreadPoolExecutor(4) as pool:
            assert all(map(torch.equal, pool.map(run, range(8)), want))
