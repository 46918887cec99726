"""What students are to return, without training: rows of the teacher's table, finite differences, fixed points."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

import fewstep as fs
from fewstep.grid import GRIDS
from fewstep.process.operator import apply, inverse
from fewstep.train.methods import consistency, curvature, heads, vdm
from fewstep.train.methods.base import Setting
from fewstep.train.methods.scores import ScoreMatching
from fewstep.train.pairs import Batch, Draw, Uniform
from fewstep.train.player import Player, Players, Student
from fewstep.train.regression import DISTANCES, error
from fewstep.train.target import averaged, guided, halved, heun, jump, push, shortened, unjump

SCALAR = {"vp": fs.VP(), "cosine": fs.Cosine(), "sub-vp": fs.SubVP(), "ve": fs.VE(), "edm": fs.EDM(),
          "flow": fs.Flow(), "discrete": fs.Discrete()}  # fmt: skip
DIAGONAL = {"blurring": fs.Blurring(size=(3, 4)), "ve-blur": fs.VEBlur(size=(3, 4))}
EVERY = SCALAR | DIAGONAL
B = 5


def shape(process: fs.Process) -> tuple[int, ...]:
    return (1, 3, 4) if process.kind == "diagonal" else (3,)


def between(process: fs.Process, *shares: float) -> list[Tensor]:
    """Times at shares of the way from noise to data, by log-SNR, another for each sample."""
    low, high = (
        float(process.log_snr(t))
        for t in (0.98 * process.t_max, process.t_min + 0.02 * (process.t_max - process.t_min))
    )
    offsets = torch.linspace(0, 0.05, B, dtype=torch.float64)
    return [torch.as_tensor(process.inverse_log_snr(low + (high - low) * (s + offsets))) for s in shares]


def normal(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(process: fs.Process) -> fs.Mixture:
    size = shape(process)
    return fs.Mixture(process, normal(0, 3, *size), 0.1 + 0.2 * normal(1, 3).abs())


class Exact:
    """The average of D along the ODE of Gaussian data N(mu, v), in closed form: R^-1 (z - M mu) scales alike."""

    def __init__(self, process: fs.ScalarProcess, mu: float = 0.3, v: float = 0.4) -> None:
        self.process, self.mu, self.v = process, mu, v

    def end(self, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        p = self.process

        def wide(x: Tensor) -> Tensor:
            return x.reshape(-1, 1)

        def deviation(u: Tensor) -> Tensor:
            return (p.alpha(u) ** 2 * self.v + p.sigma(u) ** 2).sqrt()

        return wide(p.alpha(s)) * self.mu + wide(deviation(s) / deviation(t)) * (z - wide(p.alpha(t)) * self.mu)

    def d(self, z: Tensor, t: Tensor) -> Tensor:
        a, s = (f(t).reshape(-1, 1) for f in (self.process.alpha, self.process.sigma))
        return self.mu + a * self.v / (a**2 * self.v + s**2) * (z - a * self.mu)

    def __call__(self, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return unjump(self.process, z, t, s, self.end(z, t, s))


@pytest.mark.parametrize("name", EVERY)
def test_halving_reproduces_the_two_rows_of_the_teacher(name: str) -> None:
    process = EVERY[name]
    teacher = mixture(process)
    t, u, s = between(process, 0.2, 0.5, 0.8)
    z = process.diffuse(normal(2, B, *shape(process)), t, normal(3, B, *shape(process)))
    there = jump(
        process, jump(process, z, t, u, teacher(z, t)), u, s, teacher(jump(process, z, t, u, teacher(z, t)), u)
    )
    g = halved(process, teacher, z, t, u, s, torch.tensor(False))
    assert (jump(process, z, t, s, g) - there).abs().max() <= 1e-12 * there.abs().max()
    swapped = halved(process, teacher, z, t, t + (t - u) * 0.01, s, torch.tensor(False))
    assert (jump(process, z, t, s, swapped) - there).abs().max() > 1e-4 * there.abs().max()


@pytest.mark.parametrize("name", EVERY)
def test_one_jump_is_one_row_of_ddim(name: str) -> None:
    process = EVERY[name]
    teacher, (t, s) = mixture(process), (float(v[0]) for v in between(process, 0.3, 0.6))
    z = process.diffuse(normal(2, B, *shape(process)), t, normal(3, B, *shape(process)))
    row = fs.sample(teacher, process, solver="ddim", grid=[t, s], x=z, dtype=torch.float64, progress=False)
    times = [torch.full((B,), v, dtype=torch.float64) for v in (t, s)]
    made = jump(process, z, *times, teacher(z, times[0]))
    assert (made - row).abs().max() <= 1e-12 * row.abs().max()


def test_on_the_last_step_the_target_is_the_teachers_last_x0() -> None:
    process = fs.EDM()
    teacher, (t, u, s) = mixture(process), between(process, 0.3, 0.6, 0.9)
    z = process.diffuse(normal(2, B, 3), t, normal(3, B, 3))
    last = torch.tensor([False, True, False, True, False])
    g = halved(process, teacher, z, t, u, s, last)
    x0 = teacher(jump(process, z, t, u, teacher(z, t)), u)
    assert torch.equal(g[last], x0[last])
    assert (g - x0)[~last].abs().min() > 0


def test_two_rows_are_not_one_where_states_are_blocks() -> None:
    process = fs.CLD()
    z, t = normal(0, 2, 2, 3), torch.full((2,), 0.5, dtype=torch.float64)
    with pytest.raises(ValueError, match="no one prediction jumps over two rows"):
        unjump(process, z, t, t / 2, z)


def test_guidance_is_counted_from_none() -> None:
    c, u = normal(0, B, 3), normal(1, B, 3)
    w = torch.tensor([0.0, 1, 2, 3, 4])
    assert torch.equal(guided(c, u, w)[0], c[0])
    assert torch.allclose(guided(c, u, w), c + w[:, None] * (c - u), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", SCALAR)
def test_heun_is_the_solver_of_that_name(name: str) -> None:
    process = SCALAR[name]
    teacher, (t, s) = mixture(process), (float(v[0]) for v in between(process, 0.4, 0.6))
    z = process.diffuse(normal(2, B, 3), t, normal(3, B, 3))
    ours = heun(process, teacher, z, *(torch.full((B,), v, dtype=torch.float64) for v in (t, s)))
    exact = fs.sample(teacher, process, solver=fs.EDMHeun(), grid=[t, s], x=z, dtype=torch.float64, progress=False)
    assert (ours - exact).abs().max() <= 1e-10 * exact.abs().max()


@pytest.mark.parametrize("name", SCALAR)
def test_what_is_pushed_along_the_ode_is_a_finite_difference(name: str) -> None:
    process = SCALAR[name]
    teacher, (t, s) = mixture(process), between(process, 0.4, 0.7)
    z = process.diffuse(normal(2, B, 3), t, normal(3, B, 3))

    def student(z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return torch.sin(z) * t[:, None] + (s[:, None] * z) ** 2 / process.t_max

    g, rate = push(process, student, z, t, s, teacher(z, t))
    h = 1e-5 * t
    spread = process.R_rate(t) * inverse(process.R(t))
    velocity = apply(spread, z) + apply(process.M_rate(t) - spread * process.M(t), teacher(z, t))
    ahead, behind = (student(z + sign * h[:, None] * velocity, t + sign * h, s) for sign in (1, -1))
    assert torch.equal(g, student(z, t, s))
    difference = (ahead - behind) / (2 * h[:, None])
    assert (rate - difference).abs().max() <= 1e-6 * difference.abs().max()


@pytest.mark.parametrize("name", SCALAR)
def test_the_exact_average_is_a_fixed_point(name: str) -> None:
    """Of the half jumps, and of the differential form with the teacher's D; with the destination at s = t it is D."""
    process = SCALAR[name]
    exact, (t, u, s) = Exact(process), between(process, 0.3, 0.5, 0.8)  # type: ignore[arg-type]
    z = process.diffuse(normal(2, B, 3), t, normal(3, B, 3))
    g = exact(z, t, s)
    size = g.abs().max()
    assert (shortened(process, exact, z, t, u, s) - g).abs().max() <= 1e-9 * size
    own, rate = push(process, exact, z, t, s, exact.d(z, t))
    assert (averaged(process, own, rate, t, s, exact.d(z, t)) - g).abs().max() <= 1e-8 * size
    assert (averaged(process, own, rate, t, t, exact.d(z, t)) - exact.d(z, t)).abs().max() <= 1e-9 * size


class Knows(nn.Module):
    """A network that is the exact average beside a bias, which is zero."""

    def __init__(self, exact: Exact) -> None:
        super().__init__()
        self.exact, self.bias = exact, nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.exact(z, t, s) + self.bias


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_perfect_student_has_no_gradient(distance: str) -> None:
    process = fs.VP()
    exact = Exact(process)
    net, (t, u, s) = Knows(exact), between(process, 0.3, 0.5, 0.8)
    student = Student(net=net, process=process, predicts="data", destination=True)
    z = process.diffuse(normal(2, B, 3), t, normal(3, B, 3))
    with torch.no_grad():
        goals = [shortened(process, student, z, t, u, s), exact(z, t, s)]
    for goal in goals:
        loss = DISTANCES[distance](error(student, z, t, s, goal), 0.01).mean()
        (gradient,) = torch.autograd.grad(loss, [net.bias])
        bound = 1e-6 if distance in ("l1", "norm") else 1e-10  # their slope is 1 however small the error
        assert loss < bound
        if distance not in ("l1", "norm"):
            assert gradient.abs().max() < bound


def test_schedules_of_consistency_count_boundaries() -> None:
    assert [consistency.ct_count(k, 1000) for k in (0, 1000)] == [2, 151]
    assert consistency.ict_count(0, 1000) == 11
    assert consistency.ict_count(1000, 1000) == 1281
    assert consistency.ct_decay(3, 0.9) == pytest.approx(0.9)


@pytest.mark.parametrize("name", ["edm", "cosine", "flow"])
def test_consistency_is_led_over_the_points_that_its_reach_passes(name: str) -> None:
    process = SCALAR[name]
    setting = Setting(process=process, size=3, taught=True, started=True)
    (stage,) = consistency.Consistency(points=9, reach=3).stages(setting)
    grid = GRIDS["karras"](process, 8)
    draw = Draw(Batch(torch.zeros(256, 3, dtype=torch.float64)), 0, 0.5)
    point = stage.objective.point(draw)  # type: ignore[attr-defined]
    at = torch.searchsorted(-grid, -point.t)
    assert set(at.tolist()) == set(range(8))
    assert torch.equal(point.u, grid[(at + 3).clamp(max=8)])
    assert torch.equal(point.last, at >= 5)
    rows, teacher = at == 2, fs.Mixture(process, torch.zeros(1, 3), 0.3)
    z = point.z[rows]
    for a, b in ((2, 3), (3, 4), (4, 5)):
        z = heun(process, teacher, z, grid[a].expand(len(z)), grid[b].expand(len(z)))
    led = stage.objective.target.led(teacher, point)[rows]  # type: ignore[attr-defined]
    assert torch.allclose(led, z, rtol=1e-6, atol=1e-9)


def test_batches_are_told_conditions_beside_their_own() -> None:
    batch = Batch(torch.zeros(2, 1), {"class_labels": torch.ones(2)})
    assert set(batch.told(w=torch.zeros(2)).conditions) == {"class_labels", "w"}


@pytest.mark.parametrize("name", ["edm", "flow", "vp"])
def test_scores_are_matched_at_times_even_on_edms_grid(name: str) -> None:
    process = SCALAR[name]
    edges = (torch.arange(11, dtype=torch.float64) / 10).clamp(1e-12, 1 - 1e-12)
    rho = torch.exp(-process.log_snr(Uniform(clock="karras").times(process, edges)))
    torch.testing.assert_close((rho ** (1 / 7)).diff(), ((rho[-1] ** (1 / 7) - rho[0] ** (1 / 7)) / 10).expand(10))
    if name == "edm":
        torch.testing.assert_close(rho, fs.GRIDS["karras"](process, 10))


def test_the_fake_score_sees_noise_that_joins_the_modes() -> None:
    """Most times of `dmd` are above sigma = 1, twice the data's deviation; even in log-SNR two fifths would be."""
    process = fs.EDM()
    seen: list[Tensor] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append(t)
            return self.scale * x

    def reads(net: nn.Module, batch: Batch) -> Student:  # noqa: ARG001
        return Student(net=net, process=process, predicts="edm", time=lambda t: t)

    players = Players({who: Player(Net(), reads) for who in ("net", "fake")})
    objective = ScoreMatching().stages(Setting(process=process, size=2, taught=True, started=True))[0].objective
    next(iter(objective.losses(players, Draw(Batch(torch.zeros(1000, 2, dtype=torch.float64)), 0))))
    assert float((seen[-1] > 1).double().mean()) > 0.5


def test_the_head_of_genie_is_told_the_predicted_noise_in_training_as_in_sampling() -> None:
    process, told = fs.VP(), []
    teacher = fs.Mixture(process, torch.tensor([[0.5, 0.5], [-0.5, 0.0]]), 0.2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, x: Tensor, t: Tensor, *, y: Tensor) -> tuple[Tensor, ...]:
            told.append((x, t, y))
            return (self.scale * x,) * 3

    def reads(net: nn.Module, batch: Batch) -> Student:
        return Student(net=partial(net, **batch.conditions), process=process, predicts="noise")

    players = Players({"net": Player(Net(), reads)}, lambda batch, conditional: teacher)
    draw = Draw(Batch(teacher.sample(8, torch.Generator().manual_seed(0))), 0)
    (losses,) = heads.Heads(process=process, kind="genie").losses(players, draw)
    head = Student(net=Net(), process=process, predicts="noise")
    options = {"solver": "taylor-2", "grid": [0.4, 0.2], "final": "state", "progress": False}
    fs.sample(heads.Rate(teacher, head), process, x=normal(1, 8, 2), **options)
    for x, times, noise in told:
        torch.testing.assert_close(noise, heads.noise_of(process, teacher, x, times))
    # the loss is that of a step's end: gamma^2 (1 + gamma^2) |.|^2
    x, times, _ = told[0]
    g = heads.gamma(process, times)
    off = heads.assembled((x,) * 3, g) - heads.noise_rate(process, teacher, x, times)
    torch.testing.assert_close(losses["net"], g**2 * (1 + g**2) * (off**2).mean(1))
    assert len(told) == 2


def test_a_pinned_schedule_keeps_its_ends_and_moves_its_inside() -> None:
    torch.manual_seed(0)
    net = vdm.Monotone(64, -9.0, 10.0)
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3, betas=(0.9, 0.99))

    def second() -> Tensor:
        u = torch.linspace(0.001, 0.999, 400).requires_grad_()
        gamma = net(u)
        (rate,) = torch.autograd.grad(gamma.sum(), u, create_graph=True)
        return (rate / (1 + gamma**2)).square().mean()  # an error that is large about 0 alone

    before = float(second().detach())
    for _ in range(400):
        optimiser.zero_grad()
        second().backward()
        optimiser.step()
    assert float(second().detach()) < 0.7 * before
    torch.testing.assert_close(net(torch.tensor([0.0, 1.0])).detach(), torch.tensor([-9.0, 10.0]))
    assert bool((net(torch.linspace(0, 1, 100)).detach().diff() > 0).all())


def test_an_encoders_noise_has_the_spread_that_sampling_starts_from() -> None:
    eps = curvature.standard(0.4 * normal(0, 64, 2, 3) + 2)
    torch.testing.assert_close(eps.mean(0), torch.zeros(2, 3, dtype=torch.float64))
    torch.testing.assert_close(eps.std(0, correction=0), torch.ones(2, 3, dtype=torch.float64))
    assert torch.equal(curvature.standard(eps[:1]), eps[:1])
    asked: list[Tensor] = []

    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
            return self.scale * x, self.scale * x - 4

    x0 = normal(1, 64, 2)

    def net(x: Tensor, t: Tensor) -> Tensor:
        asked.append((x - (1 - t[:, None]) * x0) / t[:, None])
        return x

    reads = lambda player, batch: Student(net=net, process=fs.Flow(), predicts="flow")  # noqa: ARG005, E731
    players = Players({"net": Player(nn.Linear(1, 1), reads)})
    players["encoder"] = Player(Narrow())
    next(curvature.Encoded(process=fs.Flow(), beta=5.0).losses(players, Draw(Batch(x0), 0)))
    torch.testing.assert_close(asked[0].std(0, correction=0), torch.ones(2, dtype=torch.float64))
