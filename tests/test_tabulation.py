"""How tables are written: all integrals of a table at once, what was written kept, and few operations for it."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fewstep as fs
from fewstep.check.exact import small
from fewstep.process.base import Memory, like, recalling, to_tensor
from fewstep.process.operator import magnitude
from fewstep.solver import weights as weights_module
from fewstep.tableau import kept as kept_module
from fewstep.tableau.kept import forget, kept
from fewstep.tableau.writer import Writer

FAMILIES = (
    "gaussian-split", "multistep-pc-3", "deis-tab-3", "unipc-v-2", "l-deis-2", "dpm-solver-3", "rk4", "edm-sde",
    "seeds-3", "sa-solver", "er-sde", "dpm-2-ancestral", "dpmpp-2s-ancestral-flow", "quasi-taylor-2", "restart",
    "taylor-2", "stsp", "ddpm", "pndm",
)  # fmt: skip


def alone(solver: fs.Solver, process: fs.Process, grid: torch.Tensor) -> fs.Tableau:
    """The table with every number worked out when it is asked for."""
    writer = Writer(process, grid)
    solver.write(writer)
    return writer.table(solver)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["vp", "blurring", "cld", "flow"])
def test_a_table_written_at_once_is_the_one_written_number_by_number(name: str, kind: str) -> None:
    solver, process = fs.SOLVERS[name](), small(kind)
    if process.kind not in solver.kinds:
        return
    grid = torch.linspace(0.97, 0.02, 7, dtype=torch.float64) * process.t_max
    table, plain = solver.tabulate(process, grid), alone(solver, process, grid)
    assert len(table.rows) == len(plain.rows)
    for row, other in zip(table.rows, plain.rows, strict=True):
        assert row.t == pytest.approx(other.t, rel=1e-13)
        assert row.at == (None if other.at is None else pytest.approx(other.at, rel=1e-13))
        terms = {**dict.fromkeys(other.form.terms, 0.0), **row.form.terms}
        for symbol, c in terms.items():
            wanted = other.form.terms.get(symbol, 0.0)
            assert magnitude(c - wanted) <= 1e-10 * max(1.0, magnitude(wanted)), (symbol, c, wanted)


def test_the_test_of_that_test() -> None:
    """An integral that reads its steps in another order is seen."""
    process, solver = fs.VP(), fs.Multistep(points=3)
    grid = torch.linspace(0.97, 0.02, 7, dtype=torch.float64)
    right = solver.tabulate(process, grid)
    answers = weights_module._answers
    weights_module._answers = lambda steps: [(c, b[::-1]) for c, b in answers(steps)]
    try:
        forget()
        wrong = solver.tabulate(process, grid)
    finally:
        weights_module._answers = answers
        forget()
    assert wrong != right


class Count(TorchDispatchMode):
    """Counts the operations on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        self.operations += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("ddim", 160),
        ("dpmpp-2m", 170),
        ("unipc-3", 170),
        ("gaussian-split", 520),
        ("dpmpp-2m-sde", 400),
        ("dpm-2-ancestral", 450),
        ("dpmpp-2s-ancestral-flow", 450),
        ("dpmpp-sde", 600),
        ("seeds-3", 650),
        ("er-sde", 500),
    ],
)
def test_a_table_takes_few_operations_whatever_its_steps(name: str, most: int) -> None:
    """A tensor operation costs microseconds: fifty steps take hardly more of them than ten."""
    counts = []
    for steps in (10, 50):
        forget()
        with Count() as count:
            fs.tabulate(name, fs.VP(), steps=steps, final="state")
        counts.append(count.operations)
    assert counts[1] <= most, counts
    assert counts[1] <= 1.6 * counts[0], counts


def test_a_process_remembers_only_inside_of_the_block() -> None:
    process, asked = fs.VP(), []
    method = type(process)._sigma

    class Noted(fs.VP):
        def _sigma(self, t: torch.Tensor) -> torch.Tensor:
            asked.append(t.numel())
            return method(self, t)

    noted = Noted()
    with recalling(Memory(noted, [0.9, 0.5, 0.1])):
        values = [noted.R(t) for t in (0.9, 0.5, 0.1, 0.3, 0.3)]
    assert asked == [3, 1]
    assert values == pytest.approx([process.R(t) for t in (0.9, 0.5, 0.1, 0.3, 0.3)], rel=1e-15)
    noted.R(0.9)
    assert asked == [3, 1, 1]


class Tilted(fs.VP):
    """A process that changes what its parent answers, as people write them."""

    def log_snr(self, t):
        return super().log_snr(t) + 0.5

    def inverse_log_snr(self, lam):
        return super().inverse_log_snr(lam - 0.5)

    def alpha(self, t):
        return like(torch.sigmoid(2 * to_tensor(self.log_snr(t))).sqrt(), t)

    def sigma(self, t):
        return like(torch.sigmoid(-2 * to_tensor(self.log_snr(t))).sqrt(), t)


@pytest.mark.parametrize("name", ["dpmpp-sde", "dpm-2-ancestral", "dpmpp-2s-ancestral-flow", "quasi-taylor-2"])
def test_a_process_may_ask_its_parent(name: str) -> None:
    solver, grid = fs.SOLVERS[name](), torch.linspace(0.97, 0.02, 7, dtype=torch.float64)
    table, plain = solver.tabulate(Tilted(), grid), alone(solver, Tilted(), grid)
    for row, other in zip(table.rows, plain.rows, strict=True):
        terms = {**dict.fromkeys(other.form.terms, 0.0), **row.form.terms}
        assert row.t == pytest.approx(other.t, rel=1e-12)
        assert terms == pytest.approx({s: other.form.terms.get(s, 0.0) for s in terms}, rel=1e-9, abs=1e-9)


def test_a_subclass_that_is_no_dataclass_has_tables_of_its_own() -> None:
    class Slower(fs.VP):
        def __init__(self, rate: float) -> None:
            super().__init__()
            object.__setattr__(self, "rate", rate)

        def _log_alpha(self, t: torch.Tensor) -> torch.Tensor:
            return self.rate * super()._log_alpha(t)

    grid = torch.linspace(0.97, 0.02, 7, dtype=torch.float64)
    solver = fs.DDIM()
    for rate in (1.0, 0.5):
        assert solver.tabulate(Slower(rate), grid) == alone(solver, Slower(rate), grid)


def test_what_people_do_to_a_table_stays_theirs() -> None:
    first = fs.tabulate("dpm-2", fs.VP(), steps=6)
    grid, heads = first.grid.clone(), dict(first.heads)
    for _ in range(2):  # the one that is written and the one that is kept
        table = fs.tabulate("dpm-2", fs.VP(), steps=6)
        assert torch.equal(table.grid, grid)
        assert dict(table.heads) == heads
        table.grid.mul_(0.5)
        table.heads.clear()


def test_what_was_written_is_kept() -> None:
    first, again = (fs.tabulate("unipc-3", fs.VP(), steps=9) for _ in range(2))
    assert again.rows is first.rows
    assert fs.tabulate("unipc-3", fs.VP(beta_max=19.0), steps=9).rows is not first.rows
    assert fs.tabulate("unipc-2", fs.VP(), steps=9) != first
    assert fs.tabulate("unipc-3", fs.VP(), steps=10) != first


def test_a_table_kept_from_inference_mode_can_be_differentiated_through() -> None:
    forget()
    process = small("blurring")
    denoiser = fs.Gaussian(process, mean=0.0, std=0.5)
    x = torch.randn(2, 1, *process.size, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        fs.sample(denoiser, process, x=x.detach(), steps=3, progress=False)
    fs.sample(denoiser, process, x=x, steps=3, differentiable=True, progress=False).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_module, "_NUMBERS", 3000)
    forget()
    for k in range(40):
        fs.tabulate("ddim", fs.VP(), grid=torch.linspace(1.0, 0.01 + 1e-4 * k, 6, dtype=torch.float64))
    assert 0 < sum(size for _, size in kept_module._TABLES.values()) <= 3000
    large = fs.tabulate("ddim", fs.VP(), steps=200)
    assert large.nfe == 200
    assert sum(size for _, size in kept_module._TABLES.values()) <= 3000
    assert kept([1], lambda: large) is large  # no hash: made, and not kept
    forget()


def test_threads_share_what_is_kept() -> None:
    forget()
    made: list[fs.Tableau] = []
    run = lambda k: made.append(fs.tabulate("multistep-3", fs.VP(), steps=5 + k % 3))  # noqa: E731
    threads = [threading.Thread(target=run, args=(k,)) for k in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for table in made:
        assert table == alone_at(table)


def alone_at(table: fs.Tableau) -> fs.Tableau:
    forget()
    assert table.solver is not None
    return table.solver.tabulate(table.process, table.grid)


def test_a_kept_table_is_of_the_options_as_they_were_given() -> None:
    made = [fs.tabulate(fs.DDIM(eta=eta), fs.VP(beta_max=20.0), steps=3) for eta in (1.0, 1, 1.0)]
    assert [type(table.solver.eta) for table in made] == [float, int, float]  # type: ignore[union-attr]
    assert made[0].rows is made[2].rows
