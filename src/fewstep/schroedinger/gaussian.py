r"""Schroedinger bridges between Gaussians: the closed form, and both alternations with exact affine regressions.

With a Brownian reference of total variance s^2 the covariance of the two ends is (Bunne et al. 2023, eq. 3)

$$ C = \tfrac12 \big( S_0^{1/2} (4 S_0^{1/2} S_1 S_0^{1/2} + s^4 I)^{1/2} S_0^{-1/2} - s^2 I \big). $$

Everything a Gaussian chain of affine steps does is a matter of means and covariances, so least squares at each step are
exact, without samples: what is left is the method's own error. Mean matching's (`alternate`) is of first order in
gamma; more rounds make it worse, for the coupling drifts away (20 steps, s^2 = 2: 4.5 % at round 3, 10 % at round 20).
Bridge matching's (`match`) shrinks by a factor of about 0.7 a half round at s^2 = 1.

References: De Bortoli et al. 2021, https://arxiv.org/abs/2106.01357; Shi et al., Diffusion Schrodinger bridge matching,
2023, https://arxiv.org/abs/2303.16852; Bunne et al., The Schrodinger bridge between Gaussian measures has a closed
form, 2023, https://arxiv.org/abs/2202.05722.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Affine", "Ends", "alternate", "entropic", "match"]

Law = tuple[Tensor, Tensor]  # mean (d,), covariance (d, d)


@dataclass(frozen=True)
class Ends:
    """What a chain made: the law of its end, and the covariance of its start with it."""

    mean: Tensor
    covariance: Tensor
    cross: Tensor


@dataclass(frozen=True)
class Affine:
    """Steps x -> A_k x + a_k + sqrt(v_k) xi."""

    matrices: Tensor
    shifts: Tensor
    variances: Tensor

    def laws(self, start: Law) -> list[Law]:
        """Of every state."""
        found = [start]
        eye = torch.eye(len(start[0]), dtype=start[0].dtype)
        for a, b, v in zip(self.matrices, self.shifts, self.variances, strict=True):
            mean, s = found[-1]
            found.append((a @ mean + b, a @ s @ a.mT + v * eye))
        return found

    def ends(self, start: Law) -> Ends:
        """Of the chain from a law."""
        mean, covariance = self.laws(start)[-1]
        cross = start[1]
        for a in self.matrices:
            cross = cross @ a.mT
        return Ends(mean, covariance, cross)

    def answer(self, start: Law) -> Affine:
        """The other direction by mean matching: x_{k+1} + F_k(x_k) - F_k(x_{k+1}) regressed on x_{k+1}."""
        laws = self.laws(start)
        matrices, shifts = [], []
        for k, a in enumerate(self.matrices):
            (mean, s), (then, t) = laws[k], laws[k + 1]
            gain = torch.linalg.solve(t, (t + a @ s @ a.mT - a @ t).mT).mT  # Cov(target, x_{k+1}) t^-1
            matrices.append(gain)
            shifts.append(then + a @ (mean - then) - gain @ then)
        return Affine(torch.stack(matrices).flip(0), torch.stack(shifts).flip(0), self.variances.flip(0))


def entropic(s0: Tensor, s1: Tensor, variance: float) -> Tensor:
    """Cov(x_0, x_1) of the bridge between N(., s0) and N(., s1); its own reference is Brownian of that variance."""
    root = _power(s0, 0.5)
    inside = _power(4 * root @ s1 @ root + variance**2 * torch.eye(len(s0), dtype=s0.dtype), 0.5)
    return (root @ inside @ _power(s0, -0.5) - variance * torch.eye(len(s0), dtype=s0.dtype)) / 2


def alternate(start: Law, end: Law, gammas: Tensor, rounds: int) -> list[tuple[Ends, Ends]]:
    """Diffusion Schroedinger bridge: after every round what the backward and the forward chain make."""
    eye = torch.eye(len(start[0]), dtype=start[0].dtype)
    forward = Affine(eye.expand(len(gammas), -1, -1), torch.zeros_like(start[0]).expand(len(gammas), -1), 2 * gammas)
    found = []
    for _ in range(rounds):
        backward = forward.answer(start)
        forward = backward.answer(end)
        found.append((backward.ends(end), forward.ends(start)))
    return found


def match(start: Law, end: Law, variance: float, steps: int, halves: int) -> list[Ends]:
    """Diffusion Schroedinger bridge matching from independent ends: after every half round what its chain makes.

    Forward and backward in turn: the drift E[(z_1 - z_t)/(1 - t) | z_t] of the bridges that the ends of the last chain
    make, in Euler steps.
    """
    eye, here, there = torch.eye(len(start[0]), dtype=start[0].dtype), start, end
    found: list[Ends] = []
    cross = torch.zeros_like(eye)  # Cov(here, there)
    h = 1 / steps
    for _ in range(halves):
        matrices, shifts = [], []
        (m0, s0), (m1, s1) = here, there
        for t in (torch.arange(steps, dtype=torch.float64) * h).tolist():
            z = (1 - t) ** 2 * s0 + t * (1 - t) * (cross + cross.mT) + t**2 * s1 + variance * t * (1 - t) * eye
            far = (1 - t) * cross.mT + t * s1  # Cov(z_1, z_t)
            gain = torch.linalg.solve(z, far.mT).mT
            drift = (gain - eye) / (1 - t)
            mean = (1 - t) * m0 + t * m1
            matrices.append(eye + h * drift)
            shifts.append(h * (m1 - gain @ mean) / (1 - t))
        chain = Affine(torch.stack(matrices), torch.stack(shifts), torch.full((steps,), variance * h))
        made = chain.ends(start)  # it is walked from the law itself
        found.append(made)
        start, end, cross = end, start, made.cross.mT  # the next one is learned between this chain's ends
        here, there = (made.mean, made.covariance), end
    return found


def _power(s: Tensor, p: float) -> Tensor:
    values, vectors = torch.linalg.eigh(s)
    return (vectors * values.clamp(min=0) ** p) @ vectors.mT
