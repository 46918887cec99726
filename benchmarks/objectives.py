"""What is trained beside a denoiser, on the mixtures of `students.py`: heads, learned schedules, encoders.

    python benchmarks/objectives.py                      # all
    python benchmarks/objectives.py genie schedule       # some
    python benchmarks/objectives.py --out benchmarks/results/objectives_HARDWARE_DATE.json

- heads: R^2 of a variance head (SN, NPR) to the exact variance, over fresh states uniform in log-SNR, 1200 x 256 draws.
- genie: the RMS distance of DDIM, of `taylor-2` with the exact derivative and with the learned one, from the exact ends
  of the same noises; "kept" is the share of the exact derivative's gain that the learned one keeps.
- schedule: mean and variance of the bound's diffusion term in bits a dimension, for a log-SNR that is linear in time,
  for the one learned by gradient, and for gamma' ~ 1/sqrt(M2) in closed form; the ends are the same.
- curvature: flow matching's loss and energy distances for noise that is independent and for an encoder's, two modes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from students import COUNT, PROBLEMS, Problem, far, main, student
from torch import Tensor

import fewstep as fs
from fewstep.files import load_tensors
from fewstep.nets import MLP
from fewstep.train.methods import METHODS, curvature as coupling, heads, vdm
from fewstep.train.pairs import Uniform
from fewstep.train.player import Student
from fewstep.train.students import train_student

VP = Problem(fs.VP(), 1.0)
PROBLEMS.append(VP)


def head(p: Problem, method: str, out: Path) -> tuple[Student, float]:
    """A trained head, and the seconds that it took."""
    began = time.process_time()
    path = train_student(p.data, out, method=method, steps=1200, quiet=True, process=p.process, teacher=p.teacher)
    net = MLP(p.dim, outputs=METHODS[method]().outputs, beside=p.dim * METHODS[method]().noise)
    net.load_state_dict(load_tensors(path))
    made = Student(net=net.requires_grad_(False), process=p.process, predicts="noise", dtype=torch.float32)
    return made, time.process_time() - began


def states(p: Problem, count: int, clock: str = "log-snr") -> tuple[Tensor, Tensor, Tensor]:
    """Times, noises, and noised data."""
    g = torch.Generator().manual_seed(5)
    x, u = p.teacher.sample(count, g), torch.rand(count, generator=g, dtype=torch.float64)
    t, eps = Uniform(clock=clock).times(p.process, u), torch.randn(x.shape, generator=g, dtype=torch.float64)
    return t, eps, p.process.diffuse(x, t, eps)


def variances(out: Path) -> dict[str, Any]:
    """R^2 of both heads."""
    found: dict[str, Any] = {}
    t, _, z = states(VP, 5 * COUNT)
    exact = VP.teacher.at(t, "npr")(z)
    for kind in ("sn", "npr"):
        made, seconds = head(VP, kind, out / kind)
        truth = exact if kind == "npr" else exact + heads.noise_of(VP.process, VP.teacher, z, t) ** 2
        off = (made.raw(z, t, t) - truth).square().mean() / (truth - truth.mean(0)).square().mean()
        found[kind] = {"R2": 1 - float(off), "seconds": seconds}
    return found


def genie(out: Path) -> dict[str, Any]:
    """Errors of second order steps, and what the head keeps of them."""
    made, seconds = head(VP, "genie", out)
    found: dict[str, Any] = {"head": {"seconds": seconds}}
    exact, learned = fs.Differentiated(VP.teacher, VP.process), heads.Rate(VP.teacher, made)
    for calls in (5, 10, 20):
        rows = ((VP.teacher, "ddim"), (exact, "taylor-2"), (learned, "taylor-2"))
        (a, am), (b, bm), (c, cm) = (VP.distance(VP.run(d, solver, steps=calls)) for d, solver in rows)
        found[f"{calls} calls"] = {"DDIM": a, "exact": b, "learned": c, "DDIM / exact": a / b,
                                   "DDIM / exact, median": am / bm, "kept": (a - c) / (a - b),
                                   "kept, median": (am - cm) / (am - bm)}  # fmt: skip
    return found


def schedule(out: Path) -> dict[str, Any]:
    """The diffusion term for the same ends and three insides."""
    p, began = VP, time.process_time()
    student(p, "vdm", out, steps=1000)
    seconds = time.process_time() - began
    tensors = load_tensors(out / "checkpoint.safetensors")
    low, high = (-2 * float(p.process.log_snr(t)) for t in (p.process.t_min, p.process.t_max))
    net = vdm.Monotone(64, low, high)
    net.load_state_dict({k.removeprefix("schedule/ema."): v for k, v in tensors.items() if "schedule/ema." in k})

    def error(gamma: Tensor, seed: int) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        x, t = p.teacher.sample(len(gamma), g), p.process.inverse_log_snr(-gamma / 2)
        eps = torch.randn(x.shape, generator=g, dtype=torch.float64)
        return eps - heads.noise_of(p.process, p.teacher, p.process.diffuse(x, t, eps), t)

    bins = torch.linspace(low, high, 65, dtype=torch.float64)
    middles = (bins[:-1] + bins[1:]) / 2
    fourth = error(middles.repeat_interleave(600), 6).square().sum(1).square().reshape(64, 600).mean(1)
    ends = torch.cat([bins[:1], middles, bins[-1:]]), torch.cat([fourth[:1], fourth, fourth[-1:]])
    u = (torch.arange(10 * COUNT, dtype=torch.float64) + 0.5) / (10 * COUNT)
    asked = u.float().requires_grad_()
    learned = net(asked)
    (rate,) = torch.autograd.grad(learned.sum(), asked)
    insides = {"linear": (low + (high - low) * u, torch.full_like(u, high - low)),
               "by gradient": (learned.detach().double(), rate.double()),
               "in closed form": vdm.flattest(*ends, u)}  # fmt: skip
    found: dict[str, Any] = {}
    for name, (gamma, speed) in insides.items():
        loss = vdm.diffusion(speed, error(gamma, 7)) / (p.dim * torch.log(torch.tensor(2.0)))
        found[name] = {"bits a dimension": float(loss.mean()), "its error": float(loss.std() / len(u) ** 0.5),
                       "variance": float(loss.var())}  # fmt: skip
    found["by gradient"]["seconds"] = seconds
    return found


@dataclass(eq=False)
class Two(Problem):
    """Two modes at -3 and 3."""

    modes: int = 2

    @cached_property
    def teacher(self) -> fs.Mixture:
        means = torch.zeros(2, self.dim, dtype=torch.float64)
        means[:, 0] = torch.tensor([-3.0, 3.0])
        return fs.Mixture(self.process, means, 0.3)


def curvature(out: Path) -> dict[str, Any]:
    """Independent noise and an encoder's."""
    p, found = Two(fs.Flow(), 1.0), {}
    for name, method, options in (("independent", "flow", ()), ("encoder", "curvature", ()),
                                  ("encoder, beta 20", "curvature", (("beta", 20.0),))):  # fmt: skip
        model, seconds = student(p, method, out / name, options=options, steps=1000)
        x = p.held_out
        mean, log_variance = torch.zeros_like(x), torch.zeros_like(x)
        if method == "curvature":
            encoder, kept = MLP(p.dim, 64, 2, outputs=2), load_tensors(out / name / "checkpoint.safetensors")
            encoder.load_state_dict({k.removeprefix("encoder/ema."): v for k, v in kept.items() if "coder/ema." in k})
            mean, log_variance = (v.detach().double() for v in encoder(x.float(), torch.zeros(len(x))))
        t, normal, _ = states(p, len(x), "t")
        eps = coupling.encoded(mean, log_variance, normal)
        eps = coupling.standard(eps) if method == "curvature" else eps
        z = p.process.diffuse(x, t, eps)
        # the velocity eps - x0 of a prediction of data
        v = (z - model.denoiser()(z, t)) / t[:, None]
        found[name] = {"loss": float((v - (eps - x)).square().mean().detach()), "seconds": seconds}
        found[name] |= {f"ED of {n} calls": far(p, model.denoiser(), "ddim", steps=n, grid="uniform") for n in (4, 100)}
    return found


ROWS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "heads": variances,
    "genie": genie,
    "schedule": schedule,
    "curvature": curvature,
}

if __name__ == "__main__":
    main(ROWS, __doc__)
