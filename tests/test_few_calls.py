"""What guided skipping, operators and adaptive weights learn from, and the learning rates that are taken unasked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fewstep as fs
from fewstep.files import load_tensors
from fewstep.nets import MLP, Temporal
from fewstep.train.methods.guided import LatentConsistency, Skipped
from fewstep.train.methods.recorded import Operator, passed, weights
from fewstep.train.methods.two_times import adaptive
from fewstep.train.pairs import Batch
from fewstep.train.player import Player, Players, Student
from fewstep.train.students import train_student
from fewstep.train.target import Point, jump
from fewstep.train.trainer import read_header

pytestmark = pytest.mark.usefixtures("one_thread")

VP = fs.VP()
HERE, THERE = torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([1.0, 0.25], dtype=torch.float64)


class Same(nn.Module):
    """Returns the state."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor, **_: Tensor) -> Tensor:  # noqa: ARG002
        return x


def test_a_skip_is_the_guided_step_of_ddim_and_its_last_end_the_state() -> None:
    net = Player(Same(), lambda net, batch: Student(net=net, process=VP), averages=("target",))  # noqa: ARG005

    def teacher(batch: Batch, conditional: bool):  # noqa: ARG001
        return lambda z, t: (HERE if conditional else THERE).expand_as(z)

    z, w = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 1, 3])
    t, u = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64), torch.tensor([0.9, 0.4, 0.001], dtype=torch.float64)
    point = Point(VP, Batch(z, {"w": w}), z, t, u, torch.full_like(t, 0.001), torch.tensor([False, False, True]), z, z)
    made = Skipped()(Players({"net": net}, teacher), point)
    g = (1 + w.double())[:, None] * HERE - w.double()[:, None] * THERE
    wanted = jump(VP, z, t, u, g)
    wanted[2] /= VP.alpha(u)[2]
    torch.testing.assert_close(made, wanted, rtol=1e-12, atol=1e-12)


def test_skips_are_twenty_of_a_thousand_steps_and_tables_walk_their_grid() -> None:
    method = LatentConsistency()
    grid = method.grid(VP)
    assert len(grid) == 51
    for n, made in method.tables(VP).items():
        assert len(made.grid) == int(n) + 1
        assert set(made.grid.tolist()) <= set(grid.tolist())
    with pytest.raises(ValueError, match="multiple of the skip"):
        LatentConsistency(count=100, skip=30)


def test_an_operator_learns_the_states_of_a_run(tmp_path: Path) -> None:
    teacher = fs.Mixture(VP, HERE[None], 1e-6)  # of which every run is one jump
    options = {"pairs": 32, "calls": 8, "solver": "ddim"}
    train_student(np.zeros((32, 2)), tmp_path, method="operator", teacher=teacher, options=options, steps=1, batch=8,
                  width=8, depth=2, quiet=True)  # fmt: skip
    pairs = load_tensors(tmp_path / "pairs-0.safetensors")
    assert pairs["x0"].shape == (32, 4, 2)
    z, t = VP.prior(pairs["eps"], VP.t_max), torch.full((32,), VP.t_max, dtype=torch.float64)
    grid = fs.tabulate("ddim", VP, steps=8).grid
    for i, s in enumerate((grid[8], grid[6], grid[4], grid[2])):
        wanted = HERE.expand(32, 2) if i == 0 else jump(VP, z, t, s.expand(32), HERE.expand(32, 2))
        torch.testing.assert_close(pairs["x0"][:, i], wanted, rtol=0, atol=1e-4)


def test_a_pass_has_the_end_first_and_later_states_weigh_more() -> None:
    net = MLP(2, 8, 2, outputs=Operator.outputs, modes=2).double()
    student = Student(net=net, process=VP)
    z = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([0.001, 0.2, 0.4, 0.8], dtype=torch.float64)
    states = passed(VP, student, z, times)
    assert states.shape == (5, 4, 2)
    t = torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(states[:, 0], jump(VP, z, t, times[:1].expand(5), student(z, t)))
    w = weights(VP, times)
    assert w[-1] == 1.0
    assert w[0] > w[1] > 1.0


def test_what_mixes_times_begins_as_nothing_and_reads_low_frequencies_alone() -> None:
    mixing, h = Temporal(3, 2), torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(2))
    assert not mixing(h).any()
    mixing.real.data[:] = torch.eye(3)
    fast = torch.tensor([1.0, -1.0, 1.0, -1.0])[None, :, None]
    torch.testing.assert_close(mixing(h + fast), mixing(h), rtol=0, atol=1e-6)
    torch.testing.assert_close(mixing(torch.ones(2, 4, 3)), torch.ones(2, 4, 3))


def test_an_adaptive_weight_is_least_at_one_over_the_loss() -> None:
    off, prior = torch.tensor([[1.0, 3.0], [0.1, 0.0]]), torch.tensor([2.0, 0.5])
    w = -(prior * (off**2).mean(1)).log()
    w.requires_grad_()
    adaptive(off, prior, w).sum().backward()
    torch.testing.assert_close(w.grad, torch.zeros(2), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "width", "given", "lr"),
    [("flow", 8, None, 2e-3), ("shortcut", 8, None, 8e-3), ("shortcut", 192, None, 4e-3), ("shortcut", 8, 1e-3, 1e-3)],
)
def test_a_perceptron_takes_the_rate_of_its_method_and_width(
    method: str, width: int, given: float | None, lr: float, tmp_path: Path
) -> None:
    train_student(np.zeros((8, 2)) + 1.0, tmp_path, method=method, steps=1, batch=8, width=width, depth=1, lr=given,
                  quiet=True)  # fmt: skip
    assert read_header(tmp_path / "checkpoint.safetensors")["config"]["lr"] == pytest.approx(lr)
