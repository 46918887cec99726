"""Grids: ends, spacing, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.grid import as_grid, karras, log_snr, power, uniform


@pytest.mark.parametrize("name", list(fs.GRIDS))
@pytest.mark.parametrize("process", list(fs.PROCESSES))
@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
def test_every_grid_falls_from_end_to_end(name, process, steps):
    process = fs.PROCESSES[process]()
    times = as_grid(name, process, steps)
    assert times.dtype == torch.float64
    assert len(times) == steps + 1
    assert (times[0], times[-1]) == (process.t_max, process.t_min)
    assert (times.diff() < 0).all()


def test_spacing():
    vp, edm = fs.VP(), fs.EDM()
    assert torch.allclose(uniform(vp, 4).diff(), torch.full((4,), -(1 - 1e-3) / 4, dtype=torch.float64))
    lam = vp.log_snr(log_snr(vp, 8))
    assert torch.allclose(lam.diff(), lam.diff()[:1].expand(8), rtol=1e-9)
    assert torch.allclose(power(vp, 8, exponent=3.0).pow(1 / 3).diff(), torch.full((8,), -0.9 / 8, dtype=torch.float64))
    i = torch.arange(18, dtype=torch.float64) / 17
    paper = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7  # Karras et al. 2022, eq. 5
    assert torch.allclose(karras(edm, 17), paper, rtol=1e-12)


def test_a_tensor_is_used_exactly():
    times = torch.tensor([0.9, 0.31, 0.1], dtype=torch.float32)
    assert torch.equal(as_grid(times, fs.VP(), None), times.double())
    table = fs.tabulate("ddim", fs.VP(), grid=times)
    assert [row.t for row in table.rows] == times.double().tolist()


def test_lists_and_arrays_keep_every_digit():
    for given in ([1.0, 0.3, 0.001], np.array([0.001, 0.3, 1.0])[::-1]):
        assert as_grid(given, fs.VP(), None).tolist() == [1.0, 0.3, 0.001]
    assert len(as_grid("uniform", fs.VP(), np.int64(5))) == 6


def test_a_function_is_a_grid():
    mine = lambda process, steps: torch.linspace(process.t_max, process.t_min, steps + 1) ** 2  # noqa: E731
    assert len(fs.tabulate("ddim", fs.VP(t_min=1e-3), grid=mine, steps=4).grid) == 5


def test_solvers_refuse_the_ends_they_cannot_reach():
    for solver in ("edm-sde", "deis-tab-2"):
        with pytest.raises(ValueError, match="alpha = 0"):
            fs.tabulate(solver, fs.Flow(), steps=4)
    with pytest.raises(ValueError, match="sigma = 0"):
        fs.tabulate(
            fs.RungeKutta(method="heun", form="data", clock="log-snr"), fs.EDM(sigma_min=0.0), grid="karras", steps=4
        )
    with pytest.raises(ValueError, match="knows nothing there"):
        fs.sample(fs.wrap(lambda x, t: x, fs.Flow(), "noise"), fs.Flow(), solver="ddim", steps=4, shape=(1, 2))
