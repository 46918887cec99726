"""Where the entries of each reference implementation belong: process, grid, solver and start state.

Deterministic methods only see the log-SNR, so a grid in sigma/alpha is put on the VP process (`t = 0` is sigma = 0)
or taken as the time of EDM. Reading sigma/alpha back from a time loses no digits on either: VP's inverse is written
without cancellation, EDM's time is sigma itself.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from golden_case import Case, FittedVP, LinearTable, RootVE, Unknown
from golden_diffusers import diffusers
from golden_drivers import ReverseMean, RoundedDPM
from golden_pndm import FloorTable, StepwisePNDM
from golden_quadrature import Sums
from golden_store import Entry, Store
from golden_times import ddpm_table, known, times, vp_time

from fewstep.process import CLD, EDM, VP, Discrete, Process
from fewstep.solver import (
    DDIM,
    PNDM,
    RK45,
    SEEDS,
    Ancestral,
    DPMAdaptive,
    DPMMultistep,
    DPMSolverV3,
    EDMHeun,
    FinalEuler,
    Multistep,
    RungeKutta,
    SDEMultistep,
    Singlestep,
    Solver,
    UniPC,
)
from fewstep.stats import Statistics

__all__ = ["place"]

RK = {
    "1euler": "euler",
    "2heun": "heun",
    "3kutta": "kutta3",
    "3heun": "heun3",
    "3ral": "ralston3",
    "3vdh": "van-der-houwen3",
    "3ssprk": "ssp3",
    "4rk": "rk4",
}
QUADRATURE = {"official": "left", "midpoint": "middle"}


def place(e: Entry) -> Case:
    """The case of an entry; NotYet and Unknown say why there is none."""
    places = {
        "LuChengTHU/dpm-solver": _dpm_solver,
        "wl-zhao/UniPC": _unipc,
        "qsh-zh/deis(th_deis)": _deis,
        "NVlabs/edm": _edm,
        "qsh-zh/gDDIM(CLD)": _cld,
        "crowsonkb/k-diffusion": _k_diffusion,
        "luping-liu/PNDM": _pndm,
        "yang-song/score_sde_pytorch": _score_sde,
        "thu-ml/DPM-Solver-v3": _v3,
    }
    if e.impl.startswith("diffusers/"):
        return diffusers(e, e.impl.removeprefix("diffusers/"))
    if e.impl not in places:
        raise Unknown(f"implementation {e.raw['impl']!r}")
    return places[e.impl](e)


def _scheduled(e: Entry) -> Process:
    """The process of the entries whose grid is in t."""
    return known(e.config["schedule"], {"vp_linear": VP(), "vp_discrete": Discrete()}, "schedule")


# --- dpm-solver and UniPC: everything in t, from 1 to t_end --------------------------------------------------------


def _dpm_solver(e: Entry) -> Case:
    c, p = e.config, _scheduled(e)
    form = known(c["algorithm_type"], {"dpmsolver": "noise", "dpmsolver++": "data"}, "algorithm_type")
    if c["method"] == "adaptive":
        known((c["solver_type"], c["denoise_to_zero"]), {("dpmsolver", False): True}, "adaptive options")
        driver = RoundedDPM(points=c["order"], form=form, rtol=c["rtol"], atol=c["atol"], norm="largest")
        return Case(f"dpm-solver adaptive {form}", p, driver, times([c["t_start"], c["t_end"]]), e.x_T)
    grid = times(e.grid("t"))
    if c["method"] in ("singlestep", "singlestep_fixed"):
        solver: Solver = DDIM()
        if c["order"] != 1:  # the stages lie on the inner points of the same skip_type
            grid = times([*e.grid("t_eval")[: e.raw["nfe"] - c["denoise_to_zero"]], e.grid("t")[-1]])
            kind = known(c["solver_type"], {"dpmsolver": "midpoint", "taylor": "heun"}, "solver_type")
            n, fixed = c["order"], c["method"] == "singlestep_fixed"
            orders = (n,) * ((len(grid) - 1) // n) if fixed else None
            solver = Singlestep(points=n, form=form, type=kind, stages="grid", orders=orders)
    elif c["method"] == "multistep":
        kind = known(c["solver_type"], {"dpmsolver": "midpoint", "taylor": "heun"}, "solver_type")
        ramp = c["lower_order_final"] and len(grid) - 1 < 10
        solver = DPMMultistep(points=c["order"], form=form, type=kind, final_ramp=ramp)
    else:
        raise Unknown(f"method {c['method']!r}")
    final = "denoise" if c["denoise_to_zero"] else "state"
    return Case(f"dpm-solver {c['method']} {form}", p, solver, grid, e.x_T, final=final)


def _unipc(e: Entry) -> Case:
    c, p, grid = e.config, _scheduled(e), times(e.grid("t"))
    form = known(c["algorithm_type"], {"noise_prediction": "noise", "data_prediction": "data"}, "algorithm_type")
    final = "denoise" if c.get("denoise_to_zero") else "state"
    if c["method"] != "multistep":
        raise Unknown(f"method {c['method']!r}")
    if c["variant"] == "vary_coeff":
        exact = Multistep(points=c["order"], form=form, corrector=True, final_ramp=c["lower_order_final"])
        case = Case(f"UniPC {form} vary_coeff", p, exact, grid, e.x_T, final=final)
        return case if c["order"] == 1 else case.faulty("vary_coeff from order 2 on")
    solver = UniPC(points=c["order"], form=form, b=c["variant"], final_ramp=c["lower_order_final"])
    return Case(f"UniPC {form} {c['variant']}", p, solver, grid, e.x_T, final=final)


def _v3(e: Entry) -> Case:
    c = e.config
    solver = DPMSolverV3(
        points=c["order"],
        statistics=_v3_statistics(e.store, e.d, trivial=c["degenerated"]),
        corrector=c["use_corrector"],
        predictor_pseudo=c["p_pseudo"],
        corrector_pseudo=c["c_pseudo"],
        final_ramp=c["lower_order_final"],
        rule="trapezoid",
    )
    label = "without statistics" if c["degenerated"] else "with statistics"
    return Case(f"DPM-Solver-v3 {label}", _scheduled(e), solver, times(e.grid("t")), e.x_T)


@lru_cache
def _v3_statistics(store: Store, d: int, *, trivial: bool) -> Statistics:
    l, s, b = (store.array(f"v3_stats/v3_{name}_d{d}") for name in ("l", "s", "b"))  # noqa: E741
    if trivial:
        l, s, b = torch.ones_like(l), torch.zeros_like(s), torch.zeros_like(b)  # noqa: E741
    return Statistics(log_snr=store.array("v3_stats/v3_lambda"), l=l, s=s, b=b)


def _score_sde(e: Entry) -> Case:
    c = e.config
    known((c["fn"], c["method"]), {("get_ode_sampler", "RK45"): True}, "sampler")
    driver = RK45(rtol=c["rtol"], atol=c["atol"], norm="batch")
    denoised = ((times([c["eps"], c["eps"] / 2]), ReverseMean()),) if c["denoise"] else ()
    case = Case("score_sde RK45", _scheduled(e), driver, times([1.0, c["eps"]]), e.x_T, more=denoised)
    return case if c["precision"] == "float64" else case.faulty("float32 right-hand side")


# --- DEIS and gDDIM ------------------------------------------------------------------------------------------------


def _deis(e: Entry) -> Case:
    c = e.config
    if c["schedule"] == "vp_discrete_deis":
        p: Process = LinearTable(alphas_cumprod=tuple(ddpm_table().tolist()))
    else:
        p = _scheduled(e)
    grid, method = times(e.grid("t")), c["method"]
    if method == "ipndm":
        return Case("DEIS ipndm", p, PNDM(start="ramp"), grid, e.x_T)
    if method == "rho_rk":
        solver: Solver = RungeKutta(method=known(c["rk_method"], RK, "rk_method"), form="noise", clock="rho")
        return Case("DEIS rhoRK", p, solver, grid, e.x_T)
    u = known(method, {"t_ab": "t", "rho_ab": "rho"}, "method")
    solver = Multistep(points=c["ab_order"] + 1, form="noise", clock=u)
    case = Case(f"DEIS {method}", p, solver, grid, e.x_T)
    crude = Sums(points=solver.points, clock=u, rule=known(c["quad"], QUADRATURE, "quad"))
    bends = " through a table" * (c["schedule"] == "vp_discrete_deis")
    return case.faulty(f"quadrature {c['quad']}{bends}", crude)


def _cld(e: Entry) -> Case:
    c = e.config
    p = CLD(
        beta=c["beta_0"],
        Gamma=2 / math.sqrt(c["m_inv"]),
        gamma=c["vv_gamma"],
        offset=c["numerical_eps"],
        t_max=c["T"],
        t_min=c["sampling_eps"],
    )
    if c["beta_1"]:
        raise Unknown("beta that changes in time")
    start = e.store.array(f"gddim_cld_extra/cld_uT_d{e.d}").transpose(1, 2)
    grid = times([*e.grid("t"), *[0.0] * c.get("denoising", False)])
    if c.get("is_em"):
        return Case("gDDIM CLD Euler", p, RungeKutta(method="euler", form="state", clock="t"), grid, start)
    points = known(
        c["sampler"], {"order0": 1, **dict.fromkeys(("deis", "ldeis"), c.get("deis_order", 0) + 1)}, "sampler"
    )
    root = "L" if c["sampler"] == "ldeis" else "R"
    solver: Solver = Multistep(points=points, form="noise", clock="t", root=root)
    count = 1000 if c["sampler"] == "order0" else 10000
    rule = known(c["quad"], QUADRATURE, "quad")
    ended = bool(c.get("denoising"))
    crude = Sums(points=points, clock="t", rule=rule, count=count, root=root, ended=ended)
    solver = FinalEuler(solver=solver) if ended else solver
    label = " with the Cholesky root" * (root == "L") + " and an Euler step at the end" * ended
    case = Case(f"gDDIM CLD{label}", p, solver, grid, start)
    return case.faulty(f"quadrature {c['quad']} of 2x2 matrices", crude)


# --- EDM and k-diffusion: time is sigma ----------------------------------------------------------------------------


def _edm(e: Entry) -> Case:
    c = e.config
    evaluated = e.grid("sigma_eval")
    if c["fn"] == "edm_sampler":
        n, r = c["num_steps"], 1 / c["rho"]
        low, high = c["sigma_min"] ** r, c["sigma_max"] ** r
        grid = times([(high + i / (n - 1) * (low - high)) ** (1 / r) for i in range(n)] + [0.0])
        solver = EDMHeun(
            churn=float(c["S_churn"]),
            churn_min=float(c.get("S_min", 0.0)),
            churn_max=float(c.get("S_max", math.inf)),
            noise=float(c.get("S_noise", 1.0)),
        )
        noise = None
        if c["S_churn"]:  # the reference draws in every step, ours in the steps that add noise
            noise = e.noise[:n][(grid[:-1] >= solver.churn_min) & (grid[:-1] <= solver.churn_max)]
        start = math.sqrt(("latents" in c) + c["sigma_max"] ** 2) * e.x_T
        return Case("EDM sampler" + " with churn" * bool(c["S_churn"]), EDM(), solver, grid, start, noise)
    if c["fn"] != "ablation_sampler" or c.get("S_churn"):
        raise Unknown(f"fn {c['fn']!r}")
    euler = known(c["solver"], {"euler": True, "heun": False}, "solver")
    sigmas = [*(evaluated if euler else evaluated[::2]), 0.0]
    method = "euler" if euler else known(c.get("alpha", 1), {1: "heun", 0.5: "midpoint", 2 / 3: "ralston"}, "alpha")
    kind = (c["schedule"], c["scaling"])
    if kind == ("linear", "none"):
        process: Process = EDM()
        grid, start = times(sigmas), sigmas[0] * e.x_T
    elif kind == ("ve", "none"):
        process, grid, start = RootVE(), times(sigmas) ** 2, sigmas[0] * e.x_T
    elif kind == ("vp", "vp"):
        process = _ablation_vp(c)
        grid = times([vp_time(process, s) for s in sigmas])
        start = math.sqrt(sigmas[0] ** 2 / (1 + sigmas[0] ** 2)) * e.x_T
    else:
        raise Unknown(f"schedule and scaling {kind}")
    return Case(f"EDM ablation {method}", process, RungeKutta(method=method, form="state", clock="t"), grid, start)


def _ablation_vp(c: dict[str, Any], eps: float = 1e-3) -> VP:
    """The VP schedule that the ablation sampler fits to its range of sigma."""
    if c["discretization"] == "vp" and "sigma_min" not in c:
        return VP()
    low = c.get("sigma_min", {"edm": 0.002, "iddpm": 0.002, "ve": 0.02}[c["discretization"]])
    high = c.get("sigma_max", {"edm": 80.0, "iddpm": 81.0, "ve": 100.0}[c["discretization"]])
    bottom, top = math.log1p(low**2), math.log1p(high**2)
    slope = 2 * (bottom / eps - top) / (eps - 1)
    return FittedVP(beta_min=top - slope / 2, beta_max=top + slope / 2)


def _k_diffusion(e: Entry) -> Case:
    c, name = e.config, e.config["sampler"]
    if name == "dpm_adaptive":
        pid = DPMAdaptive(points=c["order"], rtol=c["rtol"], atol=c["atol"], norm="batch", pid=(0.0, 1.0, 0.0))
        start = math.sqrt(_common(e) + c["sigma_max"] ** 2) * e.x_T
        return Case("k-diffusion dpm_adaptive", EDM(), pid, times([c["sigma_max"], c["sigma_min"]]), start)
    solvers: dict[str, Solver] = {
        "euler": RungeKutta(method="euler", form="noise", clock="rho"),
        "euler_ancestral(eta=0)": DDIM(),
        "euler_ancestral": Ancestral(),
        "dpm_2_ancestral": Ancestral(points=2, form="noise"),
        "dpmpp_2s_ancestral": Ancestral(points=2),
        "dpmpp_sde": SEEDS(type="midpoint", noises="separate"),  # the stored noise is drawn for each request
        "dpmpp_2m_sde(midpoint)": SDEMultistep(),
        "dpmpp_2m_sde(heun)": SDEMultistep(type="heun"),
        "dpmpp_3m_sde": SDEMultistep(points=3, type="heun"),
        "heun": EDMHeun(),
        "dpm_2": Singlestep(points=2, form="noise"),
        "dpm_2_ancestral(eta=0)": Singlestep(points=2, form="noise"),
        "dpmpp_2s_ancestral(eta=0)": Singlestep(points=2),
        "dpmpp_sde(eta=0)": Singlestep(points=2),
        "dpm_fast": Singlestep(points=3, form="noise", stages="grid"),
        "lms": Multistep(points=4, form="noise", clock="rho"),
        "lms(order=1)": Multistep(points=1, form="noise", clock="rho"),
        "lms(order=2)": Multistep(points=2, form="noise", clock="rho"),
        "lms(order=3)": Multistep(points=3, form="noise", clock="rho"),
        "dpmpp_2m": DPMMultistep(points=2, final_ramp=False),
        "dpmpp_2m_sde(eta=0,midpoint)": DPMMultistep(points=2, final_ramp=False),
        "dpmpp_2m_sde(eta=0,heun)": DPMMultistep(points=2, type="heun", final_ramp=False),
        "dpmpp_3m_sde(eta=0)": DPMMultistep(points=3, type="heun", final_ramp=False),
    }
    sigmas = e.grid("sigma")
    if name == "dpm_fast":
        sigmas = [*e.grid("sigma_eval"), sigmas[-1]]
    start = math.sqrt(_common(e) + c["sigma_max"] ** 2) * e.x_T
    noise = e.noise if e.raw.get("stochastic") else None
    return Case(f"k-diffusion {name}", EDM(), known(name, solvers, "sampler"), times(sigmas), start, noise)


def _common(e: Entry) -> int:
    """1 where the start is that of a VP problem in its VE form."""
    return known(e.raw["family"], {"edm": 0, "edm_to0": 0, "vp_common": 1, "vp_common_to0": 1}, "family")


def _pndm(e: Entry) -> Case:
    methods = {
        "DDIM": DDIM(),
        "S-PNDM": PNDM(points=2, start="heun"),
        "F-PNDM": PNDM(),
        "FON": StepwisePNDM(),
    }
    solver, table = known(e.config["method"], methods, "method"), tuple(ddpm_table().tolist())
    return Case(
        f"PNDM's {e.config['method']}",
        FloorTable(alphas_cumprod=table, ahead=1),
        solver,
        times(e.grid("t_index")),
        e.x_T,
    )
