"""Schroedinger bridges: two laws joined by the process nearest to a reference; learned drifts, sampled by tables."""

from __future__ import annotations

from fewstep.schroedinger.chain import Drift, NoiseChain, Pair, gammas, load, table
from fewstep.schroedinger.gaussian import Affine, alternate, entropic, match

__all__ = ["Affine", "Drift", "NoiseChain", "Pair", "alternate", "entropic", "gammas", "load", "match", "table"]
