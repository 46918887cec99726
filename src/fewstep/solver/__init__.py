"""Solvers: how a step is taken. `SOLVERS` maps every name to a callable with working defaults."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fewstep.solver.ancestral import DDIM, DDPM
from fewstep.solver.base import Solver
from fewstep.solver.dpm import DPMMultistep
from fewstep.solver.exponential import Multistep
from fewstep.solver.runge_kutta import EDMHeun, RungeKutta
from fewstep.solver.unipc import UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "DEFAULT_SOLVERS",
    "SOLVERS",
    "DPMMultistep",
    "EDMHeun",
    "Multistep",
    "RungeKutta",
    "Solver",
    "UniPC",
]

# By kind of process; chosen by measurement, see docs/choosing.md and benchmarks/default_solver.py.
DEFAULT_SOLVERS = {"scalar": "unipc-3", "diagonal": "deis-tab-2", "block": "deis-tab-2"}

SOLVERS: dict[str, Callable[..., Solver]] = {
    "ddpm": DDPM,
    "ddpm-beta": partial(DDPM, variance="beta"),
    "ddim": DDIM,
    "euler": partial(RungeKutta, method="euler", form="state", clock="t"),
    "heun": partial(RungeKutta, method="heun"),
    "midpoint": partial(RungeKutta, method="midpoint"),
    "rk4": partial(RungeKutta, method="rk4"),
    "edm": EDMHeun,
    "edm-sde": partial(EDMHeun, churn=40.0, churn_min=0.05, churn_max=50.0, noise=1.003),
    "multistep-1": partial(Multistep, points=1),
    "multistep-2": partial(Multistep, points=2),
    "multistep-3": partial(Multistep, points=3),
    "multistep-pc-2": partial(Multistep, points=2, corrector=True),
    "multistep-pc-3": partial(Multistep, points=3, corrector=True),
    "deis-tab-1": partial(Multistep, points=2, form="noise", clock="t"),
    "deis-tab-2": partial(Multistep, points=3, form="noise", clock="t"),
    "deis-tab-3": partial(Multistep, points=4, form="noise", clock="t"),
    "dpmpp-2m": partial(DPMMultistep, points=2),
    "dpmpp-3m": partial(DPMMultistep, points=3),
    "dpmpp-3m-corrected": partial(DPMMultistep, points=3, corrected=True),
    "unipc-1": partial(UniPC, points=1),
    "unipc-2": partial(UniPC, points=2),
    "unipc-3": partial(UniPC, points=3),
}
