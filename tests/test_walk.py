"""How the loop makes rows: every form gives the same run, none waits for the host, and none takes more than it says."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fewstep as fs
import oracle
from fewstep.loop import Captured, Plan, rows, walk
from fewstep.loop.drive import noises_of
from fewstep.loop.memory import InPieces, Room
from fewstep.loop.plan import on_raw_outputs
from fewstep.noise import noise_source
from fewstep.words import as_bytes

VP = fs.VP()
FORMS = {  # the sizes from which the forms are taken, so that a small state is run in each
    "side by side": {},
    "in place": {"SMALL": 0},
    "by block": {"SMALL": 0, "LARGE": 1, "BLOCK": 5},
}
SOLVERS = ["ddim", "ddpm", "dpmpp-2m", "unipc-3", "heun", "pndm", "gddim-2-pc", "edm-sde", "dpmpp-3m-sde", "seeds-3"]


def problem(solver: str, process: str = "vp", steps: int = 9) -> tuple[fs.Mixture, torch.Tensor, fs.Tableau, list]:
    p = oracle.Problem(process)
    table = fs.tabulate(solver, p.process, grid=oracle.grid(p.process, steps))
    z = p.start[:3]
    noises = list(noises_of(table, noise_source(None, 4), tuple(z.shape), z.dtype, z.device))
    return p.denoiser, z, table, noises


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_form_of_a_row_gives_the_same_run(solver, form, monkeypatch):
    d, z, table, noises = problem(solver)
    for name, value in FORMS[form].items():
        monkeypatch.setattr(rows, name, value, raising=False)
        monkeypatch.setattr(f"fewstep.loop.walk.{name}", value, raising=False)
    fresh, plan = (Plan.of(table, d, like=z, reuse=reuse) for reuse in (False, True))
    start = z.clone()
    assert torch.allclose(walk(plan, z, noises), walk(fresh, z, noises), rtol=1e-11, atol=1e-11)
    assert torch.equal(z, start)


def test_columns_are_few_and_read_in_runs():
    table = fs.tabulate("unipc-3", VP, steps=30)
    columns = Plan.of(table, lambda z, t: z).columns
    assert columns.count == 4  # the outputs that are alive at once
    assert max(len(runs) for runs in columns.runs) <= 2
    assert Plan.of(fs.tabulate("ddim", VP, steps=9), lambda z, t: z).columns.count == 0  # nothing to add at once


class HostReads(TorchDispatchMode):
    """Notes the operations for which the host waits: those that read a value, or make a shape that depends on one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masked = name.startswith("index") and any(
            t.dtype in (torch.bool, torch.uint8) for t in tree_leaves(args[1:]) if isinstance(t, torch.Tensor)
        )
        if masked or name in ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_the_count_of_host_reads_counts():
    x = torch.arange(3.0)
    reads = [lambda: x[0].item(), lambda: bool(x.any()), lambda: x[x > 1], lambda: x.nonzero(), lambda: float(x.sum())]
    for read in reads:
        with HostReads() as found:
            read()
        assert found.seen


@pytest.mark.parametrize("process", ["vp", "cld", "blurring"])
def test_no_run_waits_for_the_host(process):
    """Also with no values at all: on the meta device whatever reads one fails."""
    p = oracle.Problem(process)
    z = p.start[:2].float()
    for name in oracle.DISTINCT:
        solver = fs.TABLES[name]()
        if p.process.kind not in solver.kinds:
            continue
        table = fs.tabulate(name, p.process, grid=oracle.grid(p.process, 4))

        def network(z, t, heads=solver.heads):
            x = p.process.to_data(z) / 2
            return {"x0": x, **{head: x.square() for head in heads}}

        plan = Plan.of(table, network, like=z)
        coming = noises_of(table, noise_source(None, 1), tuple(z.shape), z.dtype, z.device)
        noises = []
        with torch.inference_mode(), HostReads() as found:
            walk(plan, z, (noises.append(xi) or xi for xi in coming))
        assert not found.seen, name
        blank = z.to("meta")
        walk(Plan.of(table, network, like=blank), blank, [xi.to("meta") for xi in noises])


def test_a_wrapped_network_does_not_wait_for_the_host():
    z = torch.randn(2, 1, 8, 8)
    conditional, plain = (wrapped(label) for label in (1.0, 0.0))
    for denoiser in (conditional, fs.Counted(conditional), fs.guide(conditional, plain, 3.0)):
        plan = Plan.of(fs.tabulate("dpmpp-2m", VP, steps=4), denoiser, like=z)
        with torch.inference_mode(), HostReads() as found:
            walk(plan, z)
        assert not found.seen


def network(x: torch.Tensor, t: torch.Tensor, *, label: torch.Tensor) -> torch.Tensor:
    """A network whose output depends on all it is given."""
    asked.append(len(x))
    wide = (-1, *(1,) * (x.ndim - 1))
    return torch.tanh(x * (1 + t.view(wide))) + (label.view(wide) if label.ndim else label)


asked: list[int] = []


def wrapped(label: float | torch.Tensor, predicts: str = "noise") -> fs.denoiser.Wrapped:
    return fs.wrap(partial(network, label=torch.as_tensor(label)), VP, predicts, dtype=torch.float32)


@pytest.mark.parametrize("predicts", ["noise", "v", "flow"])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "gddim-2", "ddpm"])
def test_tables_run_on_raw_outputs_where_that_is_shorter(solver, predicts):
    """And as exactly: in float32 no further from the run in float64."""
    d, table = wrapped(0.3, predicts), fs.tabulate(solver, VP, steps=9)
    raw = on_raw_outputs(table, fs.Counted(d))
    assert raw.output == predicts
    z = torch.randn(64, 16, dtype=torch.float64)
    noises = [torch.randn_like(z) for _ in table.noises]
    exact = fs.wrap(partial(network, label=torch.tensor(0.3)), VP, predicts, dtype=torch.float64)
    true = walk(Plan.of(table, exact, like=z), z, noises)
    assert torch.allclose(walk(Plan.of(raw, exact, like=z), z, noises), true, atol=1e-9)
    short = [xi.float() for xi in noises]
    errors = [float((walk(Plan.of(t, d, like=z.float()), z.float(), short) - true).abs().max()) for t in (table, raw)]
    assert errors[1] < 3 * errors[0] + 1e-6


def test_tables_stay_as_they_are_where_raw_outputs_are_longer_or_not_to_be_had():
    unipc = fs.tabulate("unipc-3", VP, steps=9)
    assert on_raw_outputs(unipc, wrapped(0.3)) is unipc
    ddim = fs.tabulate("ddim", VP, steps=9)
    for denoiser in (lambda z, t: z, wrapped(0.3, "data"), fs.retime(wrapped(0.3), fs.EDM())):
        assert on_raw_outputs(ddim, denoiser) is ddim


def test_a_guided_pair_is_one_call_and_no_pair_is_no_call():
    z, t = torch.randn(4, 1, 8, 8), 0.4
    labels = torch.linspace(-1, 1, 4)
    conditional, plain = wrapped(labels), wrapped(0.0)
    want = torch.lerp(plain(z, t), conditional(z, t), 3.0)
    asked.clear()
    guided = fs.guide(conditional, plain, 3.0)
    assert torch.allclose(guided(z, t), want, atol=1e-5)
    assert asked == [8]
    raw = [d.at(t, "noise")(z) for d in (plain, conditional)]
    assert torch.allclose(guided.at(t, "noise")(z), torch.lerp(*raw, 3.0), atol=1e-6)
    times = torch.tensor([0.4, 0.4, 0.9, 0.4], dtype=torch.float64)
    parts = torch.cat(
        [fs.guide(wrapped(labels[i : i + 1]), plain, 3.0)(z[i : i + 1], float(times[i])) for i in range(4)]
    )
    assert torch.allclose(guided(z, times), parts, atol=1e-5)
    asked.clear()
    assert torch.equal(fs.guide(conditional, plain, 1.0)(z, t), conditional(z, t))
    assert torch.equal(fs.guide(conditional, plain, 0.0)(z, t), plain(z, t))
    assert asked == [4] * 4
    limited = fs.guide(conditional, plain, 3.0, interval=(0.2, 0.6))
    asked.clear()
    fs.sample(limited, VP, solver="ddim", grid=torch.tensor([1.0, 0.5, 0.1, 0.01]), x=z)
    assert asked == [4, 8, 4]
    assert torch.allclose(limited(z, times)[2:3], wrapped(labels[2:3])(z[2:3], 0.9), atol=1e-5)
    with pytest.raises(ValueError, match=r"interval=\(0.6, 0.2\)"):
        fs.guide(conditional, plain, 3.0, interval=(0.6, 0.2))


def test_a_guided_pair_too_large_for_the_memory_is_two_calls():
    def small(x, t, *, label):
        if len(x) > 4:
            raise torch.OutOfMemoryError("too many")
        return network(x, t, label=label)

    z, t = torch.randn(4, 3), 0.4
    one, other = (fs.wrap(partial(small, label=torch.tensor(v)), VP, dtype=torch.float32) for v in (0.5, 0.0))
    assert torch.allclose(fs.guide(one, other, 2.0)(z, t), torch.lerp(other(z, t), one(z, t), 2.0))


def test_different_networks_are_no_pair():
    z, t = torch.randn(4, 3), 0.4
    for other in (
        fs.wrap(lambda x, t: -x, VP, dtype=torch.float32),
        fs.wrap(partial(lambda x, t, *, label: label - x, label=torch.zeros(())), VP, dtype=torch.float32),
        wrapped(torch.ones(4), "v"),
    ):
        want = torch.lerp(other(z, t), wrapped(0.5)(z, t), 2.0)
        assert torch.allclose(fs.guide(wrapped(0.5), other, 2.0)(z, t), want, atol=1e-5)


def test_a_compiled_network_is_one_graph_for_all_steps_and_labels():
    graphs = []

    def back_end(graph, _):
        graphs.append(graph)
        return graph.forward

    net = lambda x, t, *, label: torch.tanh(x * t[:, None]) + label  # noqa: E731
    d = [fs.wrap(partial(net, label=torch.tensor(v)), VP, dtype=torch.float32) for v in (0.3, 0.4)]
    table, z, counted = fs.tabulate("dpmpp-2m", VP, steps=4), torch.randn(2, 3), [fs.Counted(one) for one in d]
    with torch.no_grad():
        for one, count in zip(d, counted, strict=True):
            made = fs.denoiser.compiled(count, backend=back_end)
            ends = [walk(Plan.of(table, each, like=z), z) for each in (one, made)]
            assert torch.allclose(*ends, atol=1e-6)
    assert len(graphs) == 1
    assert [count.calls for count in counted] == [4, 4]


def test_a_compiled_network_is_called_once_for_both_predictions_of_a_guided_one():
    graphs = []

    def back_end(graph, inputs):
        graphs.append(max(len(x) for x in inputs if isinstance(x, torch.Tensor)))
        return graph.forward

    net = lambda x, t, *, label: torch.tanh(x * t[:, None]) + label[:, None]  # noqa: E731
    one, other = (fs.wrap(partial(net, label=torch.full((2,), v)), VP, dtype=torch.float32) for v in (0.3, 0.4))
    guided, z = fs.guide(one, other, 2.0), torch.randn(2, 3)
    with torch.no_grad():
        assert torch.allclose(fs.denoiser.compiled(guided, backend=back_end)(z, 0.5), guided(z, 0.5), atol=1e-6)
    assert graphs == [4]


def test_what_has_no_network_is_not_compiled():
    with pytest.raises(ValueError, match="got a function to compile, with no wrapped network in it"):
        fs.sample(lambda z, t: z, VP, shape=(2, 3), compile=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs want a GPU")
@pytest.mark.parametrize("solver", ["dpmpp-2m", "ddpm"])
def test_a_captured_run_is_the_run(solver):
    d, z, table, noises = problem(solver)
    z, noises = z.cuda(), [xi.cuda() for xi in noises]
    plan = Plan.of(table, d, like=z)
    captured = Captured(plan, torch.zeros_like(z), [torch.zeros_like(xi) for xi in noises])
    for start in (z, -z):
        assert torch.allclose(captured(start, noises), walk(plan, start, noises), atol=1e-9)


def test_a_capture_without_a_gpu_is_refused():
    d, z, table, noises = problem("ddim")
    with pytest.raises(ValueError, match="got a state on cpu to capture"):
        Captured(Plan.of(table, d, like=z), z, noises)


RUNS = """
import sys
from functools import partial
from pathlib import Path

import fewstep as fs
import torch

torch.set_num_threads(1)
sizes = []

def net(x, t, *, label):  # 8 MiB a sample
    sizes.append(len(x))
    return (x.repeat(1, 2048, 1, 1) + label[:, None, None, None]).abs().mean(1, keepdim=True)

denoiser = fs.wrap(partial(net, label=torch.linspace(-1, 1, 64)), fs.VP(), dtype=torch.float32)
for options in ({"memory": "750MiB"}, {"memory": "750MiB", "parallel": fs.Parallel(tolerance=0.0)}, {}):
    sizes.clear()
    Path("/proc/self/clear_refs").write_text("5")
    x = fs.sample(denoiser, fs.VP(), solver="ddim", steps=2, shape=(64, 1, 32, 32), progress=False, **options)
    peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024
    print(peak, max(sizes), float(x.double().sum()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from Linux's /proc")
def test_a_run_stays_within_its_memory():
    """A call of 64 samples takes over a GiB; under a limit the same samples come in smaller calls."""
    done = subprocess.run([sys.executable, "-c", RUNS], capture_output=True, text=True, check=True)
    row_by_row, parallel, free = ([float(value) for value in line.split()] for line in done.stdout.splitlines())
    assert free[0] > 1000
    assert free[1] == 64
    for peak, most, total in (row_by_row, parallel):
        assert peak <= 750
        assert 4 <= most < 64
        assert total == pytest.approx(free[2], rel=1e-6)


@pytest.mark.parametrize("run", [fs.sample, fs.solve])
def test_the_last_call_stays_within_the_memory_too(run, monkeypatch):
    monkeypatch.setattr(Room, "note", lambda room, samples: setattr(room, "size", 2))
    asked.clear()
    run(wrapped(0.0), VP, steps=3, shape=(6, 3), memory="1TiB", final="denoise")
    assert max(asked) == 2


def test_a_limit_below_what_is_held_is_refused():
    with pytest.raises(ValueError, match=r"got memory='50MiB', but the process holds [\d.]+ [MG]iB already: give more"):
        fs.sample(wrapped(0.0), VP, shape=(2, 3), memory="50MiB")


def test_pieces_take_what_is_bound_to_their_samples_along():
    labels, z = torch.linspace(-1, 1, 7), torch.randn(7, 3)
    times = torch.linspace(0.1, 0.9, 7, dtype=torch.float64)
    room = Room("1TiB")
    pieces = InPieces(wrapped(labels), room)
    for t in (0.4, times):
        room.size = 2
        asked.clear()
        found = pieces(z, t)
        assert max(asked) < 7
        assert torch.allclose(found, wrapped(labels)(z, t), atol=1e-6)
    assert pieces.head("base", 0.4) is None
    guided = fs.guide(wrapped(labels), wrapped(0.0), 3.0)
    pieces = InPieces(guided, Room("1TiB"))
    assert torch.allclose(pieces.head("guidance", 0.4)(z), guided.head("guidance", 0.4)(z), atol=1e-5)
    assert on_raw_outputs(fs.tabulate("ddim", VP, steps=3), pieces).output == "noise"


@pytest.mark.parametrize(("text", "size"), [("4GiB", 2**32), ("500 MB", 5 * 10**8), ("1.5g", 15 * 10**8), (1000, 1000)])
def test_sizes_as_people_write_them(text, size):
    assert as_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "0", "4 GiBs", "i", None])
def test_sizes_that_are_none(text):
    with pytest.raises(ValueError, match="give a size as 4GiB"):
        as_bytes(text)
