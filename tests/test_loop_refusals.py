"""What the loop refuses, in one sentence each."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

import fewstep as fs
import oracle
from fewstep.loop.ends import start_state

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
        fs.sample(fs.wrap(lambda x, t: x[:1], VP), VP, solver="ddim", shape=(3, 2))
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
        ({"final": "data"}, "choose zero, state or denoise"),
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


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Module(torch.nn.Module):
    def forward(self, x, t):
        return x


@pytest.mark.parametrize("net", [Module(), Module().forward, partial(Module(), t=1.0), torch.nn.Linear(2, 2)])
def test_a_network_is_no_denoiser(net):
    runs = [
        lambda: fs.sample(net, VP, shape=(2, 2)),
        lambda: fs.solve(net, VP, shape=(2, 2)),
        lambda: fs.encode(net, VP, drawn(2, 2)),
        lambda: fs.log_prob(net, VP, drawn(2, 2)),
        lambda: fs.Thresholded(net, process=VP),
        lambda: fs.Composed(net, (net,), (1.0,), process=VP),
        lambda: fs.guide(net, net, 2.0),
    ]
    for run in runs:
        with pytest.raises(ValueError, match=r"got a \w+ as .*, as fs\.wrap\(net, process\) makes of a network|tuple"):
            run()
    with pytest.raises(ValueError, match="a denoiser already"):
        fs.wrap(fs.wrap(net, VP), VP)


@pytest.mark.parametrize(
    ("after", "got"),
    [(lambda *told: None, "NoneType"), (lambda row, t, z: z[:1], r"\(1, 2\)"), (lambda row, t, z: z > 0, "torch.bool"),
     (lambda row, t, z: z.numpy(), "ndarray"), (lambda row, t, z: z + 0j, "torch.complex64")],
)  # fmt: skip
def test_what_after_returns_is_a_state(after, got, mixture):
    with pytest.raises(ValueError, match=rf"row 1 \(t = .*\): after returned .*{got}.*it must return the state"):
        fs.sample(mixture, VP, shape=(2, 2), steps=3, after=after)


def test_hooks_that_cannot_be_called_or_whose_words_are_lost_are_said(mixture):
    for name, hook in (("callback", lambda step, t, latents: None), ("after", lambda z: z), ("after", lambda: None)):
        with pytest.raises(ValueError, match=rf"got {name} with the arguments \("):
            fs.sample(mixture, VP, shape=(2, 2), steps=3, **{name: hook})
    with pytest.warns(UserWarning, match="a Tensor back from callback, which is not read"):
        fs.sample(mixture, VP, shape=(2, 2), steps=3, callback=lambda row, t, z, x0: x0)


@pytest.mark.parametrize("solver", ["ddim", "rk45", "ddpm"])
def test_a_start_that_is_not_finite_is_the_starts_fault(solver, mixture):
    for value in (math.nan, math.inf):
        x = drawn(3, 2)
        x[1, 0] = value
        with pytest.raises(ValueError, match="got a start x that is not finite, first in sample 1"):
            fs.sample(mixture, VP, solver=solver, x=x)
        assert fs.solve(mixture, VP, solver=solver, x=x).status[::2] == ("reached the end",) * 2
    noise = torch.full((3, 3, 2), math.nan)
    if solver == "ddpm":
        with pytest.raises(ValueError, match="noise 0 of the run is not finite: check what was given as noise"):
            fs.sample(mixture, VP, solver=solver, steps=3, x=drawn(3, 2), noise=noise)


@pytest.mark.parametrize("x", [torch.zeros(0, 2), torch.zeros(2, 0), torch.tensor(1.0)])
@pytest.mark.parametrize("options", [{}, {"solver": "rk45"}, {"parallel": True}])
def test_a_start_without_a_sample_is_refused(options, x, mixture):
    with pytest.raises(ValueError, match="in which there is no sample"):
        fs.sample(mixture, VP, x=x, **options)


@pytest.mark.parametrize("shape", [np.array([2, 2]), torch.tensor([2, 2])])
def test_a_shape_is_a_tuple(shape, mixture):
    with pytest.raises(ValueError, match=r"as shape: give a tuple of whole numbers"):
        fs.sample(mixture, VP, shape=shape)
    assert fs.sample(mixture, VP, shape=[2, 2]).shape == fs.sample(mixture, VP, shape=torch.Size((2, 2))).shape


@pytest.mark.parametrize("process", [VP, fs.SubVP(), fs.VE(), fs.CLD()])
def test_times_beyond_the_networks_are_refused(process):
    for times in ([1000.0, 1.0], [999, 500, 0], [5.0, 0.5]):
        with pytest.raises(ValueError, match="got time .* whose times end at 1.*not a network's indices"):
            fs.tabulate("euler", process, grid=torch.tensor(times, dtype=torch.float64) + 1e-3)
    assert fs.tabulate("euler", fs.EDM(), grid=torch.tensor([700.0, 1.0])).grid[0] == 700.0  # levels go beyond


def test_a_start_of_another_scale_is_said_with_both_numbers():
    denoiser = fs.Gaussian(fs.EDM(), 0.3, 0.5)
    with pytest.warns(UserWarning, match=r"start x of size 0\.982 .* at t = 80, where EDM\(.*has noise of size 80"):
        fs.sample(denoiser, fs.EDM(), steps=3, x=drawn(4, 100))
    with pytest.warns(UserWarning, match=r"size 78\.\d .* at t = 1, where VP\(.*noise of size 1:"):
        fs.sample(fs.Gaussian(VP, 0.3, 0.5), VP, steps=3, x=80 * drawn(4, 100))
    cld = fs.CLD()
    with pytest.warns(UserWarning, match="at t = 1, where CLD"):
        fs.solve(oracle.Problem("cld").denoiser, cld, steps=3, x=30 * drawn(4, 2, 1))


@pytest.mark.parametrize("process", [VP, fs.EDM(), fs.Flow(), fs.VE(), fs.Cosine()])
def test_starts_of_the_right_scale_are_not_doubted(process):
    denoiser, end = fs.Gaussian(process, 0.3, 0.5), process.t_max
    for seed in range(40):
        for shape in ((1, 1), (2, 3), (2, 300)):
            x = process.prior(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
            for size in (0.8, 1.0, 1.3):
                start_state(process, end, None, size * x, fs.noise.noise_source(), torch.float32, None)
    for t in (0.1, 0.5):  # data under little noise, as an encoding or an edit starts
        z = process.diffuse(3.0 * drawn(2, 300), t, drawn(2, 300))
        fs.sample(denoiser, process, grid=torch.tensor([t, t / 2]), x=z)


def test_labels_bound_for_another_batch_are_named():
    table = torch.nn.Embedding(10, 4)
    adds = lambda x, t, label: x + table(label)  # noqa: E731
    repeats = lambda x, t, label: x[:1].expand(len(label), -1)  # noqa: E731
    for net in (adds, repeats):
        denoiser = fs.wrap(partial(net, label=torch.zeros(3, dtype=torch.long)), VP)
        for options in ({}, {"solver": "rk45"}):
            with pytest.raises(ValueError, match=r"label of shape \(3,\) bound to it for a batch of 2"):
                fs.sample(denoiser, VP, shape=(2, 4), **options)

    def fails(x, t, label):
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):  # what a network says of itself is left as it is
        fs.sample(fs.wrap(partial(fails, label=torch.zeros(2)), VP), VP, shape=(2, 4))


def test_edm_without_sigma_data_says_what_it_takes():
    net = lambda x, t: torch.tanh(x)  # noqa: E731
    with pytest.warns(UserWarning, match=r"without sigma_data: it takes 0\.5"):
        assumed = fs.wrap(net, fs.EDM(), "edm")
    run = {"steps": 3, "shape": (2, 3)}
    said = fs.wrap(net, fs.EDM(), "edm", sigma_data=0.5)
    assert torch.equal(fs.sample(assumed, fs.EDM(), **run), fs.sample(said, fs.EDM(), **run))
    for value in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"sigma_data=.*above 0"):
            fs.wrap(net, fs.EDM(), "edm", sigma_data=value)
