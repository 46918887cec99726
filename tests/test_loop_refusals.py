"""What the loop refuses, in one sentence each."""

from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs

VP = fs.VP()


@pytest.fixture
def mixture() -> fs.Mixture:
    means = torch.tensor([[1.0, -0.5], [-1.0, 0.3], [0.2, 1.5]])
    return fs.Mixture(VP, means, torch.tensor([0.2, 0.4, 0.3]))


def test_non_finite_runs_name_the_row_and_the_time():
    with pytest.raises(ValueError, match=r"network returned values that are not finite at row 3 \(t = 0\.2"):
        fs.sample(
            lambda z, t: z * (math.nan if t < 0.3 else 1), VP, solver="ddim", grid="uniform", steps=4, shape=(1, 2)
        )
    after = lambda row, t, z: z / 0 if row == 2 else z  # noqa: E731
    with pytest.raises(ValueError, match="state became non-finite at row 2"):
        fs.sample(lambda z, t: z, VP, solver="ddim", steps=4, shape=(1, 2), after=after)


def test_wrong_shapes_name_the_row():
    with pytest.raises(ValueError, match=r"row 0 \(t = 1\): the network returned shape \(1, 2\)"):
        fs.sample(fs.wrap(lambda x, t: x[:1], VP), VP, shape=(3, 2))
    with pytest.raises(ValueError, match=r"row 0 \(t = 1\): the denoiser returned shape \(3, 1\)"):
        fs.sample(lambda z, t: z[:, :1], VP, shape=(3, 2))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"solver": "unipc3"}, "did you mean unipc-3"),
        ({"grid": "karas"}, "did you mean karras"),
        ({"steps": 0}, "steps=0"),
        ({"steps": -3}, "steps=-3"),
        ({"steps": 2.5}, r"steps=2\.5"),
        ({"steps": 5, "nfe": 5}, "give one of them"),
        ({"grid": torch.tensor([1.0, 0.5, 0.5])}, "repeats at entry 2"),
        ({"grid": torch.tensor([0.5, 1.0])}, "rises at entry 1"),
        ({"grid": torch.tensor([1.0, math.nan])}, "entry 1 is nan"),
        ({"grid": torch.tensor([[1.0, 0.5]])}, "1-D"),
        ({"grid": torch.tensor([1.0])}, "at least two"),
        ({"grid": torch.tensor([1.0, -0.5])}, "defined on"),
        ({"shape": None}, "no shape"),
        ({"shape": ()}, "batch"),
        ({"shape": (4, 2.5)}, "whole number"),
        ({"solver": 3}, "got a int as solver"),
        ({"shape": (0, 2)}, "at least 1"),
        ({"dtype": torch.bfloat16}, "float32 or float64"),
        ({"final": "data"}, "choose state or denoise"),
        ({"x": torch.zeros(2, 2)}, "both a shape and a start"),
    ],
)
def test_bad_input_gets_one_sentence(options, sentence, mixture):
    with pytest.raises(ValueError, match=sentence):
        fs.sample(mixture, VP, **{"shape": (4, 2), **options})


def test_what_is_no_process_and_no_state_is_refused(mixture):
    for process in (fs.VP, "vp", None):
        for solver in ("ddim", "rk45"):
            with pytest.raises(ValueError, match="process.*: give a process"):
                fs.sample(mixture, process, solver=solver, shape=(4, 2))
    with pytest.raises(ValueError, match="got a list as x: give a tensor"):
        fs.sample(mixture, VP, x=[[0.0, 1.0]])


def test_what_does_not_fit_together_is_refused(mixture):
    table = fs.tabulate("ddim", VP, steps=3)
    with pytest.raises(ValueError, match="ready table"):
        fs.sample(mixture, VP, solver=table, steps=50, shape=(1, 2))
    with pytest.raises(ValueError, match=r"table written for VP.*to run on EDM"):
        fs.tabulate(table, fs.EDM())
    with pytest.raises(ValueError, match=r"denoiser made for VP.*a run on VP\(beta_min=0.2"):
        fs.sample(fs.Counted(mixture), fs.VP(beta_min=0.2), shape=(1, 2))
    twice = lambda process, steps: torch.linspace(1.0, 0.1, 2 * steps + 1)  # noqa: E731
    with pytest.raises(ValueError, match="takes 10 calls"):
        fs.tabulate("ddim", VP, grid=twice, nfe=5)
    with pytest.raises(ValueError, match="returned a NoneType"):
        fs.sample(lambda z, t: None, VP, shape=(1, 2))
    with pytest.raises(ValueError, match=r"row 0 \(t = 1\): the denoiser returned eps: it must return x0"):
        fs.sample(lambda z, t: {"eps": z}, VP, shape=(1, 2))


def test_the_name_of_a_file_is_no_solver(mixture, tmp_path):
    path = tmp_path / "ddim.table"
    fs.tabulate("ddim", VP, steps=3).save(path)
    with pytest.raises(ValueError, match="no name but a file: give Path"):
        fs.sample(mixture, VP, solver=str(path), shape=(1, 2))
    assert fs.sample(mixture, VP, solver=path, shape=(1, 2)).shape == (1, 2)
