"""What a network predicts, told from its output: every pair of what it is and what it is wrapped as."""

from __future__ import annotations

import re
import warnings
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch

import fewstep as fs
from fewstep.process.predict import conversion
from fewstep.stats.sanity import CALLS

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
        assert str(one.message).startswith(f"got a network wrapped with predicts={declared!r}, whose output looks ")
        assert str(one.message) == looks.sentence
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
    assert fs.check_prediction(denoiser, model.shape) == ("v",)
    for k, predicts in enumerate(TYPES):
        net = network(lambda z, t: denoiser(z.float(), t).double(), model.process, predicts)
        for declared in (predicts, TYPES[k - 1]):
            looks, warned = judged(net, model.process, declared, model.shape)
            assert predicts in looks
            assert warned == (predicts != declared), (predicts, declared, looks)


SD = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
PROCESSES = {
    "vp": fs.VP(),
    "stable diffusion": fs.Discrete(alphas_cumprod=tuple((1 - SD).cumprod(0).tolist())),
    "cosine": fs.Cosine(),
    "sub-vp": fs.SubVP(),
    "flow": fs.Flow(),
    "edm": fs.EDM(),
    "ve": fs.VE(),
}
TIMES = {
    "t": lambda p, label: label,
    "index": lambda p, label: (label + 1) / getattr(p, "count", 1000),
    "sigma": lambda p, label: p.inverse_log_snr(-label.clamp(min=1e-9).log()),
    "log-sigma/4": lambda p, label: p.inverse_log_snr(-4 * label),
}
SPREADS = {
    "narrow, with a mean": ((8,), lambda p: fs.Gaussian(p, 0.5, 0.2)),
    "white": ((16,), lambda p: fs.Gaussian(p, 0.0, 1.0)),
    "wide": ((2,), lambda p: fs.Gaussian(p, 0.0, 3.0)),
    "pictures": ((3, 8, 8), lambda p: fs.Gaussian(p, 0.3, 0.5)),
    "mixture": ((4,), lambda p: fs.Mixture(p, CENTRES, 0.3)),
}


def timed(process, time, predicts, make, error=0.0):
    """A network of a time convention that returns a prediction, off by a smooth error of that root mean square."""
    inner, high = network(make(process), process, predicts), process.t_max - 1e-4 * isinstance(process, fs.Flow)
    low = max(process.t_min, 1e-4 * (process.t_max <= 1 and not isinstance(process, fs.VE)))

    def net(x, label):
        t = TIMES[time](process, label.double()).clamp(low, high)
        return inner(x, t) + error * 2**0.5 * torch.sin(2 * x.flip(-1) + 1)

    return net


@pytest.mark.parametrize("data", SPREADS)
@pytest.mark.parametrize("name", PROCESSES)
def test_what_is_declared_right_is_silent_and_alone(name, data):
    process, (shape, make) = PROCESSES[name], SPREADS[data]
    for time in TIMES:
        if time == "index" and process.t_max > 1:
            continue
        for predicts in TYPES:
            denoiser = fs.wrap(timed(process, time, predicts, make), process, predicts, time=time)
            found = fs.check_prediction(denoiser, shape)  # a warning is an error
            assert found == (predicts,), (time, predicts, found.sentence)
            assert found.misfit == found.declared < 0.03
            assert (found.process, found.time) == (process, time)
            assert found.sentence.startswith(f"looks like {predicts}, as it is wrapped")


@pytest.mark.parametrize("error", [0.003, 0.02, 0.05])
@pytest.mark.parametrize("name", ["vp", "flow", "ve"])
def test_an_imperfect_network_is_what_it_is(name, error):
    process, (shape, make) = PROCESSES[name], SPREADS["pictures"]
    for predicts, other in (("noise", "data"), ("flow", "noise")):
        net = timed(process, "t", predicts, make, error)
        assert fs.check_prediction(fs.wrap(net, process, predicts), shape) == (predicts,)
        looks, warned = judged(net, process, other, shape)
        assert (predicts in looks, warned) == (True, True)


@pytest.mark.parametrize(
    ("name", "true", "declared", "predicts", "sentence"),
    [
        ("vp", "index", "t", "noise", "like an index network called with t in [0, 1]"),
        ("stable diffusion", "index", "t", "noise", "like an index network called with t in [0, 1]"),
        ("vp", "t", "index", "noise", "like a network of t in [0, 1] called with an index"),
        ("vp", "log-sigma/4", "index", "noise", "like a network of the time 'log-sigma/4'"),
    ],
)
def test_a_wrong_time_is_named(name, true, declared, predicts, sentence):
    process, (shape, make) = PROCESSES[name], SPREADS["pictures"]
    with pytest.warns(UserWarning, match=re.escape(sentence)):
        found = fs.check_prediction(
            fs.wrap(timed(process, true, predicts, make), process, predicts, time=declared), shape
        )
    assert (found[0], found.time, found.process) == (predicts, true, process)
    assert found.misfit < 0.1 * found.declared


@pytest.mark.parametrize(("name", "predicts"), [("vp", "noise"), ("cosine", "v"), ("flow", "flow"), ("flow", "data")])
def test_a_reversed_time_is_named(name, predicts):
    process, (shape, make) = PROCESSES[name], SPREADS["pictures"]
    inner = timed(process, "t", predicts, make)
    denoiser = fs.wrap(lambda x, t: inner(x, process.t_max + process.t_min - t), process, predicts)
    with pytest.warns(UserWarning, match="one whose time is reversed"):
        found = fs.check_prediction(denoiser, shape)
    assert (found[0], found.time) == (predicts, "reversed")


@pytest.mark.parametrize(
    ("true", "declared"), [("vp", "flow"), ("ve", "vp"), ("cosine", "edm"), ("flow", "vp"), ("cosine", "vp")]
)
def test_a_wrong_process_is_named(true, declared):
    shape, make = SPREADS["narrow, with a mean"]
    net = timed(PROCESSES[true], "t", "noise", make)
    with pytest.warns(UserWarning, match=f"one trained on {type(PROCESSES[true]).__name__}"):
        found = fs.check_prediction(fs.wrap(net, PROCESSES[declared], "noise"), shape)
    assert (found[0], found.process) == ("noise", PROCESSES[true])


@pytest.mark.parametrize("name", PROCESSES)
def test_nothing_is_named_that_does_not_exist(name):
    process, calls = PROCESSES[name], []

    def net(x, t):
        calls.append(1)
        return torch.tanh(3 * x) * t.sin()[:, None]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fs.check_prediction(fs.wrap(net, process, "noise"), (8,))
    assert len(calls) <= CALLS
    for predicts in found:
        fs.wrap(net, found.process, predicts.removeprefix("-"), time=None if found.time == "reversed" else found.time)


def test_a_network_that_cannot_bear_other_times_is_judged_by_its_own():
    process, (shape, make) = PROCESSES["vp"], SPREADS["pictures"]
    inner = timed(process, "index", "v", make)

    def net(x, label):
        if not bool(((label >= 0) & (label < 1000)).all()):
            raise IndexError("index out of range in self")
        return inner(x, label)

    with pytest.warns(UserWarning, match="like v wrapped as noise"):
        assert fs.check_prediction(fs.wrap(net, process, "noise", time="index"), shape) == ("v",)


def test_a_model_of_the_repository_is_what_it_says():
    model = fs.load(Path(__file__).parent.parent / "models" / "fashion-vp", dtype=torch.float32)
    for label in (None, 3):
        assert fs.check_prediction(model.denoiser(label), model.shape) == ("v",)


def test_a_diagnosis_is_the_tuple_of_its_names():
    found = fs.check_prediction(fs.wrap(lambda x, t: x, fs.Flow(), "noise"), (8,))
    assert found == tuple(found) != ("w",)
    assert (len(found), hash(found), found[:1]) == (len(tuple(found)), hash(tuple(found)), tuple(found)[:1])
    assert found != "noise"
    with pytest.raises(FrozenInstanceError):
        found.sentence = ""  # type: ignore[misc]


def test_it_costs_one_call():
    calls = []
    net = network(fs.Gaussian(fs.VP(), 0.0, 0.5), fs.VP(), "noise")
    counted = fs.wrap(lambda x, t: calls.append(len(x)) or net(x, t), fs.VP())
    assert fs.check_prediction(counted, (3, 32, 32)) == ("noise",)
    assert calls == [14]


def test_a_velocity_that_runs_the_other_way_is_named():
    net = network(fs.Gaussian(fs.Flow(), 0.2, 0.7), fs.Flow(), "flow")
    with pytest.warns(UserWarning, match=r"like minus flow \(negate its output\) wrapped as flow"):
        assert fs.check_prediction(fs.wrap(lambda x, t: -net(x, t), fs.Flow(), "flow"), (3, 8, 8))[0] == "-flow"


def test_what_looks_like_nothing_known_is_no_reason_for_a_warning():
    few = fs.Dataset(fs.VP(), 0.5 * torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert judged(network(few, fs.VP(), "noise"), fs.VP(), "noise", (3, 8, 8)) == ((), False)


def test_a_process_that_is_not_scalar_is_refused():
    denoiser = fs.wrap(lambda x, t: x, fs.Blurring(), "data")
    with pytest.raises(ValueError, match="got a network on Blurring: predictions are told apart on scalar processes"):
        fs.check_prediction(denoiser, (1, 8, 8))
    with pytest.raises(ValueError, match="got a Gaussian as denoiser: give a wrapped network, as fs.wrap makes"):
        fs.check_prediction(fs.Gaussian(fs.VP(), 0.0, 1.0), (4,))
