"""Solvers: how a step is taken. `SOLVERS` maps every name to a callable with working defaults.

`TABLES` are the solvers that write a table before the run; `DRIVERS` choose their steps while they run. `ALIASES` are
second names, by the name whose object they are: lists, sweeps and docs show each object once, with all its names.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from fewstep.solver.around.first_last import FinalEuler, FirstLast
from fewstep.solver.around.guided import CFGPlusPlus, ReverseMean, Splitting
from fewstep.solver.around.unic import UniC
from fewstep.solver.base import Promise, Solver
from fewstep.solver.config import NAMED
from fewstep.solver.default import Default
from fewstep.solver.driver.base import Driver, Outcome
from fewstep.solver.driver.corrected import LangevinCorrected
from fewstep.solver.driver.embedded import RK45, DPMAdaptive, GottaGoFast
from fewstep.solver.fitted import Fitted
from fewstep.solver.ode.dpm import DPMMultistep
from fewstep.solver.ode.exponential import Multistep
from fewstep.solver.ode.gaussian_split import GaussianSplit
from fewstep.solver.ode.pndm import PNDM, GradientEstimation, HeunPP
from fewstep.solver.ode.runge_kutta import EDMHeun, RungeKutta
from fewstep.solver.ode.singlestep import Singlestep
from fewstep.solver.ode.taylor import QuasiTaylor, StochasticQuasiTaylor, Taylor
from fewstep.solver.ode.unipc import UniPC
from fewstep.solver.ode.v3 import DPMSolverV3
from fewstep.solver.sde.analytic import Analytic, LearnedVariance
from fewstep.solver.sde.ancestral import DDIM, DDPM, LCM, Ancestral
from fewstep.solver.sde.er_sde import ERSDE
from fewstep.solver.sde.euler import SSCS, EulerMaruyama, ReverseDiffusion, StochasticHeun
from fewstep.solver.sde.langevin import AnnealedLangevin, PredictorCorrector
from fewstep.solver.sde.multistep import SASolver, SDEMultistep
from fewstep.solver.sde.restart import Restart
from fewstep.solver.sde.seeds import SEEDS

__all__ = [
    "ALIASES", "AnnealedLangevin", "CFGPlusPlus", "DDIM", "DDPM", "DEFAULT_SOLVERS", "DRIVERS", "Default", "ERSDE",
    "LCM", "SEEDS", "SOLVERS", "TABLES", "Ancestral", "Analytic", "RK45", "DPMAdaptive", "DPMMultistep", "DPMSolverV3",
    "Driver", "EDMHeun", "EulerMaruyama", "FinalEuler", "GaussianSplit", "GottaGoFast", "GradientEstimation",
    "FirstLast", "Fitted", "HeunPP", "LangevinCorrected", "LearnedVariance", "Multistep", "Outcome", "PNDM",
    "PredictorCorrector", "Promise", "QuasiTaylor", "ReverseDiffusion", "ReverseMean", "Restart", "RungeKutta",
    "SASolver", "SDEMultistep", "SSCS", "Singlestep", "Solver", "StochasticHeun", "Splitting", "StochasticQuasiTaylor",
    "Taylor", "UniC", "UniPC", "names"
]  # fmt: skip

# By kind of process; chosen by measurement, see docs/choosing.md and benchmarks/judge_default.py.
DEFAULT_SOLVERS = {"scalar": "default", "diagonal": "default", "block": "default"}

# A name in place of a callable is another name for what stands there.
_TABLES: dict[str, Callable[..., Solver] | str] = {
    "ddpm": DDPM,
    "ddpm-beta": partial(DDPM, variance="beta"),
    "resshift": partial(DDPM, carry="noise"),
    "momentum": partial(DDPM, carry="noise", variance="beta"),
    "ddim": DDIM,
    "dbim-1": "ddim",
    "analytic-ddpm": Analytic,
    "analytic-ddim": partial(Analytic, eta=0.0),
    "sn-ddpm": partial(LearnedVariance, head="sn"),
    "npr-ddpm": LearnedVariance,
    "dpm-solver-v3": DPMSolverV3,
    "default": Default,
    "gaussian-split": GaussianSplit,
    "gaussian-split-pc": partial(GaussianSplit, relax=0.0, ending=0),
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
    "dbim-2": partial(Multistep, points=2, final_ramp="last"),
    "dbim-3": partial(Multistep, points=3, final_ramp="last"),
    "deis-tab-1": partial(Multistep, points=2, form="noise", clock="t"),
    "deis-tab-2": partial(Multistep, points=3, form="noise", clock="t"),
    "deis-tab-3": partial(Multistep, points=4, form="noise", clock="t"),
    "dpmpp-2m": partial(DPMMultistep, points=2),
    "dpmpp-3m": partial(DPMMultistep, points=3),
    "dpmpp-3m-corrected": partial(DPMMultistep, points=3, corrected=True),
    "unipc-1": partial(UniPC, points=1),
    "unipc-2": partial(UniPC, points=2),
    "unipc-3": partial(UniPC, points=3),
    "unipc-bh1-1": partial(UniPC, points=1, b="bh1"),
    "unipc-bh1-2": partial(UniPC, points=2, b="bh1"),
    "unipc-bh1-3": partial(UniPC, points=3, b="bh1"),
    "unipc-v-1": partial(Multistep, points=1, corrector=True, final_ramp=True),
    "unipc-v-2": partial(Multistep, points=2, corrector=True, final_ramp=True),
    "unipc-v-3": partial(Multistep, points=3, corrector=True, final_ramp=True),
    "ddim-unic": UniC,
    "dpmpp-2m-unic": partial(UniC, predictor=DPMMultistep(points=2)),
    "pndm": PNDM,
    "s-pndm": partial(PNDM, points=2, start="heun"),
    "plms": partial(PNDM, points=4, start="heun"),
    "ipndm-1": partial(PNDM, points=1, start="ramp"),
    "ipndm-2": partial(PNDM, points=2, start="ramp"),
    "ipndm-3": partial(PNDM, points=3, start="ramp"),
    "ipndm-4": partial(PNDM, points=4, start="ramp"),
    "ipndm-v": partial(PNDM, points=4, start="ramp", weights="variable"),
    "gradient-estimation": GradientEstimation,
    "lms-1": partial(Multistep, points=1, form="noise", clock="rho"),
    "lms-2": partial(Multistep, points=2, form="noise", clock="rho"),
    "lms-3": partial(Multistep, points=3, form="noise", clock="rho"),
    "lms-4": partial(Multistep, points=4, form="noise", clock="rho"),
    "deis-tab-0": partial(Multistep, points=1, form="noise", clock="t"),
    "deis-rhoab-0": "lms-1",
    "deis-rhoab-1": "lms-2",
    "deis-rhoab-2": "lms-3",
    "deis-rhoab-3": "lms-4",
    "res-multistep": "multistep-2",
    "gddim-0": "deis-tab-0",
    "gddim-1": "deis-tab-1",
    "gddim-2": "deis-tab-2",
    "gddim-3": "deis-tab-3",
    "gddim-1-pc": partial(Multistep, points=2, form="noise", clock="t", corrector=True, restate=True),
    "gddim-2-pc": partial(Multistep, points=3, form="noise", clock="t", corrector=True, restate=True),
    "gddim-3-pc": partial(Multistep, points=4, form="noise", clock="t", corrector=True, restate=True),
    "l-deis-1": partial(Multistep, points=2, form="noise", clock="t", root="L"),
    "l-deis-2": partial(Multistep, points=3, form="noise", clock="t", root="L"),
    "dpm-solver-1": partial(Singlestep, points=1, form="noise"),
    "dpm-solver-2": partial(Singlestep, points=2, form="noise"),
    "dpm-solver-3": partial(Singlestep, points=3, form="noise"),
    "dpm-solver-fast": partial(Singlestep, points=3, form="noise", stages="grid"),
    "dpm-2": "dpm-solver-2",
    "dpmpp-2s": partial(Singlestep, points=2),
    "dpmpp-3s": partial(Singlestep, points=3),
    "res-2s": partial(Singlestep, points=2, type="heun"),
    "heunpp2": HeunPP,
    "deis-rhork-midpoint": "midpoint",
    "deis-rhork-heun": "heun",
    "deis-rhork-kutta3": partial(RungeKutta, method="kutta3"),
    "deis-rhork-rk4": "rk4",
    "euler-maruyama": EulerMaruyama,
    "reverse-diffusion": ReverseDiffusion,
    "annealed-langevin": AnnealedLangevin,
    "predictor-corrector-annealed": PredictorCorrector,
    "sscs": SSCS,
    "ltsp": partial(Splitting, inner=PNDM(points=4, start="ramp"), strang=False),
    "stsp": partial(Splitting, inner=RungeKutta()),
    "ddim-cfgpp": CFGPlusPlus,
    "euler-ancestral-cfgpp": partial(CFGPlusPlus, inner=DDIM(eta=1.0)),
    "dpmpp-2m-cfgpp": partial(CFGPlusPlus, inner=DPMMultistep(points=2)),
    "taylor-2": Taylor,
    "quasi-taylor-2": QuasiTaylor,
    "quasi-taylor-3": partial(QuasiTaylor, degree=3),
    "quasi-taylor-2-sde": StochasticQuasiTaylor,
    "quasi-taylor-3-sde": partial(StochasticQuasiTaylor, degree=3),
    "gddim-sde": partial(SDEMultistep, points=1),
    "dpmpp-sde": partial(SEEDS, type="midpoint"),
    "dpmpp-2m-sde": SDEMultistep,
    "dpmpp-2m-sde-heun": partial(SDEMultistep, type="heun"),
    "dpmpp-3m-sde": partial(SDEMultistep, points=3, type="heun"),
    "dpm-2m-sde": partial(SDEMultistep, form="noise"),
    "seeds-2": SEEDS,
    "seeds-3": partial(SEEDS, stages=3),
    "er-sde": ERSDE,
    "sa-solver": SASolver,
    "euler-ancestral": Ancestral,
    "euler-ancestral-flow": partial(Ancestral, down="flow"),
    "dpm-2-ancestral": partial(Ancestral, points=2, form="noise"),
    "dpm-2-ancestral-flow": partial(Ancestral, points=2, form="noise", down="flow"),
    "dpmpp-2s-ancestral": partial(Ancestral, points=2),
    "dpmpp-2s-ancestral-flow": partial(Ancestral, points=2, down="flow"),
    "restart": Restart,
    "lcm": LCM,
}

ALIASES = {name: entry for name, entry in _TABLES.items() if isinstance(entry, str)}
TABLES: dict[str, Callable[..., Solver]] = NAMED
TABLES.update({name: cast(Callable[..., Solver], _TABLES[ALIASES.get(name, name)]) for name in _TABLES})

DRIVERS: dict[str, Callable[..., Driver]] = {
    "rk45": RK45,
    "dpm-adaptive-12": partial(DPMAdaptive, points=2),
    "dpm-adaptive-23": partial(DPMAdaptive, points=3),
    "gotta-go-fast": GottaGoFast,
    "predictor-corrector": LangevinCorrected,
}

SOLVERS: dict[str, Callable[..., Any]] = {**TABLES, **DRIVERS}


def names(name: str) -> tuple[str, ...]:
    """All names of an object of the registry, that of its entry first."""
    first = ALIASES.get(name, name)
    return (first, *(other for other, entry in ALIASES.items() if entry == first))
