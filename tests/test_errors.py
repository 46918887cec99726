"""A network's error by log-SNR: known ones are measured, exact networks have none, and the default reads it."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch

import fewstep as fs
import oracle
from fewstep.cli import main
from fewstep.loop.tabulate import about, informed
from fewstep.stats import Errors, errors_of
from fewstep.stats.errors import FILE
from test_cli_sample import WEIGHTS, made

torch.set_num_threads(1)


def shift(x: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(x)


def waves(x: torch.Tensor) -> torch.Tensor:
    """An error without relation to the data."""
    return math.sqrt(2) * torch.sin(40 * x + 1)


def erring(process, predicts: str, size: float, kind=waves) -> fs.Wrapped:
    """The exact network of a mixture, and an error of a known size."""
    mixture = oracle.denoiser(process)
    plain = fs.wrap(torch.nn.Identity(), process, predicts)

    def net(x, t):
        at = plain.ready(float(t[0]))
        return (mixture(x, float(t[0])) - at.p * x) / at.q + size * kind(x)

    return fs.wrap(net, process, predicts, dtype=torch.float64)


def data(process, count: int = 4000) -> torch.Tensor:
    return oracle.denoiser(process).sample(count, torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("kind", [shift, waves])
@pytest.mark.parametrize(
    ("process", "predicts", "sizes"),
    [(fs.VP(), "noise", (0.003, 0.02, 0.05)), (fs.VP(), "v", (0.05,)), (fs.Flow(), "flow", (0.05,)),
     (fs.VP(), "data", (0.05,))],
)  # fmt: skip
def test_a_known_error_is_measured(process, predicts, sizes, kind):
    for size in sizes:
        count = 4000 if predicts == "noise" else 40_000
        found = errors_of(erring(process, predicts, size, kind), data(process, count), batch=count)
        assert found.error == pytest.approx(size, rel=0.2)
        assert found.weak[0]
        assert found.until < -1
        assert (found.predicts, found.samples) == (predicts, count)


@pytest.mark.parametrize("process", [fs.VP(), fs.VE(), fs.Flow()])
@pytest.mark.parametrize("predicts", ["noise", "v", "score"])
def test_an_exact_network_has_none(process, predicts):
    found = errors_of(erring(process, predicts, 0.0), data(process), batch=4000)
    assert not any(found.weak)
    assert not any(found.errors)
    assert found.until == -math.inf
    assert predicts != "noise" or found.error < 0.002
    assert found.sentence.startswith("at no log-SNR from")


def test_data_of_another_deviation_and_shape():
    """A series of deviation 4: the log-SNRs that are looked at move with it."""
    process = fs.VP()
    exact = fs.Gaussian(process, torch.full((1, 6), 3.0), 4.0)

    def net(x, t):
        at = (process.alpha(float(t[0])), process.sigma(float(t[0])))
        return (x - at[0] * exact(x, float(t[0]))) / at[1] + 0.04 * waves(x)

    x0 = exact.sample(1000, torch.Generator().manual_seed(0)).double()
    found = errors_of(fs.wrap(net, process, dtype=torch.float64), x0, batch=1000)
    assert found.std == pytest.approx(4.0, rel=0.05)
    assert found.errors[0] == pytest.approx(0.04, rel=0.2)
    assert found.log_snr[-1] == pytest.approx(1.0 - math.log(8.0), abs=0.05)


def test_conditions_go_with_their_samples():
    plain, x0 = erring(fs.VP(), "noise", 0.02), data(fs.VP())[:50]
    seen = []

    def of(where):
        seen.append((where.start, where.stop))
        return plain

    found = errors_of(plain, x0, conditioned=of, batch=20)
    assert seen[:3] == [(0, 20), (20, 40), (40, 60)]
    assert found == errors_of(plain, x0, batch=50)


def test_the_sentence_and_where_it_is_weak():
    given = {"log_snr": (-5.0, -3.0, -2.0), "errors": (0.04, 0.03, 0.0), "doubts": (0.05, 0.04, 0.03), "std": 0.5}
    found = Errors(**given, misses=(6.0, 0.7, 0.4), weak=(True, True, False), predicts="noise")
    assert found.error == pytest.approx(math.sqrt((0.04**2 + 0.03**2) / 2))
    a, b = (0.7**2 - 0.25) * math.exp(-6), (0.4**2 - 0.25) * math.exp(-4)
    assert found.until == pytest.approx(-3 + a / (a - b))
    assert found.sentence == (
        "at log-SNR below -2.7 it knows less than the mean of the data (its error there is 0.035 of noise)"
    )
    assert replace(found, weak=(True, True, True)).until == -2.0
    assert replace(found, weak=(False,) * 3, errors=(0.0,) * 3).error == 0.05


def test_the_default_takes_it_up():
    network = erring(fs.VP(), "noise", 0.06)
    found = errors_of(network, data(fs.VP()), batch=4000)
    told = replace(network, error=found.error)
    assert about(told)["error"] == found.error
    assert informed(None, told, (2,)).first(fs.VP(), 8) == pytest.approx(math.log(0.06 / 0.3), abs=0.1)
    assert informed(None, network, (2,)).error == 0.0
    run = partial(fs.sample, process=fs.VP(), steps=8, shape=(4, 2), progress=False)
    assert not torch.equal(run(told), run(network))


@pytest.mark.parametrize("process", [oracle.process("cld"), oracle.process("blurring")])
def test_what_has_no_single_size_is_refused(process):
    network = fs.wrap(lambda x, t: x, process, "noise")
    with pytest.raises(ValueError, match="has no single size"):
        errors_of(network, torch.zeros(4, 1, 4, 4))


def test_the_command_writes_it_and_a_loaded_model_tells_it(tmp_path, capsys):
    model = made(tmp_path / "model")
    assert main(["stats", str(model), "--only", "error", "--samples", "12"]) == 0
    out = capsys.readouterr().out
    assert "the mean of the data" in out
    assert "the default makes its first call at" in out
    found = Errors.load(model / FILE)
    assert found.samples == 12
    loaded = fs.load(model, dtype=torch.float32)
    assert loaded.error == found.error > 0
    assert about(fs.guide(loaded.denoiser(0), loaded.denoiser(), 2.0))["error"] == found.error


def test_another_networks_table_is_not_read(tmp_path):
    model = made(tmp_path / "model")
    path = Errors(log_snr=(-5.0,), errors=(0.04,), doubts=(0.04,), misses=(6.0,), weak=(True,), weights="a" * 64).save(
        model / FILE
    )
    with pytest.warns(UserWarning, match="it is not read; measure it again"):
        assert fs.load(model, dtype=torch.float32).error == 0.0
    assert Errors.load(path).weights == "a" * 64
    assert (model / WEIGHTS).is_file()


@pytest.mark.parametrize(
    "change",
    [{"format": "fewstep errors 9"}, {"errors": []}, {"errors": ["nan"]}, {"errors": [-1.0]}, {"weak": [0.5]},
     {"misses": "6"}, {"more": 1}, {"std": None}, {"std": "inf"}, {"errors": [1e999]}, {"log_snr": [[1]]}],
)  # fmt: skip
def test_a_file_that_is_none_is_refused(change, tmp_path):
    path = Errors(log_snr=(-5.0,), errors=(0.04,), doubts=(0.04,), misses=(6.0,), weak=(True,)).save(tmp_path / FILE)
    assert Errors.load(path).errors == (0.04,)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"got .*errors\.json"):
        Errors.load(path)


@pytest.mark.parametrize(("size", "predicts", "warned"), [(0.02, "noise", False), (1.0, "noise", True)])
def test_check_prediction_says_it_where_it_has_data(size, predicts, warned):
    network, x0 = erring(fs.VP(), predicts, size), data(fs.VP())

    def mixed(x, t):
        """At several times in a call."""
        out = torch.empty_like(x)
        for at in t.unique():
            out[t == at] = network.net(x[t == at], t[t == at])
        return out

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = fs.check_prediction(replace(network, net=mixed), (2,), data=x0)
    said = [str(w.message) for w in caught if "less than the mean" in str(w.message)]
    assert len(said) == warned
    assert "; at log-SNR below" in found.sentence
    assert found.sentence.endswith("of noise)")
