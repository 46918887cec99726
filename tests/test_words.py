"""Values of another type than their annotation: one sentence at the door, whatever they were given to."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from itertools import product

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.solver import ALIASES, SOLVERS
from fewstep.words import typed

VP, ONE = fs.VP(), fs.Gaussian(fs.VP(), 0.0, 1.0)
RUN = {"denoiser": ONE, "process": VP, "steps": 2, "shape": (2, 1)}


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: fs.RK45(rtol="a"), "got rtol='a': give a number"),
        (lambda: fs.Multistep(points="a"), "got points='a': give a whole number"),
        (lambda: fs.Multistep(points=2.5), "got points=2.5: give a whole number"),
        (lambda: fs.Multistep(points=True), "got points=True: give a whole number"),
        (lambda: fs.Multistep(corrector=1), "got corrector=1: give True or False"),
        (lambda: fs.DPMAdaptive(pid=(1.0, "a", 0.0)), "got a tuple as pid: give a tuple of numbers or None"),
        (lambda: fs.UniC(predictor=fs.DDIM), "got the class DDIM as predictor: give a solver of tables, as fs.DDIM()"),
        (lambda: fs.UniC(predictor=fs.RK45()), "got a RK45 as predictor: give a solver of tables"),
        (lambda: fs.VP(beta_min=None), "got beta_min=None: give a number"),
        (lambda: fs.Blurring(size=2.5), "got size=2.5: give a whole number of at least 1"),
        (lambda: fs.Discrete(alphas_cumprod="a"), "got alphas_cumprod='a': give a tuple of numbers or None"),
        (lambda: fs.Parallel(tolerance="a"), "got tolerance='a': give a number"),
        (lambda: fs.Statistics(log_snr=[0, 1]), "got a list as log_snr: give a tensor"),
        (lambda: fs.Differentiated(ONE, "vp"), "got process='vp': give a process, as fs.VP()"),
        (lambda: fs.Gaussian(VP, "a", 1.0), "got mean='a': give a tensor or a number"),
        (lambda: fs.sample(**{**RUN, "process": fs.VP}), "got the class VP as process: give a process, as fs.VP()"),
        (lambda: fs.sample(**{**RUN, "denoiser": "a"}), "got denoiser='a': give a function (z, t) -> x0_hat"),
        (lambda: fs.sample(**RUN, device="cudaa"), "got the device 'cudaa', which does not work here"),
        (lambda: fs.sample(**RUN, dtype="float32"), "got dtype='float32': give a torch.dtype"),
        (lambda: fs.sample(**RUN, parallel="all"), "got parallel='all': give a Parallel or True or False or a whole"),
        (
            lambda: fs.tabulate("ddim", VP, grid=object()),
            "got a object as grid: give a name, a function or a tensor of times",
        ),
        (lambda: fs.tabulate("ddim", "vp"), "got process='vp': give a process, as fs.VP()"),
        (lambda: fs.log_prob(ONE, VP, np.zeros((2, 1))), "got a ndarray as x: give a tensor"),
        (lambda: fs.elbo(ONE, VP, [0.0]), "got a list as x: give a tensor"),
        (lambda: fs.load(device="cudaa"), "got the device 'cudaa', which does not work here"),
        (lambda: fs.load(3), "got path=3: give a word or a path or None"),
    ],
)
def test_a_value_of_another_type_gets_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=r"^got .*: ") as error:
        call()
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize("name", [*(n for n in SOLVERS if n not in ALIASES), "vp", "cld", "blurring"])
def test_no_option_lets_another_error_out(name):
    made = {**SOLVERS, **fs.PROCESSES}[name]()
    assert is_dataclass(made)
    given = {f.name: getattr(made, f.name) for f in fields(made) if f.init}
    for option, value in product(given, ("no such", None, object(), {}, [1], float("nan"), -1, torch.ones(2))):
        with suppress(ValueError):
            type(made)(**{**given, option: value})


def test_numbers_of_numpy_and_torch_are_numbers():
    assert fs.RK45(rtol=np.float32(0.5), max_calls=np.int64(7)).max_calls == 7
    assert fs.DDIM(eta=torch.tensor(0.5)).eta == 0.5


def test_annotations_that_are_classes_are_read_too():
    @dataclass(frozen=True)
    class Mine(fs.DDIM):
        share: float = 0.0

    Mine.__dataclass_fields__["share"].type = float  # as without `from __future__ import annotations`
    with pytest.raises(ValueError, match="got share='a': give a number"):
        Mine(share="a")


def test_positions_count_as_names():
    @typed
    def double(x: float, *, times: int = 2) -> float:
        return times * x

    assert double(1.5) == 3
    with pytest.raises(ValueError, match="got x='a': give a number"):
        double("a")
    with pytest.raises(TypeError, match="unexpected keyword"):
        double(1.0, time=2)
