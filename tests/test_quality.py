"""Quality numbers against exact answers: Gaussians with known moments, identical sets, known shifts."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fewstep.bench.features import features_of
from fewstep.quality import (
    Classifier,
    Reference,
    accuracy,
    compare,
    frechet_distance,
    frechet_gaussians,
    images_to_tensor,
    kernel_distance,
    load_classifier,
    load_reference,
    neighbours,
    precision_recall,
    save_classifier,
    save_reference,
    train_classifier,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(n: int, mean: torch.Tensor, cov: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A set whose sample mean and covariance are exactly these."""
    x = normal(n, len(mean), seed=seed)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    return x @ torch.linalg.cholesky(cov).T + mean


def test_frechet_of_commuting_gaussians_is_the_closed_form() -> None:
    a, b = torch.tensor([1.0, 4.0, 0.25]).double(), torch.tensor([9.0, 1.0, 0.25]).double()
    mean = torch.tensor([1.0, -2.0, 0.5]).double()
    x = with_moments(50, torch.zeros(3).double(), torch.diag(a), seed=1)
    y = with_moments(80, mean, torch.diag(b), seed=2)
    exact = float(mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    assert frechet_distance(x, y) == pytest.approx(exact, rel=1e-12)
    assert frechet_distance(y, x) == pytest.approx(exact, rel=1e-12)


def test_frechet_of_a_map_of_a_gaussian() -> None:
    """y = T x with T symmetric positive: the optimal map, so the distance is E |x - T x|^2 = tr (1 - T) C (1 - T)."""
    r, q = normal(5, 5), normal(5, 5, seed=3)
    cov, T = r @ r.T + torch.eye(5), q @ q.T + torch.eye(5)
    zero, gap = torch.zeros(5).double(), torch.eye(5).double() - T
    assert frechet_gaussians(zero, cov, zero, T @ cov @ T) == pytest.approx(float((gap @ cov @ gap).trace()), rel=1e-10)


def test_frechet_of_singular_and_identical_sets() -> None:
    x = normal(30, 4) @ torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0]).double())
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(x, x + torch.tensor([0.0, 0.0, 3.0, 4.0])) == pytest.approx(25.0, abs=1e-6)


def test_frechet_agrees_with_scipy() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    x, y = normal(200, 16), normal(300, 16, seed=5) @ (torch.eye(16) + 0.1 * normal(16, 16, seed=6)) + 0.3
    ca, cb = np.cov(x.numpy().T), np.cov(y.numpy().T)
    root = np.real(linalg.sqrtm(ca @ cb))
    peer = np.sum((x.mean(0) - y.mean(0)).numpy() ** 2) + np.trace(ca + cb - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(peer, rel=1e-9)


def naive_kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    d, n, m = a.shape[1], len(a), len(b)

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return (float(x @ y) / d + 1) ** 3

    aa = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    bb = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return aa + bb - 2 * sum(k(x, y) for x in a for y in b) / (n * m)


@pytest.mark.parametrize(("n", "m"), [(7, 12), (12, 7), (32, 33)])
def test_kernel_distance_is_its_definition(n: int, m: int) -> None:
    a, b = normal(n, 3), normal(m, 3, seed=1) + 0.5
    assert kernel_distance(a, b).value == pytest.approx(naive_kernel_distance(a.numpy(), b.numpy()), rel=1e-10)


def test_kernel_distance_of_a_shift_is_exact_within_its_error() -> None:
    """d = 1, x ~ N(0, 1), y ~ N(s, 1): the sum over moments p of C(3, p) (E x^p - E y^p)^2."""
    s = 0.3
    moments = [(0, s), (1, 1 + s**2), (0, 3 * s + s**3)]
    exact = sum(math.comb(3, p) * (mx - my) ** 2 for p, (mx, my) in enumerate(moments, 1))
    found = [kernel_distance(normal(2000, 1, seed=2 * i), normal(1500, 1, seed=2 * i + 1) + s) for i in range(20)]
    mean = np.mean([f.value for f in found])
    spread = np.std([f.value for f in found], ddof=1)
    assert abs(mean - exact) < 4 * spread / math.sqrt(20)
    assert 0.6 < np.mean([f.error for f in found]) / spread < 1.6  # the error bar is the spread over repetitions


def test_kernel_distance_of_one_distribution_is_near_zero_and_unbiased() -> None:
    found = [kernel_distance(normal(100, 8, seed=2 * i), normal(60, 8, seed=2 * i + 1)) for i in range(40)]
    values = np.array([f.value for f in found])
    assert abs(values.mean()) < 4 * values.std(ddof=1) / math.sqrt(40)
    assert values.min() < 0 < values.max()


def test_neighbours_of_identical_sets() -> None:
    x = normal(60, 3)
    found = neighbours(x, x, k=3)
    assert (found.precision, found.recall, found.coverage) == (1.0, 1.0, 1.0)
    assert found.density >= 1.0
    assert precision_recall(x, x) == (1.0, 1.0)


def test_neighbours_of_far_sets_are_zero() -> None:
    x = normal(40, 3)
    assert set(vars(neighbours(x, x + 100)).values()) == {0.0}


def test_neighbours_on_a_line_by_hand() -> None:
    """real 0, 1, 3, 10 with k = 1: radii 1, 1, 2, 7; fake 0.5, 6: radii 5.5."""
    real, fake = torch.tensor([[0.0], [1.0], [3.0], [10.0]]), torch.tensor([[0.5], [6.0]])
    found = neighbours(real, fake, k=1)
    # 0.5 lies in the balls of 0 and 1; 6 in that of 10 only.
    assert found.precision == 1.0
    assert found.density == pytest.approx(3 / 2)
    assert found.coverage == pytest.approx(3 / 4)
    assert found.recall == pytest.approx(1.0)  # |10 - 6| = 4 <= 5.5, the others are near 0.5


def test_fidelity_and_coverage_tell_dropped_modes_from_bad_samples() -> None:
    centres = 20 * torch.eye(4).double()
    real = torch.cat([normal(100, 4, seed=i) + c for i, c in enumerate(centres)])
    dropped = torch.cat([normal(200, 4, seed=10 + i) + c for i, c in enumerate(centres[:2])])
    half_bad = torch.cat(
        [normal(50, 4, seed=20 + i) + c for i, c in enumerate(centres)] + [normal(200, 4, seed=30) + 50]
    )
    few, bad = neighbours(real, dropped), neighbours(real, half_bad)
    assert few.precision > 0.9
    assert few.recall == pytest.approx(0.5, abs=0.06)
    assert few.coverage < 0.52
    assert bad.precision == pytest.approx(0.5, abs=0.06)
    assert bad.recall > 0.8


def test_density_and_coverage_of_one_distribution_have_their_known_means() -> None:
    """Naeem et al. 2020: density 1; coverage 1 - (n-1)...(n-k) / ((n+m-1)...(n+m-k)), lemma 2."""
    n, m, k = 80, 60, 3
    exact = 1 - math.prod((n - i) / (n + m - i) for i in range(1, k + 1))
    found = [neighbours(normal(n, 2, seed=2 * i), normal(m, 2, seed=2 * i + 1), k=k) for i in range(60)]
    assert np.mean([f.coverage for f in found]) == pytest.approx(exact, abs=0.02)
    assert np.mean([f.density for f in found]) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("a", "b", "word"),
    [
        (normal(5, 3), normal(5, 4), "one d"),
        (normal(5), normal(5), "one d"),
        (normal(5, 3), torch.full((5, 3), float("nan")), "NaN"),
        (normal(1, 3), normal(5, 3), "at least"),
    ],
)
def test_bad_features_get_one_sentence(a: torch.Tensor, b: torch.Tensor, word: str) -> None:
    for metric in (frechet_distance, kernel_distance, neighbours):
        with pytest.raises(ValueError, match=word):
            metric(a, b)
    with pytest.raises(ValueError, match="k came as 9"):
        neighbours(normal(9, 2), normal(9, 2), k=9)


def test_classifier_learns_and_comes_back_from_its_folder(tmp_path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 256)
    images = rng.integers(0, 60, (256, 28, 28)).astype(np.uint8)
    images[labels == 1, 8:20, 8:20] += 150  # a bright square or none
    small = Classifier(channels=(4, 4, 4), features=8, classes=2)
    net = train_classifier(images, labels, epochs=8, batch=32, lr=1e-2, net=small)
    x = images_to_tensor(images)
    assert (net.logits(x).argmax(1).numpy() == labels).mean() > 0.95
    save_classifier(tmp_path / "c", net)
    again = load_classifier(tmp_path / "c")
    assert torch.allclose(again.features(x), net.features(x), atol=0.02, rtol=0.02)  # stored as float16
    assert net.features(x).shape == (256, 8)
    with pytest.raises(ValueError, match=r"\(B, 1, 28, 28\)"):
        net.features(x[:, 0])


def test_a_classifier_of_colour_pictures_is_a_feature_space_of_bench(tmp_path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 96)
    images = np.zeros((96, 12, 20, 3), np.uint8)
    images[np.arange(96), :, :, labels] = 200  # red, green, blue
    net = train_classifier(images, labels, epochs=6, batch=32, lr=1e-2)
    assert net.config["shape"] == [3, 12, 20]
    assert accuracy(net, images, labels) > 0.95
    save_classifier(tmp_path, net)
    subject = SimpleNamespace(shape=(3, 12, 20))
    space = features_of(str(tmp_path), subject)
    assert torch.allclose(space.of(images_to_tensor(images)), net.features(images_to_tensor(images)), atol=0.02)
    with pytest.raises(ValueError, match=r"it sees \(3, 12, 20\)"):
        features_of(str(tmp_path), SimpleNamespace(shape=(3, 20, 12)))


def test_broken_classifier_folders_are_refused(tmp_path) -> None:
    save_classifier(tmp_path / "c", Classifier(channels=(4, 4, 4), features=8))
    weights = tmp_path / "c" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match="truncated or corrupt"):
        load_classifier(tmp_path / "c")
    weights.rename(tmp_path / "c" / "weights.pt")
    with pytest.raises(ValueError, match="never opened"):
        load_classifier(tmp_path / "c")
    with pytest.raises(ValueError, match="missing"):
        load_classifier(tmp_path)


def test_reference_comes_back(tmp_path) -> None:
    reference = Reference(
        test=normal(50, 4).float(),
        test_labels=torch.arange(50) % 10,
        held_out=normal(20, 4, seed=1).float(),
        held_out_labels=torch.arange(20) % 10,
    )
    save_reference(tmp_path / "r.safetensors", reference)
    again = load_reference(tmp_path / "r.safetensors")
    assert torch.equal(again.test_labels, reference.test_labels)
    assert torch.allclose(again.test, reference.test, atol=2e-3)
    with pytest.raises(ValueError, match="held-out"):
        again.floor(21)


def test_shipped_classifier_and_reference_belong_together() -> None:
    reference = load_reference()
    guess = load_classifier().head(reference.test).argmax(1)
    assert (guess == reference.test_labels).double().mean() > 0.92
    assert reference.test.shape == (10_000, 64)
    floor = reference.floor(512)
    assert abs(floor.kernel) < 4 * floor.kernel_error
    assert floor.precision > 0.7
    assert floor.coverage > 0.9
    worse = compare(reference.test, reference.held_out[reference.held_out_labels != 3][:512])
    assert worse.frechet > 1.5 * floor.frechet
    assert worse.kernel > floor.kernel + 3 * floor.kernel_error


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"shape": 3}, "has shape 3; a list of 3 whole numbers from 1 to 65536 is allowed"),
        ({"shape": [1, 8]}, r"has shape \[1, 8\]; a list of 3"),
        ({"shape": [1, 10**9, 8]}, "from 1 to 65536 is allowed"),
        ({"channels": [2, "a", 2]}, r"has channels \[2, 'a', 2\]"),
        ({"features": None}, "has features None; a whole number from 1"),
        ({"classes": True}, "has classes True; a whole number from 1"),
        ({"classes": 60_000, "features": 60_000}, r"has .* its config.json asks for .*60000"),
        ({"classes": 4}, r"has 'head.weight' as \(3, 4\), its config.json asks for \(4, 4\)"),
        ({"kind": "x" * 10_000}, "has kind 'xxx"),
    ],
)
def test_a_classifier_whose_config_is_wrong_is_refused_before_it_is_built(change, sentence, tmp_path):
    from fewstep.quality.classifier import Classifier, load_classifier, save_classifier

    save_classifier(tmp_path, Classifier(shape=(1, 8, 8), channels=(2, 2, 2), features=4, classes=3))
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=sentence) as error:
        load_classifier(tmp_path)
    assert len(str(error.value)) < 1000


def test_a_reference_whose_labels_are_not_its_rows_is_refused(tmp_path):
    from fewstep.quality.reference import Reference, load_reference, save_reference

    rows = torch.rand(8, 4)
    save_reference(tmp_path / "r.safetensors", Reference(
        test=rows, test_labels=torch.arange(8), held_out=rows[:6], held_out_labels=torch.arange(8)))  # fmt: skip
    with pytest.raises(ValueError, match=r"holds held_out of shape \(6, 4\) and held_out_labels of \(8,\)"):
        load_reference(tmp_path / "r.safetensors")
