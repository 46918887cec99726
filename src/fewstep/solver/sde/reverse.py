r"""The reverse SDE of every linear process: what a step carries, what it weighs and what it adds.

$$ dz = \Big(F z + \tfrac{1+\eta}{2} G G^T \Sigma^{-1} (z - M D)\Big) dt + \sqrt{\eta}\, G\, d\bar w $$

has one law for every eta >= 0: eta = 0 is the probability-flow ODE, eta = 1 Anderson's reverse SDE; eta is lambda^2 of
gDDIM, tau^2 of SA-Solver, eta of k-diffusion's SDE solvers. Let P solve P' = (F + (1 + eta)/2 G G^T Sigma^-1) P. Then

$$ z_s = \Phi z_t + \int_t^s P_s\, d(P^{-1} M)_\tau\, D_\tau + C \xi, \qquad \Phi = P_s P_t^{-1}, \qquad
   C C^T = \Sigma_s - \Phi \Sigma_t \Phi^T $$

exactly: with constant D a point mass keeps its law on every process. P is R at eta = 0 and Sigma Psi^-T at eta = 1;
elementwise it is R rho^eta with rho = R/Psi, and any R g(rho) with growing g is an SDE too (ER-SDE, phi = rho g). On
blocks other eta have no closed form: with P = R U, U' = eta/2 (R^-1 G G^T R^-T) U is integrated by Gauss collocation.

References: Song et al. 2021, https://arxiv.org/abs/2011.13456; Zhang, Tao, Chen, gDDIM, 2022,
https://arxiv.org/abs/2206.05564; Xue et al., SA-Solver, 2023, https://arxiv.org/abs/2309.05019.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from fewstep.process.base import Process, Time, derivative, once, to_tensor
from fewstep.process.operator import Block, Coefficient, Diagonal, cholesky, inverse, is_zero, transpose
from fewstep.process.quadrature import around, gauss
from fewstep.solver.weights import Frame, pull
from fewstep.tableau import Form, Writer

__all__ = ["added", "carry", "reverse", "scaled"]

_APART = 0.5  # log-SNR between knots
_C, _B = gauss(8)[0] / 2 + 0.5, gauss(8)[1] / 2  # on [0, 1]
_POWERS = torch.arange(8, dtype=torch.float64)
_A = (_C[:, None] ** (_POWERS + 1) / (_POWERS + 1)) @ torch.linalg.inv(_C[:, None] ** _POWERS)


def reverse(process: Process, eta: float) -> Frame:
    """P, M and P d(P^-1 M) of the reverse SDE with fresh noise eta: what `weights` integrates."""
    if process.kind != "block":
        return scaled(process, lambda rho: eta * rho.log() if eta else torch.zeros_like(rho), eta)
    if eta == 0:
        frame: Callable[[Time], Coefficient] = process.R
    elif eta == 1:
        frame = lambda t: process.Sigma(t) * transpose(inverse(process.Psi(t)))  # noqa: E731
    else:
        frame = lambda t: process.R(t) * _turned(process, eta, t)  # noqa: E731
    return Frame(frame, process.M, lambda t: (1 + eta) * _rate(process, t))


def scaled(process: Process, log_g: Callable[[Tensor], Tensor], name: Hashable) -> Frame:
    """The same for P = R g(rho) on numbers and frequencies, of a log g with a name: phi = rho g is ER-SDE's scale."""
    rho = lambda t: process.R(t) * inverse(process.Psi(t))  # noqa: E731
    kappa = lambda x: 1 + derivative(lambda v: log_g(v.exp()), x.log())  # noqa: E731
    p = lambda t: process.R(t) * _each(lambda x: log_g(x).exp(), rho(t))  # noqa: E731
    return Frame(
        lambda t: once(process, ("scaled", name), p, t), process.M, lambda t: _each(kappa, rho(t)) * _rate(process, t)
    )


def carry(frame: Frame, t: float, s: float) -> Coefficient:
    """Phi = P_s P_t^-1."""
    return frame.p(s) * inverse(frame.p(t))


def added(w: Writer, phi: Coefficient, t: float, s: float) -> Form:
    """C xi of a step that carries `phi`, on the path between t and s; nothing where sigma = 0."""
    p = w.process
    covariance = p.Sigma(s) - phi * p.Sigma(t) * transpose(phi)
    return Form({}) if is_zero(covariance) else cholesky(covariance) * w.noise(t, s)


def _rate(process: Process, t: Time) -> Coefficient:
    """That of the ODE, eta = 0."""
    return pull(process, t) * inverse(process.Sigma(t)) * process.M(t)


def _each(f: Callable[[Tensor], Tensor], c: Coefficient) -> Coefficient:
    """A function of every number of a coefficient that has no blocks."""
    if isinstance(c, Diagonal):
        return Diagonal(f(c.values), c.rank)
    return f(c) if isinstance(c, Tensor) else f(to_tensor(c)).item()


def _turned(process: Process, eta: float, t: Time) -> Block:
    """U of P = R U on blocks, from the identity at log-SNR 0: the knot behind t, and one step from there."""
    lam = to_tensor(process.log_snr(to_tensor(t)))
    knot = (lam / _APART).floor()
    low, high = around(knot)
    start = _knots(process, eta, low, high)[(knot - low).long()]
    return Block(_across(process, eta, _APART * knot, lam) @ start)


@functools.lru_cache(maxsize=8)
def _knots(process: Process, eta: float, low: int, high: int) -> Tensor:
    """U at the log-SNRs low, low + 1, .., high times the distance of knots."""
    lam = _APART * torch.arange(low, high + 1, dtype=torch.float64)
    steps = _across(process, eta, lam[:-1], lam[1:])
    made = {0: torch.eye(2, dtype=torch.float64)}
    for k in range(high):
        made[k + 1] = steps[k - low] @ made[k]
    for k in range(0, low, -1):
        made[k - 1] = torch.linalg.solve(steps[k - 1 - low], made[k])
    return torch.stack([made[k] for k in range(low, high + 1)])


def _across(process: Process, eta: float, start: Tensor, end: Tensor) -> Tensor:
    """U from one log-SNR to another close by: one step of Gauss collocation, of order 16."""
    h, count = (end - start)[..., None], len(_C)
    tau = to_tensor(process.inverse_log_snr(start[..., None] + h * _C))
    r_inv = inverse(process.R(tau))
    speed = 0.5 * eta * h / derivative(process.log_snr, tau)
    b = speed[..., None, None] * (r_inv * process.GG(tau) * transpose(r_inv)).values  # (.., stage, 2, 2)
    coupled = torch.einsum("ij,...jab->...iajb", _A, b).reshape(*b.shape[:-3], 2 * count, 2 * count)
    eye = torch.eye(2, dtype=torch.float64)
    stages = torch.linalg.solve(torch.eye(2 * count, dtype=torch.float64) - coupled, eye.repeat(count, 1))
    return eye + torch.einsum("j,...jab,...jbc->...ac", _B, b, stages.reshape(b.shape))
