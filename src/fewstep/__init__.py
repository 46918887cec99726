"""Samples any trained diffusion or flow model in few steps: process -> grid -> solver -> table -> one loop.

Public names are imported on first use, so that `fewstep --help` needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fewstep.words import VERSION as __version__

if TYPE_CHECKING:
    import fewstep.bench as bench  # noqa: F401
    import fewstep.check as check  # noqa: F401
    import fewstep.denoiser.presets as presets  # noqa: F401
    import fewstep.manifold as manifold  # noqa: F401
    import fewstep.schroedinger as schroedinger  # noqa: F401
    import fewstep.stats as stats  # noqa: F401
    import fewstep.train as train  # noqa: F401
    from fewstep.data import cold as cold, degradation as degradation
    from fewstep.denoiser import (
        Bridged as Bridged,
        Counted as Counted,
        Dataset as Dataset,
        Denoiser as Denoiser,
        Differentiated as Differentiated,
        Gaussian as Gaussian,
        Guided as Guided,
        Mixture as Mixture,
        bridged as bridged,
        guide as guide,
        retime as retime,
        variance_head as variance_head,
        wrap as wrap,
    )
    from fewstep.denoiser.guidance import (
        APG as APG,
        DDNM as DDNM,
        AnyOf as AnyOf,
        ClassifierGuided as ClassifierGuided,
        Complement as Complement,
        Composed as Composed,
        Observation as Observation,
        Replacement as Replacement,
        Rescale as Rescale,
        Similarity as Similarity,
        Thresholded as Thresholded,
        conjunction as conjunction,
        disjunction as disjunction,
        dps as dps,
        negation as negation,
        pigdm as pigdm,
    )
    from fewstep.fitting import Descent as Descent, fit as fit
    from fewstep.fitting.search import gits as gits, klub as klub
    from fewstep.geometry import (
        Chain as Chain,
        Trajectory as Trajectory,
        boomerang as boomerang,
        decode as decode,
        denoising_mcmc as denoising_mcmc,
        encode as encode,
        jump as jump,
        likelihood_levels as likelihood_levels,
        slerp as slerp,
        trajectory as trajectory,
    )
    from fewstep.grid import GRIDS as GRIDS, flow_shift as flow_shift, to_zero as to_zero
    from fewstep.interop.load import load as load
    from fewstep.likelihood import (
        Bound as Bound,
        Likelihood as Likelihood,
        bits_per_dim as bits_per_dim,
        dequantise as dequantise,
        elbo as elbo,
        log_prob as log_prob,
        marginal_log_prob as marginal_log_prob,
    )
    from fewstep.loop import (
        Parallel as Parallel,
        Standing as Standing,
        sample as sample,
        solve as solve,
        tabulate as tabulate,
    )
    from fewstep.model import Model as Model
    from fewstep.noise import Noise as Noise
    from fewstep.pace import Pace as Pace
    from fewstep.process import (
        BRIDGES as BRIDGES,
        CLD as CLD,
        DDBMVE as DDBMVE,
        DDBMVP as DDBMVP,
        EDM as EDM,
        GOUB as GOUB,
        I2SB as I2SB,
        IRSDE as IRSDE,
        PROCESSES as PROCESSES,
        VE as VE,
        VP as VP,
        Blurring as Blurring,
        Bridge as Bridge,
        Cosine as Cosine,
        Discrete as Discrete,
        Flow as Flow,
        HeatDissipation as HeatDissipation,
        InDI as InDI,
        Interpolant as Interpolant,
        Masking as Masking,
        Process as Process,
        ResShift as ResShift,
        ScalarProcess as ScalarProcess,
        SubVP as SubVP,
        UniDB as UniDB,
        VEBlur as VEBlur,
    )
    from fewstep.solver import (
        DDIM as DDIM,
        DDPM as DDPM,
        DEFAULT_SOLVERS as DEFAULT_SOLVERS,
        DRIVERS as DRIVERS,
        ERSDE as ERSDE,
        LCM as LCM,
        PNDM as PNDM,
        RK45 as RK45,
        SEEDS as SEEDS,
        SOLVERS as SOLVERS,
        SSCS as SSCS,
        TABLES as TABLES,
        Analytic as Analytic,
        Ancestral as Ancestral,
        AnnealedLangevin as AnnealedLangevin,
        CFGPlusPlus as CFGPlusPlus,
        Default as Default,
        DPMAdaptive as DPMAdaptive,
        DPMMultistep as DPMMultistep,
        DPMSolverV3 as DPMSolverV3,
        Driver as Driver,
        EDMHeun as EDMHeun,
        EulerMaruyama as EulerMaruyama,
        FinalEuler as FinalEuler,
        FirstLast as FirstLast,
        Fitted as Fitted,
        GaussianSplit as GaussianSplit,
        GottaGoFast as GottaGoFast,
        GradientEstimation as GradientEstimation,
        HeunPP as HeunPP,
        LangevinCorrected as LangevinCorrected,
        LearnedVariance as LearnedVariance,
        Multistep as Multistep,
        Outcome as Outcome,
        PredictorCorrector as PredictorCorrector,
        Promise as Promise,
        QuasiTaylor as QuasiTaylor,
        Restart as Restart,
        ReverseDiffusion as ReverseDiffusion,
        ReverseMean as ReverseMean,
        RungeKutta as RungeKutta,
        SASolver as SASolver,
        SDEMultistep as SDEMultistep,
        Singlestep as Singlestep,
        Solver as Solver,
        Splitting as Splitting,
        StochasticHeun as StochasticHeun,
        StochasticQuasiTaylor as StochasticQuasiTaylor,
        Taylor as Taylor,
        UniC as UniC,
        UniPC as UniPC,
    )
    from fewstep.solver.config import Tableau as Tableau
    from fewstep.stats import (
        Statistics as Statistics,
        analytic_grid as analytic_grid,
        check_prediction as check_prediction,
    )


# Every public name, behind the module it lives in; a test holds this table and the imports above to be equal.
_HOME = {
    "fewstep.data": "cold degradation",
    "fewstep.denoiser": """
        Bridged Counted Dataset Denoiser Differentiated Gaussian Guided Mixture bridged guide retime
        variance_head wrap
    """,
    "fewstep.denoiser.guidance": """
        APG DDNM AnyOf ClassifierGuided Complement Composed Observation Replacement Rescale Similarity
        Thresholded conjunction disjunction dps negation pigdm
    """,
    "fewstep.fitting": "Descent fit",
    "fewstep.fitting.search": "gits klub",
    "fewstep.geometry": """
        Chain Trajectory boomerang decode denoising_mcmc encode jump likelihood_levels slerp trajectory
    """,
    "fewstep.grid": "GRIDS flow_shift to_zero",
    "fewstep.interop.load": "load",
    "fewstep.likelihood": "Bound Likelihood bits_per_dim dequantise elbo log_prob marginal_log_prob",
    "fewstep.loop": "Parallel Standing sample solve tabulate",
    "fewstep.model": "Model",
    "fewstep.noise": "Noise",
    "fewstep.pace": "Pace",
    "fewstep.process": """
        BRIDGES CLD DDBMVE DDBMVP EDM GOUB I2SB IRSDE PROCESSES VE VP Blurring Bridge Cosine Discrete Flow
        HeatDissipation InDI Interpolant Masking Process ResShift ScalarProcess SubVP UniDB VEBlur
    """,
    "fewstep.solver": """
        DDIM DDPM DEFAULT_SOLVERS DRIVERS ERSDE LCM PNDM RK45 SEEDS SOLVERS SSCS TABLES Analytic Ancestral
        AnnealedLangevin CFGPlusPlus Default DPMAdaptive DPMMultistep DPMSolverV3 Driver EDMHeun EulerMaruyama
        FinalEuler FirstLast Fitted GaussianSplit GottaGoFast GradientEstimation HeunPP LangevinCorrected
        LearnedVariance Multistep Outcome PredictorCorrector Promise QuasiTaylor Restart ReverseDiffusion
        ReverseMean RungeKutta SASolver SDEMultistep Singlestep Solver Splitting StochasticHeun
        StochasticQuasiTaylor Taylor UniC UniPC
    """,
    "fewstep.solver.config": "Tableau",
    "fewstep.stats": "Statistics analytic_grid check_prediction",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}
# Modules that are public as a whole; `train` can be called, too.
_ROOMS = {
    "presets": "fewstep.denoiser.presets",
    **{name: f"fewstep.{name}" for name in ("bench", "check", "manifold", "schroedinger", "stats", "train")},
}

__all__ = ["__version__", *_MODULE]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Finds a public name in its module the first time it is asked for."""
    if name in _ROOMS:
        return import_module(_ROOMS[name])
    if name not in _MODULE:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}; fewstep.__all__ lists what it has")
    value = getattr(import_module(_MODULE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
