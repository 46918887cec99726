"""Where the entries of diffusers' schedulers belong: process, sigmas, solver, and what their last steps do."""

from __future__ import annotations

import math
from typing import Any

import torch
from golden_case import Case, NotYet, Unknown
from golden_pndm import FloorTable, Overlapping
from golden_sde import FlippedBend
from golden_store import Entry
from golden_times import ddpm_table, from_alphas, known, times, vp_time
from torch import Tensor

from fewstep.process import EDM, VP, Flow, Process
from fewstep.solver import DDIM, DDPM, PNDM, DPMMultistep, EDMHeun, Multistep, SDEMultistep, Singlestep, Solver, UniPC

__all__ = ["diffusers"]


def diffusers(e: Entry, name: str) -> Case:
    if name == "DDIMScheduler":
        return _ddim(e)
    if name == "PNDMScheduler":
        return _pndm(e)
    p, sigmas, start = _grid(e)
    c, n = e.config, len(sigmas) - 1
    repeated = n > 1 and math.isclose(sigmas[-1], sigmas[-2], rel_tol=1e-10)
    if name == "HeunDiscreteScheduler":
        sigmas, repeated = [s for i, s in enumerate(sigmas) if i == 0 or s != sigmas[i - 1]], False
    noise = e.noise if e.raw.get("stochastic") else None
    ramp = c.get("lower_order_final", True) and n < 15
    if name in ("EulerDiscreteScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"):
        solver: Solver = DDIM()
    elif name == "HeunDiscreteScheduler":
        solver = EDMHeun()
    elif name == "LMSDiscreteScheduler":
        solver = Multistep(points=4, form="noise", clock="rho")
    elif name == "DEISMultistepScheduler":
        solver = Multistep(points=c["solver_order"], form="noise", clock="log-snr", final_ramp=ramp)
    elif name == "UniPCMultistepScheduler":
        solver = UniPC(
            points=c.get("solver_order", 2),
            form="data" if c.get("predict_x0", True) else "noise",
            b=c.get("solver_type", "bh2"),
            corrector=known(c.get("disable_corrector", ""), {"": True, "all": False}, "disable_corrector"),
            final_ramp=c.get("lower_order_final", True),
        )
    elif name in ("DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler"):
        solver = _dpm(c, ramp=ramp)
    elif name == "DPMSolverSinglestepScheduler":
        form = known(c["algorithm_type"], {"dpmsolver++": "data", "dpmsolver": "noise"}, "algorithm_type")
        kind, order = c["solver_type"], c["solver_order"]
        orders = (2,) * (n // 2 - 1) + (1, 1) if order == 2 and n % 2 == 0 else None  # lower_order_final
        inner = "midpoint" if kind == "midpoint" else "linear"
        solver = Singlestep(points=order, form=form, type=kind, stages="grid", orders=orders, inner=inner)
        repeated = False  # the last interval is part of a step of order 2, or does nothing
    else:
        raise Unknown(f"implementation {e.raw['impl']!r}")
    if repeated:  # the step in between has no length: the end only tells the solver that a step follows
        sigmas = [*sigmas[:-1], sigmas[-1] / 2]
    grid = times(sigmas) if isinstance(p, EDM | Flow) else times([vp_time(p, s) for s in sigmas])
    case = Case(name, p, solver, grid, start, noise, cut=repeated)
    if not e.finite:
        return case.faulty("not finite")
    if isinstance(solver, FlippedBend):
        return case.faulty("sign in sde-dpmsolver++ of order 3")
    return case.faulty("repeated last sigma") if repeated else case


def _dpm(c: dict[str, Any], *, ramp: bool) -> Solver:
    form = {"dpmsolver++": "data", "dpmsolver": "noise"}
    kind, order = c["algorithm_type"], c.get("solver_order", 2)
    if kind == "sde-dpmsolver++" and order == 1:
        return DDPM()
    if kind in ("sde-dpmsolver++", "sde-dpmsolver"):
        form, make = "data" if kind == "sde-dpmsolver++" else "noise", FlippedBend if order == 3 else SDEMultistep
        return make(points=order, form=form, type=c.get("solver_type", "midpoint"), final_ramp=ramp)
    return DPMMultistep(
        points=order, form=known(kind, form, "algorithm_type"), type=c.get("solver_type", "midpoint"), final_ramp=ramp
    )


def _grid(e: Entry) -> tuple[Process, list[float], Tensor]:
    """Process, sigmas as they are stored, and the start state."""
    sigmas, family = e.grid("sigmas"), e.raw["family"]
    if family == "flow":
        return Flow(), sigmas, e.x_T
    if family == "diffusers_sigma":
        return VP(), sigmas, e.x_T
    if family == "edm_diffusers":
        return EDM(), sigmas, math.sqrt(1 + sigmas[0] ** 2) * e.x_T  # init_noise_sigma of these schedulers
    if family == "diffusers_ve":
        leading = e.config.get("timestep_spacing") == "leading"
        return EDM(), sigmas, math.sqrt(leading + sigmas[0] ** 2) * e.x_T
    raise Unknown(f"family {family!r}")


def _ddim(e: Entry) -> Case:
    c, steps = e.config, e.grid("timesteps")
    table, p = ddpm_table().tolist(), VP()
    last = 1.0 if c["set_alpha_to_one"] else table[0]
    if c["clip_sample"]:
        raise NotYet("clipped predictions")
    eta = float(c["eta"])
    pairs = [(int(t), int(t) - len(table) // c["n_steps"]) for t in steps]
    squares = [(table[t], table[s] if s >= 0 else last) for t, s in pairs]
    runs = [(from_alphas(p, list(pair)), DDIM(eta=eta)) for pair in squares if pair[0] < pair[1]]
    chained = any(s != t for (_, s), (t, _) in zip(pairs[:-1], pairs[1:], strict=True))
    noise = e.noise if eta else None
    if chained:
        case = Case("DDIMScheduler", p, DDIM(eta=eta), runs[0][0], e.x_T, noise, more=tuple(runs[1:]))
        return case.faulty("a step lands beside the next time")
    grid = torch.cat([runs[0][0][:1], *(g[1:] for g, _ in runs)])
    return Case("DDIMScheduler", p, DDIM(eta=eta), grid, e.x_T, noise)


def _pndm(e: Entry) -> Case:
    """Between indices, index -1 being the first; a last step from index 0 does nothing and is left out."""
    c, calls = e.config, e.grid("timesteps")
    p, step = FloorTable(alphas_cumprod=tuple(ddpm_table().tolist())), 1000 // c["n_steps"]
    prk = not c["skip_prk_steps"]
    indices = calls[0:12:4] + calls[12:] if prk else calls[:1] + calls[2:]
    indices = [*indices, -1.0] if indices[-1] > 0 else indices
    uneven = any(t - s != step for t, s in zip(indices[:-2], indices[1:-1], strict=True))
    if uneven or (prk and step % 2):
        solver: Solver = Overlapping(times=tuple(calls), step=step, runge_kutta=prk)
        return Case("PNDMScheduler", p, solver, times(calls[:1] + calls[-1:]), e.x_T).faulty(
            "a step lands beside the next time"
        )
    solver = PNDM(start="runge-kutta" if prk else "heun")
    return Case("PNDMScheduler", p, solver, times(indices), e.x_T)
