"""Manifolds: spheres, tori and rotations, the walks on them, and the fields that are learned there."""

from __future__ import annotations

from collections.abc import Callable

from fewstep.manifold.base import Manifold
from fewstep.manifold.field import Field, load
from fewstep.manifold.rotations import Rotations
from fewstep.manifold.sphere import Sphere
from fewstep.manifold.torus import Torus
from fewstep.manifold.walk import divergence, flow, langevin, step

__all__ = ["MANIFOLDS", "Field", "Manifold", "Rotations", "Sphere", "Torus", "divergence", "flow", "langevin", "load",
           "step"]  # fmt: skip

# How a manifold is made for points of so many numbers.
MANIFOLDS: dict[str, Callable[[int], Manifold]] = {
    "sphere": lambda size: Sphere(dim=size - 1),
    "torus": lambda size: Torus(dim=size),
    "rotations": lambda size: Rotations(),
}
