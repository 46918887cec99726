"""Names that people bring from other tools mean the same in Python, on the command line, the page and in the doors."""

from __future__ import annotations

import re
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch

import fewstep as fs
from fewstep import words
from fewstep.cli import main
from fewstep.denoiser.network import TIMES
from fewstep.interop import k_diffusion
from fewstep.interop.tool_names import ALIASES, LABELS
from fewstep.page.choice import Choice, Job
from fewstep.process.predict import PREDICTIONS
from fewstep.words import elsewhere

PAGE = Path(__file__).parent.parent / "docs" / "interop.md"
# Of the names on the page, those of solvers that are made with options of their own and so have no name here.
NAMED = [*ALIASES, *LABELS, *(name for name in elsewhere.OTHERS["solver"])]
LABELLED = {"DPM++ 2M Karras": ("dpmpp-2m", "karras"), "DPM++ SDE Exponential": ("dpmpp-sde", "exponential"),
            "euler a SGM uniform": ("euler-ancestral", "sgm-uniform"), "UniPC": ("unipc-3", "default")}  # fmt: skip


@pytest.fixture(autouse=True)
def _anew(monkeypatch):
    monkeypatch.setattr(words, "_SAID", set())


def canonical(name: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return words.named(fs.SOLVERS, elsewhere.apart(name)[0], "solver")


def scheduler_class():
    pytest.importorskip("diffusers")
    from fewstep.interop.diffusers import FewStepScheduler

    return FewStepScheduler


def without(pattern: str):
    return [name for name in NAMED if not re.search(pattern, name)]


def test_what_stands_for_a_name_is_there():
    for what, registry in (("solver", fs.SOLVERS), ("grid", fs.GRIDS), ("predicts", PREDICTIONS), ("time", TIMES)):
        assert set(elsewhere.OTHERS[what].values()) <= set(registry), what
        assert not set(elsewhere.OTHERS[what]) & set(registry), what


# CFG++ around another solver than ours has no name of its own here.
@pytest.mark.parametrize("name", without("gradient_estimation_cfg_pp"))
def test_a_name_means_the_same_in_all_places(name, capsys):
    """Python, the command line, the page and the scheduler take one solver; k-diffusion's door knows the name."""
    ours = canonical(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert callable(k_diffusion.sample(name))
        if ours in fs.SOLVERS and ours not in fs.TABLES:
            return
        process = fs.VP()
        wanted = fs.tabulate(ours, process, steps=8)
        assert fs.tabulate(name, process, steps=8) == wanted
        assert main(["explain", name, "--steps", "8"]) == 0
        assert capsys.readouterr().out == wanted.explain() + "\n"
        made = fs.SOLVERS[ours]()
        assert type(page_job(name).solver.solver) is type(made)
        if not made.heads:
            scheduler = scheduler_class()(solver=name, prediction_type="epsilon")
            assert scheduler.config.solver == ours


shipped = cache(fs.load)


def page_job(name: str) -> Job:
    return Job.of(Choice(solver=name, steps=8, num=1), shipped())


@pytest.mark.parametrize(("label", "meant"), LABELLED.items())
def test_a_label_may_end_in_a_grid(label, meant):
    solver, grid = meant
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = fs.tabulate(solver, fs.VP(), steps=8, grid=grid)
        assert fs.tabulate(label, fs.VP(), steps=8) == wanted
        assert fs.tabulate(label, fs.VP(), steps=8, grid="log-snr") == fs.tabulate(
            solver, fs.VP(), steps=8, grid="log-snr"
        )
        assert page_job(label).choice.grid == grid
        scheduler = scheduler_class()(solver=label, prediction_type="epsilon")
        assert (scheduler.config.solver, scheduler.config.grid or "default") == (solver, grid)


@pytest.mark.parametrize("what", ["predicts", "time"])
def test_predictions_and_times_have_their_names_elsewhere(what):
    def net(x, t):
        return x * 0.5 + t[:, None] * 1e-3

    z = torch.randn(3, 2)
    for name, ours in elsewhere.OTHERS[what].items():
        with pytest.warns(UserWarning, match="is read as"):
            d = fs.wrap(net, fs.VP(), **{what: name.upper()})
        assert torch.equal(d(z, 0.5), fs.wrap(net, fs.VP(), **{what: ours})(z, 0.5))
    if what == "predicts":
        assert fs.wrap(net, fs.Flow(), "velocity").predicts == "flow"


def test_a_name_of_ours_that_ends_like_a_grid_is_itself_in_k_diffusions_door_too():
    assert k_diffusion.sample("ddpm-beta").__name__ == "sample_ddpm_beta"


def test_it_is_said_once_what_a_name_was_read_as():
    with pytest.warns(UserWarning, match="solver 'DPM\\+\\+ 2M' is read as 'dpmpp-2m'"):
        fs.tabulate("DPM++ 2M", fs.VP(), steps=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fs.tabulate("DPM++ 2M", fs.VP(), steps=4)
        fs.tabulate("dpmpp-2m", fs.VP(), steps=4)


def test_an_unknown_name_gets_the_nearest_three():
    with pytest.raises(ValueError, match="did you mean") as refused:
        fs.tabulate("DPM++ 7M", fs.VP(), steps=4)
    assert str(refused.value).count(" or ") == 2
    with pytest.raises(ValueError, match="did you mean") as refused:
        fs.tabulate("qqqq", fs.VP(), steps=4)
    assert len(str(refused.value)) < 150


def test_an_option_of_the_solver_is_named_as_one():
    with pytest.raises(ValueError, match=r"give solver=fs.DDIM\(eta=0.5\)"):
        scheduler_class().from_config({"prediction_type": "epsilon"}, solver="ddim", eta=0.5)
