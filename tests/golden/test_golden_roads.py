"""Manifolds and Schroedinger bridges beside what reference implementations compute: keys s2., dsb., fbsde. of bridges.

What the references get wrong is held as such: published code calls the other direction of a diffusion Schroedinger
bridge one step late (`dsb.eval_times`), and the truncated series and Varadhan's terms are no heat kernel at most times
(`s2.heat_nmax5`, `s2.varadhan`).
"""

from __future__ import annotations

import math

import pytest
import torch
from golden_store import HERE, OTHER, Store
from torch import Tensor

import fewstep as fs
from fewstep.manifold.sphere import Sphere, expansion, series
from fewstep.manifold.walk import step
from fewstep.schroedinger import fbsde
from fewstep.schroedinger.chain import NoiseChain, gammas

GOLDEN = Store(HERE.parents[1] / OTHER if OTHER else HERE / "bridges")
ROADS = ("s2.", "dsb.", "fbsde.")
SEEN: set[str] = set()
SPHERE = Sphere(2)


def g(key: str) -> Tensor:
    if key not in GOLDEN.npz:
        pytest.skip(f"{OTHER} has no {key}")
    SEEN.add(key)
    return GOLDEN.array(key)


def close(found: Tensor, key: str, rel: float = 1e-10) -> None:
    wanted, found = g(key), found.detach()
    assert float((found - wanted).abs().max()) <= rel * max(1e-3, float(wanted.abs().max())), key


def test_the_sphere():
    p, q, ambient = g("s2.p"), g("s2.q"), g("s2.ambient")
    close(SPHERE.exp(p, SPHERE.project(p, ambient)), "s2.exp")
    close(SPHERE.log(p, q), "s2.log")
    close(SPHERE.distance(p, q), "s2.dist")
    low, high = g("s2.beta").tolist()
    t, clock = g("s2.t"), fs.VP(beta_min=low, beta_max=high, t_max=1.0, t_min=0.0)
    close(-2 * clock._log_alpha(t), "s2.rescaled")  # s = int beta: VP's mean is e^(-s/2)
    close(clock.sigma(t), "s2.std")
    beta = low + 0.5 * (high - low)
    close(step(SPHERE, p, 0.0, beta * 0.03, ambient), "s2.grw_forward")
    close(step(SPHERE, p, g("s2.score"), beta * 0.03, ambient), "s2.grw_reverse")


def test_heat_kernels():
    s, theta = g("s2.heat_s"), g("s2.heat_theta")
    every, at = theta.expand(len(s), -1), s[:, None].expand(-1, len(theta))
    log_k, slope = (v.reshape(at.shape) for v in SPHERE.radial(every.flatten(), at.flatten()))
    close(log_k, "s2.heat_log")
    close(slope, "s2.heat_dlog")
    close(series(every, at, 2, 5)[0], "s2.heat_nmax5")
    close(expansion(every, at, 2, 0)[1], "s2.varadhan")
    close(expansion(every, at, 2, 1)[1], "s2.varadhan_order1")


def test_mean_matching():
    made, start, noise = g("dsb.gammas"), g("dsb.start"), g("dsb.noise")
    SEEN.add("dsb.net")  # in words: the linear network F below
    low, high = float(made.min()), float(made.max())
    close(gammas(len(made), low, high), "dsb.gammas")
    chain, tau = NoiseChain(tuple(made.tolist())), made.cumsum(0)
    a = torch.tensor([0.05, -0.02], dtype=torch.float64)
    net = lambda x, k: (0.9 - 0.2 * tau[k]) * x + 0.1 * tau[k] + a  # noqa: E731
    path = chain.path(net, start, lambda k: noise[k])
    close(path[1:].movedim(0, 1), "dsb.x")
    for key in ("dsb.target", "dsb.drift_target"):
        close(chain.targets(net, path).movedim(0, 1), key)
    close(chain.published_times(), "dsb.eval_times")
    mean, variance = torch.tensor([0.5, -0.3], dtype=torch.float64), 1.5
    towards = lambda x, k: x - made[k] * (x - mean) / variance  # noqa: E731
    path = chain.path(towards, start, lambda k: noise[k])
    close(path[1:].movedim(0, 1), "dsb.init_x")
    close(chain.targets(towards, path).movedim(0, 1), "dsb.init_target")


def nets() -> tuple:
    shift = torch.tensor([0.3, -0.2], dtype=torch.float64)
    both = [g(f"fbsde.W_{way}") for way in ("f", "b")]
    return tuple(lambda x, t, w=w: x @ w.mT + 0.1 * t[:, None] + shift for w in both)


def diffusion(kind: str, t: Tensor) -> tuple[Tensor, Tensor]:
    """(g, beta of the drift) of a reference."""
    _, _, low, high, least, most = g("fbsde.args").tolist()
    if kind == "vp":
        beta = low + t * (high - low)
        return beta.sqrt(), beta
    width = least * (most / least) ** t * math.sqrt(2 * math.log(most / least))
    return (width if kind == "ve" else torch.ones_like(t)), torch.zeros_like(t)


@pytest.mark.parametrize("kind", ["vp", "ve", "simple"])
def test_losses_and_steps_of_two_stochastic_equations(kind):
    total, count = g("fbsde.args")[:2].tolist()
    h, x, t, probe, other = total / count, g("fbsde.xs"), g("fbsde.ts"), g("fbsde.e"), g("fbsde.z_impt")
    z, z_hat = nets()
    width, _ = diffusion(kind, t)
    per = h / (2 * 3)  # 2 walks of 3 times
    close(fbsde.alternate(z_hat, x, t, other, width, probe).sum() * per, f"fbsde.alt_loss_{kind}")
    close(fbsde.alternate(z_hat, x, t, other, width).sum() * per, f"fbsde.alt_loss_exact_{kind}")
    half = torch.full((6,), 0.5, dtype=torch.float64)
    width, beta = (v[0] for v in diffusion(kind, half))
    for sign, way in ((1, "forward"), (-1, "backward")):
        moved = fbsde.moved(x, -sign * beta / 2 * x, other, float(width), h, probe)
        close(moved, f"fbsde.propagate_{kind}_{way}")
    if kind != "simple":
        both, noise = z(x, half) + z_hat(x, half), g(f"fbsde.corr_noise_{kind}")
        low, high = g("fbsde.args")[2:4].tolist()
        alpha = float(fs.VP(beta_min=low, beta_max=high).alpha(0.5)) ** 2 if kind == "vp" else 1.0
        close(fbsde.corrected(x, both, float(width), noise, snr=0.1, alpha=alpha), f"fbsde.corrected_{kind}")


def test_the_joint_loss():
    total, count = g("fbsde.args")[:2].tolist()
    x, t, end, other = g("fbsde.xs"), g("fbsde.ts"), g("fbsde.xT"), g("fbsde.z_impt")
    rates = fbsde.joint(lambda *_: other, nets()[1], x, t, torch.tensor(1.0, dtype=torch.float64), g("fbsde.e"))
    far = -torch.distributions.Normal(0.0, 1.0).log_prob(end).sum(1).mean()
    close(rates.detach().sum() * total / count / 2 + far, "fbsde.joint_loss")


def test_every_key_is_compared():
    if OTHER:
        pytest.skip("another folder's keys are what they are")
    assert {key for key in GOLDEN.npz if key.startswith(ROADS)} == SEEN
