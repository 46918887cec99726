"""The golden numbers of training, and what several results are made of, by the functions that the methods use.

A toy network N(x, t, r) = (A0 + t A1 + r A2) x + b0 + t b1 + sin(t) b2 + r b3 is student, teacher, average, fake score
and unconditional teacher.
"""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_store import HERE
from torch import Tensor, nn

import fewstep as fs
from fewstep.nets import Temporal
from fewstep.process import ScalarProcess
from fewstep.train.methods import consistency as cm, curvature, guided, two_times, vdm
from fewstep.train.methods.base import Setting
from fewstep.train.methods.progressive import Halved
from fewstep.train.pairs import Batch
from fewstep.train.player import Player, Players, Student
from fewstep.train.regression import Regression
from fewstep.train.target import Point, averaged, jump, push, shortened

__all__ = ["EDM", "FLOW", "PD", "TRIG", "VP", "Golden", "folders"]

EDM, FLOW, VP = fs.EDM(), fs.Flow(), fs.VP()


def folders(other: str | Path | None) -> list[Path]:
    """This folder's numbers of training, and those of another folder: itself, or its `training`."""
    found = [HERE / "training"]
    if other:
        root = HERE.parents[1] / other
        found += [path for path in (root / "training", root) if (path / "golden.npz").is_file()][:1]
    return [path for path in found if _of_training(path)]


def _of_training(folder: Path) -> bool:
    return any(name.startswith("in.cm.") for name in described(folder).get("keys", ()))


def described(folder: Path) -> dict[str, Any]:
    """What the json of a folder says."""
    packed, plain = folder / "golden.json.gz", folder / "golden.json"
    return json.loads(gzip.decompress(packed.read_bytes()) if packed.is_file() else plain.read_bytes())


class Toy(nn.Module):
    """The network of the json's note."""

    def __init__(self, arrays: dict[str, Tensor], who: str) -> None:
        super().__init__()
        for name in ("A0", "A1", "A2", "b0", "b1", "b2", "b3"):
            self.register_parameter(name, nn.Parameter(arrays[f"in.{who}.{name}"].clone()))

    def forward(self, x: Tensor, t: Tensor, r: Tensor | None = None, **_: Any) -> Tensor:
        t = t[:, None]
        r = torch.zeros_like(t) if r is None else r[:, None]
        maps = x @ self.A0.T + t * (x @ self.A1.T) + r * (x @ self.A2.T)
        return maps + self.b0 + t * self.b1 + t.sin() * self.b2 + r * self.b3


@dataclass(frozen=True, kw_only=True)
class Tangent(ScalarProcess):
    """Progressive distillation's cosine: log-SNR -2 ln tan(a u + b) from 20 to -20."""

    t_max: float = 1.0
    t_min: float = 0.0

    def _lam(self, t: Tensor) -> Tensor:
        b = math.atan(math.exp(-10))
        return -torch.log(torch.tan((math.atan(math.exp(10)) - b) * t + b))

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(2 * self._lam(t)).sqrt()

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-2 * self._lam(t)).sqrt()

    def _inverse_log_snr(self, lam: Tensor) -> Tensor:
        b = math.atan(math.exp(-10))
        return (torch.atan(torch.exp(-lam)) - b) / (math.atan(math.exp(10)) - b)


@dataclass(frozen=True, kw_only=True)
class Trig(ScalarProcess):
    """TrigFlow: cos t x0 + sin t sd eps."""

    sd: float = 0.5
    t_max: float = 1.5
    t_min: float = 1e-3

    @property
    def domain(self) -> tuple[float, float]:
        return (0.0, math.pi / 2)

    def _alpha(self, t: Tensor) -> Tensor:
        return t.cos()

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sd * t.sin()

    def _inverse_log_snr(self, lam: Tensor) -> Tensor:
        return torch.atan(torch.exp(-lam) / self.sd)


PD, TRIG = Tangent(), Trig()


class Golden:
    """The arrays, and what several results are made of."""

    def __init__(self, folder: Path) -> None:
        self.json = described(folder)
        with np.load(folder / "golden.npz") as file:
            self.arrays = {name: torch.from_numpy(np.array(file[name])) for name in file.files}
        self.x0, self.eps, self.eps2, self.u = (self[f"in.{name}"] for name in ("x0", "eps", "eps2", "u"))
        self.karras = fs.GRIDS["karras"](EDM, 17)

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    @cache  # noqa: B019 - one object
    def toy(self, who: str) -> Toy:
        return Toy(self.arrays, who)

    def student(self, who: str, process: fs.Process = EDM, predicts: str = "edm", **options: Any) -> Student:
        options = {"time": "log-sigma/4" if process == EDM else "t", **options}
        return Student(net=self.toy(who), process=process, predicts=predicts, **options)

    def players(self, predicts: str = "consistency") -> Players:
        """Student and average by `predicts`; the teacher of EDM's preconditioning."""

        def reads(net: Any, batch: Batch) -> Student:  # noqa: ARG001
            return Student(net=net, process=EDM, predicts=predicts, time="log-sigma/4")

        net = Player(self.toy("student"), reads)
        net.averages["target"] = self.toy("ema")
        teacher = self.student("teacher")
        return Players({"net": net}, lambda batch, conditional: teacher)

    def point(self, process: fs.Process, t: Tensor, u: Tensor, s: Tensor, last: Any = False) -> Point:
        z = process.diffuse(self.x0, t, self.eps)
        return Point(process, Batch(self.x0), z, t, u, s, torch.as_tensor(last).expand(len(t)), self.x0, self.eps)

    @cached_property
    def cm(self) -> Point:
        """Neighbours of the grid of 18."""
        i = self["in.cm.idx"]
        return self.point(EDM, self.karras[i], self.karras[i + 1], self.karras[-1].expand(len(i)), i + 2 == 18)

    @cached_property
    def ict(self) -> Point:
        """Neighbours of the grid of 11, ascending."""
        i, grid = self["in.ict.idx"], fs.GRIDS["karras"](EDM, 10).flip(0)
        return self.point(EDM, grid[i + 1], grid[i], grid[0].expand(len(i)), i == 0)

    @cached_property
    def ect(self) -> Point:
        """Stage 3."""
        t = (2 * self["in.ect.tn"] - 1.1).exp()
        return self.point(EDM, t, cm.easy_r(t, 3), torch.zeros_like(t))

    @cached_property
    def pd(self) -> Point:
        i = self["in.pd.i"]
        u = (i.double() + 1) / 4
        return self.point(PD, u, u - 1 / 8, u - 1 / 4, i == 0)

    def pd_student(self, who: str, predicts: str = "v", process: fs.Process = PD) -> Student:
        return self.student(who, process, predicts, time=lambda t: 2 * process.log_snr(t) / 20)

    def pd_target(self, predicts: str = "v") -> Tensor:
        players = Players({}, lambda batch, conditional: self.pd_student("teacher"))
        x = Halved()(players, self.pd)
        return x if predicts == "data" else self.pd_student("student", predicts).unread(self.pd.z, self.pd.t, x)

    def pd_loss(self, weight: str) -> Tensor:
        return Regression(process=PD, weight=weight).loss(self.pd_student("student"), self.pd, self.pd_target("data"))

    def consistent(self, *, taught: bool = True, carrier: str | None = "target") -> Tensor:
        return cm.Consistent(taught, carrier)(self.players(), self.cm)

    def cm_loss(self, goal: Tensor, distance: str) -> Tensor:
        regression = Regression(process=EDM, weight="uniform", distance=distance)
        return regression.loss(self.student("student", predicts="consistency"), self.cm, goal)

    def ect_loss(self, scale: float) -> Tensor:
        goal = cm.Consistent(taught=False, carrier=None)(self.players("edm"), self.ect)
        regression = Regression(
            process=EDM, weight="uniform", distance="huber" if scale else "norm", scale=scale, span=True
        )
        return regression.loss(self.student("student"), self.ect, goal)

    @cached_property
    def ict_objective(self) -> Regression:
        return cm.ImprovedConsistency().objective(Setting(process=EDM, size=self.x0.shape[1]))

    def scm(self, which: str) -> dict[str, Tensor]:
        """The tangent and its parts, along data ("ct") or a teacher ("cd")."""
        t = self["scm.t"]
        x = TRIG.diffuse(self.x0, t, self.eps)
        c, s = t.cos()[:, None], t.sin()[:, None]
        student, teacher = self.toy("student"), self.toy("teacher")
        d = self.x0 if which == "ct" else c * x - s * 0.5 * teacher(x / 0.5, t)
        f, rate = push(TRIG, lambda z, t, s: student(z / 0.5, t), x, t, t, d)
        rate, x_rate = c * s * rate, (c * x - d) / s
        g = two_times.tangent(x, t, f, rate, x_rate, 0.5)
        return {"x_t": x, "dxdt": x_rate, "F_jvp": rate, "g": g, "df_dt": g / c,
                "g_r0.25": two_times.tangent(x, t, f, rate, x_rate, 0.5, 0.25),
                "g_norm": two_times.normalised(g), "g_norm_rms": two_times.normalised(g, rms=True)}  # fmt: skip

    def scm_loss(self, which: str) -> Tensor:
        """The adaptive loss at F = F_minus, where it is the tangent's alone; the reference divides by D twice."""
        g, t = self.scm(which)["g_norm_rms"], self["scm.t"]
        return two_times.adaptive(g, 1 / (0.5 * t.tan() * g.shape[1]), -self[f"in.scm.{which}.logvar"])

    def spectral(self) -> Tensor:
        mixing = Temporal(8, 2)
        mixing.real.data, mixing.imaginary.data = self["in.dsno.W_re"], self["in.dsno.W_im"]
        return mixing(self["in.dsno.h"])

    def mean_flow(self, *, own: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """The network's average velocity, its target, and the conditional velocity."""
        t, s, toy = self["in.mf.t"], self["in.mf.r"], self.toy("student")
        z, v = FLOW.diffuse(self.x0, t, self.eps), self.eps - self.x0
        student = Student(net=lambda x, t, s: toy(x, t, t - s), process=FLOW, predicts="flow", destination=True)
        along = z - t[:, None] * self.toy("teacher")(z, t) if own else self.x0
        g, rate = push(FLOW, student, z, t, s, along)
        target = averaged(FLOW, g, rate, t, s, self.x0, along)
        return student.raw(z, t, s), student.unread(z, t, target), v

    def velocity_rate(self) -> Tensor:
        """Du/dt along the conditional velocity."""
        t, s, toy = self["in.mf.t"], self["in.mf.r"], self.toy("student")
        return push(FLOW, lambda z, t, s: toy(z, t, t - s), FLOW.diffuse(self.x0, t, self.eps), t, s, self.x0)[1]

    @cached_property
    def dmd(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, D_real, D_fake, sigma."""
        x, sigma = self["in.dmd.x_gen"], self["in.dmd.sigma"]
        z = EDM.diffuse(x, sigma, self.eps)
        return x, self.student("teacher")(z, sigma), self.student("fake")(z, sigma), sigma

    def ctm(self, who: str) -> Student:
        return self.student(who, destination=True)

    def monotone(self) -> vdm.Monotone:
        net = vdm.Monotone(16)
        for name, key in (("w2", "l2k"), ("b2", "l2b"), ("w3", "l3k")):
            getattr(net, name).data = self[f"in.vdm.{key}"].flatten().clone()
        net.w1.data, net.b1.data = (torch.tensor(v, dtype=torch.float64) for v in (18.3, -13.3))
        return net

    def bound(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gamma, gamma' and the error of the noise at shares u."""
        u = u.clone().requires_grad_()
        gamma = self.monotone()(u)
        (rate,) = torch.autograd.grad(gamma.sum(), u)
        z = PD.diffuse(self.x0, t := PD.inverse_log_snr(-gamma.detach() / 2), self.eps)
        student = self.student("student", PD, "noise", time=lambda t: gamma.detach() / 20)
        return gamma.detach(), rate, self.eps - student.raw(z, t, t)

    def euler(self) -> Tensor:
        """The states of five Euler steps."""
        path: list[Tensor] = []
        student = self.student("student", FLOW, "flow")
        options = {"solver": "ddim", "steps": 5, "grid": "uniform", "x": self.eps, "dtype": torch.float64}
        last = fs.sample(student, FLOW, progress=False, callback=lambda k, t, z, x0: path.append(z.clone()), **options)
        return torch.stack([*path, last])

    def short(self) -> Tensor:
        """The velocity of a shortcut, data - noise; the reference's path begins 1e-5 short of the noise."""
        t, net = self["in.sc.t"], self.toy("ema")
        z = (1 - t)[:, None] * self.x0 + (1 - (1 - 1e-5) * (1 - t))[:, None] * self.eps

        def student(z: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return z + t[:, None] * net(z, 1 - t, torch.log2(1 / (t - s)))

        return (shortened(FLOW, student, z, t, t - 1 / 8, t - 1 / 4) - z) / t[:, None]

    def guided(self) -> Tensor:
        """Stage 1's target, by the target of the method."""

        def teacher(batch: Batch, conditional: bool) -> Student:  # noqa: ARG001
            return self.pd_student("teacher" if conditional else "teacher_uncond")

        point = Point(**{**vars(self.pd), "batch": Batch(self.x0, {"w": self["in.gd.w"]})})
        return guided.GuidedPair()(Players({}, teacher), point)

    def stochastic(self) -> Tensor:
        """Two levels down and one back, twice; one level; x."""
        grid = torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64)
        alpha, sigma = PD.alpha(grid), PD.sigma(grid)
        z, states = self.eps, []
        for k in range(4):
            t = grid[k].expand(4)
            x = self.pd_student("student")(z, t)
            if k < 2:
                z = guided.stochastic(alpha, sigma, jump(PD, z, t, grid[k + 2].expand(4), x), k + 1, k + 2,
                                      self["in.gd.noise"][k])  # fmt: skip
            else:
                z = jump(PD, z, t, grid[3].expand(4), x) if k == 2 else x
            states.append(z)
        return torch.stack(states)

    def trajectory(self, *, target: bool) -> Tensor:
        t, s, u = (self[f"in.ctm.{name}"] for name in "tsu")
        z, last = EDM.diffuse(self.x0, t, self.eps), torch.full_like(t, 0.002)
        if target:
            z, t = jump(EDM, z, t, u, self.student("teacher")(z, t)), u
        return two_times.estimate(EDM, self.ctm("student"), self.ctm("ema"), z, t, s, last)

    def curvature(self) -> Tensor:
        """The loss of the method's objective, at fixed times and noise."""
        eps = curvature.encoded(self["in.fo.mu"], self["in.fo.logvar"], self.eps)
        z = FLOW.diffuse(self.x0, self.u, eps)
        off = self.student("student", FLOW, "flow").raw(z, self.u, self.u) - (eps - self.x0)
        return curvature.loss(off, self["in.fo.mu"], self["in.fo.logvar"], 20.0).mean()
