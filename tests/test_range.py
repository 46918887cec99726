"""What is said of samples that leave the data's range: once, by how much, and of none that do not."""

from __future__ import annotations

import json
import math
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.cli import main
from fewstep.loop import ends as module
from fewstep.loop.ends import beyond
from test_cli_sample import made

torch.set_num_threads(1)
VP = fs.VP()


@pytest.fixture(autouse=True)
def _unsaid(monkeypatch):
    monkeypatch.setattr(module, "_SAID", set())


def network(size: float, within: float = 1.0, weights: str | None = None) -> fs.Wrapped:
    """One whose samples have their first entry at `size`, the rest at 0.5."""
    at = torch.tensor([size, 0.5, 0.5, 0.5])
    made = fs.wrap(lambda x, t: at.expand(x.shape).to(x), VP, "data", dtype=torch.float32)
    return replace(made, within=within, weights=weights)


def said(run) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in caught]


def drawn(denoiser, **options):
    return lambda: fs.sample(denoiser, VP, **{"steps": 4, "shape": (3, 4), "progress": False} | options)


def test_it_is_said_once_a_network_with_how_many():
    (found,) = said(drawn(network(2.0)))
    assert re.fullmatch(
        r"got 3 of 3 samples that leave the data's range of 1, by 3 of 12 entries beyond 1\.5 and up to (2|2\.0\d|1\.9\d) \(they are set into it\): "  # noqa: E501
        r"bound predictions with fs\.Thresholded, give more calls, or measure the network with `fewstep stats`",
        found,
    )
    assert said(drawn(network(2.0))) == []
    assert len(said(drawn(network(2.0, weights="another")))) == 1


@pytest.mark.parametrize(
    ("denoiser", "options"),
    [
        (network(1.3), {}),
        (network(2.0, within=math.inf), {}),
        (network(2.0, within=2.0), {}),
        (fs.Gaussian(VP, torch.full((4,), 5.0), 1.0), {}),
        (fs.Thresholded(network(2.0), None), {}),
        (network(2.0), {"grid": torch.tensor([1.0, 0.9, 0.8], dtype=torch.float64), "steps": None}),
    ],
)
def test_nothing_is_said(denoiser, options):
    """Within the factor, without a known range, of exact denoisers, clipped, and before the end."""
    assert said(drawn(denoiser, **options)) == []


@pytest.mark.parametrize(
    "options",
    [
        {"final": "denoise"},
        {"solver": "rk45", "steps": None},
        {"parallel": True},
        {"solver": "ddpm"},
        {"memory": "8GiB"},
    ],
)
def test_it_is_said_in_every_door(options):
    assert len(said(drawn(fs.guide(network(2.0), network(2.0), 2.0), **options))) == 1
    module._SAID.clear()
    options = {"steps": 4} | options
    assert len(said(lambda: fs.solve(network(2.0), VP, shape=(3, 4), progress=False, **options))) == 1


@pytest.mark.parametrize(("size", "count"), [(1.7, 0), (2.5, 1)])
def test_a_faint_entry_of_a_thousand_is_left(size, count):
    """Below twice the range, and no more than one in a thousand."""
    at = torch.full((2000,), 0.5)
    at[0] = size
    net = replace(fs.wrap(lambda x, t: at.expand(x.shape).to(x), VP, "data", dtype=torch.float32), within=1.0)
    assert len(said(drawn(net, shape=(2, 2000)))) == count


def test_bits_and_gradients_stay():
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = []
    for within in (1.0, math.inf):
        module._SAID.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            how = {"solver": "ddim", "steps": 4, "final": "state", "differentiable": True, "progress": False}
            out.append(fs.sample(network(2.0, within), VP, x=x, **how))
    assert torch.equal(*out)
    assert out[0].requires_grad


@pytest.mark.filterwarnings("ignore:got . of . samples that leave")
@pytest.mark.parametrize("how", [{}, {"final": "state"}, {"final": "denoise"}, {"parallel": True}])
def test_samples_of_the_default_end_within_the_range(how):
    """At t_min with what noise is left there, and the entries within it as they are without a range."""
    options = {"steps": 4, "shape": (3, 4), "progress": False} | how
    bounded, free = (fs.sample(network(2.0, within), VP, **options) for within in (1.0, math.inf))
    left = 5 * float(VP.sigma(VP.t_min)) if how.get("final") == "state" else 0.0
    assert 1.9 < free.max() < 2.2
    assert bounded.max() == pytest.approx(1.0 if not left else float(VP.alpha(VP.t_min)) + left, abs=1e-6)
    assert torch.equal(bounded[free < 1], free[free < 1])
    if how.get("final") != "denoise":
        assert torch.equal(fs.solve(network(2.0), VP, **options).state, bounded)


@pytest.mark.filterwarnings("ignore:got . of . samples that leave")
def test_the_outermost_layer_that_tells_it_is_heard():
    """Whole numbers too; what is inside a layer with a process of its own may be in other units, and is not asked."""
    inner = network(2.0)

    class Bytes:
        process = VP

        def __call__(self, z, t):
            return 127.5 * (inner(z / 127.5, t) + 1)

    wide = Bytes()
    wide.inner = inner
    options = {"steps": 4, "shape": (3, 4), "progress": False}
    assert fs.sample(wide, VP, **options).max() > 100
    whole = fs.wrap(inner.net, VP, "data", dtype=torch.float32, within=1)
    assert fs.sample(whole, VP, **options).max() < 1.1
    with pytest.raises(ValueError, match="got within=0: give the largest size"):
        fs.wrap(inner.net, VP, "data", within=0)


def test_what_is_beyond():
    x = torch.zeros(4, 2, 3)
    assert beyond(x, 1.0) is None
    x[1, 0, 0], x[3, 1] = -1.9, 1.6
    assert beyond(x, 1.0) == (1.5, 2, 4, pytest.approx(1.9))
    assert beyond(x, 2.0) is beyond(x, math.inf) is beyond(x[:0], 1.0) is None


def test_the_command_counts_them(tmp_path, capsys):
    model = made(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["sample", str(model), "--out", str(tmp_path / "out"), "--num", "5", "--batch", "2", "--steps", "3",
                     "--solver", "ddim"]) == 0  # fmt: skip
    x = np.abs(np.load(tmp_path / "out" / "samples.npz")["samples"])
    record = json.loads((tmp_path / "out" / "run.json").read_text()).get("beyond_the_data")
    assert record == {
        "limit": 1.5,
        "samples": int((x > 1.5).any((1, 2, 3)).sum()),
        "entries": int((x > 1.5).sum()),
        "largest": pytest.approx(float(x.max())),
    }
    capsys.readouterr()
