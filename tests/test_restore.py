"""Bridges that are trained here: degradations, pairs, every kind, and `fewstep restore` on folders with odd files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import fewstep as fs
from fewstep.cli import main
from fewstep.data.degrade import DEGRADATIONS, degradation
from fewstep.denoiser.bridged import Bridged, End
from fewstep.train.pairs import Batch, Draw
from fewstep.train.students import train_student

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {"batch": 16, "steps": 4, "quiet": True}


def pictures(n: int = 8, channels: int = 1, side: int = 16) -> torch.Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def draw(x: torch.Tensor, k: int = 0) -> Draw:
    return Draw(Batch(x), k, seed=3)


@pytest.mark.parametrize("name", DEGRADATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_degradation_is_a_function_of_seed_and_step(name, channels):
    x = pictures(channels=channels)
    y = degradation(name)(x, draw(x))
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert bool(y.isfinite().all())
    assert torch.equal(y, degradation(name)(x, draw(x)))
    assert not torch.allclose(y, x, atol=1e-3)
    assert torch.equal(y, degradation(name)(x, draw(x, 1))) == (name in ("blur", "downscale", "jpeg"))


def test_degradations_are_what_they_say():
    x = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    x[..., 16, 16] = 1.0
    g = torch.exp(-((torch.arange(33) - 16.0).double() ** 2) / 8)
    torch.testing.assert_close(
        degradation("blur2")(x, draw(x))[0, 0], torch.outer(g, g) / g.sum() ** 2, rtol=0, atol=1e-4
    )
    x = pictures()
    small = torch.nn.functional.avg_pool2d(x, 4)
    again = torch.nn.functional.avg_pool2d(degradation("downscale4")(x, draw(x)), 4)
    assert float((again - small).abs().max()) < 0.3
    assert 0.25 < float((degradation("mask0.3")(x, draw(x)) == 0).float().mean()) < 0.35
    assert int((degradation("box0.5")(x, draw(x))[3] == 0).sum()) == 64
    y = degradation("noise0.5")(x, draw(x))
    assert 0.45 < float((y - x).std()) < 0.55
    both = degradation("downscale2+noise0.5")(x, draw(x)) - degradation("downscale2")(x, draw(x))
    assert 0.45 < float(both.std()) < 0.55


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("smear", "got degradation 'smear', which is not known"),
        ("downscale0", "downscale takes a whole number from 1 to 64"),
        ("jpeg1.5", "jpeg takes a whole number from 1 to 100"),
        ("mask2", "mask takes a number from 0 to 1"),
        ("4", "give a name and its number"),
        ("blur2+", "give a name and its number"),
    ],
)
def test_a_degradation_that_is_none_is_refused(name, says):
    with pytest.raises(ValueError, match=says):
        degradation(name)


def test_a_degradation_of_pictures_is_refused_on_points_and_on_odd_sides():
    with pytest.raises(ValueError, match=r"got blur for data of shape \(2,\)"):
        degradation("blur1")(torch.zeros(4, 2), draw(torch.zeros(4, 2)))
    with pytest.raises(ValueError, match=r"got downscale3 for pictures of \(16, 16\)"):
        degradation("downscale3")(pictures(), draw(pictures()))


@pytest.mark.parametrize("name", fs.BRIDGES)
def test_a_network_of_the_residual_is_the_exact_denoiser_where_residuals_are_gaussian(name):
    """There F = 0: D = y + c_skip (u - m y), the closed form of data N(y, sd^2), from the end of the bridge on."""
    p, sd = fs.BRIDGES[name](), 0.3
    y = torch.tensor([[0.4, -1.0], [0.1, 0.7]], dtype=torch.float64)
    made = fs.wrap(lambda x, t: 0 * x, p, "residual", sigma_data=sd)
    denoiser = Bridged(made, End(y), p, residual=True)
    exact = fs.Mixture(p, y[:1], sd)
    for share in (0.999, 0.6, 0.2, 0.01):
        t = share * p.t_max
        u = p.diffuse(y, t, torch.ones_like(y))
        torch.testing.assert_close(denoiser(u, t)[:1], exact(u[:1], t), rtol=1e-9, atol=1e-9)
    if p.pinned:
        torch.testing.assert_close(denoiser(torch.zeros_like(y), p.end), y)
    x = fs.sample(denoiser, p, solver="ddpm", steps=3, seed=1)
    assert bool(x.isfinite().all())


@pytest.mark.parametrize("kind", [*fs.BRIDGES, "vp", "flow"])
def test_every_kind_is_trained_and_restores(kind, tmp_path):
    x = np.random.default_rng(0).normal(size=(64, 2)) * 0.3
    folder = train_student(x, tmp_path, method="bridge", options={"kind": kind, "degrade": "noise0.2"}, width=8,
                           depth=2, **TINY)  # fmt: skip
    model = fs.load(folder)
    assert model.given
    assert type(model.process) is (fs.BRIDGES | fs.PROCESSES)[kind]
    y = torch.from_numpy(x[:5]).float()
    made = fs.sample(model.denoiser(y=y), model.process, steps=2, shape=tuple(y.shape), seed=0)
    part = fs.sample(model.denoiser(y=y[3:]), model.process, steps=2, shape=(2, 2), seed=0, first=3)
    torch.testing.assert_close(made[3:], part)
    with pytest.raises(ValueError, match="no y: give denoiser"):
        model.denoiser()
    with pytest.raises(ValueError, match=r"got y of shape \(5, 3\) for a model of \(2,\)"):
        model.denoiser(y=torch.zeros(5, 3))


def test_one_call_is_the_mean_and_more_calls_are_samples(tmp_path):
    """x0 = -1 or 1 and y = x0 + 0.8 e: the mean is tanh(y/0.64), and samples lie at the two points."""
    rng = np.random.default_rng(0)
    x = rng.choice([-1.0, 1.0], size=(4096, 1))
    y = x + 0.8 * rng.normal(size=x.shape)
    np.savez(tmp_path / "pairs.npz", x=x, y=y)
    folder = train_student(tmp_path / "pairs.npz", tmp_path / "run", method="bridge", options={"kind": "i2sb"},
                           process=fs.I2SB(variance=1.0), width=48, batch=256, steps=300, lr=5e-3,
                           quiet=True)  # fmt: skip
    model = fs.load(folder)
    y = torch.linspace(-2, 2, 400)[:, None]
    mean = torch.tanh(y / 0.64)

    def made(steps: int) -> torch.Tensor:
        return fs.sample(model.denoiser(y=y), model.process, solver="ddpm", steps=steps, seed=0)

    assert float((made(1) - mean).abs().mean()) < 0.08
    far = [float((made(steps).abs() - 1).abs().mean()) for steps in (1, 20)]
    assert far[1] < 0.12
    assert far[0] > 2 * far[1]
    right = (made(20) > 0).float().reshape(8, 50).mean(1)
    assert float((right - (mean.reshape(8, 50).mean(1) + 1) / 2).abs().max()) < 0.2


def test_pairs_are_read_and_pairs_that_are_none_refused(tmp_path):
    x = np.zeros((16, 2), dtype=np.float32)
    with pytest.raises(ValueError, match="without another end y: give degrade="):
        train_student(x, tmp_path / "a", method="bridge", **TINY)
    with pytest.raises(ValueError, match=r"x of float32 \(16, 2\) and y of float32 \(16, 3\)"):
        train_student((x, np.zeros((16, 3), np.float32)), tmp_path / "b", method="bridge", **TINY)
    with pytest.raises(ValueError, match="got pairs .* for Denoise: give method='bridge'"):
        train_student((x, x), tmp_path / "c", method="denoise", **TINY)
    with pytest.raises(ValueError, match="got I2SB, a bridge, for Denoise: give method='bridge'"):
        train_student(x, tmp_path / "d", method="denoise", process="i2sb", **TINY)
    with pytest.raises(ValueError, match="got data that differ from y by 0: there is nothing to restore"):
        train_student((x, x), tmp_path / "e", method="bridge", **TINY)
    with pytest.raises(ValueError, match="got kind=i2sb on VP"):
        train_student((x, x), tmp_path / "e", method="bridge", process=fs.VP(), **TINY)


def folder_of(path, images: dict[str, Image.Image]):
    path.mkdir(parents=True)
    for name, image in images.items():
        image.save(path / name)
    return path


def grey(seed: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (side, side), dtype=np.uint8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of pairs of pictures, from two folders."""
    path = tmp_path_factory.mktemp("restore")
    for end in ("x", "y"):
        folder_of(path / "data" / end, {f"{k}.png": Image.fromarray(grey(k + 99 * (end == "y"))) for k in range(16)})
    assert main(["train", "bridge", str(path / "data"), str(path / "run"), "--channels", "8", "--patch", "1",
                 "--images", "32", "--batch", "8", "--quiet"]) == 0  # fmt: skip
    return path / "run" / "model"


def test_a_folder_is_restored_and_each_odd_file_has_its_sentence(trained, tmp_path, capsys):
    level = grey(1)
    files = folder_of(
        tmp_path / "in",
        {
            "a.png": Image.fromarray(level),
            "b.png": Image.fromarray(np.dstack([level] * 4)),
            "c.png": Image.fromarray(level.astype(np.uint16) * 257),
            "d.png": Image.fromarray(grey(2, 9)),
            "f.png": Image.fromarray(np.dstack([level] * 3)),
            "g.png": Image.fromarray(level),
        },
    )
    (files / "e.png").write_bytes((files / "a.png").read_bytes()[:60])
    out = tmp_path / "out"
    assert main(["restore", str(trained), str(files), "--out", str(out), "--steps", "2"]) == 1
    said = capsys.readouterr()
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "c.png", "g.png"]
    for path in out.iterdir():
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((8, 8), "L")
    for name, why in {"b": "transparent pixels", "d": "9x9 with 1 channels", "e": "not a readable picture",
                      "f": "8x8 with 3 channels"}.items():  # fmt: skip
        assert any(f"{name}.png" in line and why in line for line in said.err.splitlines()), name
    assert "4 of 7 pictures that were not restored" in said.err
    assert "3 pictures, 2 network calls each" in said.out
    alone = tmp_path / "alone"  # a file has the noise of its number, whatever became of those before it
    (files / "b.png").unlink()
    folder_of(tmp_path / "more", {})
    assert main(["restore", str(trained), *(str(files / f"{n}.png") for n in "agc"), "--out", str(alone)]) == 0
    again = tmp_path / "again"
    assert main(["restore", str(trained), *(str(files / f"{n}.png") for n in "adc"), "--out", str(again)]) == 1
    assert (alone / "c.png").read_bytes() == (again / "c.png").read_bytes()


def test_restoring_over_the_pictures_or_with_another_model_is_refused(trained, tmp_path, capsys):
    files = folder_of(tmp_path / "in", {"a.png": Image.fromarray(grey(1))})
    before = (files / "a.png").read_bytes()
    assert main(["restore", str(trained), str(files), "--out", str(files)]) == 1
    assert "among the pictures that are restored" in capsys.readouterr().err
    assert (files / "a.png").read_bytes() == before
    assert main(["restore", str(trained), str(files), "--out", str(tmp_path / "o"), "--eta", "1.5"]) == 2
    assert main(["restore", str(trained), str(tmp_path / "none.png"), "--out", str(tmp_path / "o")]) == 1
    assert "none.png" in capsys.readouterr().err


def test_a_folder_that_says_given_of_another_network_is_refused(trained, tmp_path):
    import shutil

    folder = shutil.copytree(trained, tmp_path / "model")
    about = json.loads((folder / "fewstep.json").read_text())
    assert about["given"] is True
    (folder / "fewstep.json").write_text(json.dumps(about | {"given": False}))
    with pytest.raises(ValueError, match="in_channels=2"):
        fs.load(folder)
    (folder / "fewstep.json").write_text(json.dumps(about | {"given": "yes"}))
    with pytest.raises(ValueError, match="given 'yes'; it must be true or false"):
        fs.load(folder)


def test_cold_diffusion_is_a_table_where_the_degradation_is_diagonal_and_the_noise_the_same():
    p = fs.HeatDissipation(size=(6, 6))
    grid = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0], dtype=torch.float64)
    x = torch.randn(3, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    start = p.diffuse(x, 1.0, torch.zeros_like(x))

    def denoiser(z, t):
        return 0.9 * p.from_coordinates(z) + 0.1 * t

    def degrade(x0, k):
        return p.from_coordinates(p.diffuse(x0, float(grid[4 - k]), torch.zeros_like(x0)))

    def restore(x, k):
        return denoiser(p.coordinates(x), float(grid[4 - k]))

    for algorithm, solver in ((1, fs.LCM(noise=0.0)), (2, "ddim")):
        table = fs.sample(denoiser, p, solver=solver, grid=grid, x=start, final="state")
        made = fs.cold(p.from_coordinates(start), restore, degrade, steps=4, algorithm=algorithm)
        torch.testing.assert_close(p.coordinates(made), table, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="got algorithm=3: give 1"):
        fs.cold(x, restore, degrade, steps=4, algorithm=3)


def test_noise_of_heat_dissipation_is_a_share_of_sigma():
    p = fs.HeatDissipation(size=(4, 4))
    x = torch.zeros(4000, 1, 4, 4, dtype=torch.float64)
    z = fs.sample(lambda z, t: 0 * z, p, solver=fs.LCM(noise=1.5), steps=1, x=x, final="state", seed=2)
    assert float(z.std()) == pytest.approx(1.5 * p.noise, rel=0.02)


def test_the_soft_loss_is_the_error_that_the_corruption_leaves():
    from fewstep.process.operator import apply
    from fewstep.train.player import Student
    from fewstep.train.regression import Regression
    from fewstep.train.target import Point

    p = fs.VEBlur(size=(4, 4))
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    student = Student(net=lambda z, t: 0 * z, process=p, predicts="data")
    point = Point(p, Batch(x), p.diffuse(x, t, torch.zeros_like(x)), t, t, t, t < 0, x, torch.zeros_like(x))
    loss = Regression(process=p, weight="soft").loss(student, point, x)
    torch.testing.assert_close(loss, apply(p.M(t), p.coordinates(x)).square().flatten(1).mean(1))
    assert bool((loss[1:] < Regression(process=p, weight="uniform").loss(student, point, x)[1:]).all())
