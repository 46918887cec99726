"""Schroedinger bridges: alternations between Gaussians against the closed form, losses, tables, and small trainings."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import fewstep as fs
from fewstep.nets import MLP
from fewstep.schroedinger import Drift, Pair, alternate, entropic, fbsde, load, match, table

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def law(seed: int, size: int = 5) -> tuple[Tensor, Tensor]:
    a = normal(size, size, seed=seed)
    return normal(size, seed=seed + 1000), a @ a.mT / size + 0.3 * torch.eye(size, dtype=torch.float64)


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


PAIRS = [(law(2 * k), law(2 * k + 1)) for k in range(10)]


@pytest.mark.parametrize(("steps", "ends", "cross"), [(20, 0.17, 0.08), (100, 0.05, 0.03)])
def test_mean_matching_nears_the_closed_form_between_gaussians(steps, ends, cross):
    for start, end in PAIRS:
        backward, forward = alternate(start, end, torch.full((steps,), 0.5 / steps, dtype=torch.float64), 5)[-1]
        wanted = entropic(start[1], end[1], 1.0)
        assert off(backward.covariance, start[1]) < ends
        assert off(forward.covariance, end[1]) < ends
        assert off(backward.cross.mT, wanted) < cross
        assert off(forward.cross, wanted) < cross


def test_bridge_matching_nears_it_by_a_factor_a_half_round():
    for start, end in PAIRS:
        wanted = entropic(start[1], end[1], 1.0)
        halves = match(start, end, 1.0, 200, 10)
        errors = [off(half.cross if k % 2 == 0 else half.cross.mT, wanted) for k, half in enumerate(halves)]
        assert errors[-1] < 0.04
        assert errors[-1] < 0.2 * errors[0]
        assert off(halves[-1].covariance, start[1]) < 0.01


def test_the_closed_form_is_the_least_entropy_with_these_ends():
    """Of all joint normal laws with these marginals it has the least E|x1 - x0|^2 / 2 - s^2 log det / 2."""
    (_, s0), (_, s1) = law(3, 3), law(4, 3)
    wanted = entropic(s0, s1, 0.7).requires_grad_()
    joint = torch.cat([torch.cat([s0, wanted], 1), torch.cat([wanted.mT, s1], 1)])
    cost = -wanted.trace() - 0.7 / 2 * torch.logdet(joint)
    (slope,) = torch.autograd.grad(cost, wanted)
    assert slope.abs().max() < 1e-12


def test_a_table_of_drifts_is_the_chain():
    weights, variances = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    made = table(weights, variances, noisy_end=True)
    noises, x = normal(3, 4, 2, seed=1), normal(4, 2, seed=2)
    drift = lambda z, t: (1 + t) * z.sin()  # noqa: E731
    found = fs.sample(Drift(drift), made.process, solver=made, x=x, noise=noises, progress=False)
    for k, t in enumerate((1.0, 2 / 3, 1 / 3)):
        x = x + weights[k] * drift(x, t) + math.sqrt(variances[k]) * noises[k]
    assert torch.allclose(found, x, atol=1e-14)


def test_losses_of_two_equations_have_the_score_model_as_a_case():
    """With Z = 0, L(Z^) is least at g times the score of the walker's law; here N(0, s^2) at one time."""
    s2, g = 1.7, torch.tensor(1.3, dtype=torch.float64)
    x, t = s2**0.5 * normal(200_000, 1, seed=3), torch.zeros(200_000, dtype=torch.float64)
    losses = {a: float(fbsde.alternate(lambda y, _, a=a: a * y, x, t, torch.zeros_like(x), g).detach().mean())
              for a in (-1.1 * float(g) / s2, -float(g) / s2, -0.9 * float(g) / s2)}  # fmt: skip
    assert min(losses, key=losses.get) == -float(g) / s2  # type: ignore[arg-type]
    assert list(losses.values())[1] == pytest.approx(-(float(g) ** 2) / s2 / 2, rel=0.02)


def test_the_bound_of_an_exact_pair_is_the_likelihood():
    """Data N(0, 1) under VP: the law stays, Z = 0 and Z^ = -g x; what is left is the first-order step."""

    class Exact(MLP):
        def __init__(self, gain: float) -> None:
            super().__init__(1, 4, 1)
            self.gain = gain

        def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
            return self.gain * x

    steps = 100
    pair = Pair(nets={"forward": Exact(0.0), "backward": Exact(-1.0)}, weights=(1 / steps,) * steps,
                variances=(1 / steps,) * steps, beta=1.0)  # fmt: skip
    x = normal(20_000, 1, seed=5)
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(x).mean()
    assert float(pair.bound(x).mean()) == pytest.approx(float(exact), abs=0.05)
    with pytest.raises(ValueError, match="knows no likelihood"):
        Pair(nets=pair.nets, weights=pair.weights, variances=pair.variances).bound(x)


CLOUDS = np.array([[1.5, 0.0], [-1.0, 1.0]])[np.arange(600) % 2] + 0.2 * np.random.default_rng(0).normal(size=(600, 2))


def energy(x: Tensor, y: Tensor) -> float:
    """The unbiased energy distance."""
    same = sum(torch.cdist(v, v).sum() / len(v) / (len(v) - 1) for v in (x, y))
    return float(2 * torch.cdist(x, y).mean() - same)


@pytest.mark.parametrize(("kind", "options"), [("dsb", {}), ("dsb", {"reference": "langevin"}), ("dsbm", {}),
                                               ("fbsde", {}), ("fbsde", {"joint": True})])  # fmt: skip
def test_a_bridge_is_learned_through_the_trainer(kind, options, tmp_path: Path):
    path = fs.train(CLOUDS, tmp_path, method=kind, options={"rounds": 2, "steps": 8, **options}, width=32, batch=64,
                    steps=80 if options.get("joint") else 240, lr=1e-2, ema=0.9, quiet=True)  # fmt: skip
    pair = load(path)
    made = pair.draw(normal(600, 2, seed=6))
    assert energy(made, torch.from_numpy(CLOUDS)) < 0.5 * energy(normal(600, 2, seed=7), torch.from_numpy(CLOUDS))
    there = pair.draw(torch.from_numpy(CLOUDS), "forward")
    assert there.shape == made.shape
    assert torch.allclose(made[:3], pair.draw(normal(600, 2, seed=6)[:3]), atol=1e-5)


@pytest.mark.parametrize(("options", "said"), [
    ({"rounds": 0}, "at least 2 steps and 1 round"),
    ({"variance": -1.0}, "numbers above 0"),
    ({"variance": float("inf")}, "finite numbers above 0"),
    ({"kind": "sb"}, "dsb"),
    ({"end": "nowhere.npz"}, "holds no points"),
    ({"end": "three.npy"}, "give both alike"),
    ({"kind": "fbsde", "end": "far.npz"}, "whose far law is a normal"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_sentence(options, said, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("three.npy", np.zeros((9, 3)))
    with pytest.raises(ValueError, match=said):
        fs.train(CLOUDS, tmp_path / "out", method="dsb", options=options, batch=4, steps=1, quiet=True)


def test_a_network_that_no_bridge_holds_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="Linear as net of a bridge"):
        fs.train(CLOUDS, tmp_path, method="dsb", net=torch.nn.Linear(2, 2), batch=4, steps=1, quiet=True)


def test_a_file_that_is_no_bridge_is_refused(tmp_path: Path):
    (tmp_path / "bridge.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="whole bridge"):
        load(tmp_path / "bridge.safetensors")
    with pytest.raises(ValueError, match="whole bridge"):
        load(tmp_path)
