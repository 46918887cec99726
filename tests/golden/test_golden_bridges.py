"""Bridges against their published codes: schedules, posteriors, steps and whole trajectories, to 1e-10.

The numbers: `bridges/` beside this file, every key with what it is; FEWSTEP_GOLDEN names another folder of such files.
The network of a trajectory is D(z, y, t) = a z + b y + c + d tau, tau the time that its key names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from golden_store import HERE, OTHER, Store, absent
from torch import Tensor

import fewstep as fs
from fewstep.denoiser.presets import ddbm, i2sb, i2sb_times, ir_sde_times, resshift_times
from fewstep.process.base import derivative
from fewstep.solver.base import Promise
from fewstep.solver.sde.ancestral import accumulated, posterior
from fewstep.tableau.writer import Writer

GOLDEN = Store(HERE.parents[1] / OTHER if OTHER else HERE / "bridges")

# What no solver here runs, by the beginning of its keys.
ABSENT = {
    **dict.fromkeys(("dsb.", "fbsde.", "s2."), "test_golden_roads.py compares them"),
    "cold.": "its degradations are kernels of three pixels with borders of their own, no frequencies",
    "ihdm.": "its network returns a less blurred picture, a head that no table here reads",
    "si.bsquared": "m/R stays finite at y, so no law is known from which a run given y starts",
    "si.sinesquared": "m/R rises again towards y",
    "si.sigmoid": "m/R stays finite at y",
}
SEEN: set[str] = set()


def g(key: str) -> Tensor:
    if key not in GOLDEN.npz:
        absent(key)
    SEEN.add(key)
    return GOLDEN.array(key)


def said(key: str, pattern: str) -> float:
    """A number in the words that document a key."""
    g(key)
    return float(re.search(pattern, GOLDEN.json[key]["doc"])[1])


def named(pattern: str) -> list[Any]:
    """The keys of a form. Another folder may have none of them; that this one has none fails when collected."""
    names = sorted(name for name in GOLDEN.npz if re.fullmatch(pattern, name))
    return names or [pytest.param("", marks=pytest.mark.skip(f"{OTHER} has no {pattern}"))]


def close(found: Any, key: str, rel: float = 1e-10) -> None:
    wanted = g(key)
    found = torch.as_tensor(found, dtype=torch.float64).reshape(wanted.shape)
    assert float((found - wanted).abs().max()) <= rel * max(1e-3, float(wanted.abs().max())), key


def network(tau: Callable[[float], float] = lambda t: t) -> Any:
    """The network with its y, told a time as the key counts it."""
    a, b, c, d = g("net").tolist()
    y = g("y")
    return fs.bridged(lambda z, t: a * z + b * y + c + d * tau(float(t)), y)


def walked(p: Any, solver: Any, grid: Tensor, noise: Tensor, tau: Any = lambda t: t, x: Tensor | None = None) -> Tensor:
    """Every made state of a run as people see it, (rows, *shape)."""
    states: list[Tensor] = []
    keep = lambda row, t, z: (states.append(z.clone()), z)[1]  # noqa: E731
    fs.sample(network(tau), p, solver=solver, grid=grid, noise=noise, x=x, after=keep)
    return torch.stack(states)


def quiet(noise: Tensor) -> Tensor:
    """The noises of a run, and none from then on."""
    return torch.cat([noise, torch.zeros_like(noise)])


def mean(p: fs.Bridge, t: float, s: float, z: Tensor, x0: Tensor, y: Tensor) -> Tensor:
    """Of the posterior of z_s given z_t and x0."""
    k, _ = posterior(p, t, s)
    return k * z + (p.alpha(s) - k * p.alpha(t)) * x0 + (p.n(s) - k * p.n(t)) * y


def rate(p: fs.Bridge, t: float) -> float:
    return float(derivative(p._n, torch.tensor(t, dtype=torch.float64)))


@dataclass(frozen=True, kw_only=True)
class InZ(fs.Solver):
    """Steps of the published codes in z and their own time: n is not linear in it, so y has terms of its own.

    `whole` takes g^2 score and not half of it, the reverse SDE; with `noisy` its noise. `churn` goes so much of a step
    by the SDE, then on by Heun's method. `g2` stands for g^2 where it is not that of m and R (UniDB's code).
    """

    g2: float | None = None
    whole: bool = False
    noisy: bool = False
    churn: float | None = None

    @property
    def promise(self) -> Promise:
        return Promise(1, point_mass=())

    def write(self, w: Writer) -> None:
        p, z, y = w.process, w.start, w.given("y")
        for t, s in w.steps:
            if self.churn is None:
                z = self._euler(w, z, y, t, s, whole=self.whole, noisy=self.noisy)
                continue
            at = t + self.churn * (s - t)
            if self.churn:
                z = self._euler(w, z, y, t, at, whole=True, noisy=True)
            slope = self._slope(p, w.call(z, at), z, at, 1.0)
            ahead = w.row(z + (s - at) * slope + self._y(p, at, s, [(1.0, at)]) * y, s)
            if p.log_snr(s) == math.inf:
                return
            both = 0.5 * slope + 0.5 * self._slope(p, w.call(ahead, s), ahead, s, 1.0)
            z = w.row(z + (s - at) * both + self._y(p, at, s, [(0.5, at), (0.5, s)]) * y, s)

    def _euler(self, w: Writer, z: Any, y: Any, t: float, s: float, *, whole: bool, noisy: bool) -> Any:
        p = w.process
        form = z + (s - t) * self._slope(p, w.call(z, t), z, t, 2.0 if whole else 1.0)
        form = form + self._y(p, t, s, [(1.0, t)]) * y
        if noisy:
            form = form + math.sqrt((t - s) * p.GG(t)) * w.fresh_noise(t, s, "euler")
        return w.row(form, s)

    def _slope(self, p: Any, d: Any, u: Any, t: float, halves: float) -> Any:
        """F u - halves/2 g^2 score, score = -(u - m D)/R^2."""
        pull = halves / 2 * (p.GG(t) if self.g2 is None else self.g2) / p.sigma(t) ** 2
        return (p.F(t) + pull) * u - (pull * p.alpha(t)) * d

    def _y(self, p: Any, t: float, s: float, rates: list[tuple[float, float]]) -> float:
        """The weight of y in u_s of a step of z: n_t + h sum b n' - n_s."""
        return p.n(t) + (s - t) * sum(b * rate(p, at) for b, at in rates) - p.n(s)


def stepped(p: Any, solver: InZ, grid: Tensor, x: Tensor, tau: Any, noise: Tensor) -> Tensor:
    return fs.sample(network(tau), p, solver=solver, grid=grid, x=x, noise=noise, given={"y": g("y")})


def where(times: Tensor) -> Callable[[float], float]:
    """The index of a time in a table."""
    return lambda t: float((times - t).abs().argmin())


# I2SB


def brownian() -> tuple[Tensor, fs.I2SB]:
    steps, beta_max = g("i2sb.interval_betamax").tolist()
    times = i2sb_times(int(steps), beta_max)
    return times, fs.I2SB(variance=float(times[-1]))


def test_i2sb_schedule_and_the_variance_that_its_training_counts_twice():
    times, p = brownian()
    betas = times.diff(prepend=times.new_zeros(1))
    close(betas, "i2sb.betas")
    close(times.sqrt(), "i2sb.std_fwd")
    close((p.variance - times + betas).sqrt(), "i2sb.std_bwd")
    trained = [fs.I2SB(variance=p.variance + b) for b in betas.tolist()]  # beta_i is in both halves
    for key, f in (("train_mu_x0", "alpha"), ("train_mu_x1", "n"), ("train_std", "sigma")):
        close([getattr(q, f)(t) for q, t in zip(trained, times.tolist(), strict=True)], f"i2sb.{key}")


def test_i2sb_posterior():
    times, p = brownian()
    rows = []
    for n, before, *_ in g("i2sb.posterior").tolist():
        t, s = float(times[int(n)]), float(times[int(before)])
        k, var = (p.n(s), p.sigma(s) ** 2) if t == p.end else posterior(p, t, s)
        rows.append([n, before, 1 - k, k, math.sqrt(var)])
    close(rows, "i2sb.posterior")


def test_i2sb_label_is_read_by_its_preset():
    times, p = brownian()
    index = int(said("i2sb.label", r"index (\d+)"))
    z, y, label = g("z"), g("y"), g("i2sb.label")
    steps, beta_max = g("i2sb.interval_betamax").tolist()
    told = []
    denoiser = i2sb(lambda x, at: (told.append(at), label)[1], y, steps=int(steps), beta_max=beta_max)
    t = float(times[index])
    close(denoiser.at(t)(z - p.n(t) * y), "x0")
    assert float(told[0][0]) == pytest.approx(steps * (1e-4 + (1 - 1e-4) * index / (steps - 1)), rel=1e-6)


def test_i2sb_trajectories():
    times, p = brownian()
    steps = g("i2sb.steps").long()
    assert torch.equal(steps, torch.linspace(0, len(times) - 1, len(steps), dtype=torch.float64).round().long())
    grid = times[steps].flip(0)
    states = walked(p, "ddpm", grid, quiet(g("i2sb.noise")[: len(steps) - 2]), where(times))
    close(states.flip(0), "i2sb.traj_ot0")
    share = times / p.variance  # without noise, y is the noise
    a, b, c, d = g("net").tolist()
    x, made = g("y"), []
    at = where(share)
    fs.sample(lambda z, t: a * z + b * x + c + d * at(float(t)), fs.Flow(), solver="ddim", grid=share[steps].flip(0),
              x=x, after=lambda row, t, z: (made.append(z.clone()), z)[1])  # fmt: skip
    close(torch.stack(made).flip(0), "i2sb.traj_ot1")


# IR-SDE, GOUB, UniDB


def reverting() -> tuple[Tensor, fs.IRSDE]:
    steps, eps, most = g("irsde.args").tolist()
    times = ir_sde_times(int(steps), eps)
    return times, fs.IRSDE(noise=most / 255, t_max=float(times[-1]))


def test_ir_sde_schedule():
    times, p = reverting()
    theta = g("irsde.thetas")
    dt = float(times[-1] / theta[1:].sum())
    close(times, "irsde.thetabar")
    close(dt, "irsde.dt")
    close(torch.cat([theta[:1], times.diff() / dt]), "irsde.thetas")  # the first is never used
    close(p.sigma(times), "irsde.sigma_bar")
    close([math.sqrt(posterior(p, *pair)[1]) for pair in zip(times[1:].tolist(), times.tolist(), strict=False)],
          "irsde.optimum_std", 1e-9)  # fmt: skip


def test_ir_sde_steps():
    times, p = reverting()
    k = int(said("irsde.optimum_mean", r"t=(\d+)"))
    t, s = times[k].item(), times[k - 1].item()
    z, x0, y = g("z"), g("x0"), g("y")
    close(mean(p, t, s, z, x0, y), "irsde.optimum_mean")
    for key, whole in (("ode", False), ("sde", True)):
        k = int(said(f"irsde.{key}_step", r"t=(\d+)")) if "t=" in GOLDEN.json[f"irsde.{key}_step"]["doc"] else k
        found = fs.sample(
            fs.bridged(lambda z, t: x0, y), p, solver=InZ(whole=whole, noisy=whole), grid=times[[k, k - 1]], x=z,
            noise=-x0[None], given={"y": y},
        )  # fmt: skip
        close(found, f"irsde.{key}_step")


def test_ir_sde_trajectories():
    times, p = reverting()
    x, noise, grid = g("irsde.start"), g("irsde.noise"), times.flip(0)
    most = g("irsde.args")[2] / 255
    close(g("y") + most * g("z"), "irsde.start")
    states = walked(p, "ddpm", grid, noise, where(times), x)
    close(states[-1], "irsde.traj_posterior", 1e-9)
    close(stepped(p, InZ(), grid, x, where(times), noise), "irsde.traj_ode", 1e-9)
    close(stepped(p, InZ(whole=True, noisy=True), grid, x, where(times), -noise), "irsde.traj_sde", 1e-9)


@pytest.mark.parametrize("name", ["goub", "unidb"])
def test_goub_and_unidb(name):
    times, noise = ir_sde_times(), g(f"{name}.lambda").item()
    p = fs.GOUB(noise=noise, length=times[-1].item())
    if name == "unidb":
        c = said("unidb.m_n_sigma", r"gamma_inv=([0-9.e-]+\d)")
        p = fs.UniDB(noise=noise, length=times[-1].item(), gamma_inv=c)
    z, x0, y = g("z"), g("x0"), g("y")
    ks = g(f"{name}.ks").long().tolist()
    at = times[ks]
    close(torch.stack([p.alpha(at), p.n(at), p.sigma(at)], 1), f"{name}.m_n_sigma")
    pairs = [(times[k].item(), times[k - 1].item()) for k in ks]
    close(torch.stack([mean(p, t, s, z, x0, y) for t, s in pairs]), f"{name}.r_mean")
    close([math.sqrt(posterior(p, t, s)[1]) for t, s in pairs], f"{name}.r_sigma")
    k = int(said(f"{name}.mean_ode_step", r"t=(\d+)"))
    found = fs.sample(fs.bridged(lambda z, t: x0, y), p, solver=InZ(whole=True, g2=2 * noise**2), x=z,
                      grid=times[[k, k - 1]], given={"y": y})  # fmt: skip
    close(found, f"{name}.mean_ode_step")


# InDI


@pytest.mark.parametrize("kind", ["constant", "brownian"])
def test_indi_trajectories(kind):
    word = "const" if kind == "constant" else kind
    noise = said(f"indi.{word}_traj", r"eps_t = ([0-9.]+[0-9])")
    p, grid = fs.InDI(noise=noise, kind_of_noise=kind), g(f"indi.{word}_times")
    start = p.prior(g("z"), 1.0, g("y"))
    solver = "ddim" if kind == "constant" else "resshift"
    states = walked(p, solver, grid, g(f"indi.{word}_noise"), x=start)
    wanted = g(f"indi.{word}_traj")
    states = torch.cat([start[None], states])[-len(wanted) :]
    close(states, f"indi.{word}_traj")


# DDBM and DBIM


def pinned(kind: str) -> fs.DDBMVP | fs.DDBMVE:
    args = g(f"ddbm.{kind}_args").tolist()
    return fs.DDBMVP(beta_d=args[0], beta_min=args[1]) if kind == "vp" else fs.DDBMVE(sigma_max=args[0])


@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_ddbm_algebra(kind):
    p, t = pinned(kind), g(f"ddbm.{kind}_t")
    close(torch.stack([p.n(t), p.alpha(t), p.sigma(t)]), f"ddbm.{kind}_abc")
    b = p.beta_min * t + p.beta_d * t**2 / 2 if kind == "vp" else 0 * t
    whole = p.beta_min + p.beta_d / 2 if kind == "vp" else 0.0
    h = p.n(t) * torch.exp((b - whole) / 2) / p.sigma(t) ** 2  # g^2 h u is what pinning adds to the drift
    close(torch.stack([p.F(t) + p.GG(t) * h, p.GG(t)]), f"ddbm.{kind}_f_g2")


@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_ddbm_preconditioning_is_its_preset(kind):
    p, key, rows = pinned(kind), f"ddbm.{kind}_precond", []
    data, both = said(key, r"sigma_data = ([0-9.]+\d)"), said(key, r"cov_xy = ([0-9.]+\d)")
    for t in g(f"ddbm.{kind}_t").tolist():
        shown, told, out = [], [], torch.zeros(1, 1, dtype=torch.float64)

        def net(x, label, shown=shown, told=told, out=out):
            shown.append(x)
            told.append(label)
            return out

        y = torch.zeros(1, 1, dtype=torch.float64)
        call = ddbm(net, y, p, sigma_data=data, sigma_end=0.5, covariance=both).at(t)
        skip = call(torch.ones_like(y)).item()
        out += 1.0
        rows.append([skip, shown[0].item(), call(0 * y).item(), told[0].item(), call(0 * y).item() ** -2])
    close(torch.tensor(rows, dtype=torch.float64).T, key, 1e-9 if told[0].dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_ddbm_drifts(kind):
    p = pinned(kind)
    t = said(f"ddbm.{kind}_drifts", r"t=([0-9.]+\d)")
    z, y = g("z"), g("y")
    d = network().denoiser.call(z, t)
    u = z - p.n(t) * y
    drifts = [InZ()._slope(p, d, u, t, halves) + rate(p, t) * y for halves in (1.0, 2.0)]
    close(torch.stack(drifts), f"ddbm.{kind}_drifts")


@pytest.mark.parametrize("key", named(r"dbim\.v[pe]_(eta.*|order\d)"))
def test_dbim_trajectories(key):
    kind, what = re.fullmatch(r"dbim\.(v[pe])_(.*)", key).groups()
    p, times, noise = pinned(kind), g(f"dbim.{kind}_ts"), g(f"dbim.{kind}_noise")
    grid = torch.cat([times.new_tensor([p.end]), times])
    solver = fs.DDIM(eta=float(what[3:])) if what.startswith("eta") else f"dbim-{what[5:]}"
    close(walked(p, solver, grid, quiet(noise[: len(times) - 1])), key)


@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_ddbm_karras_grid(kind):
    times = g(f"ddbm.{kind}_karras")
    p = fs.EDM(sigma_min=times[-2].item(), sigma_max=times[0].item())
    found = fs.grid.karras(p, len(times) - 2)
    close(torch.cat([found, found.new_zeros(1)]), f"ddbm.{kind}_karras")


@pytest.mark.parametrize("key", named(r"ddbm\.v[pe]_heun_churn.*"))
def test_ddbm_heun(key):
    """It starts at y itself, a little before the end: u = (1 - n) y."""
    kind, churn = re.fullmatch(r"ddbm\.(v[pe])_heun_churn(.*)", key).groups()
    p, noise = pinned(kind), g(f"dbim.{kind}_noise")
    solver = InZ(churn=float(churn))
    close(stepped(p, solver, g(f"ddbm.{kind}_karras"), g("y"), lambda t: t, noise), key)


# ResShift, stochastic interpolants, bridge matching, soft diffusion


def test_resshift():
    steps, kappa, power, least, end = g("resshift.args").tolist()
    times = resshift_times(int(steps), kappa=kappa, power=power, least=least, end=end)
    close(times.sqrt(), "resshift.sqrt_etas")
    p = fs.ResShift(kappa=kappa, t_max=times[-1].item())
    grid = torch.cat([times.flip(0), times.new_zeros(1)])
    rows = []
    for t, s in pairwise(grid.tolist()):
        k, var = accumulated(p, t, s)
        rows.insert(0, [k, 1 - k, var])
    close(torch.tensor(rows, dtype=torch.float64).T, "resshift.post")
    start = p.prior(g("z"), y=g("y"))
    close(start, "resshift.start")
    close(walked(p, "resshift", grid, g("resshift.noise"), where(times), start)[-1], "resshift.traj")


def test_interpolants():
    t = g("si.t")
    linear, trig = fs.Interpolant(), fs.Interpolant(path="trig")
    r, slope = linear.sigma(t), linear.R_rate(t)
    close(torch.stack([r, slope, r * slope]), "si.brownian")
    for key, p in (("linear", linear), ("trig", trig)):
        close(torch.stack([p.alpha(t), p.M_rate(t), p.n(t), derivative(p._n, t)]), f"si.{key}")
    for key, p in (("linear", fs.Flow()), ("trig", fs.Cosine(offset=0.0, t_max=1.0, t_min=0.0))):
        close(torch.stack([p.alpha(t), p.M_rate(t), p.sigma(t), p.R_rate(t)]), f"si.one-sided-{key}")


def test_bridge_matching_is_the_drift_of_a_brownian_bridge():
    p, t = fs.Interpolant(noise=g("dsbm.sig").item()), g("dsbm.t")
    z0, z1, eps, z = g("dsbm.z0"), g("dsbm.z1"), g("dsbm.noise"), g("dsbm.zt")
    close(p.alpha(t) * z0 + p.n(t) * z1 + p.sigma(t) * eps, "dsbm.zt")
    close(p.F(t) * (z - p.n(t) * z1) + z1, "dsbm.target_f")
    close(p.F(1 - t) * (z - p.n(1 - t) * z0) + z0, "dsbm.target_b")


@dataclass(frozen=True, kw_only=True)
class Line(fs.ScalarProcess):
    """One frequency whose signal and noise run straight from t = 1 to t = 0."""

    signal: tuple[float, float]
    spread: tuple[float, float]
    t_max: float = 1.0
    t_min: float = 0.0

    def _alpha(self, t: Tensor) -> Tensor:
        return self.signal[1] + t * (self.signal[0] - self.signal[1])

    def _sigma(self, t: Tensor) -> Tensor:
        return self.spread[1] + t * (self.spread[0] - self.spread[1])

    def _inverse_log_snr(self, lam: Tensor) -> Tensor:
        raise NotImplementedError(lam)


def test_soft_diffusion_samplers():
    high, low, far, near = g("soft.args").tolist()
    p = Line(signal=(high, low), spread=(far, near))
    for key, solver in (("momentum", "momentum"), ("naive", "lcm")):
        table = fs.tabulate(solver, p, grid=torch.tensor([1.0, 0.0]))
        row = dict(table.rows[-1].form)
        close([row.get(s, 0.0) for s in (("z", 0), ("y", 0, "x0"), ("xi", 0))], f"soft.{key}")


@pytest.mark.skipif(OTHER is not None, reason="of this folder every key is accounted for")
def test_every_key_is_compared_or_has_a_reason(request):
    if len(request.session.items) < 25:
        pytest.skip("only a part of this file was run")
    left = [k for k in GOLDEN.npz if k not in SEEN and not k.startswith(tuple(ABSENT))]
    assert not left
