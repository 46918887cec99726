"""What a network predicts, told from its output: every pair of what it is and what it is wrapped as."""

from __future__ import annotations

import warnings

import pytest
import torch

import fewstep as fs
from fewstep.denoiser.predict import conversion

TYPES = ("noise", "data", "v", "flow", "score")
CENTRES = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
DATA = {
    "images": ((3, 8, 8), lambda p: fs.Gaussian(p, 0.3, 0.5)),
    "mixture": ((4,), lambda p: fs.Mixture(p, CENTRES, 0.3)),
}


def network(denoiser, process, predicts):
    """A network (x, t) that returns this prediction."""

    def net(x, t):
        wide = lambda c: c.reshape(-1, *(1,) * (x.ndim - 1)) if isinstance(c, torch.Tensor) else c  # noqa: E731
        p, q = conversion(predicts, process, t.double())
        return ((denoiser(x.double(), t.double()) - wide(p) * x.double()) / wide(q)).float()

    return net


def judged(net, process, declared, shape):
    """What the output looks like, and whether there was a warning that says so."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        looks = fs.check_prediction(fs.wrap(net, process, declared), shape)
    for one in caught:
        assert str(one.message).startswith(f"got a network wrapped with predicts={declared!r}, whose output looks like")
        assert one.filename == __file__
    return looks, bool(caught)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("process", [fs.VP(), fs.Cosine(), fs.SubVP(), fs.Discrete(), fs.Flow(), fs.EDM(), fs.VE()],
                         ids=lambda p: type(p).__name__)  # fmt: skip
def test_every_pair_is_told_apart(process, data):
    shape, make = DATA[data]
    alike = {"noise", "v"} if isinstance(process, fs.EDM | fs.VE) else set()  # v depends on the data's size there
    for true in TYPES:
        net = network(make(process), process, true)
        for declared in TYPES:
            looks, warned = judged(net, process, declared, shape)
            assert true in looks, (true, declared, looks)
            if not {true, declared} <= alike:
                assert warned == (true != declared), (true, declared, looks)


def test_the_shipped_network_is_what_it_says():
    model = fs.load(dtype=torch.float32)
    denoiser = model.denoiser(3)
    assert fs.check_prediction(denoiser, model.shape) == ("v", "edm")
    for k, predicts in enumerate(TYPES):
        net = network(lambda z, t: denoiser(z.float(), t).double(), model.process, predicts)
        for declared in (predicts, TYPES[k - 1]):
            looks, warned = judged(net, model.process, declared, model.shape)
            assert predicts in looks
            assert warned == (predicts != declared), (predicts, declared, looks)


def test_it_costs_one_call():
    calls = []
    net = network(fs.Gaussian(fs.VP(), 0.0, 0.5), fs.VP(), "noise")
    counted = fs.wrap(lambda x, t: calls.append(len(x)) or net(x, t), fs.VP())
    assert fs.check_prediction(counted, (3, 32, 32)) == ("noise",)
    assert calls == [4]


def test_a_velocity_that_runs_the_other_way_is_named():
    net = network(fs.Gaussian(fs.Flow(), 0.2, 0.7), fs.Flow(), "flow")
    with pytest.warns(UserWarning, match="predicts='flow', whose output looks like -flow"):
        assert fs.check_prediction(fs.wrap(lambda x, t: -net(x, t), fs.Flow(), "flow"), (3, 8, 8)) == ("-flow",)


def test_what_looks_like_nothing_known_is_no_reason_for_a_warning():
    few = fs.Dataset(fs.VP(), 0.5 * torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert judged(network(few, fs.VP(), "noise"), fs.VP(), "noise", (3, 8, 8)) == ((), False)


def test_a_process_that_is_not_scalar_is_refused():
    denoiser = fs.wrap(lambda x, t: x, fs.Blurring(), "data")
    with pytest.raises(ValueError, match="got a network on Blurring: predictions are told apart on scalar processes"):
        fs.check_prediction(denoiser, (1, 8, 8))
    with pytest.raises(ValueError, match="got a Gaussian as denoiser: give a wrapped network, as fs.wrap makes"):
        fs.check_prediction(fs.Gaussian(fs.VP(), 0.0, 1.0), (4,))
