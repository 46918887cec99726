"""Manifolds: heat kernels against their own laws, walks and ODEs against exact scores, training against a mixture."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import fewstep as fs
from fewstep.cli import main
from fewstep.manifold import Field, Rotations, Sphere, Torus, divergence, flow, langevin, load, step
from fewstep.manifold.base import column
from fewstep.train import Stopped
from fewstep.train.drifts.manifold import vectors

pytestmark = pytest.mark.usefixtures("one_thread")

MANIFOLDS = [Sphere(1), Sphere(2), Sphere(3), Sphere(6), Torus(2), Rotations()]
LINE = [m for m in MANIFOLDS if not isinstance(m, Torus)]


def named(m: object) -> str:
    return str(m)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def points(m, count: int, seed: int = 0) -> Tensor:
    return m.uniform(normal(count, *m.shape, seed=seed))


def cosine(m, x: Tensor, y: Tensor) -> Tensor:
    """An eigenfunction of the Laplacian to its first eigenvalue, 1 at x = y."""
    if isinstance(m, Torus):
        return (x - y).cos().mean(-1)
    theta = m.distance(x, y)
    return (1 + 2 * theta.cos()) / 3 if isinstance(m, Rotations) else theta.cos()


@pytest.mark.parametrize("m", MANIFOLDS, ids=named)
def test_geodesics_lead_back_and_stay(m):
    x, y = points(m, 64), points(m, 64, seed=1)
    v = m.log(x, y)
    assert (m.exp(x, v) - y).abs().max() < 1e-12
    assert (m.project(x, v) - v).abs().max() < 1e-12
    assert (m.nearest(y) - y).abs().max() < 1e-14
    assert torch.allclose(m.distance(x, m.exp(x, 0.3 * v)), 0.3 * m.distance(x, y), atol=1e-7)
    assert torch.equal(m.exp(x, 0 * v), m.nearest(x)) or (m.exp(x, 0 * v) - x).abs().max() < 1e-15
    assert (m.points(y) - y).abs().max() < 1e-14


@pytest.mark.parametrize("s", [1e-3, 0.0199, 0.0201, 0.49, 0.51, 3.0])
@pytest.mark.parametrize("m", LINE, ids=named)
def test_a_kernel_has_mass_one_decays_as_its_eigenvalues_and_has_its_slope(m, s):
    far = min(math.pi, 14 * math.sqrt(s))
    theta = (torch.arange(4000, dtype=torch.float64) + 0.5) * far / 4000
    log_k, slope = m.radial(theta, torch.full_like(theta, s))
    around = 16 * math.pi if isinstance(m, Rotations) else 2 * math.pi ** (m.dim / 2) / math.gamma(m.dim / 2)
    mass = log_k.exp() * m.area(theta) * around * far / 4000
    first = (1 + 2 * theta.cos()) / 3 if isinstance(m, Rotations) else theta.cos()
    bound = 1e-4 if m.dim > 3 and s < 0.02 else 1e-6  # an expansion there
    assert abs(float(mass.sum()) - 1) < bound
    assert abs(float((mass * first).sum()) - math.exp(-m.gap * s / 2)) < bound
    h, inside = 1e-5, (theta > 2e-5) & (theta < math.pi - 0.1) & (theta**2 < 25 * s)
    ends = [m.radial(theta[inside] + d, torch.full_like(theta[inside], s))[0] for d in (h, -h)]
    assert ((ends[0] - ends[1]) / (2 * h) - slope[inside]).abs().max() < 1e-5 * (1 + 5 / math.sqrt(s))


def by_eigenfunctions(m, theta: Tensor, s: float, last: int) -> Tensor:
    """The kernel as the sum of e^{-lambda_n s/2} times the n-th eigenspace's kernel."""
    total = torch.zeros_like(theta)
    for n in range(last):
        rate, term = n * n, (2.0 - (n == 0)) * (n * theta).cos() / (2 * math.pi)  # the circle
        if isinstance(m, Rotations):  # Weyl's characters
            rate, term = n * (n + 1), (2 * n + 1) * ((n + 0.5) * theta).sin() / (theta / 2).sin() / m.volume
        elif m.dim == 2:
            legendre = torch.special.legendre_polynomial_p(theta.cos(), n)
            rate, term = n * (n + 1), (2 * n + 1) * legendre / (4 * math.pi)
        elif m.dim == 3:
            rate, term = n * (n + 2), (n + 1) * ((n + 1) * theta).sin() / theta.sin() / (2 * math.pi**2)
        total = total + math.exp(-rate * s / 2) * term
    return total


@pytest.mark.parametrize("s", [0.02, 0.49, 0.51, 3.0])
@pytest.mark.parametrize("m", [Sphere(1), Sphere(2), Sphere(3), Rotations()], ids=named)
def test_a_kernel_is_the_sum_of_its_eigenfunctions(m, s):
    theta = torch.linspace(0.05, 3.1, 60, dtype=torch.float64)
    found = m.radial(theta, torch.full_like(theta, s))[0].exp()
    wanted = by_eigenfunctions(m, theta, s, 70)
    assert ((found - wanted).abs() / wanted.abs().max()).max() < 1e-12


@pytest.mark.parametrize("m", MANIFOLDS, ids=named)
def test_the_score_is_the_gradient_of_the_kernel(m):
    x0, x = points(m, 32, seed=2), points(m, 32, seed=3)
    x = m.exp(x0, 0.4 * m.log(x0, x))
    s = torch.full((32,), 0.3, dtype=torch.float64)
    v = m.noise(x, normal(32, *m.shape, seed=4))
    h = 1e-5
    ends = [m.log_kernel(m.exp(x, d * v), x0, s) for d in (h, -h)]
    assert torch.allclose((ends[0] - ends[1]) / (2 * h), m.inner(m.score(x, x0, s), v), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("s", [2e-3, 0.2, 1.0])
@pytest.mark.parametrize("m", MANIFOLDS, ids=named)
def test_points_diffuse_by_the_heat_kernel_and_a_fine_walk_does_too(m, s):
    count = 8_000
    x0 = points(m, 1).expand(count, *m.shape)
    pair = normal(count // 2, *m.shape, seed=5)
    x = m.diffuse(x0, torch.full((count,), s, dtype=torch.float64), torch.cat([pair, -pair]))
    m.points(x)
    wanted = math.exp(-m.gap * s / 2)
    off = 5 * float(cosine(m, x, x0).std()) / math.sqrt(count)
    assert abs(float(cosine(m, x, x0).mean()) - wanted) < off + 1e-3 * (1 - wanted)
    walker = x0[:2000]
    for k in range(20):
        walker = step(m, walker, 0.0, s / 20, normal(2000, *m.shape, seed=100 + k))
    assert abs(float(cosine(m, walker, x0[:2000]).mean()) - wanted) < 2.1 * off + 0.02 * s


def test_divergence_is_the_trace_on_tangents():
    m, a = Sphere(3), normal(4, 4, seed=6)
    x = points(m, 16)
    v, div = divergence(m, lambda y, _: m.project(y, y @ a.mT), x, torch.zeros(16))
    quadratic = ((x @ a.mT) * x).sum(-1)
    assert torch.allclose(div, a.trace() - 4 * quadratic, atol=1e-12)
    assert not v.requires_grad
    signs = normal(16, 4, seed=7).sign()
    probes = [divergence(m, lambda y, _: m.project(y, y @ a.mT), x, torch.zeros(16), probe=e * signs)[1]
              for e in torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 4)]  # fmt: skip
    assert torch.allclose(torch.stack(probes).mean(0), div, atol=1e-12)  # all signs together are exact


def exact(m, x0: Tensor, low: float = 1e-2) -> Field:
    """The field of data that are these points, as a network that knows it."""

    def score(x: Tensor, s: Tensor) -> Tensor:
        every = [(x0[i : i + 1].expand(x.shape)) for i in range(len(x0))]
        weights = torch.stack([m.log_kernel(x, y, s) for y in every]).softmax(0)
        return sum(column(w, x) * m.score(x, y, s) for w, y in zip(weights, every, strict=True))

    field = Field(manifold=m, net=None, low=low)
    object.__setattr__(field, "score", score)
    return field


@pytest.mark.parametrize("m", [Sphere(2), Torus(2), Rotations()], ids=named)
def test_the_ode_has_the_likelihood_of_an_exact_score(m):
    x0 = points(m, 1, seed=8).expand(2, *m.shape)
    field, ends = exact(m, x0[:1]), [torch.full((2,), s, dtype=torch.float64) for s in (1e-2, m.horizon)]
    x = m.diffuse(x0, ends[0], normal(2, *m.shape, seed=9))
    with torch.no_grad():
        far, _ = flow(m, x, field.velocity, torch.linspace(*field.ends, 21, dtype=torch.float64))
    beside = m.log_kernel(far, x0, ends[1]) + math.log(m.volume)  # what is there in place of the uniform law
    assert 1e-3 < beside.abs().max() < 0.1
    wanted = m.log_kernel(x, x0, ends[0])
    assert torch.allclose(field.log_prob(x, steps=20) + beside, wanted, rtol=0, atol=1.5e-3)  # 1e-5 at 60 steps


@pytest.mark.parametrize("m", [Sphere(2), Torus(2), Rotations()], ids=named)
def test_the_walk_has_the_law_of_an_exact_score(m):
    x0 = points(m, 1, seed=8)
    field = exact(m, x0)
    made = field.draw(150, steps=40, seed=1)
    assert torch.equal(m.points(made), m.nearest(made))
    squares = m.distance(made, x0.expand(made.shape)) ** 2
    assert 0.7 < float(squares.mean()) / (field.low * m.dim) < 1.3
    corrected = field.draw(20, steps=10, seed=1, corrector=0.1)
    assert not torch.equal(corrected, field.draw(20, steps=10, seed=1))
    assert torch.equal(field.draw(3, steps=5, seed=1), field.draw(7, steps=5, seed=1)[:3])
    ode = field.draw(20, steps=20, seed=1, how="ode")
    assert float(m.distance(ode, x0.expand(ode.shape)).max()) < 0.6


def test_the_ode_is_of_order_four_and_stays_on_the_sphere():
    m, x = Sphere(2), points(Sphere(2), 8)
    turn = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64)
    field = lambda y, u: column(1 + u, y) * torch.linalg.cross(turn.expand(y.shape), y)  # noqa: E731
    angle = 1.5 * float(turn.norm())
    axis = (turn / turn.norm()).expand(8, 3)
    along = (axis * x).sum(-1, keepdim=True)
    truth = x * math.cos(angle) + torch.linalg.cross(axis, x) * math.sin(angle) + axis * along * (1 - math.cos(angle))
    errors = []
    for n in (8, 16, 32):
        y, _ = flow(m, x, field, torch.linspace(0, 1, n + 1, dtype=torch.float64))
        assert (y.norm(dim=-1) - 1).abs().max() < 1e-14
        errors.append(float((y - truth).abs().max()))
    assert all(math.log2(a / b) > 3.7 for a, b in zip(errors[:-1], errors[1:], strict=True))


def test_a_corrector_leaves_the_law_alone():
    m, s = Sphere(2), torch.full((4_000,), 0.4, dtype=torch.float64)
    x0 = points(m, 1).expand(4_000, 3)
    x = m.diffuse(x0, s, normal(4_000, 3, seed=10))
    before = float(cosine(m, x, x0).mean())
    for k in range(10):
        x = langevin(m, x, m.score(x, x0, s), 0.01, normal(4_000, 3, seed=20 + k))
    assert abs(float(cosine(m, x, x0).mean()) - before) < 0.03


def test_the_implicit_loss_is_the_denoising_one_but_for_a_constant():
    m, count = Sphere(2), 20_000
    x0 = points(m, 1).expand(count, 3)
    s = torch.full((count,), 0.5, dtype=torch.float64)
    x = m.diffuse(x0, s, normal(count, 3, seed=11))
    gaps = []
    for a in (normal(3, 3, seed=12), normal(3, 3, seed=13)):
        b, div = divergence(m, lambda y, _, a=a: m.project(y, y @ a.mT), x, s)
        off = b - m.score(x, x0, s)
        gaps.append(float((m.inner(off, off) - m.inner(b, b) - 2 * div).mean()))
    assert abs(gaps[0] - gaps[1]) < 0.15 < gaps[0]


def events(count: int = 3000) -> np.ndarray:
    """Two clouds in degrees of latitude and longitude, and the share of uniform points."""
    rng = np.random.default_rng(0)
    where = np.array([[40.0, 20.0], [-30.0, 150.0]])[rng.integers(0, 2, count)]
    return where + rng.standard_normal((count, 2)) * [8, 8]


@pytest.mark.parametrize(("method", "options"), [("riemannian-score", {"low": 1e-3}),
                                                 ("riemannian-score", {"low": 1e-2, "loss": "implicit"}),
                                                 ("riemannian-flow", {})])  # fmt: skip
def test_a_field_is_learned_through_the_trainer(method, options, tmp_path: Path):
    degrees = events()
    run = {"method": method, "options": {"degrees": True, **options}, "width": 32, "batch": 256, "quiet": True}
    path = fs.train(degrees, tmp_path, steps=150, **run)
    field = load(path)
    x = torch.from_numpy(vectors(events(200)))
    nll = -float(field.log_prob(x, steps=20).mean())
    assert nll < 1.2 < math.log(4 * math.pi)  # of the uniform law
    made = field.draw(50, steps=40)
    assert (made.norm(dim=-1) - 1).abs().max() < 1e-6
    # a grid of equal areas, finer than the clouds
    k = torch.arange(4000, dtype=torch.float64) + 0.5
    z, angle = 1 - 2 * k / 4000, math.pi * (1 + 5**0.5) * k
    flat = (1 - z * z).sqrt()
    ball = torch.stack([flat * angle.cos(), flat * angle.sin(), z], 1)
    assert abs(float(field.log_prob(ball, steps=20).exp().mean()) * 4 * math.pi - 1) < 0.05


def test_a_run_that_goes_on_ends_in_the_same_weights(tmp_path: Path):
    run = {"method": "riemannian-score", "options": {"degrees": True}, "width": 8, "batch": 64, "quiet": True}
    whole = load(fs.train(events(), tmp_path / "whole", steps=8, **run)).net.state_dict()

    def stop(trainer, loss):  # noqa: ARG001
        if trainer.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped):
        fs.train(events(), tmp_path / "parts", steps=8, watch=stop, **run)
    parts = load(fs.train(events(), tmp_path / "parts", steps=8, **run)).net.state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(("manifold", "data"), [
    ("torus", np.random.default_rng(0).standard_normal((300, 3)) * 0.3),
    ("rotations", Rotations().uniform(normal(300, 3, 3)).numpy()),
    ("sphere", points(Sphere(4), 300).numpy()),
])  # fmt: skip
def test_every_manifold_is_trained_on(manifold, data, tmp_path: Path):
    for method in ("riemannian-score", "riemannian-flow"):
        path = fs.train(data, tmp_path / method, method=method, options={"manifold": manifold}, steps=3, batch=64,
                        width=16, quiet=True)  # fmt: skip
        made = load(path).draw(4, steps=3)
        load(path.parent).manifold.points(made)


@pytest.mark.parametrize(("data", "options", "said"), [
    (np.ones((9, 3)), {}, "0.423 off Sphere"),
    (np.ones((9, 1)), {}, "sphere of dimension 0"),
    (np.full((9, 2), 40.0), {}, "unit vectors, or degrees=True"),
    (np.full((9, 2), 40.0), {"degrees": True, "manifold": "torus"}, "leave it out"),
    (np.ones((9, 3)), {"degrees": True}, "as degrees"),
    (np.full((9, 2), 100.0), {"degrees": True}, "as degrees"),
    (np.full((9, 3), 9.0), {"manifold": "torus"}, "2.72 off Torus"),
    (np.ones((9, 3)), {"manifold": "rotations"}, r"shape \(9, 3\) for Rot"),
    (-np.tile(np.eye(3), (9, 1, 1)), {"manifold": "rotations"}, "determinant 1"),
    (np.ones((9, 3)), {"manifold": "klein"}, "not known"),
    (np.ones((9, 3)), {"low": 0.0}, "low=0.0"),
    (points(Sphere(60), 9).numpy(), {"low": 0.5}, r"low=0.5: give a number in \(0, 0.217\)"),
    (np.ones((9, 3)), {"loss": "sliced"}, "denoising"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_sentence(data, options, said, tmp_path: Path):
    with pytest.raises(ValueError, match=said):
        fs.train(data, tmp_path, method="riemannian-score", options=options, batch=4, steps=1, quiet=True)


def test_a_file_that_is_no_field_is_refused(tmp_path: Path):
    (tmp_path / "field.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="whole field"):
        load(tmp_path / "field.safetensors")
    with pytest.raises(ValueError, match="sphere of dimension"):
        Sphere(0)


@pytest.mark.parametrize(("call", "said"), [
    (lambda f: f.log_prob(torch.ones(2, 3)), "0.423 off"),
    (lambda f: f.log_prob(torch.full((2, 3), math.nan)), "nan off"),
    (lambda f: f.log_prob(points(Sphere(3), 2)), r"shape \(2, 4\)"),
    (lambda f: f.log_prob(points(f.manifold, 2)[0]), r"shape \(3,\)"),
    (lambda f: f.log_prob(points(f.manifold, 2), steps=0), "steps=0"),
    (lambda f: f.draw(0), "count=0"),
    (lambda f: f.draw(2, steps=1.5), "steps=1.5"),
    (lambda f: f.draw(2, how="ray"), "walk, ode"),
    (lambda f: f.draw(2, corrector=-1.0), "corrector=-1.0"),
    (lambda f: f.draw(2, corrector=0.1, how="ode"), "where no walk is"),
    (lambda f: Field(manifold=f.manifold, net=None, low=9.0), "low=9.0"),
    (lambda _: Torus(0), "dim=0"),
])  # fmt: skip
def test_a_field_says_what_it_takes(call, said):
    with pytest.raises(ValueError, match=said):
        call(exact(Sphere(2), points(Sphere(2), 1)))


def test_a_large_step_in_the_space_around_comes_back_to_a_rotation():
    m = Rotations()
    x = points(m, 50)
    off = m.nearest(x + 4 * m.noise(x, normal(50, 3, 3)))
    assert (off @ off.mT - torch.eye(3)).abs().max() < 1e-12
    assert (off.det() - 1).abs().max() < 1e-12


def test_a_torus_takes_angles_on_either_side_of_its_seam():
    x = Torus(1).points(np.array([[math.pi], [-math.pi], [1.5 * math.pi], [2 * math.pi]]))
    assert torch.allclose(x[:, 0], torch.tensor([-math.pi, -math.pi, -0.5 * math.pi, 0.0]).double(), atol=1e-15)


def test_points_of_a_file_are_named_on_the_command_line(tmp_path: Path, capsys):
    np.savez(tmp_path / "events.npz", quake=events(300), other=events(300)[:, :1])
    words = ["train", "riemannian-score", f"{tmp_path}/events.npz:quake", f"{tmp_path}/out", "--option", "degrees=True"]
    assert main([*words, "--images", "512", "--quiet"]) == 0
    field = load(capsys.readouterr().out.strip())
    assert (field.net.config["width"], field.net.config["depth"]) == (128, 4)
    for name, said in (("no", "it holds quake, other"), ("quake", "there is no file")):
        words[2] = f"{tmp_path}/{'events' if name == 'no' else 'none'}.npz:{name}"
        assert main([*words, "--quiet", "--anew"]) != 0
        assert said in capsys.readouterr().err
    for given in ("nope=1", "manifold=klein"):
        assert main(["train", "riemannian-score", f"{tmp_path}/events.npz:quake", "b", "--option", given]) == 2
