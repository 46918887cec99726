"""A run that stands at its next call: the same states as `sample`, with calls that others make or share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fewstep as fs

VP = fs.VP()


def network(x: Tensor, t: Tensor) -> Tensor:
    """A network that tells its batch mates nothing, and needs its time."""
    t = t.to(x).reshape(-1, *(1,) * (x.ndim - 1))
    return torch.tanh(x * (1 + t / 1000)) - 0.3 * x.roll(1, -1)


def run_alone(run: fs.Standing, denoiser) -> Tensor:
    while not run.done:
        z, t = run.ask
        run.tell(denoiser(z, t))
    return run.state


def test_runs_of_other_tables_lengths_and_solvers_share_the_calls_of_one_network():
    denoiser = fs.Counted(fs.wrap(network, VP))
    solvers = {"default": 3, "unipc-3": 7, "ddpm": 10, "heun": 9, "edm-sde": 6}
    tables = [fs.tabulate(name, VP, steps=steps) for name, steps in solvers.items()]
    runs = [fs.Standing.of(table, shape=(k + 1, 5), seed=k) for k, table in enumerate(tables)]
    made = 0
    while asking := [run for run in runs if not run.done]:
        states, times = zip(*(run.ask for run in asking), strict=True)
        assert all(t.dtype == torch.float64 and t.shape == (len(z),) for z, t in zip(states, times, strict=True))
        answers = denoiser(torch.cat(states), torch.cat(times))
        for run, answer in zip(asking, answers.split([len(z) for z in states]), strict=True):
            run.tell(answer)
        made += 1
    calls = [table.nfe for table in tables]
    assert (made, denoiser.calls) == (max(calls), max(calls)) < (sum(calls), sum(calls))
    for k, (run, table) in enumerate(zip(runs, tables, strict=True)):
        alone = fs.sample(fs.wrap(network, VP), VP, solver=table, shape=(k + 1, 5), seed=k)
        assert run.made == table.nfe
        assert torch.allclose(run.state, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("process", ["vp", "flow", "cld", "blurring"])
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "multistep-pc-3"])
def test_a_run_ends_where_sample_does_on_every_kind_of_process(solver, process):
    p = fs.Blurring(size=(4, 4)) if process == "blurring" else fs.PROCESSES[process]()
    shape = (4, 4) if process == "blurring" else (2,)
    means = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    denoiser = fs.Mixture(p, means, torch.tensor([0.5, 0.3, 0.4]))
    table = fs.tabulate(solver, p, steps=6)
    how = {"shape": (3, *shape), "seed": 4, "first": 2, "dtype": torch.float64}
    end = run_alone(fs.Standing.of(table, **how), denoiser)
    assert torch.allclose(end, fs.sample(denoiser, p, solver=table, **how), rtol=1e-12, atol=1e-12)


def test_a_table_with_heads_is_told_them():
    one, other = fs.Gaussian(VP, torch.zeros(2), 0.5), fs.Gaussian(VP, torch.ones(2), 0.4)
    guided, table = fs.guide(one, other, 3.0), fs.tabulate("ltsp", VP, steps=6)
    x = VP.prior(fs.Noise(1).normal("initial", 0, (3, 2), dtype=torch.float64))

    def answer(z: Tensor, t: Tensor) -> dict[str, Tensor]:
        return {"x0": guided(z, t), **{head: guided.at(t, head)(z) for head in ("base", "guidance")}}

    end = run_alone(fs.Standing.of(table, x=x), answer)
    assert torch.allclose(end, fs.sample(guided, VP, solver=table, x=x), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"reads output '(base|guidance)', which the denoiser does not return"):
        run_alone(fs.Standing.of(table, x=x), one)


def test_what_is_asked_and_told_beyond_the_end_is_refused():
    table, half = fs.tabulate("ddim", VP, steps=2), lambda z, t: 0.5 * z  # noqa: ARG005
    run = fs.Standing.of(table, shape=(2, 3))
    with pytest.raises(ValueError, match=r"row 0 \(t = 1\): the denoiser returned shape \(2, 2\)"):
        run.tell(torch.zeros(2, 2))
    end = run_alone(run, half)  # a wrong answer changes nothing
    assert torch.allclose(end, fs.sample(half, VP, solver=table, shape=(2, 3)), atol=1e-6)
    for beyond in (lambda: run.ask, lambda: run.tell(end)):
        with pytest.raises(ValueError, match="has made all its calls: take its state"):
            beyond()
    with pytest.raises(ValueError, match="got no shape: give shape or x"):
        fs.Standing.of(table)
