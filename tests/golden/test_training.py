"""Objectives and targets against the golden numbers of training, by the functions that the methods use.

`tests/golden/training` says of every key what it is and how the reference made it; FEWSTEP_GOLDEN names a folder with
another `training`, or such a folder itself, which is held to as well. What is not built is in `NOT_BUILT`, with the
reason.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_store import HERE, OTHER
from golden_training import EDM, FLOW, PD, TRIG, VP, Golden, folders
from torch import Tensor

import fewstep as fs
from fewstep.process.predict import preconditioning
from fewstep.train.methods import consistency as cm, curvature, heads, recorded, scores, vdm
from fewstep.train.methods.base import Setting
from fewstep.train.methods.denoise import Flow
from fewstep.train.pairs import Batch, Draw
from fewstep.train.regression import DISTANCES, Regression, error, span, weigh
from fewstep.train.target import heun, jump

FLOAT32 = {"sid.loss_1.0", "sid.loss_1.2"}  # a grid constant of the reference
NOT_BUILT = {
    "cm.multistep": "our table noises data from sigma = 0; theirs x at sigma_min, by sqrt(sigma^2 - sigma_min^2)",
    "imf.guided_v": "guidance within mean flows is not built: distil a guided pair",
    "mf.guided_v": "guidance within mean flows is not built: distil a guided pair",
    "alphaflow.target_0.5": "alpha-flow is not built; recalled, not compared with code",
    "dsno.weights": "the file does not say at which process's times they are; ours are clamp(alpha / sigma, 1, 1e4)",
}


def kd(g: Golden, distance: str) -> Tensor:
    """Summed over a sample, the mean of the batch, at t = 1."""
    one = torch.ones(4, dtype=torch.float64)
    off = g.toy("student")(g.eps, one) - g.toy("teacher")(g.eps, one)
    return DISTANCES[distance](off, 0.0).mean() * off.shape[1]


def reconstruction(g: Golden) -> Tensor:
    levels = 2 * (torch.arange(256, dtype=torch.float64) + 0.5) / 256 - 1
    x, gamma = g["in.vdm.pixels"], g.monotone()(torch.zeros(1, dtype=torch.float64))
    return vdm.reconstruction(x, levels, levels[x] + torch.exp(gamma / 2) * g.eps, gamma)


class Normals(Draw):
    """A draw of times by given normals."""

    def uniform(self, name: str) -> Tensor:  # noqa: ARG002
        return torch.special.ndtr(-self.batch.x0)


def drawn(normals: Tensor) -> Tensor:
    """The times of the method's law on a range that leaves none out."""
    wide = fs.EDM(sigma_min=1e-12, sigma_max=1e12)
    return cm.EasyConsistency(even=0.0).objective(Setting(process=wide, size=8)).times(Normals(Batch(normals), 0)).t


def stepped(g: Golden) -> Tensor:
    """One step of GENIE's sampler with the exact derivative."""
    teacher, ends = g.student("teacher", VP, "noise"), []
    exact = fs.Differentiated(teacher, VP)
    for z, t in zip(VP.diffuse(g.x0, g.u, g.eps), g.u.tolist(), strict=True):
        end = fs.sample(exact, VP, solver="taylor-2", grid=[t, t - 0.04], x=z[None], final="state",
                        dtype=torch.float64, progress=False)  # fmt: skip
        ends.append(end)
    return torch.cat(ends)


Made = Callable[[Golden], Any]
MADE: dict[str, Made] = {
    "cm.karras40": lambda g: fs.GRIDS["karras"](EDM, 39),
    "cm.ct_N": lambda g: [cm.ct_count(int(k), 1000) for k in g["in.cm.k"]],
    "cm.ct_mu": lambda g: np.array([cm.ct_decay(int(n), 0.9) for n in g["cm.ct_N"]]),
    "cm.scalings": lambda g: torch.stack(
        [preconditioning("consistency", EDM, g["in.cm.sigmas"], 0.5)[i] for i in (1, 2, 0)]
    ),
    "cm.cd_x_r": lambda g: heun(EDM, g.student("teacher"), g.cm.z, g.cm.t, g.cm.u),
    "cm.cd_target": lambda g: g.consistent(),
    "cm.cd_l2": lambda g: g.cm_loss(g.consistent(), "l2"),
    "cm.cd_l1": lambda g: g.cm_loss(g.consistent(), "l1"),
    "cm.ct_l2": lambda g: g.cm_loss(g.consistent(taught=False), "l2"),
    "ict.Kprime": lambda g: cm.doubling(1000),
    "ict.N": lambda g: [cm.ict_count(int(k), 1000) for k in g["in.cm.k"]],
    "ict.p11": lambda g: cm.interval_chances(fs.GRIDS["karras"](EDM, 10).flip(0)),
    "ict.weight11": lambda g: (
        1 / span(EDM, *(fs.GRIDS["karras"](EDM, 10).flip(0)[i] for i in (slice(1, None), slice(10))))
    ),
    "ict.c": lambda g: np.float64(g.ict_objective.scale),
    "ict.loss": lambda g: g.ict_objective.loss(
        g.student("student", predicts="consistency"), g.ict, g.ict_objective.target(g.players(), g.ict)
    ),
    "ect.r": lambda g: torch.stack([cm.easy_r(g["in.ect.t"], stage) for stage in range(9)]),
    "ect.r_q256": lambda g: cm.easy_r(g["in.ect.t"], 0, 256.0),
    "ect.loss_c0": lambda g: g.ect_loss(0.0),
    "ect.loss_c006": lambda g: g.ect_loss(0.06),
    "scm.x_t": lambda g: g.scm("ct")["x_t"],
    "scm.df_dt": lambda g: g.scm("ct")["df_dt"],
    "pd.logsnr": lambda g: 2 * PD.log_snr(torch.arange(9, dtype=torch.float64) / 8),
    "pd.z_s": lambda g: jump(
        PD,
        z := jump(PD, g.pd.z, g.pd.t, g.pd.u, g.pd_student("teacher")(g.pd.z, g.pd.t)),
        g.pd.u,
        g.pd.s,
        g.pd_student("teacher")(z, g.pd.u),
    ),  # fmt: skip
    "pd.target_x": lambda g: g.pd_target("data"),
    "pd.target_eps": lambda g: g.pd_target("noise"),
    "pd.target_v": lambda g: g.pd_target("v"),
    "pd.loss_constant": lambda g: g.pd_loss("uniform"),
    "pd.loss_snr": lambda g: g.pd_loss("snr"),
    "pd.loss_snr_trunc": lambda g: g.pd_loss("truncated"),
    "pd.loss_v_mse": lambda g: g.pd_loss("1+snr"),
    "pd.sample4": lambda g: fs.sample(
        g.pd_student("student"),
        PD,
        solver="ddim",
        grid=[1.0, 0.75, 0.5, 0.25],
        x=g.eps,
        final="denoise",
        dtype=torch.float64,
        progress=False,
    ),  # fmt: skip
    "rf.loss": lambda g: (
        Flow()
        .objective(Setting(process=FLOW, size=8))
        .loss(g.student("student", FLOW, "flow"), g.point(FLOW, g.u, g.u, g.u), g.x0)
        * g.x0.shape[1]
    ),  # fmt: skip
    "mf.du_dt": lambda g: g.velocity_rate(),
    "mf.target": lambda g: g.mean_flow()[1],
    "mf.loss": lambda g: DISTANCES["l2"](g.mean_flow()[0] - g.mean_flow()[1], 0.0) * g.x0.shape[1],
    "mf.loss_adaptive": lambda g: DISTANCES["adaptive"](g.mean_flow()[0] - g.mean_flow()[1], 0.01),
    "imf.V": lambda g: (lambda u, goal, v: u + v - goal)(*g.mean_flow(own=True)),
    "imf.loss": lambda g: DISTANCES["l2"](g.mean_flow(own=True)[0] - g.mean_flow(own=True)[1], 0.0) * g.x0.shape[1],
    "dmd.grad": lambda g: scores.matching(*g.dmd[:3]),
    "dmd.loss": lambda g: scores.pseudo(g.dmd[0], scores.matching(*g.dmd[:3])).mean(),
    "dmd.fake_loss": lambda g: (
        lambda x, real, fake, s: (
            (error(g.student("fake"), EDM.diffuse(x, s, g.eps), s, s, x) ** 2).mean(1) * weigh("edm", EDM, s)
        ).mean()
    )(*g.dmd),  # fmt: skip
    "sid.loss_1.0": lambda g: scores.identity(*g.dmd[:3], 1.0),
    "sid.loss_1.2": lambda g: scores.identity(*g.dmd[:3], 1.2),
    "ctm.G": lambda g: (lambda t, s: jump(EDM, z := EDM.diffuse(g.x0, t, g.eps), t, s, g.ctm("student")(z, t, s)))(
        g["in.ctm.t"], g["in.ctm.s"]
    ),
    "w.x0_weights": lambda g: torch.stack(
        [
            weigh(name, EDM, torch.exp(-g["in.w.lambda"]), 0.5)
            for name in ("snr", "1+snr", "truncated", "min-snr", "edm", "flow")
        ]
    ),  # fmt: skip
    "fo.kl": lambda g: curvature.divergence(g["in.fo.mu"], g["in.fo.logvar"]).mean(),
    "genie.gamma": lambda g: heads.gamma(VP, g.u),
    "genie.deps_dgamma": lambda g: heads.noise_rate(
        VP, g.student("teacher", VP, "noise"), VP.diffuse(g.x0, g.u, g.eps), g.u
    ),
    "genie.head": lambda g: heads.assembled(tuple(g[f"in.genie.k{i}"] for i in (1, 2, 3)), g["genie.gamma"]),
    "genie.dt_dgamma": lambda g: 1 / heads.gamma_rate(VP, g.u),
    "genie.loss": lambda g: (
        heads.genie_loss(
            heads.assembled(tuple(g[f"in.genie.k{i}"] for i in (1, 2, 3)), g["genie.gamma"]) - g["genie.deps_dgamma"],
            g["genie.gamma"],
        )
        * g.x0.shape[1]
    ),
    "npr.target": lambda g: heads.variance_target(g.eps, g.toy("teacher")(g.x0, g.u), "npr"),
    "fo.loss_beta20": lambda g: g.curvature(),
    "rf.euler5": lambda g: g.euler(),
    "rf.straightness_sum": lambda g: recorded.straightness(g["rf.euler5"]),
    "rf.straightness": lambda g: recorded.straightness(g["rf.euler5"]) / g.x0.shape[1],
    "sc.target": lambda g: g.short().clamp(-4, 4),
    "gd.stage1_target": lambda g: g.guided(),
    "gd.stage1_loss": lambda g: (
        Regression(process=PD, weight="truncated").loss(g.pd_student("student"), g.pd, g.guided()) * g.x0.shape[1]
    ),
    "gd.stochastic": lambda g: g.stochastic(),
    "ctm.target": lambda g: g.trajectory(target=True),
    "ctm.estimate": lambda g: g.trajectory(target=False),
    "ect.t_drawn": lambda g: drawn(g["in.ect.tn"]),
    "genie.step": lambda g: stepped(g),
    "kd.l1": lambda g: kd(g, "l1"),
    "kd.l2": lambda g: kd(g, "l2"),
    "scm.ct.loss": lambda g: g.scm_loss("ct"),
    "scm.cd.loss": lambda g: g.scm_loss("cd"),
    "dsno.spectral": lambda g: g.spectral(),
    "scm.t": lambda g: TRIG.inverse_log_snr(-(1.4 * g["in.ect.tn"] - 1.0)),
    "vdm.dgamma": lambda g: g.bound(g.u)[1],
    "vdm.loss_inf": lambda g: vdm.diffusion(*g.bound(g.u)[1:]),
    "vdm.loss_T7": lambda g: (lambda t: vdm.finite(g.bound(t)[0], g.bound(t - 1 / 7)[0], g.bound(t)[2], 7))(
        torch.ceil(7 * g.u) / 7
    ),
    "vdm.loss_klz": lambda g: vdm.prior(g.x0, g.monotone()(torch.ones(1, dtype=torch.float64))),
    "vdm.loss_recon": lambda g: reconstruction(g),
    "vdm.sample_step": lambda g: (
        lambda t, s: vdm.ancestral(g.eps, g.toy("student")(g.eps, t.expand(4) / 20), t, s, g.eps2)
    )(*g.monotone()(torch.tensor([0.75, 0.5], dtype=torch.float64))),
    "sn.target": lambda g: heads.variance_target(g.eps, g.eps2, "sn"),
    "vdm.gamma": lambda g: g.monotone()(torch.linspace(0, 1, 5, dtype=torch.float64)),
}
MADE |= {
    f"scm.{which}.{part}": (lambda g, which=which, part=part: g.scm(which)[part])
    for which in ("ct", "cd")
    for part in ("dxdt", "F_jvp", "g", "g_r0.25", "g_norm", "g_norm_rms")
}


@cache
def golden(folder: Path) -> Golden:
    return Golden(folder)


def keys(folder: Path) -> list[str]:
    return [name for name in golden(folder).json["keys"] if not name.startswith("in.")]


def held(folder: Path, key: str) -> bool:
    """Whether a result is that of the reference."""
    wanted = golden(folder)[key].double()
    made = torch.as_tensor(MADE[key](golden(folder))).detach().double()
    assert made.shape == wanted.shape
    bound = 1e-6 if key in FLOAT32 else 1e-10
    return bool((made - wanted).abs().max() <= bound * wanted.abs().max())


FOLDERS = folders(OTHER)


@pytest.mark.parametrize(
    ("folder", "key"),
    [(folder, key) for folder in FOLDERS for key in keys(folder) if key not in NOT_BUILT],
    ids=lambda v: v if isinstance(v, str) else f"golden-{FOLDERS.index(v)}",
)
def test_a_result_is_that_of_the_reference(folder: Path, key: str) -> None:
    assert held(folder, key)


def test_what_is_not_built_says_why() -> None:
    known = set(keys(FOLDERS[0]))
    assert known == set(MADE) | set(NOT_BUILT)
    assert all(len(reason) > 20 for reason in NOT_BUILT.values())
    assert all(set(keys(folder)) <= known for folder in FOLDERS)


def test_another_folder_is_held_to_as_well(tmp_path: Path) -> None:
    other = tmp_path / "training"
    shutil.copytree(HERE / "training", other)
    own = [HERE / "training"]
    assert folders(tmp_path) == folders(other) == [*own, other]
    assert folders(None) == folders(HERE.parent) == own
    with np.load(other / "golden.npz") as file:
        numbers = dict(file)
    numbers["kd.l1"] = numbers["kd.l1"] * (1 + 1e-9)
    np.savez(other / "golden.npz", **numbers)
    assert not held(other, "kd.l1")
    assert held(other, "kd.l2")
